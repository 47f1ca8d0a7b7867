//! What etcd says, on its way to the client, and how a stream ends: for the client and for the log.

use std::task::{Context, Waker};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http::HeaderMap;
use smallvec::SmallVec;

use super::judge::CutWatch;
use super::watches::{WATCH_DENIED, cancel_of};
use super::{Ended, Stream, Unanswered};
use crate::audit::{Event, Outcome};
use crate::etcd::response::{Header, MessageFacts, MessagePosition, Piece, ResponseFacts};
use crate::etcd::{Rpc, Touches};
use crate::grpc::{Code, Status};
use crate::proxy::authorize::{no_longer_allowed, record};
use crate::proxy::ending::Ending;
use crate::proxy::outbox::{LAST_WORDS, Outbox};
use crate::proxy::refuse::right_ended;
use crate::proxy::respond::{answer, copy_status, response_head};
use crate::upstream::{ForwardError, refuses_token};

impl Stream {
    /// Bytes of etcd's messages: the facts of those that end here, then on to the client.
    pub(super) async fn response(&mut self, chunk: Bytes) -> Result<(), Ended> {
        let mut told: SmallVec<[MessageFacts; 4]> = SmallVec::new();
        self.position = self.scan.position();
        self.scan.push(&chunk, |facts| told.push(facts));
        if told.iter().any(|facts| facts.created && facts.canceled) {
            self.check_token().await?;
        }
        // The first that ends here may have begun in bytes that the client has.
        let mut has_passed = match &self.without {
            Some(without) => without.is_passing(),
            None => self.position != MessagePosition::Between,
        };
        for facts in told {
            self.note(facts, std::mem::take(&mut has_passed)).await?;
        }
        let bytes = chunk.len();
        self.end.response_bytes += bytes as u64;
        self.head.identified.charge_bytes(&self.core, bytes);
        if self.without.is_some() {
            return self.pass_without(chunk);
        }
        self.position = self.scan.position();
        let (client, outbox) = self.open_responses()?;
        let taken = outbox.push(chunk, client).map_err(|_| Ended::ClientGone)?;
        self.release(taken)
    }

    /// One of etcd's messages has come; a part of it may have gone on already.
    async fn note(&mut self, facts: MessageFacts, has_passed: bool) -> Result<(), Ended> {
        self.end.responses += 1;
        if facts.header != Header::default() {
            self.header = facts.header;
            self.core.last_header.set(facts.header);
        }
        let answers = facts.created || self.head.rpc == Rpc::LeaseKeepAlive;
        if let Some(Unanswered { recorded, watch }) =
            answers.then(|| self.unanswered.pop_front()).flatten()
        {
            let revision = Some(facts.header.revision);
            recorded.finish(Outcome {
                status: Some(0),
                fault: facts.canceled.then_some("canceled"),
                facts: ResponseFacts { revision, ..ResponseFacts::default() },
                ..Outcome::default()
            });
            if let Some(watch) = watch {
                return self.begin_watch(facts, watch, has_passed).await;
            }
        }
        if facts.canceled && !facts.created {
            self.watches.ended(facts.id);
        }
        Ok(())
    }

    /// etcd has answered a create, which was allowed when it was sent.
    async fn begin_watch(
        &mut self,
        facts: MessageFacts,
        (touches, is_named): (Touches, bool),
        has_passed: bool,
    ) -> Result<(), Ended> {
        if facts.canceled {
            self.watches.take_back(&touches);
            return Ok(());
        }
        let id = facts.id;
        let cause = no_longer_allowed(&self.head.identified, &touches);
        let is_stopped = self.without.as_ref().is_some_and(|without| without.stops(id));
        let begun = self.watches.began(id, touches.clone(), is_named);
        if is_stopped || begun.is_err() {
            let status = Status::new(Code::Unavailable, "ringfence: open another stream");
            return Err(Ended::Told(status, "watch_id_used"));
        }
        let Some(cause) = cause else { return Ok(()) };
        self.watches.ended(id);
        self.stop(id);
        if has_passed {
            self.answers.push_back(cancel_of(self.header, id, WATCH_DENIED));
        } else {
            self.answer_watch(WATCH_DENIED);
        }
        self.end_watch(&CutWatch { id, touches, cause }).await
    }

    /// Passes on what is not of a watch that was stopped; our own answers go where a message ends.
    fn pass_without(&mut self, chunk: Bytes) -> Result<(), Ended> {
        let mut pieces = Vec::new();
        let Some(without) = &mut self.without else { return Ok(()) };
        let passed = without.push(chunk, &mut |piece| pieces.push(piece));
        self.position = self.scan.position();
        if passed.is_err() {
            return Err(Ended::by_etcd(ForwardError::Unreadable));
        }
        let mut taken = 0;
        for piece in pieces {
            match piece {
                Piece::Bytes(bytes) => {
                    let (client, outbox) = self.open_responses()?;
                    taken += outbox.push(bytes, client).map_err(|_| Ended::ClientGone)?;
                }
                Piece::Dropped(bytes) => taken += bytes,
                Piece::Boundary => {
                    while let Some(answer) = self.answers.pop_front() {
                        self.open_responses()?;
                        self.outbox.push_own(&answer);
                    }
                }
            }
        }
        self.release(taken)
    }

