//! The hand-over from the threads that serve to the one thread that writes.
//!
//! A record takes room in the queue before it is handed over; without room the request waits, then
//! is refused. When the disk refuses, records stay in the queue, the queue fills, and requests
//! stop: nothing is forwarded unrecorded, nothing is lost.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::Config;
use super::event::{CallId, Event, Outcome, Record};
use super::file::{FileError, LogFile};
use super::line::LineWriter;
use crate::clock;

/// Room is counted in units, so that a record of any size fits the semaphore's numbers.
const UNIT_BYTES: usize = 256;
/// After a batch the writer rests, so that the next one is larger and nobody has to wake it.
const REST: Duration = Duration::from_millis(1);
/// How long the writer waits after the disk refused.
const RETRY: Duration = Duration::from_millis(200);
/// How often written records are forced to the disk.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// How often the idle writer looks whether it should end.
const IDLE: Duration = Duration::from_millis(500);

/// Hands records over. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
}

/// The writer thread; it ends when told, after the last record is on disk.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<(), std::io::Error>>,
    /// The file it writes.
    pub path: PathBuf,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Vec<(Record, u32)>>,
    ready: Condvar,
    room: Semaphore,
    room_units: u32,
    wait: Duration,
    failing: AtomicBool,
    closing: AtomicBool,
    written: AtomicU64,
    refused: AtomicU64,
}

/// Proof that a decision is in the log's queue. It also holds the room for the outcome, so that an
/// outcome never waits and is never lost; dropped without one, the call is recorded as aborted.
#[derive(Debug)]
pub struct Recorded {
    recorder: Recorder,
    call: CallId,
    decided: Duration,
    finished: bool,
}

/// The log takes no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ringfence: the audit log takes no records")]
pub struct Unavailable;

