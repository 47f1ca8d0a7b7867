//! Contestants of one's choice in turns, one shape of load, one stand-in upstream: the table and the ratios.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::contestant::{Contestant, Programs};
use crate::load::Mix;
use crate::report::{self, Turn};
use crate::series::{Behind, Bench, Shape, TURN_SLACK_SECONDS};
use crate::{Outcome, machine};

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
    #[command(flatten)]
    programs: Programs,
    /// JSON file to write every figure to
    #[arg(long)]
    output: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Outcome<()> {
    let turns = u64::from(arguments.rounds) * arguments.contestants.len() as u64;
    let turn_seconds = arguments.warmup_seconds + arguments.seconds * 2 + TURN_SLACK_SECONDS;
    let bench =
        Bench::create(arguments.programs.clone(), Duration::from_secs(turns * turn_seconds))?;
    let versions =
        arguments.contestants.iter().map(|contestant| contestant.version(&bench.programs));
    let versions = versions.collect::<Outcome<Vec<String>>>()?;
    let shape = Shape {
        connections: arguments.connections,
        streams: arguments.streams,
        warmup_seconds: arguments.warmup_seconds,
        ..Shape::four_by_sixteen(arguments.mix, arguments.seconds)
    };
    let turns = bench.calls(&arguments.contestants, &[shape], arguments.rounds, Behind::StandIn)?;
    publish(arguments, bench.threads, &versions, &turns)
}

fn publish(
    arguments: &Arguments,
    threads: usize,
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
        threads
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
        "machine": machine::describe(threads),
        "setting": {
            "connections": arguments.connections,
            "streams_per_connection": arguments.streams,
            "mix": arguments.mix.name(),
            "value_bytes": 128,
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "warmup_seconds": arguments.warmup_seconds,
            "threads_per_proxy": threads,
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
