//! The audit log: what was decided, before it is forwarded, and what came of it.
//!
//! Only `recorder` makes a [`Recorded`]; values never come here.

pub mod chain;
mod chain_line;
mod changes;
mod earlier;
pub mod event;
mod file;
pub mod fold;
mod folder;
pub mod level;
mod line;
mod log;
mod open;
mod recorded;
pub mod recorder;
mod reservation;
mod room;
mod seal;
mod shipping;
#[cfg(test)]
mod tests;
mod tidy;
mod writer;

pub use event::{CallId, ConnectionId, Event, Outcome, Record, RecordedTouches, Verdict};
pub use folder::FileError;
pub use level::{KeyForm, LeftOut, Level, LevelRule, Levels, Shown};
pub use recorded::{CoreShare, OpenConnection, Recorded};
pub use recorder::{CoreRecorder, Recorder, Unavailable};
pub use seal::{LongTermKey, SealEvery};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::sink;

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
    /// How the log is sealed, if it is.
    pub seal: Option<SealConfig>,
    /// When a new file is begun.
    pub rotate: RotateAt,
    /// What becomes of closed files.
    pub retention: Retention,
    /// Which requests are recorded, and how much of them.
    pub levels: Arc<Levels>,
    /// Where else lines go.
    pub sinks: Vec<sink::Config>,
}

/// Signed checkpoints.
#[derive(Clone, Debug)]
pub struct SealConfig {
    /// The key that speaks for each process.
    pub key: Arc<LongTermKey>,
    /// How often.
    pub every: SealEvery,
}

/// When a file is large or old enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RotateAt {
    /// Bytes; 0 is never.
    pub bytes: u64,
    /// How long it has been in use.
    pub age: Option<Duration>,
}

/// Closed files of all chains in the folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Whether they are compressed.
    pub compress: bool,
    /// The most that are kept.
    pub files: Option<u32>,
    /// The longest that one is kept.
    pub age: Option<Duration>,
    /// The most bytes that they take.
    pub bytes: Option<u64>,
}

/// What a decision must have reached before its request is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The disk.
    Blocking,
    /// The queue.
    Buffered,
}
