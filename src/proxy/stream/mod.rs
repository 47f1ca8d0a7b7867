//! The calls whose messages go both ways, Watch and LeaseKeepAlive: each message of the client goes
//! through read, decide, record, forward on its own; what etcd says is relayed as it comes. One
//! stream of the client is one stream to etcd, so IDs and progress are never another client's.
//!
//! A denied watch is answered here, as etcd answers it, and the stream lives on; a denied keep-alive
//! ends the stream, as it does with etcd.

mod judge;
mod request;
mod response;
mod watches;

use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use tokio::time::Instant;

use super::Core;
use super::acting::StreamToken;
use super::call::{Head, deadline};
use super::connection::Client;
use super::ending::Ending;
use super::judge::Judgements;
use super::outbox::Outbox;
use super::refuse::{forward_failed, shutting_down, timed_out};
use crate::audit::event::StreamEnd;
use crate::audit::{CallId, Recorded};
use crate::etcd::Touches;
use crate::etcd::response::{Header, MessagePosition, StreamScan, WithoutWatches};
use crate::grpc::{MessageSplitter, Status};
use crate::upstream::{ForwardError, Incoming, Next, Outgoing};
use watches::Watches;

/// Messages that etcd may owe an answer to; a client that asks for more waits.
const UNANSWERED_MAX: usize = 256;
/// Answers of our own that may wait for etcd's current message to end.
const ANSWERS_WAITING_MAX: usize = 64;
/// No more requests are read while so much waits for the client: a window of etcd's, and answers of our
/// own.
const OUTBOX_BYTES_MAX: usize = 192 * 1024;
/// One stream.
struct Stream {
    core: Rc<Core>,
    /// When the client wants it to end.
    ends: Option<Instant>,
    client: Rc<Client>,
    /// ringfence ends, and so does the stream when no message is cut in half by it.
    draining: bool,
    call: CallId,
    head: Head,
    requests: RecvStream,
    splitter: MessageSplitter,
    /// The client has said that no more requests come.
    requests_ended: bool,
    respond: SendResponse<Bytes>,
    responses: Option<SendStream<Bytes>>,
    etcd: Option<(Outgoing, Incoming)>,
    token: StreamToken,
    /// The messages that etcd has not answered, in the order in which it will.
    unanswered: VecDeque<Unanswered>,
    /// Answers of our own, for the next gap between etcd's messages.
    answers: VecDeque<Bytes>,
    outbox: Outbox,
    /// Whose turn it is to be asked first.
    client_first: bool,
    watches: Watches,
    /// Where etcd's bytes stood before those in hand.
    position: MessagePosition,
    /// There are watches whose events go no further.
    without: Option<WithoutWatches>,
    scan: StreamScan,
    header: Header,
    end: StreamEnd,
    end_is_recorded: bool,
}

/// A message that etcd has been sent.
struct Unanswered {
    recorded: Recorded,
    /// What it touches, when it is a watch that is to begin, and whether its ID is of the client's choice.
    watch: Option<(Touches, bool)>,
}

