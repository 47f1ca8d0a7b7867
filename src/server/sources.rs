//! How many connections each source address has. Only the accepting thread counts; a connection that
//! ends anywhere gives its place back by being dropped, without a lock.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};

/// Below this many sources nobody looks for those that are gone.
const SWEEP_MIN: usize = 1024;

/// What counts as one source: an IPv4 address, or an IPv6 network of the size that one customer gets,
/// because whoever has one address of it has all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Address([u8; 4]),
    /// The upper 64 bits.
    Network([u16; 4]),
}

/// A place among the connections of a source; given back when dropped.
#[derive(Debug)]
pub(super) struct SourceSlot {
    /// Counted, never read.
    _place: Arc<()>,
}

/// The places that are taken.
#[derive(Debug)]
pub(super) struct Sources {
    per_source_max: usize,
    places: HashMap<Source, Weak<()>>,
    /// With so many sources it is time to forget those without connections.
    sweep_at: usize,
}

impl Sources {
    pub(super) fn new(per_source_max: usize) -> Self {
        Self { per_source_max, places: HashMap::new(), sweep_at: SWEEP_MIN }
    }

    /// Takes a place; `None` when the source has all that it may.
    pub(super) fn take(&mut self, address: IpAddr) -> Option<SourceSlot> {
        if self.places.len() >= self.sweep_at {
            self.places.retain(|_, places| places.strong_count() > 0);
            // Twice what is left: a sweep is paid for by as many new sources as it looks at.
            self.sweep_at = SWEEP_MIN.max(self.places.len().saturating_mul(2));
        }
        let places = self.places.entry(source_of(address)).or_default();
        if places.strong_count() >= self.per_source_max {
            return None;
        }
        let place = places.upgrade().unwrap_or_else(|| {
            let place = Arc::new(());
            *places = Arc::downgrade(&place);
            place
        });
        Some(SourceSlot { _place: place })
    }
}

/// An IPv4 client of a socket that listens on IPv6 is an IPv4 client.
fn source_of(address: IpAddr) -> Source {
    match address.to_canonical() {
        IpAddr::V4(address) => Source::Address(address.octets()),
        IpAddr::V6(address) => {
            let [first, second, third, fourth, ..] = address.segments();
            Source::Network([first, second, third, fourth])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(taken: &[&str], next: &str, expected: bool) {
        let mut sources = Sources::new(2);
        let slots: Vec<_> =
            taken.iter().map(|address| sources.take(address.parse().unwrap())).collect();
        assert!(slots.iter().all(Option::is_some), "{taken:?}");
        assert_eq!(sources.take(next.parse().unwrap()).is_some(), expected, "{taken:?} {next}");
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_network() {
        check(&["10.0.0.1"], "10.0.0.1", true);
        check(&["10.0.0.1", "10.0.0.1"], "10.0.0.1", false);
        check(&["10.0.0.1", "10.0.0.1"], "10.0.0.2", true);
        check(&["10.0.0.1", "::ffff:10.0.0.1"], "10.0.0.1", false);
        check(&["::ffff:10.0.0.1", "::ffff:10.0.0.1"], "::ffff:10.0.0.2", true);
        check(&["2001:db8:0:1::1", "2001:db8:0:1:ffff::2"], "2001:db8:0:1::3", false);
        check(&["2001:db8:0:1::1", "2001:db8:0:1::2"], "2001:db8:0:2::1", true);
    }

    #[test]
    fn a_place_that_is_dropped_is_free_and_sources_are_forgotten() {
        let mut sources = Sources::new(1);
        let kept = sources.take(IpAddr::from([127, 0, 0, 1]));
        for number in 0..100_000_u32 {
            assert!(sources.take(IpAddr::from(number.to_be_bytes())).is_some(), "{number}");
            assert!(sources.places.len() <= SWEEP_MIN);
        }
        assert!(kept.is_some());
        assert!(sources.take(IpAddr::from([127, 0, 0, 1])).is_none(), "a sweep forgets the living");
        drop(kept);
        assert!(sources.take(IpAddr::from([127, 0, 0, 1])).is_some());
    }
}
