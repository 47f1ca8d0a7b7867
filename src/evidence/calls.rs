//! Decisions with what became of them, and from where they were asked: three records made one.
//!
//! Memory is bounded: of calls and connections that are open at a time so many are remembered; what was
//! forgotten is shown as unknown.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::keys::{Keys, KeysEnd};
use super::kubernetes::Objects;
use super::record::{Record, printable};
use super::segments::{LineError, Segment};
use crate::chain::{ChainId, head};

/// Open calls that are remembered.
const CALLS_MAX: usize = 200_000;
/// Open connections that are remembered.
const CONNECTIONS_MAX: usize = 1_000_000;

/// Lines that cannot be read and are told.
const UNREAD_MAX: usize = 1000;

/// One request and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Call {
    /// The chain of its records.
    pub chain: String,
    /// The decision's place in it.
    pub seq: u64,
    /// When it was decided.
    pub time: String,
    /// Who asked; absent when it was nobody.
    pub principal: Option<String>,
    /// From where; absent when that was forgotten.
    pub source: Option<String>,
    /// The RPC, or the path that is none.
    pub rpc: String,
    /// `connection/call`, with `/message` of a stream and `#step` of ringfence's own.
    pub call: String,
    /// `allow`, `deny` or `refuse`.
    pub verdict: String,
    /// Why not.
    pub reason: Option<String>,
    /// The rules that allow, or the one that denies.
    pub rules: Vec<String>,
    /// What is done, for people.
    pub touches: Vec<String>,
    /// The same of Kubernetes objects, when names were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kubernetes: Vec<KubernetesTouch>,
    /// How many alike it stands for, when calls are sampled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_in: Option<u64>,
    /// Those of the touches that are about keys.
    #[serde(skip)]
    pub keys: Vec<KeyTouch>,
    /// Verbs on keys that were not recorded, because a rule says so.
    #[serde(skip)]
    pub unnamed: Vec<String>,
    /// Whether it is about the key that was asked for cannot be told.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub perhaps: bool,
    /// What became of it; absent when nothing was forwarded, or the record is not there.
    pub outcome: Option<CallOutcome>,
}

/// A touch of keys.
#[derive(Clone, Debug)]
pub struct KeyTouch {
    /// Which of the call's touches.
    pub position: usize,
    /// With which verb.
    pub verb: String,
    /// Of which keys.
    pub keys: Keys,
}

/// A touch of Kubernetes objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KubernetesTouch {
    /// With which verb.
    pub verb: String,
    /// Of which objects.
    #[serde(flatten)]
    pub objects: Objects,
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CallOutcome {
    /// gRPC status.
    pub status: Option<u16>,
    /// Why it has none of etcd's.
    pub fault: Option<String>,
    /// The store's revision.
    pub revision: Option<i64>,
    /// How many keys there are in a range, or were deleted; absent when none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<i64>,
    /// From the decision to the end, in microseconds.
    pub latency_us: Option<u64>,
}

/// What could not be read; reading goes on behind it.
#[derive(Debug)]
pub struct Unread {
    /// The file.
    pub path: std::path::PathBuf,
    /// Where in it.
    pub offset: u64,
    /// Why.
    pub why: String,
}

type Key = (u64, u64, u64, u64);

/// Reads the files in their order and tells each call once it has ended, or the chain has.
pub fn read(
    segments: &[Segment],
    is_wanted: &dyn Fn(&Call) -> bool,
    tell: &mut dyn FnMut(Call),
) -> Vec<Unread> {
    let mut unread = Vec::new();
    let mut joining = Joining::default();
    let mut chain = None;
    for segment in segments {
        if chain.is_some_and(|chain| chain != segment.name.chain) {
            joining.end(tell);
        }
        chain = Some(segment.name.chain);
        if let Err(fault) = read_file(segment, &mut joining, is_wanted, tell, &mut unread) {
            unread.push(fault);
        }
    }
    joining.end(tell);
    unread
}

