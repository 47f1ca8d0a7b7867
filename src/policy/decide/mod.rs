//! (who asks, request) -> permit, denial, or a question to etcd first. Every touch needs a grant; one
//! without is a denial of the whole request.

use smallvec::SmallVec;

use super::compile::{Identification, Rights, RuleId};
use super::lease::{FoundLeases, LeaseContent, LeaseKeys};
use super::permit::Permit;
use crate::etcd::touch::TOUCHES_MAX;
use crate::etcd::{
    CanonicalRequest, KeyRange, KeyVerb, LeaseUse, StoreVerb, StoredKey, Touch, Touches,
};

/// The most leases that are looked up for one request.
const LOOK_UPS_MAX: usize = 8;

/// What was decided.
#[derive(Debug)]
pub enum Decision {
    /// Go on, with this.
    Allow(Permit),
    /// Stop.
    Deny(Denial),
    /// Look up which keys these leases hold, then ask again. All that can be decided without is
    /// allowed.
    LookUp(CanonicalRequest, SmallVec<[i64; 1]>),
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
    /// The lease is not the principal's, and there are no keys on it that would make it so.
    ForeignLease,
    /// More leases would have to be looked up, or more keys decided on, than is done for one request.
    TooMany,
}

/// Who asks, with all that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// Who, and what it may do.
    pub identification: &'a Identification,
    /// Whose leases are whose.
    pub leases: &'a LeaseKeys,
}

/// Decides a request. `found` holds what earlier look-ups for the same request have brought.
#[must_use]
pub fn decide(asker: Asker<'_>, request: CanonicalRequest, found: &FoundLeases) -> Decision {
    let deny = |request, touch, cause| Decision::Deny(Denial { request, touch, cause });
    let rights = &asker.identification.rights;
    let mut rules: SmallVec<[RuleId; 2]> = SmallVec::new();
    let mut look_ups: SmallVec<[i64; 1]> = SmallVec::new();
    for (position, touch) in request.touches().iter().enumerate() {
        match asker.decide_touch(touch, found) {
            Ok(Grant::Rule(rule)) => rules.push(rule),
            Ok(Grant::LookUp(rule, lease)) => {
                rules.push(rule);
                if !look_ups.contains(&lease) {
                    look_ups.push(lease);
                }
            }
            Err(cause) => return deny(request, position, cause),
        }
    }
    if look_ups.len() > LOOK_UPS_MAX {
        return deny(request, 0, Cause::TooMany);
    }
    if !look_ups.is_empty() {
        return Decision::LookUp(request, look_ups);
    }
    let mut request = request;
    if let Err(denied) = asker.decide_on_found(&mut request, found, &mut rules) {
        return deny(request, denied.0, denied.1);
    }
    if rules.is_empty() {
        // A transaction without compares and operations touches nothing; default deny has no grant
        // to name, so it takes at least one right of any kind.
        match rights.any_rule() {
            Some(rule) => rules.push(rule),
            None => return deny(request, 0, Cause::NoRule),
        }
    }
    Decision::Allow(Permit::new(request, rules))
}

/// A permit for ringfence's own question which keys a lease holds. It reads key names for a decision
/// and for the record, and its answer goes to no client.
#[must_use]
pub fn permit_look_up(lease: i64) -> Permit {
    Permit::new(CanonicalRequest::lease_look_up(lease), SmallVec::new())
}

/// A permit for ringfence's own log-in to etcd; `None` when the two are too long for a request.
#[must_use]
pub fn permit_log_in(user: &str, password: &str) -> Option<Permit> {
    let request = CanonicalRequest::log_in(user, password)?;
    Some(Permit::new(request, SmallVec::new()))
}

/// A permit for ringfence's own question whether etcd still takes a token: how often there is a key that
/// can hardly be there. Its answer goes to no client.
#[must_use]
pub fn permit_probe() -> Permit {
    Permit::new(CanonicalRequest::probe(), SmallVec::new())
}

/// A permit for ringfence's own end of a watch that is allowed no more.
#[must_use]
pub fn permit_cancel_watch(id: i64) -> Permit {
    Permit::new(CanonicalRequest::cancel_watch(id), SmallVec::new())
}

/// A permit for the lease that an allowed request runs under: that request's own permit allows it.
#[must_use]
pub fn permit_session_lease(permit: &Permit) -> Option<Permit> {
    let request = permit.lease_to_grant().map(CanonicalRequest::session_lease);
    request.map(|request| Permit::new(request, SmallVec::new()))
}

