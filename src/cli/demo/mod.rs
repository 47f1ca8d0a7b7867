//! `ringfence demo`: a real etcd behind a real ringfence on loopback, and a short story played with
//! etcdctl in which every step has an expectation.
//!
//! It only starts programs and looks at them from outside, as any client would; it reaches into
//! nothing that `serve` does.

mod admin;
mod evidence;
mod folder;
mod play;
mod process;
mod programs;
mod raw;
mod stage;
mod stay;
mod story;

use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};

use self::folder::Folder;
use self::programs::Programs;
use self::stage::Stage;
use super::{complain, say};
use crate::clock;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print commands for another shell and stay until Ctrl-C; the folder is kept
    #[arg(long)]
    stay: bool,
}

/// Exit code 0 when every expectation was met and everything ended in good order.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(demonstrate(arguments.stay)),
        Err(error) => Err(format!("cannot begin: {error}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn demonstrate(stay: bool) -> Result<(), String> {
    let mut end_signals = EndSignals::new()?;
    let programs = Programs::find()?;
    let folder = Folder::create(&std::env::temp_dir(), clock::since_epoch(), stay)?;
    let mut stage = Stage::new(folder.path(), programs);
    let shown = tokio::select! {
        shown = show(&mut stage) => shown,
        () = end_signals.next() => Err("ended by a signal before the story was over".to_owned()),
    };
    let shown = match shown {
        Ok(()) if stay => remain(&mut stage, &mut end_signals).await,
        shown => shown,
    };
    let stopped = stage.stop().await;
    if stay {
        say(&format!("Kept: {}", folder.path().display()));
    }
    shown.and(stopped)
}

/// The demonstration proper.
async fn show(stage: &mut Stage) -> Result<(), String> {
    say(&format!(
        "ringfence {} in front of etcd, on 127.0.0.1, with mutual TLS on both sides",
        env!("CARGO_PKG_VERSION")
    ));
    say(&format!("  folder   {}", stage.folder.display()));
    say(&format!("  etcd     {}", stage.programs.etcd.display()));
    say(&format!("  etcdctl  {}", stage.programs.etcdctl.display()));
    stage.start().await?;
    let tally = play::play(stage).await?;
    let evidence = evidence::show(stage).await;
    if tally.unmet > 0 {
        return Err(format!("{} of {} expectations were not met", tally.unmet, tally.steps));
    }
    evidence?;
    say("");
    say(&format!("All {} expectations were met.", tally.steps));
    Ok(())
}

/// Lets somebody try for themselves.
async fn remain(stage: &mut Stage, end_signals: &mut EndSignals) -> Result<(), String> {
    stay::invite(stage)?;
    tokio::select! {
        () = end_signals.next() => Ok(()),
        error = stage.first_to_end() => Err(error),
    }
}

/// Ctrl-C, a polite kill, a terminal that went away.
struct EndSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl EndSignals {
    fn new() -> Result<Self, String> {
        let listen =
            |kind| signal(kind).map_err(|error| format!("cannot listen for signals: {error}"));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