    /// A watch that etcd did not let begin: for want of a right, or of a token that it still takes. With
    /// the second its client is to open another stream, where it will have one.
    pub(super) async fn check_token(&self) -> Result<(), Ended> {
        let Some(token) = &self.token else { return Ok(()) };
        let asking = self.asking(self.call, 0);
        if Box::pin(asking.takes_token(token)).await {
            return Ok(());
        }
        Err(Ended::by_etcd(ForwardError::TokenRefused))
    }

    /// The client has taken so much: only now may etcd send more. A reader that stops, stops etcd.
    pub(super) fn release(&mut self, bytes: usize) -> Result<(), Ended> {
        match &mut self.etcd {
            Some((_, incoming)) => incoming.release(bytes).map_err(Ended::by_etcd),
            None => Ok(()),
        }
    }

    /// The way to the client; the head goes first.
    pub(super) fn open_responses(
        &mut self,
    ) -> Result<(&mut SendStream<Bytes>, &mut Outbox), Ended> {
        let responses = match &mut self.responses {
            Some(responses) => responses,
            none => {
                let opened = self.respond.send_response(response_head(), false);
                none.insert(opened.map_err(|_| Ended::ClientGone)?)
            }
        };
        Ok((responses, &mut self.outbox))
    }

    pub(super) async fn flush(&mut self) -> Result<(), Ended> {
        match &mut self.responses {
            Some(responses) => self.outbox.flush(responses).await.map_err(|_| Ended::ClientGone),
            None => Ok(()),
        }
    }

    /// A token that etcd no longer takes is no matter of the client.
    pub(super) fn check_end(&self, trailers: &HeaderMap) -> Result<(), Ended> {
        match &self.token {
            Some((login, token)) if refuses_token(trailers) => {
                login.forget(token);
                Err(Ended::by_etcd(ForwardError::TokenRefused))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Passes etcd's status on.
    pub(super) fn finish(&mut self, trailers: &HeaderMap) -> Result<(), Ended> {
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
    pub(super) async fn close(mut self, ended: Result<(), Ended>) {
        match ended {
            Ok(()) => {}
            Err(Ended::ClientGone) => self.end.fault = Some("client_gone"),
            Err(Ended::Told(status, fault)) => {
                // Who reads gets whole messages; who does not, is not waited for.
                drop(tokio::time::timeout(LAST_WORDS, self.flush()).await);
                self.tell(&status, fault);
            }
            Err(Ended::NoLonger(ending)) => self.end_right(ending),
        }
        for Unanswered { recorded, .. } in self.unanswered.drain(..) {
            let fault = Some("stream_ended");
            recorded.finish(Outcome { fault, ..Outcome::default() });
        }
        let event = Event::StreamEnd { call: self.call, end: self.end.clone() };
        let recorded = self.core.recorder.record(&self.client.queue_share, &record(event)).await;
        // Not before: who cuts the wait has the end recorded by `drop`.
        self.end_is_recorded = true;
        if recorded.is_err() {
            tracing::warn!("the end of a stream found no room in the audit log");
        }
    }

    fn tell(&mut self, status: &Status, fault: &'static str) {
        self.end.fault = Some(fault);
        self.end.status = Some(status.code as u16);
        match &mut self.responses {
            None => answer(&mut self.respond, status),
            Some(responses) => {
                let mut trailers = HeaderMap::new();
                status.write(&mut trailers);
                drop(responses.send_trailers(trailers));
            }
        }
    }

    /// Nothing that waits for the client reaches it any more. Who has taken all that came is told of each watch; who
    /// has not is reset.
    fn end_right(&mut self, ending: Ending) {
        self.core.metrics.count_cut_watches(ending.name(), self.watches.count());
        let status = right_ended(ending.name());
        let is_told = self.is_between_messages() && self.outbox.is_empty();
        match &mut self.responses {
            Some(responses) if is_told => {
                let ids =
                    if status.code == Code::PermissionDenied { self.watches.ids() } else { vec![] };
                for id in ids {
                    self.outbox.push_own(&cancel_of(self.header, id, WATCH_DENIED));
                }
                let context = &mut Context::from_waker(Waker::noop());
                // What the client has no room for now it does not get.
                drop(self.outbox.poll_flush(responses, context));
                self.tell(&status, ending.name());
            }
            Some(responses) => {
                responses.send_reset(Reason::CANCEL);
                self.end.fault = Some(ending.name());
            }
            None => self.tell(&status, ending.name()),
        }
    }
}

/// A stream that is cut when the drain time is over has an end all the same.
impl Drop for Stream {
    fn drop(&mut self) {
        if self.end_is_recorded {
            return;
        }
        self.end.fault.get_or_insert("aborted");
        let event = Event::StreamEnd { call: self.call, end: std::mem::take(&mut self.end) };
        if self.core.recorder.try_record(&self.client.queue_share, &record(event)).is_err() {
            tracing::warn!("the end of a stream found no room in the audit log");
        }
    }
}
