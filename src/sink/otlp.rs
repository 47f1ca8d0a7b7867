//! OTLP over HTTP with JSON (opentelemetry.io/docs/specs/otlp, "OTLP/HTTP"): one POST for what waits, on a connection that is
//! kept. What the collector may take later is sent again; what it will never take is counted.

use std::sync::Arc;

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

use super::queue::Batch;
use super::syslog::is_allowed;
use super::worker::lines_of;
use crate::chain::head;
use crate::tls::Connector;

/// The most bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The most bytes of lines in one request, but for one line that is longer.
const REQUEST_BYTES_MAX: usize = 128 * 1024;

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
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self { config: config.clone(), host: host.trim().to_owned(), sender: None }
    }

    pub(super) fn reset(&mut self) {
        self.sender = None;
    }

    pub(super) async fn send(&mut self, batches: &[Arc<Batch>]) -> Result<u64, String> {
        let mut refused = 0;
        for lines in in_requests(lines_of(batches)) {
            refused += self.post(&lines).await?;
        }
        Ok(refused)
    }

    async fn post(&mut self, lines: &[&[u8]]) -> Result<u64, String> {
        let records = lines.len() as u64;
        let body = Bytes::from(export(&self.host, lines.iter().copied()).to_string());
        let mut kept = self.sender.take();
        // The collector may have closed it meanwhile.
        if let Some(sender) = &mut kept
            && sender.ready().await.is_err()
        {
            kept = None;
        }
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.connect().await.map_err(|why| self.fault(&why))?,
        };
        let request = self.request(body).map_err(|error| self.fault(&error.to_string()))?;
        let answer = sender.send_request(request).await;
        let answer = answer.map_err(|error| self.fault(&error.to_string()))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| self.fault(&error.to_string()))?.to_bytes();
        self.sender = Some(sender);
        match status {
            status if status.is_success() => Ok(rejected(&body).min(records)),
            // The specification names those that may be tried again.
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Err(self.fault(&format!("HTTP status {status}"))),
            // A wrong path or a wrong token can be mended; no record may be thrown away for it.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
                Err(self.fault(&format!("HTTP status {status}")))
            }
            status if status.is_client_error() => {
                tracing::warn!(%status, records, "the collector refuses records of the audit log");
                Ok(records)
            }
            status => Err(self.fault(&format!("HTTP status {status}"))),
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

/// Lines by request. One that a collector finds too large must take few others with it: a tenant whose requests
/// have many long keys would choose what is not seen.
fn in_requests<'l>(lines: impl Iterator<Item = &'l [u8]>) -> Vec<Vec<&'l [u8]>> {
    let (mut requests, mut bytes) = (Vec::new(), REQUEST_BYTES_MAX);
    for line in lines {
        if bytes + line.len() > REQUEST_BYTES_MAX {
            requests.push(Vec::new());
            bytes = 0;
        }
        bytes += line.len();
        if let Some(request) = requests.last_mut() {
            request.push(line);
        }
    }
    requests
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
    let (number, severity) = match kind {
        "audit.gap" => (17, "ERROR"),
        "connection.refused" => (13, "WARN"),
        "decision" if !is_allowed(line) => (13, "WARN"),
        _ => (9, "INFO"),
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
    fn a_long_line_goes_alone() {
        let (long, short) = (vec![b'l'; 2 * REQUEST_BYTES_MAX], vec![b's'; REQUEST_BYTES_MAX / 3]);
        let check = |lines: &[&[u8]], expected: &[usize]| {
            let requests = in_requests(lines.iter().copied());
            assert_eq!(requests.iter().map(Vec::len).collect::<Vec<_>>(), expected);
            assert_eq!(requests.concat(), lines);
        };
        check(&[], &[]);
        check(&[&short, &short, &short, &short], &[3, 1]);
        check(&[&short, &long, &short], &[1, 1, 1]);
        check(&[&long], &[1]);
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
