//! What is recorded. These types are ours; how they are written is `line`'s.

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use smallvec::SmallVec;

use super::chain::{Beginning, ChainEvent};
use super::level::{KeyForm, Level};
use crate::etcd::response::ResponseFacts;
use crate::etcd::{KeyVerb, RangeEnd, StoredKey, Touch, Touches};
use crate::identity::CertificateFacts;
use crate::keyed_hash::{Hashed, KeyedHash};

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
pub struct Record<'a> {
    /// When, since 1970.
    pub time: Duration,
    /// What.
    pub event: Event<'a>,
}

/// What happened. A decision borrows what it says: whoever hands a record over has it put into words at once.
#[derive(Clone, Debug)]
pub enum Event<'a> {
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
        /// What is left out of the log.
        levels: Arc<LevelsInForce>,
    },
    /// Another generation of config, policy and certificates is in force. What was decided before and recorded after may
    /// still be the last one's.
    GenerationStart {
        /// Its number; that of the start is 1.
        generation: u64,
        /// How many identities are in force.
        identities: usize,
        /// Rules in all roles.
        rules: usize,
    },
    /// Another set of revocations is in force.
    RevocationStart {
        /// Revocation lists.
        lists: usize,
        /// Certificates that they revoke.
        revoked: usize,
        /// Keys, certificates and serial numbers that deny lists name.
        denied: usize,
    },
    /// A certificate of the config is about to end, or has ended.
    CertificateEnds {
        /// The setting that names it.
        setting: String,
        /// Its last second, since 1970.
        not_after_seconds: i64,
        /// Whether that is over.
        is_over: bool,
    },
    /// ringfence ends in good order.
    ProcessStop {
        /// Requests that rules left out of the log.
        left_out: u64,
    },
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
    Decision(DecisionEvent<'a>),
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

/// The rules that say what is recorded, as the first record of a chain shows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LevelsInForce {
    /// In their order.
    pub rules: Vec<String>,
    /// The name of the key that hashes keys or values, if they are.
    pub hash_key: Option<String>,
    /// Whether values are hashed.
    pub value_hashes: bool,
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
pub struct DecisionEvent<'a> {
    /// Which call.
    pub call: CallId,
    /// Who asks; absent when the certificate is nobody.
    pub principal: Option<&'a str>,
    /// The path from the catalog, or as the client sent it (cut) when it is not in there.
    pub path: Path,
    /// What was decided.
    pub verdict: Verdict<'a>,
    /// All that the request does; empty when it could not be read.
    pub touches: RecordedTouches<'a>,
    /// Bytes of the request's message.
    pub request_bytes: usize,
}

fn certificate_bytes(facts: &CertificateFacts) -> usize {
    const ADDRESS_BYTES: usize = 48;
    let names = facts.dns.iter().chain(&facts.uris).map(|name| name.len() + 3);
    let known = facts.subject.len() + facts.issuer.len() + facts.serial.len();
    known + names.sum::<usize>() + facts.ips.len() * ADDRESS_BYTES
}

impl DecisionEvent<'_> {
    /// Bytes of what is as long as clients, certificates and policies make it.
    fn text_bytes(&self) -> usize {
        let principal = self.principal.map_or(0, str::len);
        let path = match &self.path {
            Path::Known(_) => 0,
            Path::Page(path) | Path::Unknown(path) => path.len(),
        };
        let verdict = match &self.verdict {
            Verdict::Allow(rules) => rules.iter().map(|rule| rule.len() + 3).sum(),
            Verdict::Deny { rule, .. } => rule.map_or(0, str::len),
            Verdict::Refuse { detail, .. } => detail.len(),
        };
        principal + path + verdict + self.touches.weight_bytes()
    }
}

/// What a request does, as it is recorded.
///
/// Keys are cut: one may have a megabyte. What waits to be written are the words, so nothing of the request, value
/// included, is kept in memory by its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedTouches<'a> {
    pub(super) touches: SmallVec<[RecordedTouch<'a>; 1]>,
    /// The least of those of its touches.
    pub(super) level: Level,
    /// How many alike it stands for.
    pub(super) one_in: NonZeroU32,
}

/// One thing that a request does, as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RecordedTouch<'a> {
    Key {
        verb: KeyVerb,
        start: RecordedKey<'a>,
        end: RecordedEnd<'a>,
        /// The keyed hash of what is written.
        value: Option<Box<Hashed>>,
    },
    /// What names no key.
    Other(&'a Touch),
    /// What is not shown but for its verb.
    Verb(&'static str),
}

/// A key as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RecordedKey<'a> {
    Plain {
        /// At most [`KEY_BYTES_MAX`].
        bytes: &'a [u8],
        /// What the whole key was, when that is longer.
        whole: Option<Box<WholeKey>>,
    },
    /// Its first parts, because a rule says so; at most [`KEY_BYTES_MAX`].
    Parts(&'a [u8]),
    /// The prefix of the rule that hides it, and its keyed hash.
    Hashed {
        /// At most [`KEY_BYTES_MAX`].
        prefix: &'a [u8],
        hash: Box<Hashed>,
    },
}

/// What is recorded of a key that is longer than what is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WholeKey {
    pub(super) length: usize,
    pub(super) sha256: [u8; 32],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RecordedEnd<'a> {
    Point,
    Before(RecordedKey<'a>),
    Infinity,
}

/// Bytes that a keyed hash takes in a line, with its name.
const HASH_BYTES: usize = 112;

/// The most bytes of a key in a record.
pub const KEY_BYTES_MAX: usize = 1024;

impl Default for RecordedTouches<'_> {
    fn default() -> Self {
        Self { touches: SmallVec::new(), level: Level::Request, one_in: NonZeroU32::MIN }
    }
}

