//! The one thread that writes: it takes what is queued, writes, syncs, and tells the cores.
//!
//! In `blocking` it takes up the next batch as soon as the disk has kept the last (group commit). In
//! `buffered` it rests in between. When the disk refuses it holds its batch and tries again.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::event::Record;
use super::file::{Disk, LogFile};
use super::line::LineWriter;
use super::room::Place;
use super::{Config, Mode};

/// After a batch in `buffered` the writer rests: the next one is larger and nobody has to wake it.
const REST: Duration = Duration::from_millis(1);
/// How long the writer waits after the disk refused.
const RETRY: Duration = Duration::from_millis(200);
/// How long records that nobody waits for may stay in the queue.
const LINGER: Duration = Duration::from_millis(100);
/// How long written records that nobody waits for may stay unsynced.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// The most bytes that may stay unsynced, because they are kept in memory until then.
const UNSYNCED_BYTES_MAX: usize = 8 << 20;
/// The most bytes of lines that are put together before they are written, but for the last line.
const WRITE_BYTES_MAX: usize = 1 << 20;

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
    pub(super) refused: AtomicU64,
    failing: Mutex<Option<String>>,
    started: Instant,
    /// Since when the writer waits for the disk, in milliseconds since `started`; 0 when it does not.
    busy_since: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    records: Vec<Queued>,
    /// The sequence number of the last record that came in.
    sequence: u64,
    /// The writer is to take what there is without lingering.
    hurry: bool,
    /// Somebody waits until a record is on disk.
    sync: bool,
    closing: bool,
}

#[derive(Debug)]
pub(super) struct Queued {
    pub(super) record: Record,
    /// Free again when the record is as safe as the mode asks for.
    pub(super) place: Option<Place>,
}

/// A batch as it was taken.
#[derive(Clone, Copy)]
struct Taken {
    sync: bool,
    closing: bool,
}

impl Shared {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            mode: config.mode,
            wait: config.wait,
            queue: Mutex::default(),
            ready: Condvar::new(),
            progress: watch::Sender::new(0),
            waiting_for_room: AtomicUsize::new(0),
            written: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failing: Mutex::default(),
            started: Instant::now(),
            busy_since: AtomicU64::new(0),
        }
    }

    /// Queues a record; its sequence number. The writer is woken if somebody waits for the record.
    pub(super) fn push(&self, record: Record, place: Option<Place>, waited_for: bool) -> u64 {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.sequence += 1;
        let sequence = queue.sequence;
        queue.records.push(Queued { record, place });
        queue.sync |= waited_for;
        self.wake(queue, waited_for || self.mode == Mode::Buffered);
        sequence
    }

    /// Whether no decision may be handed over any more: nobody might write it.
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

    fn wake(&self, mut queue: std::sync::MutexGuard<'_, Queue>, hurry: bool) {
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
    pub(super) fn write_until_closed<D: Disk>(
        &self,
        disk: D,
        observe_sync: impl Fn(Duration),
    ) -> std::io::Result<()> {
        let _ended = Ended(self);
        let mut log = Log { shared: self, file: LogFile::new(disk), observe_sync, sequence: 0 };
        let (mut batch, mut places) = (Vec::new(), Vec::new());
        let mut lines = LineWriter::default();
        let mut synced = Instant::now();
        loop {
            let taken = self.take(&mut batch);
            let any = !batch.is_empty();
            for queued in batch.drain(..) {
                log.sequence += 1;
                lines.write(log.sequence, &queued.record, log.file.pending());
                places.extend(queued.place);
                if log.file.unwritten_bytes() >= WRITE_BYTES_MAX {
                    log.keep(taken.sync, taken.closing, &mut places)?;
                }
            }
            let due = synced.elapsed() >= SYNC_EVERY && log.file.unsynced_bytes() > 0;
            let sync = taken.sync || due || taken.closing;
            if any || sync {
                log.keep(sync, taken.closing, &mut places)?;
            }
            if sync {
                synced = Instant::now();
            }
            if taken.closing {
                return Ok(());
            }
            if any && self.mode == Mode::Buffered {
                std::thread::sleep(REST);
            }
        }
    }

    /// Waits for records, but not for long: what was written may have to be synced.
    fn take(&self, batch: &mut Vec<Queued>) -> Taken {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if !queue.hurry {
            let waited = self.ready.wait_timeout_while(queue, LINGER, |queue| !queue.hurry);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        std::mem::swap(&mut queue.records, batch);
        let taken = Taken { sync: queue.sync, closing: queue.closing };
        (queue.hurry, queue.sync) = (false, false);
        taken
    }

    /// Keeps the state that `/readyz` shows, and says each change once.
    fn note(&self, result: &std::io::Result<()>) {
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

/// The file, and where it stands.
struct Log<'a, D, O> {
    shared: &'a Shared,
    file: LogFile<D>,
    observe_sync: O,
    sequence: u64,
}

impl<D: Disk, O: Fn(Duration)> Log<'_, D, O> {
    /// Writes what is pending, syncs it if asked, frees the places and tells who waits. Tries until
    /// the disk takes it; gives up only when the log is being closed.
    fn keep(&mut self, sync: bool, closing: bool, places: &mut Vec<Place>) -> std::io::Result<()> {
        let sync = sync || self.file.unsynced_bytes() >= UNSYNCED_BYTES_MAX;
        loop {
            let busy = millis(self.shared.started.elapsed()).max(1);
            self.shared.busy_since.store(busy, Ordering::Relaxed);
            // After a failed sync the flush writes everything anew.
            let result = self.file.flush().and_then(|()| if sync { self.sync() } else { Ok(()) });
            self.shared.busy_since.store(0, Ordering::Relaxed);
            self.shared.note(&result);
            if result.is_ok() {
                break;
            }
            if closing || self.shared.is_closing() {
                return result;
            }
            std::thread::sleep(RETRY);
        }
        places.clear();
        self.shared.written.store(self.sequence, Ordering::Relaxed);
        let blocking = self.shared.mode == Mode::Blocking;
        if (blocking && sync) || self.shared.waiting_for_room.load(Ordering::SeqCst) > 0 {
            // In `blocking` a batch without a sync frees room, but lets nobody go.
            let sequence = self.sequence;
            self.shared.progress.send_modify(|kept| {
                if sync || !blocking {
                    *kept = sequence;
                }
            });
        }
        Ok(())
    }

    fn sync(&mut self) -> std::io::Result<()> {
        let started = Instant::now();
        let result = self.file.sync();
        (self.observe_sync)(started.elapsed());
        result
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

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
