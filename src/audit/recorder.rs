//! The hand-over from the threads that serve to the one thread that writes.
//!
//! A record takes room in the queue before it is handed over, and in `blocking` an allowed call
//! waits until its record is on disk; without either the call is refused. When the disk refuses,
//! records stay in the queue and requests stop: nothing is forwarded unrecorded, nothing is lost.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::chain::Beginning;
use super::event::{CallId, ConnectionId, Event, Outcome, Record};
use super::fold::RefusalFold;
use super::folder::{FileError, Segments};
use super::level::{LeftOut, Levels};
use super::log::Opened;
use super::open::open;
use super::recorded::{CoreShare, Decided, OpenConnection, Recorded};
use super::room::{QueueShare, Taken, units};
use super::shipping::Shipping;
use super::tidy::Tidy;
use super::writer::Shared;
use super::{Config, Mode};
use crate::clock;
use crate::sink::{self, Sink, SinkHandle};

/// What an outcome takes of the room.
const OUTCOME_UNITS: usize = 2;
/// Room for refused connections, apart from everybody else's: they can take none from decisions.
const REFUSALS_BYTES: usize = 256 << 10;
/// How long whoever waits for room sleeps at most before it looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// gRPC's Unavailable.
const UNAVAILABLE: u16 = 14;

/// Hands records over, from any thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    pub(super) shared: Arc<Shared>,
    shares: Arc<Mutex<Shares>>,
    refusals: Arc<QueueShare>,
    beginning: Arc<Beginning>,
    levels: Arc<Levels>,
    sinks: Arc<[SinkHandle]>,
}

/// Hands records over from one core; its calls wait for the disk together.
#[derive(Clone, Debug)]
pub struct CoreRecorder {
    recorder: Recorder,
    progress: watch::Receiver<u64>,
    woken: Arc<Notify>,
}

/// The writer thread; it ends when told, after the last record is on disk.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    thread: JoinHandle<std::io::Result<()>>,
    /// The file it writes.
    pub path: PathBuf,
}

/// Who has a share of the room.
#[derive(Debug)]
struct Shares {
    /// The share of those who are nobody, and the pattern of all others.
    nobody: Arc<QueueShare>,
    principals: HashMap<Arc<str>, Weak<QueueShare>>,
    /// Those that nobody holds any more are looked for when there are so many.
    purge_at: usize,
}

/// The log takes no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ringfence: the audit log takes no records")]
pub struct Unavailable;

