//! Calls that are open when the right to them ends.

use ringfence::etcd::Rpc;
use ringfence::etcd::pb::etcdserverpb::watch_request::RequestUnion;
use ringfence::etcd::pb::etcdserverpb::{
    RangeRequest, WatchCancelRequest, WatchCreateRequest, WatchRequest, WatchResponse,
};
use ringfence::etcd::pb::v3lockpb::{LockRequest, LockResponse};
use serde_json::Value;

use crate::support::{Etcd, Pki, RawClient, Ringfence, wait_for};
use crate::{DENIED, WATCH, event, may_read, put, watch};

/// A tenant with a second prefix, which goes.
const SHARED: &str =
    "{ prefix = \"/shared/\", allow = [\"get\", \"watch\", \"put\"] },\n  { prefix = \"/inbox/\"";

fn with_shared(ringfence: &Ringfence) -> (String, String) {
    let without = ringfence.file("policy.toml");
    (without.replace("{ prefix = \"/inbox/\"", SHARED), without)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_watch_whose_rule_goes_ends_and_those_beside_it_on_its_stream_lose_no_event() {
    let pki = Pki::make();
    for version in ["3.4", "3.7"] {
        let etcd = Etcd::start_plain(version);
        let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
        let (with, without) = with_shared(&ringfence);
        ringfence.replace_file("policy.toml", &with);
        ringfence.wait_for_generation(2);
        let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
        let writer = RawClient::connect_plain(etcd.port()).await;
        let mut stream = acme.stream(WATCH).await;
        let own = watch(&mut stream, "/tenants/acme/").await;
        let shared = watch(&mut stream, "/shared/").await;
        let revision = put(&writer, "/shared/a", "1").await;
        assert_eq!(event(&mut stream, shared).await, revision);
        ringfence.replace_file("policy.toml", &without);
        ringfence.wait_for_generation(3);
        let told: WatchResponse = stream.next().await;
        assert_eq!((told.watch_id, told.canceled), (shared, true), "{told:?}");
        assert_eq!(told.cancel_reason, DENIED);
        // From here on nothing of the one, and all of the other.
        for number in 0..50 {
            put(&writer, "/shared/a", "secret").await;
            let revision = put(&writer, "/tenants/acme/a", &number.to_string()).await;
            assert_eq!(event(&mut stream, own).await, revision);
        }
        // Another may begin on the stream, and one that is denied is answered as ever.
        let again = watch(&mut stream, "/tenants/acme/b").await;
        let revision = put(&writer, "/tenants/acme/b", "1").await;
        let mut told = [event_of(&mut stream).await, event_of(&mut stream).await];
        told.sort_unstable();
        assert_eq!(told, [(own, revision), (again, revision)]);
        assert_eq!(ringfence.metric("ringfence_watches_cut_total{reason=\"rule_removed\"}"), 1);
        assert_eq!(ringfence.stop().code(), Some(0));
        let records = ringfence.records();
        let cut: Vec<&Value> = records
            .iter()
            .filter(|record| record["verdict"] == "deny" && record["step"].is_number())
            .collect();
        assert_eq!(cut.len(), 1, "{version}");
        assert_eq!(cut[0]["reason"], "no_rule");
        assert!(cut[0].to_string().contains("/shared/"), "{}", cut[0]);
    }
}

async fn event_of(stream: &mut crate::support::RawStream) -> (i64, i64) {
    let response: WatchResponse = stream.next().await;
    assert_eq!(response.events.len(), 1, "{response:?}");
    (response.watch_id, response.events[0].kv.as_ref().unwrap().mod_revision)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_identity_any_more_is_cut_and_the_others_are_not() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let apiserver = RawClient::connect(&pki, "apiserver", ringfence.port).await;
    let (mut cut, mut stays) = (acme.stream(WATCH).await, apiserver.stream(WATCH).await);
    let cut_id = watch(&mut cut, "/tenants/acme/").await;
    let stays_id = watch(&mut stays, "/registry/").await;
    let policy = ringfence.file("policy.toml");
    ringfence.replace_file("policy.toml", &policy.replace("tenant/*\"", "nobody/*\""));
    ringfence.wait_for_generation(2);
    let told: WatchResponse = cut.next().await;
    assert_eq!((told.watch_id, told.canceled), (cut_id, true), "{told:?}");
    assert_eq!(cut.expect_end().await.grpc_status, Some(7));
    let revision = put(&apiserver, "/registry/a", "1").await;
    assert_eq!(event(&mut stays, stays_id).await, revision);
    let ended = "ringfence_connections_ended_total{reason=\"identity_removed\"} 1";
    wait_for("the end", || ringfence.metrics().contains(ended));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_somebody_else_now_is_told_to_come_again() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let mut stream = acme.stream(WATCH).await;
    watch(&mut stream, "/tenants/acme/").await;
    let policy = ringfence.file("policy.toml");
    ringfence.replace_file(
        "policy.toml",
        &policy.replace("name = \"tenant\"\nmatch", "name = \"renamed\"\nmatch"),
    );
    ringfence.wait_for_generation(2);
    let end = stream.expect_end().await;
    assert_eq!(end.grpc_status, Some(14), "etcd's clients open another stream then: {end:?}");
    let again = RawClient::connect(&pki, "acme", ringfence.port).await;
    assert!(may_read(&again, "/tenants/acme/a").await);
    let ended = "ringfence_connections_ended_total{reason=\"identity_changed\"} 1";
    wait_for("the end", || ringfence.metrics().contains(ended));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_lock_waits_no_longer_without_the_right_to_it() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let (with, without) = with_shared(&ringfence);
    let with = with.replace(
        "\"watch\", \"put\"] },\n  { prefix = \"/inbox",
        "\"list\", \"watch\", \"put\", \"delete\"] },\n  { prefix = \"/inbox",
    );
    ringfence.replace_file("policy.toml", &with);
    ringfence.wait_for_generation(2);
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let request = LockRequest { name: "/shared/lock".into(), lease: 0 };
    let held: LockResponse = acme.unary(Rpc::Lock.path(), &request).await.message();
    assert!(held.key.starts_with(b"/shared/lock/"));
    let waiting = tokio::spawn({
        let acme = acme.clone();
        async move { acme.unary(Rpc::Lock.path(), &request).await }
    });
    let allowed = "ringfence_requests_total{rpc=\"/v3lockpb.Lock/Lock\",verdict=\"allow\"} 2";
    wait_for("the second", || ringfence.metrics().contains(allowed));
    ringfence.replace_file("policy.toml", &without);
    ringfence.wait_for_generation(3);
    assert_eq!(waiting.await.unwrap().grpc_status, Some(7));
    assert!(may_read(&acme, "/tenants/acme/a").await, "the connection goes on");
}

/// The attack: the head of a call is sent while the right is there, and the rest when it is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_whole_behind_the_change_is_decided_by_what_holds_then() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let (with, without) = with_shared(&ringfence);
    ringfence.replace_file("policy.toml", &with);
    ringfence.wait_for_generation(2);
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let mut late = acme.stream("/etcdserverpb.KV/Range").await;
    let request = RangeRequest { key: "/shared/secret".into(), ..RangeRequest::default() };
    let head_is_there = "ringfence_connections 1";
    wait_for("the connection", || ringfence.metrics().contains(head_is_there));
    assert!(may_read(&acme, "/shared/secret").await);
    ringfence.replace_file("policy.toml", &without);
    ringfence.wait_for_generation(3);
    wait_for("the new rights", || ringfence.log().contains("generation=3"));
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    late.send(&request);
    late.finish();
    assert_eq!(late.expect_end().await.grpc_status, Some(7));
    let denied = ringfence.decisions().into_iter().filter(|record| record["verdict"] == "deny");
    assert_eq!(denied.count(), 1);
}

