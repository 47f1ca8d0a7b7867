//! A stream of messages both ways. Like a unary call it sends nothing but what a permit holds, each
//! message with the proof of its own record, to a path from the catalog.

use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, StatusCode};

use super::forward::{ForwardError, request, slot};
use super::login::Token;
use super::pool::{Pool, Slot};
use crate::audit::{CallId, Recorded};
use crate::etcd::Rpc;
use crate::grpc::frame::framed;
use crate::grpc::metadata::Metadata;
use crate::policy::Permit;

/// The way to etcd.
#[derive(Debug)]
pub struct Outgoing {
    rpc: Rpc,
    stream: SendStream<Bytes>,
    /// What etcd has not taken yet.
    waiting: BytesMut,
    finishing: bool,
    /// Held until the stream is over.
    _slot: Slot,
}

/// The way back.
#[derive(Debug)]
pub struct Incoming {
    state: State,
}

#[derive(Debug)]
enum State {
    /// The head has not come: etcd sends it with its first message.
    Head(ResponseFuture),
    Body(RecvStream),
    Ended,
}

/// What came back.
#[derive(Debug)]
pub enum Next {
    /// Bytes of messages. More come when [`Incoming::release`] has been told.
    Data(Bytes),
    /// The end, with etcd's status.
    End(HeaderMap),
}

/// Opens a stream with its first message.
///
/// # Errors
/// When etcd cannot be reached.
pub async fn open(
    pool: &Pool,
    permit: &Permit,
    recorded: &Recorded,
    call: CallId,
    metadata: &Metadata,
    token: Option<&Token>,
) -> Result<(Outgoing, Incoming), ForwardError> {
    let mut slot = slot(pool, permit.rpc()).await?;
    let request = request(permit.rpc(), &slot, metadata, token)?;
    std::future::poll_fn(|context| slot.sender.poll_ready(context)).await?;
    let (response, stream) = slot.sender.send_request(request, false)?;
    let waiting = BytesMut::new();
    let mut outgoing =
        Outgoing { rpc: permit.rpc(), stream, waiting, finishing: false, _slot: slot };
    outgoing.send(permit, recorded, call)?;
    Ok((outgoing, Incoming { state: State::Head(response) }))
}

impl Outgoing {
    /// Puts one message on its way; [`Outgoing::poll_flush`] carries it.
    ///
    /// # Errors
    /// When the record is another message's, or the permit is for another RPC: a permit to watch must
    /// not become a message of another stream.
    pub fn send(
        &mut self,
        permit: &Permit,
        recorded: &Recorded,
        call: CallId,
    ) -> Result<(), ForwardError> {
        if recorded.call() != call || permit.rpc() != self.rpc {
            return Err(ForwardError::Mismatch);
        }
        self.waiting.extend_from_slice(&framed(permit.body()));
        Ok(())
    }

    /// Whether etcd has not taken everything yet; nothing more should be read for it then.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Tells etcd that no more messages come.
    ///
    /// # Errors
    /// When the stream is gone.
    pub fn finish(&mut self) -> Result<(), ForwardError> {
        self.finishing = true;
        if self.waiting.is_empty() {
            self.stream.send_data(Bytes::new(), true)?;
        }
        Ok(())
    }

    /// Sends what etcd has room for; ready when nothing is left.
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ForwardError>> {
        while !self.waiting.is_empty() {
            self.stream.reserve_capacity(self.waiting.len());
            let room = self.stream.capacity().min(self.waiting.len());
            if room > 0 {
                let part = self.waiting.split_to(room).freeze();
                let last = self.finishing && self.waiting.is_empty();
                self.stream.send_data(part, last)?;
                continue;
            }
            match self.stream.poll_capacity(context) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error.into())),
                Poll::Ready(None) => return Poll::Ready(Err(gone())),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Incoming {
    /// What comes next. Nothing is lost when it is polled no further and again later.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Next, ForwardError>> {
        loop {
            match &mut self.state {
                State::Head(response) => {
                    let head = std::task::ready!(std::pin::Pin::new(response).poll(context))?;
                    let (head, body) = head.into_parts();
                    if head.status != StatusCode::OK {
                        return Poll::Ready(Err(ForwardError::NotGrpc(head.status)));
                    }
                    if body.is_end_stream() {
                        self.state = State::Ended;
                        return Poll::Ready(Ok(Next::End(head.headers)));
                    }
                    self.state = State::Body(body);
                }
                State::Body(body) => match std::task::ready!(body.poll_data(context)) {
                    Some(chunk) => return Poll::Ready(Ok(Next::Data(chunk?))),
                    None => {
                        let trailers = std::task::ready!(body.poll_trailers(context))?;
                        self.state = State::Ended;
                        return Poll::Ready(Ok(Next::End(trailers.unwrap_or_default())));
                    }
                },
                State::Ended => return Poll::Ready(Err(gone())),
            }
        }
    }

    /// Lets etcd send as many bytes more: the client has taken them.
    ///
    /// # Errors
    /// When the stream is gone.
    pub fn release(&mut self, bytes: usize) -> Result<(), ForwardError> {
        match &mut self.state {
            State::Body(body) => Ok(body.flow_control().release_capacity(bytes)?),
            State::Head(_) | State::Ended => Ok(()),
        }
    }
}

fn gone() -> ForwardError {
    ForwardError::Broken(h2::Reason::CANCEL.into())
}
