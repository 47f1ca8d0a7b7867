//! The load driver: unary gRPC calls in a closed loop over h2 and mutual TLS, every answer verified.
//! It measures others by their own accounting in /proc, so its own cost enters no figure but the throughput.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use rustls::ClientConfig;
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::histogram::Histogram;
use crate::process::{self, Usage};
use crate::report::{LoadReport, ProcessReport};
use crate::{Outcome, grpc, tls};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long the last answers may take after the run is over; a stream still waiting then counts as an error.
const LAST_ANSWERS_LIMIT: Duration = Duration::from_secs(5);
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// How often the memory is looked at within the measured window.
const SAMPLES: u32 = 20;

const WARM_UP: u8 = 0;
const MEASURE: u8 = 1;
const STOP: u8 = 2;

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
    /// Concurrent streams per connection, each with one request at a time
    #[arg(long, default_value_t = 16)]
    streams: usize,
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=600))]
    warmup_seconds: u64,
    /// Which calls to make
    #[arg(long, value_enum, default_value_t = Mix::Range)]
    mix: Mix,
    /// Bytes of the value in each Put, and of each value that a Range has the stand-in answer with
    #[arg(long, default_value_t = grpc::Answer::DEFAULT.value_bytes)]
    value_bytes: usize,
    /// Keys that a Range has the stand-in answer with
    #[arg(long, default_value_t = grpc::Answer::DEFAULT.keys)]
    answer_keys: usize,
    /// Keys that are asked for or written
    #[arg(long, default_value_t = grpc::KEYS, value_parser = clap::value_parser!(u32).range(1..=i64::from(grpc::KEYS)))]
    keys: u32,
    /// One call to a connection, with a full handshake for each: requests are then connections. Needs one stream
    #[arg(long)]
    reconnect: bool,
    /// Threads of the driver itself
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=256))]
    threads: u64,
    /// Processes whose CPU time and memory to read over the measured window
    #[arg(long)]
    cpu_pid: Vec<u32>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Mix {
    Range,
    Put,
    /// Range and Put in turns
    Mixed,
    /// A comparison that holds, and then a Put: what Kubernetes writes with
    Txn,
}

impl Mix {
    pub fn name(self) -> &'static str {
        match self {
            Self::Range => "range",
            Self::Put => "put",
            Self::Mixed => "mixed",
            Self::Txn => "txn",
        }
    }
}

/// What one thread of the driver saw.
struct Tally {
    latencies: Histogram,
    /// Calls answered in all, those outside the measured window too.
    answered: u64,
    errors: u64,
    first_error: Option<String>,
}

/// What the streams of one thread share. The lock is only ever taken by that thread, so it never waits.
struct Shared {
    phase: Arc<AtomicU8>,
    tally: Mutex<Tally>,
    mix: Mix,
    value: Vec<u8>,
    answer: grpc::Answer,
    keys: u32,
    reconnect: bool,
}

pub fn run(arguments: &Arguments) -> Outcome<()> {
    if arguments.reconnect && arguments.streams != 1 {
        return Err("--reconnect takes --streams 1".to_owned());
    }
    let config = tls::client(&arguments.pki, Some("client"))?;
    let phase = Arc::new(AtomicU8::new(WARM_UP));
    let (connected, ready) = mpsc::channel();
    let threads = (arguments.threads as usize).min(arguments.connections.max(1));
    let workers: Vec<_> = (0..threads)
        .map(|index| {
            let connections = (index..arguments.connections).step_by(threads).count();
            let plan = Plan {
                target: arguments.target.clone(),
                config: Arc::clone(&config),
                connections,
                streams: arguments.streams,
                first_key: (index as u32).wrapping_mul(7919),
            };
            let shared = Arc::new(Shared {
                phase: Arc::clone(&phase),
                tally: Mutex::new(Tally {
                    latencies: Histogram::new(),
                    answered: 0,
                    errors: 0,
                    first_error: None,
                }),
                mix: arguments.mix,
                value: vec![b'v'; arguments.value_bytes],
                answer: grpc::Answer {
                    value_bytes: arguments.value_bytes,
                    keys: arguments.answer_keys,
                },
                keys: arguments.keys,
                reconnect: arguments.reconnect,
            });
            let connected = connected.clone();
            thread::spawn(move || drive(&plan, &shared, &connected))
        })
        .collect();
    let mut tls_session = String::new();
    for _ in 0..threads {
        tls_session = ready
            .recv_timeout(CONNECT_LIMIT * 2)
            .map_err(|_| "the driver did not connect in time")??;
    }
    let window = measure(arguments, &phase)?;
    let mut total =
        Tally { latencies: Histogram::new(), answered: 0, errors: 0, first_error: None };
    for worker in workers {
        let tally = worker.join().map_err(|_| "a driver thread panicked")?;
        total.latencies.merge(&tally.latencies);
        total.answered += tally.answered;
        total.errors += tally.errors;
        total.first_error = total.first_error.or(tally.first_error);
    }
    conclude(arguments, &total, &window, tls_session)
}

