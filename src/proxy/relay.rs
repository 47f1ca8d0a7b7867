//! Forward and relay: the last two phases of an allowed call with one request.

use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::HeaderMap;

use super::Core;
use super::alarm::Alarm;
use super::authorize::{Asking, no_longer_allowed};
use super::ending::Ending;
use super::judge::Judgements;
use super::outbox::{LAST_WORDS, Outbox};
use super::refuse::{forward_failed, reply_too_large, right_ended, shutting_down, timed_out};
use super::reply::{Rewrite, Whole, collect};
use super::respond::{Told, answer, copy_status, response_head};
use crate::audit::{Outcome, Recorded};
use crate::etcd::Rpc;
use crate::etcd::catalog::Shape;
use crate::etcd::response::{ResponseScan, StreamScan};
use crate::grpc::Status;
use crate::grpc::frame::framed;
use crate::policy::{Permit, permit_session_lease};
use crate::upstream::{ForwardError, Reply, forward::send_all};

/// How far the reply got; kept outside the futures that may be cut off.
struct Progress {
    scan: ResponseScan,
    response_bytes: u64,
    told: Option<Told>,
    /// The client has the head of the reply; a status now needs trailers.
    body: Option<SendStream<Bytes>>,
    outbox: Outbox,
    /// The client has the end of it.
    ended: bool,
}

/// Why a reply was not relayed to its end.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Forward(#[from] ForwardError),
    #[error("the client is gone")]
    ClientGone,
    #[error("the call took too long")]
    TimedOut,
    /// ringfence ends, and the reply would have no end.
    #[error("ringfence ends")]
    ShuttingDown,
    /// What let it in holds no longer.
    #[error("the right to the call has ended")]
    NoLonger(&'static str),
    /// The reply is longer than the principal may have.
    #[error("the reply is too large")]
    TooLarge,
    /// What etcd says is not for this client.
    #[error("the reply is withheld")]
    Withheld(Status),
}

/// Forwards what the permit holds, relays the answer, and tells what came of it: the caller finishes `recorded`
/// with it, or the log says that the call was aborted. Without a deadline it takes as long as etcd and the client like.
pub(super) async fn run(
    asking: &Asking<'_>,
    alarm: &Alarm<'_>,
    permit: &Permit,
    recorded: &Recorded,
    mut respond: SendResponse<Bytes>,
) -> Outcome {
    let mut progress = Progress {
        scan: ResponseScan::new(permit.rpc()),
        response_bytes: 0,
        told: None,
        body: None,
        outbox: Outbox::default(),
        ended: false,
    };
    let fault = match relay(asking, alarm, permit, recorded, &mut respond, &mut progress).await {
        Ok(()) => progress.told.and_then(|told| told.fault),
        Err(RelayError::ClientGone) => Some("client_gone"),
        Err(error) => {
            if matches!(error, RelayError::ShuttingDown) {
                progress.last_words().await;
            }
            if matches!(error, RelayError::NoLonger(_)) {
                progress.take_back();
            }
            let (status, fault) = error.told();
            end(&mut respond, &mut progress, &status);
            Some(fault)
        }
    };
    Outcome {
        status: progress.told.map(|told| told.status),
        fault,
        facts: progress.scan.facts(),
        response_bytes: progress.response_bytes,
        ..Outcome::default()
    }
}

impl Progress {
    /// What waits for the client does not reach it any more. Behind a part of a message there is no other way to say
    /// that no more comes.
    fn take_back(&mut self) {
        if let Some(client) = self.body.as_mut().filter(|_| !self.outbox.is_empty()) {
            client.send_reset(Reason::CANCEL);
            self.ended = true;
        }
    }

    /// Who reads gets whole messages before the end; who does not, is not waited for.
    async fn last_words(&mut self) {
        if let Some(client) = &mut self.body {
            drop(tokio::time::timeout(LAST_WORDS, self.outbox.flush(client)).await);
        }
    }
}

impl RelayError {
    /// What the client hears, and the name in the record.
    fn told(self) -> (Status, &'static str) {
        match self {
            Self::Forward(error) => forward_failed(&error),
            Self::TimedOut | Self::ClientGone => timed_out(),
            Self::ShuttingDown => (shutting_down(), "shutting_down"),
            Self::NoLonger(fault) => (right_ended(fault), fault),
            Self::TooLarge => reply_too_large(),
            Self::Withheld(status) => (status, "withheld"),
        }
    }
}

