//! Decisions on leases, locks and elections, most of them attacks.

use bytes::Bytes;
use prost::Message;

use super::super::lease::LEASE_KEY_BYTES;
use super::super::{Policy, PolicySource};
use super::*;
use crate::document::Problems;
use crate::etcd::Rpc;
use crate::etcd::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    PutRequest, TxnRequest,
};
use crate::etcd::pb::v3electionpb::{LeaderKey, ProclaimRequest};
use crate::etcd::pb::v3lockpb::LockRequest;
use crate::identity::CertificateFacts;

const POLICY: &str = r#"
[[identity]]
name = "tenant"
match = { ca = "tenants", cn = "*" }
roles = ["tenant"]

[[role]]
name = "tenant"
rules = [
  { prefix = "/${cn}/", allow = ["get", "list", "watch", "put", "delete"] },
  { key = "/${cn}/quota", deny = ["delete"] },
  { allow = ["lease"] },
]

[[identity]]
name = "reader"
match = { ca = "readers", cn = "reader" }
roles = ["reader"]

[[role]]
name = "reader"
rules = [{ prefix = "/", allow = ["get", "list", "put", "delete"] }]

[[identity]]
name = "barred"
match = { ca = "barred", cn = "barred" }
roles = ["barred"]

[[role]]
name = "barred"
rules = [{ prefix = "/", deny = ["get"] }]
"#;

struct Tenants {
    policy: Policy,
    leases: LeaseKeys,
}

impl Tenants {
    fn new() -> Self {
        let (mut source, problems) = (PolicySource::default(), Problems::default());
        source.read("policy.toml", POLICY, &problems);
        let policy = Policy::compile(source, &["tenants", "readers", "barred"], &problems);
        assert!(!problems.has_errors());
        Self { policy, leases: LeaseKeys::new(&[[3; LEASE_KEY_BYTES]]) }
    }

    fn identification(&self, ca: &str, name: &str) -> Identification {
        let facts =
            CertificateFacts { common_names: vec![name.to_owned()], ..CertificateFacts::default() };
        self.policy.identify(ca, &facts).unwrap()
    }

    fn lease_of(&self, name: &str) -> i64 {
        self.leases.new_lease(&self.identification("tenants", name).principal, 77)
    }

    /// `allow`, `deny` with the touch and the cause, or the leases to look up.
    fn decided(&self, name: &str, rpc: Rpc, message: &impl Message, found: &FoundLeases) -> String {
        let ca = match name {
            "reader" => "readers",
            "barred" => "barred",
            _ => "tenants",
        };
        let identification = self.identification(ca, name);
        let asker = Asker { identification: &identification, leases: &self.leases };
        let bytes = Bytes::from(message.encode_to_vec());
        let mut new_lease = || self.leases.new_lease(&identification.principal, 99);
        let request = CanonicalRequest::read(rpc, &bytes, &mut new_lease).unwrap();
        match decide(asker, request, found) {
            Decision::Allow(_) => "allow".to_owned(),
            Decision::Deny(denial) => format!("deny {} {:?}", denial.touch, denial.cause),
            Decision::LookUp(_, leases) => format!("look up {}", leases.len()),
        }
    }

    fn check(&self, rpc: Rpc, message: &impl Message, found: &FoundLeases, expected: &str) {
        let decided = self.decided("a", rpc, message, found);
        assert_eq!(decided, expected, "{rpc:?} {found:?}");
    }
}

