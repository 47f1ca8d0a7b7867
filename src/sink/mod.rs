//! Ships lines of the audit log elsewhere: to standard output, to syslog, to an OTLP collector. Each sink has a thread
//! of its own; the log waits for those that are required, and for no other.
//!
//! It knows lines, not records: what is in one is `audit`'s. It never holds more than its queue may.

mod otlp;
mod queue;
mod stdout;
mod syslog;
mod worker;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use otlp::OtlpConfig;
use queue::Queue;
pub use queue::{Batch, Silent};
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
    /// The most bytes of lines that may wait for it.
    pub queue_bytes: usize,
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
    deadline: Duration,
    required: bool,
    thread: JoinHandle<()>,
}

/// What others may know of a sink. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SinkHandle {
    name: Arc<str>,
    queue: Arc<Queue>,
}

impl Sink {
    /// Starts its thread; nothing is connected yet.
    ///
    /// # Errors
    /// When there is no thread or no runtime for it.
    pub fn start(config: &Config) -> std::io::Result<Self> {
        let bound = if config.required { usize::MAX } else { config.queue_bytes };
        let queue = Arc::new(Queue::new(bound));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .build()?;
        let worker = worker::Worker::new(config, Arc::clone(&queue));
        let thread =
            std::thread::Builder::new().name(format!("sink {}", config.name)).spawn(move || {
                worker.run(&runtime);
                // A write to a pipe that nobody reads would never end.
                runtime.shutdown_background();
            })?;
        let handle = SinkHandle { name: Arc::clone(&config.name), queue };
        let (lines, deadline, required) = (config.lines, config.deadline, config.required);
        Ok(Self { handle, lines, deadline, required, thread })
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
    pub fn push(&self, batch: &Arc<Batch>) {
        self.handle.queue.push(batch);
    }

    /// Waits until a required sink has all that it was given, but not longer than it may take.
    ///
    /// # Errors
    /// Why it has not.
    pub fn wait(&self) -> Result<(), Silent> {
        if !self.required {
            return Ok(());
        }
        self.handle.queue.wait_until_taken(self.deadline)
    }

    /// Lines that were lost since this was last asked.
    #[must_use]
    pub fn take_lost(&self) -> u64 {
        self.handle.queue.take_lost()
    }

    /// Lets it take what it has, but not for long.
    pub fn end(self) {
        self.handle.queue.close();
        let started = Instant::now();
        while !self.thread.is_finished() && started.elapsed() < LAST_PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        let lost = self.handle.queue.give_up();
        if lost > 0 {
            let sink = &*self.handle.name;
            tracing::warn!(sink, lost, "a sink of the audit log did not take the last records");
        }
    }
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

    /// Lines that it has taken, and lines that it never will.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        self.queue.counts()
    }

    /// Why it takes nothing at the moment; `None` when it does.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.queue.failure()
    }
}
