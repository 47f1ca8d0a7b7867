//! The table of requests against the descriptors, and enum numbers that nobody knows.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::FileDescriptorSet;

use super::*;
use crate::etcd::pb::authpb::Permission;

/// path -> full name of the request, read from the compiled descriptors of `proto/`.
fn described_requests() -> BTreeMap<String, String> {
    let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
    let set = FileDescriptorSet::decode(&bytes[..]).unwrap();
    let mut requests = BTreeMap::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let input = method.input_type().trim_start_matches('.').to_owned();
                assert_eq!(requests.insert(path, input), None);
            }
        }
    }
    requests
}

#[test]
fn every_request_without_keys_and_leases_is_read_as_the_message_that_it_is() {
    let described = described_requests();
    let table = table();
    for (rpc, message) in &table {
        assert_eq!(described.get(rpc.path()), Some(message), "request of `{}`", rpc.path());
    }
    // These stand in the catalog with the verb `lease`, but their message names one lease.
    let names_a_lease = |rpc: &Rpc| {
        matches!(
            rpc,
            Rpc::LeaseGrant | Rpc::LeaseRevoke | Rpc::LeaseKeepAlive | Rpc::LeaseTimeToLive
        )
    };
    let expected: Vec<Rpc> = Rpc::ALL
        .iter()
        .copied()
        .filter(|rpc| rpc.entry().demand != Demand::Keys && !names_a_lease(rpc))
        .collect();
    let mut found: Vec<Rpc> = table.into_iter().map(|(rpc, _)| rpc).collect();
    found.sort_by_key(|rpc| rpc.index());
    assert_eq!(found, expected);
}

/// The verb that the request needs, or why it is refused.
fn check(rpc: Rpc, request: &impl prost::Message, expected: Result<StoreVerb, &str>) {
    let found = read(rpc, &request.encode_to_vec().into()).map(|(_, verb)| verb);
    assert_eq!(found.map_err(|error| error.to_string()), expected.map_err(str::to_owned));
}

#[test]
fn an_alarm_needs_the_verb_of_its_action_and_unknown_ones_are_refused() {
    let alarm = |action, alarm| AlarmRequest { action, alarm, member_id: 0 };
    check(Rpc::Alarm, &alarm(0, 0), Ok(StoreVerb::AlarmGet));
    check(Rpc::Alarm, &alarm(0, 2), Ok(StoreVerb::AlarmGet));
    check(Rpc::Alarm, &alarm(1, 1), Ok(StoreVerb::AlarmSet));
    check(Rpc::Alarm, &alarm(2, 2), Ok(StoreVerb::AlarmSet));
    for unknown in [3, 7, -1, i32::MAX, i32::MIN] {
        let refused = Err("ringfence: `alarm` has an unknown number");
        for action in 0..=3 {
            check(Rpc::Alarm, &alarm(action, unknown), refused);
        }
        check(Rpc::Alarm, &alarm(unknown, 1), Err("ringfence: `action` has an unknown number"));
    }
}

#[test]
fn a_downgrade_with_an_unknown_action_is_refused() {
    let downgrade = |action| DowngradeRequest { action, version: "3.6".to_owned() };
    for known in 0..=2 {
        check(Rpc::Downgrade, &downgrade(known), Ok(StoreVerb::Downgrade));
    }
    for unknown in [3, 99, -1, i32::MAX] {
        let refused = Err("ringfence: `action` has an unknown number");
        check(Rpc::Downgrade, &downgrade(unknown), refused);
    }
}

#[test]
fn a_permission_of_an_unknown_type_is_refused() {
    let grant = |perm_type| AuthRoleGrantPermissionRequest {
        name: "reader".to_owned(),
        perm: Some(Permission { perm_type, key: "/a".into(), range_end: "".into() }),
    };
    for known in 0..=2 {
        check(Rpc::RoleGrantPermission, &grant(known), Ok(StoreVerb::AuthChange));
    }
    for unknown in [3, 99, -1, i32::MIN] {
        let refused = Err("ringfence: `permType` has an unknown number");
        check(Rpc::RoleGrantPermission, &grant(unknown), refused);
    }
}
