//! Connections that came to nothing, folded per source and reason: the first is recorded at once, the
//! others are counted and recorded now and then. Nobody without a certificate can fill the disk or the
//! memory: how many kinds are told apart in one interval is bounded, and so is the length of a record.
//!
//! Pure: time comes in as an argument.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::event::Event;

/// The most pairs of source and reason that are told apart; beyond, they share one per reason.
/// Reasons come from a fixed set.
const KINDS_MAX: usize = 64;
/// How often counts are recorded.
const FLUSH_EVERY: Duration = Duration::from_secs(10);
/// The most characters of a detail that are kept: a subject and what was said about it.
const DETAIL_CHARS_MAX: usize = 120;

/// Where connections come from, as far as it is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// An IPv4 address.
    Address(Ipv4Addr),
    /// The first 64 bits of an IPv6 address: whoever has one address has all that begin so.
    Network([u16; 4]),
}

/// Counts of refusals since the last flush.
#[derive(Debug, Default)]
pub struct RefusalFold {
    counts: HashMap<(Option<Source>, &'static str), Count>,
    flushed: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    all: u64,
    recorded: u64,
}

impl RefusalFold {
    /// Notes a refusal; the first of its kind in this interval comes back as an event.
    pub fn note(
        &mut self,
        source: IpAddr,
        reason: &'static str,
        detail: &str,
    ) -> Option<Event<'static>> {
        let mut key = (Some(Source::of(source)), reason);
        if !self.counts.contains_key(&key) && self.counts.len() >= KINDS_MAX {
            key = (None, reason);
        }
        let count = self.counts.entry(key).or_default();
        count.all = count.all.saturating_add(1);
        if count.all > 1 {
            return None;
        }
        count.recorded = 1;
        let detail = detail.chars().take(DETAIL_CHARS_MAX).collect();
        Some(Event::ConnectionRefused { source: key.0, reason, detail, count: 1 })
    }

    /// What came after the firsts, once per interval.
    pub fn flush(&mut self, now: Duration) -> Vec<Event<'static>> {
        // A clock that was set back begins a new interval.
        self.flushed = self.flushed.min(now);
        if now.saturating_sub(self.flushed) < FLUSH_EVERY {
            return Vec::new();
        }
        self.flushed = now;
        self.flush_all()
    }

    /// The same at any time: at the end there is no later one.
    pub fn flush_all(&mut self) -> Vec<Event<'static>> {
        let repeated = self.counts.drain().filter(|(_, count)| count.all > count.recorded);
        let event = |((source, reason), count): ((Option<Source>, &'static str), Count)| {
            let detail = "repeated since the first".to_owned();
            let count = count.all.saturating_sub(count.recorded);
            Event::ConnectionRefused { source, reason, detail, count }
        };
        repeated.map(event).collect()
    }

    /// Takes an event back that could not be recorded; it is counted in a later one.
    pub fn give_back(&mut self, event: &Event<'_>) {
        let Event::ConnectionRefused { source, reason, count, .. } = event else {
            return;
        };
        let counted = self.counts.entry((*source, *reason)).or_default();
        if counted.recorded > 0 {
            counted.recorded = 0;
        } else {
            counted.all = counted.all.saturating_add(*count);
        }
    }
}

