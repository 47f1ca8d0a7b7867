//! A watch of very many events, while others come and go on the same stream: every event once, in
//! order, the same as etcd itself tells them.
//!
//! `RINGFENCE_WATCH_EVENTS` says how many; the gate runs a tenth of the figure that is promised.

use std::sync::Arc;
use std::time::Instant;

use aws_lc_rs::digest::{Context, SHA256};
use prost::Message as _;
use ringfence::etcd::pb::etcdserverpb::watch_request::RequestUnion;
use ringfence::etcd::pb::etcdserverpb::{
    PutRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchResponse, request_op,
};
use tokio::sync::Notify;

use crate::support::{Etcd, Pki, RawClient, RawStream, Ringfence, number_from_environment};
use crate::watch::{WATCH, cancel, create, request};

const EVENTS: u64 = 100_000;
/// As many writes in one transaction, at one revision.
const OPERATIONS: u16 = 50;
/// etcd's time to cut a message grows with the square of the events in it: few and larger ones.
const VALUE_DIGITS: usize = 1024;
/// The keys are written over and over.
const KEYS: u64 = 1000;
/// The ID of the watch that counts; those that come and go have other ones.
const BIG: i64 = 7;
const PASSING: i64 = 1000;

fn value(number: u64) -> String {
    format!("{number:0VALUE_DIGITS$}")
}

/// Writes events numbered from `first` on; the number is the value.
async fn write(client: &RawClient, first: u64, events: u64) {
    for start in (first..first + events).step_by(OPERATIONS.into()) {
        let put = |number: u64| {
            let put = PutRequest {
                key: format!("/tenants/acme/{:04}", number % KEYS).into(),
                value: value(number).into(),
                ..Default::default()
            };
            RequestOp { request: Some(request_op::Request::RequestPut(put)) }
        };
        let success = (start..start + u64::from(OPERATIONS)).map(put).collect();
        let txn = TxnRequest { success, ..Default::default() };
        let reply = client.unary("/etcdserverpb.KV/Txn", &txn).await;
        assert_eq!(reply.grpc_status, Some(0), "{reply:?}");
    }
}

async fn begin(client: &RawClient) -> RawStream {
    let mut stream = client.stream(WATCH).await;
    let big = WatchCreateRequest {
        watch_id: BIG,
        start_revision: 2,
        prev_kv: true,
        fragment: true,
        ..create("/tenants/acme/", "/tenants/acme0")
    };
    stream.send(&request(RequestUnion::CreateRequest(big)));
    let created: WatchResponse = stream.next().await;
    assert!(created.created && !created.canceled && created.watch_id == BIG, "{created:?}");
    stream
}

/// What a reader has seen of the big watch.
struct Seen {
    events: u64,
    digest: Context,
    /// Events of the watches that came and went, and how many of those were created.
    beside: u64,
    created: u64,
    canceled: u64,
}

/// Reads to the last event. When it `mixes`, another watch is made and cancelled now and then, and
/// one that must be denied is asked for.
async fn read(mut stream: RawStream, events: u64, mixes: bool, half: Arc<Notify>) -> Seen {
    let digest = Context::new(&SHA256);
    let mut seen = Seen { events: 0, digest, beside: 0, created: 0, canceled: 0 };
    let (mut next_mix, mut passing, mut denied) = (0, PASSING, 0);
    while seen.events < events {
        let response: WatchResponse = stream.next().await;
        if response.watch_id != BIG {
            seen.created += u64::from(response.created);
            seen.canceled += u64::from(response.canceled);
            seen.beside += response.events.len() as u64;
            denied += u64::from(response.watch_id == -1);
            continue;
        }
        assert!(!response.canceled, "{response:?}");
        for event in response.events {
            let kv = event.kv.as_ref().unwrap();
            assert_eq!(kv.value, value(seen.events), "an event is lost or comes twice");
            let before = event.prev_kv.as_ref().map(|kv| kv.value.clone());
            let expected = seen.events.checked_sub(KEYS).map(|number| value(number).into());
            assert_eq!(before, expected);
            seen.digest.update(&event.encode_to_vec());
            seen.events += 1;
            if seen.events == events / 2 {
                half.notify_one();
            }
        }
        if mixes && seen.events >= next_mix {
            next_mix += events / 50;
            passing += 1;
            let other =
                WatchCreateRequest { watch_id: passing, ..create("/tenants/acme/0001", "") };
            stream.send(&request(RequestUnion::CreateRequest(other)));
            let foreign = create("/tenants/globex/", "/tenants/globex0");
            stream.send(&request(RequestUnion::CreateRequest(foreign)));
            stream.send(&cancel(passing - 1));
        }
    }
    if mixes {
        assert!(denied > 0 && seen.created > denied, "{denied} of {} were denied", seen.created);
        assert!(seen.canceled > denied, "{} were cancelled", seen.canceled);
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_of_very_many_events_tells_each_once_and_in_order() {
    let events = number_from_environment("RINGFENCE_WATCH_EVENTS", EVENTS);
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let past = RawClient::connect_plain(etcd.port()).await;
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    // Half of it is history when the watches begin, half happens under their eyes.
    write(&past, 0, events / 2).await;
    let started = Instant::now();
    let (history, unused) = (Arc::new(Notify::new()), Arc::default());
    let through = tokio::spawn(read(begin(&acme).await, events, true, Arc::clone(&history)));
    let direct = tokio::spawn(read(begin(&past).await, events, false, unused));
    history.notified().await;
    write(&past, events / 2, events / 2).await;
    let (through, direct) = (through.await.unwrap(), direct.await.unwrap());
    println!(
        "{} events in {:?}; {} watches beside, {} events of theirs; memory {} bytes",
        through.events,
        started.elapsed(),
        through.created,
        through.beside,
        ringfence.memory_bytes()
    );
    assert_eq!((through.events, direct.events), (events, events));
    assert_eq!(through.digest.finish().as_ref(), direct.digest.finish().as_ref());
    assert!(ringfence.memory_bytes() < 64 << 20);
    drop((past, acme));
    let decisions = ringfence.decisions();
    let denied = decisions.iter().filter(|record| record["verdict"] == "deny").count();
    assert!(denied > 0 && decisions.len() > 2 * denied, "{denied} of {}", decisions.len());
}
