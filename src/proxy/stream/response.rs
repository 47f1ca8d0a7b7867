//! What etcd says, on its way to the client, and how a stream ends: for the client and for the log.

use bytes::Bytes;
use h2::SendStream;
use http::HeaderMap;
use smallvec::SmallVec;

use super::{Ended, Stream};
use crate::audit::{Event, Outcome};
use crate::etcd::Rpc;
use crate::etcd::response::{Header, MessageFacts, ResponseFacts};
use crate::proxy::authorize::record;
use crate::proxy::outbox::{LAST_WORDS, Outbox};
use crate::proxy::respond::{answer, copy_status, response_head};
use crate::upstream::{ForwardError, refuses_token};

impl Stream<'_> {
    /// Bytes of etcd's messages: the facts of those that end here, then on to the client.
    pub(super) async fn response(&mut self, chunk: Bytes) -> Result<(), Ended> {
        let mut told: SmallVec<[MessageFacts; 4]> = SmallVec::new();
        self.scan.push(&chunk, |facts| told.push(facts));
        if told.iter().any(|facts| facts.created && facts.canceled) {
            self.check_token().await?;
        }
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
        let recorded = self.core.recorder.record(&self.client.queue_share, &record(event)).await;
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
        if self.core.recorder.try_record(&self.client.queue_share, &record(event)).is_err() {
            tracing::warn!("the end of a stream found no room in the audit log");
        }
    }
}
