//! What is about the store as a whole, and the locks and elections that name keys of their own.

use ringfence::etcd::pb::etcdserverpb::{
    AlarmRequest, AuthDisableRequest, AuthStatusRequest, AuthUserAddRequest, AuthenticateRequest,
    CompactionRequest, DefragmentRequest, DowngradeRequest, HashKvRequest, HashRequest,
    MemberAddRequest, MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest,
    MoveLeaderRequest, SnapshotRequest, StatusRequest,
};
use ringfence::etcd::pb::grpc_health_v1::HealthCheckRequest;
use ringfence::etcd::pb::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use ringfence::etcd::pb::v3lockpb::{LockRequest, LockResponse, UnlockRequest};

use crate::ground::{Case, Ground, Report, Who, bytes, play};

const HEALTH: &str = "/grpc.health.v1.Health/Check";

pub async fn run() -> Report {
    let mut whole = Report::default();
    let report = &mut whole;
    let mut ground = Ground::start().await;
    maintenance(&mut ground, report).await;
    members_and_users(&mut ground, report).await;
    sessions(&mut ground, report).await;
    let text = ground.ringfence.audit_text();
    let silent =
        !text.contains("canary-password") && !ground.ringfence.log().contains("canary-password");
    let fared = if silent { Ok(()) } else { Err("a password is in the log".to_owned()) };
    report.add(88, "passwords stand nowhere", "not in the audit log", fared);
    ground.finish(report);
    whole
}

async fn maintenance(ground: &mut Ground, report: &mut Report) {
    let of = |number, name, method: &'static str, message: Vec<u8>| (number, name, method, message);
    for (number, name, method, message) in [
        of(
            81,
            "everybody's history ended",
            "KV/Compact",
            bytes(&CompactionRequest { revision: 1, physical: false }),
        ),
        of(82, "the whole store as a snapshot", "Maintenance/Snapshot", bytes(&SnapshotRequest {})),
        of(83, "a hash of the store", "Maintenance/Hash", bytes(&HashRequest {})),
        of(83, "a hash of its keys", "Maintenance/HashKV", bytes(&HashKvRequest { revision: 0 })),
        of(83, "the store defragmented", "Maintenance/Defragment", bytes(&DefragmentRequest {})),
        of(
            83,
            "the leader moved",
            "Maintenance/MoveLeader",
            bytes(&MoveLeaderRequest { target_id: 1 }),
        ),
        of(
            83,
            "a downgrade",
            "Maintenance/Downgrade",
            bytes(&DowngradeRequest { action: 1, version: "3.6".into() }),
        ),
        of(
            83,
            "an alarm raised",
            "Maintenance/Alarm",
            bytes(&AlarmRequest { action: 1, member_id: 0, alarm: 1 }),
        ),
        of(85, "the status of a member", "Maintenance/Status", bytes(&StatusRequest {})),
    ] {
        let path = format!("/etcdserverpb.{method}");
        play(ground, report, Case::new(number, name, &path, &message)).await;
    }
    let unknown = bytes(&AlarmRequest { action: 7, member_id: 0, alarm: 1 });
    let case = Case::new(
        84,
        "an alarm with an unknown action",
        "/etcdserverpb.Maintenance/Alarm",
        &unknown,
    )
    .refused(3, "ringfence: `action` has an unknown number", "malformed");
    play(ground, report, case).await;
}

