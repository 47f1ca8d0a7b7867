//! Which threads live: each counts on, from its own runtime, as long as it gets its turn. Who feeds a watchdog asks
//! here first.
//!
//! It must never count for somebody else: a thread that hangs has to be seen.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often a thread counts between two looks, at the least.
const BEATS: u32 = 4;
const BEAT_MIN: Duration = Duration::from_millis(5);
const BEAT_MAX: Duration = Duration::from_secs(1);

/// The count of one thread. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Pulse {
    count: Arc<AtomicU64>,
    /// `None` when nobody looks.
    every: Option<Duration>,
}

impl Pulse {
    /// Counts until its task is dropped, if somebody looks. Each thread's own runtime is to run it.
    pub(super) async fn beat(self) {
        let Some(every) = self.every else { return };
        loop {
            self.count.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(every).await;
        }
    }
}

/// What is known of one thread.
struct Known {
    name: String,
    count: Box<dyn Fn() -> u64 + Send>,
    seen: u64,
}

/// All threads that have to live.
pub(super) struct Lives {
    known: Vec<Known>,
    look_every: Option<Duration>,
}

impl std::fmt::Debug for Lives {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_list().entries(self.known.iter().map(|known| &known.name)).finish()
    }
}

impl Lives {
    /// Nobody yet; `None` when nobody is going to look.
    pub(super) const fn new(look_every: Option<Duration>) -> Self {
        Self { known: Vec::new(), look_every }
    }

    pub(super) const fn look_every(&self) -> Option<Duration> {
        self.look_every
    }

    /// One more thread, with whatever it counts on while it lives.
    pub(super) fn add(&mut self, name: String, count: impl Fn() -> u64 + Send + 'static) {
        self.known.push(Known { name, count: Box::new(count), seen: 0 });
    }

    /// One more thread that beats.
    pub(super) fn pulse(&mut self, name: String) -> Pulse {
        let count = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&count);
        self.add(name, move || counted.load(Ordering::Relaxed));
        let beat = |look_every: Duration| (look_every / BEATS).clamp(BEAT_MIN, BEAT_MAX);
        Pulse { count, every: self.look_every.map(beat) }
    }

    /// The first that has not counted on since all had.
    pub(super) fn silent(&self) -> Option<&str> {
        let silent = self.known.iter().find(|known| (known.count)() == known.seen);
        silent.map(|known| known.name.as_str())
    }

    /// From now on each has to count again.
    pub(super) fn look_anew(&mut self) {
        for known in &mut self.known {
            known.seen = (known.count)();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// Waits until nobody is silent, or that thread alone is for a while.
    fn settles(lives: &mut Lives, expected: Option<&str>) {
        for _ in 0..400 {
            std::thread::sleep(Duration::from_millis(5));
            if lives.silent().is_none() {
                lives.look_anew();
                if expected.is_none() {
                    return;
                }
            }
        }
        assert_eq!(lives.silent(), expected);
    }

    #[test]
    fn one_core_that_hangs_is_silent_however_much_the_others_count() {
        let mut lives = Lives::new(Some(Duration::from_millis(20)));
        let (hang, hanging) = channel::<Duration>();
        let mut hanging = Some(hanging);
        for core in 0..2 {
            let pulse = lives.pulse(format!("core-{core}"));
            // The second one blocks its own thread when it is told to: its runtime gets no turn.
            let hanging = if core == 1 { hanging.take() } else { None };
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let local = tokio::task::LocalSet::new();
                local.spawn_local(pulse.beat());
                local.spawn_local(async move {
                    while let Some(hanging) = &hanging {
                        if let Ok(time) = hanging.try_recv() {
                            std::thread::sleep(time);
                        }
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                });
                runtime.unwrap().block_on(local.run_until(std::future::pending::<()>()));
            });
        }
        settles(&mut lives, None);
        hang.send(Duration::from_secs(3)).unwrap();
        settles(&mut lives, Some("core-1"));
        std::thread::sleep(Duration::from_millis(1500));
        settles(&mut lives, None);
    }
}
