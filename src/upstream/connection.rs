//! One HTTP/2 connection to one member.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::{Ping, PingPong};
use http::Uri;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::{TcpStream, UnixStream};

use super::{Config, Endpoint};
use crate::etcd::Rpc;
use crate::metrics::Metrics;
use crate::tls::Connector;

/// What one reply may have under way before its client has taken it. A stopped reader holds this
/// much memory and no more.
pub(super) const STREAM_WINDOW_BYTES: u32 = 128 * 1024;
/// What h2 counts an unread DATA frame of less at. Frames are taken off the connection as they come
/// (`proxy::outbox`), so few are unread at a time; but a burst of small ones, as large as the windows
/// allow, must not end the connection that others share.
const DATA_FRAME_OVERHEAD_BYTES: usize = 256;

/// What is read off the socket at once; TLS alone reads 4 KiB, a part of what many calls are answered with.
const READ_BYTES: usize = 16 * 1024;

/// How often a connection with open calls is asked whether it is still there, and for how long.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// A live connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: SendRequest<Bytes>,
    pub(super) in_flight: Rc<Cell<u32>>,
    pub(super) alive: Rc<Cell<bool>>,
    pub(super) uris: Rc<Uris>,
}

/// The URI of each RPC, made once: paths come from the catalog, never from a client.
#[derive(Debug)]
pub(super) struct Uris(Vec<Uri>);

impl Uris {
    fn new(endpoint: &Endpoint) -> Result<Self, http::Error> {
        let uri = |rpc: &Rpc| {
            Uri::builder()
                .scheme(endpoint.scheme())
                .authority(endpoint.authority())
                .path_and_query(rpc.path())
                .build()
        };
        Ok(Self(Rpc::ALL.iter().map(uri).collect::<Result<_, _>>()?))
    }

    pub(super) fn of(&self, rpc: Rpc) -> Option<Uri> {
        self.0.get(rpc.index()).cloned()
    }
}

/// Why a connection did not come up.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("no answer in time")]
    Timeout,
    #[error("it ended the connection without an answer ({error}); {hint}")]
    NoAnswer { error: String, hint: &'static str },
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Http2(#[from] h2::Error),
    #[error("{0}")]
    Uri(#[from] http::Error),
    #[error("{0}")]
    Http1(#[from] hyper::Error),
    #[error("no certificate material for https")]
    NoConnector,
}

pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// Connects within the deadline, to a member that answers; the connection is driven by a task of this
/// core.
pub(super) async fn connect(
    config: &Config,
    endpoint: &Endpoint,
    metrics: &Arc<Metrics>,
) -> Result<Connection, ConnectError> {
    let connecting = establish(config, endpoint, metrics);
    let connected = tokio::time::timeout(config.connect_timeout, connecting).await;
    connected.unwrap_or(Err(ConnectError::Timeout))
}

/// Opens the socket, and shakes hands where the endpoint is https.
pub(super) async fn open(
    endpoint: &Endpoint,
    connector: Option<&Connector>,
) -> Result<Box<dyn Stream>, ConnectError> {
    Ok(match endpoint {
        Endpoint::Unix { path } => Box::new(UnixStream::connect(path).await?),
        Endpoint::Http { authority } => {
            let stream = TcpStream::connect(authority.as_str()).await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
        Endpoint::Https { authority, name } => {
            let connector = connector.ok_or(ConnectError::NoConnector)?;
            let stream = TcpStream::connect(authority.as_str()).await?;
            stream.set_nodelay(true)?;
            let stream = BufReader::with_capacity(READ_BYTES, stream);
            Box::new(connector.connect(name.clone(), stream).await?)
        }
    })
}

async fn establish(
    config: &Config,
    endpoint: &Endpoint,
    metrics: &Arc<Metrics>,
) -> Result<Connection, ConnectError> {
    let stream = open(endpoint, config.connector.as_ref()).await?;
    let (sender, mut connection) = handshake(config, stream).await?;
    let pings = await_first_word(&mut connection, endpoint).await?;
    let alive = Rc::new(Cell::new(true));
    let for_task = Rc::clone(&alive);
    let metrics = Arc::clone(metrics);
    metrics.upstream_connections.inc();
    let name = endpoint.to_string();
    let in_flight: Rc<Cell<u32>> = Rc::default();
    let calls = Rc::clone(&in_flight);
    tokio::task::spawn_local(async move {
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                tracing::warn!(endpoint = name, %error, "a connection to etcd ended");
            },
            () = until_silent(pings, &calls) => {
                tracing::warn!(endpoint = name, "a connection to etcd is silent; it is given up");
            }
        }
        for_task.set(false);
        metrics.upstream_connections.dec();
    });
    let uris = Rc::new(Uris::new(endpoint)?);
    Ok(Connection { sender, in_flight, alive, uris })
}

/// Waits until a PING is not answered, so that calls do not go on waiting for a member that is gone
/// without a word. etcd ends connections that PING more often than every 5 s, or while no call is
/// open (server/embed, `GRPCKeepAliveMinTime`).
async fn until_silent(mut pings: PingPong, calls: &Cell<u32>) {
    loop {
        tokio::time::sleep(PING_EVERY).await;
        if calls.get() > 0 {
            let pong = tokio::time::timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await;
            if !matches!(pong, Ok(Ok(_))) {
                return;
            }
        }
    }
}

type Http2 = (SendRequest<Bytes>, h2::client::Connection<Box<dyn Stream>, Bytes>);

async fn handshake(config: &Config, stream: Box<dyn Stream>) -> Result<Http2, h2::Error> {
    let calls = config.calls_per_connection;
    let per_stream = STREAM_WINDOW_BYTES as usize * DATA_FRAME_OVERHEAD_BYTES;
    Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW_BYTES)
        // One stopped reader must not take the window of all.
        .initial_connection_window_size(STREAM_WINDOW_BYTES.saturating_mul(calls + 1))
        .max_send_buffer_size(256 * 1024)
        // A client that resets its calls makes us reset ours; the frames that are still on their way
        // then are no reason to end a connection that others share.
        .max_local_error_reset_streams(None)
        .data_frame_budget(per_stream.saturating_mul(calls as usize))
        .handshake(stream)
        .await
}

/// Waits until etcd has answered a PING. Up to here only we have spoken: in TLS 1.3 a server refuses
/// our certificate after the handshake, and one that speaks another protocol says so later still.
async fn await_first_word(
    connection: &mut h2::client::Connection<Box<dyn Stream>, Bytes>,
    endpoint: &Endpoint,
) -> Result<PingPong, ConnectError> {
    let ended = match connection.ping_pong() {
        None => Ok(()),
        Some(mut pings) => tokio::select! {
            pong = pings.ping(Ping::opaque()) => match pong {
                Ok(_) => return Ok(pings),
                Err(error) => Err(error),
            },
            ended = connection => ended,
        },
    };
    let error = ended.map_or_else(|error| error.to_string(), |()| "closed".to_owned());
    Err(ConnectError::NoAnswer { error, hint: endpoint.hint() })
}
