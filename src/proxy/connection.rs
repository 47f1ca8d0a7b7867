//! One client connection: handshake, who it is, then its streams until it ends.

use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tokio::net::TcpStream;

use super::acting::ActsAs;
use super::authorize::no_longer_allowed;
use super::ending::Ending;
use super::judge::{Hub, Member, Shown};
use super::rate::{PerSecond, Rate};
use super::share::Share;
use super::{Core, http1, http2};
use crate::audit::{ConnectionId, CoreRecorder, CoreShare, Event, OpenConnection, Record};
use crate::clock;
use crate::etcd::Touches;
use crate::identity::CertificateFacts;
use crate::identity::certificate::CertificateError;
use crate::policy::{Identification, NoPrincipal};
use crate::tls::{Accepted, HandshakeRefusal, Protocol};

/// What holds for the calls of a connection, until it is judged again.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) connection: ConnectionId,
    /// The generation that was asked.
    pub(super) core: Rc<Core>,
    /// The CA that vouches.
    pub(super) authority: Arc<str>,
    /// Who, with what it may do; or why it is nobody.
    pub(super) identified: Result<Rc<Identified>, String>,
    /// Why the connection has to end, if it has to.
    pub(super) ending: Option<Ending>,
    /// The part of the room for audit records that its calls use.
    pub(super) queue_share: CoreShare,
    /// Where later judgements come from.
    pub(super) member: Weak<Member>,
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

impl Client {
    /// The principal's name, for people.
    pub(super) fn name(&self) -> &str {
        self.identified.as_ref().map_or("nobody", |identified| &identified.name)
    }

    /// What holds for the connection now; `None` when it has ended.
    pub(super) fn newest(&self) -> Option<Rc<Self>> {
        self.member.upgrade().map(|member| member.client())
    }

    /// Why what it was allowed may not be forwarded any more, if it may not: a short, fixed name.
    pub(super) fn forbids_now(self: &Rc<Self>, touches: &Touches) -> Option<&'static str> {
        let newest = self.newest()?;
        if Rc::ptr_eq(&newest, self) {
            return None;
        }
        match &newest.identified {
            Ok(now) => no_longer_allowed(now, touches).map(|_| "rule_removed"),
            Err(_) => Some(newest.ending.map_or("identity_removed", Ending::name)),
        }
    }

    /// The same connection, which has to end: from now on it is nobody.
    pub(super) fn ended(&self, core: &Rc<Core>, ending: Ending) -> Self {
        let why = ending.name().to_owned();
        Self { core: Rc::clone(core), identified: Err(why), ending: Some(ending), ..self.clone() }
    }
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
    /// Who a certificate is that verified under that CA; or why it is nobody.
    pub(super) fn find(
        core: &Core,
        authority: &str,
        facts: Result<&CertificateFacts, &CertificateError>,
    ) -> Result<Rc<Self>, String> {
        let facts = facts.map_err(ToString::to_string)?;
        let found = core.policy.identify(authority, facts);
        let identification = found.map_err(|nobody: NoPrincipal| nobody.to_string())?;
        Ok(Rc::new(Self::new(core, identification, &core.recorder)))
    }

    /// Whether it is the same principal and reaches etcd as the same; rights may differ.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.identification.principal == other.identification.principal
            && self.acts_as.is_same(&other.acts_as)
    }

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

/// Serves a connection until it ends. `handshake_slot` is held until the handshake is over.
pub async fn serve<S>(
    hub: Rc<Hub>,
    stream: TcpStream,
    source: SocketAddr,
    connection: ConnectionId,
    handshake_slot: S,
) {
    let core = hub.core();
    let accepted = core.acceptor.accept(stream).await;
    drop(handshake_slot);
    let accepted = match accepted {
        Ok(accepted) => accepted,
        Err(refusal) => return note_refusal(&core, source, &refusal),
    };
    core.metrics.handshakes.inc();
    core.metrics.connections.inc();
    let Accepted { stream, authority, leaf, intermediates, protocol, version } = accepted;
    let shown = Shown { leaf, intermediates };
    let metrics = Arc::clone(&core.metrics);
    if let Some((member, open)) =
        identify(&hub, core, authority, shown, (source, connection), version).await
    {
        let (calls, ending) = match protocol {
            Protocol::Http2 => http2::serve(&member, stream).await,
            Protocol::Http1 => http1::serve(&member, stream).await,
        };
        metrics.count_ended_connection(ending.name());
        open.close(calls, ending.name());
    }
    hub.leave(connection);
    metrics.connections.dec();
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

/// Finds out who it is, and records the connection; `None` when it cannot be recorded, and then it is not served.
async fn identify(
    hub: &Hub,
    known: Rc<Core>,
    mut authority: Arc<str>,
    shown: Shown,
    (source, connection): (SocketAddr, ConnectionId),
    version: &'static str,
) -> Option<(Rc<Member>, OpenConnection)> {
    // From here to `join` nothing waits: what holds now is what is judged, and what comes later finds a member.
    let core = hub.core();
    let mut ending = None;
    if !Rc::ptr_eq(&known, &core) {
        match shown.verify(&core, clock::since_epoch()) {
            Ok(name) => authority = name,
            Err(found) => ending = Some(found),
        }
    }
    // A connection that stays must not keep the generation that it came under: policy, CAs, lists.
    drop(known);
    let facts = CertificateFacts::read(&shown.leaf);
    let identified = match ending {
        Some(ending) => Err(ending.name().to_owned()),
        None => Identified::find(&core, &authority, facts.as_ref()),
    };
    if let (Ok(identified), Ok(facts)) = (&identified, &facts) {
        let identity = identified.identification.principal.identity();
        let (end, now) = (facts.not_after_seconds, clock::since_epoch());
        core.metrics.certificates().note_shown(identity, end, now);
    }
    let queue_share = match &identified {
        Ok(identified) => identified.queue_share.clone(),
        Err(_) => core.recorder.share_of(None),
    };
    let event = Event::ConnectionOpen {
        connection,
        source,
        tls: version,
        authority: Arc::clone(&authority),
        facts: facts.ok().map(Arc::new),
        principal: identified
            .as_ref()
            .map(|identified| Arc::clone(&identified.name))
            .map_err(Clone::clone),
        repeated: false,
    };
    let record = Record { time: clock::since_epoch(), event };
    let member = Weak::new();
    let share = queue_share.clone();
    let recorder = core.recorder.clone();
    let client = Client { connection, core, authority, identified, ending, queue_share, member };
    let member = hub.join(shown, client);
    let open = recorder.open(&share, connection, &record).await.ok()?;
    Some((member, open))
}
