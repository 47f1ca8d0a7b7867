//! Requests and bytes per second of each principal, over all cores: one atomic each, no lock once a
//! connection is open, nothing for a principal without a rate.
//!
//! It reads no clock: time comes in as an argument.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::identity::Principal;

/// A full second's worth may come at once; then it is evenly one after another.
const BURST: Duration = Duration::from_secs(1);
/// The longest that a debt of bytes keeps a principal waiting.
const DEBT_MAX: Duration = Duration::from_secs(60);

/// One principal's buckets.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: PerSecond,
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
}

/// How much of each a second; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PerSecond {
    pub(super) requests: u64,
    /// Of requests and replies.
    pub(super) bytes: u64,
}

/// A token bucket, written as the time at which it will be full again. How many bytes a reply has shows when
/// they have gone, so a bucket can have a debt; crates for buckets that were looked at have none.
#[derive(Debug)]
struct Bucket {
    full_at_nanos: AtomicU64,
    per_second: u64,
}

/// The buckets of all principals with a rate.
#[derive(Debug, Default)]
pub struct Rates(Mutex<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    by_principal: HashMap<Principal, Arc<Rate>>,
    /// Looking through all of them costs as many steps; it is done when they have doubled.
    purge_at: usize,
}

/// The fewest buckets that are looked through.
const PURGE_MIN: usize = 64;

impl Rates {
    /// The bucket of a principal. One that left and comes back finds its own: a new connection must
    /// not bring a new burst. Forgotten are only those that nobody holds and that are full.
    pub(super) fn of(
        &self,
        principal: &Principal,
        per_second: PerSecond,
        now: Duration,
    ) -> Option<Arc<Rate>> {
        if per_second == PerSecond::default() {
            return None;
        }
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Another rate of a later generation begins with a full bucket.
        if let Some(rate) = buckets.by_principal.get(principal)
            && rate.per_second == per_second
        {
            return Some(Arc::clone(rate));
        }
        if buckets.by_principal.len() >= buckets.purge_at.max(PURGE_MIN) {
            let in_use = |rate: &Arc<Rate>| Arc::strong_count(rate) > 1 || !rate.is_full(now);
            buckets.by_principal.retain(|_, rate| in_use(rate));
            buckets.purge_at = 2 * buckets.by_principal.len();
        }
        let rate = Arc::new(Rate::new(per_second));
        buckets.by_principal.insert(principal.clone(), Arc::clone(&rate));
        Some(rate)
    }
}

impl Rate {
    fn new(per_second: PerSecond) -> Self {
        let (requests, bytes) = (Bucket::new(per_second.requests), Bucket::new(per_second.bytes));
        Self { per_second, requests, bytes }
    }

    /// Takes one request out; false when there is none left, or a debt of bytes. A refused one takes
    /// nothing.
    pub(super) fn take(&self, now: Duration) -> bool {
        self.bytes.as_ref().is_none_or(|bytes| bytes.has_some(now))
            && self.requests.as_ref().is_none_or(|requests| requests.take(now))
    }

    /// Takes bytes that have come or gone, whatever is left.
    pub(super) fn charge_bytes(&self, now: Duration, count: usize) {
        if let Some(bytes) = &self.bytes {
            bytes.charge(now, count as u64);
        }
    }

    fn is_full(&self, now: Duration) -> bool {
        let full = |bucket: &Bucket| bucket.full_at_nanos.load(Ordering::Relaxed) <= nanos(now);
        self.requests.iter().chain(&self.bytes).all(full)
    }
}

impl Bucket {
    fn new(per_second: u64) -> Option<Self> {
        (per_second > 0).then(|| Self { full_at_nanos: AtomicU64::new(0), per_second })
    }

    fn nanos_of(&self, count: u64) -> u64 {
        count.saturating_mul(nanos(BURST)).div_ceil(self.per_second)
    }

    fn take(&self, now: Duration) -> bool {
        let now = nanos(now);
        let step = |full_at: u64| {
            let next = full_at.max(now).saturating_add(self.nanos_of(1));
            (next <= now.saturating_add(nanos(BURST))).then_some(next)
        };
        self.full_at_nanos.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).is_ok()
    }

    fn charge(&self, now: Duration, count: u64) {
        let now = nanos(now);
        let latest = now.saturating_add(nanos(BURST + DEBT_MAX));
        let step =
            |full_at: u64| Some(full_at.max(now).saturating_add(self.nanos_of(count)).min(latest));
        let _always = self.full_at_nanos.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
    }

    fn has_some(&self, now: Duration) -> bool {
        self.full_at_nanos.load(Ordering::Relaxed) < nanos(now).saturating_add(nanos(BURST))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: PerSecond = PerSecond { requests: 10, bytes: 0 };

    fn taken(rate: &Rate, now: Duration) -> usize {
        (0..1000).filter(|_| rate.take(now)).count()
    }

    #[test]
    fn a_bucket_gives_a_second_at_once_and_then_evenly() {
        let rate = Rate::new(TEN);
        assert_eq!(taken(&rate, Duration::from_secs(5)), 10);
        assert_eq!(taken(&rate, Duration::from_millis(5099)), 0);
        assert_eq!(taken(&rate, Duration::from_millis(5100)), 1);
        assert_eq!(taken(&rate, Duration::from_millis(5400)), 3);
        assert_eq!(taken(&rate, Duration::from_secs(3600)), 10, "no more is saved up");
    }

    #[test]
    fn a_new_connection_brings_no_new_burst() {
        let (rates, principal) = (Rates::default(), Principal::new("tenant", vec![]));
        let now = Duration::from_secs(1);
        assert_eq!(taken(&rates.of(&principal, TEN, now).unwrap(), now), 10);
        for number in 0..1000 {
            rates.of(&Principal::new(&format!("other-{number}"), vec![]), TEN, now).unwrap();
        }
        assert_eq!(taken(&rates.of(&principal, TEN, now).unwrap(), now), 0);
        let kept = rates.0.lock().unwrap().by_principal.len();
        assert!(kept <= PURGE_MIN, "{kept} kept: full buckets that nobody holds are forgotten");
    }

    #[test]
    fn a_debt_of_bytes_is_waited_for_and_bounded() {
        let rate = Rate::new(PerSecond { requests: 0, bytes: 1000 });
        let at = |millis: u64| Duration::from_millis(5000 + millis);
        assert!(rate.take(at(0)));
        rate.charge_bytes(at(0), 3000);
        assert!(!rate.take(at(1999)) && rate.take(at(2001)));
        rate.charge_bytes(at(0), usize::MAX);
        assert!(!rate.take(at(59_999)) && rate.take(at(60_001)));
        assert!(
            Rates::default()
                .of(&Principal::new("a", vec![]), PerSecond::default(), at(0))
                .is_none()
        );
    }
}
