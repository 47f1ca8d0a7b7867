//! One client connection: handshake, who it is, then its streams until it ends.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::watch;

use super::acting::ActsAs;
use super::ending::Ending;
use super::rate::{PerSecond, Rate};
use super::share::Share;
use super::{Core, http1, http2};
use crate::audit::{ConnectionId, CoreRecorder, CoreShare, Event, OpenConnection, Record};
use crate::clock;
use crate::identity::CertificateFacts;
use crate::policy::{Identification, NoPrincipal};
use crate::tls::{Accepted, HandshakeRefusal, Protocol};

/// Who a connection is, for all its calls.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) connection: ConnectionId,
    /// Who, with what it may do; or why it is nobody.
    pub(super) identified: Result<Identified, String>,
    /// The part of the room for audit records that its calls use.
    pub(super) queue_share: CoreShare,
}

#[derive(Debug)]
pub(super) struct Identified {
    pub(super) name: Arc<str>,
    pub(super) identification: Identification,
    pub(super) share: Rc<Share>,
    pub(super) bounds: Bounds,
    pub(super) acts_as: ActsAs,
    /// `None` is no limit.
    rate: Option<Arc<Rate>>,
    /// Its part of the room for audit records.
    pub(super) queue_share: CoreShare,
}

/// What this principal may use at a time, per core, and how much at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) calls: u32,
    pub(super) streams: u32,
    pub(super) watches: u32,
    /// Bytes of one reply of a call of KV; 0 is no limit.
    pub(super) reply_bytes: u64,
}

impl Identified {
    fn new(core: &Core, identification: Identification, recorder: &CoreRecorder) -> Self {
        let name: Arc<str> = identification.principal.to_string().into();
        let share = core.shares.borrow_mut().of(&identification.principal);
        let queue_share = recorder.share_of(Some(&name));
        let (own, limits) = (identification.limits, &core.limits);
        let bounds = Bounds {
            calls: own.calls.unwrap_or(limits.calls_per_principal),
            streams: own.streams.unwrap_or(limits.streams_per_principal),
            watches: own.watches.unwrap_or(limits.watches_per_principal),
            reply_bytes: own.reply_bytes.unwrap_or(limits.reply_bytes),
        };
        let requests =
            own.requests_per_second.map_or(limits.requests_per_second_per_principal, u64::from);
        let bytes = own.bytes_per_second.unwrap_or(limits.bytes_per_second_per_principal);
        let per_second = PerSecond { requests, bytes };
        let rate = core.rates.of(&identification.principal, per_second, core.started.elapsed());
        let acts_as = ActsAs::new(core, &identification.acts_as);
        Self { name, identification, share, bounds, acts_as, rate, queue_share }
    }

    /// Counts bytes of a request or a reply.
    pub(super) fn charge_bytes(&self, core: &Core, bytes: usize) {
        if let Some(rate) = &self.rate {
            rate.charge_bytes(core.started.elapsed(), bytes);
        }
    }

    /// Whether a reply may have so many bytes; counts it when it may not.
    pub(super) fn takes_reply(&self, core: &Core, bytes: u64) -> bool {
        let takes = self.bounds.reply_bytes == 0 || bytes <= self.bounds.reply_bytes;
        if !takes {
            core.metrics.throttled.inc();
        }
        takes
    }

    /// Counts one request; false when the principal makes too many.
    pub(super) fn takes_request(&self, core: &Core) -> bool {
        let Some(rate) = &self.rate else { return true };
        let taken = rate.take(core.started.elapsed());
        if !taken {
            core.metrics.throttled.inc();
        }
        taken
    }
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
        let (calls, ending) = match accepted.protocol {
            Protocol::Http2 => http2::serve(&core, client, accepted.stream, draining).await,
            Protocol::Http1 => {
                (http1::serve(&core, client, accepted.stream, draining).await, Ending::Http1)
            }
        };
        core.metrics.count_ended_connection(ending.name());
        open.close(calls, ending.name());
    }
    core.metrics.connections.dec();
}

fn note_refusal(core: &Core, source: SocketAddr, refusal: &HandshakeRefusal) {
    core.metrics.count_refused_handshake(refusal.reason);
    let facts = refusal.leaf.as_ref().and_then(|leaf| CertificateFacts::read(leaf).ok());
    let detail = match facts {
        // The subject first: it is bounded, and the end may be cut.
        Some(facts) => format!("subject `{}`: {}", facts.subject, refusal.detail),
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
    let recorder = &core.recorder;
    let identified =
        identified.map(|identification| Identified::new(core, identification, recorder));
    let queue_share = match &identified {
        Ok(identified) => identified.queue_share.clone(),
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
        repeated: false,
    };
    let record = Record { time: clock::since_epoch(), event };
    let open = core.recorder.open(&queue_share, connection, &record).await.ok()?;
    Some((Rc::new(Client { connection, identified, queue_share }), open))
}
