//! What is recorded. These types are ours; how they are written is `line`'s.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::etcd::response::ResponseFacts;
use crate::etcd::{RangeEnd, Touch, Touches};
use crate::identity::CertificateFacts;

/// A connection of this process, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId(pub u64);

/// What a record is about: a call of a connection, one message of a stream, or a step of ringfence's
/// own on behalf of either. All count from 1; 0 is "none".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallId {
    /// Which connection.
    pub connection: ConnectionId,
    /// Which of its calls.
    pub call: u64,
    /// Which of the stream's messages.
    pub message: u64,
    /// Which of ringfence's own steps.
    pub step: u32,
}

impl CallId {
    /// A call of a connection.
    #[must_use]
    pub const fn new(connection: ConnectionId, call: u64) -> Self {
        Self { connection, call, message: 0, step: 0 }
    }

    /// A message of the call, which is a stream.
    #[must_use]
    pub const fn message(self, message: u64) -> Self {
        Self { message, ..self }
    }

    /// A step of ringfence's own on behalf of it.
    #[must_use]
    pub const fn step(self, step: u32) -> Self {
        Self { step, ..self }
    }
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
        /// From where; one address may stand for many (see `fold`).
        source: Option<std::net::IpAddr>,
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
        /// How many calls it made.
        calls: u64,
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
    /// A stream of messages both ways ended.
    StreamEnd {
        /// Which call.
        call: CallId,
        /// How it ended.
        end: StreamEnd,
    },
}

/// How a stream of messages both ways ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamEnd {
    /// gRPC status towards the client; absent when it never got one.
    pub status: Option<u16>,
    /// Why it ended without etcd's own status: a short, fixed name.
    pub fault: Option<&'static str>,
    /// Messages of the client.
    pub requests: u64,
    /// Messages of etcd.
    pub responses: u64,
    /// Bytes of etcd's messages.
    pub response_bytes: u64,
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
    /// What a client said, cut to [`PATH_CHARS_MAX`].
    Unknown(String),
}

/// The most characters of an unknown path that are kept.
pub const PATH_CHARS_MAX: usize = 64;

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
            Event::ConnectionRefused { detail, .. } => BASE + detail.len(),
            Event::ProcessStart { .. }
            | Event::ProcessStop
            | Event::ConnectionClose { .. }
            | Event::Outcome { .. }
            | Event::StreamEnd { .. } => BASE,
        }
    }
}

fn touch_bytes(touch: &Touch) -> usize {
    match touch {
        Touch::Key { range, .. } => {
            let end = match range.end() {
                RangeEnd::Before(end) => end.as_bytes().len(),
                RangeEnd::Point | RangeEnd::Infinity => 0,
            };
            range.start().as_bytes().len() + end
        }
        Touch::Store(_) | Touch::Lease { .. } | Touch::CancelWatch(_) | Touch::WatchProgress => 0,
    }
}
