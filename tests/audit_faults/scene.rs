//! One fault at a time: clients that write, an etcd, a ringfence whose log is harmed; and a row of the table.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::load::{Load, MESSAGE, SmallDisk, allowed, of_etcd};
use crate::support::{Etcd, Pki, Reply, Ringfence, Settings, audit_files, repository, wait_for};

const BLOCKING: &str = "mode = \"blocking\"\nwait_seconds = 1\n";

/// What was seen.
pub struct Row {
    pub fault: &'static str,
    pub client: String,
    pub log: String,
    pub unrecorded: usize,
    pub verify: (i32, String),
}

pub struct Scene {
    pki: Pki,
    pub etcd: Etcd,
    pub disk: SmallDisk,
    pub ringfence: Ringfence,
    pub load: Load,
    control: PathBuf,
    folder: tempfile::TempDir,
}

/// Builds what is preloaded.
fn preloaded() -> PathBuf {
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults.so");
    let source = repository().join("tests/audit_faults/faults.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&library).arg(source);
    assert!(compiler.status().unwrap().success(), "a C compiler is needed");
    library
}

impl Scene {
    /// With a disk of so many megabytes and more lines in `[audit]`; clients are being served.
    pub async fn start(megabytes: usize, audit: impl FnOnce(&Pki) -> String) -> Self {
        let (pki, etcd, disk) =
            (Pki::make(), Etcd::start_plain("3.7"), SmallDisk::mount(megabytes));
        let folder = tempfile::tempdir().unwrap();
        let control = folder.path().join("control");
        let library = preloaded();
        let key = keygen(folder.path());
        let log = disk.path().join("audit");
        let audit = format!("{BLOCKING}{}{}", sealed_by(&key), audit(&pki));
        let settings = Settings {
            audit: &audit,
            audit_folder: Some(&log),
            environment: &[("LD_PRELOAD", &library), ("RINGFENCE_FAULTS", &control)],
            ..Settings::default()
        };
        let ringfence = Ringfence::start_as(&pki, &etcd.endpoint(), &settings);
        let load = Load::start(&pki, ringfence.port, "key").await;
        let scene = Self { pki, etcd, disk, ringfence, load, control, folder };
        scene.serves();
        scene
    }

    pub fn log(&self) -> PathBuf {
        self.disk.path().join("audit")
    }

    /// What fails from now on; nothing with an empty text.
    pub fn fail(&self, faults: &str) {
        let written = self.folder.path().join("next");
        fs::write(&written, faults).unwrap();
        fs::rename(written, &self.control).unwrap();
    }

    /// Calls go through.
    pub fn serves(&self) {
        let served = self.load.count(0);
        wait_for("service", || self.load.count(0) > served + 200);
    }

    /// Calls are refused, and none goes through.
    pub async fn refuses(&self) {
        let refused = self.load.count(14);
        wait_for("refusals", || self.load.count(14) > refused + 64);
        let (_, revision) = of_etcd(&self.etcd).await;
        let refused = self.load.count(14);
        wait_for("more refusals", || self.load.count(14) > refused + 32);
        assert_eq!(of_etcd(&self.etcd).await.1, revision, "etcd got something meanwhile");
    }

    /// Ends all; `lost` are lines that were in the log and are no more.
    pub async fn end(mut self, fault: &'static str, lost: &str) -> Row {
        let heard = self.load.end().await;
        let (keys, _) = of_etcd(&self.etcd).await;
        assert_eq!(self.ringfence.stop().code(), Some(0), "{}", self.ringfence.log());
        let records = records(&self.disk.path().join("audit"), lost);
        let allowed = allowed(&records);
        let unrecorded = keys.iter().filter(|key| !allowed.contains_key(*key)).count();
        let counts = (allowed.len(), heard.len());
        Row {
            fault,
            client: client(&heard),
            log: format!("{} decisions for {} calls{}", counts.0, counts.1, gaps(&records)),
            unrecorded,
            verify: verify(&self.disk.path().join("audit"), &self.folder.path().join("key.pub")),
        }
    }
}

/// What clients heard; anything but served and refused as it must be fails.
pub fn client(heard: &HashMap<String, Reply>) -> String {
    let refused = heard.values().filter(|reply| reply.grpc_status == Some(14));
    let refused = refused.inspect(|reply| assert_eq!(reply.grpc_message, MESSAGE)).count();
    let served = heard.values().filter(|reply| reply.grpc_status == Some(0)).count();
    assert_eq!(served + refused, heard.len(), "somebody heard something else");
    format!("{served} served, {refused} refused")
}

/// All records of a folder, of each file, and of `lost`, once.
pub fn records(folder: &Path, lost: &str) -> Vec<Value> {
    let mut text = lost.to_owned();
    for file in audit_files(folder) {
        let bytes = fs::read(&file).unwrap();
        let is_compressed = file.extension().is_some_and(|ending| ending == "zst");
        let bytes = if is_compressed { zstd::decode_all(&bytes[..]).unwrap() } else { bytes };
        text += &String::from_utf8(bytes).unwrap();
    }
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn gaps(records: &[Value]) -> String {
    let reasons = records.iter().filter(|record| record["type"] == "audit.gap");
    reasons.map(|record| format!(", gap {}", record["reason"].as_str().unwrap())).collect()
}

/// A key that seals, in this folder.
pub fn keygen(folder: &Path) -> PathBuf {
    let key = folder.join("key");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
    assert!(command.args(["audit", "keygen"]).arg(&key).output().unwrap().status.success());
    key
}

pub fn sealed_by(key: &Path) -> String {
    format!("[audit.checkpoint]\nkey = {key:?}\nrecords = 100\n")
}

/// Exit code and the first line: what is wrong, else what is not proven, else that it is whole.
pub fn verify(folder: &Path, public: &Path) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
    command.args(["audit", "verify"]).arg(folder).arg("--key").arg(public);
    let ended = command.output().unwrap();
    let said = String::from_utf8([ended.stderr, ended.stdout].concat()).unwrap();
    // Of every log that has no witness.
    let mut told = said.lines().filter(|line| !line.contains("no --witness was given"));
    let text = told.next().unwrap().replace(&folder.display().to_string(), "LOG");
    (ended.status.code().unwrap(), text)
}
