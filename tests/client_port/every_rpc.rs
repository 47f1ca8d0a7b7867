//! Every RPC of the catalog, by one who may and by one who may not, with the oldest and the newest
//! etcd. A new RPC does not compile until it has a request here.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use ringfence::etcd::Rpc;
use ringfence::etcd::catalog::Shape;
use ringfence::etcd::pb::authpb::Permission;
use ringfence::etcd::pb::etcdserverpb::{
    AlarmRequest, AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest,
    AuthRoleGetRequest, AuthRoleGrantPermissionRequest, AuthRoleListRequest,
    AuthRoleRevokePermissionRequest, AuthStatusRequest, AuthUserAddRequest,
    AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGetRequest,
    AuthUserGrantRoleRequest, AuthUserListRequest, AuthUserRevokeRoleRequest, AuthenticateRequest,
    CompactionRequest, DefragmentRequest, DeleteRangeRequest, DowngradeRequest, HashKvRequest,
    HashRequest, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseLeasesRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, MemberAddRequest, MemberAddResponse,
    MemberListRequest, MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest,
    MoveLeaderRequest, PutRequest, PutResponse, RangeRequest, RequestOp, SnapshotRequest,
    StatusRequest, TxnRequest, WatchCreateRequest, WatchRequest, WatchResponse, request_op,
    watch_request,
};
use ringfence::etcd::pb::grpc_health_v1::{HealthCheckRequest, HealthListRequest};
use ringfence::etcd::pb::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use ringfence::etcd::pb::v3lockpb::{LockRequest, LockResponse, UnlockRequest};
use serde_json::Value;

use crate::support::{Etcd, Pki, RawClient, Reply, Ringfence, Tap, audit_files, framed};

/// Passwords and a value; they must be nowhere but in etcd.
const CANARY: &str = "canary-4b7e90";

/// The API server may do everything, the tenant nothing that is asked for here.
pub const POLICY: &str = r#"
[[identity]]
name = "apiserver"
match = { ca = "kubernetes", cn = "kube-apiserver-etcd-client" }
roles = ["everything"]
[[identity]]
name = "tenant"
match = { ca = "tenants", uri = "spiffe://example.org/tenant/*" }
roles = ["elsewhere"]
[[role]]
name = "everything"
rules = [
  { prefix = "", allow = ["get", "list", "watch", "put", "delete"] },
  { allow = ["lease", "compact", "status", "member.list", "member.change", "alarm.get", "alarm.set"] },
  { allow = ["hash", "snapshot", "defragment", "move-leader", "downgrade", "auth.login", "auth.read"] },
  { allow = ["auth.change", "health", "version", "metrics"] },
]
[[role]]
name = "elsewhere"
rules = [
  { prefix = "/elsewhere/", allow = ["get", "list", "watch", "put", "delete"] },
]
"#;

/// Every RPC once, in an order in which each finds what it needs.
#[rustfmt::skip]
const ORDER: &[Rpc] = &[
    Rpc::Put, Rpc::Range, Rpc::RangeStream, Rpc::Txn, Rpc::DeleteRange, Rpc::Watch,
    Rpc::LeaseGrant, Rpc::LeaseKeepAlive, Rpc::LeaseTimeToLive, Rpc::LeaseLeases, Rpc::LeaseRevoke,
    Rpc::Lock, Rpc::Unlock,
    Rpc::Campaign, Rpc::Leader, Rpc::Observe, Rpc::Proclaim, Rpc::Resign,
    Rpc::HealthCheck, Rpc::HealthList, Rpc::HealthWatch,
    Rpc::Alarm, Rpc::Status, Rpc::Hash, Rpc::HashKv, Rpc::Snapshot,
    Rpc::UserAdd, Rpc::UserGet, Rpc::UserList, Rpc::UserChangePassword,
    Rpc::RoleAdd, Rpc::RoleGet, Rpc::RoleList, Rpc::RoleGrantPermission,
    Rpc::UserGrantRole, Rpc::UserRevokeRole, Rpc::RoleRevokePermission,
    Rpc::Authenticate, Rpc::RoleDelete, Rpc::UserDelete,
    Rpc::AuthStatus, Rpc::AuthEnable, Rpc::AuthDisable,
    Rpc::MemberList, Rpc::MemberAdd, Rpc::MemberUpdate, Rpc::MemberPromote, Rpc::MemberRemove,
    Rpc::Compact, Rpc::Defragment, Rpc::MoveLeader, Rpc::Downgrade,
];

