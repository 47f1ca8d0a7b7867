//! Locks and elections through ringfence, with and without a lease of the client's.

use ringfence::etcd::pb::etcdserverpb::{
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, RangeRequest, RangeResponse,
};
use ringfence::etcd::pb::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderRequest, LeaderResponse, ProclaimRequest,
    ResignRequest,
};
use ringfence::etcd::pb::v3lockpb::{LockRequest, LockResponse, UnlockRequest};

use crate::lease::grant;
use crate::support::{Etcd, Pki, RawClient, Ringfence, wait_for};

const LOCK: &str = "/v3lockpb.Lock/Lock";
const UNLOCK: &str = "/v3lockpb.Lock/Unlock";
const CAMPAIGN: &str = "/v3electionpb.Election/Campaign";
const PROCLAIM: &str = "/v3electionpb.Election/Proclaim";
const LEADER: &str = "/v3electionpb.Election/Leader";
const OBSERVE: &str = "/v3electionpb.Election/Observe";
const RESIGN: &str = "/v3electionpb.Election/Resign";
const WATCHERS: &str = "etcd_debugging_mvcc_watcher_total";

fn lock(name: &str, lease: i64) -> LockRequest {
    LockRequest { name: name.to_owned().into(), lease }
}

fn unlock(key: &bytes::Bytes) -> UnlockRequest {
    UnlockRequest { key: key.clone() }
}