fn read_file(
    segment: &Segment,
    joining: &mut Joining,
    is_wanted: &dyn Fn(&Call) -> bool,
    tell: &mut dyn FnMut(Call),
    unread: &mut Vec<Unread>,
) -> Result<(), Unread> {
    let fault = |offset, why: String| Unread { path: segment.path.clone(), offset, why };
    let mut lines = segment.lines().map_err(|error| fault(0, error.to_string()))?;
    loop {
        let line = match lines.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error @ LineError::TooLong { offset }) => {
                return Err(fault(offset, error.to_string()));
            }
            Err(error @ LineError::Read(_)) => return Err(fault(0, error.to_string())),
        };
        // Only these are about calls; the rest of a large log is not taken apart.
        let about = ["decision", "outcome", "connection.open", "connection.close"];
        let read = match head(line.bytes) {
            Some(head) if !about.contains(&head.kind) => continue,
            Some(_) => {
                serde_json::from_slice::<Record<'_>>(line.bytes).map_err(|error| error.to_string())
            }
            None => Err("it does not begin like a record".to_owned()),
        };
        match read {
            Ok(record) => joining.take(segment.name.chain, &record, is_wanted, tell),
            // It may be on its way.
            Err(_) if !line.is_whole => {}
            Err(error) if unread.len() < UNREAD_MAX => {
                unread.push(fault(line.offset, error));
            }
            Err(_) => {}
        }
    }
}

#[derive(Default)]
struct Joining {
    sources: HashMap<u64, String>,
    /// In the order in which they were decided.
    open: BTreeMap<u64, (Key, Call)>,
    by_call: HashMap<Key, u64>,
}