#[test]
fn every_rpc_has_its_place_in_the_order() {
    let mut order = ORDER.to_vec();
    order.sort_unstable();
    assert_eq!(order, Rpc::ALL);
}

#[tokio::test]
async fn every_rpc_is_as_with_the_newest_etcd_or_denied() {
    every_rpc_is_as_with_etcd_or_denied("3.7").await;
}

#[tokio::test]
async fn every_rpc_is_as_with_the_oldest_etcd_or_denied() {
    every_rpc_is_as_with_etcd_or_denied("3.4").await;
}

async fn every_rpc_is_as_with_etcd_or_denied(line: &str) {
    let pki = Pki::make();
    let (alone, behind) = (Etcd::start(line, &pki), Etcd::start(line, &pki));
    let mut ringfence = Ringfence::start_with_policy(&pki, &behind.endpoint(), POLICY, "");
    let port = alone.endpoint().rsplit(':').next().unwrap().parse().unwrap();
    let direct = RawClient::connect(&pki, "apiserver", port).await;
    let allowed = RawClient::connect(&pki, "apiserver", ringfence.port).await;
    let denied = RawClient::connect(&pki, "acme", ringfence.port).await;
    let (mut seen_directly, mut seen) = (Seen::default(), Seen::default());
    for rpc in ORDER {
        // Before the allowed one: if it got through, that one would answer differently.
        assert_denied(*rpc, &call(&denied, *rpc, &seen).await);
        let expected = call(&direct, *rpc, &seen_directly).await;
        let found = call(&allowed, *rpc, &seen).await;
        assert_eq!(told(&found), told(&expected), "{rpc:?} with etcd {line}");
        seen_directly.take(*rpc, &expected);
        seen.take(*rpc, &found);
    }
    drop((direct, allowed, denied));
    let metrics = ringfence.metrics();
    assert_eq!(ringfence.stop().code(), Some(0));
    assert_recorded(&ringfence.records(), "apiserver", "allow");
    assert_recorded(&ringfence.records(), "tenant(", "deny");
    assert_no_canary(&ringfence, &metrics);
}

#[tokio::test]
async fn nothing_of_a_denied_rpc_reaches_etcd() {
    let pki = Pki::make();
    let tap = Tap::start().await;
    let mut ringfence = Ringfence::start_with_policy(&pki, &tap.endpoint, POLICY, "");
    let denied = RawClient::connect(&pki, "acme", ringfence.port).await;
    for rpc in ORDER {
        assert_denied(*rpc, &call(&denied, *rpc, &Seen::default()).await);
        assert_eq!(tap.take(), [], "{rpc:?}");
    }
    // The tap does hear what is allowed.
    let own = RangeRequest { key: "/elsewhere/x".into(), ..Default::default() };
    assert_eq!(denied.unary(Rpc::Range.path(), &own).await.grpc_status, Some(0));
    assert_eq!(tap.take().len(), 1);
    drop(denied);
    let metrics = ringfence.metrics();
    let decisions = ringfence.decisions();
    assert_eq!(decisions.len(), ORDER.len() + 1);
    assert_no_canary(&ringfence, &metrics);
}

/// A member that applies an alarm of an unknown type ends itself.
#[tokio::test]
async fn a_number_that_no_etcd_knows_is_refused_to_everybody_and_reaches_none() {
    let pki = Pki::make();
    let tap = Tap::start().await;
    let mut ringfence = Ringfence::start_with_policy(&pki, &tap.endpoint, POLICY, "");
    let allowed = RawClient::connect(&pki, "apiserver", ringfence.port).await;
    let alarm = |action, alarm| AlarmRequest { action, alarm, member_id: 0 }.encode_to_vec();
    let permission = Permission { perm_type: 3, key: "/a".into(), range_end: "".into() };
    let grant = AuthRoleGrantPermissionRequest { name: "r".to_owned(), perm: Some(permission) };
    let downgrade = DowngradeRequest { action: 3, version: "3.6".to_owned() };
    for (rpc, request) in [
        (Rpc::Alarm, alarm(1, 3)),
        (Rpc::Alarm, alarm(3, 1)),
        (Rpc::Downgrade, downgrade.encode_to_vec()),
        (Rpc::RoleGrantPermission, grant.encode_to_vec()),
    ] {
        let reply = allowed.unary_bytes(rpc.path(), &request).await;
        assert_eq!(reply.grpc_status, Some(3), "{rpc:?}: {reply:?}");
        assert_eq!(tap.take(), [], "{rpc:?}");
    }
    drop(allowed);
    let decisions = ringfence.decisions();
    let refused =
        |record: &&Value| record["verdict"] == "refuse" && record["reason"] == "malformed";
    assert_eq!((decisions.len(), decisions.iter().filter(refused).count()), (4, 4));
}

