//! What is asked of a log: which calls, who last wrote a key.

use std::net::IpAddr;

use super::calls::{Call, KeyTouch};
use super::keys::{AskedKey, Holds};

/// Which calls; what is not said fits all.
#[derive(Debug, Default)]
pub struct Question {
    /// A pattern with `*` and `?` over the whole principal, or its identity.
    pub principal: Option<glob::Pattern>,
    /// A key that is touched.
    pub key: Option<AskedKey>,
    /// A prefix of which a key is touched.
    pub prefix: Option<Vec<u8>>,
    /// A verb.
    pub verb: Option<String>,
    /// `allow`, `deny` or `refuse`.
    pub verdict: Option<String>,
    /// A pattern over the RPC or path.
    pub rpc: Option<glob::Pattern>,
    /// The address of the client, without its port.
    pub source: Option<IpAddr>,
    /// From this time on, as records show times.
    pub since: Option<String>,
    /// Before this time.
    pub until: Option<String>,
    /// Behind this record of each chain.
    pub after_seq: Option<u64>,
    /// ringfence's own steps, too.
    pub own_steps: bool,
}

/// Whether a call is one that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fits {
    /// It is not.
    No,
    /// Its keys were not recorded; all else fits.
    Unnamed,
    /// Its keys are not shown enough to tell.
    Perhaps,
    /// It is.
    Yes,
}

impl Question {
    /// Whether it is about this call.
    #[must_use]
    pub fn fits(&self, call: &Call) -> Fits {
        let own = call.principal.as_deref() == Some("(ringfence)");
        let fits = (self.own_steps || !own)
            && self.fits_text(call)
            && self.since.as_ref().is_none_or(|since| call.time >= *since)
            && self.until.as_ref().is_none_or(|until| call.time < *until)
            && self.after_seq.is_none_or(|after| call.seq > after);
        if fits { self.fits_keys(call) } else { Fits::No }
    }

    fn fits_text(&self, call: &Call) -> bool {
        let principal = |pattern: &glob::Pattern| {
            let whole = call.principal.as_deref().unwrap_or_default();
            let identity = whole.split('(').next().unwrap_or_default();
            pattern.matches(whole) || pattern.matches(identity)
        };
        let source = |wanted: &IpAddr| {
            let source = call.source.as_deref().and_then(|source| source.rsplit_once(':'));
            source.and_then(|(source, _)| address(source)) == Some(*wanted)
        };
        let rpc = |pattern: &glob::Pattern| {
            let method = call.rpc.rsplit('/').next().unwrap_or_default();
            pattern.matches(&call.rpc) || pattern.matches(method)
        };
        self.principal.as_ref().is_none_or(principal)
            && self.verdict.as_ref().is_none_or(|verdict| *verdict == call.verdict)
            && self.rpc.as_ref().is_none_or(rpc)
            && self.source.as_ref().is_none_or(source)
    }

    /// Verb, key and prefix have to fit the same touch.
    fn fits_keys(&self, call: &Call) -> Fits {
        let is_wanted = |verb: &str| self.verb.as_ref().is_none_or(|wanted| wanted == verb);
        if self.key.is_none() && self.prefix.is_none() {
            let mut verbs = call.touches.iter().map(|touch| touch.split(' ').next().unwrap_or(""));
            let fits = self.verb.is_none() || verbs.any(is_wanted);
            return if fits { Fits::Yes } else { Fits::No };
        }
        let wanted = call.keys.iter().filter(|touch| is_wanted(&touch.verb));
        let holds = wanted.map(|KeyTouch { keys, .. }| {
            let key = self.key.as_ref().map_or(Holds::Yes, |key| keys.hold(key));
            let prefix = self.prefix.as_ref().map_or(Holds::Yes, |prefix| keys.overlap(prefix));
            key.min(prefix)
        });
        match holds.max().unwrap_or(Holds::No) {
            Holds::Yes => Fits::Yes,
            Holds::Perhaps => Fits::Perhaps,
            Holds::No if call.unnamed.iter().any(|verb| is_wanted(verb)) => Fits::Unnamed,
            Holds::No => Fits::No,
        }
    }
}

