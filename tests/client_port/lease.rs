//! Leases have owners: nobody uses, ends or sees another's, whichever call it is tried on.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use prost::Message;
use ringfence::etcd::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, PutRequest, RequestOp, TxnRequest, request_op,
};
use ringfence::etcd::pb::v3electionpb::{
    CampaignRequest, LeaderKey, ProclaimRequest, ResignRequest,
};
use ringfence::etcd::pb::v3lockpb::LockRequest;

use crate::support::{Etcd, Pki, RawClient, Reply, Ringfence, Settings, Tap};

const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";
const LEASES: &str = "/etcdserverpb.Lease/LeaseLeases";
const PUT: &str = "/etcdserverpb.KV/Put";

fn put_on(key: String, lease: i64) -> PutRequest {
    PutRequest { key: key.into(), value: "v".into(), lease, ..Default::default() }
}

pub async fn grant(client: &RawClient) -> i64 {
    grant_id(client, 0).await.message::<LeaseGrantResponse>().id
}

async fn grant_id(client: &RawClient, id: i64) -> Reply {
    client.unary(GRANT, &LeaseGrantRequest { ttl: 600, id }).await
}

async fn time_to_live(client: &RawClient, id: i64, keys: bool) -> Reply {
    client.unary(TIME_TO_LIVE, &LeaseTimeToLiveRequest { id, keys }).await
}

async fn revoke(client: &RawClient, id: i64) -> Reply {
    client.unary(REVOKE, &LeaseRevokeRequest { id }).await
}

/// One message, then the end.
async fn keep_alive(client: &RawClient, id: i64) -> Result<LeaseKeepAliveResponse, Reply> {
    let mut stream = client.stream(KEEP_ALIVE).await;
    stream.send(&LeaseKeepAliveRequest { id });
    match stream.next_or_end().await {
        None => Err(stream.end.take().unwrap()),
        Some(response) => {
            stream.finish();
            assert_eq!(stream.expect_end().await.grpc_status, Some(0));
            Ok(response)
        }
    }
}

async fn leases(client: &RawClient) -> Vec<i64> {
    let reply = client.unary(LEASES, &LeaseLeasesRequest {}).await;
    let mut leases: Vec<i64> =
        reply.message::<LeaseLeasesResponse>().leases.iter().map(|lease| lease.id).collect();
    leases.sort_unstable();
    leases
}

/// Every call that takes a lease, tried by that tenant; its keys are its own, only the lease is not.
async fn every_use(client: &RawClient, tenant: &str, lease: i64) -> Vec<(&'static str, Reply)> {
    let below = |name: &str| format!("/tenants/{tenant}/{name}");
    let put = put_on(below("stolen"), lease);
    let operation = RequestOp { request: Some(request_op::Request::RequestPut(put.clone())) };
    let nested = TxnRequest { failure: vec![operation.clone()], ..Default::default() };
    let nested = RequestOp { request: Some(request_op::Request::RequestTxn(nested)) };
    let txn = |operation| TxnRequest { success: vec![operation], ..Default::default() };
    let leader = Some(LeaderKey {
        name: below("election").into(),
        key: below("election/1").into(),
        rev: 1,
        lease,
    });
    let lock = LockRequest { name: below("lock").into(), lease };
    let campaign = CampaignRequest { name: below("election").into(), lease, value: "v".into() };
    let proclaim = ProclaimRequest { leader: leader.clone(), value: "v".into() };
    let txn_path = "/etcdserverpb.KV/Txn";
    vec![
        ("put", client.unary(PUT, &put).await),
        ("txn", client.unary(txn_path, &txn(operation)).await),
        ("nested txn", client.unary(txn_path, &txn(nested)).await),
        ("keep alive", keep_alive(client, lease).await.err().unwrap_or_default()),
        ("time to live", time_to_live(client, lease, false).await),
        ("keys", time_to_live(client, lease, true).await),
        ("lock", client.unary("/v3lockpb.Lock/Lock", &lock).await),
        ("campaign", client.unary("/v3electionpb.Election/Campaign", &campaign).await),
        ("proclaim", client.unary("/v3electionpb.Election/Proclaim", &proclaim).await),
        ("resign", client.unary("/v3electionpb.Election/Resign", &ResignRequest { leader }).await),
        ("grant", grant_id(client, lease).await),
        ("revoke", revoke(client, lease).await),
    ]
}

fn assert_all_denied(uses: &[(&str, Reply)], what: &str) {
    for (used, reply) in uses {
        assert_eq!(
            (reply.grpc_status, &*reply.grpc_message),
            (Some(7), "etcdserver: permission denied"),
            "{used} with {what}"
        );
        assert!(reply.data.is_empty(), "{used} with {what}: {reply:?}");
    }
}

