//! One principal that misbehaves beside another that does not. A target of its own: it uses the whole
//! machine, and tests with deadlines must not run beside it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "a test fails by panicking; it uses a part of the common support"
)]

#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prost::Message as _;
use ringfence::etcd::pb::etcdserverpb::watch_request::RequestUnion;
use ringfence::etcd::pb::etcdserverpb::{
    PutRequest, RangeRequest, RangeResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};

use support::{Etcd, Pki, RawClient, Ringfence, framed, number_from_environment};
use tokio::sync::Mutex;

/// The tests here take turns.
static ALONE: Mutex<()> = Mutex::const_new(());
const READERS: usize = 100;
const CALLS: usize = 2000;
const MEMORY_BYTES_MAX: u64 = 64 << 20;

/// A hundred readers of one tenant ask for much and read nothing; another tenant goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_stopped_readers_stop_nobody_else() {
    let _alone = ALONE.lock().await;
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    // A connection window for all, so that each reader takes the 64 KiB of its own stream.
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(64 << 20);
    let acme = RawClient::connect_with(&pki, "acme", ringfence.port, builder).await;
    for number in 0..8 {
        let key = format!("/tenants/acme/large-{number}");
        let put =
            PutRequest { key: key.into(), value: vec![7; 1 << 20].into(), ..Default::default() };
        let reply = acme.call("/etcdserverpb.KV/Put", &[], framed(&put.encode_to_vec())).await;
        assert_eq!(reply.grpc_status, Some(0));
    }
    let globex = RawClient::connect(&pki, "globex", ringfence.port).await;
    quick_calls(&globex).await;
    let quiet = quick_calls(&globex).await;

    // Every reader asks for 8 MiB and takes none of it.
    let all = RangeRequest {
        key: "/tenants/acme/large-".into(),
        range_end: "/tenants/acme/large.".into(),
        ..Default::default()
    };
    let mut stopped = Vec::new();
    for _ in 0..READERS {
        stopped.push(acme.send_and_stop_reading("/etcdserverpb.KV/Range", &all).await);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let beside = quick_calls(&globex).await;
    let memory = ringfence.memory_bytes();
    let ratio = beside.as_secs_f64() / quiet.as_secs_f64();
    println!(
        "p99 quiet {quiet:?}, beside stopped readers {beside:?}: {ratio:.2}; memory {memory} bytes"
    );
    assert!(memory < MEMORY_BYTES_MAX, "{memory} bytes");

    // The readers were stopped, not refused: one that begins to read gets all of it.
    let (response, _stream) = stopped.pop().unwrap();
    let response = response.await.unwrap();
    let mut body = response.into_body();
    let mut data = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.unwrap();
        body.flow_control().release_capacity(chunk.len()).unwrap();
        data.extend_from_slice(&chunk);
    }
    let found = RangeResponse::decode(&data[5..]).unwrap();
    assert_eq!((found.count, found.kvs.len()), (8, 8));
    drop(stopped);
}

/// The p99 of small reads, one at a time.
async fn quick_calls(client: &RawClient) -> Duration {
    let range = RangeRequest { key: "/tenants/globex/x".into(), ..Default::default() };
    let mut latencies = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let started = Instant::now();
        let reply = client.unary("/etcdserverpb.KV/Range", &range).await;
        latencies.push(started.elapsed());
        assert_eq!(reply.grpc_status, Some(0));
    }
    latencies.sort();
    latencies[CALLS * 99 / 100]
}

/// What one attack does until it is told to stop; each thing it has done is counted.
#[derive(Clone, Copy, Debug)]
enum Attack {
    Denials,
    Watches,
    Rate,
    Handshakes,
    LargestRequests,
    WidestRanges,
}

const ATTACKS: [Attack; 6] = [
    Attack::Denials,
    Attack::Watches,
    Attack::Rate,
    Attack::Handshakes,
    Attack::LargestRequests,
    Attack::WidestRanges,
];
/// Connections of an attacker, each with calls one after another in this many tasks.
const CONNECTIONS: usize = 4;
const TASKS: usize = 4;
/// The attacker may make few requests a second here, and its neighbour as many as it likes.
const RATED: &str = r#"
[[identity]]
name = "acme"
match = { ca = "tenants", uri = "spiffe://example.org/tenant/acme" }
roles = ["tenant"]
limits = { requests_per_second = 20 }
[[identity]]
name = "globex"
match = { ca = "tenants", uri = "spiffe://example.org/tenant/globex" }
roles = ["tenant"]
[[role]]
name = "tenant"
rules = [{ prefix = "/tenants/", allow = ["get", "put"] }]
"#;

