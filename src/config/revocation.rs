//! Finds the files that say what is revoked, and has them read: at the start, and again whenever somebody asks. The rest
//! of the config is not needed for that.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::files::{self, Matching};
use super::raw::Raw;
use super::raw_revocation::RawLists;
use super::resolve::Loader;
use crate::document::{Located, Problem, Problems, Severity};
use crate::tls::Authority;
use crate::tls::revocation::{Denied, Lists, Mode, Named, Revocation};

/// Which files say what is revoked.
#[derive(Clone, Debug)]
pub struct RevocationFiles {
    folder: PathBuf,
    /// Of every CA.
    names: Vec<Arc<str>>,
    /// Of those that have lists.
    lists: Vec<ListFiles>,
    deny: Vec<Located<String>>,
}

#[derive(Clone, Debug)]
struct ListFiles {
    authority: Authority,
    mode: Mode,
    patterns: Vec<Located<String>>,
}

/// What came of reading them.
#[derive(Debug)]
pub struct LoadedRevocation {
    /// What counts now.
    pub revocation: Revocation,
    /// What is wrong. After an error something does not count that should: who starts does not start with it. With
    /// warnings only, what counted before goes on counting.
    pub problems: Vec<Problem>,
}

impl RevocationFiles {
    /// Reads all of them. Nothing that counted before is lost by a file that is gone, broken or older.
    #[must_use]
    pub fn load(&self, previous: Option<&Revocation>, now: Duration) -> LoadedRevocation {
        let problems = Problems::default();
        let find_all = |patterns: &[Located<String>]| -> Vec<Named> {
            patterns.iter().map(|pattern| find(&self.folder, pattern, &problems)).collect()
        };
        let mut lists = Vec::new();
        for files in &self.lists {
            let named = find_all(&files.patterns);
            let authority = (&files.authority, files.mode);
            lists.push(Lists::load(authority, &named, previous, now, &problems));
        }
        let denied = Denied::load(&self.names, &find_all(&self.deny), previous, &problems);
        let revocation = Revocation::new(lists, denied);
        LoadedRevocation { revocation, problems: problems.into_sorted() }
    }

    /// How to notice that they have to be read again.
    #[must_use]
    pub fn named(&self) -> super::Named {
        let mut named = super::Named::default();
        for pattern in self.lists.iter().flat_map(|lists| &lists.patterns).chain(&self.deny) {
            named.note_pattern(&self.folder, &pattern.value);
        }
        named
    }
}

impl RevocationFiles {
    /// Whether the config names any.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.lists.is_empty() && self.deny.is_empty()
    }
}

/// The files that a pattern names now.
fn find(folder: &Path, pattern: &Located<String>, problems: &Problems) -> Named {
    let error = |what: String, hint: &str| problems.error(&pattern.location, what, hint);
    let paths = match files::matching(folder, &pattern.value) {
        Matching::Files(paths) => Some(paths.into_iter().collect()),
        Matching::NoPattern(why) => {
            error(format!("`{}` is no file pattern: {why}", pattern.value), "");
            None
        }
        Matching::Unreadable(faults) => {
            let hint = "a file that goes unread may be the one that revokes";
            faults.into_iter().for_each(|fault| error(fault, hint));
            None
        }
    };
    Named {
        pattern: folder.join(&pattern.value).display().to_string().into(),
        location: pattern.location.clone(),
        is_unknown: paths.is_none(),
        paths: paths.unwrap_or_default(),
    }
}

impl Loader<'_> {
    /// Which files there are, and what they say now. Lists are judged by roots, so a CA whose roots cannot be read has
    /// none; that was said.
    pub(super) fn revocation(
        &self,
        raw: &Raw,
        authorities: &[Authority],
    ) -> (RevocationFiles, Arc<Revocation>) {
        let with_lists = raw.client.authorities.iter().filter(|ca| !ca.lists.files.is_empty());
        let lists = with_lists.filter_map(|ca| {
            let authority = authorities.iter().find(|one| &*one.name == ca.shown_name())?.clone();
            Some(ListFiles { authority, mode: ca.lists.mode, patterns: ca.lists.files.clone() })
        });
        let files = RevocationFiles {
            folder: self.folder.to_owned(),
            names: raw.client.authorities.iter().map(|ca| ca.shown_name().into()).collect(),
            lists: lists.collect(),
            deny: raw.deny_files.clone(),
        };
        self.lists.replace(files.named());
        let loaded = files.load(self.previous, self.now);
        for problem in &loaded.problems {
            let hint = problem.hint.clone().unwrap_or_default();
            match problem.severity {
                Severity::Error => self.problems.error(&problem.location, &problem.what, hint),
                Severity::Warning => self.problems.warning(&problem.location, &problem.what, hint),
            }
        }
        (files, Arc::new(loaded.revocation))
    }

    /// Every file of revocation lists of a CA, with the pattern that names it.
    pub(super) fn list_files<'r>(
        &self,
        lists: &'r RawLists,
    ) -> Vec<(&'r Located<String>, PathBuf)> {
        let mut files = Vec::new();
        for pattern in &lists.files {
            let named = find(self.folder, pattern, self.problems);
            named.report_nothing(lists.mode, self.problems);
            files.extend(named.paths.into_iter().map(|path| (pattern, path)));
        }
        files
    }
}
