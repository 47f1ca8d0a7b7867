//! The log as the writer has it: the file in use, the chain, and what seals it. One file after another; the
//! chain goes on from each to the next.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::chain::{Beginning, ChainEvent};
use super::event::{ConnectionId, Event, Record};
use super::file::{Disk as _, LogFile};
use super::folder::{Segments, Standing};
use super::line::{LineWriter, write_line};
use super::room::Place;
use super::seal::Sealer;
use super::shipping::{Kept, Shipping};
use super::tidy::Tidy;
use super::writer::{Shared, WRITE_BYTES_MAX, millis};
use super::{Mode, RotateAt};
use crate::chain::LineHash;
use crate::clock;

/// How long the writer waits after the disk refused.
const RETRY: Duration = Duration::from_millis(200);
/// The most bytes that may stay unsynced, because they are kept in memory until then: few enough for a processor's cache.
const UNSYNCED_BYTES_MAX: usize = 2 << 20;
/// How long a file that was renamed is written on, until whoever renamed it asks for another.
const RENAMED_GRACE: Duration = Duration::from_secs(10);

/// What a writer begins with.
#[derive(Debug)]
pub(super) struct Opened<S: Segments> {
    pub(super) segments: S,
    pub(super) disk: S::Disk,
    pub(super) path: PathBuf,
    pub(super) beginning: Arc<Beginning>,
    pub(super) sealer: Option<Sealer>,
    pub(super) shipping: Shipping,
    pub(super) rotate: RotateAt,
    /// Compresses and removes closed files; none in tests that have no files.
    pub(super) tidy: Option<Tidy>,
}

/// The file in use, and where the chain stands.
pub(super) struct Log<'a, S: Segments, O> {
    shared: &'a Shared,
    segments: S,
    file: LogFile<S::Disk>,
    observe_sync: O,
    last_sync: Duration,
    lines: LineWriter,
    beginning: Arc<Beginning>,
    /// The last line: its number and its hash.
    sequence: u64,
    previous: LineHash,
    /// Records of the queue among them.
    taken: u64,
    sealer: Option<Sealer>,
    unsealed: u64,
    has_stopped: bool,
    sealed: Instant,
    shipping: Shipping,
    /// Who is connected, to be said again in the next file.
    connections: HashMap<ConnectionId, Record<'static>>,
    rotate: RotateAt,
    segment: Segment,
    tidy: Option<Tidy>,
}

impl Event<'_> {
    /// A copy for the log where it acts on the event, and does not only write it: what [`Log::write`] matches, and no more.
    pub(super) fn acted_on(&self) -> Option<Event<'static>> {
        Some(match self {
            Self::ProcessStart { version, identities, rules, beginning, levels } => {
                Event::ProcessStart {
                    version,
                    identities: *identities,
                    rules: *rules,
                    beginning: Arc::clone(beginning),
                    levels: Arc::clone(levels),
                }
            }
            Self::ProcessStop { left_out } => Event::ProcessStop { left_out: *left_out },
            Self::ConnectionOpen {
                connection,
                source,
                tls,
                authority,
                facts,
                principal,
                repeated,
            } => Event::ConnectionOpen {
                connection: *connection,
                source: *source,
                tls,
                authority: Arc::clone(authority),
                facts: facts.clone(),
                principal: principal.clone(),
                repeated: *repeated,
            },
            Self::ConnectionClose { connection, calls, reason } => {
                Event::ConnectionClose { connection: *connection, calls: *calls, reason: *reason }
            }
            Self::Chain(event) => Event::Chain(event.clone()),
            Self::ConnectionRefused { .. }
            | Self::GenerationStart { .. }
            | Self::CertificateEnds { .. }
            | Self::RevocationStart { .. }
            | Self::Decision(_)
            | Self::Outcome { .. }
            | Self::StreamEnd { .. } => return None,
        })
    }
}

