//! Every metric of the process, made once and handed down; labels come from fixed sets only.
//!
//! prometheus-client and not the global recorder of the `metrics` crate: the registry is passed,
//! and a histogram keeps buckets, not samples that wait to be collected.

mod certificates;
mod core;

pub use certificates::{Certificates, OwnCertificate, RevocationList};
pub use core::CoreCounts;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use core::{Cores, ForwardDuration};

use crate::etcd::{Page, Rpc};

/// The upper bounds of the buckets for a sync of the audit log, in seconds.
const SYNC_BUCKETS: [f64; 11] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

type Labels = [(&'static str, &'static str); 1];
/// Names of sinks come from the config, which has a few.
type SinkLabels = [(&'static str, String); 1];
type RequestLabels = [(&'static str, &'static str); 2];

/// What became of a call, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Allowed by policy.
    Allow,
    /// Denied by policy.
    Deny,
    /// Refused before policy was asked.
    Refuse,
}

impl Verdict {
    const ALL: [&'static str; 3] = ["allow", "deny", "refuse"];
}

/// What is reloaded as a whole, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadUnit {
    /// Config, policy and certificates.
    Generation,
    /// Lists of revoked certificates.
    Revocation,
}

impl ReloadUnit {
    const fn name(self) -> &'static str {
        match self {
            Self::Generation => "generation",
            Self::Revocation => "revocation",
        }
    }
}

/// What came of a log-in to etcd, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginResult {
    /// There is a token.
    Ok,
    /// etcd refuses the user.
    Refused,
    /// etcd could not be asked.
    Unavailable,
}

impl LoginResult {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
        }
    }
}

fn counters(
    requests: &Family<RequestLabels, Counter>,
    rpc: &'static str,
) -> [Counter; Verdict::ALL.len()] {
    Verdict::ALL.map(|verdict| requests.get_or_create_owned(&[("rpc", rpc), ("verdict", verdict)]))
}

fn count([allow, deny, refuse]: &[Counter; Verdict::ALL.len()], verdict: Verdict) {
    match verdict {
        Verdict::Allow => allow.inc(),
        Verdict::Deny => deny.inc(),
        Verdict::Refuse => refuse.inc(),
    };
}

/// The metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// By RPC and verdict, looked up ahead: a call counts without a lock or a hash.
    requests: Vec<[Counter; Verdict::ALL.len()]>,
    /// The same by page of etcd's HTTP side.
    page_requests: Vec<[Counter; Verdict::ALL.len()]>,
    unknown_requests: [Counter; Verdict::ALL.len()],
    handshakes_refused: Family<Labels, Counter>,
    /// Handshakes that succeeded.
    pub handshakes: Counter,
    connections_ended: Family<Labels, Counter>,
    watches_cut: Family<Labels, Counter>,
    /// Open client connections.
    pub connections: Gauge,
    /// Open upstream connections.
    pub upstream_connections: Gauge,
    /// Failed attempts to connect upstream.
    pub upstream_connect_failures: Counter,
    /// Requests beyond a rate of their principal, and replies longer than it may have.
    pub throttled: Counter,
    /// Refusals without a place among the principal's streams nor among its audit records.
    pub refusals_unrecorded: Counter,
    /// Records written.
    pub audit_records: Counter<u64, AtomicU64>,
    /// Requests refused because the log had no room.
    pub audit_refused: Counter<u64, AtomicU64>,
    /// Files of the log that were found deleted, shortened or replaced.
    pub audit_gaps: Counter<u64, AtomicU64>,
    /// Requests that rules left out of the log.
    pub audit_left_out: Counter<u64, AtomicU64>,
    sink_records: Family<SinkLabels, Counter<u64, AtomicU64>>,
    sink_shortened: Family<SinkLabels, Counter<u64, AtomicU64>>,
    sink_lost: Family<SinkLabels, Counter<u64, AtomicU64>>,
    sink_up: Family<SinkLabels, Gauge>,
    logins: Family<Labels, Counter>,
    generation: Gauge<u64, AtomicU64>,
    reloads: Family<RequestLabels, Counter>,
    reload_failing: Family<Labels, Gauge>,
    reload_last_success: Family<Labels, Gauge<u64, AtomicU64>>,
    certificates: Certificates,
    cores: Cores,
    audit_sync: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("ringfence");
        let requests = Family::<RequestLabels, Counter>::default();
        let metrics = Self {
            requests: Rpc::ALL.iter().map(|rpc| counters(&requests, rpc.path())).collect(),
            page_requests: Page::ALL.iter().map(|page| counters(&requests, page.path())).collect(),
            unknown_requests: counters(&requests, "unknown"),
            handshakes_refused: Family::default(),
            handshakes: Counter::default(),
            connections_ended: Family::default(),
            watches_cut: Family::default(),
            connections: Gauge::default(),
            upstream_connections: Gauge::default(),
            upstream_connect_failures: Counter::default(),
            throttled: Counter::default(),
            refusals_unrecorded: Counter::default(),
            audit_records: Counter::default(),
            audit_refused: Counter::default(),
            audit_gaps: Counter::default(),
            audit_left_out: Counter::default(),
            sink_records: Family::default(),
            sink_shortened: Family::default(),
            sink_lost: Family::default(),
            sink_up: Family::default(),
            logins: Family::default(),
            generation: Gauge::default(),
            reloads: Family::default(),
            reload_failing: Family::default(),
            reload_last_success: Family::default(),
            certificates: Certificates::default(),
            cores: Cores::default(),
            audit_sync: Histogram::new(SYNC_BUCKETS),
            registry: Registry::default(),
        };
        registry.register("requests", "Calls by RPC and verdict", requests);
        metrics.register_connections(&mut registry);
        metrics.register_audit(&mut registry);
        metrics.register_sinks(&mut registry);
        metrics.register_reloads(&mut registry);
        metrics.certificates.register(&mut registry);
        Self { registry, ..metrics }
    }
}

