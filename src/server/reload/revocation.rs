//! The second unit: what is revoked. It is read and put in force while the rest of the config stays, also while that is
//! broken: a typo in a policy must not hold up a revocation.

use std::sync::Arc;
use std::time::Instant;

use super::super::generation::Generation;
use super::still::Still;
use super::{PROBLEMS_TOLD_MAX, Reloader, one_line};
use crate::clock;
use crate::config::{LoadedRevocation, Look};
use crate::document::{Problem, Severity};
use crate::metrics::ReloadUnit;
use crate::tls::revocation::GOES_ON;

/// How the files of lists looked.
#[derive(Debug)]
pub(in crate::server) struct Lists {
    still: Still,
    /// How often they were put in force.
    number: u64,
}

impl Lists {
    /// Begins with those of the generation in force. They were read some time ago, so they are read again.
    pub(in crate::server) fn new(generation: &Generation) -> Self {
        let mut lists = Self { still: Still::new(Look::default()), number: 1 };
        lists.follow(generation);
        lists
    }

    /// Another generation may name others, or none.
    pub(super) fn follow(&mut self, generation: &Generation) {
        self.still = Still::new(generation.revocation_files.named().look());
        self.still.is_asked(Instant::now());
    }
}

impl Reloader {
    /// Reads them when they have changed and stand still.
    pub(super) fn look_at_lists(&mut self, now: Instant) {
        let look = self.generations.borrow().revocation_files.named().look();
        if self.lists.still.is_ready(look, now) {
            self.read_lists();
        }
    }

    /// Reads them, and puts in force what is new.
    pub(super) fn read_lists(&mut self) {
        self.lists.still.is_read();
        let before = Arc::clone(&self.generations.borrow());
        let now = clock::since_epoch();
        let LoadedRevocation { revocation, problems } =
            before.revocation_files.load(Some(&before.revocation), now);
        // A warning is a failure only where something old has to stand in for what the files say.
        let fails = |problem: &&Problem| {
            problem.severity == Severity::Error || problem.what.contains(GOES_ON)
        };
        let failure = problems.iter().find(fails).map(one_line);
        for problem in problems.iter().take(PROBLEMS_TOLD_MAX) {
            let told = one_line(problem);
            match problem.severity {
                Severity::Error => tracing::error!("{told}"),
                Severity::Warning => tracing::warn!("{told}"),
            }
        }
        if revocation != *before.revocation {
            match before.with_revocation(Arc::new(revocation)) {
                Ok(generation) => self.put_lists_in_force(generation),
                Err(error) => {
                    tracing::error!(%error, "the new revocation lists are not in force");
                    self.state.set_lists(Some(error.to_string()));
                    return self.metrics.note_failed_reload(ReloadUnit::Revocation);
                }
            }
        }
        match &failure {
            Some(_) => self.metrics.note_failed_reload(ReloadUnit::Revocation),
            None => self.metrics.note_reload(ReloadUnit::Revocation, self.lists.number, now),
        }
        if failure.is_none() && self.state.failures().lists.is_some() {
            tracing::info!("what is revoked is what the files say again");
        }
        self.state.set_lists(failure);
    }

    fn put_lists_in_force(&mut self, generation: Generation) {
        self.lists.number += 1;
        let (lists, revoked, denied) = generation.revocation.size();
        self.recorder.record_revocation(lists, revoked, denied);
        self.generations.send_replace(Arc::new(generation));
        tracing::info!(lists, revoked, denied, "another set of revocations is in force");
    }
}
