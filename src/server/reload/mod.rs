//! Reads the config again when it may have changed, on a thread of its own, and puts it in force as a whole or not at
//! all. What is in force stays so until something better is there.

mod revocation;
mod still;

pub(super) use revocation::Lists;

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::generation::Generation;
use super::manager::Manager;
use crate::audit::Recorder;
use crate::clock;
use crate::config::{self, Config, Fixed, Loaded, Named, Reload};
use crate::document::{Problem, Severity};
use crate::metrics::{Metrics, ReloadUnit};
use still::Still;

/// How often files are looked at. A file that has changed has to stand still for as long before it is read: who writes
/// a policy in place must not have half of it in force.
const LOOK_EVERY: Duration = Duration::from_millis(150);
/// A thread that reads and is not seen for so long hangs, or has died.
const STANDS_AFTER: Duration = Duration::from_secs(60);
/// The most problems of a reload that are told one by one.
const PROBLEMS_TOLD_MAX: usize = 20;

/// What is asked of the reloader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Read everything now.
    Reload,
}

/// What came of the last try, for whoever asks.
#[derive(Clone, Debug, Default)]
pub(super) struct State(Arc<Mutex<Failures>>);

/// Why a unit is not what its files say, if it is not.
#[derive(Clone, Debug, Default)]
struct Failures {
    config: Option<String>,
    lists: Option<String>,
    /// When the thread that reads was seen last.
    seen: Option<Instant>,
}

impl State {
    /// What `/readyz?verbose` says of it.
    pub(super) fn notes(&self, generation: u64) -> Vec<String> {
        let Failures { config, lists, .. } = self.failures().clone();
        let config = match config {
            None => format!("[+] config: generation {generation}"),
            Some(why) => format!("[!] config: generation {generation} goes on: {why}"),
        };
        let lists = match lists {
            None => "[+] revocation: ok".to_owned(),
            Some(why) => format!("[!] revocation: what counted goes on: {why}"),
        };
        let stands = self.stands().map(|seconds| {
            format!(
                "[!] reload: files have not been looked at for {seconds} seconds; restart ringfence"
            )
        });
        [config, lists].into_iter().chain(stands).collect()
    }

    /// For how many seconds the thread that reads has not been seen, if that is too long.
    pub(super) fn stands(&self) -> Option<u64> {
        let since = self.failures().seen?.elapsed();
        (since > STANDS_AFTER).then_some(since.as_secs())
    }

    /// What the service manager shows of it.
    pub(super) fn status(&self, generation: u64) -> String {
        let failure =
            self.failures().config.clone().map(|why| format!("; the last reload failed: {why}"));
        format!("serves generation {generation}{}", failure.unwrap_or_default())
    }

    fn set(&self, failure: Option<String>) {
        self.failures().config = failure;
    }

    fn set_lists(&self, failure: Option<String>) {
        self.failures().lists = failure;
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads again, and again.
#[derive(Debug)]
pub(super) struct Reloader {
    pub(super) path: PathBuf,
    pub(super) generations: watch::Sender<Arc<Generation>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) recorder: Recorder,
    pub(super) state: State,
    pub(super) manager: Manager,
    /// How it was asked to do it.
    pub(super) when: Reload,
    pub(super) fixed: Fixed,
    pub(super) files: Files,
    pub(super) lists: Lists,
}

/// Starts the thread that reads again; it ends when the sender is dropped.
///
/// # Errors
/// When there is no thread to be had.
pub(super) fn start(reloader: Reloader) -> std::io::Result<Sender<Command>> {
    let (sender, commands) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name("reload".to_owned());
    thread.spawn(move || reloader.run(&commands))?;
    Ok(sender)
}

/// The files, and how they looked.
#[derive(Debug)]
pub(super) struct Files {
    named: Named,
    still: Still,
}

impl Files {
    /// Begins with what a config that is in force was read from.
    pub(super) fn new(named: Named) -> Self {
        // What changes while it is read looks different from then on.
        Self { still: Still::new(named.as_read()), named }
    }

    /// Looks at those of a config that is not in force, too.
    fn extend(&mut self, named: Named) {
        self.still.overlay(named.as_read());
        self.named.extend(named);
    }
}

/// What is waited for besides files that change.
#[derive(Debug)]
struct Waiting {
    /// When the last full look was.
    read: Instant,
    /// Since when a certificate and its key do not belong together.
    lacks_a_half: Option<Instant>,
    /// Somebody asked for it, and waits until it is over.
    is_asked: bool,
    /// What the service manager was told last.
    told: String,
}

impl Reloader {
    /// Goes on until the sender of commands is dropped.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        let told = self.status();
        let read = Instant::now();
        let mut waiting = Waiting { read, lacks_a_half: None, is_asked: false, told };
        loop {
            self.state.failures().seen = Some(Instant::now());
            match commands.recv_timeout(LOOK_EVERY) {
                Ok(Command::Reload) => {
                    waiting.is_asked = true;
                    self.read_lists();
                    self.read(&mut waiting, Instant::now());
                }
                Err(RecvTimeoutError::Timeout) => self.look(&mut waiting, Instant::now()),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.tell(&mut waiting);
        }
    }

