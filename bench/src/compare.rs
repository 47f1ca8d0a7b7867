//! Runs the contestants in turns against one stand-in upstream and says how they came out.
//! Each turn starts its contestant afresh and ends it; nothing here stands between load and contestant.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use serde_json::json;
use tokio::runtime::Builder;
use tokio::time::timeout;

use crate::contestant::{Contestant, Setting, Started, own_program, start_upstream};
use crate::load::Mix;
use crate::process::{Running, free_address};
use crate::report::{self, LoadReport, Turn};
use crate::stop::Stop;
use crate::{Outcome, audit, grpc, pki, tls};

const READY_LIMIT: Duration = Duration::from_secs(10);
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// What a turn may take beyond its warm-up and its measured seconds: starting, ending, reading the audit files.
const TURN_SLACK_SECONDS: u64 = 60;
const RATIOS: [(&str, &str); 6] = [
    ("ringfence", "haproxy"),
    ("ringfence", "passthrough"),
    ("haproxy", "passthrough"),
    ("ringfence", "ringfence-unrecorded"),
    ("ringfence-blocking", "ringfence-unrecorded"),
    ("ringfence-sealed", "ringfence-blocking"),
];

#[derive(clap::Args)]
pub struct Arguments {
    /// Who takes part, in the order of their turns
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "direct,passthrough,haproxy,ringfence"
    )]
    contestants: Vec<Contestant>,
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Measured seconds of each turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=600))]
    warmup_seconds: u64,
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    connections: u32,
    /// Concurrent streams per connection
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100))]
    streams: u32,
    /// Which calls to make
    #[arg(long, value_enum, default_value_t = Mix::Range)]
    mix: Mix,
    /// The HAProxy program
    #[arg(long, default_value = "haproxy")]
    haproxy: PathBuf,
    /// The ringfence program; by default the one beside this program
    #[arg(long)]
    ringfence: Option<PathBuf>,
    /// JSON file to write every figure to
    #[arg(long)]
    output: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Outcome<()> {
    let turns = u64::from(arguments.rounds) * arguments.contestants.len() as u64;
    let turn_seconds = arguments.warmup_seconds + arguments.seconds * 2 + TURN_SLACK_SECONDS;
    let stop = Stop::watch(Duration::from_secs(turns * turn_seconds))?;
    let workspace = Workspace::create()?;
    let setting = Setting {
        directory: workspace.path.clone(),
        pki: workspace.path.join("pki"),
        upstream: free_address()?,
        threads: thread::available_parallelism().map_or(1, usize::from),
        haproxy: arguments.haproxy.clone(),
        ringfence: arguments.ringfence.clone().map_or_else(beside_this_program, Ok)?,
    };
    pki::create(&setting.pki)?;
    let versions = arguments.contestants.iter().map(|contestant| contestant.version(&setting));
    let versions = versions.collect::<Outcome<Vec<String>>>()?;
    let mut upstream = start_upstream(&setting)?;
    wait_until_ready(&setting.upstream, &setting.pki, &mut upstream, &stop)?;

    let mut turns = Vec::new();
    for round in 1..=arguments.rounds {
        for contestant in &arguments.contestants {
            let turn = take_turn(arguments, &setting, *contestant, round, &mut upstream, &stop)?;
            let cost = turn.proxy.as_ref().map_or_else(String::new, |proxy| {
                let cost = proxy.cpu_microseconds_per_request;
                format!(", {cost:.1} us of the proxy's CPU per request")
            });
            eprintln!(
                "round {round} of {}: {}: {:.0} requests/s{cost}",
                arguments.rounds, turn.contestant, turn.load.throughput_per_second,
            );
            turns.push(turn);
        }
    }
    upstream.end();
    publish(arguments, &setting, &versions, &turns)
}

fn beside_this_program() -> Outcome<PathBuf> {
    let own = std::env::current_exe().map_err(|error| format!("where this program is: {error}"))?;
    Ok(own.with_file_name("ringfence"))
}