/// The measured window: how long it was, and what every watched process (the driver last) used within it.
struct Window {
    elapsed: Duration,
    usages: Vec<(u32, Usage)>,
    /// Resident memory of the first watched process now and then.
    resident_bytes: Vec<u64>,
}

fn measure(arguments: &Arguments, phase: &AtomicU8) -> Outcome<Window> {
    let mut pids = arguments.cpu_pid.clone();
    pids.push(std::process::id());
    pause_unless_stopped(phase, Duration::from_secs(arguments.warmup_seconds));
    let before = pids.iter().map(|pid| process::usage(*pid)).collect::<Outcome<Vec<_>>>()?;
    // An error may have stopped the run already: then it stays stopped.
    let _ = phase.compare_exchange(WARM_UP, MEASURE, Ordering::Relaxed, Ordering::Relaxed);
    let start = Instant::now();
    let mut resident_bytes = Vec::with_capacity(SAMPLES as usize);
    for _ in 0..SAMPLES {
        pause_unless_stopped(phase, Duration::from_secs(arguments.seconds) / SAMPLES);
        if let Some(pid) = arguments.cpu_pid.first() {
            resident_bytes.push(process::usage(*pid)?.resident_bytes);
        }
    }
    let elapsed = start.elapsed();
    phase.store(STOP, Ordering::Relaxed);
    let mut usages = Vec::with_capacity(pids.len());
    for (pid, before) in pids.iter().zip(before) {
        let after = process::usage(*pid)?;
        usages.push((*pid, Usage { cpu_seconds: after.cpu_seconds - before.cpu_seconds, ..after }));
    }
    Ok(Window { elapsed, usages, resident_bytes })
}

fn pause_unless_stopped(phase: &AtomicU8, duration: Duration) {
    let end = Instant::now() + duration;
    while phase.load(Ordering::Relaxed) != STOP {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::sleep(left.min(Duration::from_millis(50)));
    }
}

fn conclude(
    arguments: &Arguments,
    total: &Tally,
    window: &Window,
    tls_session: String,
) -> Outcome<()> {
    let requests = total.latencies.total();
    let mut processes: Vec<ProcessReport> = window
        .usages
        .iter()
        .map(|(pid, usage)| ProcessReport {
            pid: *pid,
            cpu_seconds: usage.cpu_seconds,
            cpu_microseconds_per_request: usage.cpu_seconds * 1e6 / requests.max(1) as f64,
            resident_bytes: usage.resident_bytes,
            peak_resident_bytes: usage.peak_resident_bytes,
        })
        .collect();
    let driver = processes.pop().ok_or("no usage of the driver")?;
    let seconds = window.elapsed.as_secs_f64();
    let report = LoadReport {
        requests,
        requests_in_all: total.answered,
        errors: total.errors,
        first_error: total.first_error.clone(),
        seconds,
        throughput_per_second: requests as f64 / seconds,
        p50_microseconds: total.latencies.quantile_microseconds(0.5),
        p99_microseconds: total.latencies.quantile_microseconds(0.99),
        p999_microseconds: total.latencies.quantile_microseconds(0.999),
        mix: arguments.mix.name().to_owned(),
        tls_session,
        resident_bytes_over_time: window.resident_bytes.clone(),
        driver,
        processes,
    };
    println!("{}", serde_json::to_string_pretty(&report).unwrap());
    match (report.errors, requests) {
        (0, 0) => Err("no request was answered within the measured window".to_owned()),
        (0, _) => Ok(()),
        (errors, _) => {
            Err(format!("{errors} errors, the first: {}", report.first_error.unwrap_or_default()))
        }
    }
}

