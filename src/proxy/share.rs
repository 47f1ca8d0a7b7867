//! What one principal uses of a core at a time, so that no tenant takes what others need.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::identity::Principal;

/// Shares by principal; one that nobody holds any more is forgotten.
#[derive(Debug, Default)]
pub struct Shares(HashMap<Principal, Weak<Share>>);

/// Replies of one principal that are taken in whole at a time, per core; others wait.
const WHOLE_REPLIES: usize = 8;

/// One principal's use.
#[derive(Debug)]
pub(super) struct Share {
    /// Open streams, whatever becomes of them; each has a task and so some memory.
    streams: Cell<u32>,
    calls: Cell<u32>,
    /// Calls that may take as long as they like; apart, so that neither kind takes the other's places.
    open_ended_calls: Cell<u32>,
    pages: Cell<u32>,
    request_bytes: Cell<usize>,
    watches: Cell<u32>,
    /// Of the keys of watches, which are kept to be judged again.
    watch_key_bytes: Cell<usize>,
    whole_replies: Semaphore,
}

impl Default for Share {
    fn default() -> Self {
        Self {
            streams: Cell::default(),
            calls: Cell::default(),
            open_ended_calls: Cell::default(),
            pages: Cell::default(),
            request_bytes: Cell::default(),
            watches: Cell::default(),
            watch_key_bytes: Cell::default(),
            whole_replies: Semaphore::new(WHOLE_REPLIES),
        }
    }
}

/// The watches of one stream that count; given up when dropped.
#[derive(Debug)]
pub(super) struct WatchShare {
    share: Rc<Share>,
    watches: u32,
    key_bytes: usize,
}

impl WatchShare {
    pub(super) fn new(share: &Rc<Share>) -> Self {
        Self { share: Rc::clone(share), watches: 0, key_bytes: 0 }
    }

    /// Counts one more, with so many bytes of keys that are kept; false when the principal has too many of either.
    pub(super) fn add(&mut self, key_bytes: usize, watches_max: u32, bytes_max: usize) -> bool {
        let all = self.share.watches.get();
        let all_bytes = self.share.watch_key_bytes.get().saturating_add(key_bytes);
        let fits = all < watches_max && all_bytes <= bytes_max;
        if fits {
            self.share.watches.set(all + 1);
            self.share.watch_key_bytes.set(all_bytes);
            self.watches += 1;
            self.key_bytes += key_bytes;
        }
        fits
    }

    /// etcd has ended one, with so many bytes.
    pub(super) fn remove(&mut self, key_bytes: usize) {
        if let Some(left) = self.watches.checked_sub(1) {
            self.watches = left;
            self.share.watches.set(self.share.watches.get().saturating_sub(1));
        }
        let bytes = key_bytes.min(self.key_bytes);
        self.key_bytes -= bytes;
        let all = self.share.watch_key_bytes.get();
        self.share.watch_key_bytes.set(all.saturating_sub(bytes));
    }
}

impl Drop for WatchShare {
    fn drop(&mut self) {
        let watches = &self.share.watches;
        watches.set(watches.get().saturating_sub(self.watches));
        let bytes = &self.share.watch_key_bytes;
        bytes.set(bytes.get().saturating_sub(self.key_bytes));
    }
}

/// A stream that counts; given up when dropped.
#[derive(Debug)]
pub(super) struct StreamShare(Rc<Share>);

/// A call that counts; given up when dropped.
#[derive(Debug)]
pub(super) struct CallShare {
    share: Rc<Share>,
    open_ended: bool,
    bytes: usize,
    is_page: bool,
}

impl Shares {
    pub(super) fn of(&mut self, principal: &Principal) -> Rc<Share> {
        if let Some(share) = self.0.get(principal).and_then(Weak::upgrade) {
            return share;
        }
        self.0.retain(|_, share| share.strong_count() > 0);
        let share = Rc::new(Share::default());
        self.0.insert(principal.clone(), Rc::downgrade(&share));
        share
    }
}

