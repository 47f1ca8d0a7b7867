//! A page on its way from etcd to the client, and the one place that records what became of it:
//! at its end, at a fault, or when it is dropped before either.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::super::share::CallShare;
use super::super::{Core, OpenCall};
use super::refuse::{forward_failed, text};
use crate::audit::{CallId, Outcome, Recorded};
use crate::etcd::response::ResponseFacts;
use crate::policy::HttpPermit;
use crate::upstream::{HttpBody, HttpForwardError, HttpReply, forward_http};

/// The fault of a page that is dropped before its end: what was said first, or else the default.
#[derive(Clone, Debug)]
pub(in crate::proxy) struct Cut {
    said: Rc<Cell<Option<&'static str>>>,
    default: &'static str,
}

impl Cut {
    pub(in crate::proxy) fn new(default: &'static str) -> Self {
        Self { said: Rc::default(), default }
    }

    pub(in crate::proxy) fn say(&self, fault: &'static str) {
        self.said.set(self.said.get().or(Some(fault)));
    }

    fn fault(&self) -> &'static str {
        self.said.get().unwrap_or(self.default)
    }
}

/// What an answer's body is made of.
#[derive(Debug)]
pub(in crate::proxy) struct PageBody(Content);

#[derive(Debug)]
enum Content {
    Text(Full<Bytes>),
    Page(Box<Relay>),
}

/// Why a page ends before its end. The client sees it by the stream or connection that breaks off.
#[derive(Debug, thiserror::Error)]
pub(in crate::proxy) enum RelayError {
    #[error(transparent)]
    Forward(#[from] HttpForwardError),
    #[error("the call took too long")]
    Slow,
}

/// An allowed and recorded page; what it takes of the principal's share and of the core is given up
/// with it.
#[derive(Debug)]
pub(super) struct Relay {
    core: Rc<Core>,
    /// Until the outcome is known.
    recorded: Option<Recorded>,
    started: Instant,
    deadline: Pin<Box<Sleep>>,
    cut: Cut,
    status: Option<StatusCode>,
    body: Option<HttpBody>,
    bytes: u64,
    _share: CallShare,
    _open: OpenCall,
}

impl Relay {
    pub(super) fn new(
        core: &Rc<Core>,
        recorded: Recorded,
        started: Instant,
        cut: &Cut,
        share: CallShare,
        open: OpenCall,
    ) -> Self {
        Self {
            core: Rc::clone(core),
            recorded: Some(recorded),
            started,
            deadline: Box::pin(tokio::time::sleep_until(started + core.limits.call_timeout)),
            cut: cut.clone(),
            status: None,
            body: None,
            bytes: 0,
            _share: share,
            _open: open,
        }
    }

    /// Asks etcd; the answer's body is the page, or a text of ours when there is none.
    pub(super) async fn start(self, permit: &HttpPermit, call: CallId) -> Response<PageBody> {
        let deadline = self.deadline.deadline();
        let asked = tokio::time::timeout_at(deadline, self.forward(permit, call)).await;
        match asked {
            Ok(Ok(reply)) => self.relay(reply),
            Ok(Err(error)) => {
                let (status, fault) = forward_failed(&error);
                self.fail(status, fault, &error.to_string())
            }
            Err(_) => self.fail(StatusCode::GATEWAY_TIMEOUT, "timeout", "the call took too long"),
        }
    }

    async fn forward(
        &self,
        permit: &HttpPermit,
        call: CallId,
    ) -> Result<HttpReply, HttpForwardError> {
        let recorded = self.recorded.as_ref().ok_or(HttpForwardError::Internal)?;
        forward_http(&self.core.http, permit, recorded, call).await
    }

    fn fail(mut self, status: StatusCode, fault: &'static str, said: &str) -> Response<PageBody> {
        self.status = Some(status);
        self.finish(Some(fault));
        text(status, said)
    }

    /// etcd's status and content type as they are; no other header.
    fn relay(mut self, reply: HttpReply) -> Response<PageBody> {
        self.status = Some(reply.status);
        let ended = reply.body.is_end();
        self.body = Some(reply.body);
        if ended {
            self.finish(None);
        }
        let mut response = Response::new(PageBody(Content::Page(Box::new(self))));
        *response.status_mut() = reply.status;
        if let Some(content_type) = reply.content_type {
            response.headers_mut().insert(CONTENT_TYPE, content_type);
        }
        response
    }

    fn finish(&mut self, fault: Option<&'static str>) {
        let Some(recorded) = self.recorded.take() else { return };
        recorded.finish(Outcome {
            status: self.status.map(|status| status.as_u16()),
            fault,
            facts: ResponseFacts::default(),
            response_bytes: self.bytes,
            latency: Duration::ZERO,
        });
        self.core.counts.observe_forward(self.started.elapsed());
    }

    fn poll_chunk(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        if self.deadline.as_mut().poll(context).is_ready() {
            self.finish(Some("timeout"));
            self.body = None;
            return Poll::Ready(Some(Err(RelayError::Slow)));
        }
        match ready!(body.poll_chunk(context)) {
            Some(Ok(chunk)) => {
                self.bytes += chunk.len() as u64;
                // With a known length nobody asks for what comes after the last byte.
                if body.is_end() {
                    self.finish(None);
                }
                Poll::Ready(Some(Ok(Frame::data(chunk))))
            }
            Some(Err(error)) => {
                self.finish(Some(forward_failed(&error).1));
                self.body = None;
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                self.finish(None);
                Poll::Ready(None)
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.finish(Some(self.cut.fault()));
    }
}

impl PageBody {
    /// Whether it is a text of ours and no page of etcd's.
    pub(in crate::proxy) const fn is_ours(&self) -> bool {
        matches!(self.0, Content::Text(_))
    }

    pub(super) fn text(text: Bytes) -> Self {
        Self(Content::Text(Full::new(text)))
    }
}

impl Body for PageBody {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        match &mut self.get_mut().0 {
            Content::Text(text) => {
                let frame = ready!(Pin::new(text).poll_frame(context));
                Poll::Ready(frame.map(|frame| frame.map_err(|never| match never {})))
            }
            Content::Page(relay) => relay.poll_chunk(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Content::Text(text) => text.is_end_stream(),
            // After a fault it is not at its end: the client must see that something is missing.
            Content::Page(relay) => relay.body.as_ref().is_some_and(HttpBody::is_end),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Text(text) => text.size_hint(),
            Content::Page(relay) => {
                relay.body.as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
            }
        }
    }
}
