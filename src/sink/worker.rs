//! The thread of a sink: takes what waits, sends it, and again until it arrives. What was half sent when a connection
//! broke is sent once more: a collector may see a line twice, and tells by chain and `seq`.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use super::otlp::Otlp;
use super::queue::{Batch, Queue};
use super::stdout::Stdout;
use super::syslog::Syslog;
use super::{Config, To};

/// How long it rests after a failure.
const RETRY: Duration = Duration::from_millis(500);

pub(super) struct Worker {
    name: Arc<str>,
    required: bool,
    deadline: Duration,
    queue: Arc<Queue>,
    place: Place,
}

enum Place {
    Stdout(Stdout),
    Syslog(Box<Syslog>),
    Otlp(Box<Otlp>),
}

impl Worker {
    pub(super) fn new(config: &Config, queue: Arc<Queue>) -> Self {
        let place = match &config.to {
            To::Stdout => Place::Stdout(Stdout::default()),
            To::Syslog(syslog) => Place::Syslog(Box::new(Syslog::new(syslog))),
            To::Otlp(otlp) => Place::Otlp(Box::new(Otlp::new(otlp))),
        };
        let (name, required, deadline) =
            (Arc::clone(&config.name), config.required, config.deadline);
        Self { name, required, deadline, queue, place }
    }

    pub(super) fn run(mut self, runtime: &Runtime) {
        while let Some(batches) = self.queue.next() {
            if !self.send(runtime, &batches) {
                return;
            }
        }
    }

    /// False when the end came first.
    fn send(&mut self, runtime: &Runtime, batches: &[Arc<Batch>]) -> bool {
        let mut was_failing = false;
        loop {
            let sent = runtime.block_on(async {
                let sending = self.place.send(batches);
                let silent =
                    || format!("it has not answered for {} seconds", self.deadline.as_secs());
                tokio::time::timeout(self.deadline, sending).await.unwrap_or_else(|_| Err(silent()))
            });
            // What can never be taken must not be passed over where the config says that it has to be.
            let sent = match sent {
                Ok(refused) if refused > 0 && self.required => {
                    Err(format!("it refuses {refused} records for good"))
                }
                sent => sent,
            };
            let sink = &*self.name;
            match sent {
                Ok(refused) => {
                    self.queue.confirm(batches, refused);
                    if was_failing {
                        tracing::info!(sink, "the sink of the audit log takes records again");
                    }
                    return true;
                }
                Err(why) => {
                    self.place.reset();
                    if self.queue.fail(why.clone()) {
                        tracing::error!(sink, why, "a sink of the audit log takes no records");
                    }
                    was_failing = true;
                    if self.queue.is_closing() {
                        return false;
                    }
                    self.queue.rest(RETRY);
                }
            }
        }
    }
}

impl Place {
    /// Sends all lines; how many of them the other side refuses for good.
    async fn send(&mut self, batches: &[Arc<Batch>]) -> Result<u64, String> {
        match self {
            Self::Stdout(stdout) => stdout.send(batches).await,
            Self::Syslog(syslog) => syslog.send(batches).await,
            Self::Otlp(otlp) => otlp.send(batches).await,
        }
    }

    /// What was begun is given up.
    fn reset(&mut self) {
        match self {
            Self::Stdout(_) => {}
            Self::Syslog(syslog) => syslog.reset(),
            Self::Otlp(otlp) => otlp.reset(),
        }
    }
}

/// The lines of batches, without their newlines.
pub(super) fn lines_of(batches: &[Arc<Batch>]) -> impl Iterator<Item = &[u8]> {
    let lines = batches.iter().flat_map(|batch| batch.lines.split(|byte| *byte == b'\n'));
    lines.filter(|line| !line.is_empty())
}