/// An address as one, whichever way it is written: 10.0.0.7 and ::ffff:10.0.0.7 are one host. The zone of one that is
/// of a link only is left out.
#[must_use]
pub fn address(text: &str) -> Option<IpAddr> {
    let bare = text.trim_matches(['[', ']']).split('%').next().unwrap_or_default();
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// Who last wrote or deleted a key.
#[derive(Debug, Default)]
pub struct Blame {
    /// The last that etcd said it did.
    pub last: Option<Call>,
    /// Later ones of which it is not known, the newest last.
    pub perhaps: Vec<Call>,
    /// Tries that were denied or refused.
    pub denied: u64,
    /// Changes of keys that were not recorded.
    pub unnamed: u64,
    /// Calls of which it is not known and which are not remembered: the oldest.
    pub forgotten: u64,
}

/// The most calls of which it is not known whether they did anything.
const PERHAPS_MAX: usize = 1000;

impl Blame {
    /// Whether a call may have changed the key, or something that its record does not show.
    #[must_use]
    pub fn concerns(key: &AskedKey, call: &Call) -> bool {
        Self::changes_unnamed(call) || Self::changes(key, call) != Holds::No
    }

    fn changes_unnamed(call: &Call) -> bool {
        call.unnamed.iter().any(|verb| verb == "put" || verb == "delete")
    }

    fn changes(key: &AskedKey, call: &Call) -> Holds {
        let changing =
            call.keys.iter().filter(|touch| touch.verb == "put" || touch.verb == "delete");
        changing.map(|touch| touch.keys.hold(key)).max().unwrap_or(Holds::No)
    }

    /// Takes a call that concerns the key.
    pub fn take(&mut self, key: &AskedKey, call: Call) {
        let changes = Self::changes(key, &call);
        if changes == Holds::No {
            self.unnamed += 1;
            return;
        }
        if call.verdict != "allow" {
            self.denied += 1;
            return;
        }
        if call.did_nothing() {
            return;
        }
        if call.is_proven() && changes == Holds::Yes && call.surely_changes() {
            if self.last.as_ref().is_none_or(|last| order(last) < order(&call)) {
                self.last = Some(call);
            }
            return;
        }
        if self.perhaps.len() >= PERHAPS_MAX {
            // Who wants to hide a change behind many others shows at least that there were many.
            self.perhaps.remove(0);
            self.forgotten += 1;
        }
        self.perhaps.push(call);
    }

    /// Leaves of those that are not sure only what came after the last sure one.
    pub fn conclude(&mut self) {
        if let Some(last) = &self.last {
            let known = order(last);
            self.perhaps.retain(|call| order(call) > known);
        }
        self.perhaps.sort_by_key(order);
    }
}

/// By revision where there is one; clocks of several ringfences differ.
fn order(call: &Call) -> (i64, String) {
    let revision = call.outcome.as_ref().and_then(|outcome| outcome.revision);
    (revision.unwrap_or(i64::MAX), call.time.clone())
}

#[cfg(test)]
mod tests {
    use super::super::calls::CallOutcome;
    use super::super::record::Touch;
    use super::*;

    /// One call of that method on those keys, with etcd's status, revision and count.
    fn call(method: &str, touch: &str, outcome: (u16, i64, Option<i64>)) -> Call {
        let (status, revision, count) = outcome;
        let touch: Touch<'_> = serde_json::from_str(touch).unwrap();
        let outcome = CallOutcome {
            status: Some(status),
            fault: None,
            revision: Some(revision),
            count,
            latency_us: None,
        };
        Call {
            chain: String::new(),
            seq: u64::try_from(revision).unwrap(),
            time: format!("{revision}"),
            principal: Some(method.to_owned()),
            source: None,
            rpc: format!("/service/{method}"),
            call: String::new(),
            verdict: "allow".to_owned(),
            reason: None,
            rules: Vec::new(),
            touches: vec![touch.shown()],
            kubernetes: Vec::new(),
            one_in: None,
            keys: vec![KeyTouch {
                position: 0,
                verb: touch.verb.to_string(),
                keys: touch.keys().unwrap(),
            }],
            unnamed: Vec::new(),
            perhaps: false,
            is_open: false,
            outcome: Some(outcome),
        }
    }

    /// After a sure write by Put at revision 5: who is told to be last, and how many are told as perhaps.
    fn check(later: Call, last: &str, perhaps: usize) {
        let key = AskedKey::new(b"/a".to_vec(), None);
        let mut blame = Blame::default();
        blame.take(&key, call("Put", r#"{"verb":"put","key":"/a"}"#, (0, 5, None)));
        blame.take(&key, later);
        blame.conclude();
        let found = (blame.last.unwrap().principal.unwrap(), blame.perhaps.len());
        assert_eq!(found, (last.to_owned(), perhaps));
    }

    /// The attack: something that changed nothing, or perhaps nothing, stands for who wrote the key.
    #[test]
    fn only_what_surely_changed_the_key_is_the_last_change() {
        let delete = r#"{"verb":"delete","key":"/a"}"#;
        let range = r#"{"verb":"delete","key":"/","range_end":"0"}"#;
        check(call("DeleteRange", delete, (0, 6, Some(1))), "DeleteRange", 0);
        check(call("DeleteRange", delete, (0, 5, None)), "Put", 0);
        check(call("DeleteRange", range, (0, 6, Some(3))), "Put", 1);
        check(call("Resign", delete, (0, 6, None)), "Put", 1);
        check(call("Unlock", delete, (0, 6, None)), "Put", 1);
        check(call("Txn", delete, (0, 6, None)), "Put", 1);
        // Refused for sure, and perhaps applied after all.
        let put = r#"{"verb":"put","key":"/a"}"#;
        check(call("Put", put, (7, 6, None)), "Put", 0);
        check(call("Put", put, (14, 6, None)), "Put", 1);
    }
}