/// What allows a touch.
enum Grant {
    Rule(RuleId),
    /// This rule, if what the lease holds agrees.
    LookUp(RuleId, i64),
}

impl Asker<'_> {
    fn decide_touch(&self, touch: &Touch, found: &FoundLeases) -> Result<Grant, Cause> {
        let Touch::Lease { usage, lease } = touch else {
            return decide_touch(&self.identification.rights, touch).map(Grant::Rule);
        };
        let rule = self.identification.rights.granting_store(StoreVerb::Lease)?;
        let owned = self.leases.owns(&self.identification.principal, *lease);
        let content = match found.content(*lease) {
            // What it holds cannot be decided on, and one that is not there must read alike.
            Some(LeaseContent::Hidden) => return Err(Cause::ForeignLease),
            Some(LeaseContent::Keys(keys)) => Some(keys.as_slice()),
            None => None,
        };
        match (usage, owned, content) {
            // An ID of the client's choice could be told from one that exists.
            (LeaseUse::Grant, false, _) => Err(Cause::ForeignLease),
            (LeaseUse::Revoke, true, None) => Ok(Grant::LookUp(rule, *lease)),
            (_, true, _) => Ok(Grant::Rule(rule)),
            (_, false, None) if *lease > 0 => Ok(Grant::LookUp(rule, *lease)),
            // Nobody's: what it says is the same whether it exists or not.
            (_, false, None) => Err(Cause::ForeignLease),
            (_, false, Some([])) => Err(Cause::ForeignLease),
            (_, false, Some(_)) => Ok(Grant::Rule(rule)),
        }
    }

    /// The keys on leases that were looked up count as touched: a revoke deletes them, and a lease
    /// older than ringfence is used only by who may write every key on it.
    fn decide_on_found(
        &self,
        request: &mut CanonicalRequest,
        found: &FoundLeases,
        rules: &mut SmallVec<[RuleId; 2]>,
    ) -> Result<(), (usize, Cause)> {
        let decided = request.touches().len();
        let mut more = Touches::new();
        for touch in request.touches() {
            if let Touch::Lease { usage, lease } = touch
                && let Some(keys) = found.keys(*lease)
            {
                if decided + more.len() + keys.len() > TOUCHES_MAX {
                    return Err((0, Cause::TooMany));
                }
                let owned = self.leases.owns(&self.identification.principal, *lease);
                more.extend(keys.iter().flat_map(|key| through_lease(*usage, owned, key)));
            }
        }
        for touch in &more {
            match decide_touch(&self.identification.rights, touch) {
                Ok(rule) => rules.push(rule),
                Err(cause) => {
                    // The one that is denied is enough: a lease may hold thousands of long keys, and
                    // a denial that names them all could be asked for again and again.
                    drop(request.add_touches(std::iter::once(touch.clone())));
                    return Err((decided, cause));
                }
            }
        }
        request.add_touches(more.into_iter()).map_err(|_| (0, Cause::TooMany))
    }
}

/// What a use of a lease does to one key on it.
fn through_lease(usage: LeaseUse, owned: bool, key: &StoredKey) -> impl Iterator<Item = Touch> {
    let put = (!owned).then_some(KeyVerb::Put);
    let more = match usage {
        LeaseUse::Revoke => Some(KeyVerb::Delete),
        LeaseUse::ListKeys => Some(KeyVerb::Get),
        LeaseUse::Grant | LeaseUse::Attach | LeaseUse::KeepAlive | LeaseUse::TimeToLive => None,
    };
    let range = KeyRange::point(key.clone());
    put.into_iter().chain(more).map(move |verb| Touch::Key { verb, range: range.clone() })
}

/// Decides one touch that is about keys or the store: the rule that grants it.
///
/// # Errors
/// Why nothing does.
pub fn decide_touch(rights: &Rights, touch: &Touch) -> Result<RuleId, Cause> {
    match touch {
        Touch::Key { verb, range } => rights
            .granting(*verb, range)
            .ok_or_else(|| rights.denying(*verb, range).map_or(Cause::NoRule, Cause::DenyRule)),
        Touch::Store(verb) => rights.granting_store(*verb),
        Touch::CancelWatch(_) | Touch::WatchProgress => rights.any_rule().ok_or(Cause::NoRule),
        Touch::Lease { .. } => Err(Cause::ForeignLease),
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
