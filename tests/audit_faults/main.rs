//! What is done to the audit log and its disk, under load and in `blocking`: what clients saw, what the log holds, and
//! that etcd got nothing that has no record. A target of its own: its clients use the whole machine.

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

mod blocking;
mod load;
mod scene;

use std::collections::HashSet;
use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::{ServerConnection, StreamOwned};

use load::{Load, SmallDisk, allowed, of_etcd};
use scene::{Row, Scene, client, keygen, records, sealed_by, verify};
use support::{
    Etcd, Pki, Ringfence, Settings, audit_files, http_get, number_from_environment, wait_for,
};

/// Of errno(3).
const EIO: &str = "5";
const EROFS: &str = "30";

async fn no_space() -> Row {
    let scene = Scene::start(8, |_| String::new()).await;
    let filler = scene.disk.path().join("filler");
    fs::write(&filler, vec![0; 16 << 20]).unwrap_err();
    scene.refuses().await;
    fs::remove_file(filler).unwrap();
    scene.serves();
    scene.end("no space on the disk (ENOSPC)", "").await
}

async fn failing(fault: &'static str, faults: &str) -> Row {
    let scene = Scene::start(64, |_| String::new()).await;
    scene.fail(faults);
    scene.refuses().await;
    scene.fail("");
    scene.serves();
    scene.end(fault, "").await
}

async fn slow() -> Row {
    let scene = Scene::start(64, |_| String::new()).await;
    scene.fail("slow 100\n");
    scene.serves();
    assert_eq!(scene.load.count(14), 0, "slow is not broken");
    scene.fail("slow 3000\n");
    scene.refuses().await;
    scene.fail("");
    scene.serves();
    scene.end("a disk that takes 0.1, then 3 seconds to sync", "").await
}

async fn clock_set_back() -> Row {
    let scene = Scene::start(64, |_| String::new()).await;
    scene.fail("back 1000\n");
    scene.serves();
    scene.end("the clock set back by 1000 seconds", "").await
}

/// What it held until then counts, though the log has it no more.
async fn taken_away(fault: &'static str, another_in_its_place: bool) -> Row {
    let scene = Scene::start(64, |_| String::new()).await;
    let file = audit_files(&scene.log()).remove(0);
    let kept = scene.disk.path().join("kept");
    if another_in_its_place {
        fs::hard_link(&file, &kept).unwrap();
    }
    let mut held = fs::File::open(&file).unwrap();
    fs::remove_file(&file).unwrap();
    if another_in_its_place {
        fs::write(&file, "nothing happened\n").unwrap();
    }
    let noticed = || scene.ringfence.metrics().contains("ringfence_audit_gaps_total 1\n");
    wait_for("the gap", noticed);
    scene.serves();
    let mut lost = String::new();
    held.read_to_string(&mut lost).unwrap();
    drop(held);
    scene.end(fault, &lost).await
}

/// A daemon that reads no more, and shakes hands with nobody.
async fn stuck_peer() -> Row {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let reads = Arc::new(AtomicBool::new(true));
    let reading = Arc::clone(&reads);
    let sink = |pki: &Pki| {
        let server = pki.tls_server();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let session = ServerConnection::new(Arc::clone(&server)).unwrap();
                let mut stream = StreamOwned::new(session, stream.unwrap());
                let mut buffer = vec![0; 1 << 16];
                while !reading.load(Ordering::Relaxed)
                    || stream.read(&mut buffer).is_ok_and(|read| read > 0)
                {
                    if !reading.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
            }
        });
        format!(
            "[[audit.sink]]\nname = \"siem\"\nto = \"syslog+tls://localhost:{port}\"\nca = {:?}\n\
             required = true\ndeadline_seconds = 1\n",
            pki.path("kubernetes-ca.crt")
        )
    };
    let scene = Scene::start(64, sink).await;
    reads.store(false, Ordering::Relaxed);
    scene.refuses().await;
    reads.store(true, Ordering::Relaxed);
    scene.serves();
    scene.end("a syslog peer that is required and stuck", "").await
}

/// Each process closes what the one before left.
async fn killed(kills: u64) -> Row {
    let (pki, etcd, disk) = (Pki::make(), Etcd::start_plain("3.7"), SmallDisk::mount(256));
    let (log, folder) = (disk.path().join("audit"), tempfile::tempdir().unwrap());
    let key = keygen(folder.path());
    let start = || {
        let audit = format!("{}[audit.rotate]\nbytes = 262144\n", sealed_by(&key));
        let settings = Settings { audit: &audit, audit_folder: Some(&log), ..Settings::default() };
        Ringfence::start_as(&pki, &etcd.endpoint(), &settings)
    };
    let mut heard = std::collections::HashMap::new();
    for kill in 0..kills {
        let mut ringfence = start();
        let load = Load::start(&pki, ringfence.port, &format!("kill-{kill}")).await;
        wait_for("service", || load.count(0) > 50);
        tokio::time::sleep(Duration::from_millis(37 * (kill % 10))).await;
        ringfence.kill();
        heard.extend(load.end().await);
    }
    assert_eq!(start().stop().code(), Some(0));
    // What was on its way to etcd arrives or not.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (keys, _) = of_etcd(&etcd).await;
    let records = records(&log, "");
    let (allowed, recovered) = (allowed(&records), |kind: &str| {
        records.iter().filter(|record| record["type"] == kind).count()
    });
    Row {
        fault: "SIGKILL under load, again and again",
        client: format!("{kills} kills: {}", client(&heard)),
        log: format!("{} decisions, {} chains closed", allowed.len(), recovered("chain.recovered")),
        unrecorded: keys.iter().filter(|key| !allowed.contains_key(*key)).count(),
        verify: verify(&log, &folder.path().join("key.pub")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_of_the_log_lets_a_request_through_without_a_record() {
    let kills = number_from_environment("RINGFENCE_KILLS", 5);
    let read_only = format!("write {EROFS}\n");
    let failing_sync = format!("sync {EIO}\n");
    let mut table = Table::default();
    table.add(no_space().await, 0, "whole");
    table.add(failing("a disk that is read-only (EROFS)", &read_only).await, 0, "whole");
    table.add(failing("a sync that fails (EIO)", &failing_sync).await, 0, "whole");
    table.add(taken_away("the file deleted", false).await, 1, "missing");
    table.add(taken_away("the file replaced", true).await, 1, "changed");
    table.add(slow().await, 0, "whole");
    table.add(stuck_peer().await, 0, "whole");
    // The last records before a kill have no checkpoint behind them.
    table.add(killed(kills).await, 0, "chained but not sealed");
    table.add(clock_set_back().await, 0, "the clock went back by");
    println!("{} faults, {} not met", table.rows, table.wrong.len());
    assert!(table.wrong.is_empty(), "{:?}", table.wrong);
}

/// What was played so far, and what was not as it must be.
#[derive(Default)]
struct Table {
    rows: usize,
    wrong: Vec<&'static str>,
}

impl Table {
    /// `code` is `verify`'s exit code, `text` a part of what it says first.
    fn add(&mut self, row: Row, code: i32, text: &str) {
        let Row { fault, client, log, unrecorded, verify } = row;
        println!("{fault}");
        println!("    clients  {client}");
        println!("    the log  {log}");
        println!("    etcd     {unrecorded} requests without a record");
        println!("    verify   exit code {}: {}", verify.0, verify.1);
        self.rows += 1;
        if unrecorded > 0 || verify.0 != code || !verify.1.contains(text) {
            self.wrong.push(fault);
        }
    }
}
