//! When a run must end before it is done: on SIGINT, SIGTERM or SIGHUP, or when it takes too long.
//! Ends nothing itself: whoever waits asks, and returns the error, so that everything is cleaned up on the way.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::Outcome;

#[derive(Clone)]
pub struct Stop {
    reason: Arc<OnceLock<String>>,
}

impl Stop {
    /// Takes the signals over, from now until the process ends.
    pub fn watch(limit: Duration) -> Outcome<Self> {
        let failed = |error: std::io::Error| format!("signals: {error}");
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [mut interrupt, mut terminate, mut hangup] = {
            let _entered = runtime.enter();
            let [first, second, third] = kinds.map(signal);
            [first.map_err(failed)?, second.map_err(failed)?, third.map_err(failed)?]
        };
        let stop = Self { reason: Arc::default() };
        let told = stop.clone();
        thread::spawn(move || {
            let reason = runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => "interrupted".to_owned(),
                    _ = terminate.recv() => "told to end".to_owned(),
                    _ = hangup.recv() => "the terminal is gone".to_owned(),
                    () = tokio::time::sleep(limit) => format!("not done within {} s", limit.as_secs()),
                }
            });
            // Nobody else sets it.
            let _ = told.reason.set(reason);
        });
        Ok(stop)
    }

    /// An error once the run must end.
    pub fn check(&self) -> Outcome<()> {
        self.reason.get().map_or(Ok(()), |reason| Err(reason.clone()))
    }
}