/// What one thread of the driver is to do.
#[derive(Clone)]
struct Plan {
    target: String,
    config: Arc<ClientConfig>,
    connections: usize,
    streams: usize,
    first_key: u32,
}

fn drive(plan: &Plan, shared: &Arc<Shared>, connected: &Sender<Outcome<String>>) -> Tally {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut senders = Vec::new();
        let mut session = String::new();
        for _ in 0..plan.connections {
            match timeout(CONNECT_LIMIT, connect(&plan.target, &plan.config))
                .await
                .unwrap_or_else(|_| Err("connecting took too long".into()))
            {
                Ok((sender, negotiated)) => {
                    senders.push(sender);
                    session = negotiated;
                }
                Err(message) => return drop(connected.send(Err(message))),
            }
        }
        let _ = connected.send(Ok(session));
        let mut streams = JoinSet::new();
        for (index, sender) in
            senders.iter().cycle().take(plan.connections * plan.streams).enumerate()
        {
            let first_key = plan.first_key.wrapping_add(index as u32 * 104_729);
            let shared = Arc::clone(shared);
            match shared.reconnect {
                true => streams.spawn(connect_in_a_loop(plan.clone(), shared, first_key)),
                false => streams.spawn(call_in_a_loop(sender.clone(), shared, first_key)),
            };
        }
        while shared.phase.load(Ordering::Relaxed) != STOP {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let all = async { while streams.join_next().await.is_some() {} };
        if timeout(LAST_ANSWERS_LIMIT, all).await.is_err() {
            fail(
                shared,
                format!("{} streams were still without an answer at the end", streams.len()),
            );
        }
    });
    let mut tally = shared.tally.lock().unwrap();
    let empty = Tally { latencies: Histogram::new(), answered: 0, errors: 0, first_error: None };
    std::mem::replace(&mut *tally, empty)
}

/// One connection, and what its TLS session agreed on.
pub async fn connect(
    target: &str,
    config: &Arc<ClientConfig>,
) -> Outcome<(SendRequest<Bytes>, String)> {
    let stream = tls::connect(target, Arc::clone(config)).await?;
    let session = tls::session(&stream);
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .enable_push(false);
    let (sender, connection) =
        builder.handshake(stream).await.map_err(|error| format!("h2: {error}"))?;
    tokio::spawn(async move {
        // Its end reaches every stream as an error, and those are counted.
        let _ = connection.await;
    });
    Ok((sender, session))
}

async fn call_in_a_loop(mut sender: SendRequest<Bytes>, shared: Arc<Shared>, first_key: u32) {
    let mut calls = Calls::new(&shared, first_key);
    while shared.phase.load(Ordering::Relaxed) != STOP {
        let (head, body) = calls.next();
        let start = Instant::now();
        match call(sender, head, body).await {
            Ok(returned) => sender = returned,
            Err(message) => return fail(&shared, message),
        }
        shared.answered(start);
    }
}

/// The latency of each is that of connecting and calling once.
async fn connect_in_a_loop(plan: Plan, shared: Arc<Shared>, first_key: u32) {
    let mut calls = Calls::new(&shared, first_key);
    while shared.phase.load(Ordering::Relaxed) != STOP {
        let (head, body) = calls.next();
        let start = Instant::now();
        let connected = timeout(CONNECT_LIMIT, connect(&plan.target, &plan.config)).await;
        let called = match connected {
            Ok(Ok((sender, _))) => call(sender, head, body).await.map(drop),
            Ok(Err(message)) => Err(message),
            Err(_) => Err("connecting took too long".to_owned()),
        };
        if let Err(message) = called {
            return fail(&shared, message);
        }
        shared.answered(start);
    }
}