/// What later requests take from earlier replies.
#[derive(Default)]
struct Seen {
    lease: i64,
    lock: Bytes,
    leader: LeaderKey,
    member: u64,
    learner: u64,
}

impl Seen {
    fn take(&mut self, rpc: Rpc, reply: &Reply) {
        #[expect(clippy::wildcard_enum_match_arm, reason = "most give nothing out")]
        match rpc {
            Rpc::Put => {
                self.member = reply.message::<PutResponse>().header.unwrap().member_id;
            }
            Rpc::LeaseGrant => self.lease = reply.message::<LeaseGrantResponse>().id,
            Rpc::Lock => self.lock = reply.message::<LockResponse>().key,
            Rpc::Campaign => self.leader = reply.message::<CampaignResponse>().leader.unwrap(),
            Rpc::MemberAdd => {
                self.learner = reply.message::<MemberAddResponse>().member.unwrap().id;
            }
            _ => {}
        }
    }
}

/// Calls it to its end; those that have none, to their first message.
async fn call(client: &RawClient, rpc: Rpc, seen: &Seen) -> Reply {
    let message = request(rpc, seen);
    let both_ways = rpc.entry().shape == Shape::Bidirectional;
    if both_ways || matches!(rpc, Rpc::Observe | Rpc::HealthWatch) {
        client.first_message(rpc.path(), &message, !both_ways).await
    } else {
        client.call(rpc.path(), &[], framed(&message)).await
    }
}

/// What is compared: the status, and whether there was a message.
fn told(reply: &Reply) -> (Option<u16>, &str, bool) {
    (reply.grpc_status, &reply.grpc_message, reply.data.is_empty())
}

fn assert_denied(rpc: Rpc, reply: &Reply) {
    const PERMISSION_DENIED: &str = "etcdserver: permission denied";
    if rpc == Rpc::Watch {
        // As etcd denies it: by a message, and the stream goes on.
        let response = WatchResponse::decode(&reply.data[5..]).unwrap();
        let reason = format!("rpc error: code = PermissionDenied desc = {PERMISSION_DENIED}");
        assert_eq!(reply.grpc_status, None);
        assert!(response.created && response.canceled && response.header.is_some(), "{response:?}");
        assert_eq!((response.watch_id, response.cancel_reason), (-1, reason));
        return;
    }
    assert_eq!(reply.grpc_status, Some(7), "{rpc:?}: {reply:?}");
    assert_eq!(reply.grpc_message, PERMISSION_DENIED, "{rpc:?}");
    assert!(reply.data.is_empty(), "{rpc:?}: {reply:?}");
}