impl Joining {
    fn take(
        &mut self,
        chain: ChainId,
        record: &Record<'_>,
        is_wanted: &dyn Fn(&Call) -> bool,
        tell: &mut dyn FnMut(Call),
    ) {
        let number = |value: Option<u64>| value.unwrap_or(0);
        let connection = number(record.connection);
        let key = (connection, number(record.call), number(record.message), number(record.step));
        match &*record.kind {
            "connection.open" => {
                if let Some(source) = &record.source
                    && self.sources.len() < CONNECTIONS_MAX
                {
                    self.sources.insert(connection, source.clone().into_owned());
                }
            }
            "connection.close" => drop(self.sources.remove(&connection)),
            "decision" => {
                let source = self.sources.get(&connection).cloned();
                let call = call_of(chain, record, source);
                if !is_wanted(&call) {
                } else if call.verdict == "allow" {
                    self.open(key, call, tell);
                } else {
                    tell(call);
                }
            }
            "outcome" => {
                if let Some((_, mut call)) =
                    self.by_call.remove(&key).and_then(|seq| self.open.remove(&seq))
                {
                    call.outcome = Some(CallOutcome {
                        status: record.status,
                        fault: record.fault.clone().map(std::borrow::Cow::into_owned),
                        revision: record.revision,
                        count: record.count,
                        latency_us: record.latency_us,
                    });
                    tell(call);
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, key: Key, call: Call, tell: &mut dyn FnMut(Call)) {
        if self.open.len() >= CALLS_MAX
            && let Some((_, (oldest, call))) = self.open.pop_first()
        {
            self.by_call.remove(&oldest);
            tell(call);
        }
        self.by_call.insert(key, call.seq);
        self.open.insert(call.seq, (key, call));
    }

    fn end(&mut self, tell: &mut dyn FnMut(Call)) {
        for (_, (_, call)) in std::mem::take(&mut self.open) {
            tell(call);
        }
        self.by_call.clear();
        self.sources.clear();
    }
}

fn call_of(chain: ChainId, record: &Record<'_>, source: Option<String>) -> Call {
    let number = |value: Option<u64>| value.unwrap_or(0);
    let mut call = format!("{}/{}", number(record.connection), number(record.call));
    if let Some(message) = record.message {
        call.push_str(&format!("/{message}"));
    }
    if let Some(step) = record.step {
        call.push_str(&format!("#{step}"));
    }
    let rules = record.rules.iter().chain(&record.rule).map(|rule| rule.clone().into_owned());
    let keys = record.touches.iter().enumerate().filter_map(|(position, touch)| {
        let verb = touch.verb.clone().into_owned();
        touch.keys().map(|keys| KeyTouch { position, verb, keys })
    });
    let unnamed = record.touches.iter().filter(|touch| touch.is_unnamed());
    let text = |value: &Option<std::borrow::Cow<'_, str>>| value.as_deref().map(str::to_owned);
    Call {
        chain: chain.to_string(),
        seq: record.seq,
        time: record.time.clone().into_owned(),
        principal: text(&record.principal),
        source,
        rpc: text(&record.rpc).or_else(|| text(&record.path)).unwrap_or_default(),
        call,
        verdict: text(&record.verdict).unwrap_or_default(),
        reason: text(&record.reason),
        rules: rules.collect(),
        touches: record.touches.iter().map(super::record::Touch::shown).collect(),
        kubernetes: Vec::new(),
        one_in: record.one_in,
        keys: keys.collect(),
        unnamed: unnamed.map(|touch| touch.verb.clone().into_owned()).collect(),
        perhaps: false,
        outcome: None,
    }
}

impl Call {
    /// Shows keys of an API server under this prefix as resource, namespace and name.
    pub fn name_objects(&mut self, prefix: &str) {
        for KeyTouch { position, verb, keys } in &self.keys {
            let Some(objects) = Objects::of(prefix, keys) else { continue };
            if let Some(shown) = self.touches.get_mut(*position) {
                *shown = format!("{} {}", printable(verb), objects.shown());
            }
            self.kubernetes.push(KubernetesTouch { verb: verb.clone(), objects });
        }
    }

    /// What became of it, in a few words.
    #[must_use]
    pub fn result(&self) -> String {
        match (&self.outcome, self.verdict.as_str()) {
            (Some(outcome), _) => outcome.shown(),
            (None, "allow") => "unknown".to_owned(),
            (None, _) => printable(self.reason.as_deref().unwrap_or("-")),
        }
    }

    /// etcd's answer says that nothing was changed.
    #[must_use]
    pub fn did_nothing(&self) -> bool {
        let Some(outcome) = &self.outcome else { return false };
        // What ended otherwise (Unavailable, a deadline, a fault) may have been proposed, and applied later.
        let refused = |status| matches!(status, 3 | 5 | 6 | 7 | 8 | 9 | 11 | 12 | 16);
        let refused = outcome.fault.is_none() && outcome.status.is_some_and(refused);
        let deleted_none = self.rpc.ends_with("/DeleteRange")
            && self.is_proven()
            && outcome.revision.is_some()
            && outcome.count.is_none();
        refused || deleted_none
    }

    /// Whether one that etcd says was done has changed each key that it touches so. A transaction may have taken its
    /// other branch; a deletion of a range, of a lease's keys, of a lock or a candidate may have found others, or none.
    #[must_use]
    pub fn surely_changes(&self) -> bool {
        let method = self.rpc.rsplit('/').next().unwrap_or_default();
        match method {
            "Put" | "Lock" | "Campaign" | "Proclaim" => true,
            "DeleteRange" => self.keys.iter().all(|touch| touch.keys.end == KeysEnd::Point),
            _ => false,
        }
    }

    /// etcd said that it was done.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        let done = |outcome: &CallOutcome| outcome.status == Some(0) && outcome.fault.is_none();
        self.outcome.as_ref().is_some_and(done)
    }
}

impl CallOutcome {
    fn shown(&self) -> String {
        let mut shown = match (&self.fault, self.status) {
            (Some(fault), _) => printable(fault),
            (None, Some(0)) => "ok".to_owned(),
            (None, Some(status)) => format!("status {status}"),
            (None, None) => "no status".to_owned(),
        };
        if let Some(revision) = self.revision {
            shown.push_str(&format!(", revision {revision}"));
        }
        shown
    }
}
