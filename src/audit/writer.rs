//! The one thread that writes: it takes what is queued, writes, syncs, and tells the cores.
//!
//! In `blocking` it takes up the next batch when the disk has kept the last (group commit), and holds it back a little
//! for calls that are likely to come. In `buffered` it rests in between. When the disk refuses it holds its batch and tries again.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::event::Record;
use super::folder::Segments;
use super::line::LineWriter;
use super::log::{Log, Opened};
use super::reservation::Reservation;
use super::room::{Place, Taken, put_together};
use super::{Config, Mode};

/// After a batch in `buffered` the writer rests: the next one is larger and nobody has to wake it.
const REST: Duration = Duration::from_millis(2);
/// The longest that a batch is held back for calls that are likely to come. Those that the last sync let go come again
/// when they have their answers; a sync for a part of them costs as much as one for all.
const GATHER_MAX: Duration = Duration::from_millis(2);
/// How long records that nobody waits for may stay in the queue.
const LINGER: Duration = Duration::from_millis(100);
/// How long written records that nobody waits for may stay unsynced.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// How often the file in use is looked after.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The most bytes of lines that are put together before they are written, but for the last line.
pub(super) const WRITE_BYTES_MAX: usize = 1 << 20;

/// What the threads that serve and the writer share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) mode: Mode,
    pub(super) wait: Duration,
    queue: Mutex<Queue>,
    ready: Condvar,
    /// The last record that is as safe as the mode asks for; each core waits for it once, for all
    /// its calls.
    pub(super) progress: watch::Sender<u64>,
    /// Calls that wait for room.
    pub(super) waiting_for_room: AtomicUsize,
    pub(super) written: AtomicU64,
    /// How many records that came in are on disk.
    pub(super) synced: AtomicU64,
    pub(super) refused: AtomicU64,
    /// Requests that rules left out.
    pub(super) left_out: AtomicU64,
    failing: Mutex<Option<String>>,
    /// A new file was asked for from outside.
    pub(super) rotation_asked: AtomicBool,
    /// Files that were found deleted, shortened or replaced.
    pub(super) gaps: AtomicU64,
    pub(super) started: Instant,
    /// The writer counts on as long as it gets its turn, and an answer of the disk.
    pub(super) turns: AtomicU64,
    /// Since when the writer waits for the disk, in milliseconds since `started`; 0 when it does not.
    pub(super) busy_since: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    records: Batch,
    /// How many records came in.
    sequence: u64,
    /// How many the writer made itself.
    own: u64,
    reservation: Option<Reservation>,
    /// The writer is to take what there is without lingering.
    hurry: bool,
    /// How many wait until a record is on disk.
    waited_for: usize,
    /// With so many the writer gathers no longer.
    enough: usize,
    closing: bool,
}

/// Records in their order. Whoever hands one over has put it into words already: what it holds is freed
/// where it was made, and the one thread that writes has the less to do.
#[derive(Debug, Default)]
struct Batch {
    /// The bodies of all, one behind the other.
    bodies: Vec<u8>,
    records: Vec<Queued>,
    /// Free again when all of them are as safe as the mode asks for.
    places: Vec<Place>,
}

#[derive(Debug)]
struct Queued {
    body_bytes: usize,
    /// Where the log acts on it.
    record: Option<Box<Record<'static>>>,
}

thread_local! {
    /// Records are put into words outside the lock. Taken while in use, so that no second use can find it borrowed.
    static LINES: Cell<LineWriter> = const { Cell::new(LineWriter::new()) };
}

impl Queue {
    fn reserve(&mut self) {
        let records = self.sequence + self.own;
        if let Some(reservation) = &mut self.reservation {
            reservation.cover(records);
        }
    }
}

/// What the writer is to do with a batch.
#[derive(Clone, Copy)]
struct Turn {
    sync: bool,
    closing: bool,
}