async fn relay(
    asking: &Asking<'_>,
    alarm: &Alarm<'_>,
    permit: &Permit,
    recorded: &Recorded,
    respond: &mut SendResponse<Bytes>,
    progress: &mut Progress,
) -> Result<(), RelayError> {
    let waiting = Waiting { asking, permit, alarm };
    if let Some(lease) = permit_session_lease(permit) {
        // On the heap: a rare step must not make the future of every call larger.
        let mut granting = Box::pin(step(asking, &lease, recorded));
        if let Some(refused) = waiting.until_end(respond, granting.as_mut()).await? {
            return finish(respond, progress, &refused);
        }
    }
    let mut forwarding = pin!(asking.forward(permit, recorded, asking.call));
    let mut reply = match waiting.until_end(respond, forwarding.as_mut()).await {
        Ok(reply) => reply,
        Err(error @ (RelayError::ClientGone | RelayError::TimedOut)) if permit.rpc().writes() => {
            if matches!(error, RelayError::TimedOut) {
                end(respond, progress, &timed_out().0);
            }
            let settling = async {
                if let Ok(mut reply) = forwarding.await {
                    read_to_end(&mut reply, progress).await;
                }
            };
            settle(asking.core, Box::pin(settling)).await;
            return Err(error);
        }
        Err(error) => return Err(error),
    };
    match Rewrite::of(permit.rpc(), permit.touches()) {
        None => {
            let endless = Endless::of(permit, asking);
            let from = (&mut reply, permit.rpc());
            let passing = pass_through(asking, from, endless, respond, progress);
            let passed = waiting.until_deadline(pin!(passing)).await;
            // The client first: the rest may take as long again.
            match &passed {
                Err(RelayError::TimedOut) => end(respond, progress, &timed_out().0),
                Err(RelayError::TooLarge) => end(respond, progress, &reply_too_large().0),
                _ => {}
            }
            if passed.is_err() && permit.rpc().writes() {
                settle(asking.core, Box::pin(read_to_end(&mut reply, progress))).await;
            }
            passed
        }
        Some(rewrite) => {
            Box::pin(rewritten(asking, &waiting, rewrite, reply, respond, progress)).await
        }
    }
}

/// A writer that does not wait for the answer must not decide that nobody ever learns what came of
/// the write: the answer is still taken, for the record.
async fn settle(core: &Core, settling: Pin<Box<impl Future<Output = ()>>>) {
    // Without an answer the record says what it can.
    drop(tokio::time::timeout(core.limits.call_timeout, settling).await);
}

async fn read_to_end(reply: &mut Reply, progress: &mut Progress) {
    while let Ok(Some(chunk)) = reply.chunk().await {
        progress.scan.push(&chunk);
        if reply.release(chunk.len()).is_err() {
            return;
        }
    }
}

/// What may end a call while etcd has not answered.
struct Waiting<'a> {
    asking: &'a Asking<'a>,
    permit: &'a Permit,
    alarm: &'a Alarm<'a>,
}

impl Waiting<'_> {
    /// What comes first of etcd's answer, the client's end, the call's and our own.
    async fn until_end<T>(
        &self,
        respond: &mut SendResponse<Bytes>,
        answer: Pin<&mut impl Future<Output = Result<T, ForwardError>>>,
    ) -> Result<T, RelayError> {
        let answered = pin!(async {
            tokio::select! {
                biased;
                answer = answer => Ok(answer?),
                _ = std::future::poll_fn(|context| respond.poll_reset(context)) => {
                    Err(RelayError::ClientGone)
                }
                error = self.our_end() => Err(error),
            }
        });
        self.until_deadline(answered).await
    }

    async fn until_deadline<T>(
        &self,
        relaying: Pin<&mut impl Future<Output = Result<T, RelayError>>>,
    ) -> Result<T, RelayError> {
        self.alarm.bound(relaying).await.unwrap_or(Err(RelayError::TimedOut))
    }

    /// Comes when ringfence ends, or the right to the call, for calls that may wait for others longer than that.
    async fn our_end(&self) -> RelayError {
        if !self.permit.rpc().waits_for_others() {
            return std::future::pending().await;
        }
        // On the heap: few calls wait, and the future of every other stays small.
        Box::pin(no_longer(self.permit, Judgements::after(self.asking.client))).await
    }
}

