//! What waits for a sink: whole batches of lines, bounded in bytes; what finds no room is counted.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The most bytes of lines that are sent together, but for the last batch.
const SEND_BYTES_MAX: usize = 1 << 20;

/// Whole lines, each with its newline.
#[derive(Debug, Default)]
pub struct Batch {
    /// The lines.
    pub lines: Vec<u8>,
    /// How many.
    pub records: u64,
}

/// A required sink has not taken what it was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Silent(String);

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Arc<Batch>>,
    bytes: usize,
    /// Records that were taken out and not confirmed yet.
    on_the_way: u64,
    taken: u64,
    lost: u64,
    /// How many of the lost were told.
    told: u64,
    failing: Option<String>,
    closing: bool,
}

impl Queue {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), bytes_max }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, batch: &Arc<Batch>) {
        let mut state = self.lock();
        if state.bytes.saturating_add(batch.lines.len()) > self.bytes_max || state.closing {
            state.lost += batch.records;
            return;
        }
        state.bytes += batch.lines.len();
        state.waiting.push_back(Arc::clone(batch));
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for batches and takes some of them; `None` when no more will come.
    pub(super) fn next(&self) -> Option<Vec<Arc<Batch>>> {
        let nothing = |state: &mut State| state.waiting.is_empty() && !state.closing;
        let waited = self.changed.wait_while(self.lock(), nothing);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        let (mut batches, mut bytes) = (Vec::new(), 0);
        while bytes < SEND_BYTES_MAX
            && let Some(batch) = state.waiting.pop_front()
        {
            bytes += batch.lines.len();
            state.on_the_way += batch.records;
            batches.push(batch);
        }
        (!batches.is_empty()).then_some(batches)
    }

    /// What was taken out has arrived, but for so many lines that the other side will never take.
    pub(super) fn confirm(&self, batches: &[Arc<Batch>], refused: u64) {
        let mut state = self.lock();
        let bytes: usize = batches.iter().map(|batch| batch.lines.len()).sum();
        state.bytes = state.bytes.saturating_sub(bytes);
        let refused = refused.min(state.on_the_way);
        state.taken += state.on_the_way - refused;
        state.lost += refused;
        state.on_the_way = 0;
        state.failing = None;
        drop(state);
        self.changed.notify_all();
    }

    /// Notes why nothing arrives; true when that is news.
    pub(super) fn fail(&self, why: String) -> bool {
        self.lock().failing.replace(why).is_none()
    }

    pub(super) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.changed.notify_all();
    }

    /// Counts all that has not arrived as lost; how many that is.
    pub(super) fn give_up(&self) -> u64 {
        let mut state = self.lock();
        let waiting: u64 = state.waiting.drain(..).map(|batch| batch.records).sum();
        let lost = waiting + std::mem::take(&mut state.on_the_way);
        state.lost += lost;
        lost
    }

    pub(super) fn wait_until_taken(&self, deadline: Duration) -> Result<(), Silent> {
        let not_yet = |state: &mut State| !state.waiting.is_empty() || state.on_the_way > 0;
        let waited = self.changed.wait_timeout_while(self.lock(), deadline, not_yet);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if !timeout.timed_out() {
            return Ok(());
        }
        let silent = || format!("it has not answered for {} seconds", deadline.as_secs());
        Err(Silent(state.failing.clone().unwrap_or_else(silent)))
    }

    pub(super) fn take_lost(&self) -> u64 {
        let mut state = self.lock();
        let lost = state.lost - state.told;
        state.told = state.lost;
        lost
    }

    pub(super) fn counts(&self) -> (u64, u64) {
        let state = self.lock();
        (state.taken, state.lost)
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.lock().failing.clone()
    }

    /// Waits, but not when the end comes.
    pub(super) fn rest(&self, time: Duration) {
        let open = |state: &mut State| !state.closing;
        drop(self.changed.wait_timeout_while(self.lock(), time, open));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(lines: &str) -> Arc<Batch> {
        let records = lines.matches('\n').count() as u64;
        Arc::new(Batch { lines: lines.as_bytes().to_vec(), records })
    }

    #[test]
    fn what_finds_no_room_is_lost_and_counted_once() {
        let queue = Queue::new(8);
        queue.push(&batch("aa\nbb\n"));
        queue.push(&batch("cc\ndd\n"));
        assert_eq!((queue.take_lost(), queue.take_lost()), (2, 0));
        let taken = queue.next().unwrap();
        // It has room only when what it holds has arrived.
        queue.push(&batch("cc\n"));
        assert_eq!(queue.take_lost(), 1);
        queue.confirm(&taken, 0);
        queue.push(&batch("cc\n"));
        assert_eq!((queue.take_lost(), queue.counts()), (0, (2, 3)));
    }

    #[test]
    fn a_required_sink_is_waited_for_until_its_deadline() {
        let queue = Queue::new(usize::MAX);
        assert_eq!(queue.wait_until_taken(Duration::ZERO), Ok(()));
        queue.push(&batch("aa\n"));
        let silent = Silent("it has not answered for 0 seconds".to_owned());
        assert_eq!(queue.wait_until_taken(Duration::from_millis(1)), Err(silent));
        let taken = queue.next().unwrap();
        assert!(queue.fail("connection refused".to_owned()));
        assert!(!queue.fail("connection refused".to_owned()));
        let silent = Silent("connection refused".to_owned());
        assert_eq!(queue.wait_until_taken(Duration::from_millis(1)), Err(silent));
        queue.confirm(&taken, 0);
        assert_eq!((queue.wait_until_taken(Duration::ZERO), queue.failure()), (Ok(()), None));
    }

    #[test]
    fn at_the_end_what_did_not_arrive_is_counted() {
        let queue = Queue::new(usize::MAX);
        queue.push(&batch("aa\n"));
        queue.push(&batch("bb\ncc\n"));
        queue.close();
        queue.push(&batch("dd\n"));
        assert_eq!(queue.next().unwrap().len(), 2);
        assert!(queue.next().is_none());
        assert_eq!((queue.give_up(), queue.counts()), (3, (0, 4)));
    }
}
