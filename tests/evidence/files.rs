//! The files of the log under a running process: rotated, renamed, deleted, shortened, removed; and a process
//! that is killed again and again.

use std::fs;
use std::path::Path;
use std::time::Instant;

use ringfence::etcd::pb::etcdserverpb::RangeRequest;
use serde_json::Value;

use crate::support::{
    Etcd, PATIENCE, Pki, RawClient, Ringfence, Settings, audit_files, number_from_environment,
    wait_for,
};

const RANGE: &str = "/etcdserverpb.KV/Range";

pub(super) struct Bench {
    pub(super) pki: Pki,
    etcd: Etcd,
    folder: tempfile::TempDir,
}

impl Bench {
    pub(super) fn new() -> Self {
        let etcd = Etcd::start_plain("3.7");
        Self { pki: Pki::make(), etcd, folder: tempfile::tempdir().unwrap() }
    }

    pub(super) fn start(&self, audit: &str) -> Ringfence {
        let log = self.log();
        let settings = Settings { audit_folder: Some(&log), audit, ..Settings::default() };
        Ringfence::start_as(&self.pki, &self.etcd.endpoint(), &settings)
    }

    pub(super) fn log(&self) -> std::path::PathBuf {
        self.folder.path().join("audit")
    }

    /// So many calls; each is answered.
    pub(super) async fn calls(&self, ringfence: &Ringfence, count: usize) {
        let acme = RawClient::connect(&self.pki, "acme", ringfence.port).await;
        for _ in 0..count {
            let range = RangeRequest { key: "/tenants/acme/x".into(), ..Default::default() };
            let reply = acme.unary(RANGE, &range).await;
            assert_eq!(reply.grpc_status, Some(0), "{reply:?}");
        }
    }

    fn verify(&self) -> (i32, String) {
        crate::written::ringfence(&["audit", "verify", self.log().to_str().unwrap()])
    }
}

/// Every record of a folder, of files that are not compressed.
fn records(folder: &Path) -> Vec<Value> {
    let mut records = Vec::new();
    for file in audit_files(folder) {
        let text = fs::read(&file).unwrap();
        let text = match file.extension().unwrap().to_str().unwrap() {
            "zst" => zstd::decode_all(text.as_slice()).unwrap(),
            _ => text,
        };
        let text = String::from_utf8(text).unwrap();
        records.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
    records
}

fn of_type<'r>(records: &'r [Value], kind: &str) -> Vec<&'r Value> {
    records.iter().filter(|record| record["type"] == kind).collect()
}

#[tokio::test]
async fn a_log_that_is_large_goes_on_in_another_file_and_no_record_is_lost() {
    let bench = Bench::new();
    let mut ringfence = bench.start("[audit.rotate]\nbytes = 65536");
    let files = || audit_files(&bench.log()).len();
    let mut calls = 0;
    let began = Instant::now();
    while files() < 4 {
        assert!(began.elapsed() < 3 * PATIENCE, "{} files", files());
        bench.calls(&ringfence, 100).await;
        calls += 100;
    }
    assert_eq!(ringfence.stop().code(), Some(0));
    let (code, said) = bench.verify();
    assert_eq!(code, 0, "{said}");
    let records = records(&bench.log());
    let decisions = of_type(&records, "decision");
    assert_eq!(decisions.len(), calls, "each decision once");
    for (position, record) in records.iter().enumerate() {
        assert_eq!(record["seq"], position + 1, "the sequence has a hole");
    }
    let starts = of_type(&records, "segment.start");
    assert_eq!(starts.len(), of_type(&records, "segment.end").len());
    // Who was connected is said again.
    assert!(of_type(&records, "connection.open").iter().any(|record| record["repeated"] == true));
}

#[tokio::test]
async fn an_outside_logrotate_renames_the_file_and_asks_for_another() {
    let bench = Bench::new();
    let mut ringfence = bench.start("");
    bench.calls(&ringfence, 10).await;
    let first = audit_files(&bench.log()).remove(0);
    let moved = bench.folder.path().join(first.file_name().unwrap());
    fs::rename(&first, &moved).unwrap();
    bench.calls(&ringfence, 10).await;
    ringfence.signal("HUP");
    wait_for("a new file", || audit_files(&bench.log()).len() == 1);
    bench.calls(&ringfence, 10).await;
    assert_eq!(ringfence.stop().code(), Some(0));
    let (log, moved_file) = (bench.log(), moved.to_str().unwrap());
    let (code, said) =
        crate::written::ringfence(&["audit", "verify", log.to_str().unwrap(), moved_file]);
    assert_eq!(code, 0, "{said}");
    let whole = [records(bench.folder.path()), records(&bench.log())].concat();
    assert_eq!(of_type(&whole, "decision").len(), 30);
    assert!(of_type(&whole, "audit.gap").is_empty());
}