/// What is known of the file in use.
struct Segment {
    opened: Instant,
    records: u64,
    /// Since when it is not where it was put.
    renamed: Option<Instant>,
    /// Why there is no next file yet is said once.
    is_stuck: bool,
}

impl Segment {
    fn new() -> Self {
        Self { opened: Instant::now(), records: 0, renamed: None, is_stuck: false }
    }
}

impl<'a, S: Segments, O: Fn(Duration)> Log<'a, S, O> {
    pub(super) fn new(shared: &'a Shared, opened: Opened<S>, observe_sync: O) -> Self {
        Self {
            shared,
            segments: opened.segments,
            file: LogFile::new(opened.disk),
            observe_sync,
            last_sync: Duration::ZERO,
            lines: LineWriter::default(),
            beginning: opened.beginning,
            sequence: 0,
            previous: LineHash::ZERO,
            taken: 0,
            sealer: opened.sealer,
            unsealed: 0,
            has_stopped: false,
            sealed: Instant::now(),
            shipping: opened.shipping,
            connections: HashMap::new(),
            rotate: opened.rotate,
            segment: Segment::new(),
            tidy: opened.tidy,
        }
    }

    pub(super) const fn unwritten_bytes(&self) -> usize {
        self.file.unwritten_bytes()
    }

    pub(super) const fn unsynced_bytes(&self) -> usize {
        self.file.unsynced_bytes()
    }

    /// How long the disk took to keep what it was given last.
    pub(super) const fn last_sync(&self) -> Duration {
        self.last_sync
    }

    /// Puts a record of the queue behind the others. The record itself comes with its body only where the log acts on
    /// it ([`Event::acted_on`] has them, and no other reaches the matches here).
    pub(super) fn write(&mut self, body: &[u8], record: Option<&Record<'static>>) {
        self.taken += 1;
        let Some(record) = record else {
            self.append_body(body);
            return;
        };
        match &record.event {
            Event::ConnectionOpen { connection, .. } => {
                self.connections.insert(*connection, record.clone());
            }
            Event::ConnectionClose { connection, .. } => {
                self.connections.remove(connection);
            }
            // What comes behind the last seal could be cut off unseen.
            Event::ProcessStop { .. } => {
                self.seal();
                self.has_stopped = true;
            }
            _ => {}
        }
        let start = self.append_body(body);
        match &record.event {
            Event::ProcessStart { .. } => self.witness_line(start),
            // It excuses that a file is not there, so it has to be sealed before the file goes.
            Event::Chain(ChainEvent::SegmentRemoved { .. }) if !self.has_stopped => self.seal(),
            _ => {}
        }
    }

    fn append(&mut self, record: &Record<'_>) -> usize {
        let mut lines = std::mem::take(&mut self.lines);
        let start = self.append_body(lines.body_of(record));
        self.lines = lines;
        start
    }

    /// Where the line begins among those that the disk does not keep yet.
    fn append_body(&mut self, body: &[u8]) -> usize {
        self.sequence += 1;
        self.unsealed += 1;
        self.segment.records += 1;
        let pending = self.file.pending();
        let start = pending.len();
        self.previous = write_line(self.sequence, self.previous, body, pending);
        self.shipping.take(pending.get(start..).unwrap_or_default());
        start
    }

    /// Puts a record of the log's own behind the others.
    fn append_own(&mut self, event: ChainEvent) -> usize {
        self.shared.count_own();
        let record = Record { time: clock::since_epoch(), event: Event::Chain(event) };
        self.append(&record)
    }

    /// Has a line shipped to the sinks of checkpoints, too, once it is on disk.
    fn witness_line(&mut self, start: usize) {
        let line = self.file.pending().get(start..).unwrap_or_default();
        self.shipping.take_checkpoint(line);
    }