impl Recorder {
    /// Opens the log and starts the writer.
    ///
    /// # Errors
    /// When the folder or file cannot be made.
    pub fn start(config: &Config) -> Result<(Self, Writer), FileError> {
        let (file, path) = LogFile::create(&config.directory, clock::since_epoch())?;
        let room_units = units(usize::try_from(config.queue_bytes).unwrap_or(usize::MAX));
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            ready: Condvar::new(),
            room: Semaphore::new(usize::try_from(room_units).unwrap_or(usize::MAX)),
            room_units,
            wait: config.wait,
            failing: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            written: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || for_thread.write_until_closed(file))
            .map_err(|error| FileError { path: path.clone(), error })?;
        Ok((Self { shared: Arc::clone(&shared) }, Writer { shared, thread, path }))
    }

    /// Records a decision that lets a call go on, and takes the room for its outcome.
    ///
    /// # Errors
    /// When there is no room within the configured wait; the call must be refused.
    pub async fn allow(&self, call: CallId, record: Record) -> Result<Recorded, Unavailable> {
        let decided = record.time;
        // Two units more: the outcome's.
        self.hand_over(record, 2).await?;
        Ok(Recorded { recorder: self.clone(), call, decided, finished: false })
    }

    /// Records anything that does not let a call go on.
    ///
    /// # Errors
    /// When there is no room within the configured wait.
    pub async fn record(&self, record: Record) -> Result<(), Unavailable> {
        self.hand_over(record, 0).await
    }

    /// Records without waiting; for events that nobody waits for.
    ///
    /// # Errors
    /// When there is no room now.
    pub fn try_record(&self, record: Record) -> Result<(), Unavailable> {
        let units = self.units_of(&record);
        let room = self.shared.room.try_acquire_many(units);
        room.map_err(|_| self.refuse())?.forget();
        self.push(record, units);
        Ok(())
    }

    /// Whether the disk refuses records at the moment.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.shared.failing.load(Ordering::Relaxed)
    }

    /// Records written so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Relaxed)
    }

    /// Records that found no room.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    async fn hand_over(&self, record: Record, more_units: u32) -> Result<(), Unavailable> {
        let units = self.units_of(&record);
        let asked = (units + more_units).min(self.shared.room_units);
        if let Ok(room) = self.shared.room.try_acquire_many(asked) {
            room.forget();
        } else {
            let room = self.shared.room.acquire_many(asked);
            match tokio::time::timeout(self.shared.wait, room).await {
                Ok(Ok(room)) => room.forget(),
                Ok(Err(_)) | Err(_) => return Err(self.refuse()),
            }
        }
        self.push(record, asked - more_units.min(asked));
        Ok(())
    }

    fn refuse(&self) -> Unavailable {
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
        Unavailable
    }

    fn units_of(&self, record: &Record) -> u32 {
        // A record larger than the whole queue takes all of it.
        units(record.weight_bytes()).min(self.shared.room_units.saturating_sub(2)).max(1)
    }

    fn push(&self, record: Record, units: u32) {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = queue.is_empty();
        queue.push((record, units));
        drop(queue);
        if was_empty {
            self.shared.ready.notify_one();
        }
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

impl Recorded {
    /// Which call this is the proof for.
    #[must_use]
    pub const fn call(&self) -> CallId {
        self.call
    }

    /// Records what became of the call.
    pub fn finish(mut self, outcome: Outcome) {
        self.push_outcome(outcome);
    }

    fn push_outcome(&mut self, mut outcome: Outcome) {
        self.finished = true;
        let now = clock::since_epoch();
        outcome.latency = now.saturating_sub(self.decided);
        let event = Event::Outcome { call: self.call, outcome };
        self.recorder.push(Record { time: now, event }, 2);
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if !self.finished {
            self.push_outcome(Outcome { fault: Some("aborted"), ..Outcome::default() });
        }
    }
}

impl Writer {
    /// Writes what is left and ends.
    ///
    /// # Errors
    /// When the disk refuses the last records.
    pub fn close(self) -> std::io::Result<()> {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.ready.notify_one();
        let joined = self.thread.join();
        joined.unwrap_or_else(|_| Err(std::io::Error::other("the audit writer ended early")))
    }
}

impl Shared {
    fn write_until_closed(&self, mut file: LogFile) -> std::io::Result<()> {
        let mut sequence = 0_u64;
        let mut synced = clock::since_epoch();
        let mut batch = Vec::new();
        let mut lines = LineWriter::default();
        loop {
            let closing = self.take(&mut batch);
            let mut room = 0_usize;
            for (record, units) in batch.drain(..) {
                sequence += 1;
                lines.write(sequence, &record, file.pending());
                room += usize::try_from(units).unwrap_or_default();
            }
            self.write_out(&mut file, closing)?;
            self.written.store(sequence, Ordering::Relaxed);
            self.room.add_permits(room);
            let now = clock::since_epoch();
            if closing || now.saturating_sub(synced) >= SYNC_EVERY {
                let result = file.sync();
                self.note(&result);
                synced = now;
                if closing {
                    return result;
                }
            }
            if room > 0 {
                std::thread::sleep(REST);
            }
        }
    }

    /// Waits for records; true when the log is to be closed and this is the last of them.
    fn take(&self, batch: &mut Vec<(Record, u32)>) -> bool {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        while queue.is_empty() && !self.closing.load(Ordering::Acquire) {
            let waited = self.ready.wait_timeout(queue, IDLE);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        std::mem::swap(&mut *queue, batch);
        self.closing.load(Ordering::Acquire)
    }

    /// Writes until the disk takes it; gives up only when the log is being closed.
    fn write_out(&self, file: &mut LogFile, closing: bool) -> std::io::Result<()> {
        loop {
            let result = file.flush();
            self.note(&result);
            if result.is_ok() || closing || self.closing.load(Ordering::Acquire) {
                return result;
            }
            std::thread::sleep(RETRY);
        }
    }

    /// Keeps the state that `/readyz` shows, and says each change once.
    fn note(&self, result: &std::io::Result<()>) {
        match result {
            Err(error) if !self.failing.swap(true, Ordering::Relaxed) => {
                tracing::error!(%error, "the audit log cannot be written; requests stop when its queue is full");
            }
            Ok(()) if self.failing.swap(false, Ordering::Relaxed) => {
                tracing::info!("the audit log is written again");
            }
            Ok(()) | Err(_) => {}
        }
    }
}