async fn members_and_users(ground: &mut Ground, report: &mut Report) {
    let peer = || vec!["http://127.0.0.1:1".to_owned()];
    let user = AuthUserAddRequest {
        name: "a".into(),
        password: "canary-password".into(),
        ..Default::default()
    };
    let login = AuthenticateRequest { name: "root".into(), password: "canary-password".into() };
    for (number, name, method, message) in [
        (
            86,
            "a member added",
            "Cluster/MemberAdd",
            bytes(&MemberAddRequest { peer_ur_ls: peer(), is_learner: true }),
        ),
        (86, "a member removed", "Cluster/MemberRemove", bytes(&MemberRemoveRequest { id: 1 })),
        (
            86,
            "a member's addresses changed",
            "Cluster/MemberUpdate",
            bytes(&MemberUpdateRequest { id: 1, peer_ur_ls: peer() }),
        ),
        (86, "a member promoted", "Cluster/MemberPromote", bytes(&MemberPromoteRequest { id: 1 })),
        (87, "the list of members, without the right", "Cluster/MemberList", vec![]),
        (88, "authentication switched off", "Auth/AuthDisable", bytes(&AuthDisableRequest {})),
        (88, "a user added", "Auth/UserAdd", bytes(&user)),
        (88, "a login with a password", "Auth/Authenticate", bytes(&login)),
        (89, "whether authentication is on", "Auth/AuthStatus", bytes(&AuthStatusRequest {})),
    ] {
        let path = format!("/etcdserverpb.{method}");
        play(ground, report, Case::new(number, name, &path, &message)).await;
    }
    let check = bytes(&HealthCheckRequest::default());
    for case in [
        Case::new(90, "health, with the right", HEALTH, &check).fine(),
        Case::new(90, "health, without it", HEALTH, &check).by(Who::B),
        Case::new(90, "health watched, without the right", "/grpc.health.v1.Health/Watch", &check)
            .by(Who::B),
    ] {
        play(ground, report, case).await;
    }
}

async fn sessions(ground: &mut Ground, report: &mut Report) {
    let lock = |name: &str| bytes(&LockRequest { name: name.to_owned().into(), lease: 0 });
    let unlock = |key: &str| bytes(&UnlockRequest { key: key.to_owned().into() });
    let leader = |name: &str, key: &str| LeaderKey {
        name: name.to_owned().into(),
        key: key.to_owned().into(),
        rev: 1,
        lease: 0,
    };
    let proclaim = ProclaimRequest { leader: Some(leader("/a/e", "/b")), value: "v".into() };
    let resign = ResignRequest { leader: Some(leader("/a/e", "/b")) };
    let observe = LeaderRequest { name: "".into() };
    let locks = "/v3lockpb.Lock/Lock";
    for case in [
        Case::new(91, "a lock among another's keys", locks, &lock("/b")),
        Case::new(92, "a key of another's unlocked", "/v3lockpb.Lock/Unlock", &unlock("/b")),
        // It deletes the key, whatever that is: it takes `delete`, which A has.
        Case::new(
            93,
            "a key of one's own unlocked that is no lock",
            "/v3lockpb.Lock/Unlock",
            &unlock("/a/none"),
        )
        .fine(),
        Case::new(93, "one that may not be deleted", "/v3lockpb.Lock/Unlock", &unlock("/b/none")),
        Case::new(
            94,
            "another's key proclaimed under one's own name",
            "/v3electionpb.Election/Proclaim",
            &bytes(&proclaim),
        ),
        Case::new(95, "another's key resigned", "/v3electionpb.Election/Resign", &bytes(&resign)),
        Case::new(
            97,
            "every election followed",
            "/v3electionpb.Election/Observe",
            &bytes(&observe),
        ),
    ] {
        play(ground, report, case).await;
    }
    // `/a` as a name makes keys below `/a/`, which are A's; `/` makes keys that are nobody's.
    ground.expect(98, 0, None);
    let reply = ground.a.call(locks, &[], crate::support::framed(&lock("/a"))).await;
    let reached = ground.reached().await;
    let held: LockResponse = reply.message();
    // First the lease of its session, then the lock under it.
    let paths: Vec<&str> = reached.iter().map(|wired| wired.path.as_str()).collect();
    let as_meant =
        paths == ["/etcdserverpb.Lease/LeaseGrant", locks] && held.key.starts_with(b"/a/");
    let fared = if as_meant { Ok(()) } else { Err(format!("{held:?}, {reached:?}")) };
    report.add(98, "a lock whose keys lie below one's own prefix", "etcd answers", fared);
    play(ground, report, Case::new(98, "a lock without a name", locks, &lock(""))).await;
}
