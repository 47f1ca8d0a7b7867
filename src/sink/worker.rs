//! The thread of a sink: takes what waits, sends it, and again until it arrives. What was half sent when a connection
//! broke is sent once more: a collector may see a line twice, and tells by chain and `seq`.
//!
//! When a collector answers and refuses, each principal's lines go by themselves, and of one whose lines are refused a
//! stub goes in place of each that is: no client must be able to stop, or to hide, more than its own records.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use super::line::{bare, is_of_clients, principal_of};
use super::local::Local;
use super::otlp::Otlp;
use super::queue::{Batch, Queue};
use super::syslog::Syslog;
use super::{Config, To};

/// Lines of one principal in one batch that stubs stand for, before they do for all its others there.
const HOPELESS_MAX: u64 = 8;
/// How often in a row it must be away before one of the lines is suspected.
const FAILURES_MAX: u32 = 4;
/// How long it rests after a failure.
const RETRY: Duration = Duration::from_millis(500);

pub(super) struct Worker {
    name: Arc<str>,
    deadline: Duration,
    queue: Arc<Queue>,
    transport: Transport,
    was_failing: bool,
    /// How often it has been away in a row.
    failures: u32,
}

enum Transport {
    Local(Box<Local>),
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
            To::Stdout => Transport::Local(Box::new(Local::stdout())),
            To::File(path) => Transport::Local(Box::new(Local::file(path.clone()))),
            To::Syslog(syslog) => Transport::Syslog(Box::new(Syslog::new(syslog))),
            To::Otlp(otlp) => Transport::Otlp(Box::new(Otlp::new(otlp))),
        };
        Self {
            name: Arc::clone(&config.name),
            deadline: config.deadline,
            queue,
            transport,
            was_failing: false,
            failures: 0,
        }
    }

    /// Bytes that go before a line and count as its own at the other side.
    pub(super) const fn head_bytes(&self) -> usize {
        self.transport.head_bytes()
    }

    /// `taken` is told whenever something has arrived.
    pub(super) fn run(mut self, runtime: &Runtime, taken: impl Fn()) {
        while let Some(batches) = self.queue.next() {
            let Some(shortened) = self.deliver(runtime, &batches) else { return };
            self.queue.confirm(&batches, shortened);
            taken();
        }
    }

    /// Has all lines arrive, some of them as stubs; how many. `None` when the end came first.
    fn deliver(&mut self, runtime: &Runtime, batches: &[Arc<Batch>]) -> Option<u64> {
        let lines: Vec<&[u8]> = batches.iter().flat_map(|batch| batch.lines()).collect();
        loop {
            match self.send(runtime, &lines) {
                Ok(()) => return Some(0),
                Err(fault) if self.is_about_content(&fault) => break,
                Err(fault) => self.rest(fault.why())?,
            }
        }
        let mut stubs = 0;
        for group in by_principal(&lines) {
            stubs += self.deliver_group(runtime, &group)?;
        }
        Some(stubs)
    }

    /// Has the lines of one principal arrive, some of them as stubs; how many.
    fn deliver_group(&mut self, runtime: &Runtime, group: &[&[u8]]) -> Option<u64> {
        let (mut stubs, mut hopeless) = (0, 0);
        let mut parts = vec![group];
        while let Some(part) = parts.pop() {
            if hopeless >= HOPELESS_MAX {
                // Of so many of this principal's the others are taken to be alike.
                stubs += self.deliver_last(runtime, part, false)?;
                continue;
            }
            match self.send(runtime, part) {
                Ok(()) => {}
                Err(fault) if !self.is_about_content(&fault) => {
                    self.rest(fault.why())?;
                    parts.push(part);
                }
                Err(_) if part.len() > 1 => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
                Err(_) => {
                    let replaced = self.deliver_last(runtime, part, true)?;
                    hopeless += replaced;
                    stubs += replaced;
                }
            }
        }
        Some(stubs)
    }

    /// Has lines arrive, or what stands for them; how many stubs. The lines themselves are tried before every try of
    /// the stubs where they may be taken: a collector that comes back gets what it was away for.
    fn deliver_last(
        &mut self,
        runtime: &Runtime,
        part: &[&[u8]],
        may_be_taken: bool,
    ) -> Option<u64> {
        let stubs: Vec<_> = part.iter().map(|line| stub_of(line)).collect();
        let stubs: Vec<&[u8]> = stubs.iter().map(AsRef::as_ref).collect();
        loop {
            if may_be_taken && self.send(runtime, part).is_ok() {
                return Some(0);
            }
            match self.send(runtime, &stubs) {
                Ok(()) => return Some(stubs.len() as u64),
                // It takes nothing at all: it is away, or has a wrong token, a limit, a disk that is full.
                Err(fault) => self.rest(fault.why())?,
            }
        }
    }

    /// Whether other lines may be taken. What breaks a connection again and again may be in one of them; what a disk
    /// or a pipe does not take has nothing to do with what it is.
    const fn is_about_content(&self, fault: &Fault) -> bool {
        match self.transport {
            // It must stay so: `Local::send` goes on with the lines that it began.
            Transport::Local(_) => false,
            Transport::Syslog(_) | Transport::Otlp(_) => {
                matches!(fault, Fault::Refused(_)) || self.failures >= FAILURES_MAX
            }
        }
    }

    fn send(&mut self, runtime: &Runtime, lines: &[&[u8]]) -> Result<(), Fault> {
        let sent = runtime.block_on(async {
            let sending = self.transport.send(lines);
            let silent = || format!("it has not answered for {} seconds", self.deadline.as_secs());
            let sent = tokio::time::timeout(self.deadline, sending).await;
            sent.unwrap_or_else(|_| Err(Fault::Away(silent())))
        });
        match &sent {
            Ok(()) => {
                self.failures = 0;
                if std::mem::take(&mut self.was_failing) {
                    let sink = &*self.name;
                    tracing::info!(sink, "the sink of the audit log takes records again");
                }
            }
            Err(Fault::Away(_)) => {
                self.failures = self.failures.saturating_add(1);
                self.transport.reset();
            }
            Err(Fault::Refused(_)) => {}
        }
        sent
    }

    /// After a failure; `None` when the end has come.
    fn rest(&mut self, why: &str) -> Option<()> {
        let sink = &*self.name;
        if self.queue.fail(why.to_owned()) && !self.was_failing {
            tracing::error!(sink, why, "a sink of the audit log takes no records");
        }
        self.was_failing = true;
        self.queue.rest(RETRY).then_some(())
    }
}

