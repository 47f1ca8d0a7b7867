//! One call, phase by phase: read, decide, record, forward, relay. A call whose messages go both ways
//! is `stream`'s.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Method, Request, StatusCode};
use tokio::time::Instant;

use super::authorize::{Asking, record_refusal, refusal_record};
use super::connection::{Client, Identified};
use super::refuse::{audit_unavailable, permission_denied};
use super::respond::answer;
use super::share::CallShare;
use super::{Core, Refusal, relay, stream};
use crate::audit::{CallId, Outcome, Unavailable};
use crate::etcd::catalog::Shape;
use crate::etcd::{CanonicalRequest, Rpc};
use crate::grpc::metadata::Metadata;
use crate::grpc::{Code, MessageReader};

/// The head of a request: which RPC, and what travels with it.
pub(super) struct Head {
    pub(super) identified: Rc<Identified>,
    pub(super) rpc: Rpc,
    pub(super) metadata: Metadata,
    /// Held until the call ends.
    pub(super) share: CallShare,
}

/// A request that was read.
struct Message {
    canonical: CanonicalRequest,
    bytes: usize,
}

/// Serves one call to its end; until then it holds its place among the streams.
pub(super) async fn serve<P>(
    client: Rc<Client>,
    call: CallId,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    _place: P,
) {
    if super::page::is_plain_http(&request) {
        // On the heap, as all that is rare: the future of every other call stays small.
        return Box::pin(super::page::http2::serve(client, call, request, respond)).await;
    }
    let core = &client.core;
    let _open = core.open_calls.open();
    let started = Instant::now();
    let (parts, mut body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let mut head = match read_head(&client, &parts, path) {
        Ok(head) => head,
        Err(refusal) => return refuse(&client, call, path, &refusal, &mut respond).await,
    };
    if head.rpc.entry().shape == Shape::Bidirectional {
        return Box::pin(stream::serve(client, call, head, body, respond)).await;
    }
    let ends = deadline(started, head.rpc, &head.metadata, core.limits.call_timeout);
    // Also a call that may take as long as it likes has to begin.
    let begun = started + core.limits.call_timeout;
    let begun = ends.map_or(begun, |ends| ends.min(begun));
    let alarm = core.alarms.alarm(Some(begun));
    let read = alarm.bound(pin!(read_message(core, &mut head, &mut body))).await;
    let message = match read.unwrap_or(Err(Refusal::Slow)) {
        Ok(message) => message,
        Err(mut refusal) => {
            // What is never throttled is a probe; this is none.
            if is_never_throttled(head.rpc) && !head.identified.takes_request(core) {
                refusal = Refusal::Rate;
            }
            return refuse(&client, call, path, &refusal, &mut respond).await;
        }
    };
    // A request may take its time: it is decided by what holds when it is whole.
    let client = client.newest().unwrap_or_else(|| Rc::clone(&client));
    match &client.identified {
        Ok(identified) => head.identified = Rc::clone(identified),
        Err(nobody) => {
            let refusal = Refusal::NoPrincipal(nobody.clone());
            return refuse(&client, call, path, &refusal, &mut respond).await;
        }
    }
    let core = &client.core;
    let asking = Asking {
        core,
        client: &client,
        identified: &head.identified,
        metadata: &head.metadata,
        call,
        request_bytes: message.bytes,
        ends,
    };
    let authorized = asking.authorize(message.canonical).await;
    // What awaits inside a match keeps all that is matched; this future is moved more than once.
    let (permit, recorded) = match authorized {
        Err(refused) => return answer(&mut respond, &refused.status),
        Ok(authorized) => authorized,
    };
    // So may the record of the decision.
    if let Some(fault) = client.forbids_now(permit.touches()) {
        let status = Some(Code::PermissionDenied as u16);
        recorded.finish(Outcome { status, fault: Some(fault), ..Outcome::default() });
        return answer(&mut respond, &permission_denied());
    }
    alarm.set(ends);
    let outcome = relay::run(&asking, &alarm, &permit, &recorded, respond).await;
    recorded.finish(outcome);
    core.counts.observe_forward(started.elapsed());
}

/// When a call is cut off: what the client asked for, but a call that is not open-ended by nature is
/// cut off anyhow.
pub(super) fn deadline(
    started: Instant,
    rpc: Rpc,
    metadata: &Metadata,
    call_timeout: Duration,
) -> Option<Instant> {
    let ours = (!rpc.is_open_ended()).then_some(call_timeout);
    let timeout = ours.into_iter().chain(metadata.timeout).min();
    timeout.and_then(|timeout| started.checked_add(timeout))
}

/// Phase one, first half: who asks for what.
fn read_head(client: &Client, parts: &http::request::Parts, path: &str) -> Result<Head, Refusal> {
    let core = &client.core;
    let identified =
        client.identified.as_ref().map_err(|nobody| Refusal::NoPrincipal(nobody.clone()))?;
    let rpc = Rpc::from_path(path);
    // Before anything else is looked at: what will be denied or refused counts as well.
    let exempt = parts.method == Method::POST && rpc.is_some_and(is_never_throttled);
    if !exempt && !identified.takes_request(core) {
        return Err(Refusal::Rate);
    }
    if parts.method != Method::POST {
        return Err(Refusal::Method);
    }
    let rpc = rpc.ok_or(Refusal::UnknownPath)?;
    let metadata = Metadata::read(&parts.headers)?;
    let share = if rpc.is_open_ended() {
        identified.share.open_ended_call(identified.bounds.streams)
    } else {
        identified.share.call(identified.bounds.calls)
    };
    let share = share.ok_or(Refusal::Share)?;
    Ok(Head { identified: Rc::clone(identified), rpc, metadata, share })
}

/// A lease that is not kept alive takes its keys with it, and a probe must not fail for a busy program.
fn is_never_throttled(rpc: Rpc) -> bool {
    matches!(rpc, Rpc::LeaseKeepAlive | Rpc::HealthCheck | Rpc::HealthList | Rpc::HealthWatch)
}

/// Phase one, second half: nothing of the request is believed before it is whole and has one
/// meaning.
async fn read_message(
    core: &Core,
    head: &mut Head,
    body: &mut RecvStream,
) -> Result<Message, Refusal> {
    let mut reader = MessageReader::new(core.limits.request_bytes);
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(|_| Refusal::Aborted)?;
        let bytes = chunk.len();
        head.identified.charge_bytes(core, bytes);
        if !head.share.add_bytes(bytes, core.limits.request_bytes_per_principal) {
            return Err(Refusal::Share);
        }
        body.flow_control().release_capacity(bytes).map_err(|_| Refusal::Aborted)?;
        reader.push(chunk)?;
    }
    let message = reader.finish()?;
    let canonical = read_request(core, &head.identified, head.rpc, &message)?;
    Ok(Message { canonical, bytes: message.len() })
}

