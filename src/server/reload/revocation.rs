//! The second unit: what is revoked. It is read and put in force while the rest of the config stays, also while that is
//! broken: a typo in a policy must not hold up a revocation.

use std::sync::Arc;

use super::super::generation::Generation;
use super::{PROBLEMS_TOLD_MAX, Reloader, one_line};
use crate::clock;
use crate::config::{LoadedRevocation, Look};
use crate::document::Severity;
use crate::metrics::ReloadUnit;

/// How the files of lists looked.
#[derive(Debug, Default)]
pub(in crate::server) struct Lists {
    seen: Look,
    is_due: bool,
    /// How often they were put in force.
    number: u64,
}

impl Lists {
    /// Begins with those of the generation in force.
    pub(in crate::server) fn new(generation: &Generation) -> Self {
        Self { seen: generation.revocation_files.named().look(), is_due: false, number: 1 }
    }

    /// Another generation may name others.
    pub(super) fn follow(&mut self, generation: &Generation) {
        let look = generation.revocation_files.named().look();
        if look != self.seen {
            (self.seen, self.is_due) = (look, true);
        }
    }
}

impl Reloader {
    /// Reads them when they have changed and stand still.
    pub(super) fn look_at_lists(&mut self) {
        let files = self.generations.borrow().revocation_files.clone();
        let look = files.named().look();
        if look != self.lists.seen {
            (self.lists.seen, self.lists.is_due) = (look, true);
        } else if self.lists.is_due {
            self.read_lists();
        }
    }

    /// Reads them, and puts in force what is new.
    pub(super) fn read_lists(&mut self) {
        self.lists.is_due = false;
        let before = Arc::clone(&self.generations.borrow());
        if before.revocation_files.is_empty() {
            return;
        }
        let now = clock::since_epoch();
        let LoadedRevocation { revocation, problems, .. } =
            before.revocation_files.load(Some(&before.revocation), now);
        let failure = problems.first().map(one_line);
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