impl Metrics {
    fn register_reloads(&self, registry: &mut Registry) {
        registry.register(
            "generation",
            "The generation of config, policy and certificates in force, counted from 1 at the start",
            self.generation.clone(),
        );
        registry.register(
            "reloads",
            "Reloads by unit and result; files that have not changed count as well",
            self.reloads.clone(),
        );
        registry.register(
            "reload_failing",
            "1 while what is in force is not what the files say, by unit",
            self.reload_failing.clone(),
        );
        registry.register_with_unit(
            "reload_last_success_timestamp",
            "When what is in force was read, in seconds since 1970, by unit",
            Unit::Seconds,
            self.reload_last_success.clone(),
        );
    }

    /// Certificates and when they end.
    #[must_use]
    pub const fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// Notes that another generation of that unit is in force.
    pub fn note_reload(&self, unit: ReloadUnit, generation: u64, now: Duration) {
        let labels = [("unit", unit.name())];
        if unit == ReloadUnit::Generation {
            self.generation.set(generation);
        }
        self.reloads.get_or_create_owned(&[("unit", unit.name()), ("result", "ok")]).inc();
        self.reloads.get_or_create_owned(&[("unit", unit.name()), ("result", "failed")]);
        self.reload_failing.get_or_create_owned(&labels).set(0);
        self.reload_last_success.get_or_create_owned(&labels).set(now.as_secs());
    }

    /// Notes that what the files of that unit say is not in force.
    pub fn note_failed_reload(&self, unit: ReloadUnit) {
        self.reloads.get_or_create_owned(&[("unit", unit.name()), ("result", "failed")]).inc();
        self.reload_failing.get_or_create_owned(&[("unit", unit.name())]).set(1);
    }

    fn register_connections(&self, registry: &mut Registry) {
        registry.register(
            "handshakes_refused",
            "Handshakes refused, by reason",
            self.handshakes_refused.clone(),
        );
        registry.register("handshakes", "Handshakes that succeeded", self.handshakes.clone());
        registry.register("connections", "Open client connections", self.connections.clone());
        registry.register(
            "connections_ended",
            "Client connections that ended, by reason",
            self.connections_ended.clone(),
        );
        registry.register(
            "watches_cut",
            "Watches that ended because the right to them had, by reason",
            self.watches_cut.clone(),
        );
        registry.register(
            "upstream_connections",
            "Open connections to etcd",
            self.upstream_connections.clone(),
        );
        registry.register(
            "upstream_connect_failures",
            "Failed attempts to connect to etcd",
            self.upstream_connect_failures.clone(),
        );
        registry.register(
            "upstream_logins",
            "Log-ins to etcd as the users of identities, by result",
            self.logins.clone(),
        );
        registry.register(
            "throttled",
            "Requests beyond a rate of their principal, and replies longer than it may have",
            self.throttled.clone(),
        );
        registry.register(
            "refusals_unrecorded",
            "Refusals without a place among the principal's streams nor among its audit records",
            self.refusals_unrecorded.clone(),
        );
        registry.register_with_unit(
            "forward_duration",
            "From the head of the request to the end of the reply, for forwarded calls",
            Unit::Seconds,
            ForwardDuration(self.cores.clone()),
        );
    }

    fn register_audit(&self, registry: &mut Registry) {
        registry.register("audit_records", "Audit records written", self.audit_records.clone());
        registry.register(
            "audit_gaps",
            "Files of the audit log that were found deleted, shortened or replaced",
            self.audit_gaps.clone(),
        );
        registry.register(
            "audit_left_out",
            "Requests that an audit.level left out of the audit log",
            self.audit_left_out.clone(),
        );
        registry.register(
            "audit_refused",
            "Records that found no room in the audit queue",
            self.audit_refused.clone(),
        );
        registry.register_with_unit(
            "audit_sync_duration",
            "How long the disk took to keep a batch of audit records",
            Unit::Seconds,
            self.audit_sync.clone(),
        );
    }

