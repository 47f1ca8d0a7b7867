//! How long after the end of a right the last event still arrives, for every way in which a right ends; and that those
//! beside it lose none.

use std::time::{Duration, Instant};

use crate::load::{Watcher, Writer, percentiles};
use crate::support::{RawClient, number_from_environment, wait_for};
use crate::{ALONE, Scene};

const WRITES_PER_SECOND: u32 = 500;
/// The promise.
const LATE: Duration = Duration::from_secs(1);

fn runs() -> usize {
    usize::try_from(number_from_environment("RINGFENCE_LIFECYCLE_RUNS", 3)).unwrap()
}

/// Watchers who keep their right, and all that was written meanwhile.
struct Others {
    writer: Writer,
    watchers: Vec<Watcher>,
}

impl Others {
    async fn start(scene: &Scene) -> Self {
        let steady = RawClient::connect(&scene.pki, "apiserver", scene.ringfence.port).await;
        let mut watchers = Vec::new();
        for _ in 0..4 {
            watchers.push(Watcher::start(&steady, 0).await);
        }
        Self { writer: Writer::start(scene.etcd.port(), WRITES_PER_SECOND).await, watchers }
    }

    async fn lose_nothing(self) -> usize {
        let written = self.writer.stop().await;
        for watcher in self.watchers {
            wait_for("the last event", || watcher.seen().revisions.last() == written.last());
            let seen = watcher.seen();
            assert!(seen.ended.is_none(), "{:?}", seen.status);
            assert_eq!(seen.revisions, written, "lost or doubled");
        }
        written.len()
    }
}

/// The time from the end of the right to the last event; it must have ended.
async fn until_last_event(watcher: Watcher, ended: Instant) -> Duration {
    let seen = std::sync::Arc::clone(&watcher.seen);
    let bound = tokio::time::timeout(crate::support::PATIENCE, watcher.watching);
    bound.await.expect("the watch ends").unwrap();
    let seen = seen.lock().unwrap().clone();
    seen.last.map_or(Duration::ZERO, |last| last.saturating_duration_since(ended))
}

fn show(what: &str, times: &[Duration], events: usize) {
    let [p50, p99, worst] = percentiles(times);
    println!(
        "{what}: {} runs, from its end to the last event: p50 {p50:.0?}, p99 {p99:.0?}, worst {worst:.0?}; \
         4 watches beside it saw all {events} events",
        times.len()
    );
    assert!(worst < LATE, "{what}: {worst:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_is_removed() {
    let _alone = ALONE.lock().await;
    let scene = Scene::start("");
    let others = Others::start(&scene).await;
    let mut times = Vec::new();
    for run in 0..runs() as u64 {
        let victim = RawClient::connect(&scene.pki, "globex", scene.ringfence.port).await;
        let watcher = Watcher::start(&victim, 0).await;
        watcher.sees_something().await;
        scene.set_rule(false);
        let ended = Instant::now();
        scene.ringfence.wait_for_generation(2 * run + 2);
        wait_for("the end of the watch", || watcher.seen().ended.is_some());
        let seen = watcher.seen();
        times.push(seen.last.unwrap().saturating_duration_since(ended));
        // It was that watch alone: the stream and the connection go on.
        assert!(!watcher.watching.is_finished());
        scene.set_rule(true);
        scene.ringfence.wait_for_generation(2 * run + 3);
        watcher.watching.abort();
    }
    let events = others.lose_nothing().await;
    show("rule removed", &times, events);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_revoked() {
    let _alone = ALONE.lock().await;
    let scene = Scene::start("");
    scene.own_files();
    scene.ringfence.wait_for_generation(2);
    let others = Others::start(&scene).await;
    let mut times = Vec::new();
    for run in 0..runs() {
        let name = format!("stolen-{run}");
        let uri = "spiffe://example.org/tenant/acme";
        scene.pki.issue(&name, "tenants-ca", uri, Duration::from_secs(3600));
        let stolen = RawClient::connect(&scene.pki, &name, scene.ringfence.port).await;
        let watcher = Watcher::start(&stolen, 0).await;
        watcher.sees_something().await;
        scene.pki.command(&["revoke", &name]);
        times.push(until_last_event(watcher, Instant::now()).await);
    }
    let events = others.lose_nothing().await;
    show("certificate revoked", &times, events);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_expires() {
    let _alone = ALONE.lock().await;
    let scene = Scene::start("");
    let others = Others::start(&scene).await;
    let mut watching = Vec::new();
    for run in 0..runs() {
        let name = format!("brief-{run}");
        let lifetime = Duration::from_secs(4 + (run / 20) as u64);
        let uri = "spiffe://example.org/tenant/acme";
        let ends = scene.pki.issue(&name, "tenants-ca", uri, lifetime);
        let brief = RawClient::connect(&scene.pki, &name, scene.ringfence.port).await;
        let watcher = Watcher::start(&brief, 0).await;
        // The last second of a certificate is its own.
        let left = Duration::from_secs(ends + 1) - ringfence::clock::since_epoch();
        watching.push((watcher, Instant::now() + left, brief));
    }
    let mut times = Vec::new();
    for (watcher, ended, _client) in watching {
        times.push(until_last_event(watcher, ended).await);
    }
    let events = others.lose_nothing().await;
    show("certificate expired", &times, events);
}