/// A file of lease keys; what each line holds is repeated to the length of a key.
fn write_keys(path: &Path, keys: &[&str]) {
    let text: String = keys.iter().map(|digits| digits.repeat(32) + "\n").collect();
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn start_sharing(pki: &Pki, endpoint: &str, keys: &Path) -> Ringfence {
    Ringfence::start_as(pki, endpoint, &Settings { lease_keys: Some(keys), ..Settings::default() })
}

/// 29, 53, 71 to 77, 96: by ID, across a restart, across two that share the key file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_stolen_on_no_call_by_nobody_nowhere() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    let mut first = start_sharing(&pki, &etcd.endpoint(), &keys);
    let acme = RawClient::connect(&pki, "acme", first.port).await;
    let (holding, empty) = (grant(&acme).await, grant(&acme).await);
    assert!(holding > i64::from(u32::MAX) && empty > i64::from(u32::MAX) && holding != empty);
    let own = acme.unary(PUT, &put_on("/tenants/acme/mine".to_owned(), holding)).await;
    assert_eq!(own.grpc_status, Some(0), "{own:?}");

    let globex = RawClient::connect(&pki, "globex", first.port).await;
    let own = grant(&globex).await;
    for (lease, what) in [(holding, "a foreign lease"), (empty, "a foreign empty lease")] {
        assert_all_denied(&every_use(&globex, "globex", lease).await, what);
    }
    assert_eq!(leases(&globex).await, [own]);

    let mut second = start_sharing(&pki, &etcd.endpoint(), &keys);
    let beside = RawClient::connect(&pki, "globex", second.port).await;
    assert_all_denied(&every_use(&beside, "globex", holding).await, "a lease of the other one");
    assert_all_denied(&every_use(&beside, "globex", empty).await, "an empty one of the other one");
    assert_eq!(leases(&beside).await, [own]);

    assert_eq!(first.stop().code(), Some(0));
    let again = start_sharing(&pki, &etcd.endpoint(), &keys);
    let globex = RawClient::connect(&pki, "globex", again.port).await;
    let acme = RawClient::connect(&pki, "acme", again.port).await;
    for lease in [holding, empty] {
        assert_all_denied(&every_use(&globex, "globex", lease).await, "a lease after a restart");
        // Its owner has it still, and can do anything with it.
        let found = time_to_live(&acme, lease, true).await.message::<LeaseTimeToLiveResponse>();
        assert_eq!((found.granted_ttl, found.keys.len()), (600, usize::from(lease == holding)));
        assert_eq!(keep_alive(&acme, lease).await.unwrap().ttl, 600);
    }
    let mut both = [holding, empty];
    both.sort_unstable();
    assert_eq!(leases(&acme).await, both);
    for lease in both {
        assert_eq!(revoke(&acme, lease).await.grpc_status, Some(0));
    }
    let reasons: Vec<_> = second
        .decisions()
        .iter()
        .filter(|record| record["verdict"] == "deny")
        .map(|record| record["reason"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(reasons.len(), 24);
    assert!(
        reasons.iter().all(|reason| reason == "foreign_lease" || reason == "no_rule"),
        "{reasons:?}"
    );
}

/// 71: what a chosen ID is answered tells nothing about it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chosen_lease_id_is_refused_whether_it_exists_or_not() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let past = RawClient::connect(&pki, "apiserver", etcd.port()).await;
    let globex = RawClient::connect(&pki, "globex", ringfence.port).await;
    assert_eq!(grant_id(&past, 4711).await.grpc_status, Some(0));
    for id in [4711, 4712, 1, -1, i64::MAX, i64::MIN] {
        assert_all_denied(&[("grant", grant_id(&globex, id).await)], "a chosen ID");
    }
    // 79, 31: numbers that are no lease at all
    for id in [0, -1, i64::MIN] {
        let tried = [
            ("keep alive", keep_alive(&globex, id).await.unwrap_err()),
            ("revoke", revoke(&globex, id).await),
            ("time to live", time_to_live(&globex, id, false).await),
        ];
        assert_all_denied(&tried, "a number that is no lease");
    }
    assert_all_denied(
        &[("put", globex.unary(PUT, &put_on("/tenants/globex/x".to_owned(), -1)).await)],
        "lease -1",
    );
    // 78: its life span is etcd's matter
    let direct = past.unary(GRANT, &LeaseGrantRequest { ttl: i64::MAX, id: 0 }).await;
    let through = globex.unary(GRANT, &LeaseGrantRequest { ttl: i64::MAX, id: 0 }).await;
    assert_eq!(through.grpc_status, Some(11), "{through:?}");
    assert_eq!(through.grpc_message, direct.grpc_message);
}

/// Leases older than ringfence: whoever may write every key on one may use it; one without keys is
/// nobody's, and looks as if it did not exist.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_made_past_ringfence_is_used_only_by_who_may_write_all_its_keys() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let past = RawClient::connect(&pki, "apiserver", etcd.port()).await;
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let make = async |id: i64, keys: &[&str]| {
        assert_eq!(grant_id(&past, id).await.grpc_status, Some(0));
        for key in keys {
            let put = past.unary(PUT, &put_on((*key).to_owned(), id)).await;
            assert_eq!(put.grpc_status, Some(0), "{put:?}");
        }
        id
    };
    let own = make(1001, &["/tenants/acme/a", "/tenants/acme/b"]).await;
    let shared = make(1002, &["/tenants/acme/c", "/tenants/globex/c"]).await;
    let nobodys = make(1003, &[]).await;
    let quota = make(1004, &["/tenants/acme/quota"]).await;
    let written = make(1005, &["/inbox/x"]).await;
    for (lease, what) in
        [(shared, "a shared lease"), (nobodys, "nobody's"), (quota, "a denied key"), (9999, "none")]
    {
        assert_all_denied(&every_use(&acme, "acme", lease).await, what);
    }
    // A key that may be written but not read: the lease may be used, its keys are not told.
    assert_eq!(time_to_live(&acme, written, false).await.grpc_status, Some(0));
    assert_all_denied(&[("keys", time_to_live(&acme, written, true).await)], "unreadable keys");

    let found = time_to_live(&acme, own, true).await.message::<LeaseTimeToLiveResponse>();
    assert_eq!((found.granted_ttl, found.keys.len()), (600, 2));
    assert_eq!(keep_alive(&acme, own).await.unwrap().ttl, 600);
    let put = acme.unary(PUT, &put_on("/tenants/acme/d".to_owned(), own)).await;
    assert_eq!(put.grpc_status, Some(0), "{put:?}");
    assert_eq!(revoke(&acme, own).await.grpc_status, Some(0));
    assert_eq!(leases(&acme).await, Vec::<i64>::new());
}

