//! Room for records that wait to be written, and who may take how much of it.
//!
//! A principal may hold a quarter of what it leaves free. One alone gets a fifth; however many take
//! all they can, each leaves four times what it holds, so that another finds some. A fixed part for
//! each would have to be tiny to be safe, or could be used up by a few.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Room is counted in units of bytes.
const UNIT_BYTES: usize = 256;
/// Whoever holds one part must leave so many.
const PARTS_LEFT: usize = 4;

/// Room, with the part that one principal holds of it; made anew for each principal.
#[derive(Debug)]
pub(super) struct QueueShare {
    free: Arc<AtomicUsize>,
    all: usize,
    held: AtomicUsize,
}

/// Room that is taken; free again when dropped.
#[derive(Debug)]
pub(super) struct Taken<'s> {
    share: &'s Arc<QueueShare>,
    units: usize,
}

/// The room of records that wait together; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    share: Arc<QueueShare>,
    units: usize,
}

/// How many units that many bytes are.
pub(super) const fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT_BYTES)
}

impl QueueShare {
    /// The share of one, of so many bytes that are for it and others.
    pub(super) fn new(bytes: usize) -> Self {
        let all = units(bytes);
        Self { free: Arc::new(AtomicUsize::new(all)), all, held: AtomicUsize::new(0) }
    }

    /// Another's share of the same room.
    pub(super) fn beside(&self) -> Self {
        Self { free: Arc::clone(&self.free), all: self.all, held: AtomicUsize::new(0) }
    }

    /// Takes so many units and then `more`, or nothing. One record never counts for more than an
    /// eighth of the room, so that the largest has its turn in the smallest queue.
    pub(super) fn take(self: &Arc<Self>, units: usize, more: usize) -> Option<Taken<'_>> {
        let units = units.min(self.all / 8) + more;
        // Sequential: whoever finds no room and then waits must be seen by whoever frees some.
        let held = self.held.fetch_add(units, Ordering::SeqCst) + units;
        let taken = self.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |free| {
            free.checked_sub(units).filter(|left| left / PARTS_LEFT >= held)
        });
        if taken.is_ok() {
            return Some(Taken { share: self, units });
        }
        self.held.fetch_sub(units, Ordering::SeqCst);
        None
    }

    fn give_back(&self, units: usize) {
        if units > 0 {
            self.held.fetch_sub(units, Ordering::SeqCst);
            self.free.fetch_add(units, Ordering::SeqCst);
        }
    }

    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.free.load(Ordering::SeqCst)
    }
}

impl<'s> Taken<'s> {
    /// What is still taken of a share.
    pub(super) const fn again(share: &'s Arc<QueueShare>, units: usize) -> Self {
        Self { share, units }
    }

    /// Parts so many units off.
    pub(super) fn split(&mut self, units: usize) -> Self {
        let units = units.min(self.units);
        self.units -= units;
        Self { share: self.share, units }
    }

    /// How many units; whoever asks gives them back.
    pub(super) fn into_units(mut self) -> usize {
        std::mem::take(&mut self.units)
    }
}

/// How many of the last places are looked at for one of the same share.
const LOOKED_AT: usize = 8;

/// Adds room to that which is freed together: counters that all cores change are dear to touch.
pub(super) fn put_together(places: &mut Vec<Place>, taken: Taken<'_>) {
    let same = |other: &&mut Place| Arc::ptr_eq(&other.share, taken.share);
    if let Some(other) = places.iter_mut().rev().take(LOOKED_AT).find(same) {
        other.units += taken.into_units();
    } else {
        let share = Arc::clone(taken.share);
        places.push(Place { share, units: taken.into_units() });
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.share.give_back(self.units);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.share.give_back(self.units);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(share: &Arc<QueueShare>) -> Vec<Taken<'_>> {
        std::iter::from_fn(|| share.take(1, 0)).collect()
    }

    #[test]
    fn whoever_comes_finds_a_fifth_of_what_the_others_left() {
        let first = Arc::new(QueueShare::new(4000 * UNIT_BYTES));
        let mut held = vec![fill(&first)];
        assert_eq!(held[0].len(), 800, "one alone gets a fifth");
        for _ in 0..15 {
            let left = first.free();
            // Leaked: what is held borrows it.
            let found = fill(Box::leak(Box::new(Arc::new(first.beside()))));
            assert_eq!(found.len(), left / 5);
            held.push(found);
        }
        assert!(first.free() > 100, "sixteen that take all they can leave room");
        assert!(first.take(1, 0).is_none(), "but not for one that holds so much");
        drop(held);
        assert_eq!(first.free(), 4000);
        assert_eq!(fill(&first).len(), 800);
    }

    /// The attack on the queue: room that nobody gives back.
    #[test]
    fn places_that_are_put_together_free_all_their_room() {
        let room = Arc::new(QueueShare::new(4000 * UNIT_BYTES));
        let shares: Vec<_> = (0..LOOKED_AT + 2).map(|_| Arc::new(room.beside())).collect();
        let mut places = Vec::new();
        for _ in 0..3 {
            for share in &shares {
                put_together(&mut places, share.take(2, 1).unwrap());
            }
            for share in shares.iter().take(2) {
                put_together(&mut places, share.take(1, 0).unwrap());
                put_together(&mut places, share.take(1, 0).unwrap());
            }
        }
        assert_eq!(room.free(), 4000 - 3 * (3 * shares.len() + 4));
        assert!(places.len() < 3 * (shares.len() + 4));
        drop(places);
        assert_eq!(room.free(), 4000);
        assert!(shares.iter().all(|share| share.held.load(Ordering::SeqCst) == 0));
    }

    #[test]
    fn a_record_of_any_size_has_its_turn_and_splits() {
        let share = Arc::new(QueueShare::new(256 * UNIT_BYTES));
        let mut place = share.take(usize::MAX, 2).unwrap();
        assert_eq!(share.free(), 256 - 32 - 2);
        let outcome = place.split(2);
        drop(place);
        assert_eq!(share.free(), 254);
        drop(outcome);
        assert_eq!(share.free(), 256);
        let all = fill(&share);
        assert!(share.take(1, 0).is_none() && all.len() == 51);
        drop(all);
        assert_eq!(share.free(), 256);
    }
}
