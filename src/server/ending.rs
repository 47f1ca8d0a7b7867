//! What ends ringfence: a signal, or another ringfence that serves in its place; and the wait until its calls have ended.
//!
//! It never ends anything by itself but calls that are told a second time.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::ServeError;
use super::doors::Next;
use super::handover::Giver;
use super::manager::Manager;
use super::reload::Command;
use super::worker::Workers;
use crate::audit::Recorder;

/// Why ringfence ends.
#[derive(Debug)]
pub(super) enum Why {
    /// That signal came.
    Signal(&'static str),
    /// Another ringfence has its place.
    Replaced,
    /// It was to have the place of another, which goes on.
    NoPlace(ServeError),
}

impl Why {
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Signal(name) => name,
            Self::Replaced => "another ringfence has its place",
            Self::NoPlace(_) => "the older ringfence goes on",
        }
    }

    /// Whether another one serves on the same sockets.
    pub(super) const fn leaves_another(&self) -> bool {
        matches!(self, Self::Replaced | Self::NoPlace(_))
    }
}

/// Has an older ringfence end, and waits for what ends this one. What a newer one could have is let go with that: a
/// socket is closed when all copies of it are.
pub(super) async fn wait(next: Next, signals: &mut Signals, serves: impl FnOnce()) -> Why {
    let giver = match next.serves().await {
        Ok(giver) => giver,
        Err(error) => return Why::NoPlace(error),
    };
    serves();
    let Some(mut giver) = giver else { return Why::Signal(signals.next().await) };
    tokio::select! {
        signal = signals.next() => Why::Signal(signal),
        newer = replaced(&mut giver) => {
            tracing::info!(newer, "another ringfence serves in this one's place");
            Why::Replaced
        }
    }
}

async fn replaced(giver: &mut Giver) -> u32 {
    giver.give().await.unwrap_or_default()
}

/// Waits until every call has ended; a second signal cuts those that are open.
pub(super) async fn join(
    workers: Workers,
    drain_timeout: Duration,
    signals: &mut Signals,
    cut: &watch::Sender<bool>,
) -> bool {
    let mut joining = std::pin::pin!(workers.join(drain_timeout));
    tokio::select! {
        clean = &mut joining => return clean,
        signal = signals.next() => {
            tracing::warn!(signal, "ending at once: told a second time");
            cut.send_replace(true);
        }
    }
    joining.await
}

/// The signals that end the process, and the one that does not.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    recorder: Recorder,
    manager: Manager,
    reload: std::sync::mpsc::Sender<Command>,
}

impl Signals {
    pub(super) fn new(
        recorder: Recorder,
        manager: Manager,
        reload: std::sync::mpsc::Sender<Command>,
    ) -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        let hangup = signal(SignalKind::hangup())?;
        Ok(Self { terminate, interrupt, hangup, recorder, manager, reload })
    }

    /// The name of the next one that ends the process. SIGHUP has the config read again, and the audit log go on in a
    /// new file.
    async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => {
                    tracing::info!("SIGHUP: the config is read again, the audit log goes on in a new file");
                    self.manager.reloading();
                    self.recorder.rotate();
                    if self.reload.send(Command::Reload).is_err() {
                        let why = "the thread that reads the config again has ended";
                        tracing::error!("{why}");
                        // The manager waits for the end of the reload.
                        self.manager.ready(why);
                    }
                }
            }
        }
    }
}