impl<'a> RecordedTouches<'a> {
    /// What a record needs.
    #[must_use]
    pub fn new(touches: &'a Touches) -> Self {
        let plain = |touch| RecordedTouch::new(touch, RecordedKey::plain);
        Self { touches: touches.iter().map(plain).collect(), ..Self::default() }
    }

    fn weight_bytes(&self) -> usize {
        self.touches.iter().map(RecordedTouch::weight_bytes).sum()
    }
}

impl<'a> RecordedTouch<'a> {
    /// `key` says how a key is shown.
    pub(super) fn new(touch: &'a Touch, key: impl Fn(&'a StoredKey) -> RecordedKey<'a>) -> Self {
        match touch {
            Touch::Key { verb, range } => Self::Key {
                verb: *verb,
                start: key(range.start()),
                end: match range.end() {
                    RangeEnd::Point => RecordedEnd::Point,
                    RangeEnd::Before(end) => RecordedEnd::Before(key(end)),
                    RangeEnd::Infinity => RecordedEnd::Infinity,
                },
                value: None,
            },
            other @ (Touch::Store(_)
            | Touch::Lease { .. }
            | Touch::CancelWatch(_)
            | Touch::WatchProgress) => Self::Other(other),
        }
    }

    /// In a line a byte of a key takes up to two; names and quotes come on top.
    fn weight_bytes(&self) -> usize {
        const AROUND: usize = 96;
        match self {
            Self::Key { start, end, value, .. } => {
                let end = match end {
                    RecordedEnd::Before(end) => end.weight_bytes(),
                    RecordedEnd::Point | RecordedEnd::Infinity => 0,
                };
                AROUND + start.weight_bytes() + end + value.as_ref().map_or(0, |_| HASH_BYTES)
            }
            Self::Other(_) | Self::Verb(_) => AROUND,
        }
    }
}

impl<'a> RecordedKey<'a> {
    /// A key in the form that a rule with this prefix gives it.
    pub(super) fn new(
        key: &'a StoredKey,
        form: KeyForm,
        prefix: &'a [u8],
        hash: Option<&KeyedHash>,
    ) -> Self {
        match (form, hash) {
            (KeyForm::Plain, _) => Self::plain(key),
            (KeyForm::Hashed, Some(hash)) => {
                Self::Hashed { prefix: kept(prefix), hash: Box::new(hash.of_key(key.as_bytes())) }
            }
            // A config with this form has a hash key.
            (KeyForm::Hashed, None) => Self::Parts(kept(prefix)),
            (KeyForm::Parts(Reverse(parts)), _) => match first_parts(key.as_bytes(), parts) {
                Some(parts) => Self::Parts(parts),
                None => Self::plain(key),
            },
        }
    }

    pub(super) fn plain(key: &'a StoredKey) -> Self {
        let bytes = key.as_bytes();
        let Some((kept, _)) =
            bytes.split_at_checked(KEY_BYTES_MAX).filter(|(_, cut)| !cut.is_empty())
        else {
            return Self::Plain { bytes, whole: None };
        };
        let mut sha256 = [0; 32];
        let digest = digest::digest(&digest::SHA256, bytes);
        sha256.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
        let whole = WholeKey { length: bytes.len(), sha256 };
        Self::Plain { bytes: kept, whole: Some(Box::new(whole)) }
    }

    fn weight_bytes(&self) -> usize {
        match self {
            Self::Plain { bytes, whole } => 2 * bytes.len() + whole.as_ref().map_or(0, |_| 128),
            Self::Parts(bytes) => 2 * bytes.len(),
            Self::Hashed { prefix, .. } => 2 * prefix.len() + HASH_BYTES,
        }
    }
}

/// The beginning of a key, up to the slash that ends so many parts; a slash at its very beginning ends none.
/// `None` when nothing is cut off.
fn first_parts(key: &[u8], parts: u8) -> Option<&[u8]> {
    let mut slashes = key.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/');
    let (end, _) = slashes.nth(usize::from(parts).checked_sub(1)?)?;
    let parts = kept(key.get(..=end)?);
    (parts.len() < key.len()).then_some(parts)
}

fn kept(bytes: &[u8]) -> &[u8] {
    bytes.get(..KEY_BYTES_MAX).unwrap_or(bytes)
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
pub enum Verdict<'a> {
    /// Allowed, by these rules: one per touch.
    Allow(SmallVec<[&'a str; 2]>),
    /// Denied by policy: why, and the rule if one said so.
    Deny {
        /// A short, fixed name.
        reason: &'static str,
        /// The deny rule.
        rule: Option<&'a str>,
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

impl Record<'_> {
    /// About how many bytes the record keeps in memory and will fill on disk.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        const BASE: usize = 256;
        match &self.event {
            Event::Decision(decision) => BASE + decision.text_bytes(),
            Event::ConnectionOpen { facts, .. } => {
                BASE * 4 + facts.as_deref().map_or(0, certificate_bytes)
            }
            Event::ConnectionRefused { detail, .. } => BASE + detail.len(),
            Event::ProcessStart { beginning, levels, .. } => {
                let rules: usize = levels.rules.iter().map(String::len).sum();
                BASE * (2 + beginning.after.len()) + rules
            }
            Event::Chain(_) => BASE * 2,
            Event::ProcessStop { .. }
            | Event::GenerationStart { .. }
            | Event::CertificateEnds { .. }
            | Event::RevocationStart { .. }
            | Event::ConnectionClose { .. }
            | Event::Outcome { .. }
            | Event::StreamEnd { .. } => BASE,
        }
    }
}
