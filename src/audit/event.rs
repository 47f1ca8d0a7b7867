//! What is recorded. These types are ours; how they are written is `line`'s.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::etcd::Touches;
use crate::etcd::response::ResponseFacts;
use crate::identity::CertificateFacts;

/// A connection of this process, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId(pub u64);

/// A call of a connection, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallId {
    /// Which connection.
    pub connection: ConnectionId,
    /// Which of its calls.
    pub call: u64,
}

/// One record, before it has a sequence number.
#[derive(Clone, Debug)]
pub struct Record {
    /// When, since 1970.
    pub time: Duration,
    /// What.
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// ringfence begins.
    ProcessStart {
        /// Its version.
        version: &'static str,
        /// How many identities and rules are in force.
        identities: usize,
        /// Rules in all roles.
        rules: usize,
    },
    /// ringfence ends in good order.
    ProcessStop,
    /// A handshake succeeded; later records refer to it by id.
    ConnectionOpen {
        /// Its id.
        connection: ConnectionId,
        /// From where.
        source: SocketAddr,
        /// `TLSv1.3` or `TLSv1.2`.
        tls: &'static str,
        /// The named CA.
        authority: Arc<str>,
        /// What the certificate says, unless it cannot be read.
        facts: Option<Arc<CertificateFacts>>,
        /// Who it is, or why it is nobody.
        principal: Result<Arc<str>, String>,
    },
    /// Connections that came to nothing, folded: the first of a kind, then counts.
    ConnectionRefused {
        /// From where; absent when it stands for more than is told apart.
        source: Option<super::fold::Source>,
        /// A short, fixed name.
        reason: &'static str,
        /// What was said about the first.
        detail: String,
        /// How many.
        count: u64,
    },
    /// A connection ended.
    ConnectionClose {
        /// Its id.
        connection: ConnectionId,
        /// How many calls it made; absent when ringfence ended before it did.
        calls: Option<u64>,
    },
    /// A decision, recorded before anything is forwarded.
    Decision(DecisionEvent),
    /// What became of an allowed call.
    Outcome {
        /// Which call.
        call: CallId,
        /// What became of it.
        outcome: Outcome,
    },
}

/// A decision on one call.
#[derive(Clone, Debug)]
pub struct DecisionEvent {
    /// Which call.
    pub call: CallId,
    /// Who asks; absent when the certificate is nobody.
    pub principal: Option<Arc<str>>,
    /// The path from the catalog, or as the client sent it (cut) when it is not in there.
    pub path: Path,
    /// What was decided.
    pub verdict: Verdict,
    /// All that the request does; empty when it could not be read.
    pub touches: Touches,
    /// Bytes of the request's message.
    pub request_bytes: usize,
}

/// A path in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// From the catalog.
    Known(&'static str),
    /// What a client said, cut to [`PATH_BYTES_MAX`].
    Unknown(String),
}

/// The most bytes of an unknown path that are kept.
pub const PATH_BYTES_MAX: usize = 256;

/// What was decided.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Allowed, by these rules: one per touch.
    Allow(SmallVec<[Arc<str>; 2]>),
    /// Denied by policy: why, and the rule if one said so.
    Deny {
        /// A short, fixed name.
        reason: &'static str,
        /// The deny rule.
        rule: Option<Arc<str>>,
        /// The position of the touch without a grant.
        touch: usize,
    },
    /// Refused before policy was asked.
    Refuse {
        /// A short, fixed name.
        reason: &'static str,
        /// What the client was told.
        detail: String,
    },
}

/// What became of an allowed call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// gRPC status towards the client; absent when it never got one.
    pub status: Option<u16>,
    /// Why it ended without etcd's own status: a short, fixed name.
    pub fault: Option<&'static str>,
    /// What etcd's reply says of itself.
    pub facts: ResponseFacts,
    /// Bytes of the reply.
    pub response_bytes: u64,
    /// From the decision to the end.
    pub latency: Duration,
}

impl Record {
    /// About how many bytes the record keeps in memory and will fill on disk.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        const BASE: usize = 256;
        match &self.event {
            Event::Decision(decision) => {
                let keys: usize = decision.touches.iter().map(touch_bytes).sum();
                BASE + keys + decision.touches.len() * 96
            }
            Event::ConnectionOpen { .. } => BASE * 8,
            Event::ProcessStart { .. }
            | Event::ProcessStop
            | Event::ConnectionRefused { .. }
            | Event::ConnectionClose { .. }
            | Event::Outcome { .. } => BASE,
        }
    }
}

fn touch_bytes(touch: &crate::etcd::Touch) -> usize {
    match touch {
        crate::etcd::Touch::Key { range, .. } => {
            let end = match range.end() {
                crate::etcd::RangeEnd::Before(end) => end.as_bytes().len(),
                crate::etcd::RangeEnd::Point | crate::etcd::RangeEnd::Infinity => 0,
            };
            range.start().as_bytes().len() + end
        }
        crate::etcd::Touch::Store(_) | crate::etcd::Touch::AttachLease(_) => 0,
    }
}
