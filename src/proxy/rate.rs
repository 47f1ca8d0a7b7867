//! Requests per second of each principal, over all cores: one atomic each, no lock once a
//! connection is open, nothing for a principal without a rate.
//!
//! It reads no clock: time comes in as an argument.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::identity::Principal;

/// A full second may come at once; then it is evenly one after another.
const BURST: Duration = Duration::from_secs(1);

/// A token bucket, written as the time at which it will be full again.
#[derive(Debug)]
pub(super) struct Rate {
    full_at_nanos: AtomicU64,
    nanos_per_request: u64,
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
    pub(super) fn of(&self, principal: &Principal, per_second: u32, now: Duration) -> Arc<Rate> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rate) = buckets.by_principal.get(principal) {
            return Arc::clone(rate);
        }
        if buckets.by_principal.len() >= buckets.purge_at.max(PURGE_MIN) {
            let in_use = |rate: &Arc<Rate>| Arc::strong_count(rate) > 1 || !rate.is_full(now);
            buckets.by_principal.retain(|_, rate| in_use(rate));
            buckets.purge_at = 2 * buckets.by_principal.len();
        }
        let rate = Arc::new(Rate::new(per_second));
        buckets.by_principal.insert(principal.clone(), Arc::clone(&rate));
        rate
    }
}

impl Rate {
    fn new(per_second: u32) -> Self {
        let nanos_per_request = nanos(BURST) / u64::from(per_second.max(1));
        Self { full_at_nanos: AtomicU64::new(0), nanos_per_request }
    }

    /// Takes one request out; false when there is none left. A refused one takes nothing.
    pub(super) fn take(&self, now: Duration) -> bool {
        let now = nanos(now);
        let step = |full_at: u64| {
            let next = full_at.max(now).saturating_add(self.nanos_per_request);
            (next <= now.saturating_add(nanos(BURST))).then_some(next)
        };
        self.full_at_nanos.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).is_ok()
    }

    fn is_full(&self, now: Duration) -> bool {
        self.full_at_nanos.load(Ordering::Relaxed) <= nanos(now)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(rate: &Rate, now: Duration) -> usize {
        (0..1000).filter(|_| rate.take(now)).count()
    }

    #[test]
    fn a_bucket_gives_a_second_at_once_and_then_evenly() {
        let rate = Rate::new(10);
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
        assert_eq!(taken(&rates.of(&principal, 10, now), now), 10);
        for number in 0..1000 {
            rates.of(&Principal::new(&format!("other-{number}"), vec![]), 10, now);
        }
        assert_eq!(taken(&rates.of(&principal, 10, now), now), 0);
        let kept = rates.0.lock().unwrap().by_principal.len();
        assert!(kept <= PURGE_MIN, "{kept} kept: full buckets that nobody holds are forgotten");
    }
}
