//! How far a reading of large logs is, on a terminal.

use indicatif::{ProgressBar, ProgressStyle};

use crate::evidence::Segment;

/// A bar on stderr; nothing where that is no terminal.
pub(super) struct Progress(ProgressBar);

impl Progress {
    pub(super) fn new(segments: &[Segment]) -> Self {
        let bar = ProgressBar::new(segments.iter().map(Segment::bytes).sum());
        let shown = "{bar:30} {percent:>3} % of {total_bytes}, {bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(shown) {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// So many bytes of the files more.
    pub(super) fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Takes the bar away: at the end, and before lines that the same terminal may show.
    pub(super) fn end(&self) {
        self.0.finish_and_clear();
    }
}