/// The attack: etcd's news of the first watch with an ID were taken for news of the second, which then went on unseen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_id_of_ones_own_choice_serves_once_on_a_stream() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let create = |watch_id| {
        let create = WatchCreateRequest {
            key: "/tenants/acme/a".into(),
            watch_id,
            ..WatchCreateRequest::default()
        };
        WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
    };
    let cancel = |watch_id| WatchRequest {
        request_union: Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })),
    };
    let mut stream = acme.stream(WATCH).await;
    for id in [2000, 0, 0] {
        stream.send(&create(id));
        let created: WatchResponse = stream.next().await;
        assert!(created.created && !created.canceled, "{created:?}");
    }
    stream.send(&cancel(2000));
    let canceled: WatchResponse = stream.next().await;
    assert!(canceled.canceled && canceled.watch_id == 2000, "{canceled:?}");
    stream.send(&create(2000));
    let end = stream.expect_end().await;
    assert_eq!(
        (end.grpc_status, end.grpc_message.as_str()),
        (Some(14), "ringfence: open another stream")
    );
    // Nor may one be named that etcd has picked before.
    let mut stream = acme.stream(WATCH).await;
    for _ in 0..2 {
        stream.send(&create(0));
        let created: WatchResponse = stream.next().await;
        assert!(created.created, "{created:?}");
    }
    stream.send(&cancel(1));
    let canceled: WatchResponse = stream.next().await;
    assert!(canceled.canceled, "{canceled:?}");
    stream.send(&create(1));
    assert_eq!(stream.expect_end().await.grpc_status, Some(14));
}
