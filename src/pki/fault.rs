//! What is wrong with a file or a request about one, and how to mend it.

use std::fmt;
use std::io::{Error, ErrorKind};
use std::path::Path;

/// The most bytes of a file of certificates or revocations that are read.
pub(super) const FILE_BYTES_MAX: u64 = 16 << 20;

/// Lower case, user input in backticks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub what: String,
    /// How to mend it; empty when that is plain.
    pub hint: String,
}

impl Fault {
    pub(super) fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: hint.into() }
    }

    /// A file that cannot be written.
    pub(super) fn unwritten(path: &Path, error: &Error) -> Self {
        let hint = match error.kind() {
            ErrorKind::PermissionDenied => "run it as the folder's owner",
            ErrorKind::InvalidInput => "a link or a folder is not replaced: move it away",
            _ => "",
        };
        Self::new(format!("cannot write `{}`: {error}", path.display()), hint)
    }

    /// A file that cannot be read.
    pub(super) fn unread(path: &Path, error: &Error) -> Self {
        let hint = match error.kind() {
            ErrorKind::NotFound => "is the name right?".to_owned(),
            ErrorKind::PermissionDenied => "run it as the file's owner".to_owned(),
            ErrorKind::InvalidData => "certificates are small: is it the right file?".to_owned(),
            _ if path.is_dir() => format!("name files in it, such as {}/*.crt", path.display()),
            _ => "name a file with certificates in PEM".to_owned(),
        };
        Self::new(format!("cannot read `{}`: {error}", path.display()), hint)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.what)?;
        if self.hint.is_empty() { Ok(()) } else { write!(formatter, "\n  hint: {}", self.hint) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_read_comes_with_a_way_out() {
        let check = |kind: ErrorKind, expected: &str| {
            let fault = Fault::unread(Path::new("pki/a.crt"), &Error::new(kind, "why"));
            assert_eq!(
                fault.to_string(),
                format!("cannot read `pki/a.crt`: why\n  hint: {expected}")
            );
        };
        check(ErrorKind::NotFound, "is the name right?");
        check(ErrorKind::PermissionDenied, "run it as the file's owner");
        check(ErrorKind::InvalidData, "certificates are small: is it the right file?");
        check(ErrorKind::InvalidInput, "name a file with certificates in PEM");
    }
}
