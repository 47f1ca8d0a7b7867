//! One client connection: handshake, who it is, then its streams until it ends.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use h2::server::{Builder, Connection};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

use super::share::Share;
use super::{Core, call, http1};
use crate::audit::{ConnectionId, Event, OpenConnection, QueueShare, Record};
use crate::clock;
use crate::identity::CertificateFacts;
use crate::policy::{Identification, NoPrincipal};
use crate::tls::{Accepted, HandshakeRefusal, Protocol};

/// What a client may send on one stream before ringfence has taken it.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// And on all streams of a connection: what a client that never finishes a message can make us keep.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// What h2 may buffer of a reply; more waits at etcd.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Streams that a client opened and reset before they were served (CVE-2023-44487).
const RESET_STREAMS_MAX: usize = 64;

/// Who a connection is, for all its calls.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) connection: ConnectionId,
    /// Who, with what it may do; or why it is nobody.
    pub(super) identified: Result<Identified, String>,
    /// The part of the room for audit records that its calls use.
    pub(super) queue_share: Arc<QueueShare>,
}

#[derive(Debug)]
pub(super) struct Identified {
    pub(super) name: Arc<str>,
    pub(super) identification: Identification,
    pub(super) share: Rc<Share>,
    /// Its part of the room for audit records.
    pub(super) queue_share: Arc<QueueShare>,
}

/// Serves a connection until it ends, or until `draining` turns true and its calls have ended.
/// `handshake_slot` is held until the handshake is over.
pub async fn serve<S>(
    core: Rc<Core>,
    stream: TcpStream,
    source: SocketAddr,
    connection: ConnectionId,
    handshake_slot: S,
    draining: watch::Receiver<bool>,
) {
    let accepted = core.acceptor.accept(stream).await;
    drop(handshake_slot);
    let accepted = match accepted {
        Ok(accepted) => accepted,
        Err(refusal) => return note_refusal(&core, source, &refusal),
    };
    core.metrics.handshakes.inc();
    core.metrics.connections.inc();
    let client = identify(&core, &accepted, source, connection).await;
    if let Some((client, open)) = client {
        let calls = match accepted.protocol {
            Protocol::Http2 => serve_http2(&core, client, accepted.stream, draining).await,
            Protocol::Http1 => http1::refuse_all(&core, client, accepted.stream).await,
        };
        open.close(calls);
    }
    core.metrics.connections.dec();
}

fn note_refusal(core: &Core, source: SocketAddr, refusal: &HandshakeRefusal) {
    core.metrics.count_refused_handshake(refusal.reason);
    let subject = refusal.leaf.as_ref().and_then(|leaf| CertificateFacts::read(leaf).ok());
    let detail = match subject {
        Some(facts) => format!("{} ({})", refusal.detail, facts.subject),
        None => refusal.detail.clone(),
    };
    let recorder = core.recorder.all_cores();
    recorder.record_refusal(&core.refusals, source.ip(), refusal.reason, &detail);
}

/// Records the connection; `None` when it cannot be recorded, and then it is not served.
async fn identify(
    core: &Core,
    accepted: &Accepted,
    source: SocketAddr,
    connection: ConnectionId,
) -> Option<(Rc<Client>, OpenConnection)> {
    let facts = CertificateFacts::read(&accepted.leaf);
    let identified: Result<Identification, String> = match &facts {
        Ok(facts) => core
            .policy
            .identify(&accepted.authority, facts)
            .map_err(|error: NoPrincipal| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let recorder = core.recorder.all_cores();
    let identified = identified.map(|identification| {
        let name = identification.principal.to_string().into();
        let share = core.shares.borrow_mut().of(&identification.principal);
        let queue_share = recorder.share_of(Some(&name));
        Identified { name, identification, share, queue_share }
    });
    let queue_share = match &identified {
        Ok(identified) => Arc::clone(&identified.queue_share),
        Err(_) => recorder.share_of(None),
    };
    let event = Event::ConnectionOpen {
        connection,
        source,
        tls: accepted.version,
        authority: Arc::clone(&accepted.authority),
        facts: facts.ok().map(Arc::new),
        principal: identified
            .as_ref()
            .map(|identified| Arc::clone(&identified.name))
            .map_err(Clone::clone),
    };
    let record = Record { time: clock::since_epoch(), event };
    let open = core.recorder.open(&queue_share, connection, record).await.ok()?;
    Some((Rc::new(Client { connection, identified, queue_share }), open))
}

async fn serve_http2(
    core: &Rc<Core>,
    client: Rc<Client>,
    stream: TlsStream<TcpStream>,
    mut draining: watch::Receiver<bool>,
) -> u64 {
    let handshake = Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(core.limits.streams_per_connection)
        .max_header_list_size(core.limits.header_list_bytes)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .handshake::<_, Bytes>(stream);
    let handshake = tokio::time::timeout(core.limits.handshake_timeout, handshake).await;
    let Ok(Ok(mut connection)) = handshake else {
        return 0;
    };
    let mut calls = 0;
    let mut told = false;
    loop {
        tokio::select! {
            biased;
            next = next_stream(&mut connection) => {
                let Some((request, respond)) = next else { return calls };
                calls += 1;
                let call = crate::audit::CallId { connection: client.connection, call: calls };
                let serving = call::serve(Rc::clone(core), Rc::clone(&client), call, request, respond);
                tokio::task::spawn_local(serving);
            }
            _ = draining.wait_for(|draining| *draining), if !told => {
                told = true;
                connection.graceful_shutdown();
            }
        }
    }
}

type Stream = (http::Request<h2::RecvStream>, h2::server::SendResponse<Bytes>);

/// The next stream; `None` when the connection has ended, for whatever reason.
async fn next_stream(connection: &mut Connection<TlsStream<TcpStream>, Bytes>) -> Option<Stream> {
    std::future::poll_fn(|context| match connection.poll_accept(context) {
        Poll::Ready(Some(Ok(stream))) => Poll::Ready(Some(stream)),
        Poll::Ready(Some(Err(error))) => {
            tracing::debug!(%error, "a client connection ended");
            Poll::Ready(None)
        }
        Poll::Ready(None) => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}
