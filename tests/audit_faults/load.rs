//! Clients at work while something goes wrong, and what they, etcd and the log say of it.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ringfence::etcd::pb::etcdserverpb::PutRequest;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::{Etcd, Pki, RawClient, Reply};

pub const CONNECTIONS: usize = 4;
pub const STREAMS: usize = 8;
/// What a client hears while nothing can be recorded.
pub const MESSAGE: &str = "ringfence: the audit log takes no records, nothing was forwarded";

/// A file system of a few megabytes, gone when dropped.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub fn mount(megabytes: usize) -> Self {
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

    pub fn path(&self) -> &Path {
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
pub struct Load {
    heard: Arc<Mutex<HashMap<String, Reply>>>,
    counts: Arc<[AtomicUsize; 17]>,
    ending: Arc<AtomicBool>,
    streams: JoinSet<()>,
}

impl Load {
    pub async fn start(pki: &Pki, port: u16, name: &str) -> Self {
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

    pub fn count(&self, status: usize) -> usize {
        self.counts[status].load(Ordering::Relaxed)
    }

    pub async fn end(self) -> HashMap<String, Reply> {
        self.ending.store(true, Ordering::Relaxed);
        self.streams.join_all().await;
        std::mem::take(&mut *self.heard.lock().unwrap())
    }
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
pub async fn of_etcd(etcd: &Etcd) -> (HashSet<String>, i64) {
    let mut client = etcd_client::Client::connect([etcd.endpoint()], None).await.unwrap();
    let options = etcd_client::GetOptions::new().with_prefix().with_keys_only();
    let found = client.get("/", Some(options)).await.unwrap();
    let keys = found.kvs().iter().map(|pair| pair.key_str().unwrap().to_owned()).collect();
    (keys, found.header().unwrap().revision())
}

/// By the key that was put: the decision's call, if it was allowed.
pub fn allowed(records: &[Value]) -> HashMap<String, (u64, u64)> {
    let decisions = records.iter().filter(|record| record["verdict"] == "allow");
    let allowed = decisions
        .map(|record| (record["touches"][0]["key"].as_str().unwrap().to_owned(), call_of(record)));
    allowed.collect()
}

pub fn call_of(record: &Value) -> (u64, u64) {
    (record["connection"].as_u64().unwrap(), record["call"].as_u64().unwrap())
}
