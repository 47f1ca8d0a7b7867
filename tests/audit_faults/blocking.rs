//! Nothing that etcd got is unrecorded: not when the disk is full, not when ringfence is killed.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::load::{CONNECTIONS, Load, MESSAGE, STREAMS, SmallDisk, allowed, call_of, of_etcd};
use crate::support::{Etcd, Pki, Reply, Ringfence, Settings, http_get, wait_for};

const BLOCKING: &str = "mode = \"blocking\"\nwait_seconds = 1";

fn start(pki: &Pki, endpoint: &str, audit_folder: &Path) -> Ringfence {
    let audit_folder = Some(audit_folder);
    let settings = Settings { audit: BLOCKING, audit_folder, ..Settings::default() };
    Ringfence::start_as(pki, endpoint, &settings)
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
