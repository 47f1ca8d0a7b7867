//! What waits for a sink: whole lines in batches, bounded in bytes where the sink is not required; what finds no room
//! is counted.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::line::shortened;
use crate::chain::head;

/// The most bytes of lines that are sent together, but for one line that is longer: a request of it is small enough
/// for any collector, and has a deadline of its own.
pub const BATCH_BYTES_MAX: usize = 128 * 1024;

/// Whole lines, each with its newline.
#[derive(Debug, Default)]
pub struct Batch {
    /// The lines.
    pub lines: Vec<u8>,
    /// How many.
    pub records: u64,
    /// Bytes of the longest.
    longest: usize,
    /// How many stand for longer ones of the file.
    shortened: u64,
}

impl Batch {
    /// Adds a line with its newline.
    pub fn push(&mut self, line: &[u8]) {
        self.lines.extend_from_slice(line);
        self.records += 1;
        self.longest = self.longest.max(line.len().saturating_sub(1));
    }

    /// The same with no line longer than `most` that a client had a part in: nobody's must take the place of others' in
    /// a queue.
    pub(super) fn shortened(self: &Arc<Self>, most: usize) -> Arc<Self> {
        if self.longest <= most {
            return Arc::clone(self);
        }
        let mut batch = Self::default();
        for line in self.lines() {
            let short = shortened(line, most);
            batch.shortened += u64::from(short.len() < line.len());
            batch.lines.extend_from_slice(&short);
            batch.push(b"\n");
            batch.longest = batch.longest.max(short.len());
        }
        Arc::new(batch)
    }

    /// The lines, without their newlines.
    pub(super) fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
    }

    /// The numbers of its first and its last record.
    fn span(&self) -> Option<(u64, u64)> {
        let number = |line: &[u8]| head(line).map(|head| head.sequence);
        let first = self.lines().next().and_then(number)?;
        Some((first, self.lines().last().and_then(number).unwrap_or(first)))
    }
}

/// Records that a sink never got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// How many.
    pub records: u64,
    /// Between these two of the chain.
    pub span: Option<(u64, u64)>,
}

