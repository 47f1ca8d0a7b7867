//! A hundred reloads of every kind under load: no call that is allowed fails, none that is forbidden goes through, no watch
//! loses an event, and memory stays what it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringfence::etcd::pb::etcdserverpb::RangeRequest;

use crate::load::{Watcher, Writer};
use crate::support::{Pki, RawClient, number_from_environment, wait_for};
use crate::{ALONE, POLICY, Scene};

const TICK: Duration = Duration::from_millis(10);
const CONNECTIONS: usize = 8;

/// What the calls came to.
#[derive(Debug, Default)]
struct Tally {
    allowed: AtomicU64,
    denied: AtomicU64,
    /// An allowed one that failed.
    failed: AtomicU64,
    /// A forbidden one that went through.
    leaked: AtomicU64,
    stopping: AtomicBool,
}

impl Tally {
    /// One call in ten is forbidden.
    async fn call(&self, client: &RawClient, number: u64) {
        let is_forbidden = number.is_multiple_of(10);
        let key = if is_forbidden { "/own/a" } else { "/hot/1" };
        let request = RangeRequest { key: key.into(), ..RangeRequest::default() };
        let reply = client.try_unary("/etcdserverpb.KV/Range", &request).await;
        let counter = match (is_forbidden, reply.and_then(|reply| reply.grpc_status)) {
            (false, Some(0)) => &self.allowed,
            (true, Some(7)) => &self.denied,
            (true, Some(0)) => &self.leaked,
            _ => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// So many calls a second over all connections, until told to stop.
async fn drive(clients: Vec<RawClient>, per_second: u64, tally: Arc<Tally>) {
    let per_tick = per_second * u64::try_from(TICK.as_millis()).unwrap() / 1000;
    let mut turn = tokio::time::interval(TICK);
    let mut number = 0;
    let mut calls = tokio::task::JoinSet::new();
    while !tally.stopping.load(Ordering::Relaxed) {
        turn.tick().await;
        for _ in 0..per_tick {
            number += 1;
            let client = clients[usize::try_from(number).unwrap() % clients.len()].clone();
            let tally = Arc::clone(&tally);
            calls.spawn(async move { tally.call(&client, number).await });
        }
        while calls.try_join_next().is_some() {}
    }
    while calls.join_next().await.is_some() {}
}

/// One change of files, and what it is expected to come to.
struct Changes<'a> {
    scene: &'a Scene,
    other: Pki,
    generation: u64,
    failed: u64,
}

const FAILED: &str = "ringfence_reloads_total{unit=\"generation\",result=\"failed\"}";

const LISTS_READ: &str = "ringfence_reloads_total{unit=\"revocation\",result=\"ok\"}";

impl Changes<'_> {
    fn text(pki: &Pki, file: &str) -> String {
        String::from_utf8(pki.pem(file)).unwrap()
    }

    fn succeeds(&mut self) {
        self.generation += 1;
        self.scene.ringfence.wait_for_generation(self.generation);
    }

    fn fails(&mut self) {
        self.failed += 1;
        let (ringfence, failed) = (&self.scene.ringfence, self.failed);
        wait_for("the failure", || ringfence.metric(FAILED) == failed);
        assert_eq!(ringfence.generation(), self.generation);
    }

    fn make(&mut self, number: usize) {
        let ringfence = &self.scene.ringfence;
        match number % 7 {
            0 => {
                ringfence.replace_file("policy.toml", &format!("{POLICY}# {number}\n"));
                self.succeeds();
            }
            1 => {
                ringfence.replace_file("policy.toml", &POLICY.replace("\"steady\"", "steady"));
                self.fails();
                ringfence.replace_file("policy.toml", POLICY);
                self.succeeds();
            }
            2 => {
                // Half a pair, and the other half a little later.
                let pki = if number % 14 == 2 { &self.other } else { &self.scene.pki };
                ringfence.replace_file("tls.crt", &Self::text(pki, "ringfence-server.crt"));
                std::thread::sleep(Duration::from_millis(400));
                ringfence.replace_file("tls.key", &Self::text(pki, "ringfence-server.key"));
                self.succeeds();
            }
            3 => {
                // A CA comes.
                let both = Self::text(&self.scene.pki, "tenants-ca.crt")
                    + &Self::text(&self.scene.pki, "foreign-ca.crt");
                ringfence.replace_file("ca.crt", &both);
                self.succeeds();
            }
            4 => {
                // And goes.
                ringfence.replace_file("ca.crt", &Self::text(&self.scene.pki, "tenants-ca.crt"));
                self.succeeds();
            }
            5 => {
                // A newer list; it is no new generation.
                let before = self.scene.ringfence.metric(LISTS_READ);
                self.scene.pki.command(&["crl", "--authority", "tenants-ca"]);
                wait_for("the list", || self.scene.ringfence.metric(LISTS_READ) > before);
            }
            _ => {
                self.scene.set_rule(false);
                self.succeeds();
                self.scene.set_rule(true);
                self.succeeds();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reloads_under_load() {
    let _alone = ALONE.lock().await;
    let per_second = number_from_environment("RINGFENCE_LIFECYCLE_REQUESTS", 1000);
    let watches = number_from_environment("RINGFENCE_LIFECYCLE_WATCHES", 40);
    let reloads = number_from_environment("RINGFENCE_LIFECYCLE_RELOADS", 7);
    // What is measured is ringfence, not its log at the most talkative level.
    let scene = Scene::start_quiet();
    let mut changes = Changes { scene: &scene, other: Pki::make(), generation: 1, failed: 0 };
    scene.own_files();
    changes.succeeds();
    let connect = async |name| RawClient::connect(&scene.pki, name, scene.ringfence.port).await;
    let mut clients = Vec::new();
    for number in 0..CONNECTIONS {
        clients.push(connect(if number % 2 == 0 { "apiserver" } else { "acme" }).await);
    }
    let mut watchers = Vec::new();
    for number in 0..watches {
        watchers.push(
            Watcher::start(&clients[usize::try_from(number).unwrap() % CONNECTIONS], 0).await,
        );
    }
    let writer = Writer::start(scene.etcd.port(), 20).await;
    let tally = Arc::new(Tally::default());
    let driving = tokio::spawn(drive(clients, per_second, Arc::clone(&tally)));
    tokio::time::sleep(Duration::from_secs(3)).await;
    let began = Instant::now();
    let mut memory = Vec::new();
    for number in 0..usize::try_from(reloads).unwrap() {
        tokio::task::block_in_place(|| changes.make(number));
        // Behind the first of each kind everything that is kept is there.
        memory.push(scene.ringfence.memory_bytes());
    }
    let took = began.elapsed();
    tally.stopping.store(true, Ordering::Relaxed);
    driving.await.unwrap();
    let written = writer.stop().await;
    for watcher in &watchers {
        wait_for("the last event", || watcher.seen().revisions.last() == written.last());
        let seen = watcher.seen();
        assert!(seen.ended.is_none() && seen.revisions == written, "{:?}", seen.status);
    }
    let first = memory[memory.len().min(7) - 1];
    let last = *memory.last().unwrap();
    let growth = last as f64 / first as f64 - 1.0;
    let (allowed, denied) = (Tally::get(&tally.allowed), Tally::get(&tally.denied));
    println!(
        "{reloads} changes ({} generations, {} refused) in {took:.0?} under {per_second} requests/s and {watches} watches: \
         {allowed} allowed, {denied} denied, {} allowed ones failed, {} forbidden ones went through; \
         each watch saw all {} events; memory {:.1} MiB behind the seventh, {:.1} at the end ({:+.1} %)",
        changes.generation - 2,
        changes.failed,
        Tally::get(&tally.failed),
        Tally::get(&tally.leaked),
        written.len(),
        first as f64 / f64::from(1 << 20),
        last as f64 / f64::from(1 << 20),
        growth * 100.0,
    );
    assert_eq!((Tally::get(&tally.failed), Tally::get(&tally.leaked)), (0, 0));
    assert!(allowed > 0 && denied > 0);
    assert!(growth < 0.1, "{memory:?}");
}