/// Each RPC has one decision of that principal, and an outcome exactly when it was allowed.
fn assert_recorded(records: &[Value], principal: &str, verdict: &str) {
    let is_own = |record: &&Value| {
        record["step"].is_null()
            && record["principal"].as_str().is_some_and(|name| name.starts_with(principal))
    };
    let id = |record: &Value| {
        format!("{} {} {}", record["connection"], record["call"], record["message"])
    };
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for record in
        records.iter().filter(|record| record["type"] == "outcome" && record["step"].is_null())
    {
        *outcomes.entry(id(record)).or_default() += 1;
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for record in records.iter().filter(|record| record["type"] == "decision").filter(is_own) {
        let rpc = record["rpc"].as_str().unwrap();
        assert_eq!(record["verdict"], verdict, "{record}");
        *counts.entry(rpc).or_default() += 1;
        let expected = usize::from(verdict == "allow");
        assert_eq!(
            outcomes.get(&id(record)).copied().unwrap_or(0),
            expected,
            "outcomes of {record}"
        );
    }
    for rpc in Rpc::ALL {
        assert_eq!(counts.get(rpc.path()), Some(&1), "decisions about {rpc:?}");
    }
}

fn assert_no_canary(ringfence: &Ringfence, metrics: &str) {
    let files = audit_files(ringfence.audit_folder());
    let audit: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    for (name, text) in [("audit", audit.as_str()), ("log", &ringfence.log()), ("metrics", metrics)]
    {
        assert!(!text.is_empty(), "no {name}");
        assert!(!text.contains(CANARY), "a password or value is in the {name}");
    }
}

fn request(rpc: Rpc, seen: &Seen) -> Vec<u8> {
    key_request(rpc)
        .or_else(|| lease_request(rpc, seen))
        .or_else(|| store_request(rpc, seen))
        .or_else(|| auth_request(rpc))
        .unwrap_or_else(|| panic!("no request for {rpc:?}"))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the others have their own function")]
fn key_request(rpc: Rpc) -> Option<Vec<u8>> {
    let key = || Bytes::from("/every/key");
    let put = || PutRequest { key: key(), value: CANARY.into(), ..Default::default() };
    let range =
        || RangeRequest { key: key(), range_end: "/every/kez".into(), ..Default::default() };
    Some(match rpc {
        Rpc::Put => put().encode_to_vec(),
        Rpc::Range | Rpc::RangeStream => range().encode_to_vec(),
        Rpc::DeleteRange => {
            DeleteRangeRequest { key: key(), prev_kv: true, ..Default::default() }.encode_to_vec()
        }
        Rpc::Txn => {
            let put = RequestOp { request: Some(request_op::Request::RequestPut(put())) };
            let range = RequestOp { request: Some(request_op::Request::RequestRange(range())) };
            TxnRequest { success: vec![put], failure: vec![range], ..Default::default() }
                .encode_to_vec()
        }
        Rpc::Watch => {
            let create = WatchCreateRequest { key: key(), ..Default::default() };
            let union = watch_request::RequestUnion::CreateRequest(create);
            WatchRequest { request_union: Some(union) }.encode_to_vec()
        }
        _ => return None,
    })
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the others have their own function")]
fn lease_request(rpc: Rpc, seen: &Seen) -> Option<Vec<u8>> {
    let name = || Bytes::from("/every/election");
    // Nobody's, until there is one: the answer is the same.
    let id = seen.lease.max(1);
    let leader = || {
        let known = !seen.leader.key.is_empty();
        let other = LeaderKey { key: "/every/election/1".into(), ..Default::default() };
        Some(if known { seen.leader.clone() } else { other })
    };
    Some(match rpc {
        Rpc::LeaseGrant => LeaseGrantRequest { ttl: 600, id: 0 }.encode_to_vec(),
        Rpc::LeaseKeepAlive => LeaseKeepAliveRequest { id }.encode_to_vec(),
        Rpc::LeaseTimeToLive => LeaseTimeToLiveRequest { id, keys: true }.encode_to_vec(),
        Rpc::LeaseLeases => LeaseLeasesRequest {}.encode_to_vec(),
        Rpc::LeaseRevoke => LeaseRevokeRequest { id }.encode_to_vec(),
        Rpc::Lock => LockRequest { name: "/every/lock".into(), lease: 0 }.encode_to_vec(),
        Rpc::Unlock => {
            let key = if seen.lock.is_empty() { "/every/lock/1".into() } else { seen.lock.clone() };
            UnlockRequest { key }.encode_to_vec()
        }
        Rpc::Campaign => {
            CampaignRequest { name: name(), lease: 0, value: CANARY.into() }.encode_to_vec()
        }
        Rpc::Proclaim => ProclaimRequest { leader: leader(), value: CANARY.into() }.encode_to_vec(),
        Rpc::Leader | Rpc::Observe => LeaderRequest { name: name() }.encode_to_vec(),
        Rpc::Resign => ResignRequest { leader: leader() }.encode_to_vec(),
        _ => return None,
    })
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the others have their own function")]
fn store_request(rpc: Rpc, seen: &Seen) -> Option<Vec<u8>> {
    let peer = |port: u16| vec![format!("http://127.0.0.1:{port}")];
    Some(match rpc {
        Rpc::Compact => CompactionRequest { revision: 2, physical: true }.encode_to_vec(),
        // A learner has no vote: the only member goes on alone.
        Rpc::MemberAdd => {
            MemberAddRequest { peer_ur_ls: peer(1), is_learner: true }.encode_to_vec()
        }
        Rpc::MemberUpdate => {
            MemberUpdateRequest { id: seen.learner, peer_ur_ls: peer(2) }.encode_to_vec()
        }
        Rpc::MemberPromote => MemberPromoteRequest { id: seen.learner }.encode_to_vec(),
        Rpc::MemberRemove => MemberRemoveRequest { id: seen.learner }.encode_to_vec(),
        Rpc::MemberList => MemberListRequest { linearizable: true }.encode_to_vec(),
        // Clears an alarm that is not raised.
        Rpc::Alarm => AlarmRequest { action: 2, member_id: 0, alarm: 1 }.encode_to_vec(),
        Rpc::Status => StatusRequest {}.encode_to_vec(),
        Rpc::Defragment => DefragmentRequest {}.encode_to_vec(),
        Rpc::Hash => HashRequest {}.encode_to_vec(),
        Rpc::HashKv => HashKvRequest { revision: 0 }.encode_to_vec(),
        Rpc::Snapshot => SnapshotRequest {}.encode_to_vec(),
        // To the one that has it.
        Rpc::MoveLeader => MoveLeaderRequest { target_id: seen.member }.encode_to_vec(),
        Rpc::Downgrade => DowngradeRequest { action: 0, version: "3.6".to_owned() }.encode_to_vec(),
        Rpc::HealthCheck | Rpc::HealthWatch => HealthCheckRequest::default().encode_to_vec(),
        Rpc::HealthList => HealthListRequest {}.encode_to_vec(),
        _ => return None,
    })
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the others have their own function")]
fn auth_request(rpc: Rpc) -> Option<Vec<u8>> {
    let (user, role) = (|| "alice".to_owned(), || "reader".to_owned());
    let password = || CANARY.to_owned();
    let (key, range_end) = (|| Bytes::from("/a"), || Bytes::from("/b"));
    let permission = Permission { perm_type: 2, key: key(), range_end: range_end() };
    Some(match rpc {
        // There is no root: etcd refuses.
        Rpc::AuthEnable => AuthEnableRequest {}.encode_to_vec(),
        Rpc::AuthDisable => AuthDisableRequest {}.encode_to_vec(),
        Rpc::AuthStatus => AuthStatusRequest {}.encode_to_vec(),
        Rpc::Authenticate => {
            AuthenticateRequest { name: user(), password: password() }.encode_to_vec()
        }
        Rpc::UserAdd => {
            AuthUserAddRequest { name: user(), password: password(), ..Default::default() }
                .encode_to_vec()
        }
        Rpc::UserGet => AuthUserGetRequest { name: user() }.encode_to_vec(),
        Rpc::UserList => AuthUserListRequest {}.encode_to_vec(),
        Rpc::UserDelete => AuthUserDeleteRequest { name: user() }.encode_to_vec(),
        Rpc::UserChangePassword => {
            let password = format!("{CANARY}-changed");
            AuthUserChangePasswordRequest { name: user(), password, ..Default::default() }
                .encode_to_vec()
        }
        Rpc::UserGrantRole => {
            AuthUserGrantRoleRequest { user: user(), role: role() }.encode_to_vec()
        }
        Rpc::UserRevokeRole => {
            AuthUserRevokeRoleRequest { name: user(), role: role() }.encode_to_vec()
        }
        Rpc::RoleAdd => AuthRoleAddRequest { name: role() }.encode_to_vec(),
        Rpc::RoleGet => AuthRoleGetRequest { role: role() }.encode_to_vec(),
        Rpc::RoleList => AuthRoleListRequest {}.encode_to_vec(),
        Rpc::RoleDelete => AuthRoleDeleteRequest { role: role() }.encode_to_vec(),
        Rpc::RoleGrantPermission => {
            AuthRoleGrantPermissionRequest { name: role(), perm: Some(permission) }.encode_to_vec()
        }
        Rpc::RoleRevokePermission => {
            AuthRoleRevokePermissionRequest { role: role(), key: key(), range_end: range_end() }
                .encode_to_vec()
        }
        _ => return None,
    })
}

/// Clients that log in are set up for an etcd without ringfence; who runs it must learn what to change.
#[tokio::test]
async fn a_login_without_the_right_is_denied_and_the_log_says_what_to_change() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let login = b"\x0a\x05alice\x12\x0ecanary-pw-9b2f";
    let reply = acme.unary_bytes("/etcdserverpb.Auth/Authenticate", login).await;
    assert_eq!(reply.grpc_status, Some(7));
    assert_eq!(reply.grpc_message, "etcdserver: permission denied");
    drop(acme);
    assert_eq!(ringfence.stop().code(), Some(0));
    let log = ringfence.log();
    assert!(log.contains("take user and password out of its settings"), "{log}");
    assert!(!log.contains("canary-pw") && !ringfence.audit_text().contains("canary-pw"));
}
