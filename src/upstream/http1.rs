//! Asks etcd for a permitted, recorded page. There is no other target than the permit's, no header
//! of a client's, and no way to send a body.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Empty;
use hyper::body::{Body as _, Incoming, SizeHint};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::task::JoinHandle;

use super::connection::{ConnectError, open};
use super::{Config, Endpoint};
use crate::audit::{CallId, Recorded};
use crate::metrics::Metrics;
use crate::policy::HttpPermit;
use crate::tls::Connector;

/// Pages under way at a time, per core; each has a connection of its own.
const CONNECTIONS_MAX: u32 = 16;
/// The most bytes of a page; the metrics of a large cluster are a few MiB.
const PAGE_BYTES_MAX: u64 = 64 << 20;
/// What hyper may keep of a reply that its client does not read, and the most of its headers.
const BUFFER_BYTES: usize = 64 * 1024;

/// The way of one core to where members serve plain HTTP. A connection serves one request: probes
/// are rare, and a page that nobody reads holds up no other.
#[derive(Debug)]
pub struct HttpClient {
    endpoints: Vec<Endpoint>,
    connector: Option<Connector>,
    connect_timeout: Duration,
    metrics: Arc<Metrics>,
    under_way: Rc<Cell<u32>>,
}

/// etcd's answer, with its body still to be read.
#[derive(Debug)]
pub struct HttpReply {
    /// As etcd said.
    pub status: StatusCode,
    /// The only header that travels on.
    pub content_type: Option<HeaderValue>,
    /// The body.
    pub body: HttpBody,
}

/// The body of a page. Dropped, it ends the connection.
#[derive(Debug)]
pub struct HttpBody {
    incoming: Incoming,
    bytes_left: u64,
    _connection: Connection,
}

/// Why there is no page, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum HttpForwardError {
    /// No member can be reached; nothing was sent.
    #[error("etcd cannot be reached")]
    Unreachable,
    /// Too many pages are under way; nothing was sent.
    #[error("too many requests are under way")]
    Full,
    /// The connection broke, or what answers does not speak HTTP/1.1.
    #[error("the connection to etcd broke: {0}")]
    Broken(#[from] hyper::Error),
    /// An answer that is none to a GET.
    #[error("etcd answered with HTTP status {0}")]
    Unexpected(StatusCode),
    /// A page larger than any should be.
    #[error("etcd's page is larger than {PAGE_BYTES_MAX} bytes")]
    TooLarge,
    /// The record is another call's, or the target is none: a mistake of ours, nothing was sent.
    #[error("internal error")]
    Internal,
}

/// A place among the pages under way; given up when dropped.
#[derive(Debug)]
struct Slot(Rc<Cell<u32>>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// The task that drives a connection; it ends with this value.
#[derive(Debug)]
struct Connection {
    task: JoinHandle<()>,
    metrics: Arc<Metrics>,
    _slot: Slot,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
        self.metrics.upstream_connections.dec();
    }
}

type Sender = SendRequest<Empty<Bytes>>;

impl HttpClient {
    /// A client that connects for each page.
    #[must_use]
    pub fn new(config: &Config, metrics: Arc<Metrics>) -> Self {
        Self {
            endpoints: config.http_endpoints.clone(),
            connector: config.connector.as_ref().map(Connector::without_protocols),
            connect_timeout: config.connect_timeout,
            metrics,
            under_way: Rc::default(),
        }
    }

    fn slot(&self) -> Option<Slot> {
        let under_way = self.under_way.get();
        (under_way < CONNECTIONS_MAX).then(|| {
            self.under_way.set(under_way + 1);
            Slot(Rc::clone(&self.under_way))
        })
    }

    /// A connection to the first member that takes one.
    async fn connect(
        &self,
        slot: Slot,
    ) -> Result<(Sender, Connection, &Endpoint), HttpForwardError> {
        for endpoint in &self.endpoints {
            let connecting = self.establish(endpoint);
            let connected = tokio::time::timeout(self.connect_timeout, connecting).await;
            match connected.unwrap_or(Err(ConnectError::Timeout)) {
                Ok((sender, task)) => {
                    self.metrics.upstream_connections.inc();
                    let metrics = Arc::clone(&self.metrics);
                    return Ok((sender, Connection { task, metrics, _slot: slot }, endpoint));
                }
                Err(error) => {
                    self.metrics.upstream_connect_failures.inc();
                    // Not a warning: whoever may ask for a page could fill the log.
                    tracing::debug!(%endpoint, %error, "etcd's HTTP side cannot be reached");
                }
            }
        }
        Err(HttpForwardError::Unreachable)
    }

    async fn establish(
        &self,
        endpoint: &Endpoint,
    ) -> Result<(Sender, JoinHandle<()>), ConnectError> {
        let stream = open(endpoint, self.connector.as_ref()).await?;
        let (sender, connection) =
            Builder::new().max_buf_size(BUFFER_BYTES).handshake(TokioIo::new(stream)).await?;
        let task = tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to etcd's HTTP side ended");
            }
        });
        Ok((sender, task))
    }
}

/// Asks for the permit's page and waits for the head of the answer.
///
/// # Errors
/// When there is none. Nothing is ever sent twice.
pub async fn forward_http(
    client: &HttpClient,
    permit: &HttpPermit,
    recorded: &Recorded,
    call: CallId,
) -> Result<HttpReply, HttpForwardError> {
    if recorded.call() != call {
        return Err(HttpForwardError::Internal);
    }
    let slot = client.slot().ok_or(HttpForwardError::Full)?;
    let (mut sender, connection, endpoint) = client.connect(slot).await?;
    let request = request(permit, endpoint).map_err(|_| HttpForwardError::Internal)?;
    let (head, incoming) = sender.send_request(request).await?.into_parts();
    if head.status.is_informational() {
        return Err(HttpForwardError::Unexpected(head.status));
    }
    if incoming.size_hint().lower() > PAGE_BYTES_MAX {
        return Err(HttpForwardError::TooLarge);
    }
    let body = HttpBody { incoming, bytes_left: PAGE_BYTES_MAX, _connection: connection };
    let content_type = head.headers.get(CONTENT_TYPE).cloned();
    Ok(HttpReply { status: head.status, content_type, body })
}

fn request(permit: &HttpPermit, endpoint: &Endpoint) -> Result<Request<Empty<Bytes>>, http::Error> {
    Request::get(permit.request().target())
        .header(HOST, endpoint.authority())
        .header(CONNECTION, "close")
        .body(Empty::new())
}

impl HttpBody {
    /// The next bytes; `None` at the end. Only when they are asked for may etcd send more.
    pub fn poll_chunk(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, HttpForwardError>>> {
        loop {
            let frame = match Pin::new(&mut self.incoming).poll_frame(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Ready(Some(Ok(frame))) => frame,
            };
            // Trailers stay behind, like headers.
            let Ok(chunk) = frame.into_data() else { continue };
            let Some(left) = self.bytes_left.checked_sub(chunk.len() as u64) else {
                return Poll::Ready(Some(Err(HttpForwardError::TooLarge)));
            };
            self.bytes_left = left;
            return Poll::Ready(Some(Ok(chunk)));
        }
    }

    /// How many bytes are still to come, as far as etcd said.
    #[must_use]
    pub fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }

    /// Whether nothing is to come.
    #[must_use]
    pub fn is_end(&self) -> bool {
        self.incoming.is_end_stream()
    }
}