/// The folder of one run, removed with everything in it at the end.
struct Workspace {
    path: PathBuf,
}

impl Workspace {
    fn create() -> Outcome<Self> {
        let path = std::env::temp_dir().join(format!("ringfence-bench-{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn take_turn(
    arguments: &Arguments,
    run: &Setting,
    contestant: Contestant,
    round: u32,
    upstream: &mut Running,
    stop: &Stop,
) -> Outcome<Turn> {
    stop.check()?;
    let directory = run.directory.join(format!("{round}-{}", contestant.name()));
    fs::create_dir(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let setting = Setting {
        directory: directory.clone(),
        pki: run.pki.clone(),
        upstream: run.upstream.clone(),
        threads: run.threads,
        haproxy: run.haproxy.clone(),
        ringfence: run.ringfence.clone(),
    };
    let mut started = contestant.start(&setting)?;
    wait_until_ready(
        &started.address,
        &run.pki,
        started.process.as_mut().unwrap_or(upstream),
        stop,
    )?;
    refuses_strangers(&started.address, &run.pki)?;
    let load_average_before = load_average();
    let load = match run_load(arguments, &setting, &started, upstream.pid(), stop) {
        Ok(load) => load,
        Err(message) => {
            stop.check()?;
            let said = started.process.as_ref().map_or_else(String::new, Running::said);
            return Err(format!("{}: {message}\n{said}", contestant.name()));
        }
    };
    let sync_seconds = started.admin.as_deref().map(mean_sync).transpose()?.flatten();
    if let Some(process) = &mut started.process {
        process.still_there()?;
        process.end();
    }
    let audit = started
        .audit
        .as_deref()
        .map(|folder| audit::check(folder, load.requests_in_all))
        .transpose()?;
    let _ = fs::remove_dir_all(&directory);
    let mut processes = load.processes.clone();
    let of_upstream = processes.pop().ok_or("the load driver reported no process")?;
    Ok(Turn {
        round,
        contestant: contestant.name().to_owned(),
        load_average_before,
        audit,
        sync_seconds,
        proxy: processes.pop(),
        upstream: of_upstream,
        load,
    })
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

fn wait_until_ready(address: &str, pki: &Path, process: &mut Running, stop: &Stop) -> Outcome<()> {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let config = tls::client(pki, Some("client"))?;
    let limit = Instant::now() + READY_LIMIT;
    loop {
        process.still_there()?;
        stop.check()?;
        let tried = runtime
            .block_on(async { timeout(READY_LIMIT, tls::connect(address, config.clone())).await });
        match tried {
            Ok(Ok(_)) => return Ok(()),
            _ if Instant::now() < limit => thread::sleep(Duration::from_millis(50)),
            Ok(Err(message)) => {
                return Err(format!("not ready within 10 s: {message}\n{}", process.said()));
            }
            Err(_) => {
                return Err(format!("not ready within 10 s: {address}\n{}", process.said()));
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
        Ok(Ok(_)) => Err(format!("{address} answers clients that show no certificate")),
        Ok(Err(_)) => Ok(()),
        Err(_) => {
            Err(format!("{address} neither answers nor refuses a client without a certificate"))
        }
    }
}

/// Whether anything is answered at all; what it says does not matter here.
async fn call_once(address: &str, config: Arc<ClientConfig>) -> Outcome<()> {
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
    body.send_data(grpc::range_request(0), true).map_err(|error| error.to_string())?;
    response.await.map(drop).map_err(|error| error.to_string())
}

fn run_load(
    arguments: &Arguments,
    run: &Setting,
    started: &Started,
    upstream: u32,
    stop: &Stop,
) -> Outcome<LoadReport> {
    let mut command = own_program()?;
    command.args(["load", "--target", &started.address, "--mix", arguments.mix.name()]);
    command.arg("--pki").arg(&run.pki);
    for (option, value) in [
        ("--connections", u64::from(arguments.connections)),
        ("--streams", u64::from(arguments.streams)),
        ("--seconds", arguments.seconds),
        ("--warmup-seconds", arguments.warmup_seconds),
        ("--threads", run.threads as u64),
    ] {
        command.args([option, &value.to_string()]);
    }
    for pid in started.process.as_ref().map(Running::pid).into_iter().chain([upstream]) {
        command.args(["--cpu-pid", &pid.to_string()]);
    }
    let (log, printed) = (run.directory.join("load.log"), run.directory.join("load.json"));
    Running::start_printing("load driver", &mut command, &log, &printed)?.wait(stop)?;
    let text = fs::read(&printed).map_err(|error| format!("{}: {error}", printed.display()))?;
    serde_json::from_slice(&text).map_err(|error| format!("load driver: {error}"))
}

fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

fn publish(
    arguments: &Arguments,
    setting: &Setting,
    versions: &[String],
    turns: &[Turn],
) -> Outcome<()> {
    let summaries: Vec<_> = arguments
        .contestants
        .iter()
        .zip(versions)
        .filter_map(|(contestant, version)| report::summary(contestant.name(), version, turns))
        .collect();
    let ratios: Vec<_> =
        RATIOS.iter().filter_map(|(of, over)| report::ratio(of, over, turns)).collect();
    println!(
        "{} connections x {} streams, {} calls, 128-byte values, mutual TLS on both hops, {} rounds of {} s, medians.",
        arguments.connections,
        arguments.streams,
        arguments.mix.name(),
        arguments.rounds,
        arguments.seconds,
    );
    println!(
        "Every proxy has {} threads, which is the number of cores; nothing is pinned.\n",
        setting.threads
    );
    print!("{}", report::table(&summaries, &ratios));
    let in_flight = arguments.connections * arguments.streams;
    let blocking: Vec<_> = ["ringfence-blocking", "ringfence-sealed"]
        .iter()
        .filter_map(|contestant| report::blocking(contestant, in_flight, turns))
        .collect();
    for row in &blocking {
        println!(
            "{}: a sync takes {:.2} ms, which allows {:.0} requests/s; throughput over the lesser of that and of ringfence: {:.2}",
            row.contestant,
            row.sync_seconds * 1000.0,
            row.allowed_per_second,
            row.share
        );
    }
    let audits: Vec<_> = turns.iter().filter_map(|turn| turn.audit).collect();
    if !audits.is_empty() {
        let calls: u64 = audits.iter().map(|audit| audit.calls).sum();
        println!(
            "Audit, warm-up included: {calls} requests, and for each exactly one decision, then one outcome."
        );
    }
    let Some(output) = &arguments.output else {
        return Ok(());
    };
    let document = json!({
        "machine": { "cores": setting.threads, "processor": processor(), "kernel": kernel() },
        "setting": {
            "connections": arguments.connections,
            "streams_per_connection": arguments.streams,
            "mix": arguments.mix.name(),
            "value_bytes": 128,
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "warmup_seconds": arguments.warmup_seconds,
            "threads_per_proxy": setting.threads,
            "rules": 1000,
        },
        "audit_of_all_rounds": {
            "requests": audits.iter().map(|audit| audit.calls).sum::<u64>(),
            "decisions": audits.iter().map(|audit| audit.decisions).sum::<u64>(),
            "outcomes": audits.iter().map(|audit| audit.outcomes).sum::<u64>(),
        },
        "medians": summaries,
        "ratios_of_cpu_per_request": ratios,
        "blocking": blocking,
        "turns": turns,
    });
    let text = serde_json::to_string_pretty(&document).unwrap() + "\n";
    fs::write(output, text).map_err(|error| format!("{}: {error}", output.display()))
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

fn kernel() -> String {
    let version = Command::new("uname").args(["-s", "-r", "-m"]).output();
    version.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