/// Keys die with a lease without anybody's delete: the record of the revoke names them, and a key
/// that the caller may not delete keeps it from being revoked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_record_of_a_revoke_names_the_keys_that_die_with_the_lease() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let past = RawClient::connect(&pki, "apiserver", etcd.port()).await;
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let (lease, bound) = (grant(&acme).await, grant(&acme).await);
    for key in ["/tenants/acme/1", "/tenants/acme/2"] {
        assert_eq!(acme.unary(PUT, &put_on(key.to_owned(), lease)).await.grpc_status, Some(0));
    }
    let other = past.unary(PUT, &put_on("/tenants/globex/bound".to_owned(), bound)).await;
    assert_eq!(other.grpc_status, Some(0));
    assert_eq!(revoke(&acme, lease).await.grpc_status, Some(0));
    assert_all_denied(&[("revoke", revoke(&acme, bound).await)], "another's key on it");
    drop(acme);
    let decisions = ringfence.decisions();
    let revokes: Vec<_> = decisions.iter().filter(|record| record["rpc"] == REVOKE).collect();
    let touched = |position: usize| {
        let touches = revokes[position]["touches"].as_array().unwrap();
        let mut touched: Vec<_> =
            touches.iter().map(|touch| (touch["verb"].as_str(), touch["key"].as_str())).collect();
        touched.sort_unstable();
        touched
    };
    let delete = Some("delete");
    assert_eq!(revokes[0]["verdict"], "allow");
    assert_eq!(
        touched(0),
        [
            (delete, Some("/tenants/acme/1")),
            (delete, Some("/tenants/acme/2")),
            (Some("lease.revoke"), None)
        ]
    );
    assert_eq!(revokes[1]["verdict"], "deny");
    assert_eq!(touched(1), [(delete, Some("/tenants/globex/bound")), (Some("lease.revoke"), None)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_live_through_the_rotation_of_the_key_as_long_as_the_old_one_stays() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    let mut made = Vec::new();
    // the old key, both, the new one alone
    for (lines, believed) in [(&["01"][..], 1), (&["02", "01"], 2), (&["02"], 1)] {
        write_keys(&keys, lines);
        let ringfence = start_sharing(&pki, &etcd.endpoint(), &keys);
        let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
        if made.len() < 2 {
            made.push(grant(&acme).await);
        }
        let mut usable = 0;
        for lease in &made {
            let reply = time_to_live(&acme, *lease, false).await;
            usable += usize::from(reply.grpc_status == Some(0));
        }
        assert_eq!(usable, believed, "with the keys {lines:?}");
        let newest = keep_alive(&acme, *made.last().unwrap()).await;
        assert_eq!(newest.unwrap().ttl, 600);
        let globex = RawClient::connect(&pki, "globex", ringfence.port).await;
        for lease in &made {
            assert_all_denied(&every_use(&globex, "globex", *lease).await, "a foreign lease");
        }
    }
}

/// Whose a lease is stands in its ID: no call asks etcd for it. Only a revoke looks its keys up,
/// once, for the record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_of_a_lease_costs_no_call_to_etcd() {
    let pki = Pki::make();
    let tap = Tap::start().await;
    let ringfence = Ringfence::start(&pki, &tap.endpoint);
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let granted = grant_id(&acme, 0).await;
    assert_eq!(granted.grpc_status, Some(0));
    let sent = tap.take();
    let lease = LeaseGrantRequest::decode(&sent[0].data[5..]).unwrap().id;
    let paths = || -> Vec<String> { tap.take().into_iter().map(|tapped| tapped.path).collect() };

    let put = acme.unary(PUT, &put_on("/tenants/acme/x".to_owned(), lease)).await;
    assert_eq!((put.grpc_status, paths()), (Some(0), vec![PUT.to_owned()]));
    for keys in [false, true] {
        let reply = time_to_live(&acme, lease, keys).await;
        assert_eq!((reply.grpc_status, paths()), (Some(0), vec![TIME_TO_LIVE.to_owned()]));
    }
    let mut stream = acme.stream(KEEP_ALIVE).await;
    for _ in 0..3 {
        stream.send(&LeaseKeepAliveRequest { id: lease });
    }
    stream.finish();
    stream.next::<LeaseKeepAliveResponse>().await;
    assert_eq!(stream.expect_end().await.grpc_status, Some(0));
    assert_eq!(paths(), [KEEP_ALIVE]);
    assert_eq!(revoke(&acme, lease).await.grpc_status, Some(0));
    assert_eq!(paths(), [TIME_TO_LIVE, REVOKE]);
}