/// What an attack shares with its tasks.
#[derive(Clone, Default)]
struct Running {
    done: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Running {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    fn count(&self, as_expected: bool, what: &impl std::fmt::Debug) {
        assert!(as_expected, "{what:?}");
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

async fn attack(attack: Attack, acme: RawClient, pki: Arc<Pki>, port: u16, running: Running) {
    let mut watching = None;
    while running.goes_on() {
        let range = |key: &str, end: &str| RangeRequest {
            key: key.to_owned().into(),
            range_end: end.to_owned().into(),
            ..Default::default()
        };
        let path = "/etcdserverpb.KV/Range";
        match attack {
            Attack::Denials => {
                let reply = acme.unary(path, &range("/tenants/globex/b", "")).await;
                running.count(reply.grpc_status == Some(7), &reply);
            }
            Attack::Rate => {
                let reply = acme.unary(path, &range("/tenants/acme/a", "")).await;
                running.count(matches!(reply.grpc_status, Some(0 | 8)), &reply.grpc_status);
            }
            Attack::WidestRanges => {
                let reply = acme.unary(path, &range("/tenants/acme/", "/tenants/acme0")).await;
                running.count(matches!(reply.grpc_status, Some(0 | 8)), &reply.grpc_status);
            }
            Attack::LargestRequests => {
                let value = vec![7; (2 << 20) - 100].into();
                let put = PutRequest { key: "/tenants/acme/a".into(), value, ..Default::default() };
                let reply = acme.unary("/etcdserverpb.KV/Put", &put).await;
                // etcd finds it too large; ringfence has read and sent all of it.
                running.count(matches!(reply.grpc_status, Some(3 | 8)), &reply.grpc_status);
            }
            Attack::Watches => {
                let stream = match &mut watching {
                    Some(stream) => stream,
                    none => none.insert(acme.stream("/etcdserverpb.Watch/Watch").await),
                };
                let create =
                    WatchCreateRequest { key: "/tenants/acme/a".into(), ..Default::default() };
                let create = RequestUnion::CreateRequest(create);
                stream.send(&WatchRequest { request_union: Some(create) });
                let response: WatchResponse = stream.next().await;
                running.count(response.created, &response);
            }
            Attack::Handshakes => {
                let client = RawClient::connect(&pki, "acme", port).await;
                drop(client);
                running.count(true, &());
            }
        }
    }
}

/// Calls of the neighbour for that long, one after another: how long each took. Every answer is right.
async fn calls(globex: &RawClient, time: Duration) -> Vec<Duration> {
    let range = RangeRequest { key: "/tenants/globex/b".into(), ..Default::default() };
    let (started, mut took) = (Instant::now(), Vec::new());
    while started.elapsed() < time {
        let call = Instant::now();
        let reply = globex.unary("/etcdserverpb.KV/Range", &range).await;
        took.push(call.elapsed());
        let response: RangeResponse = reply.message();
        assert_eq!(response.kvs[0].value, "right", "{response:?}");
    }
    took.sort_unstable();
    took
}

fn p99(took: &[Duration]) -> Duration {
    took[took.len() * 99 / 100]
}

/// One tenant attacks in every way there is; each call of another is answered, and rightly. How long it
/// takes is printed as a ratio to its own quiet run, never asserted: `make neighbours`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_of_a_neighbour_is_answered_beside_every_attack() {
    let _alone = ALONE.lock().await;
    let seconds = number_from_environment("RINGFENCE_NEIGHBOURS_SECONDS", 2);
    let time = Duration::from_secs(seconds);
    println!(
        "attack           done by A   a second   B quiet p99   B beside p99   ratio   B's calls   memory"
    );
    for kind in ATTACKS {
        let pki = Arc::new(Pki::make());
        let etcd = Etcd::start_plain("3.7");
        let ringfence = match kind {
            Attack::Rate => Ringfence::start_with_policy(&pki, &etcd.endpoint(), RATED, ""),
            _ => Ringfence::start(&pki, &etcd.endpoint()),
        };
        let globex = RawClient::connect(&pki, "globex", ringfence.port).await;
        let direct = RawClient::connect_plain(etcd.port()).await;
        for (key, value) in
            [("globex/b", "right".into()), ("acme/a", "a".into()), ("acme/l", vec![7; 1 << 20])]
        {
            let key = format!("/tenants/{key}").into();
            let put = PutRequest { key, value: value.into(), ..Default::default() };
            assert_eq!(direct.unary("/etcdserverpb.KV/Put", &put).await.grpc_status, Some(0));
        }
        calls(&globex, time / 4).await;
        let quiet = calls(&globex, time).await;
        let running = Running::default();
        let mut attackers = tokio::task::JoinSet::new();
        for _ in 0..CONNECTIONS {
            let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
            for _ in 0..TASKS {
                let (pki, port) = (Arc::clone(&pki), ringfence.port);
                attackers.spawn(attack(kind, acme.clone(), pki, port, running.clone()));
            }
        }
        let beside = calls(&globex, time).await;
        let done = running.done.load(Ordering::Relaxed);
        let memory = ringfence.memory_bytes();
        running.over.store(true, Ordering::Relaxed);
        attackers.join_all().await;
        let name = format!("{kind:?}");
        let (before, with) = (p99(&quiet), p99(&beside));
        println!(
            "{name:<16} {done:>9}  {:>9}  {before:>12.2?}  {with:>13.2?}  {:>6.2}  {:>10}  {:>4} MiB",
            done / seconds,
            with.as_secs_f64() / before.as_secs_f64(),
            beside.len(),
            memory >> 20,
        );
        assert!(done > 10, "{name} has not happened: {done}");
        assert!(memory < ATTACKED_MEMORY_BYTES_MAX, "{name}: {memory} bytes");
    }
}

/// With sixteen requests of 2 MiB under way.
const ATTACKED_MEMORY_BYTES_MAX: u64 = 128 << 20;
