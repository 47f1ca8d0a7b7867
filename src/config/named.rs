//! The files that a config is made of, and whether one of them is another than it was. A look at a file's dates and
//! number, not at its bytes: it is done several times a second.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::files::{self, Matching};

/// Files that a config names, each as it looked before it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    files: BTreeMap<PathBuf, Option<Stamp>>,
    /// Patterns, with the folder that they start at.
    patterns: BTreeSet<(PathBuf, String)>,
}

/// How files looked at one time. Links are followed: a mounted Secret of Kubernetes changes a link on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look(BTreeMap<PathBuf, Option<Stamp>>);

/// What tells a file from the one that was there before: device, number, length, and the times of its last changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    bytes: u64,
    changed: [(i64, i64); 2],
}

impl Look {
    /// These as they look there.
    pub fn overlay(&mut self, later: Self) {
        self.0.extend(later.0);
    }
}

impl Named {
    /// Remembers a file that is about to be opened.
    pub(super) fn note(&mut self, path: &Path) {
        if !self.files.contains_key(path) {
            self.files.insert(path.to_owned(), stamp(path));
        }
    }

    /// Remembers a pattern.
    pub(super) fn note_pattern(&mut self, folder: &Path, pattern: &str) {
        self.patterns.insert((folder.to_owned(), pattern.to_owned()));
    }

    /// What a pattern names, and nothing else.
    #[must_use]
    pub fn of_pattern(folder: &Path, pattern: &str) -> Self {
        let mut named = Self::default();
        named.note_pattern(folder, pattern);
        named
    }

    /// How the files looked when they were read.
    #[must_use]
    pub fn as_read(&self) -> Look {
        Look(self.files.clone())
    }

    /// Looks at all of them, and at what the patterns name now.
    #[must_use]
    pub fn look(&self) -> Look {
        let mut paths: BTreeSet<PathBuf> = self.files.keys().cloned().collect();
        for (folder, pattern) in &self.patterns {
            if let Matching::Files(found) = files::matching(folder, pattern) {
                paths.extend(found);
            }
        }
        let stamped = |path: PathBuf| {
            let stamp = stamp(&path);
            (path, stamp)
        };
        Look(paths.into_iter().map(stamped).collect())
    }

    /// These and those, as those were read.
    pub fn extend(&mut self, others: Self) {
        self.files.extend(others.files);
        self.patterns.extend(others.patterns);
    }
}

/// `None` when it cannot be looked at.
fn stamp(path: &Path) -> Option<Stamp> {
    let found = std::fs::metadata(path).ok()?;
    Some(Stamp {
        file: (found.dev(), found.ino()),
        bytes: found.len(),
        changed: [(found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())],
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Each of these is how somebody puts a new file in place.
    #[test]
    fn every_way_to_change_a_file_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("first")).unwrap();
        fs::create_dir(at("second")).unwrap();
        fs::write(at("first/tls.crt"), "a").unwrap();
        fs::write(at("second/tls.crt"), "a").unwrap();
        symlink("first", at("..data")).unwrap();
        fs::write(at("policy-1.toml"), "a").unwrap();
        let mut named = Named::default();
        named.note(&at("..data/tls.crt"));
        named.note(&at("config.toml"));
        named.note(&at("policy-1.toml"));
        named.note_pattern(folder.path(), "policy-*.toml");
        assert_eq!(named.look(), named.as_read());
        let mut before = named.look();
        let mut check = |how: &str, change: &dyn Fn()| {
            assert_eq!(named.look(), before, "nothing has changed before: {how}");
            change();
            let now = named.look();
            assert_ne!(now, before, "{how}");
            before = now;
        };
        check("a file appears", &|| fs::write(at("config.toml"), "version").unwrap());
        check("it is written in place", &|| fs::write(at("config.toml"), "noisrev").unwrap());
        check("another takes its name", &|| {
            fs::write(at(".new"), "noisrev").unwrap();
            fs::rename(at(".new"), at("config.toml")).unwrap();
        });
        check("a link on the way", &|| {
            symlink("second", at("..new")).unwrap();
            fs::rename(at("..new"), at("..data")).unwrap();
        });
        check("a pattern names one more", &|| fs::write(at("policy-2.toml"), "a").unwrap());
        check("a pattern names one less", &|| fs::remove_file(at("policy-1.toml")).unwrap());
        check("a file is gone", &|| fs::remove_file(at("config.toml")).unwrap());
    }
}
