//! The watch driver: many watchers of the same keys, some writes, and how fast every event reached every watcher.
//! Each watcher checks that revisions follow each other without a gap, so a lost or doubled event ends the run.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use h2::client::SendRequest;
use prost::Message;
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::process::{self, Usage};
use crate::{Outcome, grpc, load, tls};

const CONNECT_LIMIT: Duration = Duration::from_secs(30);
const RUN_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_micros(200);
const FRAME_HEAD_BYTES: usize = 5;
const MESSAGE_BYTES_MAX: usize = 64 << 20;
const VALUE: &[u8] = &[b'v'; 128];

#[derive(clap::Args)]
pub struct Arguments {
    /// Address of the proxy (or server) under load
    #[arg(long)]
    target: String,
    /// Folder made by `ringfence-bench pki`
    #[arg(long)]
    pki: PathBuf,
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Watchers in all, each a stream of its own, spread evenly over the connections
    #[arg(long, default_value_t = 200)]
    watchers: usize,
    /// How many keys are written; every watcher sees each of them
    #[arg(long, default_value_t = 500)]
    writes: u32,
    /// Writes that may be under way at a time
    #[arg(long, default_value_t = 16)]
    writers: u32,
    /// Threads of the driver itself
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=256))]
    threads: u64,
    /// Processes whose CPU time and memory to read
    #[arg(long)]
    cpu_pid: Vec<u32>,
}

/// What one run came to. `processes` are those asked for, in that order.
#[derive(Clone, Serialize, Deserialize)]
pub struct WatchReport {
    pub watchers: usize,
    pub writes: u32,
    /// From the first connection to the answer that the last watcher was created.
    pub setup_seconds: f64,
    /// Events delivered, over all watchers.
    pub events: u64,
    /// From the first write to the last event delivered.
    pub seconds: f64,
    pub events_per_second: f64,
    pub processes: Vec<WatchedProcess>,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct WatchedProcess {
    pub cpu_microseconds_per_event: f64,
    /// With all watchers there and nothing written yet.
    pub resident_bytes_idle: u64,
    pub peak_resident_bytes: u64,
}

/// The parts of etcd's WatchResponse that matter here (etcd, api/etcdserverpb/rpc.proto).
#[derive(Clone, PartialEq, Message)]
struct WatchResponse {
    #[prost(bool, tag = "3")]
    created: bool,
    #[prost(bool, tag = "4")]
    canceled: bool,
    #[prost(string, tag = "6")]
    cancel_reason: String,
    #[prost(message, repeated, tag = "11")]
    events: Vec<Event>,
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(message, optional, tag = "2")]
    kv: Option<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(int64, tag = "3")]
    mod_revision: i64,
}

/// Where the run is, for all threads.
struct Progress {
    created: AtomicUsize,
    done: AtomicUsize,
    failed: AtomicBool,
    first_error: Mutex<Option<String>>,
}

impl Progress {
    fn fail(&self, message: String) {
        self.first_error.lock().unwrap().get_or_insert(message);
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Until as many as wanted have got so far.
    fn wait(&self, counter: &AtomicUsize, wanted: usize, what: &str) -> Outcome<()> {
        let limit = Instant::now() + RUN_LIMIT;
        while counter.load(Ordering::Acquire) < wanted {
            if self.failed.load(Ordering::Relaxed) {
                let said = self.first_error.lock().unwrap().clone();
                return Err(said.unwrap_or_default());
            }
            if Instant::now() > limit {
                let there = counter.load(Ordering::Acquire);
                return Err(format!(
                    "{what}: {there} of {wanted} within {} s",
                    RUN_LIMIT.as_secs()
                ));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }
}

pub fn run(arguments: &Arguments) -> Outcome<()> {
    let config = tls::client(&arguments.pki, Some("client"))?;
    let progress = Arc::new(Progress {
        created: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
        failed: AtomicBool::new(false),
        first_error: Mutex::new(None),
    });
    let start = Instant::now();
    let threads = arguments.threads as usize;
    for index in 0..threads.min(arguments.connections) {
        let watchers: Vec<usize> = (index..arguments.connections)
            .step_by(threads)
            .map(|connection| {
                (connection..arguments.watchers).step_by(arguments.connections).count()
            })
            .collect();
        let (target, config) = (arguments.target.clone(), Arc::clone(&config));
        let (progress, writes) = (Arc::clone(&progress), arguments.writes);
        // They end with the process.
        thread::spawn(move || watch(&target, &config, &watchers, writes, &progress));
    }
    progress.wait(&progress.created, arguments.watchers, "watchers created")?;
    let setup_seconds = start.elapsed().as_secs_f64();
    let usages = || {
        arguments.cpu_pid.iter().map(|pid| process::usage(*pid)).collect::<Outcome<Vec<Usage>>>()
    };
    let before = usages()?;
    let start = Instant::now();
    let (target, writes, writers) = (arguments.target.clone(), arguments.writes, arguments.writers);
    let written = thread::spawn(move || write(&target, &config, writes, writers));
    progress.wait(&progress.done, arguments.watchers, "watchers with all events")?;
    let seconds = start.elapsed().as_secs_f64();
    let after = usages()?;
    written.join().map_err(|_| "the writing thread panicked")??;
    let events = arguments.watchers as u64 * u64::from(arguments.writes);
    let processes = before.iter().zip(after).map(|(before, after)| WatchedProcess {
        cpu_microseconds_per_event: (after.cpu_seconds - before.cpu_seconds) * 1e6 / events as f64,
        resident_bytes_idle: before.resident_bytes,
        peak_resident_bytes: after.peak_resident_bytes,
    });
    let report = WatchReport {
        watchers: arguments.watchers,
        writes: arguments.writes,
        setup_seconds,
        events,
        seconds,
        events_per_second: events as f64 / seconds,
        processes: processes.collect(),
    };
    println!("{}", serde_json::to_string_pretty(&report).unwrap());
    Ok(())
}

/// One thread: so many watchers on each of its connections.
fn watch(
    target: &str,
    config: &Arc<ClientConfig>,
    watchers: &[usize],
    writes: u32,
    progress: &Arc<Progress>,
) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut streams = JoinSet::new();
        for count in watchers {
            let connected = timeout(CONNECT_LIMIT, load::connect(target, config)).await;
            let sender = match connected {
                Ok(Ok((sender, _))) => sender,
                Ok(Err(message)) => return progress.fail(message),
                Err(_) => return progress.fail("connecting took too long".to_owned()),
            };
            for _ in 0..*count {
                let (sender, progress) = (sender.clone(), Arc::clone(progress));
                streams.spawn(async move {
                    if let Err(message) = watch_once(sender, writes, &progress).await {
                        progress.fail(message);
                    }
                });
            }
        }
        while streams.join_next().await.is_some() {}
    });
}