/// Comes when a call may go on no longer: its connection ends, or what it does is not allowed any more.
async fn no_longer(permit: &Permit, mut judgements: Judgements) -> RelayError {
    loop {
        let client = judgements.next().await;
        match (client.ending, &client.identified) {
            (Some(ending), _) if ending.ends_a_right() => {
                return RelayError::NoLonger(ending.name());
            }
            // A reply that has an end is waited for.
            (Some(Ending::Drained), _) if permit.rpc().waits_for_others() => {
                return RelayError::ShuttingDown;
            }
            (_, Ok(identified)) => {
                if no_longer_allowed(identified, permit.touches()).is_some() {
                    return RelayError::NoLonger("rule_removed");
                }
            }
            (_, Err(_)) => {}
        }
    }
}

/// A step that the permit's own request needs first; etcd's trailers when it refused.
async fn step(
    asking: &Asking<'_>,
    permit: &Permit,
    recorded: &Recorded,
) -> Result<Option<HeaderMap>, ForwardError> {
    let reply = asking.forward(permit, recorded, asking.call).await?;
    let Whole { trailers, .. } = collect(reply).await?;
    let fine = trailers.get("grpc-status").is_some_and(|status| status == "0");
    Ok((!fine).then_some(trailers))
}

/// What is kept of a reply of many messages, which may take as long as its reader likes: that it can be ended.
struct Endless<'a> {
    scan: StreamScan,
    no_longer: Pin<Box<dyn Future<Output = RelayError> + 'a>>,
    /// Why it has to end, as soon as it can.
    ends: Option<RelayError>,
}

impl<'a> Endless<'a> {
    fn of(permit: &'a Permit, asking: &'a Asking<'a>) -> Option<Self> {
        (permit.rpc().entry().shape == Shape::ServerStream).then(|| {
            let judgements = Judgements::after(asking.client);
            let no_longer = Box::pin(no_longer(permit, judgements));
            Self { scan: StreamScan::default(), no_longer, ends: None }
        })
    }
}

async fn pass_through(
    asking: &Asking<'_>,
    (reply, rpc): (&mut Reply, Rpc),
    mut endless: Option<Endless<'_>>,
    respond: &mut SendResponse<Bytes>,
    progress: &mut Progress,
) -> Result<(), RelayError> {
    if let Some(trailers) = &reply.trailers_only {
        return finish(respond, progress, trailers);
    }
    let stream = respond.send_response(response_head(), false);
    let stream = progress.body.insert(stream.map_err(|_| RelayError::ClientGone)?);
    let mut come: u64 = 0;
    loop {
        let taken = match next(reply, stream, &mut progress.outbox, endless.as_mut()).await? {
            Next::Chunk(chunk) => {
                if rpc.reads_values() {
                    check_size(asking, &chunk, come)?;
                }
                come += chunk.len() as u64;
                progress.scan.push(&chunk);
                if let Some(endless) = &mut endless {
                    endless.scan.push(&chunk, |_| ());
                }
                progress.outbox.push(chunk, stream).map_err(|_| RelayError::ClientGone)?
            }
            Next::Taken(bytes) => bytes,
            Next::End => break,
        };
        progress.response_bytes += taken as u64;
        asking.identified.charge_bytes(asking.core, taken);
        // Only now may etcd send more: a reader that stops, stops etcd.
        reply.release(taken)?;
    }
    let trailers = reply.trailers().await?;
    let mut sent = HeaderMap::new();
    progress.told = Some(copy_status(&trailers, &mut sent));
    stream.send_trailers(sent).map_err(|_| RelayError::ClientGone)
}

/// Whether the principal may have this much of a reply. A message says ahead how long it is, so of one
/// that is too long not a byte goes through; of a stream, what came before.
fn check_size(asking: &Asking<'_>, chunk: &[u8], before: u64) -> Result<(), RelayError> {
    let announced = match chunk.first_chunk::<5>() {
        Some([_, length @ ..]) if before == 0 => u64::from(u32::from_be_bytes(*length)),
        _ => 0,
    };
    let bytes = announced.max(before + chunk.len() as u64);
    let takes = asking.identified.takes_reply(asking.core, bytes);
    if takes { Ok(()) } else { Err(RelayError::TooLarge) }
}

/// What happens next to a reply that passes through.
enum Next {
    Chunk(Bytes),
    /// The client has taken so many bytes that had to wait.
    Taken(usize),
    /// etcd has said everything, and the client has it.
    End,
}

