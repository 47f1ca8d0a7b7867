//! The lines that go to sinks, too: put together as the file gets them, handed over once the file has them. Those
//! that are required are waited for; what another one loses is told, to be recorded.

use std::sync::Arc;

use crate::sink::{Batch, Lines, Sink, SinkHandle};

/// The sinks of a log.
#[derive(Debug, Default)]
pub(super) struct Shipping {
    sinks: Vec<Sink>,
    all: Batch,
    checkpoints: Batch,
}

impl Shipping {
    pub(super) fn new(sinks: Vec<Sink>) -> Self {
        Self { sinks, ..Self::default() }
    }

    /// What others may know of them.
    pub(super) fn handles(&self) -> Arc<[SinkHandle]> {
        self.sinks.iter().map(|sink| sink.handle().clone()).collect()
    }

    /// Takes a line with its newline.
    pub(super) fn take(&mut self, line: &[u8]) {
        if !self.sinks.is_empty() {
            self.all.lines.extend_from_slice(line);
            self.all.records += 1;
        }
    }

    /// Takes a line that is a first record or a checkpoint; it was taken as a line, too.
    pub(super) fn take_checkpoint(&mut self, line: &[u8]) {
        if self.sinks.iter().any(|sink| sink.lines() == Lines::Checkpoints) {
            self.checkpoints.lines.extend_from_slice(line);
            self.checkpoints.records += 1;
        }
    }

    /// The file has the lines: hands them over, and waits for the sinks that are required.
    ///
    /// # Errors
    /// When one of those does not take them in its time. They are not handed over twice.
    pub(super) fn deliver(&mut self) -> std::io::Result<()> {
        if self.sinks.is_empty() {
            return Ok(());
        }
        for (batch, lines) in
            [(&mut self.all, Lines::All), (&mut self.checkpoints, Lines::Checkpoints)]
        {
            if batch.records > 0 {
                let batch = Arc::new(std::mem::take(batch));
                let these = self.sinks.iter().filter(|sink| sink.lines() == lines);
                these.for_each(|sink| sink.push(&batch));
            }
        }
        for sink in &self.sinks {
            sink.wait().map_err(|why| {
                let name = sink.handle().name();
                std::io::Error::other(format!("the sink `{name}` takes no records: {why}"))
            })?;
        }
        Ok(())
    }

    /// Which sinks lost how many lines since this was last asked.
    pub(super) fn take_lost(&self) -> Vec<(Arc<str>, u64)> {
        let lost = |sink: &Sink| (sink.handle().shared_name(), sink.take_lost());
        self.sinks.iter().map(lost).filter(|(_, lost)| *lost > 0).collect()
    }

    /// Lets them take what they have, but not for long.
    pub(super) fn end(self) {
        self.sinks.into_iter().for_each(Sink::end);
    }
}
