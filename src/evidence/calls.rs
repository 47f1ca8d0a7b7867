//! Calls as a log tells them: who asked what, what was decided, and what became of it.

use std::io::BufRead;

use serde::Serialize;

use super::joining::Joining;
use super::keys::{Keys, KeysEnd};
use super::kubernetes::Objects;
use super::record::printable;
use super::segments::{LineError, Lines, Segment};

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
    /// Told before it ended; it is told again then.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_open: bool,
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

/// What is to be said of an answer.
#[derive(Debug)]
pub struct Reading {
    /// What could not be read. Reading goes on behind a line; a file that cannot be read is left there.
    pub unread: Vec<Unread>,
    /// Rules of the config left requests out of these logs: what is not in them may have been.
    pub leaves_out: bool,
}

/// Reads the files in their order and tells each call once it has ended, or the chain has. `progress` hears of
/// bytes of the files as they are read.
pub fn read(
    segments: &[Segment],
    is_wanted: &dyn Fn(&Call) -> bool,
    tell: &mut dyn FnMut(Call),
    progress: &dyn Fn(u64),
) -> Reading {
    let (mut unread, mut leaves_out) = (Vec::new(), false);
    let mut joining = Joining::default();
    let mut last = None;
    for segment in segments {
        // The same file again: compressed, or a copy. What ends early in the first goes on in the second; no record
        // counts twice. A hole in the first stays one, and `verify` names it.
        let file = (segment.name.chain, segment.name.number);
        let before = last.replace(file);
        if before.is_some_and(|(chain, _)| chain != segment.name.chain) {
            joining.end(tell);
            leaves_out |= joining.leaves_out();
            // Its records have numbers of their own.
            joining = Joining::default();
        }
        joining.skip_known(before == Some(file));
        let fault = match segment.lines(progress) {
            Ok(lines) => read_file(segment, lines, &mut joining, is_wanted, tell, &mut unread),
            Err(error) => Err(unread_at(segment, 0, error.to_string())),
        };
        unread.extend(fault.err());
    }
    joining.end(tell);
    leaves_out |= joining.leaves_out();
    Reading { unread, leaves_out }
}

fn unread_at(segment: &Segment, offset: u64, why: String) -> Unread {
    Unread { path: segment.path.clone(), offset, why }
}

fn read_file(
    segment: &Segment,
    mut lines: Lines<impl BufRead>,
    joining: &mut Joining,
    is_wanted: &dyn Fn(&Call) -> bool,
    tell: &mut dyn FnMut(Call),
    unread: &mut Vec<Unread>,
) -> Result<(), Unread> {
    let fault = |offset, why| unread_at(segment, offset, why);
    loop {
        let line = match lines.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error @ LineError::TooLong { offset }) => {
                if unread.len() < UNREAD_MAX {
                    unread.push(fault(offset, error.to_string()));
                }
                continue;
            }
            Err(error @ LineError::Read(_)) => return Err(fault(0, error.to_string())),
        };
        // One without an end may be on its way. Nobody proves what it says, and `verify` does not look at it.
        if line.is_whole
            && let Err(why) = joining.take_line(segment.name.chain, line.bytes, is_wanted, tell)
            && unread.len() < UNREAD_MAX
        {
            unread.push(fault(line.offset, why));
        }
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

    /// Shows keys without the hashes of what was written: what is done to one key reads alike.
    pub fn leave_out_values(&mut self) {
        for KeyTouch { position, verb, keys } in &self.keys {
            if let Some(shown) = self.touches.get_mut(*position) {
                *shown = format!("{} {}", printable(verb), keys.shown());
            }
        }
    }

    /// What became of it, in a few words.
    #[must_use]
    pub fn result(&self) -> String {
        match (&self.outcome, self.verdict.as_str()) {
            (Some(outcome), _) => outcome.shown(),
            (None, "allow") if self.is_open => "open".to_owned(),
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
