//! A log as three processes wrote it: the first ended, the second was killed, the third ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ringfence::chain::{LineHash, SegmentName};
use ringfence::etcd::pb::etcdserverpb::RangeRequest;

use crate::support::{Pki, RawClient, Ringfence, Settings, audit_files, free_port, wait_for};

pub struct Written {
    folder: tempfile::TempDir,
    /// The long-term key, without its ending.
    pub key: PathBuf,
}

const RANGE: &str = "/etcdserverpb.KV/Range";
/// What every process is told of its log.
pub fn audit_lines(key: &Path, witness: &Path) -> String {
    format!("[audit.checkpoint]\nkey = {key:?}\nwitness = {witness:?}\nrecords = 20\n")
}

impl Written {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("log-key");
        let made = ringfence(&["audit", "keygen", key.to_str().unwrap()]);
        assert!(made.0 == 0, "{}", made.1);
        let written = Self { folder, key };
        let pki = Pki::make();
        let nobody = format!("http://127.0.0.1:{}", free_port());
        for process in ["ends", "is killed", "ends again"] {
            let lines = audit_lines(&written.key, &written.witness());
            let log = written.log();
            let settings =
                Settings { audit_folder: Some(&log), audit: &lines, ..Settings::default() };
            let mut ringfence = Ringfence::start_as(&pki, &nobody, &settings);
            calls(&pki, &ringfence, 60).await;
            if process == "ends" {
                let before = audit_files(&log).len();
                ringfence.signal("HUP");
                wait_for("a new file", || audit_files(&log).len() > before);
                calls(&pki, &ringfence, 30).await;
            }
            if process == "is killed" {
                ringfence.kill();
            } else {
                assert_eq!(ringfence.stop().code(), Some(0));
            }
        }
        written
    }

    pub fn log(&self) -> PathBuf {
        self.folder.path().join("audit")
    }

    pub fn witness(&self) -> PathBuf {
        self.folder.path().join("witness")
    }

    pub fn public(&self) -> PathBuf {
        self.folder.path().join("log-key.pub")
    }

    /// A copy to tamper with.
    pub fn copy(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        for file in audit_files(&self.log()) {
            fs::copy(&file, copy.path().join(file.file_name().unwrap())).unwrap();
        }
        copy
    }
}

async fn calls(pki: &Pki, ringfence: &Ringfence, count: usize) {
    let acme = RawClient::connect(pki, "acme", ringfence.port).await;
    for _ in 0..count {
        // etcd is not there: each is decided, recorded, and Unavailable.
        let range = RangeRequest { key: "/tenants/acme/x".into(), ..Default::default() };
        let reply = acme.unary(RANGE, &range).await;
        assert_eq!(reply.grpc_status, Some(14), "{reply:?}");
    }
}

/// Runs the program: its exit code, and all that it said.
pub fn ringfence(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ringfence")).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

/// The lines of a file.
pub fn lines(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect()
}

pub fn write(file: &Path, lines: &[String]) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(file, text).unwrap();
}

/// Numbers and chains the lines anew from that position on, as a thief would who knows the format.
pub fn chain_anew(lines: &mut [String], from: usize, mut previous: LineHash, first: u64) {
    for (sequence, line) in (first..).zip(lines.iter_mut().skip(from)) {
        let body = line.rsplit_once(",\"prev\":\"").unwrap().0;
        let rest = body.split_once(",\"time\"").unwrap().1;
        let mut bytes = format!("{{\"v\":1,\"seq\":{sequence},\"time\"{rest}").into_bytes();
        previous.close_line(&mut bytes);
        previous = LineHash::of(&bytes);
        *line = String::from_utf8(bytes).unwrap();
    }
}

/// The name of a file of the log.
pub fn name_of(file: &Path) -> SegmentName {
    file.file_name().unwrap().to_str().unwrap().parse().unwrap()
}
