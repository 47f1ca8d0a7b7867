//! Which allowed requests are recorded, and how much of them is: the first rule that fits says so, for each
//! thing that a request does. What is denied or refused is always recorded, whatever the rules say.
//!
//! A range that lies in a rule's prefixes only partly also meets the rules behind it, and the most detailed level
//! of them counts: else a wide read would hide behind a narrow rule. Randomness comes in as an argument.

use std::cmp::Reverse;
use std::num::NonZeroU32;

use bytes::Bytes;
use smallvec::SmallVec;

use super::event::{LevelsInForce, RecordedKey, RecordedTouch, RecordedTouches};
use crate::etcd::verb::{WATCH_CANCEL, WATCH_PROGRESS};
use crate::etcd::{KeyRange, KeyVerb, LeaseUse, RangeEnd, StoreVerb, StoredKey, Touch, Touches};
use crate::keyed_hash::KeyedHash;

/// How much of a request is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    None,
    /// Who, when, which RPC, which verbs, by which rules, with which outcome; no keys.
    Metadata,
    /// Its keys, too.
    #[default]
    Request,
}

impl Level {
    /// Every level.
    pub const ALL: [Self; 3] = [Self::None, Self::Metadata, Self::Request];

    /// The name in configs and records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Metadata => "metadata",
            Self::Request => "request",
        }
    }
}

/// What is shown of a key; later ones show less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyForm {
    /// The key.
    #[default]
    Plain,
    /// So many of its parts between slashes; fewer are the greater form.
    Parts(Reverse<u8>),
    /// The prefix by which the rule knows it, and its keyed hash.
    Hashed,
}

/// The most parts of a key that a cut one keeps.
pub const PARTS_MAX: u8 = 64;

/// One rule.
#[derive(Clone, Debug)]
pub struct LevelRule {
    /// How much is recorded.
    pub level: Level,
    /// Of which identities; of all when empty.
    pub identities: Vec<String>,
    /// Of which verbs, by their names in records; of all when empty.
    pub verbs: Vec<String>,
    /// Of keys with which prefixes; of all, and of what has no key, when empty.
    pub prefixes: Vec<Prefix>,
    /// One in how many is recorded.
    pub one_in: NonZeroU32,
    /// How keys are shown.
    pub keys: KeyForm,
    /// As the first record of a chain shows it.
    pub text: String,
}

/// All keys that begin alike; where they end is worked out once, not for each call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(KeyRange);

impl Prefix {
    /// The keys with that beginning.
    #[must_use]
    pub fn new(prefix: &[u8]) -> Self {
        Self(KeyRange::prefix(prefix))
    }

    /// What they begin with.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.start().as_bytes()
    }
}

/// The rules, in their order, and what hashes.
#[derive(Debug, Default)]
pub struct Levels {
    /// The first that fits counts; what fits none is recorded as [`Level::Request`], with plain keys.
    pub rules: Vec<LevelRule>,
    /// Hashes keys, where a rule says so, and values, if they are.
    pub hash: Option<KeyedHash>,
    /// Whether the keyed hash of a value that is written is recorded.
    pub value_hashes: bool,
}

/// What is recorded of an allowed request.
#[derive(Debug)]
pub enum Shown<'a> {
    /// This.
    Recorded(RecordedTouches<'a>),
    /// Nothing: a rule says so.
    LeftOut(LeftOut),
}

/// Proof that a rule leaves a request out of the log.
#[derive(Debug)]
pub struct LeftOut(());

/// What the rules say of one touch.
struct Told<'r> {
    level: Level,
    one_in: NonZeroU32,
    /// Those that it meets, up to the one that it fits.
    met: SmallVec<[&'r LevelRule; 2]>,
}

/// How a touch lies to the prefixes of a rule.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meets {
    Wholly,
    Partly,
    Not,
}

