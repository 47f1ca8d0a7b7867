//! A writer, and watchers that note what reaches them and when.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringfence::etcd::pb::etcdserverpb::watch_request::RequestUnion;
use ringfence::etcd::pb::etcdserverpb::{
    PutRequest, PutResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};
use tokio::task::JoinHandle;

use crate::support::RawClient;

/// Writes one key after the other, past ringfence, until it is told to stop.
pub struct Writer {
    stopping: Arc<AtomicBool>,
    writing: JoinHandle<Vec<i64>>,
}

impl Writer {
    /// So many writes a second, about.
    pub async fn start(etcd_port: u16, per_second: u32) -> Self {
        let client = RawClient::connect_plain(etcd_port).await;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let writing = tokio::spawn(async move {
            let mut revisions = Vec::new();
            let mut turn = tokio::time::interval(Duration::from_secs(1) / per_second);
            while !stop.load(Ordering::Relaxed) {
                turn.tick().await;
                let key = format!("/hot/{}", revisions.len() % 10);
                // No two are alike.
                let value = revisions.len().to_string().into();
                let put = PutRequest { key: key.into(), value, ..Default::default() };
                let reply = client.unary("/etcdserverpb.KV/Put", &put).await;
                revisions.push(reply.message::<PutResponse>().header.unwrap().revision);
            }
            revisions
        });
        Self { stopping, writing }
    }

    /// The revisions it has written.
    pub async fn stop(self) -> Vec<i64> {
        self.stopping.store(true, Ordering::Relaxed);
        self.writing.await.unwrap()
    }
}

/// One watch on everything that is written.
pub struct Watcher {
    pub seen: Arc<Mutex<Seen>>,
    pub watching: JoinHandle<()>,
}

#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub revisions: Vec<i64>,
    /// When the last of them came.
    pub last: Option<Instant>,
    /// The watch was canceled, or its stream ended.
    pub ended: Option<Instant>,
    pub status: Option<u16>,
}

impl Watcher {
    /// Begins behind that revision; 0 is now.
    pub async fn start(client: &RawClient, start_revision: i64) -> Self {
        let mut stream = client.stream("/etcdserverpb.Watch/Watch").await;
        let create = WatchCreateRequest {
            key: "/hot/".into(),
            range_end: "/hot0".into(),
            start_revision,
            ..WatchCreateRequest::default()
        };
        stream.send(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) });
        let created: WatchResponse = stream.next().await;
        assert!(created.created && !created.canceled, "{created:?}");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let notes = Arc::clone(&seen);
        let watching = tokio::spawn(async move {
            while let Some(response) = stream.next_or_end::<WatchResponse>().await {
                let now = Instant::now();
                let mut notes = notes.lock().unwrap();
                for event in &response.events {
                    notes.revisions.push(event.kv.as_ref().unwrap().mod_revision);
                    notes.last = Some(now);
                }
                if response.canceled {
                    notes.ended.get_or_insert(now);
                }
            }
            let mut notes = notes.lock().unwrap();
            notes.ended.get_or_insert_with(Instant::now);
            notes.status = stream.end.as_ref().and_then(|end| end.grpc_status);
        });
        Self { seen, watching }
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    pub async fn sees_something(&self) {
        while self.seen().last.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The middle, the ninety-ninth of a hundred, and the last.
pub fn percentiles(times: &[Duration]) -> [Duration; 3] {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let last = sorted.len() - 1;
    [50, 99, 100].map(|percent| sorted[(last * percent).div_ceil(100)])
}
