//! Ships lines of the audit log elsewhere: to standard output, to a witness file, to syslog, to an OTLP collector. Each sink has a thread
//! of its own, and writing the log's file waits for none.
//!
//! It knows lines, not records: what is in one is `audit`'s. A sink that is not required holds no more than its queue
//! may; one that is holds what the calls that wait for it have room for in the audit queue.

mod line;
mod local;
mod otlp;
mod queue;
mod syslog;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use local::{may_take_records, open};
pub use otlp::OtlpConfig;
use queue::Queue;
pub use queue::{BATCH_BYTES_MAX, Batch, Lost};
pub use syslog::{Facility, SyslogAddress, SyslogConfig};

/// How long the end of the process waits for what is on its way.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// One sink.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name, in metrics and in records about it.
    pub name: Arc<str>,
    /// Whether a call is forwarded only when the sink has its record.
    pub required: bool,
    /// How long it may take for a batch, before it counts as failed.
    pub deadline: Duration,
    /// The most bytes of lines that may wait for it; of no meaning when it is required.
    pub queue_bytes: usize,
    /// The longest line that it gets as it is.
    pub line_bytes: usize,
    /// Which lines it gets.
    pub lines: Lines,
    /// Where they go.
    pub to: To,
}

/// Which lines a sink gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// Every line.
    All,
    /// First records and checkpoints: what shows that the end of a log was cut off.
    Checkpoints,
}

/// Where lines go.
#[derive(Clone, Debug)]
pub enum To {
    /// Standard output, as they are.
    Stdout,
    /// A file, as they are.
    File(PathBuf),
    /// Syslog, RFC 5424.
    Syslog(SyslogConfig),
    /// An OTLP collector, by HTTP with JSON.
    Otlp(OtlpConfig),
}

/// A sink at work.
#[derive(Debug)]
pub struct Sink {
    handle: SinkHandle,
    lines: Lines,
    /// The longest line that it gets as it is.
    line_bytes: usize,
    /// Records that it was given.
    given: u64,
    thread: JoinHandle<()>,
}

/// What others may know of a sink. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SinkHandle {
    name: Arc<str>,
    required: bool,
    queue: Arc<Queue>,
}

impl Sink {
    /// Starts its thread; nothing is connected yet. `taken` is told whenever something has arrived.
    ///
    /// # Errors
    /// When there is no thread or no runtime for it.
    pub fn start(config: &Config, taken: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let bound = if config.required { usize::MAX } else { config.queue_bytes };
        let queue = Arc::new(Queue::new(bound));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .build()?;
        let worker = worker::Worker::new(config, Arc::clone(&queue));
        let line_bytes = config.line_bytes.saturating_sub(worker.head_bytes());
        let thread =
            std::thread::Builder::new().name(format!("sink {}", config.name)).spawn(move || {
                worker.run(&runtime, taken);
                // A write to a pipe that nobody reads would never end.
                runtime.shutdown_background();
            })?;
        let (name, required) = (Arc::clone(&config.name), config.required);
        let handle = SinkHandle { name, required, queue };
        Ok(Self { handle, lines: config.lines, line_bytes, given: 0, thread })
    }

    /// Which lines it gets.
    #[must_use]
    pub const fn lines(&self) -> Lines {
        self.lines
    }

    /// What others may know of it.
    #[must_use]
    pub const fn handle(&self) -> &SinkHandle {
        &self.handle
    }

    /// Gives it lines. What its queue has no room for is lost, and counted; a required one has room.
    pub fn push(&mut self, batch: &Arc<Batch>) {
        self.given += batch.records;
        self.handle.queue.push(&batch.shortened(self.line_bytes));
    }

    /// How many records a required sink was given; `None` when nobody waits for it.
    #[must_use]
    pub fn owes(&self) -> Option<u64> {
        self.handle.required.then_some(self.given)
    }

    /// How many records it has.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.handle.queue.taken()
    }

    /// What was lost since this was last asked.
    #[must_use]
    pub fn take_lost(&self) -> Lost {
        self.handle.queue.take_lost()
    }
}

/// Lets all sinks take what they have, but not for long; those that are required and did not, and how much.
#[must_use]
pub fn end(sinks: Vec<Sink>) -> Vec<(Arc<str>, u64)> {
    let until = Instant::now() + LAST_PATIENCE;
    sinks.iter().for_each(|sink| sink.handle.queue.close(LAST_PATIENCE));
    let mut owing = Vec::new();
    for Sink { handle, thread, .. } in sinks {
        while !thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let lost = handle.queue.give_up();
        if lost > 0 {
            let sink = handle.name();
            tracing::warn!(sink, lost, "a sink of the audit log did not take the last records");
            owing.extend(handle.required.then(|| (Arc::clone(&handle.name), lost)));
        }
    }
    owing
}

impl SinkHandle {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its name, to keep.
    #[must_use]
    pub fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// Whether calls wait for it.
    #[must_use]
    pub const fn is_required(&self) -> bool {
        self.required
    }

    /// Lines that it has taken, those among them that were shortened, and lines that it never will have.
    #[must_use]
    pub fn counts(&self) -> [u64; 3] {
        self.queue.counts()
    }

    /// Why it takes nothing at the moment; `None` when it does.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.queue.failure()
    }
}