impl Levels {
    /// What is recorded of an allowed request. `draw` gives a random number, and is asked when calls are sampled:
    /// a client that could tell whose turn it is would wait for its own to pass. `values` gives what the request
    /// writes, in the order of its puts, and is asked when values are hashed; none for a put that keeps the value.
    pub fn of_allowed<'a>(
        &'a self,
        identity: &str,
        touches: &'a Touches,
        draw: impl FnOnce() -> u32,
        values: impl FnOnce() -> Vec<Option<Bytes>>,
    ) -> Shown<'a> {
        if self.rules.is_empty() && !self.value_hashes {
            return Shown::Recorded(RecordedTouches::new(touches));
        }
        // One for all that the request does: else a decoy could be what is shown of it.
        let drawn = if self.samples() { draw() } else { 0 };
        let told: SmallVec<[Told<'_>; 2]> =
            touches.iter().map(|touch| self.told(identity, touch, drawn)).collect();
        let most = told.iter().map(|told| told.level).max().unwrap_or_default();
        if most == Level::None {
            return Shown::LeftOut(LeftOut(()));
        }
        let recorded = told.iter().filter(|told| told.level > Level::None);
        let one_in = recorded.map(|told| told.one_in).min().unwrap_or(NonZeroU32::MIN);
        let hides = told.iter().any(|told| told.level < Level::Request);
        let level = if hides { Level::Metadata } else { Level::Request };
        let shown = touches.iter().zip(&told).map(|(touch, told)| match told.level {
            Level::None | Level::Metadata => RecordedTouch::Verb(verb(touch)),
            Level::Request => self.shown(touch, &told.met),
        });
        let mut shown = RecordedTouches { touches: shown.collect(), level, one_in };
        if self.value_hashes && most == Level::Request {
            self.add_values(&mut shown, &values());
        }
        Shown::Recorded(shown)
    }

    /// What is recorded of a request that is denied: everything, keys in their form.
    #[must_use]
    pub fn of_denied<'a>(&'a self, identity: &str, touches: &'a Touches) -> RecordedTouches<'a> {
        if self.rules.is_empty() {
            return RecordedTouches::new(touches);
        }
        let shown = touches.iter().map(|touch| self.shown(touch, &self.met(identity, touch).0));
        RecordedTouches { touches: shown.collect(), ..RecordedTouches::default() }
    }

    /// For the first record of the chain.
    pub(super) fn in_force(&self) -> LevelsInForce {
        LevelsInForce {
            rules: self.rules.iter().map(|rule| rule.text.clone()).collect(),
            hash_key: self.hash.as_ref().map(|hash| hash.name().to_owned()),
            value_hashes: self.value_hashes,
        }
    }

    fn samples(&self) -> bool {
        self.rules.iter().any(|rule| rule.one_in > NonZeroU32::MIN)
    }

    fn told(&self, identity: &str, touch: &Touch, drawn: u32) -> Told<'_> {
        let (met, fits) = self.met(identity, touch);
        if !fits {
            // Behind the last rule stands the default, which records everything.
            return Told { level: Level::Request, one_in: NonZeroU32::MIN, met };
        }
        let sampled = met.iter().filter(|rule| drawn.is_multiple_of(rule.one_in.get()));
        let most = sampled.max_by_key(|rule| (rule.level, Reverse(rule.one_in)));
        let (level, one_in) =
            most.map_or((Level::None, NonZeroU32::MIN), |rule| (rule.level, rule.one_in));
        Told { level, one_in, met }
    }

    /// The rules that a touch meets, up to the one that it fits, and whether it fits one.
    fn met(&self, identity: &str, touch: &Touch) -> (SmallVec<[&LevelRule; 2]>, bool) {
        let mut met = SmallVec::new();
        for rule in &self.rules {
            let meets = rule.meets(identity, touch);
            if meets != Meets::Not {
                met.push(rule);
            }
            if meets == Meets::Wholly {
                return (met, true);
            }
        }
        (met, false)
    }

    /// Both ends of a range have a form of their own: what lies in no rule's prefixes hides nothing, and hidden it
    /// could never be told again.
    fn shown<'a>(&'a self, touch: &'a Touch, met: &[&'a LevelRule]) -> RecordedTouch<'a> {
        RecordedTouch::new(touch, |key| {
            let forms = met.iter().filter_map(|rule| Some((rule.keys, rule.prefix_of(key)?)));
            let (form, prefix) = forms.max_by_key(|(form, _)| *form).unwrap_or_default();
            RecordedKey::new(key, form, prefix, self.hash.as_ref())
        })
    }

    fn add_values(&self, shown: &mut RecordedTouches<'_>, values: &[Option<Bytes>]) {
        let Some(hash) = &self.hash else { return };
        let mut values = values.iter();
        for touch in &mut shown.touches {
            match touch {
                RecordedTouch::Key { verb: KeyVerb::Put, value: to, .. } => {
                    let value = values.next().and_then(Option::as_ref);
                    *to = value.map(|value| Box::new(hash.of_value(value)));
                }
                // Its value is not shown either, and must not stand for the next one's.
                RecordedTouch::Verb(verb) if *verb == KeyVerb::Put.name() => drop(values.next()),
                RecordedTouch::Key { .. } | RecordedTouch::Verb(_) | RecordedTouch::Other(_) => {}
            }
        }
    }
}

