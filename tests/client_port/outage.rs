//! etcd goes away and comes back; ringfence stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ringfence::etcd::pb::etcdserverpb::watch_request::RequestUnion;
use ringfence::etcd::pb::etcdserverpb::{RangeRequest, WatchRequest, WatchResponse};

use crate::support::{
    End, Etcd, Pki, RawClient, Ringfence, Tap, framed, free_port, http_get, silent_member, wait_for,
};
use crate::watch::{WATCH, create};

const RANGE: &str = "/etcdserverpb.KV/Range";
/// A read that `acme` may make.
const REQUEST: &[u8] = b"\x0a\x0f/tenants/acme/x";

/// The faults of all outcomes, in their order.
fn faults(ringfence: &mut Ringfence) -> Vec<String> {
    assert_eq!(ringfence.stop().code(), Some(0));
    let records = ringfence.records();
    let outcomes = records.iter().filter(|record| record["type"] == "outcome");
    outcomes.map(|record| record["fault"].as_str().unwrap_or("none").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_killed_under_load_is_unavailable_then_served_again() {
    let pki = Pki::make();
    let mut etcd = Etcd::start("3.7", &pki);
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let process = ringfence.process_id();
    let statuses: Arc<[AtomicUsize; 17]> = Arc::default();
    let ending = Arc::new(AtomicBool::new(false));
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let client = RawClient::connect(&pki, "acme", ringfence.port).await;
        let (statuses, ending) = (Arc::clone(&statuses), Arc::clone(&ending));
        load.spawn(async move {
            let range = RangeRequest { key: "/tenants/acme/x".into(), ..Default::default() };
            while !ending.load(Ordering::Relaxed) {
                let reply = client.unary("/etcdserverpb.KV/Range", &range).await;
                let status = usize::from(reply.grpc_status.expect("a status for every call"));
                statuses[status].fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
    let count = |status: usize| statuses[status].load(Ordering::Relaxed);
    wait_for("service", || count(0) > 100);
    etcd.kill();
    wait_for("Unavailable", || count(14) > 100);
    let (status, text) = http_get(ringfence.admin_port, "/readyz").unwrap();
    assert_eq!((status, text.as_str()), (503, "[-] upstream: etcd cannot be reached\nnot ready\n"));
    let served = count(0);
    etcd.restart();
    wait_for("service again", || count(0) > served + 100);
    ending.store(true, Ordering::Relaxed);
    load.join_all().await;

    assert_eq!(ringfence.process_id(), process);
    let seen: Vec<usize> = (0..17).filter(|status| count(*status) > 0).collect();
    assert_eq!(seen, [0, 14], "nothing but OK and Unavailable");
    let calls = count(0) + count(14);
    assert_eq!(ringfence.decisions().len(), calls, "failed calls are recorded too");
    let outcomes = ringfence.records();
    let faults =
        outcomes.iter().filter(|record| record["type"] == "outcome" && record["status"] == 14);
    assert_eq!(faults.count(), count(14));
}

/// In TLS 1.3 a server refuses the client's certificate after the handshake; and a server that speaks
/// TLS says nothing that a plain client could take for a refusal.
#[tokio::test]
async fn an_etcd_that_refuses_every_call_is_not_reachable() {
    let pki = Pki::make();
    let etcd = Etcd::start_refusing("3.7", &pki);
    let https = etcd.endpoint();
    let http = https.replace("https://", "http://");
    for (endpoint, hint) in [
        (https, "does it accept `upstream.certificate`?"),
        (http, "does it speak HTTP/2 without TLS?"),
    ] {
        let mut ringfence = Ringfence::start(&pki, &endpoint);
        let (status, text) = http_get(ringfence.admin_port, "/readyz").unwrap();
        let unreachable = "[-] upstream: etcd cannot be reached\nnot ready\n";
        assert_eq!((status, text.as_str()), (503, unreachable), "{endpoint}");
        let client = RawClient::connect(&pki, "acme", ringfence.port).await;
        assert_eq!(client.unary_bytes(RANGE, REQUEST).await.grpc_status, Some(14), "{endpoint}");
        assert_eq!(faults(&mut ringfence), ["unreachable"], "{endpoint}");
        assert!(ringfence.log().contains(hint), "{}", ringfence.log());
    }
}

#[tokio::test]
async fn an_etcd_that_is_down_is_logged_once() {
    let pki = Pki::make();
    let mut ringfence = Ringfence::start(&pki, &format!("http://127.0.0.1:{}", free_port()));
    let clients = [
        RawClient::connect(&pki, "acme", ringfence.port).await,
        RawClient::connect(&pki, "acme", ringfence.port).await,
    ];
    let failures = |ringfence: &Ringfence| {
        let metrics = ringfence.metrics();
        let line = metrics.lines().find(|line| line.contains("upstream_connect_failures_total"));
        line.unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    while failures(&ringfence) < 10 {
        for client in &clients {
            assert_eq!(client.unary_bytes(RANGE, REQUEST).await.grpc_status, Some(14));
        }
    }
    assert_eq!(ringfence.stop().code(), Some(0));
    assert_eq!(ringfence.log().matches("etcd cannot be reached").count(), 1);
}

/// The member takes the connection and says nothing for longer than the call has time.
#[tokio::test]
async fn a_call_ends_at_its_own_deadline_while_a_member_is_silent() {
    let pki = Pki::make();
    let (_silent, endpoint) = silent_member();
    let upstream = format!("endpoints = [\"{endpoint}\"]\nconnect_timeout_seconds = 60");
    let mut ringfence = Ringfence::start_before(&pki, &upstream, "");
    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    // The first begins to connect, the second waits for it.
    let call = || client.call(RANGE, &[("grpc-timeout", "100m")], framed(REQUEST));
    let (first, second) = tokio::join!(call(), call());
    assert_eq!((first.grpc_status, second.grpc_status), (Some(4), Some(4)));
    assert_eq!(faults(&mut ringfence), ["timeout", "timeout"]);
}

/// Calls that have less time than a connection may take to come up do not begin it anew each time.
#[tokio::test]
async fn a_member_behind_a_silent_one_is_used() {
    let pki = Pki::make();
    let (_silent, silent) = silent_member();
    let tap = Tap::start().await;
    let endpoints = format!("endpoints = [\"{silent}\", \"{}\"]", tap.endpoint);
    let upstream = format!("{endpoints}\nconnect_timeout_seconds = 1");
    let ringfence = Ringfence::start_before(&pki, &upstream, "");
    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    let mut statuses = Vec::new();
    while statuses.last() != Some(&0) {
        let reply = client.call(RANGE, &[("grpc-timeout", "100m")], framed(REQUEST)).await;
        statuses.push(reply.grpc_status.unwrap());
        assert!(statuses.len() < 200, "the second member is never used");
    }
    let (served, failed) = statuses.split_last().unwrap();
    assert_eq!(*served, 0);
    assert!(failed.iter().all(|status| *status == 4), "{statuses:?}");
    assert!(!failed.is_empty(), "the silent member was not first");
}

#[tokio::test]
async fn a_reply_without_a_status_is_internal_and_a_fault() {
    let pki = Pki::make();
    for end in [End::Message(None), End::Message(Some("fine")), End::Nothing] {
        let tap = Tap::start_ending(end).await;
        let mut ringfence = Ringfence::start(&pki, &tap.endpoint);
        let client = RawClient::connect(&pki, "acme", ringfence.port).await;
        let reply = client.unary_bytes(RANGE, REQUEST).await;
        assert_eq!(reply.grpc_status, Some(13), "{end:?}");
        assert_eq!(faults(&mut ringfence), ["no_status"], "{end:?}");
    }
}

/// Streams do not outlive the etcd that they lead to, and their clients can begin again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_killed_under_a_watch_is_unavailable_then_watched_again() {
    let pki = Pki::make();
    let mut etcd = Etcd::start("3.7", &pki);
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create("/tenants/acme/x", ""))),
    };
    let mut stream = acme.stream(WATCH).await;
    stream.send(&create);
    assert!(stream.next::<WatchResponse>().await.created);
    etcd.kill();
    let end = stream.expect_end().await;
    assert_eq!(end.grpc_status, Some(14), "{end:?}");
    // Nobody is there: the stream ends before it begins, and is recorded.
    let mut stream = acme.stream(WATCH).await;
    stream.send(&create);
    let end = stream.expect_end().await;
    assert_eq!(end.grpc_status, Some(14), "{end:?}");
    etcd.restart();
    let mut created = None;
    for _ in 0..1000 {
        let mut stream = acme.stream(WATCH).await;
        stream.send(&create);
        created = stream.next_or_end::<WatchResponse>().await;
        if created.is_some() {
            break;
        }
        assert_eq!(stream.end.unwrap().grpc_status, Some(14));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(created.is_some_and(|created| created.created));
    drop(acme);
    let streams = ringfence.decisions().len();
    let records = ringfence.records();
    let of_type = |kind: &str| records.iter().filter(|record| record["type"] == kind).count();
    assert_eq!((of_type("outcome"), of_type("stream.end")), (streams, streams));
}
