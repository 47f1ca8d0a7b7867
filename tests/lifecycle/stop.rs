//! What clients see of the end of ringfence: calls are answered or told that it ends, and a watch that goes on elsewhere
//! loses and doubles nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringfence::etcd::pb::etcdserverpb::RangeRequest;
use tokio::task::JoinSet;

use crate::load::{Watcher, Writer};
use crate::support::{RawClient, Ringfence};
use crate::{ALONE, POLICY, Scene};

const CALLERS: usize = 32;

/// Calls one after the other; how each ended. "0" is fine, "14" says to go elsewhere, "not sent" is a connection that had
/// said good-bye, and "broken" a call that never heard what came of it.
async fn call(client: RawClient, stopping: Arc<AtomicBool>) -> Vec<String> {
    let request = RangeRequest { key: "/hot/1".into(), ..RangeRequest::default() };
    let mut endings = Vec::new();
    while !stopping.load(Ordering::Relaxed) {
        let reply = client.try_unary("/etcdserverpb.KV/Range", &request).await;
        let ending = match &reply {
            None => "not sent".to_owned(),
            Some(reply) => {
                reply.grpc_status.map_or_else(|| "broken".to_owned(), |status| status.to_string())
            }
        };
        endings.push(ending);
        if endings.last().is_none_or(|ending| ending != "0") {
            break;
        }
    }
    endings
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sigterm_under_load() {
    let _alone = ALONE.lock().await;
    let mut scene = Scene::start("");
    // Where clients go instead.
    let mut second = Ringfence::start_with_policy(&scene.pki, &scene.etcd.endpoint(), POLICY, "");
    let writer = Writer::start(scene.etcd.port(), 500).await;
    let stopping = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let client = RawClient::connect(&scene.pki, "apiserver", scene.ringfence.port).await;
        callers.spawn(call(client, Arc::clone(&stopping)));
    }
    let client = RawClient::connect(&scene.pki, "apiserver", scene.ringfence.port).await;
    let watcher = Watcher::start(&client, 0).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    let status = tokio::task::block_in_place(|| scene.ringfence.stop());
    let took = began.elapsed();
    stopping.store(true, Ordering::Relaxed);
    let mut endings: BTreeMap<String, usize> = BTreeMap::new();
    while let Some(ended) = callers.join_next().await {
        for ending in ended.unwrap() {
            *endings.entry(ending).or_default() += 1;
        }
    }
    // The long-lived client goes on behind the last revision that it has seen.
    watcher.watching.await.unwrap();
    let seen = watcher.seen.lock().unwrap().clone();
    let next = seen.revisions.last().unwrap() + 1;
    let client = RawClient::connect(&scene.pki, "apiserver", second.port).await;
    let again = Watcher::start(&client, next).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let written = writer.stop().await;
    crate::support::wait_for("the last event", || again.seen().revisions.last() == written.last());
    let mut revisions = seen.revisions;
    revisions.extend(again.seen().revisions);
    println!(
        "SIGTERM under load: exit code {:?} after {took:.0?}; calls by status {endings:?}; \
         the watch was told {:?} and went on elsewhere: {} events, none lost or doubled",
        status.code(),
        seen.status,
        revisions.len()
    );
    assert_eq!(status.code(), Some(0));
    assert_eq!(seen.status, Some(14));
    let from = written.iter().position(|revision| *revision == revisions[0]).unwrap();
    assert_eq!(revisions, written[from..]);
    assert!(
        endings.keys().all(|ending| ["0", "14", "not sent"].contains(&&**ending)),
        "{endings:?}"
    );
    assert_eq!(second.stop().code(), Some(0));
}