impl Recorder {
    /// Opens the log and starts the writer, which tells how long each sync took.
    ///
    /// # Errors
    /// When the folder or file cannot be made.
    pub fn start(
        config: &Config,
        observe_sync: impl Fn(Duration) + Send + 'static,
    ) -> Result<(Self, Writer), FileError> {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| FileError {
            path: config.directory.clone(),
            error: std::io::Error::other("the system gives no randomness"),
        })?;
        let (mut opened, reservation) = open(config, clock::since_epoch(), random)?;
        let shared = Arc::new(Shared::new(config, Some(reservation)));
        let tidy = Tidy::start(config.directory.clone(), config.retention, Arc::clone(&shared));
        opened.shipping = Self::start_sinks(&config.sinks, &shared)?;
        let path = opened.path.clone();
        opened.tidy = Some(tidy.map_err(|error| FileError { path, error })?);
        Self::start_on(config, shared, opened, observe_sync)
    }

    fn start_sinks(sinks: &[sink::Config], shared: &Arc<Shared>) -> Result<Shipping, FileError> {
        let start = |config: &sink::Config| {
            let shared = Arc::clone(shared);
            // The writer lets go who waits for the sink.
            let started = Sink::start(config, move || shared.hurry());
            let path = PathBuf::from(format!("sink `{}`", config.name));
            started.map_err(|error| FileError { path, error })
        };
        Ok(Shipping::new(sinks.iter().map(start).collect::<Result<Vec<Sink>, FileError>>()?))
    }

    pub(super) fn start_on<S: Segments>(
        config: &Config,
        shared: Arc<Shared>,
        opened: Opened<S>,
        observe_sync: impl Fn(Duration) + Send + 'static,
    ) -> Result<(Self, Writer), FileError> {
        let (path, beginning) = (opened.path.clone(), Arc::clone(&opened.beginning));
        let sinks = opened.shipping.handles();
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || for_thread.write_until_closed(opened, observe_sync))
            .map_err(|error| FileError { path: path.clone(), error })?;
        let queue_bytes = usize::try_from(config.queue_bytes).unwrap_or(usize::MAX);
        let recorder = Self {
            shared: Arc::clone(&shared),
            shares: Arc::new(Mutex::new(Shares {
                nobody: Arc::new(QueueShare::new(queue_bytes)),
                principals: HashMap::new(),
                purge_at: 64,
            })),
            refusals: Arc::new(QueueShare::new(REFUSALS_BYTES)),
            beginning,
            levels: Arc::clone(&config.levels),
            sinks,
        };
        Ok((recorder, Writer { shared, thread, path }))
    }

    /// The recorder of this thread, whose tasks run in a `LocalSet`.
    #[must_use]
    pub fn on_this_core(&self) -> CoreRecorder {
        let woken = Arc::new(Notify::new());
        let mut progress = self.shared.progress.subscribe();
        let to_wake = Arc::clone(&woken);
        // The writer wakes this task, once for a batch; waking the calls from here crosses no thread.
        tokio::task::spawn_local(async move {
            while progress.changed().await.is_ok() {
                to_wake.notify_waiters();
            }
        });
        CoreRecorder { recorder: self.clone(), progress: self.shared.progress.subscribe(), woken }
    }

    fn share_of(&self, principal: Option<&Arc<str>>) -> Arc<QueueShare> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(principal) = principal else {
            return Arc::clone(&shares.nobody);
        };
        if let Some(share) = shares.principals.get(principal).and_then(Weak::upgrade) {
            return share;
        }
        if shares.principals.len() >= shares.purge_at {
            shares.principals.retain(|_, share| share.strong_count() > 0);
            shares.purge_at = 64 + 2 * shares.principals.len();
        }
        let share = Arc::new(shares.nobody.beside());
        shares.principals.insert(Arc::clone(principal), Arc::downgrade(&share));
        share
    }

    /// Records the beginning of the process; there is always room for it, and for its end.
    pub fn record_start(&self, version: &'static str, identities: usize, rules: usize) {
        let beginning = Arc::clone(&self.beginning);
        let levels = Arc::new(self.levels.in_force());
        let event = Event::ProcessStart { version, identities, rules, beginning, levels };
        self.shared.push(&record_now(event), None, false);
    }

    /// Records that the process ends in good order.
    pub fn record_stop(&self) {
        let left_out = self.left_out();
        self.shared.push(&record_now(Event::ProcessStop { left_out }), None, false);
    }

    /// Goes on in a new file: whoever moved the one in use away asks for it.
    pub fn rotate(&self) {
        self.shared.rotation_asked.store(true, Ordering::Relaxed);
    }

    /// Requests that rules left out of the log.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.shared.left_out.load(Ordering::Relaxed)
    }

    /// Where else lines go.
    #[must_use]
    pub fn sinks(&self) -> &[SinkHandle] {
        &self.sinks
    }

    /// How often a file of the log was found deleted, shortened or replaced.
    #[must_use]
    pub fn gaps(&self) -> u64 {
        self.shared.gaps.load(Ordering::Relaxed)
    }

    /// Folds a connection that came to nothing. It has room of its own, and never waits for it.
    pub fn record_refusal(
        &self,
        fold: &Mutex<RefusalFold>,
        source: IpAddr,
        reason: &'static str,
        detail: &str,
    ) {
        let mut fold = fold.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(event) = fold.note(source, reason, detail) {
            self.record_folded(&mut fold, event);
        }
    }

    /// Records what was folded, when it is time.
    pub fn flush_refusals(&self, fold: &Mutex<RefusalFold>) {
        let mut fold = fold.lock().unwrap_or_else(PoisonError::into_inner);
        for event in fold.flush(clock::since_epoch()) {
            self.record_folded(&mut fold, event);
        }
    }

    /// Records all that was folded, at the end.
    pub fn flush_all_refusals(&self, fold: &Mutex<RefusalFold>) {
        let mut fold = fold.lock().unwrap_or_else(PoisonError::into_inner);
        for event in fold.flush_all() {
            self.record_folded(&mut fold, event);
        }
    }

    fn record_folded(&self, fold: &mut RefusalFold, event: Event<'static>) {
        let record = record_now(event);
        match self.refusals.take(units(record.weight_bytes()), 0) {
            Some(place) => {
                self.shared.push(&record, Some(place), false);
            }
            // The disk refuses. The count waits for a later record.
            None => fold.give_back(&record.event),
        }
    }

    /// Why calls cannot be recorded at the moment; `None` when they can.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        if let Some(why) = self.shared.failure() {
            return Some(format!("the audit log cannot be written: {why}"));
        }
        let required = self.sinks.iter().filter(|sink| sink.is_required());
        let failing = |sink: &SinkHandle| {
            let why = sink.failure()?;
            Some(format!("the sink `{}`, which is required, takes no records: {why}", sink.name()))
        };
        required.filter_map(failing).next()
    }

    /// Counts on as long as the writer lives and the disk answers it, if only with an error.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.shared.turns.load(Ordering::Relaxed)
    }

    /// Records written so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Relaxed)
    }

    /// Records that found no room, and decisions that did not reach the disk in time.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }
}

