//! Whose lease is it? etcd gives leases no owner; here the ID itself says it, so that nothing is
//! stored and every replica with the same keys agrees, across restarts and for empty leases too.
//!
//! An ID is a positive 63-bit number: 31 bits of nonce, then 32 bits of a MAC over the nonce and the
//! principal. Guessing one that passes takes four thousand million tries, each of them recorded.

use std::collections::BTreeMap;

use aws_lc_rs::hmac;

use crate::etcd::StoredKey;
use crate::identity::Principal;

/// The bytes of one key.
pub const LEASE_KEY_BYTES: usize = 32;

/// The keys that IDs are tagged with: the first makes tags, all of them are believed, so that a new
/// key can be brought in while leases of the old one live.
#[derive(Debug, Default)]
pub struct LeaseKeys(Vec<hmac::Key>);

/// What etcd said of leases that had to be looked up, by ID: the keys each holds; none when there is
/// no such lease.
#[derive(Clone, Debug, Default)]
pub struct FoundLeases(BTreeMap<i64, LeaseContent>);

/// What a look-up brings of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseContent {
    /// The keys on it; none when there is no such lease.
    Keys(Vec<StoredKey>),
    /// etcd does not let the user look at it.
    Hidden,
}

impl LeaseKeys {
    /// The keys in their order. Without any, no lease has an owner and none can be made.
    #[must_use]
    pub fn new(keys: &[[u8; LEASE_KEY_BYTES]]) -> Self {
        Self(keys.iter().map(|key| hmac::Key::new(hmac::HMAC_SHA256, key)).collect())
    }

    /// Whether leases can be made.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// An ID for a new lease of that principal; 0 when there is no key.
    #[must_use]
    pub fn new_lease(&self, principal: &Principal, nonce: u32) -> i64 {
        // The sign bit stays clear, and the nonce is not 0: no ID is small enough to look like one
        // that a program chose by hand.
        let nonce = (nonce & 0x7fff_ffff).max(1);
        self.0
            .first()
            .map_or(0, |key| (i64::from(nonce) << 32) | i64::from(tag(key, principal, nonce)))
    }

    /// Whether the lease was made for that principal.
    #[must_use]
    pub fn owns(&self, principal: &Principal, lease: i64) -> bool {
        let Ok(nonce) = u32::try_from(lease >> 32) else { return false };
        // What is compared is no secret from its owner, and of others' tags a try tells only yes or no.
        nonce > 0
            && self.0.iter().any(|key| i64::from(tag(key, principal, nonce)) == lease & 0xffff_ffff)
    }
}

/// The principal is written without ambiguity: each part behind its length.
fn tag(key: &hmac::Key, principal: &Principal, nonce: u32) -> u32 {
    let mut context = hmac::Context::with_key(key);
    context.update(&nonce.to_be_bytes());
    for part in principal.parts() {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    let signed = context.sign();
    let first = signed.as_ref().first_chunk::<4>().copied().unwrap_or_default();
    u32::from_be_bytes(first)
}

impl FoundLeases {
    /// Takes what etcd said of one lease.
    pub fn insert(&mut self, lease: i64, keys: LeaseContent) {
        self.0.insert(lease, keys);
    }

    pub(super) fn content(&self, lease: i64) -> Option<&LeaseContent> {
        self.0.get(&lease)
    }

    pub(super) fn keys(&self, lease: i64) -> Option<&[StoredKey]> {
        match self.0.get(&lease)? {
            LeaseContent::Keys(keys) => Some(keys),
            LeaseContent::Hidden => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn principal(identity: &str, captures: &[(&str, &str)]) -> Principal {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Principal::new(identity, captures.iter().map(owned).collect())
    }

    #[test]
    fn two_tenants_under_one_identity_never_share_a_lease() {
        let keys = LeaseKeys::new(&[[7; LEASE_KEY_BYTES]]);
        let acme = principal("tenant", &[("uri", "acme")]);
        let lease = keys.new_lease(&acme, 12345);
        assert!(lease > 0 && keys.owns(&acme, lease));
        for other in [
            principal("tenant", &[("uri", "globex")]),
            principal("tenant", &[]),
            principal("tenantu", &[("ri", "acme")]),
            principal("tenant", &[("uria", "cme")]),
        ] {
            assert!(!keys.owns(&other, lease), "{other}");
        }
        for forged in [0, -1, i64::MIN, i64::MAX, 1, lease + 1, lease ^ (1 << 40), -lease] {
            assert!(!keys.owns(&acme, forged), "{forged:x}");
        }
    }

    #[test]
    fn a_lease_lives_through_the_rotation_of_its_key_and_no_longer() {
        let (old, new) = ([1; LEASE_KEY_BYTES], [2; LEASE_KEY_BYTES]);
        let acme = principal("tenant", &[("uri", "acme")]);
        let lease = LeaseKeys::new(&[old]).new_lease(&acme, 1);
        assert!(LeaseKeys::new(&[new, old]).owns(&acme, lease));
        assert!(!LeaseKeys::new(&[new]).owns(&acme, lease));
        assert_eq!(LeaseKeys::default().new_lease(&acme, 1), 0);
        assert!(!LeaseKeys::default().owns(&acme, 0));
    }

    proptest! {
        #[test]
        fn every_new_lease_is_positive_and_its_makers(nonce: u32, byte: u8) {
            let keys = LeaseKeys::new(&[[byte; LEASE_KEY_BYTES]]);
            let acme = principal("tenant", &[("uri", "acme")]);
            let lease = keys.new_lease(&acme, nonce);
            prop_assert!(lease > u32::MAX.into());
            prop_assert!(keys.owns(&acme, lease));
        }
    }
}
