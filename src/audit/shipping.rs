//! The lines that go to sinks, too: put together as the file gets them, handed over once the file has them. What waits
//! for sinks that are required is held here, and nothing else is: the file is written whatever they do.

use std::collections::VecDeque;
use std::sync::Arc;

use smallvec::SmallVec;

use super::room::Place;
use crate::sink::{self, BATCH_BYTES_MAX, Batch, Lines, Lost, Sink, SinkHandle};

/// The sinks of a log, and what waits for them.
#[derive(Debug, Default)]
pub(super) struct Shipping {
    sinks: Vec<Sink>,
    all: Lineup,
    checkpoints: Lineup,
    held: VecDeque<Held>,
}

/// Lines for the sinks that get such ones.
#[derive(Debug, Default)]
struct Lineup {
    is_wanted: bool,
    full: Vec<Batch>,
    open: Batch,
}

/// What a batch of the log has to do when all required sinks have it.
#[derive(Debug)]
struct Held {
    /// How many records each of them must have.
    owed: SmallVec<[u64; 2]>,
    kept: Kept,
}

/// Records of the queue that the file keeps.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// The last of them.
    pub(super) taken: u64,
    /// Whether all up to it are synced.
    pub(super) synced: bool,
    /// Free again when they are as safe as they have to be.
    pub(super) places: Vec<Place>,
}

impl Lineup {
    fn take(&mut self, line: &[u8]) {
        if !self.is_wanted {
            return;
        }
        if !self.open.lines.is_empty() && self.open.lines.len() + line.len() > BATCH_BYTES_MAX {
            self.full.push(std::mem::take(&mut self.open));
        }
        self.open.push(line);
    }

    fn batches(&mut self) -> impl Iterator<Item = Batch> {
        let open = std::mem::take(&mut self.open);
        self.full.drain(..).chain((open.records > 0).then_some(open))
    }
}

impl Shipping {
    pub(super) fn new(sinks: Vec<Sink>) -> Self {
        let wants = |lines| Lineup {
            is_wanted: sinks.iter().any(|sink| sink.lines() == lines),
            ..Lineup::default()
        };
        let (all, checkpoints) = (wants(Lines::All), wants(Lines::Checkpoints));
        Self { sinks, all, checkpoints, held: VecDeque::new() }
    }

    /// What others may know of them.
    pub(super) fn handles(&self) -> Arc<[SinkHandle]> {
        self.sinks.iter().map(|sink| sink.handle().clone()).collect()
    }

    /// Takes a line with its newline.
    pub(super) fn take(&mut self, line: &[u8]) {
        self.all.take(line);
    }

    /// Takes a line that is a first record or a checkpoint; it was taken as a line, too.
    pub(super) fn take_checkpoint(&mut self, line: &[u8]) {
        self.checkpoints.take(line);
    }

    /// The file has the lines: hands them over. What comes back is as safe as it has to be; what has to wait for a
    /// sink comes from [`Shipping::release`].
    pub(super) fn hand_over(&mut self, kept: Kept) -> Option<Kept> {
        for (lineup, lines) in
            [(&mut self.all, Lines::All), (&mut self.checkpoints, Lines::Checkpoints)]
        {
            // A crash must not take from the log what its witness has.
            if lines == Lines::Checkpoints && !kept.synced {
                continue;
            }
            for batch in lineup.batches().map(Arc::new) {
                let these = self.sinks.iter_mut().filter(|sink| sink.lines() == lines);
                these.for_each(|sink| sink.push(&batch));
            }
        }
        let owed: SmallVec<[u64; 2]> = self.sinks.iter().filter_map(Sink::owes).collect();
        if owed.is_empty() {
            return Some(kept);
        }
        match self.held.back_mut() {
            // Nothing more to wait for; but what is not synced must not pass for synced with what came before.
            Some(last) if last.owed == owed && (kept.synced || !last.kept.synced) => {
                last.kept.synced = kept.synced;
                last.kept.taken = kept.taken;
                last.kept.places.extend(kept.places);
            }
            _ => self.held.push_back(Held { owed, kept }),
        }
        None
    }

    /// The next that all required sinks have.
    pub(super) fn release(&mut self) -> Option<Kept> {
        let owed = &self.held.front()?.owed;
        let required = self.sinks.iter().filter(|sink| sink.owes().is_some());
        let have_it = required.zip(owed).all(|(sink, owed)| sink.taken() >= *owed);
        if have_it { self.held.pop_front().map(|held| held.kept) } else { None }
    }

    /// Which sinks lost what since this was last asked.
    pub(super) fn take_lost(&self) -> Vec<(Arc<str>, Lost)> {
        let lost = |sink: &Sink| (sink.handle().shared_name(), sink.take_lost());
        self.sinks.iter().map(lost).filter(|(_, lost)| lost.records > 0).collect()
    }

    /// Lets them take what they have, but not for long.
    ///
    /// # Errors
    /// When one that is required did not.
    pub(super) fn end(self) -> std::io::Result<()> {
        let owing = sink::end(self.sinks);
        let text = |(name, lost): &(Arc<str>, u64)| {
            format!("the sink `{name}`, which is required, did not take the last {lost} records")
        };
        let texts: Vec<String> = owing.iter().map(text).collect();
        if texts.is_empty() {
            return Ok(());
        }
        Err(std::io::Error::other(format!("{}; the file has them", texts.join(", "))))
    }
}