impl CoreRecorder {
    /// The share of the room of a principal, or of those who are nobody.
    #[must_use]
    pub fn share_of(&self, principal: Option<&Arc<str>>) -> CoreShare {
        CoreShare::new(&self.recorder.shared, self.recorder.share_of(principal))
    }

    /// Records a decision that lets a call go on, takes the room for its outcome, and in `blocking`
    /// waits until the record is on disk; all of it until the configured wait is over, or the call.
    ///
    /// # Errors
    /// When there is no room, or the disk does not take it; the call must be refused.
    pub async fn allow(
        &self,
        share: &CoreShare,
        call: CallId,
        record: &Record<'_>,
        call_ends: Option<Instant>,
    ) -> Result<Recorded, Unavailable> {
        let time = record.time;
        let patience = Instant::now() + self.recorder.shared.wait;
        let until = call_ends.map_or(patience, |ends| patience.min(ends));
        let room = share.room();
        let mut place = match room.take(units(record.weight_bytes()), OUTCOME_UNITS) {
            Some(place) => place,
            // On the heap: the future of a call that finds room stays small.
            None => Box::pin(self.wait_for_room(room, record, OUTCOME_UNITS, until))
                .await
                .ok_or_else(|| self.refuse(patience))?,
        };
        let shared = &self.recorder.shared;
        let owed = place.split(OUTCOME_UNITS);
        let blocking = shared.mode == Mode::Blocking;
        // In `buffered` nothing else would stop a call that comes after the writer's end.
        let sequence = shared.push_decision(record, place, blocking);
        let sequence = sequence.ok_or_else(|| self.refuse(Instant::now()))?;
        // Whatever ends the call from here on until its record is safe, it was not forwarded.
        let otherwise = Outcome {
            status: Some(UNAVAILABLE),
            fault: Some("audit_unavailable"),
            ..Outcome::default()
        };
        let (share, units) = (share.clone(), owed.into_units());
        let mut decided = Decided { share, call, time, units, otherwise };
        if blocking && !self.is_kept_by(sequence, until).await {
            return Err(self.refuse(patience));
        }
        decided.otherwise = Outcome { fault: Some("aborted"), ..Outcome::default() };
        Ok(Recorded::of(decided))
    }

    /// Counts a call that a rule leaves out of the log, as it will its outcome.
    #[must_use]
    pub fn leave_out(&self, call: CallId, by_rule: LeftOut) -> Recorded {
        self.recorder.shared.left_out.fetch_add(1, Ordering::Relaxed);
        Recorded::left_out(call, by_rule)
    }

