//! Sends a permitted, recorded request. There is no other body to send than the permit's, and no
//! other path than the catalog's.

use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};

use super::login::Token;
use super::pool::{NoSlot, Pool, Slot};
use crate::audit::{CallId, Recorded};
use crate::etcd::Rpc;
use crate::grpc::frame::framed;
use crate::grpc::metadata::Metadata;
use crate::policy::Permit;

/// etcd's answer, with its body still to be read.
#[derive(Debug)]
pub struct Reply {
    /// `grpc-status` and `grpc-message`, when the answer has no body.
    pub trailers_only: Option<HeaderMap>,
    body: RecvStream,
    /// What was read of it to see whether there is any.
    ahead: Option<Bytes>,
    /// Held until the body has been read.
    _slot: Slot,
}

/// A message of so many bytes is given to h2 at once, whether etcd has room for it or not: it waits there as it would
/// wait here. It is a part of what its principal may have in memory (`limits.request_bytes_per_principal`).
const AT_ONCE_BYTES_MAX: usize = 4096;

/// With these etcd says that it does not take a token, before anything of the request has run
/// (api/v3rpc/rpctypes). Their codes are those of other faults, too.
const TOKEN_REFUSALS: [&str; 2] =
    ["etcdserver: invalid auth token", "etcdserver: revision of auth store is old"];

/// Whether trailers say that etcd does not take the token that came with the call.
#[must_use]
pub fn refuses_token(trailers: &HeaderMap) -> bool {
    let message = trailers.get("grpc-message").map(HeaderValue::as_bytes);
    TOKEN_REFUSALS.iter().any(|refusal| message == Some(refusal.as_bytes()))
}

impl Reply {
    /// The next bytes of the body; `None` behind the last.
    ///
    /// # Errors
    /// When the stream or its connection ends.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ForwardError> {
        std::future::poll_fn(|context| self.poll_chunk(context)).await
    }

    /// The same, to be polled.
    pub fn poll_chunk(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, ForwardError>> {
        if let Some(chunk) = self.ahead.take() {
            return Poll::Ready(Ok(Some(chunk)));
        }
        self.body.poll_data(context).map(|chunk| Ok(chunk.transpose()?))
    }

    /// Lets etcd send as many bytes more.
    ///
    /// # Errors
    /// When the stream is gone.
    pub fn release(&mut self, bytes: usize) -> Result<(), ForwardError> {
        Ok(self.body.flow_control().release_capacity(bytes)?)
    }

    /// The end, when the body has ended.
    ///
    /// # Errors
    /// When the stream or its connection ends.
    pub async fn trailers(&mut self) -> Result<HeaderMap, ForwardError> {
        Ok(self.body.trailers().await?.unwrap_or_default())
    }

    /// Waits for the first bytes of the body, or the end: etcd does not say ahead that there is none.
    ///
    /// # Errors
    /// When the stream or its connection ends.
    pub async fn look_ahead(&mut self) -> Result<(), ForwardError> {
        if self.trailers_only.is_some() {
            return Ok(());
        }
        self.ahead = self.chunk().await?;
        if self.ahead.is_none() {
            self.trailers_only = Some(self.trailers().await?);
        }
        Ok(())
    }
}

