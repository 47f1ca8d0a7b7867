//! Which allowed requests are recorded, and how much of them is: the first rule that fits says so, for each
//! thing that a request does. What is denied or refused is always recorded, whatever the rules say.
//!
//! A range that lies in a rule's prefixes only partly also meets the rules behind it: the most detailed level of
//! them counts, and the form that shows the least of a key. Else a wide read would hide behind a narrow rule.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use smallvec::SmallVec;

use super::event::{LevelsInForce, RecordedTouch, RecordedTouches};
use crate::etcd::{KeyRange, KeyVerb, LeaseUse, RangeEnd, StoreVerb, Touch, Touches};
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
    /// So many of its parts between slashes; the number is counted down from [`PARTS_MAX`], so that fewer parts
    /// are the greater form.
    Parts(std::cmp::Reverse<u8>),
    /// Its keyed hash.
    Hashed,
}

/// The most parts of a key that a cut one keeps.
pub const PARTS_MAX: u8 = 64;

/// One rule.
#[derive(Debug, Default)]
pub struct LevelRule {
    /// How much is recorded.
    pub level: Level,
    /// Of which identities; of all when empty.
    pub identities: Vec<String>,
    /// Of which verbs, by their names in records; of all when empty.
    pub verbs: Vec<String>,
    /// Of keys with which prefixes; of all, and of what has no key, when empty.
    pub prefixes: Vec<Vec<u8>>,
    /// One in how many is recorded; 1 is each.
    pub one_in: u32,
    /// How keys are shown.
    pub keys: KeyForm,
    /// As the first record of a chain shows it.
    pub text: String,
    /// How many it was asked about.
    pub seen: AtomicU64,
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
pub enum Shown {
    /// This.
    Recorded(RecordedTouches),
    /// Nothing: a rule says so.
    LeftOut(LeftOut),
}

/// Proof that a rule leaves a request out of the log.
#[derive(Debug)]
pub struct LeftOut(());

/// What the rules say of one touch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    level: Level,
    keys: KeyForm,
    /// 1 when it is not one of several.
    one_in: u32,
}

/// How a touch lies to the prefixes of a rule.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meets {
    Wholly,
    Partly,
    Not,
}

impl Levels {
    /// What is recorded of an allowed request; `values` gives what it writes, in the order of its puts, and
    /// is asked only when values are hashed; none for a put that keeps the value as it is.
    pub fn of_allowed(
        &self,
        identity: &str,
        touches: &Touches,
        values: impl FnOnce() -> Vec<Option<Bytes>>,
    ) -> Shown {
        if self.rules.is_empty() && !self.value_hashes {
            return Shown::Recorded(RecordedTouches::new(touches));
        }
        let told: SmallVec<[Told; 2]> =
            touches.iter().map(|touch| self.told(identity, touch)).collect();
        let level = told.iter().map(|told| told.level).max().unwrap_or_default();
        if level == Level::None {
            return Shown::LeftOut(LeftOut(()));
        }
        let recorded = told.iter().filter(|told| told.level > Level::None);
        let one_in = recorded.map(|told| told.one_in).min().unwrap_or(1);
        let shown = touches.iter().zip(&told).map(|(touch, told)| match told.level {
            Level::None | Level::Metadata => RecordedTouch::Verb(verb(touch)),
            Level::Request => self.shown(touch, told.keys),
        });
        let mut shown = RecordedTouches { touches: shown.collect(), level, one_in };
        if self.value_hashes && level == Level::Request {
            self.add_values(&mut shown, &values());
        }
        Shown::Recorded(shown)
    }

    /// What is recorded of a request that is denied: everything, keys in their form.
    #[must_use]
    pub fn of_denied(&self, identity: &str, touches: &Touches) -> RecordedTouches {
        if self.rules.is_empty() {
            return RecordedTouches::new(touches);
        }
        let shown = touches.iter().map(|touch| {
            let (_, keys) = self.fitting(identity, touch);
            self.shown(touch, keys)
        });
        RecordedTouches { touches: shown.collect(), level: Level::Request, one_in: 1 }
    }

    /// For the first record of the chain.
    pub(super) fn in_force(&self) -> LevelsInForce {
        LevelsInForce {
            rules: self.rules.iter().map(|rule| rule.text.clone()).collect(),
            hash_key: self.hash.as_ref().map(KeyedHash::name),
            value_hashes: self.value_hashes,
        }
    }

    /// What the rules say, sampled.
    fn told(&self, identity: &str, touch: &Touch) -> Told {
        let (rules, keys) = self.fitting(identity, touch);
        let sampled = |rule: &&LevelRule| {
            let one_in = u64::from(rule.one_in.max(1));
            rule.seen.fetch_add(1, Ordering::Relaxed).is_multiple_of(one_in)
        };
        let most = rules.iter().copied().filter(sampled).max_by_key(|rule| rule.level);
        match (rules.is_empty(), most) {
            (true, _) => Told { keys, one_in: 1, ..Told::default() },
            (false, None) => Told { level: Level::None, keys, one_in: 1 },
            (false, Some(rule)) => Told { level: rule.level, keys, one_in: rule.one_in.max(1) },
        }
    }

    /// The rules that a touch meets, up to the one that it fits; none when the default counts. And what is
    /// shown of its keys.
    fn fitting(&self, identity: &str, touch: &Touch) -> (SmallVec<[&LevelRule; 2]>, KeyForm) {
        let (mut met, mut keys) = (SmallVec::new(), KeyForm::Plain);
        for rule in &self.rules {
            let meets = rule.meets(identity, touch);
            if meets == Meets::Not {
                continue;
            }
            keys = keys.max(rule.keys);
            met.push(rule);
            if meets == Meets::Wholly {
                return (met, keys);
            }
        }
        // Behind the last rule stands the default, which records everything.
        met.clear();
        (met, keys)
    }

    fn shown(&self, touch: &Touch, keys: KeyForm) -> RecordedTouch {
        RecordedTouch::new(touch, keys, self.hash.as_ref())
    }

    fn add_values(&self, shown: &mut RecordedTouches, values: &[Option<Bytes>]) {
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
        let lies = |prefix: &Vec<u8>| lies(range, prefix);
        if self.prefixes.iter().any(|prefix| lies(prefix) == Meets::Wholly) {
            Meets::Wholly
        } else if self.prefixes.iter().any(|prefix| lies(prefix) == Meets::Partly) {
            Meets::Partly
        } else {
            Meets::Not
        }
    }
}

/// How a range lies to all keys with a prefix.
fn lies(range: &KeyRange, prefix: &[u8]) -> Meets {
    let start = range.start().as_bytes();
    let all = KeyRange::prefix(prefix);
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

const WATCH_CANCEL: &str = "watch.cancel";
const WATCH_PROGRESS: &str = "watch.progress";

/// Whether there is such a verb in records; if so, whether it changes anything.
#[must_use]
pub fn changes(name: &str) -> Option<bool> {
    if let Some(verb) = KeyVerb::from_name(name) {
        return Some(matches!(verb, KeyVerb::Put | KeyVerb::Delete));
    }
    if let Some(verb) = StoreVerb::from_name(name) {
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
