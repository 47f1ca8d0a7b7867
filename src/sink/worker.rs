//! The thread of a sink: takes what waits, sends it, and again until it arrives. What was half sent when a connection
//! broke is sent once more: a collector may see a line twice, and tells by chain and `seq`.
//!
//! A collector that answers and refuses gets one line at a time, and then, in place of the one it does not take, a
//! stub: no client must be able to stop the others' records with one of its own.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use super::line::{bare, shortened};
use super::otlp::Otlp;
use super::queue::{Batch, Queue};
use super::stdout::Stdout;
use super::syslog::Syslog;
use super::{Config, To};

/// How long it rests after a failure.
const RETRY: Duration = Duration::from_millis(500);

pub(super) struct Worker {
    name: Arc<str>,
    deadline: Duration,
    line_bytes: usize,
    queue: Arc<Queue>,
    transport: Transport,
    was_failing: bool,
}

enum Transport {
    Stdout(Stdout),
    Syslog(Box<Syslog>),
    Otlp(Box<Otlp>),
}

/// Why lines did not arrive.
#[derive(Debug)]
pub(super) enum Fault {
    /// The other side is away, or silent.
    Away(String),
    /// It answers, and does not take them; it may take others.
    Refused(String),
}

impl Worker {
    pub(super) fn new(config: &Config, queue: Arc<Queue>) -> Self {
        let transport = match &config.to {
            To::Stdout => Transport::Stdout(Stdout::default()),
            To::Syslog(syslog) => Transport::Syslog(Box::new(Syslog::new(syslog))),
            To::Otlp(otlp) => Transport::Otlp(Box::new(Otlp::new(otlp))),
        };
        Self {
            name: Arc::clone(&config.name),
            deadline: config.deadline,
            line_bytes: config.line_bytes,
            queue,
            transport,
            was_failing: false,
        }
    }

    /// `taken` is told whenever something has arrived.
    pub(super) fn run(mut self, runtime: &Runtime, taken: impl Fn()) {
        while let Some(batches) = self.queue.next() {
            let Some(shortened) = self.deliver(runtime, &batches) else { return };
            self.queue.confirm(&batches, shortened);
            taken();
        }
    }

    /// Has all lines arrive; how many of them shorter. `None` when the end came first.
    fn deliver(&mut self, runtime: &Runtime, batches: &[Arc<Batch>]) -> Option<u64> {
        let whole: Vec<&[u8]> = batches.iter().flat_map(|batch| batch.lines()).collect();
        let lines: Vec<_> = whole.iter().map(|line| shortened(line, self.line_bytes)).collect();
        let fitted: Vec<&[u8]> = lines.iter().map(AsRef::as_ref).collect();
        let mut short =
            lines.iter().zip(&whole).filter(|(line, whole)| line.len() < whole.len()).count();
        loop {
            match self.send(runtime, batches, &fitted) {
                Ok(()) => return Some(short as u64),
                Err(Fault::Away(why)) => self.rest(why)?,
                Err(Fault::Refused(_)) => break,
            }
        }
        for (line, whole) in fitted.iter().zip(&whole) {
            short += usize::from(self.deliver_one(runtime, line, whole)?);
        }
        Some(short as u64)
    }

    /// Has one line arrive, or what stands for it; whether it was that.
    fn deliver_one(&mut self, runtime: &Runtime, line: &[u8], whole: &[u8]) -> Option<bool> {
        loop {
            match self.send(runtime, &[], &[line]) {
                Ok(()) => return Some(false),
                Err(Fault::Away(why)) => self.rest(why)?,
                Err(Fault::Refused(_)) => match self.send(runtime, &[], &[&bare(whole)]) {
                    Ok(()) => return Some(true),
                    // It takes nothing at all: a wrong token, a wrong path, a disk that is full.
                    Err(Fault::Away(why) | Fault::Refused(why)) => self.rest(why)?,
                },
            }
        }
    }

    fn send(
        &mut self,
        runtime: &Runtime,
        batches: &[Arc<Batch>],
        lines: &[&[u8]],
    ) -> Result<(), Fault> {
        let sent = runtime.block_on(async {
            let sending = self.transport.send(batches, lines);
            let silent = || format!("it has not answered for {} seconds", self.deadline.as_secs());
            let sent = tokio::time::timeout(self.deadline, sending).await;
            sent.unwrap_or_else(|_| Err(Fault::Away(silent())))
        });
        match &sent {
            Ok(()) => {
                if std::mem::take(&mut self.was_failing) {
                    let sink = &*self.name;
                    tracing::info!(sink, "the sink of the audit log takes records again");
                }
            }
            Err(_) => self.transport.reset(),
        }
        sent
    }

    /// After a failure; `None` when the end has come.
    fn rest(&mut self, why: String) -> Option<()> {
        let sink = &*self.name;
        if self.queue.fail(why.clone()) && !self.was_failing {
            tracing::error!(sink, why, "a sink of the audit log takes no records");
        }
        self.was_failing = true;
        if self.queue.is_closing() {
            return None;
        }
        self.queue.rest(RETRY);
        Some(())
    }
}

impl Transport {
    /// Sends lines, which are those of the batches where there are any.
    async fn send(&mut self, batches: &[Arc<Batch>], lines: &[&[u8]]) -> Result<(), Fault> {
        match self {
            Self::Stdout(stdout) => stdout.send(batches).await,
            Self::Syslog(syslog) => syslog.send(lines).await,
            Self::Otlp(otlp) => otlp.send(lines).await,
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
