//! Runs contestants in turns (A B C, A B C, ...) over the same loads. Each turn starts its contestant afresh and ends
//! it; nothing here stands between load and contestant, and nothing here knows what the figures are for.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use serde::de::DeserializeOwned;
use tokio::runtime::Builder;
use tokio::time::timeout;

use crate::contestant::{
    Contestant, Programs, Setting, Started, own_program, start_etcd, start_upstream,
};
use crate::fill::fill;
use crate::load::Mix;
use crate::process::{Running, free_address};
use crate::report::{LoadReport, Turn, WatchTurn};
use crate::stop::Stop;
use crate::watch::WatchReport;
use crate::{Outcome, audit, grpc, pki, tls};

const READY_LIMIT: Duration = Duration::from_secs(10);
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// What a turn may take beyond its loads: starting, filling, ending, reading the audit files.
pub const TURN_SLACK_SECONDS: u64 = 60;

/// One load; a turn may have several, one after another, on one start of its contestant.
#[derive(Clone)]
pub struct Shape {
    pub label: String,
    pub mix: Mix,
    pub connections: u32,
    /// Concurrent streams per connection.
    pub streams: u32,
    pub value_bytes: usize,
    pub answer_keys: usize,
    pub reconnect: bool,
    pub warmup_seconds: u64,
    pub seconds: u64,
}

impl Shape {
    /// The shape that figures are given for when nothing else is said.
    pub fn four_by_sixteen(mix: Mix, seconds: u64) -> Self {
        Self {
            label: mix.name().to_owned(),
            mix,
            connections: 4,
            streams: 16,
            value_bytes: grpc::Answer::DEFAULT.value_bytes,
            answer_keys: grpc::Answer::DEFAULT.keys,
            reconnect: false,
            warmup_seconds: 1,
            seconds,
        }
    }
}

/// What the contestants stand before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// Canned answers, one for the whole series.
    StandIn,
    /// A fresh etcd for each turn, filled with so many keys.
    Etcd { keys: u32 },
}

/// What all series of one run share. Its folder goes with it.
pub struct Bench {
    directory: PathBuf,
    pub pki: PathBuf,
    pub threads: usize,
    pub programs: Programs,
    pub stop: Stop,
}