/// Why there is no answer; each says who is to blame and what the client hears.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// No member can be reached; nothing was sent.
    #[error("etcd cannot be reached")]
    Unreachable,
    /// Every connection to etcd is full; nothing was sent.
    #[error("every connection to etcd is full")]
    Full,
    /// The connection broke; the request may or may not have run.
    #[error("the connection to etcd broke: {0}")]
    Broken(#[from] h2::Error),
    /// Something that is not gRPC answered.
    #[error("etcd answered with HTTP status {0}")]
    NotGrpc(StatusCode),
    /// An answer that has to be looked into is not what it should be, or is too large.
    #[error("etcd's answer cannot be read")]
    Unreadable,
    /// etcd does not let the user in as which the identity reaches it; nothing was sent.
    #[error("etcd refuses the user as which this identity reaches it")]
    LoginRefused,
    /// There is no password for the user as which the identity reaches etcd; nothing was sent.
    #[error("no password is known for the user as which this identity reaches etcd")]
    NoPassword,
    /// etcd took neither the token nor the one after it; nothing has run.
    #[error("etcd does not take the token of the user as which this identity reaches it")]
    TokenRefused,
    /// The answer did not come in time; the request may or may not have run.
    #[error("etcd did not answer in time")]
    TimedOut,
    /// The permit is for another RPC than the stream, or the record is another call's: a mistake of
    /// ours, and nothing was sent.
    #[error("internal: permit, record and call do not belong together")]
    Mismatch,
}

/// Sends the permit's request and waits for the head of the answer.
///
/// # Errors
/// When there is none. Nothing that may have run is ever sent twice: only a client knows whether that is
/// safe.
pub async fn forward(
    pool: &Pool,
    permit: &Permit,
    recorded: &Recorded,
    call: CallId,
    metadata: &Metadata,
    token: Option<&Token>,
) -> Result<Reply, ForwardError> {
    if recorded.call() != call {
        return Err(ForwardError::Mismatch);
    }
    let mut slot = slot(pool, permit.rpc()).await?;
    let request = request(permit.rpc(), &slot, metadata, token)?;
    std::future::poll_fn(|context| slot.sender.poll_ready(context)).await?;
    let (response, mut stream) = slot.sender.send_request(request, false)?;
    let message = framed(permit.body());
    if message.len() <= AT_ONCE_BYTES_MAX {
        stream.send_data(message, true)?;
    } else {
        // On the heap: most messages are short, and the future of their calls stays small.
        Box::pin(send_all(&mut stream, message, true)).await?;
    }
    let (head, body) = response.await?.into_parts();
    if head.status != StatusCode::OK {
        return Err(ForwardError::NotGrpc(head.status));
    }
    let trailers_only = body.is_end_stream().then_some(head.headers);
    Ok(Reply { trailers_only, body, ahead: None, _slot: slot })
}

pub(super) async fn slot(pool: &Pool, rpc: Rpc) -> Result<Slot, ForwardError> {
    pool.slot(rpc.is_open_ended()).await.map_err(|reason| match reason {
        NoSlot::Unreachable => ForwardError::Unreachable,
        NoSlot::Full => ForwardError::Full,
    })
}

pub(super) fn request(
    rpc: Rpc,
    slot: &Slot,
    metadata: &Metadata,
    token: Option<&Token>,
) -> Result<Request<()>, ForwardError> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = slot.uris.of(rpc).ok_or(ForwardError::Mismatch)?;
    *request.version_mut() = http::Version::HTTP_2;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    metadata.write(headers);
    if let Some(token) = token {
        headers.insert("token", token.header().clone());
    }
    Ok(request)
}

/// Sends bytes as the receiver has room for them. h2 buffers without bound what is sent without
/// capacity, so a reader that stops must stop the writer here.
///
/// # Errors
/// When the stream or its connection ends.
pub async fn send_all(
    stream: &mut SendStream<Bytes>,
    mut bytes: Bytes,
    end: bool,
) -> Result<(), h2::Error> {
    loop {
        stream.reserve_capacity(bytes.len());
        let room = stream.capacity();
        if room >= bytes.len() {
            return stream.send_data(bytes, end);
        }
        if room > 0 {
            stream.send_data(bytes.split_to(room), false)?;
            continue;
        }
        std::future::poll_fn(|context| match stream.poll_capacity(context) {
            Poll::Ready(Some(Ok(_))) => Poll::Ready(Ok(())),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(error)),
            Poll::Ready(None) => Poll::Ready(Err(h2::Reason::CANCEL.into())),
            Poll::Pending => Poll::Pending,
        })
        .await?;
    }
}
