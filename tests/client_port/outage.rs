//! etcd goes away and comes back; ringfence stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ringfence::etcd::pb::etcdserverpb::watch_request::RequestUnion;
use ringfence::etcd::pb::etcdserverpb::{RangeRequest, WatchRequest, WatchResponse};

use crate::support::{Etcd, Pki, RawClient, Ringfence, http_get, wait_for};
use crate::watch::{WATCH, create};

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
