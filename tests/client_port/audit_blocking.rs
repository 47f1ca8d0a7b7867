//! Nothing that etcd got is unrecorded: not when the disk is full, not when ringfence is killed.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringfence::etcd::pb::etcdserverpb::PutRequest;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::{Etcd, Pki, RawClient, Reply, Ringfence, Settings, http_get, wait_for};

const BLOCKING: &str = "mode = \"blocking\"\nwait_seconds = 1";
const CONNECTIONS: usize = 4;
const STREAMS: usize = 8;
const MESSAGE: &str = "ringfence: the audit log takes no records, nothing was forwarded";

/// A file system of a few megabytes, gone when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(megabytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m,mode=700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "ringfence-test"])
            .arg(folder.path())
            .status()
            .unwrap();
        assert!(mounted.success(), "a file system can be mounted (this test needs root)");
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let gone = Command::new("umount").arg(self.path()).status().unwrap();
        assert!(gone.success() || std::thread::panicking(), "the file system stays mounted");
    }
}

/// Clients that put keys of their own, one after the other, and what they heard.
struct Load {
    heard: Arc<Mutex<HashMap<String, Reply>>>,
    counts: Arc<[AtomicUsize; 17]>,
    ending: Arc<AtomicBool>,
    streams: JoinSet<()>,
}

impl Load {
    async fn start(pki: &Pki, port: u16, name: &str) -> Self {
        let mut load = Self {
            heard: Arc::default(),
            counts: Arc::default(),
            ending: Arc::default(),
            streams: JoinSet::new(),
        };
        for connection in 0..CONNECTIONS {
            let client = RawClient::connect(pki, "acme", port).await;
            for stream in 0..STREAMS {
                let prefix = format!("/tenants/acme/{name}-{connection}-{stream}");
                load.streams.spawn(put_until(
                    client.clone(),
                    prefix,
                    Arc::clone(&load.heard),
                    Arc::clone(&load.counts),
                    Arc::clone(&load.ending),
                ));
            }
        }
        load
    }

    fn count(&self, status: usize) -> usize {
        self.counts[status].load(Ordering::Relaxed)
    }

    async fn end(self) -> HashMap<String, Reply> {
        self.ending.store(true, Ordering::Relaxed);
        self.streams.join_all().await;
        std::mem::take(&mut *self.heard.lock().unwrap())
    }
}

fn start(pki: &Pki, endpoint: &str, audit_folder: &Path) -> Ringfence {
    let audit_folder = Some(audit_folder);
    let settings = Settings { audit: BLOCKING, audit_folder, ..Settings::default() };
    Ringfence::start_as(pki, endpoint, &settings)
}

