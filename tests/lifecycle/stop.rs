//! What clients see of the end of ringfence: calls are answered or told that it ends, and a watch that goes on elsewhere
//! loses and doubles nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringfence::etcd::pb::etcdserverpb::RangeRequest;
use tokio::task::JoinSet;

use crate::load::{Watcher, Writer};
use crate::support::{RawClient, Ringfence, wait_for};
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

/// `etcdctl watch`, which knows both ringfences.
struct Etcdctl {
    child: std::process::Child,
    output: std::path::PathBuf,
}

impl Etcdctl {
    fn watch(scene: &Scene, second: &Ringfence) -> Self {
        let output = scene.pki.path("etcdctl.out");
        let ports = [scene.ringfence.port, second.port];
        let endpoints = ports.map(|port| format!("https://127.0.0.1:{port}")).join(",");
        let child = std::process::Command::new(scene.etcd.binary("etcdctl"))
            .args(["watch", "--prefix", "/hot/", "--endpoints", &endpoints])
            .arg("--cacert")
            .arg(scene.pki.path("kubernetes-ca.crt"))
            .arg("--cert")
            .arg(scene.pki.path("apiserver.crt"))
            .arg("--key")
            .arg(scene.pki.path("apiserver.key"))
            .stdout(std::fs::File::create(&output).unwrap())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        Self { child, output }
    }

    /// It picks one of the two: until that is the one that ends.
    fn watch_through_first(scene: &Scene, second: &Ringfence) -> Self {
        let watches =
            "ringfence_requests_total{rpc=\"/etcdserverpb.Watch/Watch\",verdict=\"allow\"}";
        for _ in 0..20 {
            let before = scene.ringfence.metric(watches);
            let etcdctl = Self::watch(scene, second);
            wait_for("an event at etcdctl", || !etcdctl.values().is_empty());
            if scene.ringfence.metric(watches) > before {
                return etcdctl;
            }
        }
        panic!("etcdctl never picks the first of its endpoints");
    }

    /// The values it has shown: each event is a line with what it was, one with the key, one with the value.
    fn values(&self) -> Vec<usize> {
        let text = std::fs::read_to_string(&self.output).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().skip(2).step_by(3).map(|value| value.parse().unwrap()).collect()
    }
}

impl Drop for Etcdctl {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
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
    let etcdctl = Etcdctl::watch_through_first(&scene, &second);
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
    wait_for("the last event", || again.seen().revisions.last() == written.last());
    let last = written.len() - 1;
    wait_for("the last event at etcdctl", || etcdctl.values().last() == Some(&last));
    let shown = etcdctl.values();
    assert_eq!(shown, (shown[0]..=last).collect::<Vec<_>>(), "lost or doubled at etcdctl");
    let mut revisions = seen.revisions;
    revisions.extend(again.seen().revisions);
    println!(
        "SIGTERM under load: exit code {:?} after {took:.0?}; calls by status {endings:?}; \
         the watch was told {:?} and went on elsewhere: {} events, none lost or doubled; etcdctl watch showed {} events, \
         none lost or doubled",
        status.code(),
        seen.status,
        revisions.len(),
        shown.len()
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
