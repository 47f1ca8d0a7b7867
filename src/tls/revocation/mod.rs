//! What says that certificates no longer count: revocation lists of named CAs, and deny lists. Files are read all or
//! nothing; what is wrong with one, or is older than what counts, never takes a revocation back.
//!
//! It reads files that it is told; which ones, it does not know. What is revoked, `verifier` asks.

mod deny;
mod list;
mod lists;
mod revoked;
#[cfg(test)]
mod tests;
mod twin;

pub use deny::Denied;
pub use list::List;
pub use lists::Lists;
pub(in crate::tls) use revoked::Revoked;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::chain::to_hex;
use crate::document::{Location, Problems};

/// The most files that the patterns of one CA, or those of deny lists, may name.
const FILES_MAX: usize = 1000;
/// The most characters of a file's own words that are shown.
const SHOWN_CHARS_MAX: usize = 80;

/// What becomes of a certificate of which no list that holds says anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is refused: also when the list that covers it is past its next update.
    Hard,
    /// It is accepted; a list past its next update goes on counting.
    Soft,
}

/// A pattern, and the files that it names now.
#[derive(Clone, Debug)]
pub struct Named {
    /// The pattern with its folder: what was read stays as long as this is named.
    pub pattern: Arc<str>,
    /// Where it stands.
    pub location: Location,
    /// The files.
    pub paths: Vec<PathBuf>,
    /// Whether it was reported that it could not be looked into. Nothing is said of its files, then.
    pub is_unknown: bool,
}

/// What a warning says when something from before stands in for what a file should say.
pub const GOES_ON: &str = "goes on counting";

/// Everything that says that certificates no longer count. It never changes; a newer one takes its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocation {
    lists: Vec<Lists>,
    denied: Arc<Denied>,
}

impl Revocation {
    /// Nothing is revoked.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The lists of each CA that has some, and the deny lists.
    #[must_use]
    pub fn new(lists: Vec<Lists>, denied: Denied) -> Self {
        Self { lists, denied: Arc::new(denied) }
    }

    /// Every revocation list that is in force.
    pub fn lists(&self) -> impl Iterator<Item = &List> {
        self.lists.iter().flat_map(Lists::in_force)
    }

    /// What is denied by name of a key, a certificate or a serial number.
    #[must_use]
    pub const fn denied(&self) -> &Arc<Denied> {
        &self.denied
    }

    /// The lists of a CA; `None` when none are configured for it.
    #[must_use]
    pub fn of(&self, authority: &str) -> Option<&Lists> {
        self.lists.iter().find(|lists| lists.authority() == authority)
    }

    /// Whether a list that has to be fresh stopped being so in that time.
    #[must_use]
    pub fn lapses_between(&self, from_seconds: i64, to_seconds: i64) -> bool {
        let hard = self.lists.iter().filter(|lists| lists.mode() == Mode::Hard);
        let mut ends = hard.flat_map(Lists::in_force).map(|list| list.next_update_seconds);
        ends.any(|end| from_seconds <= end && end < to_seconds)
    }

    /// How many lists there are, how many certificates they revoke, and how many lines deny.
    #[must_use]
    pub fn size(&self) -> (usize, usize, usize) {
        let entries = self.lists().map(|list| list.entries).sum();
        (self.lists().count(), entries, self.denied.len())
    }

    /// What revokes a certificate of a chain for which this CA vouches, in words: for people who ask why.
    #[must_use]
    pub fn causes<'a, 'der: 'a>(
        &self,
        authority: &str,
        chain: impl IntoIterator<Item = &'a CertificateDer<'der>>,
    ) -> Vec<String> {
        let mut causes = Vec::new();
        for der in chain {
            let Ok((_, certificate)) = X509Certificate::from_der(der) else { continue };
            let lists = self.of(authority).into_iter().flat_map(Lists::in_force);
            for list in lists.filter(|list| list.revokes(&certificate)) {
                causes.push(format!(
                    "the revocation list {} of {}, by serial number {}",
                    list.location,
                    list.issuer,
                    to_hex(certificate.raw_serial())
                ));
            }
            let denied = self.denied.find(authority, der, &certificate);
            causes.extend(denied.map(|(location, how)| format!("the deny list {location}, {how}")));
        }
        causes
    }
}

/// What is wrong with one place of a file.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    /// From 1; 0 stands for the file as a whole.
    line: usize,
    what: String,
    hint: &'static str,
}

impl Fault {
    fn new(line: usize, what: impl Into<String>, hint: &'static str) -> Self {
        Self { line, what: what.into(), hint }
    }
}

/// A line of a file.
fn location(path: &Path, line: usize) -> Location {
    Location { file: path.display().to_string().into(), line }
}

/// Reports an invalid file. When what it said before goes on counting, nothing is lost yet.
fn report(problems: &Problems, path: &Path, faults: &[Fault], goes_on: bool) {
    for fault in faults {
        let location = location(path, fault.line);
        if goes_on {
            let what = format!("{}; what the file said before {GOES_ON}", fault.what);
            problems.warning(&location, what, fault.hint);
        } else {
            problems.error(&location, fault.what.as_str(), fault.hint);
        }
    }
}

/// Every file once, however many patterns or names lead to it.
fn files<'a>(named: &'a [Named], problems: &Problems) -> Vec<(&'a Named, &'a Path)> {
    let (mut files, mut seen) = (Vec::new(), BTreeSet::new());
    for named in named {
        for path in &named.paths {
            if !seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
                continue;
            }
            if files.len() == FILES_MAX {
                let what = format!("more than {FILES_MAX} files are named; the others go unread");
                problems.error(&named.location, what, "put several lists into one file");
                return files;
            }
            files.push((named, path.as_path()));
        }
    }
    files
}

/// Whether what was read from a file before is still asked for.
fn is_named(named: &[Named], path: &Path, pattern: &str) -> bool {
    named
        .iter()
        .any(|named| &*named.pattern == pattern || named.paths.iter().any(|one| one == path))
}

/// Whether a pattern is the name of one file.
fn is_literal(pattern: &str) -> bool {
    !pattern.contains(['*', '?', '['])
}

/// Words of a file that cannot steer a terminal.
fn shown(text: &str) -> String {
    let plain = |character: char| if character.is_control() { '?' } else { character };
    text.chars().take(SHOWN_CHARS_MAX).map(plain).collect()
}