    /// Seals what came since the last checkpoint, when it is time; true when it did.
    pub(super) fn seal_when_due(&mut self) -> bool {
        let Some(sealer) = &self.sealer else { return false };
        let every = sealer.every;
        let due = self.unsealed >= every.records || self.sealed.elapsed() >= every.time;
        if !due || self.unsealed == 0 || self.has_stopped {
            return false;
        }
        self.seal();
        true
    }

    fn seal(&mut self) {
        let Some(sealer) = &self.sealer else { return };
        if self.unsealed == 0 {
            return;
        }
        let time = clock::since_epoch();
        let text = self.lines.time_text(time);
        let signature = sealer.sign(self.sequence + 1, &text, self.previous);
        let (chain, epoch) = (self.beginning.chain, self.beginning.epoch);
        let event = Event::Chain(ChainEvent::Checkpoint { chain, epoch, signature });
        self.shared.count_own();
        let start = self.append(&Record { time, event });
        self.witness_line(start);
        self.unsealed = 0;
        self.sealed = Instant::now();
    }

    /// Writes what is pending, syncs it if asked, frees the places and tells who waits. Tries until
    /// the disk takes it; gives up only when the log is being closed.
    pub(super) fn keep(
        &mut self,
        sync: bool,
        closing: bool,
        places: &mut Vec<Place>,
    ) -> std::io::Result<()> {
        let sync = sync || self.file.unsynced_bytes() >= UNSYNCED_BYTES_MAX;
        loop {
            self.shared.turns.fetch_add(1, Ordering::Relaxed);
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
        self.shared.written.store(self.sequence, Ordering::Relaxed);
        if sync {
            self.shared.synced.store(self.taken, Ordering::Release);
        }
        let kept = Kept { taken: self.taken, synced: sync, places: std::mem::take(places) };
        if let Some(kept) = self.shipping.hand_over(kept) {
            *places = self.let_go(kept);
        }
        self.release();
        Ok(())
    }

    /// Lets go what all required sinks have.
    pub(super) fn release(&mut self) {
        while let Some(kept) = self.shipping.release() {
            drop(self.let_go(kept));
        }
    }

    /// Frees the places and tells who waits; the emptied list comes back.
    fn let_go(&self, mut kept: Kept) -> Vec<Place> {
        kept.places.clear();
        let blocking = self.shared.mode == Mode::Blocking;
        if (blocking && kept.synced) || self.shared.waiting_for_room.load(Ordering::SeqCst) > 0 {
            // In `blocking` a batch without a sync frees room, but lets nobody go.
            self.shared.progress.send_modify(|last| {
                if kept.synced || !blocking {
                    *last = kept.taken;
                }
            });
        }
        kept.places
    }

    fn sync(&mut self) -> std::io::Result<()> {
        let started = Instant::now();
        let result = self.file.sync();
        self.last_sync = started.elapsed();
        (self.observe_sync)(self.last_sync);
        result
    }

    /// Records what sinks have lost, at most once a second for each.
    fn record_what_sinks_lost(&mut self) {
        for (sink, lost) in self.shipping.take_lost() {
            self.append_own(ChainEvent::SinkBehind { sink, lost });
        }
    }

    /// Begins a new file when this one is large or old enough, when one is asked for, and when something
    /// was done to it.
    pub(super) fn look_after_files(&mut self, places: &mut Vec<Place>) -> std::io::Result<()> {
        if !self.has_stopped {
            self.record_what_sinks_lost();
        }
        let asked = self.shared.rotation_asked.swap(false, Ordering::Relaxed);
        let disk = self.file.disk();
        let is_deleted = disk.links().is_ok_and(|links| links == 0);
        let gap = if is_deleted {
            Some("file_deleted")
        } else if self.file.was_shortened() {
            Some("file_shortened")
        } else {
            self.renamed(asked)
        };
        let large = self.rotate.bytes > 0 && self.file.expected_bytes() >= self.rotate.bytes;
        let old = self.rotate.age.is_some_and(|age| self.segment.opened.elapsed() >= age);
        // An empty one is old for nobody.
        let due = (large || old) && self.segment.records > 1;
        if (gap.is_some() || due || asked) && !self.has_stopped {
            let began = self.rotate(gap, places)?;
            if is_deleted && !began {
                self.wait_for_a_file(places)?;
            }
        }
        Ok(())
    }

    /// What is written into a file that has no name is lost: until there is another one nothing is taken, and
    /// requests stop.
    fn wait_for_a_file(&mut self, places: &mut Vec<Place>) -> std::io::Result<()> {
        let gone = || std::io::Error::other("its file was deleted, and there is no other one");
        while !self.rotate(Some("file_deleted"), places)? {
            self.shared.turns.fetch_add(1, Ordering::Relaxed);
            self.shared.note(&Err(gone()));
            if self.shared.is_closing() {
                return Err(gone());
            }
            std::thread::sleep(RETRY);
        }
        self.shared.note(&Ok(()));
        Ok(())
    }

    /// Whether the file has been somewhere else for longer than whoever renamed it needs to say so.
    fn renamed(&mut self, asked: bool) -> Option<&'static str> {
        match self.segments.standing() {
            Standing::InPlace => {
                self.segment.renamed = None;
                None
            }
            Standing::Gone => {
                let since = *self.segment.renamed.get_or_insert_with(Instant::now);
                (!asked && since.elapsed() >= RENAMED_GRACE).then_some("file_replaced")
            }
        }
    }

