//! The lists of one named CA that are in force: of each issuer the newest that was ever read. A file that is gone,
//! broken, or older than what counts takes nothing back.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::super::material::Authority;
use super::list::{self, List, Place, Signer};
use super::{
    Fault, GOES_ON, Mode, Named, Revocation, files, is_literal, is_named, location, report,
};
use crate::document::Problems;

/// The most bytes of all lists of one CA.
const LISTS_BYTES_MAX: usize = 64 << 20;

/// The most lists of one CA.
const LISTS_MAX: usize = 1000;

/// The revocation lists of one named CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lists {
    authority: Arc<str>,
    mode: Mode,
    in_force: Vec<Arc<List>>,
}

impl Lists {
    /// Reads the files of one CA. What was in force before stays, unless a newer list of the same issuer takes its place
    /// or the config names its file no longer.
    #[must_use]
    pub fn load(
        (authority, mode): (&Authority, Mode),
        named: &[Named],
        previous: Option<&Revocation>,
        now: Duration,
        problems: &Problems,
    ) -> Self {
        let mut intake = Intake::new(authority, named, previous, problems);
        for (named, path) in files(named, problems) {
            let (roots, pattern) = (&authority.roots, &named.pattern);
            let place = Place { authority: &authority.name, roots, path, pattern };
            intake.read(&place, now);
        }
        intake.report_missing(named);
        intake.report_nothing(mode, named);
        intake.report_stale(mode, now);
        // Of two that cover one certificate rustls asks the first: that is to be the newest, and one that is still there.
        intake.in_force.sort_by_key(|known| {
            (std::cmp::Reverse(known.list.this_update_seconds), !known.is_found)
        });
        let in_force = intake.in_force.into_iter().map(|known| known.list).collect();
        Self { authority: Arc::clone(&authority.name), mode, in_force }
    }

    /// The CA's name.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// What becomes of a certificate that no list tells of.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Those that count.
    pub fn in_force(&self) -> impl Iterator<Item = &List> {
        self.in_force.iter().map(|list| &**list)
    }
}

impl List {
    /// Whether a root with this key has signed it; one of somebody else's is judged in the handshake.
    pub(in crate::tls) fn may_be_of(&self, key: &[u8]) -> bool {
        match &self.scope.signer {
            Signer::Root(signer) => signer == key,
            Signer::Elsewhere => true,
        }
    }
}

impl Named {
    /// A pattern for revocation lists that names no file.
    pub fn report_nothing(&self, mode: Mode, problems: &Problems) {
        if self.is_unknown || !self.paths.is_empty() {
            return;
        }
        let what = format!("`{}` matches no file", self.pattern);
        let hint = "a revocation list: `ringfence cert crl` signs that of an authority";
        match mode {
            Mode::Soft if !is_literal(&self.pattern) => {
                problems.warning(&self.location, what, hint);
            }
            Mode::Soft | Mode::Hard => problems.error(&self.location, what, hint),
        }
    }
}

/// A list that counts, and whether a file that was read just now has it.
struct Known {
    list: Arc<List>,
    is_found: bool,
}

struct Intake<'a> {
    in_force: Vec<Known>,
    problems: &'a Problems,
    bytes: usize,
    /// Files about which something was said already.
    told: BTreeSet<PathBuf>,
    /// Files that were read.
    read: BTreeSet<PathBuf>,
}

impl<'a> Intake<'a> {
    fn new(
        authority: &Authority,
        named: &[Named],
        previous: Option<&Revocation>,
        problems: &'a Problems,
    ) -> Self {
        let before = previous.and_then(|previous| previous.of(&authority.name));
        let before = before.map(|lists| lists.in_force.as_slice()).unwrap_or_default();
        let still = before.iter().filter(|list| is_named(named, &list.path, &list.pattern));
        // The roots may be others than before.
        let still = still.filter_map(|list| list.under(&authority.roots));
        let in_force = still.map(|list| Known { list, is_found: false }).collect();
        Self { in_force, problems, bytes: 0, told: BTreeSet::new(), read: BTreeSet::new() }
    }

    fn read(&mut self, place: &Place<'_>, now: Duration) {
        match list::read(place, now).and_then(|lists| self.within_bounds(lists)) {
            Ok(lists) => {
                self.read.insert(place.path.to_owned());
                lists.into_iter().for_each(|list| self.take(list));
            }
            Err(faults) => {
                let goes_on = self.in_force.iter().any(|known| known.list.path == place.path);
                report(self.problems, place.path, &faults, goes_on);
                self.told.insert(place.path.to_owned());
            }
        }
    }