/// Reads a message; where it makes a lease, the lease gets an owner.
pub(super) fn read_request(
    core: &Core,
    identified: &Identified,
    rpc: Rpc,
    message: &Bytes,
) -> Result<CanonicalRequest, crate::etcd::Malformed> {
    let principal = &identified.identification.principal;
    let mut new_lease = || {
        let mut nonce = [0; 4];
        let filled = aws_lc_rs::rand::fill(&mut nonce);
        // Without randomness no lease is made: one could be foreseen.
        filled.map_or(0, |()| core.leases.new_lease(principal, u32::from_be_bytes(nonce)))
    };
    CanonicalRequest::read(rpc, message, &mut new_lease)
}

pub(super) async fn refuse(
    client: &Client,
    call: CallId,
    path: &str,
    refusal: &Refusal,
    respond: &mut SendResponse<Bytes>,
) {
    let recorded = record_refusal(client, call, path, refusal).await;
    let status = match recorded {
        Ok(()) => refusal.status(),
        Err(Unavailable) => Some(audit_unavailable()),
    };
    match status {
        Some(status) => answer(respond, &status),
        None => respond.send_reset(h2::Reason::CANCEL),
    }
}

/// Refuses a call for which there is to be no task: the principal's streams are many already.
pub(super) fn refuse_at_once(
    client: &Client,
    call: CallId,
    path: &str,
    refusal: &Refusal,
    is_plain_http: bool,
    respond: &mut SendResponse<Bytes>,
) {
    let core = &client.core;
    // Also this is a request that its principal makes; there is nothing worse to tell than the refusal.
    if let Ok(identified) = &client.identified {
        identified.takes_request(core);
    }
    let recorded = {
        let record = refusal_record(client, call, path, refusal);
        core.recorder.try_record(&client.queue_share, &record)
    };
    if recorded.is_err() {
        core.metrics.refusals_unrecorded.inc();
    }
    if is_plain_http {
        let mut page = http::Response::new(());
        *page.status_mut() = if recorded.is_ok() {
            StatusCode::TOO_MANY_REQUESTS
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        drop(respond.send_response(page, true));
        return;
    }
    let status =
        recorded.map_or_else(|Unavailable| Some(audit_unavailable()), |()| refusal.status());
    if let Some(status) = status {
        answer(respond, &status);
    }
}
