//! The value one must hold to forward a request. It owns the request, so there is nothing else to
//! send. Only `decide` makes one.

use bytes::Bytes;
use smallvec::SmallVec;

use super::compile::RuleId;
use crate::etcd::{CanonicalRequest, Rpc, Touches};

/// An allowed request, with the rules that allow it.
#[derive(Debug)]
pub struct Permit {
    request: CanonicalRequest,
    rules: SmallVec<[RuleId; 2]>,
}

impl Permit {
    /// INVARIANT: called in `decide` alone, for what was decided on and for the two steps of ringfence's own;
    /// `tests/architecture.rs` checks it.
    pub(super) const fn new(request: CanonicalRequest, rules: SmallVec<[RuleId; 2]>) -> Self {
        Self { request, rules }
    }

    /// Which RPC is allowed.
    #[must_use]
    pub const fn rpc(&self) -> Rpc {
        self.request.rpc()
    }

    /// The body to send: the bytes that were decided on.
    #[must_use]
    pub const fn body(&self) -> &Bytes {
        self.request.body()
    }

    /// All that it does.
    #[must_use]
    pub const fn touches(&self) -> &Touches {
        self.request.touches()
    }

    /// The lease that has to be granted before the request is sent.
    #[must_use]
    pub const fn lease_to_grant(&self) -> Option<i64> {
        self.request.lease_to_grant()
    }

    /// The rule behind each touch, in the same order.
    #[must_use]
    pub fn rules(&self) -> &[RuleId] {
        &self.rules
    }
}
