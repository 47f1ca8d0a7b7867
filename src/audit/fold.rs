//! Refused connections, folded per source and reason: the first is recorded at once, the others are
//! counted and recorded now and then. Nobody without a certificate can fill the disk.
//!
//! Pure: time comes in as an argument.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use super::event::Event;

/// The most sources that are told apart; beyond, they share one line per reason.
const SOURCES_MAX: usize = 256;
/// How often counts are recorded.
const FLUSH_EVERY: Duration = Duration::from_secs(10);
/// The most characters of a detail that are kept: a subject and what was said about it.
const DETAIL_CHARS_MAX: usize = 200;

/// Counts of refusals since the last flush.
#[derive(Debug, Default)]
pub struct RefusalFold {
    counts: HashMap<(Option<IpAddr>, &'static str), u64>,
    flushed: Duration,
}

impl RefusalFold {
    /// Notes a refusal; the first of its kind in this interval comes back as an event.
    pub fn note(&mut self, source: IpAddr, reason: &'static str, detail: &str) -> Option<Event> {
        let mut key = (Some(source), reason);
        if !self.counts.contains_key(&key) && self.counts.len() >= SOURCES_MAX {
            key = (None, reason);
        }
        let count = self.counts.entry(key).or_default();
        *count += 1;
        let first = *count == 1;
        let detail: String = detail.chars().take(DETAIL_CHARS_MAX).collect();
        first.then_some(Event::ConnectionRefused { source: key.0, reason, detail, count: 1 })
    }

    /// What came after the firsts, once per interval.
    pub fn flush(&mut self, now: Duration) -> Vec<Event> {
        if now.saturating_sub(self.flushed) < FLUSH_EVERY {
            return Vec::new();
        }
        self.flushed = now;
        let repeated = self.counts.drain().filter(|(_, count)| *count > 1);
        let event = |((source, reason), count): ((Option<IpAddr>, &'static str), u64)| {
            let detail = "repeated since the first".to_owned();
            Event::ConnectionRefused { source, reason, detail, count: count - 1 }
        };
        repeated.map(event).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_a_line_and_a_count() {
        let mut fold = RefusalFold::default();
        let source = IpAddr::from([127, 0, 0, 1]);
        let mut events = 0;
        for _ in 0..10_000 {
            events += usize::from(fold.note(source, "no_certificate", "none").is_some());
        }
        for last in 0..=255_u8 {
            for next in 0..=3_u8 {
                let source = IpAddr::from([10, 0, next, last]);
                events += usize::from(fold.note(source, "no_certificate", "none").is_some());
            }
        }
        assert_eq!(events, SOURCES_MAX + 1, "one for each source told apart, one for the others");
        let flushed = fold.flush(Duration::from_secs(20));
        let total: u64 = flushed
            .iter()
            .map(|event| match event {
                Event::ConnectionRefused { count, .. } => *count,
                other => panic!("{other:?}"),
            })
            .sum();
        assert_eq!(total + events as u64, 11_024);
        assert!(fold.flush(Duration::from_secs(21)).is_empty());
    }
}