impl Source {
    fn of(address: IpAddr) -> Self {
        // A listener on [::] shows IPv4 clients as ::ffff:a.b.c.d; by /64 they would all be one.
        match address.to_canonical() {
            IpAddr::V4(address) => Self::Address(address),
            IpAddr::V6(address) => {
                let [first, second, third, fourth, ..] = address.segments();
                Self::Network([first, second, third, fourth])
            }
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::Network([first, second, third, fourth]) => {
                let network = Ipv6Addr::new(*first, *second, *third, *fourth, 0, 0, 0, 0);
                write!(formatter, "{network}/64")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::Record;
    use super::super::line::LineWriter;
    use super::*;
    use crate::chain::LineHash;

    /// As many as there are, see docs/audit-format.md.
    const REASONS: [&str; 11] =
        ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "certificate_refused_"];

    fn counted(events: &[Event<'_>]) -> u64 {
        let count = |event: &Event<'_>| match event {
            Event::ConnectionRefused { count, .. } => *count,
            other => panic!("{other:?}"),
        };
        events.iter().map(count).sum()
    }

    fn address(network: u16, host: u16) -> IpAddr {
        Ipv6Addr::new(0xfedc, 0xba98, 0x7654, 0x8000 | network, 0xffff, 0xffff, 0xffff, host).into()
    }

    #[test]
    fn a_flood_is_a_bounded_number_of_bytes_and_no_count_is_lost() {
        let mut fold = RefusalFold::default();
        let (mut file, mut lines, mut events) = (Vec::new(), LineWriter::default(), Vec::new());
        // Each character of the worst detail takes six bytes.
        let detail = "\u{1}".repeat(1000);
        for second in 0..60_u64 {
            for number in 0..20_000_u16 {
                let reason = REASONS[usize::from(number) % REASONS.len()];
                events.extend(fold.note(address(number, number), reason, &detail));
            }
            events.extend(fold.flush(Duration::from_secs(1_800_000_000 + second)));
            assert!(fold.counts.len() <= KINDS_MAX + REASONS.len());
        }
        events.extend(fold.flush(Duration::from_secs(1_900_000_000)));
        assert_eq!(counted(&events), 60 * 20_000);
        for (sequence, event) in (1..).zip(&events) {
            let time = Duration::from_secs(1_800_000_000);
            lines.write(
                sequence,
                LineHash::ZERO,
                &Record { time, event: event.clone() },
                &mut file,
            );
        }
        assert!(file.len() < 770_000, "{} bytes in a minute", file.len());
    }

    #[test]
    fn sources_are_told_apart_by_ipv4_address_and_by_ipv6_network() {
        let mut fold = RefusalFold::default();
        let mut check = |address: &str, expected: Option<&str>| {
            let event = fold.note(address.parse().unwrap(), "no_certificate", "none");
            let source = event.map(|event| match event {
                Event::ConnectionRefused { source, .. } => source.unwrap().to_string(),
                other => panic!("{other:?}"),
            });
            assert_eq!(source.as_deref(), expected, "{address}");
        };
        check("10.0.0.1", Some("10.0.0.1"));
        check("::ffff:10.0.0.1", None);
        check("::ffff:10.0.0.2", Some("10.0.0.2"));
        check("2001:db8:1:2:3::4", Some("2001:db8:1:2::/64"));
        check("2001:db8:1:2:ffff::", None);
        check("2001:db8:1:3::", Some("2001:db8:1:3::/64"));
    }

    #[test]
    fn what_finds_no_room_is_counted_later() {
        let mut fold = RefusalFold::default();
        let first = fold.note(address(1, 1), "a", "").unwrap();
        assert!(fold.note(address(1, 2), "a", "").is_none());
        fold.give_back(&first);
        let events = fold.flush(Duration::from_secs(20));
        assert_eq!(counted(&events), 2);
        fold.give_back(&events[0]);
        assert!(fold.note(address(1, 3), "a", "").is_none());
        assert_eq!(counted(&fold.flush(Duration::from_secs(40))), 3);
    }

    #[test]
    fn a_clock_that_was_set_back_holds_nothing_up() {
        let mut fold = RefusalFold::default();
        assert!(fold.flush(Duration::from_secs(5000)).is_empty());
        fold.note(address(1, 1), "a", "");
        fold.note(address(1, 1), "a", "");
        assert!(fold.flush(Duration::from_secs(1000)).is_empty());
        assert_eq!(counted(&fold.flush(Duration::from_secs(1010))), 1);
    }
}