impl Lost {
    fn add(&mut self, batch: &Batch) {
        self.records += batch.records;
        self.span = match (self.span, batch.span()) {
            (Some((first, _)), Some((_, last))) => Some((first, last)),
            (span, of_batch) => span.or(of_batch),
        };
    }
}

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
    /// Of those, how many were said shorter.
    shortened: u64,
    lost: u64,
    /// Those of the lost that were not told yet.
    untold: Lost,
    failing: Option<String>,
    closing: bool,
    ends: Option<Instant>,
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
        // An empty one takes anything: what is longer than its bound would else never get through.
        let fits = state.bytes == 0 || state.bytes + batch.lines.len() <= self.bytes_max;
        if !fits || state.closing {
            state.lost += batch.records;
            state.untold.add(batch);
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
        while let Some(batch) = state.waiting.front()
            && (batches.is_empty() || bytes + batch.lines.len() <= BATCH_BYTES_MAX)
        {
            bytes += batch.lines.len();
            state.on_the_way += batch.records;
            batches.extend(state.waiting.pop_front());
        }
        (!batches.is_empty()).then_some(batches)
    }

    /// What was taken out has arrived, but for so many lines for which stubs did.
    pub(super) fn confirm(&self, batches: &[Arc<Batch>], stubs: u64) {
        let mut state = self.lock();
        let bytes: usize = batches.iter().map(|batch| batch.lines.len()).sum();
        state.bytes = state.bytes.saturating_sub(bytes);
        state.taken += std::mem::take(&mut state.on_the_way);
        state.shortened += stubs + batches.iter().map(|batch| batch.shortened).sum::<u64>();
        state.failing = None;
        drop(state);
        self.changed.notify_all();
    }

    /// Notes why nothing arrives; true when that is news.
    pub(super) fn fail(&self, why: String) -> bool {
        self.lock().failing.replace(why).is_none()
    }

    /// No more lines come; those that wait have so long.
    pub(super) fn close(&self, patience: Duration) {
        let mut state = self.lock();
        state.closing = true;
        state.ends = Some(Instant::now() + patience);
        drop(state);
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

    /// What was lost since this was last asked.
    pub(super) fn take_lost(&self) -> Lost {
        std::mem::take(&mut self.lock().untold)
    }

    /// Records that arrived.
    pub(super) fn taken(&self) -> u64 {
        self.lock().taken
    }

    /// Records that arrived, those among them that were shortened, and those that were lost.
    pub(super) fn counts(&self) -> [u64; 3] {
        let state = self.lock();
        [state.taken, state.shortened, state.lost]
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.lock().failing.clone()
    }

    /// Waits after a failure; false when there is no time for another try.
    pub(super) fn rest(&self, time: Duration) -> bool {
        let was_closing = self.lock().closing;
        // The end is worth a try at once.
        let goes_on = |state: &mut State| was_closing || !state.closing;
        let waited = self.changed.wait_timeout_while(self.lock(), time, goes_on);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.ends.is_none_or(|ends| Instant::now() < ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(first: u64, records: u64) -> Arc<Batch> {
        let line = |seq| format!("{{\"v\":1,\"seq\":{seq},\"time\":\"t\",\"type\":\"k\"}}\n");
        let lines: String = (first..first + records).map(line).collect();
        Arc::new(Batch { lines: lines.into_bytes(), records, ..Batch::default() })
    }

    /// The attack: a record of megabytes fills the queue of a sink, and others' find no room.
    #[test]
    fn a_long_line_takes_no_more_room_than_a_short_one() {
        let mut batch = Batch::default();
        let long = format!(
            "{{\"v\":1,\"seq\":1,\"time\":\"t\",\"type\":\"decision\",\"touches\":\"{}\"}}\n",
            "k".repeat(1 << 20)
        );
        batch.push(long.as_bytes());
        batch.push(b"{\"v\":1,\"seq\":2,\"time\":\"t\",\"type\":\"outcome\"}\n");
        let short = Arc::new(batch).shortened(8000);
        assert!(short.lines.len() < 400, "{}", short.lines.len());
        assert_eq!((short.records, short.shortened, short.span()), (2, 1, Some((1, 2))));
        assert!(Arc::ptr_eq(&short, &short.shortened(8000)), "nothing is done twice");
    }

    #[test]
    fn what_finds_no_room_is_lost_and_told_once_with_its_place() {
        let queue = Queue::new(2 * batch(1, 1).lines.len());
        queue.push(&batch(1, 2));
        queue.push(&batch(3, 2));
        queue.push(&batch(5, 1));
        assert_eq!(queue.take_lost(), Lost { records: 3, span: Some((3, 5)) });
        assert_eq!(queue.take_lost(), Lost::default());
        let taken = queue.next().unwrap();
        // It has room only when what it holds has arrived.
        queue.push(&batch(6, 1));
        assert_eq!(queue.take_lost(), Lost { records: 1, span: Some((6, 6)) });
        queue.confirm(&taken, 1);
        queue.push(&batch(7, 1));
        assert_eq!((queue.take_lost(), queue.counts()), (Lost::default(), [2, 1, 4]));
    }

    #[test]
    fn batches_go_together_as_far_as_a_request_may_be_long() {
        let queue = Queue::new(usize::MAX);
        let large =
            |bytes| Arc::new(Batch { lines: vec![b'x'; bytes], records: 1, ..Batch::default() });
        for bytes in [BATCH_BYTES_MAX / 2, BATCH_BYTES_MAX / 2, 1, 2 * BATCH_BYTES_MAX, 1] {
            queue.push(&large(bytes));
        }
        let lengths = std::iter::from_fn(|| {
            let taken = queue.next().unwrap();
            queue.confirm(&taken, 0);
            Some(taken.len())
        });
        assert_eq!(lengths.take(4).collect::<Vec<_>>(), [2, 1, 1, 1]);
    }

    #[test]
    fn at_the_end_what_did_not_arrive_is_counted() {
        let queue = Queue::new(usize::MAX);
        queue.push(&batch(1, 1));
        queue.push(&batch(2, 2));
        queue.close(Duration::ZERO);
        queue.push(&batch(4, 1));
        assert_eq!(queue.next().unwrap().len(), 2);
        assert!(queue.next().is_none());
        assert_eq!((queue.give_up(), queue.counts()), (3, [0, 0, 4]));
    }
}
