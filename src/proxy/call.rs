//! One unary call, phase by phase: read, decide, record, forward, relay.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use tokio::time::Instant;

use super::connection::{Client, Identified};
use super::refuse::{audit_unavailable, forward_failed, permission_denied, timed_out};
use super::share::CallShare;
use super::{Core, Refusal};
use crate::audit::event::{DecisionEvent, PATH_BYTES_MAX, Path};
use crate::audit::{CallId, Event, Outcome, Record, Recorded, Unavailable, Verdict};
use crate::clock;
use crate::etcd::response::ResponseScan;
use crate::etcd::{CanonicalRequest, ReadableRpc, Rpc};
use crate::grpc::metadata::Metadata;
use crate::grpc::{MessageReader, Status};
use crate::metrics;
use crate::policy::{Cause, Decision, Denial, Permit, decide};
use crate::upstream::{ForwardError, forward, forward::send_all};

/// A request that was read: what it asks, and what travels with it.
struct ReadRequest {
    canonical: CanonicalRequest,
    metadata: Metadata,
    message_bytes: usize,
    /// Held until the call ends.
    share: CallShare,
}

/// Serves one call to its end.
pub(super) async fn serve(
    core: Rc<Core>,
    client: Rc<Client>,
    call: CallId,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let _open = core.open_calls.open();
    let started = Instant::now();
    let (head, mut body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    let reading = read(&core, &client, &head, path, &mut body);
    let read = tokio::time::timeout(core.limits.call_timeout, reading).await;
    let (identified, request) = match read.unwrap_or(Err(Refusal::Slow)) {
        Ok(read) => read,
        Err(refusal) => return refuse(&core, &client, call, path, &refusal, &mut respond).await,
    };
    let timeout = request.metadata.timeout.unwrap_or(Duration::MAX).min(core.limits.call_timeout);
    let message_bytes = request.message_bytes;
    match decide(&identified.identification.rights, request.canonical) {
        Decision::Deny(denial) => {
            let status = deny(&core, identified, call, &denial, message_bytes).await;
            answer(&mut respond, &status);
        }
        Decision::Allow(permit) => {
            match allow(&core, identified, call, &permit, message_bytes, started + timeout).await {
                Err(Unavailable) => answer(&mut respond, &audit_unavailable()),
                Ok(recorded) => {
                    let forwarding = Forwarding { core: &core, call, metadata: &request.metadata };
                    forwarding.run(permit, recorded, started + timeout, respond).await;
                    core.metrics.observe_forward(started.elapsed());
                }
            }
        }
    }
    drop(request.share);
}

/// Records a denial; what the client hears.
async fn deny(
    core: &Core,
    identified: &Identified,
    call: CallId,
    denial: &Denial,
    request_bytes: usize,
) -> Status {
    let (reason, rule) = match denial.cause {
        Cause::NoRule => ("no_rule", None),
        Cause::DenyRule(rule) => ("deny_rule", Some(core.policy.rule_name(rule))),
        Cause::LeaseOwnerUnknown => ("lease_owner_unknown", None),
    };
    let rpc = denial.request.readable().rpc();
    core.metrics.count_request(Some(rpc), metrics::Verdict::Deny);
    let event = Event::Decision(DecisionEvent {
        call,
        principal: Some(Arc::clone(&identified.name)),
        path: Path::Known(rpc.path()),
        verdict: Verdict::Deny { reason, rule, touch: denial.touch },
        touches: denial.request.touches().clone(),
        request_bytes,
    });
    let recorded = core.recorder.record(&identified.queue_share, record(event)).await;
    recorded.map_or_else(|Unavailable| audit_unavailable(), |()| permission_denied())
}

/// Records a permit; what `forward` wants to see.
async fn allow(
    core: &Core,
    identified: &Identified,
    call: CallId,
    permit: &Permit,
    request_bytes: usize,
    call_ends: Instant,
) -> Result<Recorded, Unavailable> {
    let rpc = permit.rpc().rpc();
    core.metrics.count_request(Some(rpc), metrics::Verdict::Allow);
    let rules = permit.rules().iter().map(|rule| core.policy.rule_name(*rule)).collect();
    let event = Event::Decision(DecisionEvent {
        call,
        principal: Some(Arc::clone(&identified.name)),
        path: Path::Known(rpc.path()),
        verdict: Verdict::Allow(rules),
        touches: permit.touches().clone(),
        request_bytes,
    });
    core.recorder.allow(&identified.queue_share, call, record(event), call_ends).await
}

/// Phase one: nothing of the request is believed before it is whole and has one meaning.
async fn read<'c>(
    core: &Core,
    client: &'c Client,
    head: &http::request::Parts,
    path: &str,
    body: &mut RecvStream,
) -> Result<(&'c Identified, ReadRequest), Refusal> {
    let identified =
        client.identified.as_ref().map_err(|nobody| Refusal::NoPrincipal(nobody.clone()))?;
    if head.method != Method::POST {
        return Err(Refusal::Method);
    }
    let rpc = Rpc::from_path(path).ok_or(Refusal::UnknownPath)?;
    let readable = ReadableRpc::of(rpc).ok_or(Refusal::NotForwarded(rpc))?;
    let metadata = Metadata::read(&head.headers)?;
    let mut share = identified.share.call(core.limits.calls_per_principal).ok_or(Refusal::Share)?;
    let message = read_message(core, &mut share, body).await?;
    let canonical = CanonicalRequest::read(readable, &message)?;
    let request = ReadRequest { canonical, metadata, message_bytes: message.len(), share };
    Ok((identified, request))
}

