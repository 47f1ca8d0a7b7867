//! Files that have changed are read when they stand still: half of a policy can be a policy. But not for ever: who
//! touches a file again and again must not hold up what the others say.

use std::time::{Duration, Instant};

use crate::config::Look;

/// After so long what has changed is read, whatever changes still.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// How files looked, and since when something new is there.
#[derive(Debug)]
pub(super) struct Still {
    seen: Look,
    due_since: Option<Instant>,
}

impl Still {
    pub(super) const fn new(seen: Look) -> Self {
        Self { seen, due_since: None }
    }

    /// Something has to be read, however the files look.
    pub(super) fn is_asked(&mut self, now: Instant) {
        self.due_since.get_or_insert(now);
    }

    /// It was read.
    pub(super) const fn is_read(&mut self) {
        self.due_since = None;
    }

    pub(super) const fn is_due(&self) -> bool {
        self.due_since.is_some()
    }

    /// Files that were read and are not in force: they count as seen as they were then.
    pub(super) fn overlay(&mut self, read: Look) {
        self.seen.overlay(read);
    }

    /// Whether it is time to read.
    pub(super) fn is_ready(&mut self, look: Look, now: Instant) -> bool {
        let changes = look != self.seen;
        if changes {
            self.seen = look;
            self.due_since.get_or_insert(now);
        }
        self.due_since.is_some_and(|since| !changes || now.duration_since(since) >= WAIT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Named;

    /// The attack: one file that is touched all the time kept every other from being read.
    #[test]
    fn what_never_stands_still_is_read_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let named = Named::of_pattern(folder.path(), "*.txt");
        let (mut still, begun) = (Still::new(named.look()), Instant::now());
        let mut touch = 0;
        let mut look = |at: u64, changes: bool| {
            if changes {
                touch += 1;
                std::fs::write(folder.path().join(format!("{touch}.txt")), "").unwrap();
            }
            still.is_ready(named.look(), begun + Duration::from_millis(at))
        };
        assert!(!look(0, false));
        assert!(!look(150, true), "it is to stand still first");
        assert!(look(300, false));
        for at in (450..2400).step_by(150) {
            assert!(look(at, true) == (at >= 2150), "{at}");
        }
    }
}
