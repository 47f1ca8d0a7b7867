//! Finds the files that a pattern names and reads texts. What cannot be looked into is an error:
//! a policy file that goes unread may be the one that denies.

use std::collections::BTreeSet;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::document::{Document, Location};
use crate::regular_file;

/// The most bytes of a config or policy file that are read.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Why a text cannot be read.
#[derive(Debug)]
pub struct TextError {
    /// The file, or its first line that is no text.
    pub location: Location,
    /// What is wrong.
    pub what: String,
    /// Whether there is no such file.
    pub not_found: bool,
}

/// Reads a text file of bounded size.
///
/// # Errors
/// When it cannot be read, is no regular file, is too large, or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, TextError> {
    let file = path.display().to_string();
    let error = |what, not_found| TextError {
        location: Document::new(&file, "").location(),
        what,
        not_found,
    };
    let fault = |fault: io::Error| {
        error(format!("cannot read `{file}`: {fault}"), fault.kind() == io::ErrorKind::NotFound)
    };
    String::from_utf8(regular_file::read(path, FILE_BYTES_MAX).map_err(fault)?).map_err(|invalid| {
        let valid = invalid.as_bytes().iter().take(invalid.utf8_error().valid_up_to());
        let mut error = error(format!("`{file}` is not UTF-8"), false);
        error.location.line = valid.filter(|byte| **byte == b'\n').count() + 1;
        error
    })
}

/// What a pattern names, or what of it could not be looked into.
pub(super) enum Matching {
    Files(BTreeSet<PathBuf>),
    NoPattern(String),
    Unreadable(Vec<String>),
}

/// The files that a pattern names; a relative one starts at the folder.
pub(super) fn matching(folder: &Path, pattern: &str) -> Matching {
    let joined = if Path::new(pattern).is_absolute() {
        read_on_the_way(pattern)
    } else {
        // The folder is a name and no pattern, whatever stands in it.
        let folder = glob::Pattern::escape(&folder.to_string_lossy());
        Path::new(&folder).join(read_on_the_way(pattern)).to_string_lossy().into_owned()
    };
    let found = match glob::glob(&joined) {
        Ok(found) => found,
        Err(error) => return Matching::NoPattern(error.msg.to_owned()),
    };
    let (mut files, mut unreadable) = (BTreeSet::new(), Vec::new());
    for path in found {
        match path {
            Ok(path) => drop(files.insert(path)),
            Err(error) => {
                unreadable.push(format!(
                    "cannot look into `{}`: {}",
                    error.path().display(),
                    error.error()
                ));
            }
        }
    }
    if unreadable.is_empty() { Matching::Files(files) } else { Matching::Unreadable(unreadable) }
}

/// Whether a pattern names that file, be it there or not.
///
/// `resolve` follows links as far as a path is there; the file's own path is resolved already.
pub(super) fn names(
    folder: &Path,
    pattern: &str,
    path: &Path,
    resolve: impl Fn(&Path) -> PathBuf,
) -> bool {
    let is_plain =
        |part: &Component<'_>| !part.as_os_str().to_string_lossy().contains(['*', '?', '[']);
    let mut parts = Path::new(pattern).components().peekable();
    let mut plain = folder.to_owned();
    while let Some(part) = parts.next_if(is_plain) {
        plain.push(part);
    }
    let mut whole = PathBuf::from(glob::Pattern::escape(&resolve(&plain).to_string_lossy()));
    whole.extend(parts);
    let options = glob::MatchOptions { require_literal_separator: true, ..Default::default() };
    glob::Pattern::new(&whole.to_string_lossy())
        .is_ok_and(|pattern| pattern.matches_path_with(path, options))
}

/// Behind a part with a star, a plain name is made a pattern of itself. Otherwise `glob` would only
/// try whether the file is there, and a folder that may not be looked into looks like one without.
fn read_on_the_way(pattern: &str) -> String {
    let is_pattern = |part: &str| part.contains(['*', '?', '[']);
    let mut behind = false;
    let parts = pattern.split('/').map(|part| {
        let first = part.chars().next().filter(|first| first.is_alphanumeric());
        match first {
            Some(first) if behind && !is_pattern(part) => {
                let rest: String = part.chars().skip(1).collect();
                format!("[{first}]{rest}")
            }
            Some(_) | None => {
                behind |= is_pattern(part);
                part.to_owned()
            }
        }
    });
    parts.collect::<Vec<_>>().join("/")
}