    /// Goes on in the next file; false when there is none, and the one in use stays.
    fn rotate(
        &mut self,
        gap: Option<&'static str>,
        places: &mut Vec<Place>,
    ) -> std::io::Result<bool> {
        let number = self.segments.number();
        let disk = match self.segments.next() {
            Ok(disk) => disk,
            Err(error) => {
                if !std::mem::replace(&mut self.segment.is_stuck, true) {
                    tracing::error!(%error, "the audit log has no next file");
                }
                return Ok(false);
            }
        };
        self.seal();
        self.append_own(ChainEvent::SegmentEnd { segment: number });
        // Also a file that was deleted takes it, so that nothing is pending when the next one begins.
        self.keep(true, false, places)?;
        self.file = LogFile::new(disk);
        let before = std::mem::replace(&mut self.segment, Segment::new());
        let (chain, epoch) = (self.beginning.chain, self.beginning.epoch);
        let key = self.beginning.key.clone();
        self.append_own(ChainEvent::SegmentStart { chain, epoch, segment: number + 1, key });
        if let Some(reason) = gap {
            tracing::error!(reason, "something was done to the file of the audit log");
            self.shared.gaps.fetch_add(1, Ordering::Relaxed);
            let records = Some(before.records);
            self.append_own(ChainEvent::Gap { reason, records });
        }
        self.say_connections_again();
        self.keep(true, false, places)?;
        if let Some(tidy) = &self.tidy {
            tidy.wake();
        }
        Ok(true)
    }

    /// So that a file can be read alone.
    fn say_connections_again(&mut self) {
        let mut open: Vec<Record<'static>> = self.connections.values().cloned().collect();
        open.sort_by_key(|record| match &record.event {
            Event::ConnectionOpen { connection, .. } => connection.0,
            _ => 0,
        });
        for mut record in open {
            if let Event::ConnectionOpen { repeated, .. } = &mut record.event {
                *repeated = true;
            }
            self.shared.count_own();
            self.append(&record);
            if self.file.unwritten_bytes() >= WRITE_BYTES_MAX {
                // Lines stay pending until the keep that follows; memory is bounded by the connections.
                drop(self.file.flush());
            }
        }
    }

    /// Nothing more is written; `is_kept` says whether everything is on disk.
    ///
    /// # Errors
    /// When a sink that is required did not take the last records.
    pub(super) fn end(self, is_kept: bool) -> std::io::Result<()> {
        if is_kept {
            self.shared.end_reservation();
        }
        self.shipping.end()
    }
}
