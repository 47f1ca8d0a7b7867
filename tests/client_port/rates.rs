//! What one identity may use: requests in a second, calls, streams and watches of its own.

use bytes::Bytes;
use prost::Message as _;
use ringfence::etcd::pb::etcdserverpb::watch_request::RequestUnion;
use ringfence::etcd::pb::etcdserverpb::{
    CompactionRequest, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, PutRequest,
    RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchResponse, request_op,
};

use crate::support::{Etcd, Pki, RawClient, Ringfence, framed};
use crate::watch::{WATCH, cancel, create, request};

const RANGE: &str = "/etcdserverpb.KV/Range";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
/// A tenant with limits of its own.
const POLICY: &str = r#"
[[identity]]
name = "tenant"
match = { ca = "tenants", uri = "spiffe://example.org/tenant/*" }
roles = ["tenant"]
limits = { watches = 2, streams = 1, requests_per_second = 5 }
[[role]]
name = "tenant"
rules = [{ prefix = "/tenants/${uri.path.2}/", allow = ["get", "list", "watch"] }]
"#;
/// Many, against a rate of one in a second.
const FLOOD: usize = 60;

fn range_of(key: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

/// How many of a flood ended with each of these codes, in that order; all had to end with one.
async fn flood(client: &RawClient, path: &str, message: &[u8], codes: [u16; 2]) -> [usize; 2] {
    let mut counts = [0; 2];
    for _ in 0..FLOOD {
        let reply = client.call(path, &[], framed(message)).await;
        let place = codes.iter().position(|code| Some(*code) == reply.grpc_status);
        counts[place.unwrap_or_else(|| panic!("{reply:?}"))] += 1;
    }
    counts
}

/// The attack: what costs the attacker nothing. Denied, malformed and unknown requests come out of the
/// same bucket as allowed ones, over all connections and cores.
#[tokio::test]
async fn a_flood_of_denials_malformed_and_unknown_requests_uses_up_the_rate() {
    let denied = range_of("/tenants/globex/x").encode_to_vec();
    for (path, message, code) in [
        (RANGE, denied.as_slice(), 7),
        (RANGE, b"\xff".as_slice(), 3),
        ("/etcdserverpb.KV/None", b"".as_slice(), 12),
        // No probe, though it has the path of one.
        ("/grpc.health.v1.Health/Check", b"\xff".as_slice(), 3),
    ] {
        let pki = Pki::make();
        let etcd = Etcd::start_plain("3.7");
        let rate = "[limits]\nrequests_per_second_per_principal = 1\n";
        let mut ringfence = Ringfence::start_with(&pki, &etcd.endpoint(), rate);
        let globex = RawClient::connect(&pki, "globex", ringfence.port).await;
        let mut throttled = 0;
        for _ in 0..2 {
            // A new connection brings no new burst, on whichever core it is.
            let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
            throttled += flood(&acme, path, message, [code, 8]).await[1];
        }
        assert!(throttled > 0, "{path}");
        let reply = globex.unary(RANGE, &range_of("/tenants/globex/x")).await;
        assert_eq!(reply.grpc_status, Some(0), "the neighbour has its own: {reply:?}");
        let metric = format!("ringfence_throttled_total {throttled}\n");
        assert!(ringfence.metrics().contains(&metric), "{metric}");
        let decisions = ringfence.decisions();
        assert_eq!(decisions.len(), 2 * FLOOD + 1, "one record for each request");
        let rate = |record: &&serde_json::Value| {
            record["reason"] == "rate" && record["verdict"] == "refuse"
        };
        assert_eq!(decisions.iter().filter(rate).count(), throttled);
    }
}

#[tokio::test]
async fn a_throttled_client_hears_etcds_text_and_its_health_and_keep_alives_go_on() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let rate = "[limits]\nrequests_per_second_per_principal = 1\n";
    let ringfence = Ringfence::start_with(&pki, &etcd.endpoint(), rate);
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let grant = LeaseGrantRequest { ttl: 60, id: 0 };
    let lease: LeaseGrantResponse =
        acme.unary("/etcdserverpb.Lease/LeaseGrant", &grant).await.message();
    let own = LeaseKeepAliveRequest { id: lease.id }.encode_to_vec();
    let mut told = None;
    for _ in 0..FLOOD {
        let reply = acme.unary(RANGE, &range_of("/tenants/acme/x")).await;
        let health = acme.call("/grpc.health.v1.Health/Check", &[], framed(b"")).await;
        assert_ne!(health.grpc_status, Some(8), "{health:?}");
        let renewed = acme.call(KEEP_ALIVE, &[], framed(&own)).await;
        assert_eq!(renewed.grpc_status, Some(0), "{renewed:?}");
        if reply.grpc_status == Some(8) {
            told = Some(reply.grpc_message);
        }
    }
    assert_eq!(told.as_deref(), Some("etcdserver: too many requests"));
    // The attack: a lease of nobody's has to be looked up, each time.
    assert!(flood(&acme, KEEP_ALIVE, b"\x08\x01", [7, 8]).await[1] > 0);
}