async fn read_message(
    core: &Core,
    share: &mut CallShare,
    body: &mut RecvStream,
) -> Result<Bytes, Refusal> {
    let mut reader = MessageReader::new(core.limits.request_bytes);
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(|_| Refusal::Aborted)?;
        let bytes = chunk.len();
        if !share.add_bytes(bytes, core.limits.request_bytes_per_principal) {
            return Err(Refusal::Share);
        }
        body.flow_control().release_capacity(bytes).map_err(|_| Refusal::Aborted)?;
        reader.push(chunk)?;
    }
    Ok(reader.finish()?)
}

async fn refuse(
    core: &Core,
    client: &Client,
    call: CallId,
    path: &str,
    refusal: &Refusal,
    respond: &mut SendResponse<Bytes>,
) {
    let recorded = record_refusal(core, client, call, path, refusal).await;
    let status = match recorded {
        Ok(()) => refusal.status(),
        Err(Unavailable) => Some(audit_unavailable()),
    };
    match status {
        Some(status) => answer(respond, &status),
        None => respond.send_reset(h2::Reason::CANCEL),
    }
}

/// Records a call that is refused before policy is asked.
pub(super) async fn record_refusal(
    core: &Core,
    client: &Client,
    call: CallId,
    path: &str,
    refusal: &Refusal,
) -> Result<(), Unavailable> {
    let known = Rpc::from_path(path);
    core.metrics.count_request(known, metrics::Verdict::Refuse);
    let path = known.map_or_else(
        || Path::Unknown(path.chars().take(PATH_BYTES_MAX / 4).collect()),
        |rpc| Path::Known(rpc.path()),
    );
    let event = Event::Decision(DecisionEvent {
        call,
        principal: client.identified.as_ref().ok().map(|identified| Arc::clone(&identified.name)),
        path,
        verdict: Verdict::Refuse { reason: refusal.reason(), detail: refusal.to_string() },
        touches: crate::etcd::Touches::new(),
        request_bytes: 0,
    });
    core.recorder.record(&client.queue_share, record(event)).await
}

fn record(event: Event) -> Record {
    Record { time: clock::since_epoch(), event }
}

/// Answers without a body. A client that is gone hears nothing, and that is no fault of ours.
fn answer(respond: &mut SendResponse<Bytes>, status: &Status) {
    let mut response = response_head();
    status.write(response.headers_mut());
    drop(respond.send_response(response, true));
}

fn response_head() -> Response<()> {
    let mut response = Response::new(());
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", grpc);
    response
}

/// The last two phases of an allowed call.
struct Forwarding<'a> {
    core: &'a Core,
    call: CallId,
    metadata: &'a Metadata,
}

/// How far the reply got; kept outside the futures that may be cut off.
struct Progress {
    scan: ResponseScan,
    response_bytes: u64,
    status: Option<u16>,
    /// The client has the head of the reply; a status now needs trailers.
    body: Option<SendStream<Bytes>>,
}