    /// What is recorded of which requests.
    #[must_use]
    pub fn levels(&self) -> &Levels {
        &self.recorder.levels
    }

    /// Records anything that does not let a call go on; in `blocking` too it does not wait for the disk.
    ///
    /// # Errors
    /// When there is no room within the configured wait.
    pub async fn record(&self, share: &CoreShare, record: &Record<'_>) -> Result<(), Unavailable> {
        let room = share.room();
        let place = match room.take(units(record.weight_bytes()), 0) {
            Some(place) => place,
            None => {
                let patience = Instant::now() + self.recorder.shared.wait;
                let place = self.wait_for_room(room, record, 0, patience).await;
                place.ok_or_else(|| self.refuse(patience))?
            }
        };
        self.recorder.shared.push(record, Some(place), false);
        Ok(())
    }

    /// Records without waiting.
    ///
    /// # Errors
    /// When there is no room now.
    pub fn try_record(&self, share: &CoreShare, record: &Record<'_>) -> Result<(), Unavailable> {
        let place = share.room().take(units(record.weight_bytes()), 0);
        // Not counted as refused: a principal that floods its own share must raise no alarm.
        let place = place.ok_or(Unavailable)?;
        self.recorder.shared.push(record, Some(place), false);
        Ok(())
    }

    /// Records that a connection was opened. Its end will be recorded.
    ///
    /// # Errors
    /// When there is no room within the configured wait.
    pub async fn open(
        &self,
        share: &CoreShare,
        connection: ConnectionId,
        record: &Record<'_>,
    ) -> Result<OpenConnection, Unavailable> {
        self.record(share, record).await?;
        let shared = Arc::clone(&self.recorder.shared);
        Ok(OpenConnection::new(shared, connection))
    }

    /// The recorder that is the same for all cores.
    #[must_use]
    pub const fn all_cores(&self) -> &Recorder {
        &self.recorder
    }

    /// Waits until the record is on disk; false when it took too long.
    async fn is_kept_by(&self, sequence: u64, until: Instant) -> bool {
        let waiting = async {
            loop {
                let woken = self.woken.notified();
                if *self.progress.borrow() >= sequence {
                    return;
                }
                woken.await;
            }
        };
        tokio::time::timeout_at(until, waiting).await.is_ok()
    }

    async fn wait_for_room<'s>(
        &self,
        share: &'s Arc<QueueShare>,
        record: &Record<'_>,
        more: usize,
        until: Instant,
    ) -> Option<Taken<'s>> {
        let units = units(record.weight_bytes());
        let _waiting = Waiting::new(&self.recorder.shared);
        loop {
            let woken = self.woken.notified();
            if let Some(place) = share.take(units, more) {
                return Some(place);
            }
            if Instant::now() >= until {
                return None;
            }
            self.recorder.shared.hurry();
            // The end of the time is looked at above.
            let look_again = until.min(Instant::now() + LOOK_AGAIN);
            drop(tokio::time::timeout_at(look_again, woken).await);
        }
    }

    /// A call that was in more of a hurry than the log says nothing about the log: a client that
    /// gives each call a millisecond must not raise an alarm.
    fn refuse(&self, patience: Instant) -> Unavailable {
        if Instant::now() >= patience {
            self.recorder.shared.refused.fetch_add(1, Ordering::Relaxed);
        }
        Unavailable
    }
}

/// Somebody waits for room, and wants to be told when there is some.
struct Waiting<'a>(&'a Shared);

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.waiting_for_room.fetch_add(1, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting_for_room.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Writer {
    /// Writes what is left and ends.
    ///
    /// # Errors
    /// When the disk refuses the last records.
    pub fn close(self) -> std::io::Result<()> {
        self.shared.close();
        let joined = self.thread.join();
        joined.unwrap_or_else(|_| Err(std::io::Error::other("the audit writer ended early")))
    }
}

pub(super) fn record_now(event: Event<'_>) -> Record<'_> {
    Record { time: clock::since_epoch(), event }
}