/// The lease that a key of a lock names.
fn lease_in(key: &[u8]) -> i64 {
    let key = std::str::from_utf8(key).unwrap();
    i64::from_str_radix(key.rsplit('/').next().unwrap(), 16).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_queue_up_and_those_without_a_lease_get_an_owned_one_from_the_newest_etcd() {
    locks_queue_up("3.7").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_queue_up_and_those_without_a_lease_get_an_owned_one_from_the_oldest_etcd() {
    locks_queue_up("3.4").await;
}

async fn locks_queue_up(version: &str) {
    let pki = Pki::make();
    let etcd = Etcd::start(version, &pki);
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let globex = RawClient::connect(&pki, "globex", ringfence.port).await;
    let name = "/tenants/acme/lock";
    let first = acme.unary(LOCK, &lock(name, 0)).await.message::<LockResponse>();
    let lease = lease_in(&first.key);
    let ask = LeaseTimeToLiveRequest { id: lease, keys: true };
    let path = "/etcdserverpb.Lease/LeaseTimeToLive";
    let found = acme.unary(path, &ask).await.message::<LeaseTimeToLiveResponse>();
    assert_eq!((found.granted_ttl, &found.keys[..]), (60, &[first.key.clone()][..]));
    assert_eq!(globex.unary(path, &ask).await.grpc_status, Some(7), "the lease has an owner");

    let own = grant(&acme).await;
    let other = RawClient::connect(&pki, "acme", ringfence.port).await;
    let waiting = tokio::spawn(async move { other.unary(LOCK, &lock(name, own)).await });
    // The second is in the queue, and waits.
    let queue = RangeRequest {
        key: format!("{name}/").into(),
        range_end: format!("{name}0").into(),
        ..Default::default()
    };
    loop {
        let found = acme.unary("/etcdserverpb.KV/Range", &queue).await.message::<RangeResponse>();
        if found.count == 2 {
            break;
        }
    }
    assert!(!waiting.is_finished());
    // 91, 92: another tenant can neither queue up nor open it
    assert_eq!(globex.unary(LOCK, &lock(name, 0)).await.grpc_status, Some(7));
    assert_eq!(globex.unary(UNLOCK, &unlock(&first.key)).await.grpc_status, Some(7));
    assert!(!waiting.is_finished());
    assert_eq!(acme.unary(UNLOCK, &unlock(&first.key)).await.grpc_status, Some(0));
    let second = waiting.await.unwrap().message::<LockResponse>();
    assert_eq!(lease_in(&second.key), own);
}

/// 94 to 98, and an election from its beginning to its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_election_is_followed_from_campaign_to_resignation() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let globex = RawClient::connect(&pki, "globex", ringfence.port).await;
    let name = bytes::Bytes::from("/tenants/acme/election");
    let ask = LeaderRequest { name: name.clone() };
    let mut observing = acme.stream(OBSERVE).await;
    observing.send(&ask);
    observing.finish();

    let campaign = |lease, value: &str| CampaignRequest {
        name: name.clone(),
        lease,
        value: value.to_owned().into(),
    };
    let won = acme.unary(CAMPAIGN, &campaign(0, "one")).await.message::<CampaignResponse>();
    let leader = won.leader.unwrap();
    assert_eq!(leader.lease, lease_in(&leader.key));
    let seen: LeaderResponse = observing.next().await;
    assert_eq!(seen.kv.unwrap().value, "one");
    let found = acme.unary(LEADER, &ask).await.message::<LeaderResponse>();
    assert_eq!(found.kv.unwrap().key, leader.key);

    let proclaim = ProclaimRequest { leader: Some(leader.clone()), value: "two".into() };
    let resign = ResignRequest { leader: Some(leader.clone()) };
    for (path, reply) in [
        (LEADER, globex.unary(LEADER, &ask).await),
        (OBSERVE, globex.unary(OBSERVE, &ask).await),
        (OBSERVE, globex.unary(OBSERVE, &LeaderRequest::default()).await),
        (CAMPAIGN, globex.unary(CAMPAIGN, &campaign(0, "three")).await),
        (PROCLAIM, globex.unary(PROCLAIM, &proclaim).await),
        (RESIGN, globex.unary(RESIGN, &resign).await),
    ] {
        assert_eq!(reply.grpc_status, Some(7), "{path}");
    }
    assert_eq!(acme.unary(PROCLAIM, &proclaim).await.grpc_status, Some(0));
    let seen: LeaderResponse = observing.next().await;
    assert_eq!(seen.kv.unwrap().value, "two");

    let own = grant(&acme).await;
    let (other, next) = (acme.clone(), campaign(own, "next"));
    let waiting = tokio::spawn(async move { other.unary(CAMPAIGN, &next).await });
    assert_eq!(acme.unary(RESIGN, &resign).await.grpc_status, Some(0));
    let won = waiting.await.unwrap().message::<CampaignResponse>();
    assert_eq!(won.leader.unwrap().lease, own);
    let seen: LeaderResponse = observing.next().await;
    assert_eq!(seen.kv.unwrap().value, "next");
}

/// A follower that goes away while nothing happens leaves no watch in etcd.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_that_leaves_in_silence_leaves_no_watch_in_etcd() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let campaign = CampaignRequest { name: "/tenants/acme/e".into(), ..Default::default() };
    assert_eq!(acme.unary(CAMPAIGN, &campaign).await.grpc_status, Some(0));
    let mut observing = acme.stream(OBSERVE).await;
    observing.send(&LeaderRequest { name: "/tenants/acme/e".into() });
    observing.finish();
    observing.next::<LeaderResponse>().await;
    wait_for("the watch of the observer", || etcd.metric(WATCHERS) > 0);
    drop(observing);
    wait_for("the end of the watch in etcd", || etcd.metric(WATCHERS) == 0);
}

/// SIGTERM: those who follow and those who queue up are told, at once, and nothing is cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_observers_and_waiting_locks_as_unavailable() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let campaign = CampaignRequest { name: "/tenants/acme/e".into(), ..Default::default() };
    assert_eq!(acme.unary(CAMPAIGN, &campaign).await.grpc_status, Some(0));
    let mut observing = acme.stream(OBSERVE).await;
    observing.send(&LeaderRequest { name: "/tenants/acme/e".into() });
    observing.finish();
    observing.next::<LeaderResponse>().await;
    let first = acme.unary(LOCK, &lock("/tenants/acme/l", 0)).await;
    assert_eq!(first.grpc_status, Some(0));
    let mut waiting = acme.stream(LOCK).await;
    waiting.send(&lock("/tenants/acme/l", 0));
    waiting.finish();
    let status = tokio::task::spawn_blocking(move || ringfence.stop()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    for stream in [&mut observing, &mut waiting] {
        let end = stream.expect_end().await;
        assert_eq!(end.grpc_status, Some(14), "{end:?}");
    }
}