/// Why a reply was not relayed to its end.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Forward(#[from] ForwardError),
    #[error("the client is gone")]
    ClientGone,
}

impl Forwarding<'_> {
    async fn run(
        &self,
        permit: Permit,
        recorded: Recorded,
        deadline: Instant,
        mut respond: SendResponse<Bytes>,
    ) {
        let mut progress = Progress {
            scan: ResponseScan::new(permit.rpc()),
            response_bytes: 0,
            status: None,
            body: None,
        };
        let relaying = self.relay(&permit, &recorded, &mut respond, &mut progress);
        let ended = tokio::time::timeout_at(deadline, relaying).await;
        let fault = match ended {
            Ok(Ok(())) => None,
            Ok(Err(RelayError::ClientGone)) => Some("client_gone"),
            Ok(Err(RelayError::Forward(error))) => {
                let (status, fault) = forward_failed(&error);
                end(&mut respond, &mut progress, &status);
                Some(fault)
            }
            Err(_) => {
                let (status, fault) = timed_out();
                end(&mut respond, &mut progress, &status);
                Some(fault)
            }
        };
        recorded.finish(Outcome {
            status: progress.status,
            fault,
            facts: progress.scan.facts(),
            response_bytes: progress.response_bytes,
            latency: Duration::ZERO,
        });
    }

    async fn relay(
        &self,
        permit: &Permit,
        recorded: &Recorded,
        respond: &mut SendResponse<Bytes>,
        progress: &mut Progress,
    ) -> Result<(), RelayError> {
        let forwarding = forward(&self.core.pool, permit, recorded, self.call, self.metadata);
        let mut reply = tokio::select! {
            biased;
            reply = forwarding => reply?,
            _ = std::future::poll_fn(|context| respond.poll_reset(context)) => {
                return Err(RelayError::ClientGone);
            }
        };
        let mut head = response_head();
        if let Some(trailers) = &reply.trailers_only {
            progress.status = copy_status(trailers, head.headers_mut());
            let sent = respond.send_response(head, true);
            return sent.map(drop).map_err(|_| RelayError::ClientGone);
        }
        let stream = respond.send_response(head, false).map_err(|_| RelayError::ClientGone)?;
        let stream = progress.body.insert(stream);
        while let Some(chunk) = reply.body.data().await {
            let chunk = chunk.map_err(ForwardError::Broken)?;
            let bytes = chunk.len();
            progress.scan.push(&chunk);
            send_all(stream, chunk, false).await.map_err(|_| RelayError::ClientGone)?;
            progress.response_bytes += bytes as u64;
            // Only now may etcd send more: a reader that stops, stops etcd.
            let released = reply.body.flow_control().release_capacity(bytes);
            released.map_err(ForwardError::Broken)?;
        }
        let trailers = reply.body.trailers().await.map_err(ForwardError::Broken)?;
        let mut sent = HeaderMap::new();
        progress.status = copy_status(&trailers.unwrap_or_default(), &mut sent);
        stream.send_trailers(sent).map_err(|_| RelayError::ClientGone)
    }
}

/// Ends a call with a status of our own, wherever its reply stands.
fn end(respond: &mut SendResponse<Bytes>, progress: &mut Progress, status: &Status) {
    progress.status = Some(status.code as u16);
    match &mut progress.body {
        None => answer(respond, status),
        Some(stream) => {
            let mut trailers = HeaderMap::new();
            status.write(&mut trailers);
            drop(stream.send_trailers(trailers));
        }
    }
}

/// Copies etcd's status; a reply without one is told to be an internal error. Nothing else of
/// etcd's trailers travels on.
fn copy_status(from: &HeaderMap, to: &mut HeaderMap) -> Option<u16> {
    let Some(status) = from.get("grpc-status") else {
        Status::new(crate::grpc::Code::Internal, "ringfence: etcd's reply has no status").write(to);
        return Some(crate::grpc::Code::Internal as u16);
    };
    to.insert("grpc-status", status.clone());
    for name in ["grpc-message", "grpc-status-details-bin"] {
        if let Some(value) = from.get(name) {
            to.insert(name, value.clone());
        }
    }
    status.to_str().ok().and_then(|status| status.parse().ok())
}
