//! What every call counts, where it is cheap: on its core alone, added up by a scrape.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::etcd::Rpc;

/// The upper bounds of the latency buckets, in seconds.
pub(super) const LATENCY_BUCKETS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];
/// What every call of one core counts, where no other core writes: counters that all cores change are dear to touch.
/// A scrape moves what was allowed to the counters by RPC and verdict, and adds the latencies up anew.
#[derive(Debug)]
pub struct CoreCounts {
    /// Allowed calls by RPC, since the last scrape.
    allowed: Vec<AtomicU64>,
    /// Forwarded calls by the bucket of their latency; the last has no upper bound.
    latencies: [AtomicU64; LATENCY_BUCKETS.len() + 1],
    latency_nanos: AtomicU64,
}

impl Default for CoreCounts {
    fn default() -> Self {
        Self {
            allowed: Rpc::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
            latencies: Default::default(),
            latency_nanos: AtomicU64::new(0),
        }
    }
}

impl CoreCounts {
    /// Counts an allowed call.
    pub fn count_allowed(&self, rpc: Rpc) {
        if let Some(counter) = self.allowed.get(rpc.index()) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The allowed calls by RPC since they were taken last.
    pub(super) fn take_allowed(&self) -> impl Iterator<Item = u64> {
        self.allowed.iter().map(|count| count.swap(0, Ordering::Relaxed))
    }

    /// Notes how long a forwarded call took, from the head of its request to the end of its reply.
    pub fn observe_forward(&self, latency: Duration) {
        let seconds = latency.as_secs_f64();
        let bucket = LATENCY_BUCKETS.iter().take_while(|bound| **bound < seconds).count();
        if let Some(counter) = self.latencies.get(bucket) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.latency_nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

/// The counts of all cores.
#[derive(Clone, Debug, Default)]
pub(super) struct Cores(Arc<Mutex<Vec<Arc<CoreCounts>>>>);

impl Cores {
    pub(super) fn push(&self, core: &Arc<CoreCounts>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(core));
    }

    pub(super) fn all(&self) -> Vec<Arc<CoreCounts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The histogram of latencies, added up when it is scraped.
#[derive(Debug)]
pub(super) struct ForwardDuration(pub(super) Cores);

impl EncodeMetric for ForwardDuration {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let bounds = LATENCY_BUCKETS.into_iter().chain([f64::INFINITY]);
        let mut buckets: Vec<(f64, u64)> = bounds.map(|bound| (bound, 0)).collect();
        let mut sum = Duration::ZERO;
        for core in self.0.all() {
            for ((_, count), counter) in buckets.iter_mut().zip(&core.latencies) {
                *count += counter.load(Ordering::Relaxed);
            }
            sum += Duration::from_nanos(core.latency_nanos.load(Ordering::Relaxed));
        }
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(sum.as_secs_f64(), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}