/// The calls of one stream, one after another.
struct Calls {
    number: u32,
    mix: Mix,
    value: Vec<u8>,
    answer: grpc::Answer,
    keys: u32,
    range: Request<()>,
    put: Request<()>,
    txn: Request<()>,
}

impl Calls {
    fn new(shared: &Shared, first_key: u32) -> Self {
        Self {
            number: first_key,
            mix: shared.mix,
            value: shared.value.clone(),
            answer: shared.answer,
            keys: shared.keys,
            range: template(grpc::RANGE_PATH),
            put: template(grpc::PUT_PATH),
            txn: template(grpc::TXN_PATH),
        }
    }

    /// A step that shares no factor with the count of keys visits all of them; odd, so Range and Put alternate.
    fn next(&mut self) -> (Request<()>, Bytes) {
        self.number = self.number.wrapping_add(7919);
        let key = self.number % self.keys;
        let mix = match self.mix {
            Mix::Mixed if self.number.is_multiple_of(2) => Mix::Put,
            Mix::Mixed => Mix::Range,
            other => other,
        };
        match mix {
            Mix::Put => (self.put.clone(), grpc::put_request(key, &self.value)),
            Mix::Txn => (self.txn.clone(), grpc::txn_request(key, &self.value)),
            Mix::Range | Mix::Mixed => (self.range.clone(), grpc::range_request(key, self.answer)),
        }
    }
}

impl Shared {
    fn answered(&self, start: Instant) {
        let mut tally = self.tally.lock().unwrap();
        tally.answered += 1;
        if self.phase.load(Ordering::Relaxed) == MEASURE {
            let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            tally.latencies.record(nanoseconds);
        }
    }
}

/// One error fails the whole run, so there is no point in going on.
fn fail(shared: &Shared, message: String) {
    let mut tally = shared.tally.lock().unwrap();
    tally.errors += 1;
    tally.first_error.get_or_insert(message);
    shared.phase.store(STOP, Ordering::Relaxed);
}

/// The metadata a Go client of etcd would send.
pub fn template(path: &str) -> Request<()> {
    Request::post(format!("https://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "grpc-bench/1.0")
        .body(())
        .unwrap()
}

/// One unary call. The next waits for its answer, so no more than its request is ever buffered.
pub async fn call(
    sender: SendRequest<Bytes>,
    head: Request<()>,
    body: Bytes,
) -> Outcome<SendRequest<Bytes>> {
    let mut sender = sender.ready().await.map_err(|error| format!("connection: {error}"))?;
    let (response, mut stream) =
        sender.send_request(head, false).map_err(|error| format!("send: {error}"))?;
    stream.send_data(body, true).map_err(|error| format!("send: {error}"))?;
    let response = response.await.map_err(|error| format!("answer: {error}"))?;
    if response.status() != http::StatusCode::OK {
        return Err(format!("answer: HTTP status {}", response.status()));
    }
    let early_status = response.headers().get("grpc-status").cloned();
    let mut answer = response.into_body();
    let mut message = grpc::Received::default();
    while let Some(chunk) = answer.data().await {
        let chunk = chunk.map_err(|error| format!("answer: {error}"))?;
        answer
            .flow_control()
            .release_capacity(chunk.len())
            .map_err(|error| format!("answer: {error}"))?;
        message.add(&chunk);
    }
    let trailers = answer.trailers().await.map_err(|error| format!("trailers: {error}"))?;
    let status = trailers
        .as_ref()
        .and_then(|trailers| trailers.get("grpc-status"))
        .or(early_status.as_ref());
    match status {
        Some(status) if status == "0" && message.is_one_message() => Ok(sender),
        Some(status) if status == "0" => Err("answer: its bytes are no message".to_owned()),
        Some(status) => Err(format!("answer: grpc-status {status:?}")),
        None => Err("answer: no grpc-status".to_owned()),
    }
}