#[tokio::test]
async fn closed_files_are_compressed_and_the_oldest_removed_and_the_log_says_so() {
    let bench = Bench::new();
    let mut ringfence = bench.start("[audit.rotate]\nkeep_files = 2");
    for _ in 0..4 {
        bench.calls(&ringfence, 10).await;
        let before = audit_files(&bench.log());
        ringfence.signal("HUP");
        wait_for("a new file", || audit_files(&bench.log()).len() > before.len());
    }
    let compressed = || {
        let files = audit_files(&bench.log());
        let ending = |file: &&std::path::PathBuf| file.extension().unwrap() == "zst";
        (files.len(), files.iter().filter(ending).count())
    };
    wait_for("two compressed files beside the one in use", || compressed() == (3, 2));
    bench.calls(&ringfence, 10).await;
    assert_eq!(ringfence.stop().code(), Some(0));
    let (code, said) = bench.verify();
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("files 1 to 2 were removed by retention, as the log says"), "{said}");
    let kept = records(&bench.log());
    assert_eq!(of_type(&kept, "segment.removed").len(), 2);
    // Who removes one more is found out.
    fs::remove_file(&audit_files(&bench.log())[0]).unwrap();
    let (code, said) = bench.verify();
    assert!(code == 1 && said.contains("files 1 to 3 of this chain are not there"), "{said}");
}

/// Something is done to the file in use: it is noticed within seconds, said in the log, and counted.
/// The attack: retention removed the first files of a chain, so who takes the others away is excused as well.
#[tokio::test]
async fn a_removal_excuses_no_file_behind_it() {
    let bench = Bench::new();
    let witness = bench.folder.path().join("witness");
    let sealed = |keep: &str| {
        let key = bench.folder.path().join("log-key");
        crate::written::audit_lines(&key, &witness) + "[audit.rotate]\n" + keep
    };
    let key = bench.folder.path().join("log-key");
    assert_eq!(crate::written::ringfence(&["audit", "keygen", key.to_str().unwrap()]).0, 0);
    for (keep, files) in [("compress = \"none\"", 2), ("compress = \"none\"\nkeep_files = 2", 3)] {
        let mut ringfence = bench.start(&sealed(keep));
        bench.calls(&ringfence, 5).await;
        let newest = audit_files(&bench.log()).pop();
        ringfence.signal("HUP");
        wait_for("a new file", || audit_files(&bench.log()).pop() != newest);
        wait_for("as many as are kept", || audit_files(&bench.log()).len() == files);
        bench.calls(&ringfence, 5).await;
        assert_eq!(ringfence.stop().code(), Some(0));
    }
    let public = bench.folder.path().join("log-key.pub");
    let verify = || {
        let (log, public) = (bench.log(), public.to_str().unwrap().to_owned());
        let witness = witness.to_str().unwrap();
        let with = ["--key", &public, "--witness", witness];
        crate::written::ringfence(
            &[&["audit", "verify", log.to_str().unwrap()], &with[..]].concat(),
        )
    };
    let (code, said) = verify();
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("files 1 to 1 were removed by retention, as the log says"), "{said}");
    fs::remove_file(&audit_files(&bench.log())[0]).unwrap();
    let (code, said) = verify();
    assert_eq!(code, 1, "{said}");
    // The later process knows it, and so does the witness.
    assert_eq!(said.matches("no file of it is there").count(), 2, "{said}");
    assert!(said.contains("the witness knows this chain"), "{said}");
}

async fn check_gap(reason: &str, harm: impl Fn(&Path)) {
    let bench = Bench::new();
    let mut ringfence = bench.start("");
    bench.calls(&ringfence, 20).await;
    let first = audit_files(&bench.log()).remove(0);
    harm(&first);
    let gaps = || ringfence.metrics().contains("ringfence_audit_gaps_total 1\n");
    wait_for("the gap", gaps);
    bench.calls(&ringfence, 20).await;
    assert_eq!(ringfence.stop().code(), Some(0));
    let second = audit_files(&bench.log()).pop().unwrap();
    let text = fs::read_to_string(second).unwrap();
    let records: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let gap = of_type(&records, "audit.gap");
    assert_eq!(gap.len(), 1, "{text}");
    assert_eq!(gap[0]["reason"], reason);
    assert!(gap[0]["records_at_most"].as_u64().unwrap() >= 40, "{gap:?}");
    assert_eq!(of_type(&records, "decision").len(), 20);
    let (code, said) = bench.verify();
    assert_eq!(code, 1, "what is gone is found: {said}");
}

#[tokio::test]
async fn a_file_that_is_deleted_is_noticed() {
    check_gap("file_deleted", |file| fs::remove_file(file).unwrap()).await;
}

