//! Tells the service manager how it goes (sd_notify): ready, read again, ending, and, while every thread shows life,
//! that it lives.
//!
//! It has a thread of its own and must hold nobody up: a manager that does not read is its own watchdog's business.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use super::life::Lives;

/// The most news that wait to be told.
const NEWS_MAX: usize = 64;
/// How often the thread wakes when there is no watchdog.
const IDLE: Duration = Duration::from_secs(60);
/// How often it looks whether all live, within the time in which the manager wants to hear it once.
const LOOKS: u32 = 8;
/// The longest status; the rest is in the log.
const STATUS_CHARACTERS_MAX: usize = 500;

/// What is told.
#[derive(Debug)]
enum News {
    /// It serves, for the first time or again after a reload.
    Ready(String),
    Reloading,
    Status(String),
    Stopping(String),
}

/// The way to the service manager; without one it leads nowhere. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Manager(Option<SyncSender<News>>);

/// How often the manager wants to hear that ringfence lives, at the latest.
pub(super) fn watchdog() -> Option<Duration> {
    // It bites after the whole of it; half of it leaves time for a thread that is late.
    is_there().then(sd_notify::watchdog_enabled)?.map(|time| time / 2)
}

fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some_and(|path| !path.is_empty())
}

impl Manager {
    /// Starts the thread, when there is a manager.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn start(lives: Lives) -> std::io::Result<Self> {
        if !is_there() {
            return Ok(Self::default());
        }
        let (sender, news) = sync_channel(NEWS_MAX);
        let mut teller = Teller { is_told: true, serves: false };
        let every = lives.look_every();
        let watchdog = every.map(|every| Watchdog::new(lives, every, Instant::now()));
        let thread = std::thread::Builder::new().name("manager".to_owned());
        thread.spawn(move || teller.run(&news, watchdog))?;
        Ok(Self(Some(sender)))
    }

    /// It serves, or goes on after a reload.
    pub(super) fn ready(&self, status: &str) {
        self.tell(News::Ready(bounded(status)));
    }

    /// Everything is read again.
    pub(super) fn reloading(&self) {
        self.tell(News::Reloading);
    }

    /// Something that nobody asked for has come about.
    pub(super) fn status(&self, status: &str) {
        self.tell(News::Status(bounded(status)));
    }

    /// The end has begun.
    pub(super) fn stopping(&self, status: &str) {
        self.tell(News::Stopping(bounded(status)));
    }

    fn tell(&self, news: News) {
        let Some(sender) = &self.0 else { return };
        if let Err(error) = sender.try_send(news) {
            tracing::warn!(%error, "the service manager does not take what it is told");
        }
    }
}

/// One line that is not too long.
fn bounded(status: &str) -> String {
    let printable = |character: char| if character.is_control() { ' ' } else { character };
    status.chars().map(printable).take(STATUS_CHARACTERS_MAX).collect()
}

struct Teller {
    /// The last one arrived; each change is said once.
    is_told: bool,
    /// Between ready and the end.
    serves: bool,
}

impl Teller {
    fn run(&mut self, news: &Receiver<News>, mut watchdog: Option<Watchdog>) {
        let look_every = watchdog.as_ref().map_or(IDLE, |watchdog| watchdog.every / LOOKS);
        loop {
            match news.recv_timeout(look_every) {
                Ok(news) => self.pass_on(&news),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if let Some(watchdog) = &mut watchdog
                && self.serves
                && watchdog.is_fed(Instant::now())
            {
                self.notify(&[NotifyState::Watchdog]);
            }
        }
    }

    fn pass_on(&mut self, news: &News) {
        match news {
            News::Ready(status) => {
                self.serves = true;
                self.notify(&[NotifyState::Ready, NotifyState::Status(status)]);
            }
            News::Status(status) => self.notify(&[NotifyState::Status(status)]),
            News::Reloading => match NotifyState::monotonic_usec_now() {
                // By it the manager tells this reload from one before it asked.
                Ok(now) => self.notify(&[NotifyState::Reloading, now]),
                Err(error) => tracing::warn!(%error, "the system does not say the time"),
            },
            News::Stopping(status) => {
                self.serves = false;
                self.notify(&[NotifyState::Stopping, NotifyState::Status(status)]);
            }
        }
    }

    fn notify(&mut self, state: &[NotifyState<'_>]) {
        let told = sd_notify::notify(state);
        if let Err(error) = &told
            && self.is_told
        {
            tracing::warn!(%error, "the service manager, NOTIFY_SOCKET, cannot be told");
        }
        self.is_told = told.is_ok();
    }
}

/// Says when the manager hears that all live.
#[derive(Debug)]
struct Watchdog {
    lives: Lives,
    every: Duration,
    fed: Instant,
    /// Somebody is silent; it is said once.
    is_silent: bool,
}

impl Watchdog {
    const fn new(lives: Lives, every: Duration, now: Instant) -> Self {
        Self { lives, every, fed: now, is_silent: false }
    }

    /// Whether it is time, and all have shown life since the last time. Who was late is looked at again soon.
    fn is_fed(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.fed) < self.every {
            return false;
        }
        if let Some(thread) = self.lives.silent() {
            if !self.is_silent {
                tracing::error!(
                    thread,
                    "a thread shows no life; the watchdog is not fed until it does"
                );
            }
            self.is_silent = true;
            return false;
        }
        self.lives.look_anew();
        (self.fed, self.is_silent) = (now, false);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn the_watchdog_is_fed_when_it_is_time_and_every_thread_has_counted_on() {
        let counts = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
        let mut lives = Lives::new(Some(Duration::from_millis(100)));
        for (number, count) in counts.iter().enumerate() {
            let count = Arc::clone(count);
            lives.add(format!("core-{number}"), move || count.load(Ordering::Relaxed));
        }
        let began = Instant::now();
        let mut watchdog = Watchdog::new(lives, Duration::from_millis(100), began);
        // When, which of the two have counted on before, and whether it is fed.
        for (at, counting, expected) in [
            (50, &[0, 1][..], false),
            (100, &[], true),
            (190, &[0, 1], false),
            (200, &[], true),
            (300, &[0], false),
            (310, &[0], false),
            (320, &[1], true),
            (400, &[0, 1], false),
            (420, &[], true),
            (5000, &[0], false),
        ] {
            for number in counting {
                counts[*number].fetch_add(1, Ordering::Relaxed);
            }
            let now = began + Duration::from_millis(at);
            assert_eq!(watchdog.is_fed(now), expected, "at {at}");
        }
    }

    #[test]
    fn a_status_is_one_line_that_is_not_too_long() {
        assert_eq!(bounded("one\ntwo\0"), "one two ");
        assert_eq!(bounded(&"\u{e4}".repeat(2000)).chars().count(), STATUS_CHARACTERS_MAX);
    }
}