impl Fault {
    fn why(&self) -> &str {
        let (Self::Away(why) | Self::Refused(why)) = self;
        why
    }
}

/// The lines of each principal, and of nobody, in the order in which they first come.
fn by_principal<'b>(lines: &[&'b [u8]]) -> Vec<Vec<&'b [u8]>> {
    let mut groups: Vec<Vec<&[u8]>> = Vec::new();
    let mut known = HashMap::new();
    for line in lines {
        let group = *known.entry(principal_of(line)).or_insert(groups.len());
        match groups.get_mut(group) {
            Some(group) => group.push(line),
            None => groups.push(vec![line]),
        }
    }
    groups
}

/// What stands for a line that is refused; one that no client had a part in stands for itself.
fn stub_of(line: &[u8]) -> Cow<'_, [u8]> {
    if is_of_clients(line) { Cow::Owned(bare(line)) } else { Cow::Borrowed(line) }
}

impl Transport {
    const fn head_bytes(&self) -> usize {
        match self {
            Self::Syslog(syslog) => syslog.head_bytes(),
            Self::Local(_) | Self::Otlp(_) => 0,
        }
    }

    async fn send(&mut self, lines: &[&[u8]]) -> Result<(), Fault> {
        match self {
            Self::Local(local) => local.send(lines).await,
            Self::Syslog(syslog) => syslog.send(lines).await,
            Self::Otlp(otlp) => otlp.send(lines).await,
        }
    }

    /// What was begun is given up.
    fn reset(&mut self) {
        match self {
            Self::Local(_) => {}
            Self::Syslog(syslog) => syslog.reset(),
            Self::Otlp(otlp) => otlp.reset(),
        }
    }
}
