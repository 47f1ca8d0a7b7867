//! The calls whose messages go both ways, Watch and LeaseKeepAlive: each message of the client goes
//! through read, decide, record, forward on its own; what etcd says is relayed as it comes. One
//! stream of the client is one stream to etcd, so IDs and progress are never another client's.
//!
//! A denied watch is answered here, as etcd answers it, and the stream lives on; a denied keep-alive
//! ends the stream, as it does with etcd.

mod watches;

use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::HeaderMap;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::authorize::{Asking, Refused, record, record_refusal};
use super::call::{Head, deadline, read_request};
use super::connection::Client;
use super::outbox::{LAST_WORDS, Outbox};
use super::refuse::{audit_unavailable, forward_failed, shutting_down, timed_out};
use super::respond::{answer, copy_status, response_head};
use super::{Core, Refusal};
use crate::audit::event::StreamEnd;
use crate::audit::{CallId, Event, Outcome, Recorded};
use crate::etcd::response::{Header, MessageFacts, ResponseFacts, StreamScan};
use crate::etcd::touch::InvalidRequest;
use crate::etcd::{CanonicalRequest, Malformed, Rpc, Touch};
use crate::grpc::{Code, MessageSplitter, Status};
use crate::policy::Permit;
use crate::upstream::{ForwardError, Incoming, Next, Outgoing, open};
use watches::{TOO_MANY_WATCHES, WATCH_DENIED, WATCH_RANGE_EMPTY, Watches, answer_to_create};

/// Messages that etcd may owe an answer to; a client that asks for more waits.
const UNANSWERED_MAX: usize = 256;
/// Answers of our own that may wait for etcd's current message to end.
const ANSWERS_WAITING_MAX: usize = 64;
/// No more requests are read while so much waits for the client: a window of etcd's, and answers of our
/// own.
const OUTBOX_BYTES_MAX: usize = 192 * 1024;
/// One stream.
struct Stream<'a> {
    core: &'a Core,
    /// When the client wants it to end.
    ends: Option<Instant>,
    client: &'a Client,
    call: CallId,
    head: Head<'a>,
    requests: RecvStream,
    splitter: MessageSplitter,
    /// The client has said that no more requests come.
    requests_ended: bool,
    respond: SendResponse<Bytes>,
    responses: Option<SendStream<Bytes>>,
    etcd: Option<(Outgoing, Incoming)>,
    /// The messages that etcd has not answered, in the order in which it will.
    unanswered: VecDeque<Recorded>,
    /// Answers of our own, for the next gap between etcd's messages.
    answers: VecDeque<Bytes>,
    outbox: Outbox,
    /// Whose turn it is to be asked first.
    client_first: bool,
    watches: Watches,
    scan: StreamScan,
    header: Header,
    end: StreamEnd,
    end_is_recorded: bool,
}

