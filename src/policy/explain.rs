//! What the policy says of a certificate, identity by identity, for whoever asks why.

use super::compile::Policy;
use crate::identity::{CertificateFacts, Difference};

/// What one identity makes of a certificate.
#[derive(Debug)]
pub struct Explained<'a> {
    /// The identity.
    pub identity: &'a str,
    /// Its roles, in their order.
    pub roles: &'a [String],
    /// Why it does not match; `None` when it does.
    pub difference: Option<Difference>,
}

impl Policy {
    /// Every identity, in the order of the policy. The one without a difference is the one that
    /// [`identify`](Self::identify) finds; when there are several, it finds none.
    pub fn explain(
        &self,
        ca: &str,
        facts: &CertificateFacts,
    ) -> impl Iterator<Item = Explained<'_>> {
        self.identities().map(move |(identity, roles, pattern)| Explained {
            identity,
            roles,
            difference: pattern.difference(ca, facts),
        })
    }
}