/// The attack: the folder is deleted, and calls go on that no file has.
#[tokio::test]
async fn while_the_folder_is_gone_nothing_is_forwarded() {
    let bench = Bench::new();
    let mut ringfence = bench.start("mode = \"blocking\"\nwait_seconds = 1");
    bench.calls(&ringfence, 3).await;
    fs::remove_dir_all(bench.log()).unwrap();
    let ready = || crate::support::http_get(ringfence.admin_port, "/readyz").unwrap();
    wait_for("it to be noticed", || ready().0 == 503);
    assert!(ready().1.contains("its file was deleted, and there is no other one"), "{:?}", ready());
    let acme = RawClient::connect(&bench.pki, "acme", ringfence.port).await;
    let range = RangeRequest { key: "/tenants/acme/x".into(), ..Default::default() };
    assert_eq!(acme.unary(RANGE, &range).await.grpc_status, Some(14));
    fs::create_dir(bench.log()).unwrap();
    wait_for("it to go on", || ready().0 == 200);
    bench.calls(&ringfence, 3).await;
    assert_eq!(ringfence.stop().code(), Some(0));
    let records = records(&bench.log());
    assert_eq!(of_type(&records, "audit.gap").len(), 1);
    assert!(of_type(&records, "decision").len() >= 3, "{records:?}");
}

#[tokio::test]
async fn a_file_that_is_shortened_is_noticed() {
    check_gap("file_shortened", |file| {
        fs::OpenOptions::new().write(true).open(file).unwrap().set_len(100).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_file_that_is_replaced_is_noticed() {
    check_gap("file_replaced", |file| {
        // The old one lives on elsewhere, so that it is not simply deleted.
        fs::hard_link(file, file.with_extension("kept")).unwrap();
        fs::remove_file(file).unwrap();
        fs::write(file, "nothing happened\n").unwrap();
    })
    .await;
}

/// What is there after each kill is what the next process closes: nothing that was answered is missing, and
/// the whole folder verifies.
#[tokio::test]
async fn a_process_that_is_killed_again_and_again_leaves_a_log_that_verifies() {
    let kills = number_from_environment("RINGFENCE_KILLS", 5);
    let bench = Bench::new();
    let mut answered = 0;
    for kill in 0..kills {
        let ringfence = &mut bench.start("[audit.rotate]\nbytes = 65536");
        let acme = RawClient::connect(&bench.pki, "acme", ringfence.port).await;
        let range = RangeRequest { key: "/tenants/acme/x".into(), ..Default::default() };
        // Under load: the kill comes while others are on their way.
        let busy: Vec<_> = (0..8)
            .map(|_| {
                let (acme, range) = (acme.clone(), range.clone());
                tokio::spawn(async move {
                    let mut answered = 0;
                    while let Some(reply) = acme.try_unary(RANGE, &range).await {
                        if reply.grpc_status != Some(0) {
                            break;
                        }
                        answered += 1;
                    }
                    answered
                })
            })
            .collect();
        tokio::time::sleep(std::time::Duration::from_millis(150 + 37 * (kill % 10))).await;
        ringfence.kill();
        for task in busy {
            answered += task.await.unwrap();
        }
    }
    let mut last = bench.start("");
    assert_eq!(last.stop().code(), Some(0));
    let (code, said) = bench.verify();
    assert_eq!(code, 0, "{said}");
    let records = records(&bench.log());
    let allowed = of_type(&records, "decision").len();
    assert!(allowed >= answered, "{allowed} decisions for {answered} answers");
    let recovered = of_type(&records, "chain.recovered");
    assert_eq!(recovered.len() as u64, kills, "each of the killed was closed once");
    let last_start = of_type(&records, "process.start").pop().unwrap().clone();
    let after = last_start["after"].as_array().unwrap();
    assert!(!after.is_empty() && after[0]["end"] == "recovered", "{last_start}");
    let (epoch, expected) = (last_start["epoch"].as_u64().unwrap(), kills + 1);
    assert_eq!(epoch, expected, "every process has an epoch of its own");
}

/// In `buffered` a kill may lose records: the next process says how many at most.
#[tokio::test]
async fn what_a_kill_may_have_lost_is_counted_at_the_next_start() {
    let bench = Bench::new();
    let mut ringfence = bench.start("mode = \"buffered\"");
    bench.calls(&ringfence, 50).await;
    ringfence.kill();
    let mut last = bench.start("mode = \"buffered\"");
    assert_eq!(last.stop().code(), Some(0));
    let records = records(&bench.log());
    let start = of_type(&records, "process.start").pop().unwrap();
    let lost = start["after"][0]["lost_at_most"].as_u64().unwrap();
    assert!((1..=2048).contains(&lost), "{lost}");
    // A good end loses nothing.
    let mut again = bench.start("mode = \"buffered\"");
    assert_eq!(again.stop().code(), Some(0));
    let records = crate::files::records(&bench.log());
    let start = of_type(&records, "process.start").pop().unwrap();
    assert_eq!(start["after"][0]["end"], "stopped");
    assert!(start["after"][0]["lost_at_most"].is_null(), "{start}");
}