/// Why a stream ends before etcd ends it.
enum Ended {
    ClientGone,
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
    core: &Core,
    client: &Client,
    call: CallId,
    head: Head<'_>,
    requests: RecvStream,
    respond: SendResponse<Bytes>,
) {
    let deadline = deadline(Instant::now(), head.rpc, &head.metadata, core.limits.call_timeout);
    let head_share = Rc::clone(&head.identified.share);
    let mut stream = Stream {
        core,
        ends: deadline,
        client,
        call,
        head,
        requests,
        splitter: MessageSplitter::new(core.limits.request_bytes),
        requests_ended: false,
        respond,
        responses: None,
        etcd: None,
        unanswered: VecDeque::new(),
        answers: VecDeque::new(),
        outbox: Outbox::default(),
        client_first: false,
        watches: Watches::new(&head_share),
        scan: StreamScan::default(),
        header: core.last_header.get(),
        end: StreamEnd::default(),
        end_is_recorded: false,
    };
    let ended = tokio::select! {
        // First, so that a message in hand ends with a record of its own.
        biased;
        ended = stream.run() => ended,
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

impl Stream<'_> {
    /// Takes turns until one side ends the stream.
    async fn run(&mut self) -> Result<(), Ended> {
        let mut draining = self.core.draining.clone();
        loop {
            while self.scan.is_between_messages()
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
            let between_messages = self.scan.is_between_messages();
            let turn = tokio::select! {
                biased;
                turn = std::future::poll_fn(|context| self.poll_turn(context)) => turn?,
                // A message is never cut in half by our own end.
                _ = draining.wait_for(|draining| *draining), if between_messages => {
                    return Err(Ended::Told(shutting_down(), "shutting_down"));
                }
            };
            match turn {
                Turn::FromClient(Some(chunk)) => self.take(&chunk).await?,
                Turn::FromClient(None) => {
                    if self.end_of_requests().await? {
                        return Ok(());
                    }
                }
                Turn::FromEtcd(Next::Data(chunk)) => self.response(chunk)?,
                Turn::FromEtcd(Next::End(trailers)) => {
                    self.flush().await?;
                    return self.finish(&trailers);
                }
                Turn::Taken(bytes) => self.release(bytes)?,
                Turn::Flushed => {}
            }
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

    async fn take(&mut self, chunk: &Bytes) -> Result<(), Ended> {
        self.splitter.push(chunk);
        self.head.identified.charge_bytes(self.core, chunk.len());
        let released = self.requests.flow_control().release_capacity(chunk.len());
        released.map_err(|_| Ended::ClientGone)?;
        let bytes_max = self.core.limits.request_bytes_per_principal;
        if self.head.share.hold_bytes(self.splitter.buffered_bytes(), bytes_max) {
            return Ok(());
        }
        Err(self.refuse(self.call, &Refusal::Share).await)
    }

    /// True when the stream is over with it.
    async fn end_of_requests(&mut self) -> Result<bool, Ended> {
        self.requests_ended = true;
        if self.splitter.buffered_bytes() > 0 {
            let refusal = Refusal::Frame(crate::grpc::FrameError::Incomplete);
            return Err(self.refuse(self.call, &refusal).await);
        }
        if let Some((outgoing, _)) = &mut self.etcd {
            outgoing.finish().map_err(Ended::by_etcd)?;
            return Ok(false);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        self.finish(&trailers).map(|()| true)
    }

    /// One message of the client: read, decide, record, forward.
    async fn request(&mut self, message: &Bytes) -> Result<(), Ended> {
        self.end.requests += 1;
        let call = self.call.message(self.end.requests);
        self.head.share.hold_bytes(self.splitter.buffered_bytes(), usize::MAX);
        let rpc = self.head.rpc;
        let mut throttled =
            rpc != Rpc::LeaseKeepAlive && !self.head.identified.takes_request(self.core);
        let request = match read_request(self.core, self.head.identified, rpc, message) {
            Ok(request) => request,
            Err(error @ Malformed::Request(InvalidRequest::Range(_))) if rpc == Rpc::Watch => {
                let (refusal, text) = if throttled {
                    (Refusal::Rate, TOO_MANY_WATCHES)
                } else {
                    (error.into(), WATCH_RANGE_EMPTY)
                };
                self.record_refusal(call, &refusal).await?;
                self.answer_watch(text);
                return Ok(());
            }
            Err(error) => return Err(self.refuse(call, &error.into()).await),
        };
        if self.renews_a_foreign_lease(&request) {
            throttled = !self.head.identified.takes_request(self.core);
        }
        let creates = matches!(request.touches().first(), Some(Touch::Key { .. }));
        // A cancel makes room, and to refuse it would end all watches of the stream.
        let cancels = matches!(request.touches().first(), Some(Touch::CancelWatch(_)));
        if throttled && !creates && !cancels {
            return Err(self.refuse(call, &Refusal::Rate).await);
        }
        if creates && (throttled || !self.watches.add(self.head.identified.bounds.watches)) {
            let refusal = if throttled { Refusal::Rate } else { Refusal::Share };
            self.record_refusal(call, &refusal).await?;
            self.answer_watch(TOO_MANY_WATCHES);
            return Ok(());
        }
        let asking = Asking {
            core: self.core,
            identified: self.head.identified,
            metadata: &self.head.metadata,
            call,
            request_bytes: message.len(),
            ends: self.ends,
        };
        match asking.authorize(request).await {
            Ok((permit, recorded)) => {
                let forwarded = self.forward_in_time(&permit, &recorded, call).await;
                if let Err(error) = forwarded {
                    let (status, fault) = forward_failed(&error);
                    let code = Some(status.code as u16);
                    let fault = Some(fault);
                    recorded.finish(Outcome { status: code, fault, ..Outcome::default() });
                    return Err(Ended::by_etcd(error));
                }
                if creates || rpc == Rpc::LeaseKeepAlive {
                    self.unanswered.push_back(recorded);
                } else {
                    // etcd need not answer a cancel or a progress request: it was sent.
                    recorded.finish(Outcome { status: Some(0), ..Outcome::default() });
                }
                Ok(())
            }
            Err(refused) if rpc == Rpc::Watch && refused.status.code == Code::PermissionDenied => {
                if creates {
                    self.watches.take_back();
                    self.answer_watch(WATCH_DENIED);
                }
                Ok(())
            }
            Err(Refused { status, fault }) => Err(Ended::Told(status, fault)),
        }
    }

    /// The stream's own time may end meanwhile: the record of this message then says so.
    async fn forward_in_time(
        &mut self,
        permit: &Permit,
        recorded: &Recorded,
        call: CallId,
    ) -> Result<(), ForwardError> {
        match self.ends {
            None => self.forward(permit, recorded, call).await,
            Some(ends) => {
                let forwarding = self.forward(permit, recorded, call);
                let forwarded = tokio::time::timeout_at(ends, forwarding).await;
                forwarded.unwrap_or(Err(ForwardError::TimedOut))
            }
        }
    }

    async fn forward(
        &mut self,
        permit: &Permit,
        recorded: &Recorded,
        call: CallId,
    ) -> Result<(), ForwardError> {
        if let Some((outgoing, _)) = &mut self.etcd {
            return outgoing.send(permit, recorded, call);
        }
        let metadata = &self.head.metadata;
        self.etcd = Some(open(&self.core.pool, permit, recorded, call, metadata).await?);
        Ok(())
    }

    fn answer_watch(&mut self, reason: &str) {
        // Who may do nothing at all does not learn the store's revision from a denial.
        let grants = self.head.identified.identification.rights.grants_anything();
        let header = if grants { self.header } else { Header::default() };
        self.answers.push_back(answer_to_create(header, reason));
    }

    /// Bytes of etcd's messages: the facts of those that end here, then on to the client.
    fn response(&mut self, chunk: Bytes) -> Result<(), Ended> {
        let mut told: SmallVec<[MessageFacts; 4]> = SmallVec::new();
        self.scan.push(&chunk, |facts| told.push(facts));
        for facts in told {
            self.end.responses += 1;
            self.watches.note(&facts);
            if facts.header != Header::default() {
                self.header = facts.header;
                self.core.last_header.set(facts.header);
            }
            if (facts.created || self.head.rpc == Rpc::LeaseKeepAlive)
                && let Some(recorded) = self.unanswered.pop_front()
            {
                let revision = Some(facts.header.revision);
                recorded.finish(Outcome {
                    status: Some(0),
                    fault: facts.canceled.then_some("canceled"),
                    facts: ResponseFacts { revision, ..ResponseFacts::default() },
                    ..Outcome::default()
                });
            }
        }
        let bytes = chunk.len();
        self.end.response_bytes += bytes as u64;
        self.head.identified.charge_bytes(self.core, bytes);
        let (client, outbox) = self.open_responses()?;
        let taken = outbox.push(chunk, client).map_err(|_| Ended::ClientGone)?;
        self.release(taken)
    }

    /// The client has taken so much: only now may etcd send more. A reader that stops, stops etcd.
    fn release(&mut self, bytes: usize) -> Result<(), Ended> {
        match &mut self.etcd {
            Some((_, incoming)) => incoming.release(bytes).map_err(Ended::by_etcd),
            None => Ok(()),
        }
    }

    /// A lease that is not the principal's own has to be looked up: that was free at any rate.
    fn renews_a_foreign_lease(&self, request: &CanonicalRequest) -> bool {
        let principal = &self.head.identified.identification.principal;
        let foreign = |touch: &Touch| match touch {
            Touch::Lease { lease, .. } => !self.core.leases.owns(principal, *lease),
            _ => false,
        };
        request.touches().iter().any(foreign)
    }

    /// The way to the client; the head goes first.
    fn open_responses(&mut self) -> Result<(&mut SendStream<Bytes>, &mut Outbox), Ended> {
        let responses = match &mut self.responses {
            Some(responses) => responses,
            none => {
                let opened = self.respond.send_response(response_head(), false);
                none.insert(opened.map_err(|_| Ended::ClientGone)?)
            }
        };
        Ok((responses, &mut self.outbox))
    }

    async fn flush(&mut self) -> Result<(), Ended> {
        match &mut self.responses {
            Some(responses) => self.outbox.flush(responses).await.map_err(|_| Ended::ClientGone),
            None => Ok(()),
        }
    }

    async fn record_refusal(&self, call: CallId, refusal: &Refusal) -> Result<(), Ended> {
        let path = self.head.rpc.path();
        let recorded = record_refusal(self.core, self.client, call, path, refusal).await;
        recorded.map_err(|_| Ended::Told(audit_unavailable(), "audit_unavailable"))
    }

    /// Records a request that cannot be read; the stream ends with it.
    async fn refuse(&self, call: CallId, refusal: &Refusal) -> Ended {
        match self.record_refusal(call, refusal).await {
            Err(ended) => ended,
            Ok(()) => refusal
                .status()
                .map_or(Ended::ClientGone, |status| Ended::Told(status, refusal.reason())),
        }
    }

    /// Passes etcd's status on.
    fn finish(&mut self, trailers: &HeaderMap) -> Result<(), Ended> {
        let mut sent = HeaderMap::new();
        let told = copy_status(trailers, &mut sent);
        self.end.status = Some(told.status);
        self.end.fault = told.fault;
        let gone = |_| Ended::ClientGone;
        if let Some(responses) = &mut self.responses {
            return responses.send_trailers(sent).map_err(gone);
        }
        let mut head = response_head();
        head.headers_mut().extend(sent);
        self.respond.send_response(head, true).map(drop).map_err(gone)
    }

    /// Tells the client and the log how it ended.
    async fn close(mut self, ended: Result<(), Ended>) {
        match ended {
            Ok(()) => {}
            Err(Ended::ClientGone) => self.end.fault = Some("client_gone"),
            Err(Ended::Told(status, fault)) => {
                self.end.fault = Some(fault);
                self.end.status = Some(status.code as u16);
                // Who reads gets whole messages; who does not, is not waited for.
                drop(tokio::time::timeout(LAST_WORDS, self.flush()).await);
                match &mut self.responses {
                    None => answer(&mut self.respond, &status),
                    Some(responses) => {
                        let mut trailers = HeaderMap::new();
                        status.write(&mut trailers);
                        drop(responses.send_trailers(trailers));
                    }
                }
            }
        }
        for recorded in self.unanswered.drain(..) {
            let fault = Some("stream_ended");
            recorded.finish(Outcome { fault, ..Outcome::default() });
        }
        let event = Event::StreamEnd { call: self.call, end: self.end.clone() };
        let recorded = self.core.recorder.record(&self.client.queue_share, record(event)).await;
        // Not before: who cuts the wait has the end recorded by `drop`.
        self.end_is_recorded = true;
        if recorded.is_err() {
            tracing::warn!("the end of a stream found no room in the audit log");
        }
    }
}

/// A stream that is cut when the drain time is over has an end all the same.
impl Drop for Stream<'_> {
    fn drop(&mut self) {
        if self.end_is_recorded {
            return;
        }
        self.end.fault.get_or_insert("aborted");
        let event = Event::StreamEnd { call: self.call, end: std::mem::take(&mut self.end) };
        if self.core.recorder.try_record(&self.client.queue_share, record(event)).is_err() {
            tracing::warn!("the end of a stream found no room in the audit log");
        }
    }
}

impl Ended {
    fn by_etcd(error: ForwardError) -> Self {
        let (status, fault) = forward_failed(&error);
        Self::Told(status, fault)
    }
}
