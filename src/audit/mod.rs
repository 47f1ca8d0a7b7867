//! The audit log: what was decided, before it is forwarded, and what came of it.
//!
//! Only `recorder` makes a [`Recorded`]; values never come here.

pub mod event;
mod file;
pub mod fold;
mod line;
pub mod recorder;
mod room;
#[cfg(test)]
mod tests;
mod writer;

pub use event::{CallId, ConnectionId, Event, Outcome, Record, RecordedTouches, Verdict};
pub use file::FileError;
pub use recorder::{CoreRecorder, OpenConnection, Recorded, Recorder, Unavailable};
pub use room::QueueShare;

use std::path::PathBuf;
use std::time::Duration;

/// Where and how records are kept.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of the log files; made with mode 0700 when it is not there.
    pub directory: PathBuf,
    /// What a call waits for.
    pub mode: Mode,
    /// The most bytes of records that may wait to be written.
    pub queue_bytes: u32,
    /// How long a request waits for room in the queue, and for the disk, before it is refused.
    pub wait: Duration,
}

/// What a decision must have reached before its request is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The disk.
    Blocking,
    /// The queue.
    Buffered,
}