/// 74: on one stream, one's own lease is renewed, another's ends the stream; both are recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_lease_ends_the_keep_alive_stream() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let globex = RawClient::connect(&pki, "globex", ringfence.port).await;
    let (own, gone, foreign) = (grant(&acme).await, grant(&acme).await, grant(&globex).await);
    assert_eq!(revoke(&acme, gone).await.grpc_status, Some(0));
    let mut stream = acme.stream(KEEP_ALIVE).await;
    for (id, ttl) in [(own, 600), (gone, 0), (own, 600)] {
        stream.send(&LeaseKeepAliveRequest { id });
        let response: LeaseKeepAliveResponse = stream.next().await;
        assert_eq!((response.id, response.ttl), (id, ttl));
    }
    stream.send(&LeaseKeepAliveRequest { id: foreign });
    let end = stream.expect_end().await;
    assert_eq!((end.grpc_status, &*end.grpc_message), (Some(7), "etcdserver: permission denied"));
    drop((acme, globex, stream));
    let decisions = ringfence.decisions();
    let verdicts: Vec<_> = decisions
        .iter()
        .filter(|record| record["rpc"] == KEEP_ALIVE)
        .map(|record| (record["message"].as_u64().unwrap(), record["verdict"].as_str().unwrap()))
        .collect();
    assert_eq!(verdicts, [(1, "allow"), (2, "allow"), (3, "allow"), (4, "deny")]);
    let records = ringfence.records();
    let end = records.iter().find(|record| record["type"] == "stream.end").unwrap();
    assert_eq!((&end["status"], &end["requests"]), (&7.into(), &4.into()));
}

/// The attack: the keys of a lease asked for over and over by a client that takes nothing. The reply is
/// kept in whole, and had no end.
#[tokio::test]
async fn a_whole_reply_that_nobody_takes_ends_with_its_call() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let limits = "[limits]\ncall_timeout_seconds = 1";
    let mut ringfence = Ringfence::start_with(&pki, &etcd.endpoint(), limits);
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let grant = LeaseGrantRequest { ttl: 60, id: 0 };
    let granted: LeaseGrantResponse =
        acme.unary("/etcdserverpb.Lease/LeaseGrant", &grant).await.message();
    let mut windowless = h2::client::Builder::new();
    windowless.initial_window_size(0);
    let stopped = RawClient::connect_with(&pki, "acme", ringfence.port, windowless).await;
    let keys = LeaseTimeToLiveRequest { id: granted.id, keys: true };
    let path = "/etcdserverpb.Lease/LeaseTimeToLive";
    let (response, _stream) = stopped.send_and_stop_reading(path, &keys).await;
    let (_, mut body) = response.await.unwrap().into_parts();
    // Nothing can come but the end.
    let end = tokio::time::timeout(crate::support::PATIENCE, body.trailers()).await;
    let trailers = end.unwrap().unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "4");
    drop((acme, stopped));
    assert_eq!(ringfence.stop().code(), Some(0));
    let faults = ringfence.records().into_iter().filter(|record| record["fault"] == "timeout");
    assert_eq!(faults.count(), 1);
}