/// What happens next. The client may go while etcd is silent, and whoever follows an election may be left
/// waiting for days.
async fn next(
    reply: &mut Reply,
    client: &mut SendStream<Bytes>,
    outbox: &mut Outbox,
    endless: Option<&mut Endless<'_>>,
) -> Result<Next, RelayError> {
    let next = std::future::poll_fn(|context| {
        if let Poll::Ready(taken) = outbox.poll_flush(client, context) {
            return Poll::Ready(taken.map(Next::Taken).map_err(|_| RelayError::ClientGone));
        }
        match reply.poll_chunk(context) {
            Poll::Ready(Ok(Some(chunk))) => return Poll::Ready(Ok(Next::Chunk(chunk))),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
            Poll::Ready(Ok(None)) if outbox.is_empty() => return Poll::Ready(Ok(Next::End)),
            Poll::Ready(Ok(None)) | Poll::Pending => {}
        }
        client.poll_reset(context).map(|_| Err(RelayError::ClientGone))
    });
    let Some(Endless { scan, no_longer, ends }) = endless else { return next.await };
    let mut next = pin!(next);
    loop {
        match ends.take() {
            // The end of the process can wait until a message is whole; the end of a right does not.
            Some(RelayError::ShuttingDown) if !scan.is_between_messages() => {
                *ends = Some(RelayError::ShuttingDown);
                return next.await;
            }
            Some(error) => return Err(error),
            None => {}
        }
        tokio::select! {
            biased;
            error = no_longer.as_mut() => *ends = Some(error),
            next = next.as_mut() => return next,
        }
    }
}

/// A reply whose message is changed, or withheld.
async fn rewritten(
    asking: &Asking<'_>,
    waiting: &Waiting<'_>,
    rewrite: Rewrite,
    reply: Reply,
    respond: &mut SendResponse<Bytes>,
    progress: &mut Progress,
) -> Result<(), RelayError> {
    // Replies of megabytes, in whole: a principal that asks for many at a time waits for its own.
    let place = pin!(async { Ok(asking.identified.share.whole_reply().await) });
    let _place = waiting.until_deadline(place).await?;
    let mut collecting = pin!(collect(reply));
    let whole = match waiting.until_end(respond, collecting.as_mut()).await {
        Ok(whole) => whole,
        Err(error) => {
            if matches!(error, RelayError::TimedOut) {
                end(respond, progress, &timed_out().0);
            }
            if waiting.permit.rpc().writes() {
                let settling = async {
                    if let Ok(Whole { message: Some(message), .. }) = collecting.await {
                        progress.scan.push(&framed(&message));
                    }
                };
                settle(asking.core, Box::pin(settling)).await;
            }
            return Err(error);
        }
    };
    let Some(message) = whole.message else {
        return finish(respond, progress, &whole.trailers);
    };
    let message = rewrite
        .apply(message, asking.asker(), &asking.core.advertise)
        .map_err(RelayError::Withheld)?;
    let message = framed(&message);
    progress.scan.push(&message);
    progress.response_bytes += message.len() as u64;
    asking.identified.charge_bytes(asking.core, message.len());
    let stream = respond.send_response(response_head(), false);
    let stream = progress.body.insert(stream.map_err(|_| RelayError::ClientGone)?);
    // A client that takes nothing must not keep it for longer than a call may take.
    let sending =
        async { send_all(stream, message, false).await.map_err(|_| RelayError::ClientGone) };
    waiting.until_deadline(pin!(sending)).await?;
    let mut sent = HeaderMap::new();
    progress.told = Some(copy_status(&whole.trailers, &mut sent));
    stream.send_trailers(sent).map_err(|_| RelayError::ClientGone)
}

/// Passes on a status that comes without a message.
fn finish(
    respond: &mut SendResponse<Bytes>,
    progress: &mut Progress,
    trailers: &HeaderMap,
) -> Result<(), RelayError> {
    let mut head = response_head();
    progress.told = Some(copy_status(trailers, head.headers_mut()));
    respond.send_response(head, true).map(drop).map_err(|_| RelayError::ClientGone)
}

/// Ends a call with a status of our own, wherever its reply stands.
fn end(respond: &mut SendResponse<Bytes>, progress: &mut Progress, status: &Status) {
    if std::mem::replace(&mut progress.ended, true) {
        return;
    }
    progress.told = Some(Told { status: status.code as u16, fault: None });
    match &mut progress.body {
        None => answer(respond, status),
        Some(stream) => {
            let mut trailers = HeaderMap::new();
            status.write(&mut trailers);
            drop(stream.send_trailers(trailers));
        }
    }
}