/// Why a stream ends before etcd ends it.
enum Ended {
    ClientGone,
    /// What let its connection in holds no longer.
    NoLonger(Ending),
    /// With this status; the name is for the record.
    Told(Status, &'static str),
}

/// What happens next.
enum Turn {
    FromClient(Option<Bytes>),
    FromEtcd(Next),
    /// The client has taken so many bytes of etcd.
    Taken(usize),
    Flushed,
}

type PollSide<S> = fn(&mut S, &mut Context<'_>) -> Poll<Result<Turn, Ended>>;

/// Serves one stream to its end.
pub(super) async fn serve(
    client: Rc<Client>,
    call: CallId,
    head: Head,
    requests: RecvStream,
    respond: SendResponse<Bytes>,
) {
    let core = Rc::clone(&client.core);
    let judgements = Judgements::after(&client);
    let deadline = deadline(Instant::now(), head.rpc, &head.metadata, core.limits.call_timeout);
    let head_share = Rc::clone(&head.identified.share);
    let mut stream = Stream {
        header: core.last_header.get(),
        splitter: MessageSplitter::new(core.limits.request_bytes),
        core,
        ends: deadline,
        client,
        draining: false,
        call,
        head,
        requests,
        requests_ended: false,
        respond,
        responses: None,
        etcd: None,
        token: None,
        unanswered: VecDeque::new(),
        answers: VecDeque::new(),
        outbox: Outbox::default(),
        client_first: false,
        watches: Watches::new(&head_share),
        position: MessagePosition::Between,
        without: None,
        scan: StreamScan::default(),
        end: StreamEnd::default(),
        end_is_recorded: false,
    };
    let ended = tokio::select! {
        // First, so that a message in hand ends with a record of its own.
        biased;
        ended = stream.run(judgements) => ended,
        () = sleep_until(deadline) => {
            let (status, fault) = timed_out();
            Err(Ended::Told(status, fault))
        }
    };
    stream.close(ended).await;
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Stream {
    /// Takes turns until one side ends the stream.
    async fn run(&mut self, mut judgements: Judgements) -> Result<(), Ended> {
        loop {
            if self.draining && self.is_between_messages() {
                return Err(Ended::Told(shutting_down(), "shutting_down"));
            }
            while self.is_between_messages()
                && let Some(answer) = self.answers.pop_front()
            {
                self.open_responses()?;
                self.outbox.push_own(&answer);
            }
            if self.takes_requests() {
                match self.splitter.next_message() {
                    Ok(Some(message)) => {
                        self.request(&message).await?;
                        continue;
                    }
                    Ok(None) => {}
                    Err(error) => return Err(self.refuse(self.call, &error.into()).await),
                }
            }
            let turn = tokio::select! {
                // First, so that no event passes that came behind the judgement.
                biased;
                client = judgements.next() => {
                    self.judge_again(client).await?;
                    continue;
                }
                turn = std::future::poll_fn(|context| self.poll_turn(context)) => turn?,
            };
            match turn {
                Turn::FromClient(Some(chunk)) => self.take(&chunk).await?,
                Turn::FromClient(None) => {
                    if self.end_of_requests().await? {
                        return Ok(());
                    }
                }
                Turn::FromEtcd(Next::Data(chunk)) => self.response(chunk).await?,
                Turn::FromEtcd(Next::End(trailers)) => {
                    self.flush().await?;
                    self.check_end(&trailers)?;
                    return self.finish(&trailers);
                }
                Turn::Taken(bytes) => self.release(bytes)?,
                Turn::Flushed => {}
            }
        }
    }

    /// Whether a message of our own may be put in here.
    fn is_between_messages(&self) -> bool {
        match &self.without {
            Some(without) => without.is_between_messages(),
            None => self.scan.is_between_messages(),
        }
    }

    /// Whether another request can be taken: none waits for etcd to read, and what etcd and the
    /// client owe an answer or a read to is bounded.
    fn takes_requests(&self) -> bool {
        self.unanswered.len() < UNANSWERED_MAX
            && self.answers.len() < ANSWERS_WAITING_MAX
            && self.outbox.len() < OUTBOX_BYTES_MAX
            && self.etcd.as_ref().is_none_or(|(outgoing, _)| !outgoing.is_waiting())
    }

    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<Result<Turn, Ended>> {
        let reset = match &mut self.responses {
            Some(responses) => responses.poll_reset(context),
            None => self.respond.poll_reset(context),
        };
        if reset.is_ready() {
            return Poll::Ready(Err(Ended::ClientGone));
        }
        if let Some(responses) = &mut self.responses
            && let Poll::Ready(taken) = self.outbox.poll_flush(responses, context)
        {
            return Poll::Ready(taken.map(Turn::Taken).map_err(|_| Ended::ClientGone));
        }
        // Neither side is kept waiting by the other's much talk.
        self.client_first = !self.client_first;
        let (first, second): (PollSide<Self>, PollSide<Self>) = match self.client_first {
            true => (Self::poll_client, Self::poll_etcd),
            false => (Self::poll_etcd, Self::poll_client),
        };
        match first(self, context) {
            Poll::Ready(turn) => Poll::Ready(turn),
            Poll::Pending => second(self, context),
        }
    }

    fn poll_client(&mut self, context: &mut Context<'_>) -> Poll<Result<Turn, Ended>> {
        if !self.takes_requests() || self.requests_ended {
            return Poll::Pending;
        }
        let chunk = std::task::ready!(self.requests.poll_data(context));
        Poll::Ready(chunk.transpose().map(Turn::FromClient).map_err(|_| Ended::ClientGone))
    }

    fn poll_etcd(&mut self, context: &mut Context<'_>) -> Poll<Result<Turn, Ended>> {
        let Some((outgoing, incoming)) = &mut self.etcd else { return Poll::Pending };
        if let Poll::Ready(next) = incoming.poll_next(context) {
            return Poll::Ready(next.map(Turn::FromEtcd).map_err(Ended::by_etcd));
        }
        if !outgoing.is_waiting() {
            return Poll::Pending;
        }
        outgoing.poll_flush(context).map(|flushed| match flushed {
            Ok(()) => Ok(Turn::Flushed),
            Err(error) => Err(Ended::by_etcd(error)),
        })
    }
}

impl Ended {
    fn by_etcd(error: ForwardError) -> Self {
        let (status, fault) = forward_failed(&error);
        Self::Told(status, fault)
    }
}