impl Shared {
    pub(super) fn new(config: &Config, reservation: Option<Reservation>) -> Self {
        let queue = Queue { reservation, ..Queue::default() };
        Self {
            mode: config.mode,
            wait: config.wait,
            queue: Mutex::new(queue),
            ready: Condvar::new(),
            progress: watch::Sender::new(0),
            waiting_for_room: AtomicUsize::new(0),
            written: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
            failing: Mutex::default(),
            rotation_asked: AtomicBool::new(false),
            gaps: AtomicU64::new(0),
            started: Instant::now(),
            turns: AtomicU64::new(0),
            busy_since: AtomicU64::new(0),
        }
    }

    /// Queues a record; its sequence number. The writer is woken if somebody waits for the record.
    pub(super) fn push(
        &self,
        record: &Record<'_>,
        place: Option<Taken<'_>>,
        waited_for: bool,
    ) -> u64 {
        // Always taken.
        self.push_if(|_| true, record, place, waited_for).unwrap_or_default()
    }

    /// Queues a decision that lets a call go on; `None` when nobody might write it any more.
    pub(super) fn push_decision(
        &self,
        record: &Record<'_>,
        place: Taken<'_>,
        waited_for: bool,
    ) -> Option<u64> {
        self.push_if(|queue| !queue.closing, record, Some(place), waited_for)
    }

    fn push_if(
        &self,
        takes: impl Fn(&Queue) -> bool,
        record: &Record<'_>,
        place: Option<Taken<'_>>,
        waited_for: bool,
    ) -> Option<u64> {
        // A thread that ends has none any more.
        let mut lines = LINES.try_with(Cell::take).unwrap_or_default();
        let body = lines.body_of(record);
        let time = record.time;
        let acted_on = record.event.acted_on();
        let record = acted_on.map(|event| Box::new(Record { time, event }));
        let queued = Queued { body_bytes: body.len(), record };
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = takes(&queue).then(|| {
            if let Some(place) = place {
                put_together(&mut queue.records.places, place);
            }
            self.push_body(queue, body, queued, waited_for)
        });
        LINES.try_with(|kept| kept.set(lines)).unwrap_or_default();
        sequence
    }

    fn push_body(
        &self,
        mut queue: MutexGuard<'_, Queue>,
        body: &[u8],
        queued: Queued,
        waited_for: bool,
    ) -> u64 {
        queue.sequence += 1;
        queue.reserve();
        let sequence = queue.sequence;
        queue.records.bodies.extend_from_slice(body);
        queue.records.records.push(queued);
        queue.waited_for += usize::from(waited_for);
        if waited_for && queue.waited_for == queue.enough {
            self.ready.notify_one();
        }
        self.wake(queue, waited_for || self.mode == Mode::Buffered);
        sequence
    }

    /// Counts a record that the writer makes itself.
    pub(super) fn count_own(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.own += 1;
        queue.reserve();
    }

