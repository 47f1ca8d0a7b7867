//! (rights, request) -> permit or denial. Every touch needs a grant; one without is a denial of
//! the whole request.

use smallvec::SmallVec;

use super::compile::{Rights, RuleId};
use super::permit::Permit;
use crate::etcd::{CanonicalRequest, Touch};

/// What was decided.
#[derive(Debug)]
pub enum Decision {
    /// Go on, with this.
    Allow(Permit),
    /// Stop.
    Deny(Denial),
}

/// A denied request, with the first touch that has no grant.
#[derive(Debug)]
pub struct Denial {
    /// What was asked for.
    pub request: CanonicalRequest,
    /// The position of the first touch without a grant.
    pub touch: usize,
    /// Why it has none.
    pub cause: Cause,
}

/// Why a touch has no grant. It goes into the audit record, never to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No rule allows it, or no rule all of it.
    NoRule,
    /// This rule denies it, or part of it.
    DenyRule(RuleId),
    /// A lease is named, and nobody can tell yet whose it is.
    LeaseOwnerUnknown,
}

/// Decides a request.
#[must_use]
pub fn decide(rights: &Rights, request: CanonicalRequest) -> Decision {
    let mut rules = SmallVec::new();
    for (position, touch) in request.touches().iter().enumerate() {
        match decide_touch(rights, touch) {
            Ok(rule) => rules.push(rule),
            Err(cause) => {
                return Decision::Deny(Denial { request, touch: position, cause });
            }
        }
    }
    if rules.is_empty() {
        // A transaction without compares and operations touches nothing; default deny has no grant
        // to name, so it takes at least one right of any kind.
        match rights.any_rule() {
            Some(rule) => rules.push(rule),
            None => {
                return Decision::Deny(Denial { request, touch: 0, cause: Cause::NoRule });
            }
        }
    }
    Decision::Allow(Permit::new(request, rules))
}

/// Decides one touch: the rule that grants it.
///
/// # Errors
/// Why nothing does.
pub fn decide_touch(rights: &Rights, touch: &Touch) -> Result<RuleId, Cause> {
    match touch {
        Touch::Key { verb, range } => rights
            .granting(*verb, range)
            .ok_or_else(|| rights.denying(*verb, range).map_or(Cause::NoRule, Cause::DenyRule)),
        Touch::Store(verb) => rights.granting_store(*verb),
        Touch::AttachLease(_) => Err(Cause::LeaseOwnerUnknown),
    }
}