    /// Tells the service manager what is in force: when that is another thing, and when a reload that it waits for is
    /// over, whatever came of it.
    fn tell(&self, waiting: &mut Waiting) {
        let status = self.status();
        let is_over = waiting.lacks_a_half.is_none() && !self.files.still.is_due();
        if waiting.is_asked && is_over {
            waiting.is_asked = false;
            self.manager.ready(&status);
        } else if status != waiting.told {
            self.manager.status(&status);
        }
        waiting.told = status;
    }

    fn status(&self) -> String {
        self.state.status(self.generations.borrow().number)
    }

    fn look(&mut self, waiting: &mut Waiting, now: Instant) {
        let mut is_ready = self.files.still.is_due();
        if self.when.watches_files {
            // First: what is revoked must not wait for anything.
            self.look_at_lists(now);
            is_ready = self.files.still.is_ready(self.files.named.look(), now);
        }
        let since = now.duration_since(waiting.read);
        let is_time = self.when.every.is_some_and(|every| since >= every);
        let gives_up = waiting.lacks_a_half.is_some_and(|since| now - since >= self.when.pair_wait);
        if is_time {
            self.read_lists();
        }
        if is_ready || is_time || gives_up {
            self.read(waiting, now);
        }
    }

    fn read(&mut self, waiting: &mut Waiting, now: Instant) {
        waiting.read = now;
        self.files.still.is_read();
        let revoked = Arc::clone(&self.generations.borrow().revocation);
        let Loaded { config, named, lacks_a_half } =
            config::load_again(&self.path, clock::since_epoch(), Some(&revoked));
        match config {
            Err(_) if lacks_a_half && self.waits_for_half(waiting, now) => {
                // Every file that was named is looked at still: the half that is missing may be one of them.
                self.files.extend(named);
            }
            Err(problems) => {
                waiting.lacks_a_half = None;
                self.files.extend(named);
                self.fail(&problems);
            }
            Ok(config) => {
                waiting.lacks_a_half = None;
                let is_still = named.as_read() == named.look();
                self.files = Files::new(named);
                // What changed while it was read may be half of this and half of that; it is read again.
                if is_still {
                    self.adopt(config);
                } else {
                    self.files.still.is_asked(now);
                }
            }
        }
    }

    /// Whether a certificate is given time for its key.
    fn waits_for_half(&self, waiting: &mut Waiting, now: Instant) -> bool {
        let since = *waiting.lacks_a_half.get_or_insert(now);
        let waits = now - since < self.when.pair_wait;
        if waits && since == now {
            let seconds = self.when.pair_wait.as_secs();
            tracing::info!(
                seconds,
                "a certificate and its key do not belong together; waiting for the other half"
            );
        }
        waits
    }

    fn adopt(&mut self, config: Config) {
        let changes = self.fixed.changes(&config.fixed);
        if !changes.is_empty() {
            return self.fail(&changes);
        }
        for warning in &config.warnings {
            tracing::warn!("{}", one_line(warning));
        }
        let when = config.reload;
        let (identities, rules) = config.policy.size();
        let before = Arc::clone(&self.generations.borrow());
        let generation = match Generation::new(config, Some(&before)) {
            Ok(generation) => Arc::new(generation),
            Err(error) => {
                tracing::error!(%error, "the new config is not in force");
                return self.note_failure(error.to_string());
            }
        };
        if let Some(why) = ends_service(&before, &generation, clock::since_epoch()) {
            tracing::error!("{why}; the config is not in force, the one before goes on");
            return self.note_failure(why);
        }
        self.when = when;
        let number = generation.number;
        self.recorder.record_generation(number, identities, rules);
        if generation.revocation != before.revocation {
            let (lists, revoked, denied) = generation.revocation.size();
            self.recorder.record_revocation(lists, revoked, denied);
        }
        self.lists.follow(&generation);
        self.generations.send_replace(generation);
        self.state.set(None);
        self.metrics.note_reload(ReloadUnit::Generation, number, clock::since_epoch());
        tracing::info!(generation = number, identities, rules, "a new config is in force");
    }

    fn fail(&self, problems: &[Problem]) {
        let errors: Vec<String> = problems
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
            .map(one_line)
            .collect();
        for error in errors.iter().take(PROBLEMS_TOLD_MAX) {
            tracing::error!("{error}");
        }
        let generation = self.generations.borrow().number;
        tracing::error!(
            errors = errors.len(),
            generation,
            "the config is not in force; the one before goes on"
        );
        let first = errors.into_iter().next().unwrap_or_default();
        self.note_failure(first);
    }

    fn note_failure(&self, why: String) {
        self.state.set(Some(why));
        self.metrics.note_failed_reload(ReloadUnit::Generation);
    }
}

/// A problem on one line, whatever a file is called.
fn one_line(problem: &Problem) -> String {
    problem.to_string().replace("\n  hint: ", "; ").replace(char::is_control, "?")
}

/// A certificate that has expired must not take the place of one that has not: nobody would get in.
fn ends_service(before: &Generation, after: &Generation, now: Duration) -> Option<String> {
    let now_seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let is_over = |generation: &Generation, setting: &str| {
        let mut own = generation.own_certificates.iter();
        own.any(|one| one.setting == setting && one.not_after_seconds < now_seconds)
    };
    let settings = ["client.certificate", "upstream.certificate"].into_iter();
    let mut ended = settings.filter(|of| is_over(after, of) && !is_over(before, of));
    let setting = ended.next()?;
    Some(format!(
        "error: the certificate of `{setting}` has expired, and the one in force has not; put a fresh one there"
    ))
}