    /// What was in force before counts as well: files that come and go must not make a list without end.
    fn within_bounds(&mut self, lists: Vec<List>) -> Result<Vec<List>, Vec<Fault>> {
        let is_new =
            |list: &&List| !self.in_force.iter().any(|known| known.list.scope == list.scope);
        if self.in_force.len() + lists.iter().filter(is_new).count() > LISTS_MAX {
            let what = format!("more than {LISTS_MAX} lists of this CA are in force");
            return Err(vec![Fault::new(0, what, "take away what is not its own, and restart")]);
        }
        let bytes: usize = lists.iter().map(|list| list.der.len()).sum();
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes <= LISTS_BYTES_MAX {
            return Ok(lists);
        }
        let what = format!("all lists of this CA together have more than {LISTS_BYTES_MAX} bytes");
        Err(vec![Fault::new(0, what, "each handshake hashes them: let expired entries go")])
    }

    fn take(&mut self, list: List) {
        let Some(known) = self.in_force.iter_mut().find(|known| known.list.scope == list.scope)
        else {
            return self.put(list);
        };
        if known.list.der == list.der {
            *known = Known { list: Arc::new(list), is_found: true };
        } else if list.is_older_than(&known.list) {
            let (older, newer, is_found) = (list, Arc::clone(&known.list), known.is_found);
            self.tell_older(&older, &newer, is_found);
        } else {
            let older = Arc::clone(&known.list);
            let both_are_there = known.is_found;
            *known = Known { list: Arc::new(list), is_found: true };
            if both_are_there {
                let newer = Arc::clone(&known.list);
                self.tell_older(&older, &newer, true);
            }
        }
    }

    /// The first of its issuer.
    fn put(&mut self, list: List) {
        if list.scope.signer == Signer::Elsewhere {
            let what = format!(
                "the list of `{}` is of no root of the CA `{}`: its signature is checked only when a client shows \
                 that issuer's certificate",
                list.issuer, list.authority
            );
            let hint =
                "right for the list of an intermediate; else it belongs to another `client.ca`";
            self.problems.warning(&list.location, what, hint);
        }
        self.in_force.push(Known { list: Arc::new(list), is_found: true });
    }

    /// Two files may hold an old and a new list side by side; to lose the new one is another thing.
    fn tell_older(&mut self, older: &List, newer: &List, is_found: bool) {
        self.told.insert(older.path.clone());
        let number = |list: &List| match &list.number {
            Some(number) => format!("number {number}"),
            None => "without a number".to_owned(),
        };
        let what = format!(
            "the list of `{}`, {}, is not newer than the one that {}, {}",
            older.issuer,
            number(older),
            if is_found { "counts" } else { GOES_ON },
            number(newer)
        );
        let hint = if is_found {
            format!("{} counts: take this one away", newer.location)
        } else {
            "put the newest one there; only a restart begins anew with an older list".to_owned()
        };
        self.problems.warning(&older.location, what, hint);
    }

    fn report_missing(&mut self, named: &[Named]) {
        let unknown = |pattern: &str| {
            named.iter().any(|named| named.is_unknown && &*named.pattern == pattern)
        };
        for known in self.in_force.iter().filter(|known| !known.is_found) {
            let list = &known.list;
            if unknown(&list.pattern) || !self.told.insert(list.path.clone()) {
                continue;
            }
            let path: &Path = &list.path;
            let (what, hint) = if self.read.contains(path) {
                ("no longer holds", "put it back, or a newer one; only a restart lets it go")
            } else {
                ("is gone with", "put it back; to let it go, restart, or name the file no longer")
            };
            let what = format!(
                "`{}` {what} the list of `{}`, which {GOES_ON}",
                path.display(),
                list.issuer
            );
            self.problems.warning(&location(path, 0), what, hint);
        }
    }

    /// Patterns without any file, now or before.
    fn report_nothing(&self, mode: Mode, named: &[Named]) {
        for named in named {
            if !self.in_force.iter().any(|known| known.list.pattern == named.pattern) {
                named.report_nothing(mode, self.problems);
            }
        }
    }

    fn report_stale(&self, mode: Mode, now: Duration) {
        for list in self.in_force.iter().map(|known| &known.list).filter(|list| list.is_stale(now))
        {
            let meaning = match mode {
                Mode::Hard => "every certificate that it covers is refused",
                Mode::Soft => "it still counts, and what was revoked since is accepted",
            };
            let what = format!("the list of `{}` is past its next update: {meaning}", list.issuer);
            self.problems.warning(&list.location, what, "put a newer one there");
        }
    }
}
