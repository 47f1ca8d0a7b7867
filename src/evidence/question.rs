//! What is asked of a log: which calls, who last wrote a key.

use std::cell::Cell;

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
    pub source: Option<String>,
    /// From this time on, as records show times.
    pub since: Option<String>,
    /// Before this time.
    pub until: Option<String>,
    /// Behind this record of each chain.
    pub after_seq: Option<u64>,
    /// ringfence's own steps, too.
    pub own_steps: bool,
    /// Calls that would fit if their keys had been recorded.
    pub unnamed: Cell<u64>,
}

impl Question {
    /// Whether it is about this call.
    #[must_use]
    pub fn fits(&self, call: &Call) -> bool {
        let own = call.principal.as_deref() == Some("(ringfence)");
        (self.own_steps || !own)
            && self.fits_text(call)
            && self.since.as_ref().is_none_or(|since| call.time >= *since)
            && self.until.as_ref().is_none_or(|until| call.time < *until)
            && self.after_seq.is_none_or(|after| call.seq > after)
            && self.fits_keys(call)
    }

    fn fits_text(&self, call: &Call) -> bool {
        let principal = |pattern: &glob::Pattern| {
            let whole = call.principal.as_deref().unwrap_or_default();
            let identity = whole.split('(').next().unwrap_or_default();
            pattern.matches(whole) || pattern.matches(identity)
        };
        let source = |wanted: &String| {
            let address = call.source.as_deref().and_then(|source| source.rsplit_once(':'));
            address.is_some_and(|(address, _)| {
                address.trim_matches(['[', ']']) == wanted.trim_matches(['[', ']'])
            })
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
    fn fits_keys(&self, call: &Call) -> bool {
        if self.key.is_none() && self.prefix.is_none() {
            return self.verb.as_ref().is_none_or(|verb| {
                let is_it = |touch: &String| touch.split(' ').next() == Some(verb.as_str());
                call.touches.iter().any(is_it)
            });
        }
        if call.is_unnamed {
            self.unnamed.set(self.unnamed.get().saturating_add(1));
        }
        call.keys.iter().any(|KeyTouch { verb, keys, .. }| {
            self.verb.as_ref().is_none_or(|wanted| wanted == verb)
                && self.key.as_ref().is_none_or(|key| keys.hold(key) != Holds::No)
                && self.prefix.as_ref().is_none_or(|prefix| keys.overlap(prefix) != Holds::No)
        })
    }
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
}

/// The most calls of which it is not known whether they did anything.
const PERHAPS_MAX: usize = 100;

impl Blame {
    /// Whether a call would change the key, as far as its record shows.
    #[must_use]
    pub fn concerns(key: &AskedKey, call: &Call) -> bool {
        call.is_unnamed || Self::changes(key, call) != Holds::No
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
            let writes = |touch: &String| touch == "put" || touch == "delete";
            self.unnamed += u64::from(call.touches.iter().any(writes));
            return;
        }
        if call.verdict != "allow" {
            self.denied += 1;
            return;
        }
        let refused_by_etcd = call.outcome.as_ref().is_some_and(|outcome| {
            outcome.fault.is_none() && outcome.status.is_some_and(|status| status != 0)
        });
        if refused_by_etcd {
            return;
        }
        // A transaction that went well may have taken its other branch; and a key that the record does not show
        // may be another.
        if call.is_proven() && !call.rpc.ends_with("/Txn") && changes == Holds::Yes {
            if self.last.as_ref().is_none_or(|last| order(last) < order(&call)) {
                self.last = Some(call);
            }
            return;
        }
        if self.perhaps.len() >= PERHAPS_MAX {
            self.perhaps.remove(0);
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
