//! What is recorded. These types are ours; how they are written is `line`'s.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use smallvec::SmallVec;

use super::chain::{Beginning, ChainEvent};
use crate::etcd::response::ResponseFacts;
use crate::etcd::{KeyVerb, RangeEnd, StoredKey, Touch, Touches};
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
        /// How the chain begins.
        beginning: Arc<Beginning>,
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
        /// Said again, because a segment begins.
        repeated: bool,
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
        /// Why it ended: a short, fixed name; absent likewise.
        reason: Option<&'static str>,
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
    /// About the log itself.
    Chain(ChainEvent),
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
    pub touches: RecordedTouches,
    /// Bytes of the request's message.
    pub request_bytes: usize,
}

/// What a request does, as it is recorded.
///
/// Keys are copies, and cut: a slice of the request would keep all of it in memory, value
/// included, for as long as the record waits; and a key may have a megabyte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordedTouches(pub(super) SmallVec<[RecordedTouch; 1]>);

/// One thing that a request does, as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RecordedTouch {
    Key {
        verb: KeyVerb,
        start: RecordedKey,
        end: RecordedEnd,
    },
    /// What names no key.
    Other(Touch),
}

/// A key as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RecordedKey {
    /// At most [`KEY_BYTES_MAX`].
    pub(super) bytes: Box<[u8]>,
    /// What the whole key was, when it was cut.
    pub(super) whole: Option<Box<WholeKey>>,
}

/// What is recorded of a key that was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WholeKey {
    pub(super) length: usize,
    pub(super) sha256: [u8; 32],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RecordedEnd {
    Point,
    Before(RecordedKey),
    Infinity,
}

/// The most bytes of a key in a record.
pub const KEY_BYTES_MAX: usize = 1024;

impl RecordedTouches {
    /// Copies what a record needs.
    #[must_use]
    pub fn new(touches: &Touches) -> Self {
        Self(touches.iter().map(RecordedTouch::new).collect())
    }

    fn weight_bytes(&self) -> usize {
        self.0.iter().map(RecordedTouch::weight_bytes).sum()
    }
}

impl RecordedTouch {
    fn new(touch: &Touch) -> Self {
        match touch {
            Touch::Key { verb, range } => Self::Key {
                verb: *verb,
                start: RecordedKey::new(range.start()),
                end: match range.end() {
                    RangeEnd::Point => RecordedEnd::Point,
                    RangeEnd::Before(end) => RecordedEnd::Before(RecordedKey::new(end)),
                    RangeEnd::Infinity => RecordedEnd::Infinity,
                },
            },
            other @ (Touch::Store(_)
            | Touch::Lease { .. }
            | Touch::CancelWatch(_)
            | Touch::WatchProgress) => Self::Other(other.clone()),
        }
    }

    /// In a line a byte of a key takes up to two; names and quotes come on top.
    fn weight_bytes(&self) -> usize {
        const AROUND: usize = 96;
        let keys = match self {
            Self::Key { start, end: RecordedEnd::Before(end), .. } => {
                start.weight_bytes() + end.weight_bytes()
            }
            Self::Key { start, .. } => start.weight_bytes(),
            Self::Other(_) => 0,
        };
        AROUND + keys
    }
}

impl RecordedKey {
    fn new(key: &StoredKey) -> Self {
        let bytes = key.as_bytes();
        let Some((kept, _)) =
            bytes.split_at_checked(KEY_BYTES_MAX).filter(|(_, cut)| !cut.is_empty())
        else {
            return Self { bytes: bytes.into(), whole: None };
        };
        let mut sha256 = [0; 32];
        let digest = digest::digest(&digest::SHA256, bytes);
        sha256.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
        let whole = WholeKey { length: bytes.len(), sha256 };
        Self { bytes: kept.into(), whole: Some(Box::new(whole)) }
    }

    fn weight_bytes(&self) -> usize {
        2 * self.bytes.len() + self.whole.as_ref().map_or(0, |_| 128)
    }
}

/// A path in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// From the catalog.
    Known(&'static str),
    /// A page of etcd's HTTP side, with the query that is sent.
    Page(String),
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
            Event::Decision(decision) => BASE + decision.touches.weight_bytes(),
            Event::ConnectionOpen { .. } => BASE * 8,
            Event::ConnectionRefused { detail, .. } => BASE + detail.len(),
            Event::ProcessStart { beginning, .. } => BASE * (2 + beginning.after.len()),
            Event::Chain(_) => BASE * 2,
            Event::ProcessStop
            | Event::ConnectionClose { .. }
            | Event::Outcome { .. }
            | Event::StreamEnd { .. } => BASE,
        }
    }
}
