//! (rights, page) -> permit or denial, as `decide` and `permit` are for RPCs: the permit is the
//! value one must hold to ask etcd for a page, and it owns the target, which is from a table.

use super::compile::{Rights, RuleId};
use super::decide::{Cause, decide_touch};
use crate::etcd::PageRequest;

/// What was decided.
#[derive(Debug)]
pub enum HttpDecision {
    /// Go on, with this.
    Allow(HttpPermit),
    /// Stop.
    Deny(HttpDenial),
}

/// An allowed page, with the rule that allows it.
#[derive(Debug)]
pub struct HttpPermit {
    request: PageRequest,
    rule: RuleId,
}

/// A denied page.
#[derive(Debug)]
pub struct HttpDenial {
    /// What was asked for.
    pub request: PageRequest,
    /// Why its touch has no grant.
    pub cause: Cause,
}

/// Decides a page.
#[must_use]
pub fn decide_http(rights: &Rights, request: PageRequest) -> HttpDecision {
    match decide_touch(rights, &request.touch()) {
        Ok(rule) => HttpDecision::Allow(HttpPermit { request, rule }),
        Err(cause) => HttpDecision::Deny(HttpDenial { request, cause }),
    }
}

impl HttpPermit {
    /// What is allowed, and all there is to send.
    #[must_use]
    pub const fn request(&self) -> &PageRequest {
        &self.request
    }

    /// The rule behind it.
    #[must_use]
    pub const fn rule(&self) -> RuleId {
        self.rule
    }
}