/// The attack: what looks like a probe and is none.
#[tokio::test]
async fn a_flood_of_posts_to_the_health_page_uses_up_the_rate() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let rate = "[limits]\nrequests_per_second_per_principal = 1\n";
    let mut ringfence = Ringfence::start_with(&pki, &etcd.endpoint(), rate);
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    for _ in 0..FLOOD {
        let reply = acme.http(http::Method::POST, "/health", &[], Bytes::new()).await;
        assert!(matches!(reply.http_status, 405 | 429), "{reply:?}");
        let reply = acme.get("/health").await;
        assert!(matches!(reply.http_status, 200 | 403), "{reply:?}");
    }
    let throttled = |record: &&serde_json::Value| record["reason"] == "rate";
    assert!(ringfence.decisions().iter().filter(throttled).count() > FLOOD / 2);
}

/// The attack: one request, and as many look-ups in etcd as it names leases.
#[tokio::test]
async fn each_look_up_of_a_lease_beyond_the_first_uses_up_the_rate() {
    let policy = POLICY
        .replace("requests_per_second = 5", "requests_per_second = 4")
        .replace("\"watch\"", "\"put\", \"delete\"")
        .replace("rules = [", "rules = [{ allow = [\"lease\"] }, ");
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start_with_policy(&pki, &etcd.endpoint(), &policy, "");
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let put = |lease: i64| {
        let key = format!("/tenants/acme/{lease}").into();
        let put = PutRequest { key, lease, ..Default::default() };
        RequestOp { request: Some(request_op::Request::RequestPut(put)) }
    };
    let txn = TxnRequest { success: (1..=8).map(put).collect(), ..Default::default() };
    let reply = acme.unary("/etcdserverpb.KV/Txn", &txn).await;
    assert_eq!(reply.grpc_status, Some(8), "{reply:?}");
    assert_eq!(ringfence.stop().code(), Some(0));
    let look_up = |record: &&serde_json::Value| {
        record["type"] == "decision" && record["principal"] == "(ringfence)"
    };
    let look_ups = ringfence.records().iter().filter(look_up).count();
    assert!((1..8).contains(&look_ups), "{look_ups}");
}

/// The attack: etcd says twice that a watch is canceled which began before the compacted revision, and
/// another watch gave up its place for it.
#[tokio::test]
async fn a_watch_that_is_canceled_twice_gives_up_one_place() {
    let policy = POLICY.replace("requests_per_second = 5", "requests_per_second = 0");
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start_with_policy(&pki, &etcd.endpoint(), &policy, "");
    let past = RawClient::connect_plain(etcd.port()).await;
    for _ in 0..3 {
        let put = PutRequest { key: "/tenants/acme/a".into(), ..Default::default() };
        assert_eq!(past.unary("/etcdserverpb.KV/Put", &put).await.grpc_status, Some(0));
    }
    let compact = CompactionRequest { revision: 3, physical: true };
    assert_eq!(past.unary("/etcdserverpb.KV/Compact", &compact).await.grpc_status, Some(0));
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let mut stream = acme.stream(WATCH).await;
    let watch = || create("/tenants/acme/a", "");
    let mut live = 0;
    for _ in 0..4 {
        stream.send(&request(RequestUnion::CreateRequest(watch())));
        let made: WatchResponse = stream.next().await;
        live += usize::from(made.created && !made.canceled);
        let old = WatchCreateRequest { start_revision: 1, ..watch() };
        stream.send(&request(RequestUnion::CreateRequest(old)));
        let made: WatchResponse = stream.next().await;
        if made.canceled {
            continue;
        }
        let ended: WatchResponse = stream.next().await;
        assert!(ended.canceled && ended.compact_revision > 0, "{ended:?}");
        stream.send(&cancel(made.watch_id));
        let again: WatchResponse = stream.next().await;
        assert!(again.canceled, "{again:?}");
    }
    assert_eq!(live, 2, "as many as its identity may have");
}