    /// Nothing can be lost any more.
    pub(super) fn end_reservation(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reservation) = queue.reservation.take() {
            reservation.end();
        }
    }

    /// Whether the log is being closed: who tries again and again gives up.
    pub(super) fn is_closing(&self) -> bool {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).closing
    }

    /// Has the writer take what there is, so that room becomes free.
    pub(super) fn hurry(&self) {
        self.wake(self.queue.lock().unwrap_or_else(PoisonError::into_inner), true);
    }

    /// Has the writer end after the last record.
    pub(super) fn close(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.closing = true;
        self.wake(queue, true);
    }

    /// The sequence number of the last record that came in.
    #[cfg(test)]
    pub(super) fn queued(&self) -> u64 {
        self.queue.lock().unwrap().sequence
    }

    fn wake(&self, mut queue: MutexGuard<'_, Queue>, hurry: bool) {
        let first = hurry && !queue.hurry;
        queue.hurry |= hurry;
        drop(queue);
        if first {
            self.ready.notify_one();
        }
    }

    /// Why records do not reach the disk at the moment.
    pub(super) fn failure(&self) -> Option<String> {
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        failing.or_else(|| {
            let since = self.busy_since.load(Ordering::Relaxed);
            let now = millis(self.started.elapsed());
            let stuck = Duration::from_millis(now.saturating_sub(since));
            (since > 0 && stuck > self.wait)
                .then(|| format!("the disk has not answered for {} seconds", stuck.as_secs()))
        })
    }

    /// Writes until the log is closed.
    pub(super) fn write_until_closed<S: Segments>(
        &self,
        opened: Opened<S>,
        observe_sync: impl Fn(Duration),
    ) -> std::io::Result<()> {
        let _ended = Ended(self);
        let mut log = Log::new(self, opened, observe_sync);
        let kept = self.write_all(&mut log);
        // Whatever the disk did: sinks get what they were given, and theirs is the lesser fault.
        let shipped = log.end(kept.is_ok());
        kept.and(shipped)
    }

    fn write_all<S: Segments, O: Fn(Duration)>(
        &self,
        log: &mut Log<'_, S, O>,
    ) -> std::io::Result<()> {
        let (mut batch, mut places) = (Batch::default(), Vec::new());
        let (mut synced, mut looked) = (Instant::now(), Instant::now());
        loop {
            self.turns.fetch_add(1, Ordering::Relaxed);
            let turn = self.take(&mut batch, log.last_sync());
            log.release();
            let any = !batch.records.is_empty();
            let mut bodies = batch.bodies.as_slice();
            for queued in batch.records.drain(..) {
                let (body, rest) = bodies.split_at_checked(queued.body_bytes).unwrap_or_default();
                bodies = rest;
                log.write(body, queued.record.as_deref());
                if log.unwritten_bytes() >= WRITE_BYTES_MAX {
                    log.keep(turn.sync, turn.closing, &mut places)?;
                }
            }
            batch.bodies.clear();
            batch.bodies.shrink_to(WRITE_BYTES_MAX);
            places.append(&mut batch.places);
            let sealed = log.seal_when_due();
            let due = synced.elapsed() >= SYNC_EVERY;
            let sync = turn.sync || (due && log.unsynced_bytes() > 0) || turn.closing || sealed;
            if any || sync {
                log.keep(sync, turn.closing, &mut places)?;
            }
            if sync {
                synced = Instant::now();
            }
            if looked.elapsed() >= LOOK_EVERY && !turn.closing {
                log.look_after_files(&mut places)?;
                looked = Instant::now();
            }
            if turn.closing {
                return Ok(());
            }
            if any && self.mode == Mode::Buffered {
                std::thread::sleep(REST);
            }
        }
    }

    /// Waits for records, but not for long: what was written may have to be synced.
    fn take(&self, batch: &mut Batch, last_sync: Duration) -> Turn {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if !queue.hurry {
            let waited = self.ready.wait_timeout_while(queue, LINGER, |queue| !queue.hurry);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if queue.waited_for > 0 {
            let few = |queue: &mut Queue| queue.waited_for < queue.enough && !queue.closing;
            let gathered = self.ready.wait_timeout_while(queue, last_sync.min(GATHER_MAX), few);
            queue = gathered.unwrap_or_else(PoisonError::into_inner).0;
        }
        std::mem::swap(&mut queue.records, batch);
        let turn = Turn { sync: queue.waited_for > 0, closing: queue.closing };
        if turn.sync {
            queue.enough = queue.waited_for;
        }
        (queue.hurry, queue.waited_for) = (false, 0);
        turn
    }

    /// Keeps the state that `/readyz` shows, and says each change once.
    pub(super) fn note(&self, result: &std::io::Result<()>) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Err(error) => {
                if failing.is_none() {
                    tracing::error!(%error, "the audit log cannot be written; requests stop");
                }
                *failing = Some(error.to_string());
            }
            Ok(()) => {
                if failing.take().is_some() {
                    tracing::info!("the audit log is written again");
                }
            }
        }
    }
}

/// However the writer ends, nothing is written after it.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut failing = self.0.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.get_or_insert_with(|| "its writer has ended".to_owned());
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).closing = true;
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
