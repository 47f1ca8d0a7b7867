//! What a run came to: the JSON shapes of `load` and `compare`, and the table a person reads.
//! Pure: numbers in, text out.

use serde::{Deserialize, Serialize};

use crate::audit::Audit;
use crate::figures::{Points, Spread, median};
use crate::watch::{WatchReport, WatchedProcess};

#[derive(Clone, Serialize, Deserialize)]
pub struct ProcessReport {
    pub pid: u32,
    pub cpu_seconds: f64,
    pub cpu_microseconds_per_request: f64,
    pub resident_bytes: u64,
    pub peak_resident_bytes: u64,
}

/// One run of `load`. `processes` are those asked for, in that order.
#[derive(Clone, Serialize, Deserialize)]
pub struct LoadReport {
    /// Answered within the measured window; every rate and cost counts these.
    pub requests: u64,
    /// Answered from the first to the last, warm-up included.
    pub requests_in_all: u64,
    pub errors: u64,
    pub first_error: Option<String>,
    pub seconds: f64,
    pub throughput_per_second: f64,
    pub p50_microseconds: f64,
    pub p99_microseconds: f64,
    pub p999_microseconds: f64,
    pub mix: String,
    pub tls_session: String,
    /// Of the first process asked for, at even distances within the window.
    pub resident_bytes_over_time: Vec<u64>,
    pub driver: ProcessReport,
    pub processes: Vec<ProcessReport>,
}

/// One contestant in one round. `proxy` is None where nothing stands in between.
#[derive(Serialize)]
pub struct Turn {
    pub round: u32,
    pub contestant: String,
    /// Which load it was, where a series has several.
    pub shape: String,
    /// The machine's one-minute load average before the turn: high where others kept it busy.
    pub load_average_before: f64,
    /// What ringfence's audit files held after the turn, checked call by call.
    pub audit: Option<Audit>,
    /// How long ringfence's syncs took on average, in seconds; None where there was none.
    pub sync_seconds: Option<f64>,
    pub proxy: Option<ProcessReport>,
    pub upstream: ProcessReport,
    pub load: LoadReport,
}

/// One contestant in one round of watches.
#[derive(Serialize)]
pub struct WatchTurn {
    pub round: u32,
    pub contestant: String,
    pub proxy: Option<WatchedProcess>,
    pub upstream: WatchedProcess,
    pub report: WatchReport,
}

/// The median of each figure over the rounds of one contestant.
#[derive(Serialize)]
pub struct Summary {
    pub contestant: String,
    pub version: String,
    pub throughput_per_second: f64,
    pub p50_microseconds: f64,
    pub p99_microseconds: f64,
    pub p999_microseconds: f64,
    pub proxy_cpu_microseconds_per_request: Option<f64>,
    pub proxy_resident_bytes: Option<f64>,
    pub upstream_cpu_microseconds_per_request: f64,
    pub driver_cpu_microseconds_per_request: f64,
    /// Decisions and outcomes over calls; 2 is right, and nothing else gets this far.
    pub audit_records_per_request: Option<f64>,
    pub audit_bytes_per_request: Option<f64>,
}

/// CPU per request of one proxy over that of another, each round by itself.
#[derive(Serialize)]
pub struct Ratio {
    pub of: String,
    pub over: String,
    #[serde(flatten)]
    pub spread: Spread,
}

pub fn summary(contestant: &str, version: &str, turns: &[Turn]) -> Option<Summary> {
    let mine: Vec<&Turn> = turns.iter().filter(|turn| turn.contestant == contestant).collect();
    let over =
        |figure: &dyn Fn(&Turn) -> f64| median(mine.iter().map(|turn| figure(turn)).collect());
    let of_proxy = |figure: &dyn Fn(&ProcessReport) -> f64| {
        median(mine.iter().filter_map(|turn| turn.proxy.as_ref().map(figure)).collect())
    };
    let of_audit = |figure: &dyn Fn(&Audit) -> u64| {
        let audits = mine.iter().filter_map(|turn| turn.audit.as_ref());
        median(audits.map(|audit| figure(audit) as f64 / audit.calls as f64).collect())
    };
    Some(Summary {
        contestant: contestant.to_owned(),
        version: version.to_owned(),
        throughput_per_second: over(&|turn| turn.load.throughput_per_second)?,
        p50_microseconds: over(&|turn| turn.load.p50_microseconds)?,
        p99_microseconds: over(&|turn| turn.load.p99_microseconds)?,
        p999_microseconds: over(&|turn| turn.load.p999_microseconds)?,
        proxy_cpu_microseconds_per_request: of_proxy(&|proxy| proxy.cpu_microseconds_per_request),
        proxy_resident_bytes: of_proxy(&|proxy| proxy.resident_bytes as f64),
        upstream_cpu_microseconds_per_request: over(&|turn| {
            turn.upstream.cpu_microseconds_per_request
        })?,
        driver_cpu_microseconds_per_request: over(&|turn| {
            turn.load.driver.cpu_microseconds_per_request
        })?,
        audit_records_per_request: of_audit(&|audit| audit.decisions + audit.outcomes),
        audit_bytes_per_request: of_audit(&|audit| audit.bytes),
    })
}

