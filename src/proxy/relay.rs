//! Forward and relay: the last two phases of an allowed call with one request.

use bytes::Bytes;
use h2::SendStream;
use h2::server::SendResponse;
use http::HeaderMap;
use tokio::time::Instant;

use super::authorize::Asking;
use super::refuse::{forward_failed, shutting_down, timed_out};
use super::reply::{Rewrite, Whole, collect};
use super::respond::{answer, copy_status, response_head};
use crate::audit::{Outcome, Recorded};
use crate::etcd::Rpc;
use crate::etcd::response::{ResponseScan, StreamScan};
use crate::grpc::Status;
use crate::grpc::frame::framed;
use crate::policy::{Permit, permit_session_lease};
use crate::upstream::{ForwardError, Reply, forward, forward::send_all};

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
    /// ringfence ends, and nobody knows when etcd would answer.
    #[error("ringfence is shutting down")]
    Ending,
    /// What etcd says is not for this client.
    #[error("the reply is withheld")]
    Withheld(Status),
}

/// Forwards what the permit holds, relays the answer, and records what came of it. Without a
/// deadline it takes as long as etcd and the client like.
pub(super) async fn run(
    asking: &Asking<'_>,
    permit: Permit,
    recorded: Recorded,
    deadline: Option<Instant>,
    mut respond: SendResponse<Bytes>,
) {
    let mut progress = Progress {
        scan: ResponseScan::new(permit.rpc()),
        response_bytes: 0,
        status: None,
        body: None,
    };
    let relaying = relay(asking, &permit, &recorded, &mut respond, &mut progress);
    let ended = match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, relaying).await,
        None => Ok(relaying.await),
    };
    let fault = match ended {
        Ok(Ok(())) => None,
        Ok(Err(RelayError::ClientGone)) => Some("client_gone"),
        Ok(Err(RelayError::Forward(error))) => {
            let (status, fault) = forward_failed(&error);
            end(&mut respond, &mut progress, &status);
            Some(fault)
        }
        Ok(Err(RelayError::Ending)) => {
            end(&mut respond, &mut progress, &shutting_down());
            Some("shutting_down")
        }
        Ok(Err(RelayError::Withheld(status))) => {
            end(&mut respond, &mut progress, &status);
            Some("withheld")
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
        ..Outcome::default()
    });
}

async fn relay(
    asking: &Asking<'_>,
    permit: &Permit,
    recorded: &Recorded,
    respond: &mut SendResponse<Bytes>,
    progress: &mut Progress,
) -> Result<(), RelayError> {
    if let Some(lease) = permit_session_lease(permit) {
        // On the heap: a rare step must not make the future of every call larger.
        let granting = Box::pin(step(asking, &lease, recorded));
        if let Some(refused) = until_end(asking, permit.rpc(), respond, granting).await? {
            return finish(respond, progress, &refused);
        }
    }
    let forwarding = forward(&asking.core.pool, permit, recorded, asking.call, asking.metadata);
    let reply = until_end(asking, permit.rpc(), respond, forwarding).await?;
    match Rewrite::of(permit.rpc(), permit.touches()) {
        None => pass_through(asking, permit.rpc(), reply, respond, progress).await,
        Some(rewrite) => {
            Box::pin(rewritten(asking, permit.rpc(), rewrite, reply, respond, progress)).await
        }
    }
}

/// What comes first of etcd's answer, the client's end and our own.
async fn until_end<T>(
    asking: &Asking<'_>,
    rpc: Rpc,
    respond: &mut SendResponse<Bytes>,
    answer: impl Future<Output = Result<T, ForwardError>>,
) -> Result<T, RelayError> {
    tokio::select! {
        biased;
        answer = answer => Ok(answer?),
        _ = std::future::poll_fn(|context| respond.poll_reset(context)) => Err(RelayError::ClientGone),
        () = ending(asking, rpc) => Err(RelayError::Ending),
    }
}

/// Comes when ringfence ends, for calls that may wait for others longer than it will.
async fn ending(asking: &Asking<'_>, rpc: Rpc) {
    if rpc.waits_for_others()
        && asking.core.draining.clone().wait_for(|draining| *draining).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// A step that the permit's own request needs first; etcd's trailers when it refused.
async fn step(
    asking: &Asking<'_>,
    permit: &Permit,
    recorded: &Recorded,
) -> Result<Option<HeaderMap>, ForwardError> {
    let reply = forward(&asking.core.pool, permit, recorded, asking.call, asking.metadata).await?;
    let Whole { trailers, .. } = collect(reply).await?;
    let fine = trailers.get("grpc-status").is_some_and(|status| status == "0");
    Ok((!fine).then_some(trailers))
}

async fn pass_through(
    asking: &Asking<'_>,
    rpc: Rpc,
    mut reply: Reply,
    respond: &mut SendResponse<Bytes>,
    progress: &mut Progress,
) -> Result<(), RelayError> {
    if let Some(trailers) = &reply.trailers_only {
        return finish(respond, progress, trailers);
    }
    let stream = respond.send_response(response_head(), false);
    let stream = progress.body.insert(stream.map_err(|_| RelayError::ClientGone)?);
    let mut messages = StreamScan::default();
    loop {
        let chunk = tokio::select! {
            biased;
            chunk = reply.body.data() => chunk,
            // While etcd is silent nothing is sent that would tell.
            _ = std::future::poll_fn(|context| stream.poll_reset(context)) => {
                return Err(RelayError::ClientGone);
            }
            () = ending(asking, rpc), if messages.is_between_messages() => {
                return Err(RelayError::Ending);
            }
        };
        let Some(chunk) = chunk else { break };
        let chunk = chunk.map_err(ForwardError::Broken)?;
        if rpc.waits_for_others() {
            messages.push(&chunk, drop);
        }
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

/// A reply whose message is changed, or withheld.
async fn rewritten(
    asking: &Asking<'_>,
    rpc: Rpc,
    rewrite: Rewrite,
    reply: Reply,
    respond: &mut SendResponse<Bytes>,
    progress: &mut Progress,
) -> Result<(), RelayError> {
    let whole = until_end(asking, rpc, respond, collect(reply)).await?;
    let Some(message) = whole.message else {
        return finish(respond, progress, &whole.trailers);
    };
    let message = rewrite
        .apply(&message, asking.asker(), &asking.core.advertise)
        .map_err(RelayError::Withheld)?;
    let message = framed(&message);
    progress.scan.push(&message);
    progress.response_bytes += message.len() as u64;
    let stream = respond.send_response(response_head(), false);
    let stream = progress.body.insert(stream.map_err(|_| RelayError::ClientGone)?);
    send_all(stream, message, false).await.map_err(|_| RelayError::ClientGone)?;
    let mut sent = HeaderMap::new();
    progress.status = copy_status(&whole.trailers, &mut sent);
    stream.send_trailers(sent).map_err(|_| RelayError::ClientGone)
}

/// Passes on a status that comes without a message.
fn finish(
    respond: &mut SendResponse<Bytes>,
    progress: &mut Progress,
    trailers: &HeaderMap,
) -> Result<(), RelayError> {
    let mut head = response_head();
    progress.status = copy_status(trailers, head.headers_mut());
    respond.send_response(head, true).map(drop).map_err(|_| RelayError::ClientGone)
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