async fn put_until(
    client: RawClient,
    prefix: String,
    heard: Arc<Mutex<HashMap<String, Reply>>>,
    counts: Arc<[AtomicUsize; 17]>,
    ending: Arc<AtomicBool>,
) {
    for number in 0.. {
        let key = format!("{prefix}-{number}");
        let put = PutRequest { key: key.clone().into(), value: "v".into(), ..Default::default() };
        let Some(reply) = client.try_unary("/etcdserverpb.KV/Put", &put).await else { return };
        let Some(status) = reply.grpc_status else { return };
        counts[usize::from(status)].fetch_add(1, Ordering::Relaxed);
        heard.lock().unwrap().insert(key, reply);
        if ending.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// What etcd holds: its keys, and its revision.
async fn of_etcd(etcd: &Etcd) -> (HashSet<String>, i64) {
    let mut client = etcd_client::Client::connect([etcd.endpoint()], None).await.unwrap();
    let options = etcd_client::GetOptions::new().with_prefix().with_keys_only();
    let found = client.get("/", Some(options)).await.unwrap();
    let keys = found.kvs().iter().map(|pair| pair.key_str().unwrap().to_owned()).collect();
    (keys, found.header().unwrap().revision())
}

/// By the key that was put: the decision's call, if it was allowed.
fn allowed(records: &[Value]) -> HashMap<String, (u64, u64)> {
    let decisions = records.iter().filter(|record| record["verdict"] == "allow");
    let allowed = decisions
        .map(|record| (record["touches"][0]["key"].as_str().unwrap().to_owned(), call_of(record)));
    allowed.collect()
}

fn call_of(record: &Value) -> (u64, u64) {
    (record["connection"].as_u64().unwrap(), record["call"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_requests_and_they_go_on_when_there_is_room() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let disk = SmallDisk::mount(5);
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![0; 4 << 20]).unwrap();
    let folder = disk.path().join("audit");
    let mut ringfence = start(&pki, &etcd.endpoint(), &folder);

    let load = Load::start(&pki, ringfence.port, "full").await;
    wait_for("service", || load.count(0) > 200);
    wait_for("a full disk", || load.count(14) > 2 * CONNECTIONS * STREAMS);
    let (status, text) = http_get(ringfence.admin_port, "/readyz").unwrap();
    let why = "[-] audit: the audit log cannot be written: No space left on device (os error 28)\n";
    assert_eq!((status, text.as_str()), (503, format!("{why}not ready\n").as_str()));
    let (_, full) = of_etcd(&etcd).await;
    let refused = load.count(14);
    wait_for("more refusals", || load.count(14) > refused + CONNECTIONS * STREAMS);
    assert_eq!(of_etcd(&etcd).await.1, full, "etcd got something while nothing could be recorded");

    let served = load.count(0);
    fs::remove_file(&filler).unwrap();
    wait_for("service again", || load.count(0) > served + 200);
    assert_eq!(http_get(ringfence.admin_port, "/readyz").unwrap(), (200, "ok\n".to_owned()));
    let heard = load.end().await;
    let (keys, revision) = of_etcd(&etcd).await;
    assert_eq!(ringfence.stop().code(), Some(0));
    let records = ringfence.records();
    check_after_a_full_disk(&records, &heard, &keys);
    assert_eq!(revision, 1 + i64::try_from(keys.len()).unwrap(), "one revision for each key");
}

fn check_after_a_full_disk(
    records: &[Value],
    heard: &HashMap<String, Reply>,
    keys: &HashSet<String>,
) {
    for (position, record) in records.iter().enumerate() {
        assert_eq!(record["seq"], position + 1, "the sequence has a hole");
    }
    let allowed = allowed(records);
    let outcomes = records.iter().filter(|record| record["type"] == "outcome");
    let outcomes: HashMap<(u64, u64), &Value> =
        outcomes.map(|record| (call_of(record), record)).collect();
    for key in keys {
        let outcome = outcomes[&allowed[key]];
        assert_eq!((&outcome["status"], &outcome["fault"]), (&Value::from(0), &Value::Null));
    }
    let mut refused = 0;
    for (key, reply) in heard {
        let outcome = outcomes[&allowed[key]];
        assert_eq!(keys.contains(key), reply.grpc_status == Some(0), "{key}: {reply:?}");
        if reply.grpc_status != Some(0) {
            assert_eq!((reply.grpc_status, reply.grpc_message.as_str()), (Some(14), MESSAGE));
            assert_eq!(outcome["fault"], "audit_unavailable");
            assert_eq!(outcome["status"], 14);
            refused += 1;
        }
    }
    assert!(refused > 0);
    assert_eq!(
        (allowed.len(), outcomes.len()),
        (heard.len(), heard.len()),
        "a record for each call"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_etcd_has_is_in_the_log_of_a_ringfence_that_was_killed() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut recorded = HashSet::new();
    // Under load; then when the disk has been full for a while, and records wait in memory.
    for (round, full) in [false, false, true].into_iter().enumerate() {
        let disk = SmallDisk::mount(if full { 1 } else { 64 });
        let (endpoint, folder) = (etcd.endpoint(), disk.path().join("audit"));
        let mut ringfence = start(&pki, &endpoint, &folder);
        let ready = || http_get(ringfence.admin_port, "/readyz").unwrap().0 == 200;
        let load = Load::start(&pki, ringfence.port, &format!("kill-{round}")).await;
        wait_for("service", || load.count(0) > 300 + 50 * round);
        if full {
            wait_for("a full disk", || !ready());
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        ringfence.kill();
        load.end().await;
        // What was on its way to etcd arrives or not.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let text = ringfence.audit_text();
        // A kill may cut the last write short.
        let (whole, _) = text.rsplit_once('\n').unwrap();
        let records: Vec<Value> =
            whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        recorded.extend(allowed(&records).into_keys());
        let (keys, _) = of_etcd(&etcd).await;
        assert!(keys.len() > 300 * (round + 1), "{}", keys.len());
        let unrecorded = keys.difference(&recorded).count();
        assert_eq!(unrecorded, 0, "of {} keys", keys.len());
    }
}