/// One watcher, up to its last event; its stream stays open until the process ends.
async fn watch_once(sender: SendRequest<Bytes>, writes: u32, progress: &Progress) -> Outcome<()> {
    let failed = |error: h2::Error| format!("watch: {error}");
    let mut sender = sender.ready().await.map_err(failed)?;
    let head = load::template(grpc::WATCH_PATH);
    let (response, mut stream) = sender.send_request(head, false).map_err(failed)?;
    stream.send_data(grpc::watch_request(), false).map_err(failed)?;
    let response = response.await.map_err(failed)?;
    if let Some(status) = response.headers().get("grpc-status") {
        return Err(format!("watch: grpc-status {status:?}"));
    }
    let mut body = response.into_body();
    let mut waiting = BytesMut::new();
    let (mut seen, mut revision) = (0, None);
    while seen < writes {
        let chunk = body.data().await.ok_or("watch: the stream ended")?.map_err(failed)?;
        body.flow_control().release_capacity(chunk.len()).map_err(failed)?;
        waiting.extend_from_slice(&chunk);
        while let Some(message) = whole_message(&mut waiting)? {
            let message =
                WatchResponse::decode(message).map_err(|error| format!("watch: {error}"))?;
            if message.canceled {
                return Err(format!("watch: canceled: {}", message.cancel_reason));
            }
            if message.created {
                progress.created.fetch_add(1, Ordering::Release);
            }
            for event in &message.events {
                let now = event.kv.as_ref().map(|pair| pair.mod_revision);
                if let (Some(before), Some(now)) = (revision, now)
                    && now != before + 1
                {
                    return Err(format!("watch: revision {now} came after {before}"));
                }
                revision = now;
                seen += 1;
            }
        }
    }
    progress.done.fetch_add(1, Ordering::Release);
    std::future::pending().await
}

/// Takes the first gRPC message off, once it is there as a whole.
fn whole_message(waiting: &mut BytesMut) -> Outcome<Option<Bytes>> {
    let Some((&[compressed, a, b, c, d], rest)) = waiting.split_first_chunk::<FRAME_HEAD_BYTES>()
    else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if compressed != 0 || length > MESSAGE_BYTES_MAX {
        return Err("watch: a frame that no etcd sends".to_owned());
    }
    if rest.len() < length {
        return Ok(None);
    }
    waiting.advance(FRAME_HEAD_BYTES);
    Ok(Some(waiting.split_to(length).freeze()))
}

/// Each write is another key, so each makes one revision and one event.
fn write(target: &str, config: &Arc<ClientConfig>, writes: u32, writers: u32) -> Outcome<()> {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (sender, _) = load::connect(target, config).await?;
        let mut streams = JoinSet::new();
        for first in 0..writers.min(writes) {
            let mut sender = sender.clone();
            streams.spawn(async move {
                for number in (first..writes).step_by(writers as usize) {
                    let body = grpc::put_request(number, VALUE);
                    sender = load::call(sender, load::template(grpc::PUT_PATH), body).await?;
                }
                Ok::<_, String>(())
            });
        }
        while let Some(written) = streams.join_next().await {
            written.map_err(|error| format!("a writer: {error}"))??;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_once_it_is_whole() {
        let mut waiting = BytesMut::from(&[0, 0, 0, 0, 2, 7][..]);
        assert_eq!(whole_message(&mut waiting), Ok(None));
        waiting.extend_from_slice(&[8, 0]);
        assert_eq!(whole_message(&mut waiting), Ok(Some(Bytes::from_static(&[7, 8]))));
        assert_eq!(&waiting[..], &[0]);
        let mut compressed = BytesMut::from(&[1, 0, 0, 0, 0][..]);
        assert!(whole_message(&mut compressed).is_err());
    }
}