impl LevelRule {
    fn meets(&self, identity: &str, touch: &Touch) -> Meets {
        let named = |names: &[String], name: &str| {
            names.is_empty() || names.iter().any(|known| known == name)
        };
        if !named(&self.identities, identity) || !named(&self.verbs, verb(touch)) {
            return Meets::Not;
        }
        if self.prefixes.is_empty() {
            return Meets::Wholly;
        }
        let Touch::Key { range, .. } = touch else { return Meets::Not };
        let mut most = Meets::Not;
        for prefix in &self.prefixes {
            match lies(range, prefix) {
                Meets::Wholly => return Meets::Wholly,
                Meets::Partly => most = Meets::Partly,
                Meets::Not => {}
            }
        }
        most
    }

    /// Whether it fits all that the other fits; a rule that is met in part counts on.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let all = |these: &[String], those: &[String]| {
            these.is_empty() || (!those.is_empty() && those.iter().all(|one| these.contains(one)))
        };
        let begins = |prefix: &Prefix| {
            self.prefixes.iter().any(|wider| prefix.bytes().starts_with(wider.bytes()))
        };
        let prefixes = self.prefixes.is_empty()
            || (!other.prefixes.is_empty() && other.prefixes.iter().all(begins));
        all(&self.identities, &other.identities) && all(&self.verbs, &other.verbs) && prefixes
    }

    /// The prefix of the rule that a key has; empty when the rule is for all keys.
    fn prefix_of(&self, key: &StoredKey) -> Option<&[u8]> {
        if self.prefixes.is_empty() {
            return Some(b"");
        }
        let fitting = self.prefixes.iter().map(Prefix::bytes);
        fitting
            .filter(|prefix| key.as_bytes().starts_with(prefix))
            .max_by_key(|prefix| prefix.len())
    }
}

/// How a range lies to all keys with a prefix.
fn lies(range: &KeyRange, Prefix(all): &Prefix) -> Meets {
    let (start, prefix) = (range.start().as_bytes(), all.start().as_bytes());
    let ends_within = match (range.end(), all.end()) {
        (RangeEnd::Point, _) | (_, RangeEnd::Infinity) => true,
        (RangeEnd::Before(end), RangeEnd::Before(all)) => end <= all,
        (RangeEnd::Before(_) | RangeEnd::Infinity, _) => false,
    };
    let reaches = match range.end() {
        RangeEnd::Point => false,
        RangeEnd::Before(end) => end.as_bytes() > prefix,
        RangeEnd::Infinity => true,
    };
    match (start.starts_with(prefix), ends_within) {
        (true, true) => Meets::Wholly,
        (true, false) => Meets::Partly,
        (false, _) if start < prefix && reaches => Meets::Partly,
        (false, _) => Meets::Not,
    }
}

/// The name of a touch's verb in records and rules.
pub(super) const fn verb(touch: &Touch) -> &'static str {
    match touch {
        Touch::Key { verb, .. } => verb.name(),
        Touch::Store(verb) => verb.name(),
        Touch::Lease { usage, .. } => usage.name(),
        Touch::CancelWatch(_) => WATCH_CANCEL,
        Touch::WatchProgress => WATCH_PROGRESS,
    }
}

/// Whether there is such a verb in records; if so, whether it changes anything. `lease`, a word of the policy, is in
/// none: records say which use it is.
#[must_use]
pub fn changes(name: &str) -> Option<bool> {
    if let Some(verb) = KeyVerb::from_name(name) {
        return Some(matches!(verb, KeyVerb::Put | KeyVerb::Delete));
    }
    if let Some(verb) = StoreVerb::from_name(name).filter(|verb| *verb != StoreVerb::Lease) {
        return Some(changes_store(verb));
    }
    if let Some(usage) = LeaseUse::ALL.into_iter().find(|usage| usage.name() == name) {
        return Some(matches!(usage, LeaseUse::Grant | LeaseUse::Attach | LeaseUse::Revoke));
    }
    [WATCH_CANCEL, WATCH_PROGRESS].contains(&name).then_some(false)
}

const fn changes_store(verb: StoreVerb) -> bool {
    match verb {
        StoreVerb::Status
        | StoreVerb::MemberList
        | StoreVerb::AlarmGet
        | StoreVerb::Hash
        | StoreVerb::Snapshot
        | StoreVerb::AuthRead
        | StoreVerb::Health
        | StoreVerb::Version
        | StoreVerb::Metrics => false,
        StoreVerb::Lease
        | StoreVerb::Compact
        | StoreVerb::MemberChange
        | StoreVerb::AlarmSet
        | StoreVerb::Defragment
        | StoreVerb::MoveLeader
        | StoreVerb::Downgrade
        | StoreVerb::AuthLogin
        | StoreVerb::AuthChange => true,
    }
}

#[cfg(test)]
mod tests;