impl Bench {
    /// `limit` is how long the whole run may take.
    pub fn create(programs: Programs, limit: Duration) -> Outcome<Self> {
        let stop = Stop::watch(limit)?;
        let directory =
            std::env::temp_dir().join(format!("ringfence-bench-{}", std::process::id()));
        fs::create_dir(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let bench = Self {
            pki: directory.join("pki"),
            directory,
            threads: thread::available_parallelism().map_or(1, usize::from),
            programs,
            stop,
        };
        pki::create(&bench.pki)?;
        Ok(bench)
    }

    pub fn setting(&self, name: &str, upstream: String) -> Outcome<Setting> {
        let directory = self.directory.join(name);
        fs::create_dir(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        Ok(Setting {
            directory,
            pki: self.pki.clone(),
            upstream,
            threads: self.threads,
            programs: self.programs.clone(),
        })
    }

    /// Loads of unary calls.
    pub fn calls(
        &self,
        contestants: &[Contestant],
        shapes: &[Shape],
        rounds: u32,
        behind: Behind,
    ) -> Outcome<Vec<Turn>> {
        if let Some(odd) = contestants.iter().find(|contestant| contestant.needs_etcd())
            && behind == Behind::StandIn
        {
            let name = odd.name();
            return Err(format!("{name} needs a real etcd: make bench SECTIONS=etcd has one"));
        }
        let mut turns = Vec::new();
        self.in_turns(contestants, rounds, behind, |turn| {
            for shape in shapes {
                let load = self.load(turn, shape)?;
                turn.calls += load.requests_in_all;
                let mut processes = load.processes.clone();
                let upstream = processes.pop().ok_or("the load driver reported no process")?;
                let proxy = processes.pop();
                let cost = proxy.as_ref().map_or_else(String::new, |proxy| {
                    format!(", {:.1} us of its CPU each", proxy.cpu_microseconds_per_request)
                });
                eprintln!(
                    "round {} of {rounds}: {}: {}: {:.0} requests/s, p50 {:.0} us{cost}",
                    turn.round,
                    shape.label,
                    turn.contestant.name(),
                    load.throughput_per_second,
                    load.p50_microseconds,
                );
                let sync_seconds =
                    turn.started.admin.as_deref().map(mean_sync).transpose()?.flatten();
                turns.push(Turn {
                    round: turn.round,
                    contestant: turn.contestant.name().to_owned(),
                    shape: shape.label.clone(),
                    load_average_before: turn.load_average_before,
                    audit: None,
                    sync_seconds,
                    proxy,
                    upstream,
                    load,
                });
            }
            Ok(())
        })
        .map(|audits| with_audits(turns, &audits))
    }

    /// One load of watches.
    pub fn watches(
        &self,
        contestants: &[Contestant],
        load: &WatchLoad,
        rounds: u32,
    ) -> Outcome<Vec<WatchTurn>> {
        let mut turns = Vec::new();
        let behind = Behind::Etcd { keys: 100 };
        self.in_turns(contestants, rounds, behind, |turn| {
            let name = turn.contestant.name();
            let report = self.watch(turn, load)?;
            let mut processes = report.processes.clone();
            let upstream = processes.pop().ok_or("the watch driver reported no process")?;
            eprintln!(
                "round {} of {rounds}: {} watchers: {name}: {:.0} events/s, set up in {:.2} s",
                turn.round, load.watchers, report.events_per_second, report.setup_seconds
            );
            turns.push(WatchTurn {
                round: turn.round,
                contestant: name.to_owned(),
                proxy: processes.pop(),
                upstream,
                report,
            });
            // Watches are not checked call by call: their calls are still open when the driver ends.
            turn.started.audit = None;
            Ok(())
        })?;
        Ok(turns)
    }

    /// Starts each contestant in turn, has `drive` put its load on, ends it, and reads its audit files.
    fn in_turns(
        &self,
        contestants: &[Contestant],
        rounds: u32,
        behind: Behind,
        mut drive: impl FnMut(&mut InTurn) -> Outcome<()>,
    ) -> Outcome<Vec<(u32, Contestant, audit::Audit)>> {
        let shared = self.setting("stand-in", free_address()?)?;
        let mut stand_in = match behind {
            Behind::StandIn => Some(start_upstream(&shared)?),
            Behind::Etcd { .. } => None,
        };
        if let Some(process) = &mut stand_in {
            self.wait_until_ready(&shared.upstream, process)?;
        }
        let mut audits = Vec::new();
        for round in 1..=rounds {
            for contestant in contestants {
                self.stop.check()?;
                let name = format!("{round}-{}", contestant.name());
                let (setting, etcd) = match behind {
                    Behind::StandIn => (self.setting(&name, shared.upstream.clone())?, None),
                    Behind::Etcd { .. } => {
                        let setting = self.setting(&name, free_address()?)?;
                        let etcd = start_etcd(&setting, contestant.listener())?;
                        (setting, Some(etcd))
                    }
                };
                let mut etcd = etcd;
                let behind_it =
                    etcd.as_mut().or(stand_in.as_mut()).ok_or("nothing stands behind")?;
                let audit =
                    self.turn(*contestant, round, &setting, behind, behind_it, &mut drive)?;
                audits.extend(audit.map(|audit| (round, *contestant, audit)));
                drop(etcd);
                let _ = fs::remove_dir_all(&setting.directory);
            }
        }
        drop(stand_in);
        let _ = fs::remove_dir_all(&shared.directory);
        Ok(audits)
    }

    fn turn(
        &self,
        contestant: Contestant,
        round: u32,
        setting: &Setting,
        behind: Behind,
        upstream: &mut Running,
        drive: &mut impl FnMut(&mut InTurn) -> Outcome<()>,
    ) -> Outcome<Option<audit::Audit>> {
        if behind != Behind::StandIn {
            wait_for_etcd(&setting.upstream, upstream, &self.stop)?;
        }
        let mut started = contestant.start(setting)?;
        let address = started.address.clone();
        self.wait_until_ready(&address, started.process.as_mut().unwrap_or(upstream))?;
        let mut turn = InTurn {
            contestant,
            round,
            directory: setting.directory.clone(),
            upstream: upstream.pid(),
            filled: 0,
            calls: 0,
            load_average_before: load_average(),
            started,
        };
        if let Behind::Etcd { keys } = behind {
            let config = tls::client(&self.pki, Some("client"))?;
            turn.filled = keys;
            turn.calls += fill(&address, &config, keys, grpc::Answer::DEFAULT.value_bytes)?;
        }
        refuses_strangers(&address, &self.pki)?;
        if let Err(message) = drive(&mut turn) {
            self.stop.check()?;
            let said = turn.started.process.as_ref().map_or_else(String::new, Running::said);
            return Err(format!("{}: {message}\n{said}", contestant.name()));
        }
        if let Some(process) = &mut turn.started.process {
            process.still_there()?;
            process.end();
        }
        turn.started.audit.as_deref().map(|folder| audit::check(folder, turn.calls)).transpose()
    }

    fn load(&self, turn: &InTurn, shape: &Shape) -> Outcome<LoadReport> {
        let mut options = vec![
            ("--connections", u64::from(shape.connections)),
            ("--streams", u64::from(shape.streams)),
            ("--seconds", shape.seconds),
            ("--warmup-seconds", shape.warmup_seconds),
            ("--value-bytes", shape.value_bytes as u64),
            ("--answer-keys", shape.answer_keys as u64),
        ];
        if turn.filled > 0 {
            options.push(("--keys", u64::from(turn.filled)));
        }
        let mut flags = vec!["--mix", shape.mix.name()];
        flags.extend(shape.reconnect.then_some("--reconnect"));
        self.drive("load", turn, &options, &flags)
    }

    fn watch(&self, turn: &InTurn, load: &WatchLoad) -> Outcome<WatchReport> {
        let options = [
            ("--connections", u64::from(load.connections)),
            ("--watchers", u64::from(load.watchers)),
            ("--writes", u64::from(load.writes)),
        ];
        self.drive("watch", turn, &options, &[])
    }

    /// Runs one of the drivers as a process of its own and reads what it prints.
    fn drive<Report: DeserializeOwned>(
        &self,
        driver: &str,
        turn: &InTurn,
        options: &[(&str, u64)],
        flags: &[&str],
    ) -> Outcome<Report> {
        let mut command = own_program()?;
        command.args([driver, "--target", &turn.started.address]).arg("--pki").arg(&self.pki);
        command.args(["--threads", &self.threads.to_string()]).args(flags);
        for (option, value) in options {
            command.args([*option, &value.to_string()]);
        }
        let proxy = turn.started.process.as_ref().map(Running::pid);
        for pid in proxy.into_iter().chain([turn.upstream]) {
            command.args(["--cpu-pid", &pid.to_string()]);
        }
        let (log, printed) = (turn.directory.join("drive.log"), turn.directory.join("drive.json"));
        Running::start_printing(driver, &mut command, &log, &printed)?.wait(&self.stop)?;
        let text = fs::read(&printed).map_err(|error| format!("{}: {error}", printed.display()))?;
        serde_json::from_slice(&text).map_err(|error| format!("{driver}: {error}"))
    }

    fn wait_until_ready(&self, address: &str, process: &mut Running) -> Outcome<()> {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let config = tls::client(&self.pki, Some("client"))?;
        until_ready(process, &self.stop, || {
            // A timeout can be made on a runtime only.
            let tried = async { timeout(READY_LIMIT, tls::connect(address, config.clone())).await };
            let tried = runtime.block_on(tried);
            tried.map_err(|_| address.to_owned())?.map(drop)
        })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A load of watches.
pub struct WatchLoad {
    pub connections: u32,
    pub watchers: u32,
    pub writes: u32,
}

/// One contestant that is up, within its turn.
struct InTurn {
    contestant: Contestant,
    round: u32,
    directory: PathBuf,
    /// The process behind.
    upstream: u32,
    /// Keys that a real etcd was filled with; 0 before a stand-in.
    filled: u32,
    /// Calls made so far that must be in the audit log.
    calls: u64,
    /// The machine's one-minute load average before the turn: high where others kept it busy.
    load_average_before: f64,
    started: Started,
}

fn with_audits(mut turns: Vec<Turn>, audits: &[(u32, Contestant, audit::Audit)]) -> Vec<Turn> {
    for turn in &mut turns {
        let mine = |(round, contestant, _): &&(u32, Contestant, _)| {
            *round == turn.round && contestant.name() == turn.contestant
        };
        turn.audit = audits.iter().find(mine).map(|(_, _, audit)| *audit);
    }
    turns
}

/// What ringfence's metrics say of its syncs: seconds of one, on average.
fn mean_sync(admin: &str) -> Outcome<Option<f64>> {
    let failed = |error: std::io::Error| format!("{admin}: {error}");
    let mut stream = TcpStream::connect(admin).map_err(failed)?;
    stream.set_read_timeout(Some(PROBE_LIMIT)).map_err(failed)?;
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(failed)?;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|value| value.trim().parse::<f64>().ok());
        value.ok_or_else(|| format!("{admin}: no metric `{name}`"))
    };
    let sum = value("ringfence_audit_sync_duration_seconds_sum ")?;
    let count = value("ringfence_audit_sync_duration_seconds_count ")?;
    Ok((count > 0.0).then(|| sum / count))
}

/// etcd listens before it serves, and not every listener of it speaks TLS; the port is all that is asked for here, and
/// whoever fills it waits for the rest.
fn wait_for_etcd(address: &str, process: &mut Running, stop: &Stop) -> Outcome<()> {
    until_ready(process, stop, || {
        TcpStream::connect(address).map(drop).map_err(|error| format!("{address}: {error}"))
    })
}

fn until_ready(
    process: &mut Running,
    stop: &Stop,
    attempt: impl Fn() -> Outcome<()>,
) -> Outcome<()> {
    let limit = Instant::now() + READY_LIMIT;
    loop {
        process.still_there()?;
        stop.check()?;
        match attempt() {
            Ok(()) => return Ok(()),
            Err(_) if Instant::now() < limit => thread::sleep(Duration::from_millis(50)),
            Err(message) => {
                let seconds = READY_LIMIT.as_secs();
                return Err(format!("not ready within {seconds} s: {message}\n{}", process.said()));
            }
        }
    }
}

/// Mutual TLS is part of what is measured, so a contestant that answers without a certificate ends the run.
fn refuses_strangers(address: &str, pki: &Path) -> Outcome<()> {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let config = tls::client(pki, None)?;
    let answered =
        runtime.block_on(async { timeout(PROBE_LIMIT, call_once(address, config)).await });
    match answered {
        // nginx completes the handshake and refuses with status 400.
        Ok(Ok(http::StatusCode::OK)) => {
            Err(format!("{address} answers clients that show no certificate"))
        }
        Ok(_) => Ok(()),
        Err(_) => {
            Err(format!("{address} neither answers nor refuses a client without a certificate"))
        }
    }
}

/// Whether anything is answered at all; what it says does not matter here.
async fn call_once(address: &str, config: Arc<ClientConfig>) -> Outcome<http::StatusCode> {
    // With TLS 1.3 the client's side is done before the server judges, so only an answer tells.
    let stream = tls::connect(address, config).await?;
    let (sender, connection) =
        h2::client::handshake(stream).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let mut sender = sender.ready().await.map_err(|error| error.to_string())?;
    let request = http::Request::post(format!("https://localhost{}", grpc::RANGE_PATH))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut body) =
        sender.send_request(request, false).map_err(|error| error.to_string())?;
    let range = grpc::range_request(0, grpc::Answer::DEFAULT);
    body.send_data(range, true).map_err(|error| error.to_string())?;
    response.await.map(|response| response.status()).map_err(|error| error.to_string())
}

fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}