/// What a log that waits for the disk costs in throughput, each round by itself.
#[derive(Serialize)]
pub struct Blocking {
    pub contestant: String,
    /// How long a sync took, medians over the rounds.
    pub sync_seconds: f64,
    /// What the syncs alone would allow so many calls in flight.
    pub allowed_per_second: f64,
    /// Throughput over the lesser of that and of `buffered`.
    pub share: f64,
}

/// None where one of the two did not run or nothing was synced.
pub fn blocking(contestant: &str, in_flight: u32, turns: &[Turn]) -> Option<Blocking> {
    let (mut syncs, mut shares) = (Vec::new(), Vec::new());
    for turn in turns.iter().filter(|turn| turn.contestant == contestant) {
        let same_round =
            |other: &&Turn| other.contestant == "ringfence" && other.round == turn.round;
        let buffered = turns.iter().find(same_round)?.load.throughput_per_second;
        let sync = turn.sync_seconds?;
        syncs.push(sync);
        let allowed = f64::from(in_flight) / sync;
        shares.push(turn.load.throughput_per_second / allowed.min(buffered));
    }
    let sync_seconds = median(syncs)?;
    Some(Blocking {
        contestant: contestant.to_owned(),
        sync_seconds,
        allowed_per_second: f64::from(in_flight) / sync_seconds,
        share: median(shares)?,
    })
}

/// None where one of the two did not run or is no proxy.
pub fn ratio(of: &str, over: &str, turns: &[Turn]) -> Option<Ratio> {
    let cost = |contestant: &str| {
        let mine = turns.iter().filter(|turn| turn.contestant == contestant);
        Points::new(mine.filter_map(|turn| {
            Some((turn.round, turn.proxy.as_ref()?.cpu_microseconds_per_request))
        }))
    };
    let spread = cost(of).over(&cost(over)).spread()?;
    Some(Ratio { of: of.to_owned(), over: over.to_owned(), spread })
}

pub fn table(summaries: &[Summary], ratios: &[Ratio]) -> String {
    let head = [
        "",
        "requests/s",
        "p50 us",
        "p99 us",
        "proxy CPU us/req",
        "proxy MiB",
        "upstream us/req",
        "driver us/req",
        "audit records/req",
        "audit bytes/req",
    ];
    let mut text = String::from("|");
    for cell in head {
        text.push_str(&format!(" {cell} |"));
    }
    text.push_str("\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n");
    for row in summaries {
        let or_dash = |value: Option<f64>, places: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.places$}"))
        };
        text.push_str(&format!(
            "| {} | {:.0} | {:.0} | {:.0} | {} | {} | {:.1} | {:.1} | {} | {} |\n",
            row.contestant,
            row.throughput_per_second,
            row.p50_microseconds,
            row.p99_microseconds,
            or_dash(row.proxy_cpu_microseconds_per_request, 1),
            or_dash(row.proxy_resident_bytes.map(|bytes| bytes / 1_048_576.0), 1),
            row.upstream_cpu_microseconds_per_request,
            row.driver_cpu_microseconds_per_request,
            or_dash(row.audit_records_per_request, 3),
            or_dash(row.audit_bytes_per_request, 0),
        ));
    }
    for ratio in ratios {
        text.push_str(&format!(
            "CPU per request, {} / {}: median {:.2} (min {:.2}, max {:.2})\n",
            ratio.of, ratio.over, ratio.spread.median, ratio.spread.min, ratio.spread.max
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(round: u32, contestant: &str, cost: f64) -> Turn {
        let process = ProcessReport {
            pid: 1,
            cpu_seconds: 1.0,
            cpu_microseconds_per_request: cost,
            resident_bytes: 1 << 20,
            peak_resident_bytes: 1 << 20,
        };
        Turn {
            round,
            contestant: contestant.to_owned(),
            shape: String::new(),
            load_average_before: 0.0,
            audit: None,
            sync_seconds: None,
            proxy: Some(process.clone()),
            upstream: process.clone(),
            load: LoadReport {
                requests: 1,
                requests_in_all: 1,
                errors: 0,
                first_error: None,
                seconds: 1.0,
                throughput_per_second: 1.0,
                p50_microseconds: 1.0,
                p99_microseconds: 1.0,
                p999_microseconds: 1.0,
                mix: String::new(),
                tls_session: String::new(),
                resident_bytes_over_time: Vec::new(),
                driver: process,
                processes: Vec::new(),
            },
        }
    }

    #[test]
    fn a_blocking_log_is_held_against_the_disk_or_against_buffered() {
        let with = |contestant: &str, throughput: f64, sync: Option<f64>| {
            let mut turn = turn(1, contestant, 1.0);
            turn.load.throughput_per_second = throughput;
            turn.sync_seconds = sync;
            turn
        };
        let turns = [with("ringfence", 1000.0, None), with("blocking", 600.0, Some(0.05))];
        // Ten in flight and a sync of 50 ms: 200 a second.
        assert_eq!(super::blocking("blocking", 10, &turns).unwrap().share, 3.0);
        assert_eq!(super::blocking("blocking", 100, &turns).unwrap().share, 0.6);
        assert!(super::blocking("ringfence", 10, &turns).is_none());
    }
}
