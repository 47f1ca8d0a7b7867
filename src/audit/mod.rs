//! The audit log: what was decided, before it is forwarded, and what came of it.
//!
//! Only `recorder` makes a [`Recorded`]; values never come here.

pub mod event;
mod file;
pub mod fold;
mod line;
pub mod recorder;

pub use event::{CallId, ConnectionId, Event, Outcome, Record, RecordedTouches, Verdict};
pub use file::FileError;
pub use recorder::{Recorded, Recorder, Unavailable};

use std::path::PathBuf;
use std::time::Duration;

/// Where and how records are kept.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of the log files; made with mode 0700 when it is not there.
    pub directory: PathBuf,
    /// The most bytes of records that may wait to be written.
    pub queue_bytes: u32,
    /// How long a request waits for room in the queue before it is refused.
    pub wait: Duration,
}