    fn register_sinks(&self, registry: &mut Registry) {
        registry.register(
            "audit_sink_records",
            "Records that a sink of the audit log has taken",
            self.sink_records.clone(),
        );
        registry.register(
            "audit_sink_shortened",
            "Records that a sink of the audit log has only in short",
            self.sink_shortened.clone(),
        );
        registry.register(
            "audit_sink_lost",
            "Records that a sink of the audit log never got",
            self.sink_lost.clone(),
        );
        registry.register(
            "audit_sink_up",
            "Whether a sink of the audit log takes records",
            self.sink_up.clone(),
        );
    }

    /// Notes the state of a sink, whose name is from the config.
    pub fn note_sink(&self, sink: &str, [taken, shortened, lost]: [u64; 3], is_up: bool) {
        let labels = || [("sink", sink.to_owned())];
        let relaxed = Ordering::Relaxed;
        self.sink_records.get_or_create(&labels()).inner().store(taken, relaxed);
        self.sink_shortened.get_or_create(&labels()).inner().store(shortened, relaxed);
        self.sink_lost.get_or_create(&labels()).inner().store(lost, relaxed);
        self.sink_up.get_or_create(&labels()).set(i64::from(is_up));
    }

    /// Where a new core counts.
    #[must_use]
    pub fn new_core(&self) -> Arc<CoreCounts> {
        let core = Arc::new(CoreCounts::default());
        self.cores.push(&core);
        core
    }

    /// Counts a call, unless its core does ([`CoreCounts::count_allowed`]); `None` is a path that no RPC has.
    pub fn count_request(&self, rpc: Option<Rpc>, verdict: Verdict) {
        let counters = rpc.and_then(|rpc| self.requests.get(rpc.index()));
        count(counters.unwrap_or(&self.unknown_requests), verdict);
    }

    /// Counts a request of plain HTTP; `None` is a path that no page has.
    pub fn count_page(&self, page: Option<Page>, verdict: Verdict) {
        let counters = page.and_then(|page| self.page_requests.get(page.index()));
        count(counters.unwrap_or(&self.unknown_requests), verdict);
    }

    /// Counts a refused handshake.
    pub fn count_refused_handshake(&self, reason: &'static str) {
        self.handshakes_refused.get_or_create(&[("reason", reason)]).inc();
    }

    /// Counts a log-in to etcd.
    pub fn count_login(&self, result: LoginResult) {
        self.logins.get_or_create(&[("result", result.name())]).inc();
    }

    /// Counts watches whose right has ended, by reason.
    pub fn count_cut_watches(&self, reason: &'static str, watches: usize) {
        self.watches_cut.get_or_create_owned(&[("reason", reason)]).inc_by(watches as u64);
    }

    /// Counts a connection that ended.
    pub fn count_ended_connection(&self, reason: &'static str) {
        self.connections_ended.get_or_create(&[("reason", reason)]).inc();
    }

    /// Notes how long the disk took to keep a batch of audit records.
    pub fn observe_audit_sync(&self, took: Duration) {
        self.audit_sync.observe(took.as_secs_f64());
    }

    /// The OpenMetrics text.
    #[must_use]
    pub fn render(&self) -> String {
        for core in self.cores.all() {
            for ([allowed, ..], count) in self.requests.iter().zip(core.take_allowed()) {
                allowed.inc_by(count);
            }
        }
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(_) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::core::LATENCY_BUCKETS;
    use super::*;

    #[test]
    fn what_the_cores_counted_is_added_up_and_counted_once() {
        let metrics = Metrics::default();
        let cores = [metrics.new_core(), metrics.new_core()];
        for core in &cores {
            core.count_allowed(Rpc::Range);
            // The bounds of buckets belong to them.
            core.observe_forward(Duration::from_secs_f64(LATENCY_BUCKETS[0]));
        }
        cores[1].observe_forward(Duration::from_secs(3600));
        for _ in 0..2 {
            let text = metrics.render();
            let has =
                |line: &str| assert!(text.lines().any(|other| other == line), "{line}: {text}");
            has("ringfence_forward_duration_seconds_count 3");
            has(&format!(
                "ringfence_forward_duration_seconds_bucket{{le=\"{:?}\"}} 2",
                LATENCY_BUCKETS[0]
            ));
            has("ringfence_forward_duration_seconds_bucket{le=\"+Inf\"} 3");
            let allowed =
                text.lines().find(|line| line.contains("/Range\"") && line.contains("\"allow\""));
            assert!(allowed.is_some_and(|line| line.ends_with(" 2")), "{allowed:?}");
        }
    }
}