fn holds(lease: i64, keys: &[&'static str]) -> FoundLeases {
    let mut found = FoundLeases::default();
    let keys = keys.iter().map(|key| StoredKey::new(*key)).collect();
    found.insert(lease, LeaseContent::Keys(keys));
    found
}

#[test]
fn a_lease_of_ones_own_takes_no_look_up() {
    let tenants = Tenants::new();
    let (own, none) = (tenants.lease_of("a"), FoundLeases::default());
    let put = PutRequest { key: "/a/x".into(), lease: own, ..Default::default() };
    tenants.check(Rpc::Put, &put, &none, "allow");
    tenants.check(Rpc::LeaseKeepAlive, &LeaseKeepAliveRequest { id: own }, &none, "allow");
    let time = LeaseTimeToLiveRequest { id: own, keys: true };
    tenants.check(Rpc::LeaseTimeToLive, &time, &none, "allow");
    tenants.check(Rpc::LeaseGrant, &LeaseGrantRequest { ttl: 5, id: 0 }, &none, "allow");
}

#[test]
fn anothers_lease_is_refused_whether_it_exists_or_not() {
    let tenants = Tenants::new();
    for lease in [tenants.lease_of("b"), 5] {
        for (found, expected) in [
            (FoundLeases::default(), "look up 1"),
            // Unknown to etcd, or without keys: nothing tells the two apart.
            (holds(lease, &[]), "deny 0 ForeignLease"),
            (holds(lease, &["/b/x"]), "deny 1 NoRule"),
            (holds(lease, &["/a/x", "/b/x"]), "deny 1 NoRule"),
        ] {
            let alive = LeaseKeepAliveRequest { id: lease };
            tenants.check(Rpc::LeaseKeepAlive, &alive, &found, expected);
            let time = LeaseTimeToLiveRequest { id: lease, keys: false };
            tenants.check(Rpc::LeaseTimeToLive, &time, &found, expected);
        }
        // Older than ringfence, and every key on it is the caller's to write.
        let found = holds(lease, &["/a/x", "/a/y"]);
        tenants.check(Rpc::LeaseKeepAlive, &LeaseKeepAliveRequest { id: lease }, &found, "allow");
        tenants.check(Rpc::LeaseRevoke, &LeaseRevokeRequest { id: lease }, &found, "allow");
    }
    let none = FoundLeases::default();
    for lease in [0, -1, i64::MIN] {
        let alive = LeaseKeepAliveRequest { id: lease };
        tenants.check(Rpc::LeaseKeepAlive, &alive, &none, "deny 0 ForeignLease");
    }
}

#[test]
fn an_id_of_the_clients_choice_is_refused() {
    let tenants = Tenants::new();
    for id in [5, -1, tenants.lease_of("b")] {
        let grant = LeaseGrantRequest { ttl: 5, id };
        let expected = "deny 0 ForeignLease";
        tenants.check(Rpc::LeaseGrant, &grant, &FoundLeases::default(), expected);
    }
}

#[test]
fn a_revoke_deletes_the_keys_of_the_lease_and_needs_the_right_to() {
    let tenants = Tenants::new();
    let own = tenants.lease_of("a");
    let revoke = LeaseRevokeRequest { id: own };
    tenants.check(Rpc::LeaseRevoke, &revoke, &FoundLeases::default(), "look up 1");
    tenants.check(Rpc::LeaseRevoke, &revoke, &holds(own, &[]), "allow");
    tenants.check(Rpc::LeaseRevoke, &revoke, &holds(own, &["/a/x"]), "allow");
    let quota = tenants.decided("a", Rpc::LeaseRevoke, &revoke, &holds(own, &["/a/quota"]));
    assert!(quota.starts_with("deny 1 DenyRule"), "{quota}");
    tenants.check(Rpc::LeaseRevoke, &revoke, &holds(own, &["/b/x"]), "deny 1 NoRule");
}

/// The attack: a lease of thousands of long keys, one of them not to be deleted, revoked over and over
/// by a dozen bytes: each denial named them all.
#[test]
fn a_denied_revoke_names_one_key_of_many() {
    let tenants = Tenants::new();
    let own = tenants.lease_of("a");
    let identification = tenants.identification("tenants", "a");
    let asker = Asker { identification: &identification, leases: &tenants.leases };
    for (keys, last) in [(4000, Some("/a/quota")), (5000, None)] {
        let mut held: Vec<StoredKey> =
            (0..keys).map(|number| StoredKey::new(format!("/a/{number}"))).collect();
        held.extend(last.map(StoredKey::new));
        let mut found = FoundLeases::default();
        found.insert(own, LeaseContent::Keys(held));
        let bytes = Bytes::from(LeaseRevokeRequest { id: own }.encode_to_vec());
        let request = CanonicalRequest::read(Rpc::LeaseRevoke, &bytes, &mut || 0).unwrap();
        let Decision::Deny(denial) = decide(asker, request, &found) else { panic!("{keys}") };
        let named = denial.request.touches().len();
        assert_eq!(named, 1 + usize::from(last.is_some()), "{keys} keys");
    }
}

/// A key goes with its lease: whoever may not delete it may not bind it to one either.
#[test]
fn a_lease_is_no_way_to_delete_what_one_may_only_put() {
    let tenants = Tenants::new();
    let put =
        PutRequest { key: "/a/quota".into(), lease: tenants.lease_of("a"), ..Default::default() };
    let decided = tenants.decided("a", Rpc::Put, &put, &FoundLeases::default());
    assert!(decided.starts_with("deny 1 DenyRule"), "{decided}");
}

#[test]
fn nobody_without_the_verb_lease_learns_anything_by_a_lease() {
    let tenants = Tenants::new();
    let alive = LeaseKeepAliveRequest { id: 5 };
    let found = FoundLeases::default();
    assert_eq!(tenants.decided("reader", Rpc::LeaseKeepAlive, &alive, &found), "deny 0 NoRule");
    let put = PutRequest { key: "/x".into(), lease: 5, ..Default::default() };
    assert_eq!(tenants.decided("reader", Rpc::Put, &put, &found), "deny 2 NoRule");
}

#[test]
fn a_rule_that_only_denies_lets_no_empty_transaction_in() {
    let tenants = Tenants::new();
    let (empty, found) = (TxnRequest::default(), FoundLeases::default());
    tenants.check(Rpc::Txn, &empty, &found, "allow");
    assert_eq!(tenants.decided("barred", Rpc::Txn, &empty, &found), "deny 0 NoRule");
}

#[test]
fn a_lock_is_decided_on_the_keys_it_really_uses() {
    let tenants = Tenants::new();
    let none = FoundLeases::default();
    let lock = |name: &'static str, lease| LockRequest { name: name.into(), lease };
    tenants.check(Rpc::Lock, &lock("/a", 0), &none, "allow");
    tenants.check(Rpc::Lock, &lock("/a/lock", tenants.lease_of("a")), &none, "allow");
    // 91, 98: the key is below `NAME/`
    tenants.check(Rpc::Lock, &lock("/b", 0), &none, "deny 1 NoRule");
    tenants.check(Rpc::Lock, &lock("", 0), &none, "deny 1 NoRule");
    // 96: another's lease
    let lease = tenants.lease_of("b");
    let refused = "deny 0 ForeignLease";
    tenants.check(Rpc::Lock, &lock("/a", lease), &holds(lease, &[]), refused);
    // 94: the name says one thing and the key another
    let leader = LeaderKey { name: "/a".into(), key: "/b/x".into(), rev: 1, lease: 0 };
    let proclaim = ProclaimRequest { leader: Some(leader), value: "v".into() };
    tenants.check(Rpc::Proclaim, &proclaim, &none, "deny 1 NoRule");
}
