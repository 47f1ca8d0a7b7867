//! OTLP over HTTP with JSON (opentelemetry.io/docs/specs/otlp, "OTLP/HTTP"): one POST for what waits, on a connection that is
//! kept.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::uri::Authority;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpStream;

use super::line::{Severity, host_name};
use super::worker::Fault;
use crate::chain::head;
use crate::tls::Connector;

/// The most bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Where a collector listens.
#[derive(Clone, Debug)]
pub struct OtlpConfig {
    /// Host and port.
    pub authority: Authority,
    /// Where it takes logs, usually `/v1/logs`.
    pub path: String,
    /// By which name the server is verified, and by what; none is plain text.
    pub tls: Option<(ServerName<'static>, Connector)>,
    /// What is sent as `authorization`.
    pub authorization: Option<HeaderValue>,
}

pub(super) struct Otlp {
    config: OtlpConfig,
    host: String,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Otlp {
    pub(super) fn new(config: &OtlpConfig) -> Self {
        Self { config: config.clone(), host: host_name(), sender: None }
    }

    pub(super) fn reset(&mut self) {
        self.sender = None;
    }

    pub(super) async fn send(&mut self, lines: &[&[u8]]) -> Result<(), Fault> {
        let body = Bytes::from(export(&self.host, lines.iter().copied()).to_string());
        // A collector closes a connection that was idle, and says so only when it is used: that is no failure.
        if let Some(kept) = self.sender.take()
            && let Ok(sent) = self.post(kept, body.clone()).await
        {
            return sent;
        }
        let sender = self.connect().await.map_err(|why| Fault::Away(self.fault(&why)))?;
        self.post(sender, body).await.map_err(Fault::Away)?
    }

    /// What the collector answers; an error when it does not.
    async fn post(
        &mut self,
        mut sender: SendRequest<Full<Bytes>>,
        body: Bytes,
    ) -> Result<Result<(), Fault>, String> {
        let told = |error: &dyn ToString| self.fault(&error.to_string());
        sender.ready().await.map_err(|error| told(&error))?;
        let request = self.request(body).map_err(|error| told(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| told(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        // The status is the answer; who says much more cannot make it none.
        let Ok(body) = body else { return Ok(self.judged(status, 0)) };
        let rejected = rejected(&body.to_bytes());
        self.sender = Some(sender);
        Ok(self.judged(status, rejected))
    }

    fn judged(&self, status: StatusCode, rejected: u64) -> Result<(), Fault> {
        let why = || self.fault(&format!("HTTP status {status}, {rejected} records rejected"));
        match status {
            // The one status of success (OTLP/HTTP, "Full Success").
            StatusCode::OK if rejected == 0 => Ok(()),
            StatusCode::OK => Err(Fault::Refused(why())),
            status if is_about_content(status) => Err(Fault::Refused(why())),
            _ => Err(Fault::Away(why())),
        }
    }

    fn request(&self, body: Bytes) -> Result<Request<Full<Bytes>>, http::Error> {
        let mut request = Request::post(&self.config.path)
            .header(HOST, self.config.authority.as_str())
            .header(CONTENT_TYPE, "application/json")
            .header(CONTENT_LENGTH, body.len());
        if let Some(authorization) = &self.config.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.body(Full::new(body))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let stream = TcpStream::connect(self.config.authority.as_str()).await;
        let stream = stream.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        match &self.config.tls {
            None => handshake(stream).await,
            Some((name, connector)) => {
                let stream = connector.connect(name.clone(), stream).await;
                handshake(stream.map_err(|error| error.to_string())?).await
            }
        }
    }

    fn fault(&self, why: &str) -> String {
        let scheme = if self.config.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}{}: {why}", self.config.authority, self.config.path)
    }
}

/// Whether a refusal may be about what was sent. Who is overloaded or has a limit takes the same lines later: were
/// they shortened for it, a flood would choose what a collector does not see.
fn is_about_content(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::FORBIDDEN
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY
    )
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let connecting = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (sender, connection) = connecting.await.map_err(|error| error.to_string())?;
    // It ends when the sender is dropped.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// How many records the collector says that it threw away.
fn rejected(answer: &[u8]) -> u64 {
    let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    let rejected = answer.pointer("/partialSuccess/rejectedLogRecords");
    // 64-bit numbers are texts in the JSON of protobuf; not everybody knows.
    let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
    rejected.and_then(number).unwrap_or(0)
}

/// An `ExportLogsServiceRequest`.
fn export<'l>(host: &str, lines: impl Iterator<Item = &'l [u8]>) -> Value {
    let text = |key: &str, value: &str| json!({ "key": key, "value": { "stringValue": value } });
    let records: Vec<Value> = lines.map(record).collect();
    json!({ "resourceLogs": [{
        "resource": { "attributes": [text("service.name", "ringfence"), text("host.name", host)] },
        "scopeLogs": [{
            "scope": { "name": "ringfence.audit", "version": env!("CARGO_PKG_VERSION") },
            "logRecords": records,
        }],
    }] })
}

fn record(line: &[u8]) -> Value {
    let body = String::from_utf8_lossy(line);
    let (sequence, time, kind) =
        head(line).map_or((0, "", "unknown"), |head| (head.sequence, head.time, head.kind));
    let nanoseconds =
        OffsetDateTime::parse(time, &Rfc3339).map_or(0, OffsetDateTime::unix_timestamp_nanos);
    let (number, severity) = match Severity::of(line) {
        Severity::Error => (17, "ERROR"),
        Severity::Warning => (13, "WARN"),
        Severity::Informational => (9, "INFO"),
    };
    json!({
        "timeUnixNano": nanoseconds.to_string(),
        "severityNumber": number,
        "severityText": severity,
        "eventName": format!("ringfence.{kind}"),
        "body": { "stringValue": body },
        "attributes": [{ "key": "ringfence.seq", "value": { "intValue": sequence.to_string() } }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_log_record() {
        let line = "{\"v\":1,\"seq\":7,\"time\":\"2027-01-15T08:00:00.000001Z\",\"type\":\"decision\",\
            \"verdict\":\"deny\",\"prev\":\"00\"}";
        let exported = export("etcd-0", [line.as_bytes()].into_iter());
        let record = exported.pointer("/resourceLogs/0/scopeLogs/0/logRecords/0").unwrap();
        assert_eq!(
            *record,
            json!({
                "timeUnixNano": "1800000000000001000",
                "severityNumber": 13,
                "severityText": "WARN",
                "eventName": "ringfence.decision",
                "body": { "stringValue": line },
                "attributes": [{ "key": "ringfence.seq", "value": { "intValue": "7" } }],
            })
        );
        let service = exported.pointer("/resourceLogs/0/resource/attributes/0/value/stringValue");
        assert_eq!(service.unwrap(), "ringfence");
    }

    #[test]
    fn what_the_collector_threw_away_is_counted() {
        let check = |answer: &str, expected: u64| assert_eq!(rejected(answer.as_bytes()), expected);
        check("", 0);
        check("{}", 0);
        check("{\"partialSuccess\":{\"rejectedLogRecords\":\"3\",\"errorMessage\":\"x\"}}", 3);
        check("{\"partialSuccess\":{\"rejectedLogRecords\":3}}", 3);
        check("{\"partialSuccess\":{\"rejectedLogRecords\":\"-3\"}}", 0);
    }
}