impl Share {
    /// Takes a place for a stream, if there is one.
    pub(super) fn stream(self: &Rc<Self>, streams_max: u32) -> Option<StreamShare> {
        let streams = self.streams.get();
        (streams < streams_max).then(|| {
            self.streams.set(streams + 1);
            StreamShare(Rc::clone(self))
        })
    }

    /// Takes a place for a call that ends soon, if there is one.
    pub(super) fn call(self: &Rc<Self>, calls_max: u32) -> Option<CallShare> {
        self.take(false, calls_max)
    }

    /// Takes a place for a call that may take as long as it likes, if there is one.
    pub(super) fn open_ended_call(self: &Rc<Self>, calls_max: u32) -> Option<CallShare> {
        self.take(true, calls_max)
    }

    /// Waits for the place of a reply that is taken in whole.
    pub(super) async fn whole_reply(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.whole_replies.acquire().await.ok()
    }

    const fn counter(&self, open_ended: bool) -> &Cell<u32> {
        if open_ended { &self.open_ended_calls } else { &self.calls }
    }

    fn take(self: &Rc<Self>, open_ended: bool, calls_max: u32) -> Option<CallShare> {
        let counter = self.counter(open_ended);
        let calls = counter.get();
        (calls < calls_max).then(|| {
            counter.set(calls + 1);
            CallShare { share: Rc::clone(self), open_ended, bytes: 0, is_page: false }
        })
    }
}

impl CallShare {
    /// Counts the call among the principal's pages too; false when it has too many under way.
    pub(super) fn add_page(&mut self, pages_max: u32) -> bool {
        let pages = self.share.pages.get();
        if self.is_page || pages >= pages_max {
            return false;
        }
        self.share.pages.set(pages + 1);
        self.is_page = true;
        true
    }

    /// Counts bytes of the call's message; false when the principal has too many in memory.
    pub(super) fn add_bytes(&mut self, bytes: usize, bytes_max: usize) -> bool {
        let total = self.share.request_bytes.get().saturating_add(bytes);
        if total > bytes_max {
            return false;
        }
        self.share.request_bytes.set(total);
        self.bytes += bytes;
        true
    }

    /// Counts so many bytes for the call from now on, instead of those before; false when the
    /// principal has too many in memory.
    pub(super) fn hold_bytes(&mut self, bytes: usize, bytes_max: usize) -> bool {
        let total = self.share.request_bytes.get().saturating_sub(self.bytes).saturating_add(bytes);
        if total > bytes_max {
            return false;
        }
        self.share.request_bytes.set(total);
        self.bytes = bytes;
        true
    }
}

impl Drop for StreamShare {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get().saturating_sub(1));
    }
}

impl Drop for CallShare {
    fn drop(&mut self) {
        let share = &self.share;
        let counter = share.counter(self.open_ended);
        counter.set(counter.get().saturating_sub(1));
        share.pages.set(share.pages.get().saturating_sub(u32::from(self.is_page)));
        share.request_bytes.set(share.request_bytes.get().saturating_sub(self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_principal_has_its_share_on_all_its_connections_and_no_more() {
        let mut shares = Shares::default();
        let principal = Principal::new("tenant", vec![]);
        let (one, other) = (shares.of(&principal), shares.of(&principal));
        let mut first = one.call(2).unwrap();
        let second = other.call(2).unwrap();
        assert!(one.call(2).is_none());
        let stream = one.stream(1).unwrap();
        assert!(other.stream(1).is_none());
        drop(stream);
        assert!(other.stream(1).is_some());
        assert!(first.add_bytes(6, 10) && !first.add_bytes(5, 10));
        assert!(first.add_page(1));
        drop((first, second));
        let mut third = one.call(2).unwrap();
        assert!(third.add_bytes(10, 10));
        let mut fourth = other.call(2).unwrap();
        assert!(third.add_page(1) && !fourth.add_page(1));
        drop(fourth);
        let neighbour = shares.of(&Principal::new("neighbour", vec![]));
        assert!(neighbour.call(1).is_some());
        drop((one, other, third, neighbour));
        shares.of(&Principal::new("last", vec![]));
        assert_eq!(shares.0.len(), 1, "shares that nobody holds are forgotten");
    }
}