/// A tenant that opens watches without end has those that its identity may have.
#[tokio::test]
async fn an_identity_has_limits_of_its_own() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start_with_policy(&pki, &etcd.endpoint(), POLICY, "");
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let watch = request(RequestUnion::CreateRequest(create("/tenants/acme/a", "")));
    let mut stream = acme.stream(WATCH).await;
    for _ in 0..2 {
        stream.send(&watch);
        let made: WatchResponse = stream.next().await;
        assert!(made.created && !made.canceled, "{made:?}");
    }
    for _ in 0..FLOOD {
        stream.send(&watch);
        let refused: WatchResponse = stream.next().await;
        let reason = "rpc error: code = ResourceExhausted desc = etcdserver: too many requests";
        assert!(refused.canceled && refused.cancel_reason == reason, "{refused:?}");
    }
    let counted = ringfence.metrics();
    assert!(!counted.contains("ringfence_throttled_total 0\n"), "messages count as well");
    let mut health_watch = acme.stream("/grpc.health.v1.Health/Watch").await;
    health_watch.send_bytes(b"");
    health_watch.finish();
    let end = health_watch.expect_end().await;
    assert_eq!(end.grpc_status, Some(8), "a second stream: {end:?}");
}

/// The attack: few requests, each with a reply of megabytes.
#[tokio::test]
async fn bytes_of_replies_are_owed_and_a_reply_that_is_too_long_does_not_go_through() {
    let policy = POLICY
        .replace("requests_per_second = 5", "bytes_per_second = 1048576, reply_bytes = 1048576")
        .replace("\"watch\"", "\"watch\", \"put\"");
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start_with_policy(&pki, &etcd.endpoint(), &policy, "");
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let past = RawClient::connect_plain(etcd.port()).await;
    for name in ["a", "b"] {
        let key = format!("/tenants/acme/{name}");
        let put =
            PutRequest { key: key.into(), value: vec![7; 900_000].into(), ..Default::default() };
        assert_eq!(past.unary("/etcdserverpb.KV/Put", &put).await.grpc_status, Some(0));
    }
    let all = RangeRequest { range_end: "/tenants/acme0".into(), ..range_of("/tenants/acme/") };
    let too_long = acme.unary(RANGE, &all).await;
    assert_eq!(too_long.grpc_status, Some(8), "{:?}", too_long.grpc_message);
    assert!(too_long.data.is_empty(), "{} bytes went through", too_long.data.len());
    // A whole one goes through; the next one owes it.
    let one = range_of("/tenants/acme/a");
    let replies = [acme.unary(RANGE, &one).await, acme.unary(RANGE, &one).await];
    assert_eq!(replies.map(|reply| reply.grpc_status), [Some(0), Some(0)]);
    let owed = acme.unary(RANGE, &one).await;
    assert_eq!((owed.grpc_status, &*owed.grpc_message), (Some(8), "etcdserver: too many requests"));
    // Its neighbour owes nothing.
    let globex = RawClient::connect(&pki, "globex", ringfence.port).await;
    let quick = globex.unary(RANGE, &range_of("/tenants/globex/a")).await;
    assert_eq!(quick.grpc_status, Some(0));
    drop((acme, globex));
    assert_eq!(ringfence.stop().code(), Some(0));
    let records = ringfence.records();
    let with =
        |field: &str, name: &str| records.iter().filter(|record| record[field] == *name).count();
    assert_eq!((with("fault", "reply_too_large"), with("reason", "rate")), (1, 1));
}
