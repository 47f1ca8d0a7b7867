//! The demonstration's own folder: new, for this user only, gone at the end.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::complain;

/// How many names are tried.
const ATTEMPTS: u32 = 16;

/// Removed when dropped, unless it is to be kept.
pub(super) struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    /// Makes a folder with mode 0700 that nobody made before: a name that is there already, even as
    /// a link, is never used.
    pub(super) fn create(parent: &Path, now: Duration, keep: bool) -> Result<Self, String> {
        let mut fault = String::new();
        for attempt in 0..ATTEMPTS {
            let path = parent.join(format!(
                "ringfence-demo-{}-{}-{attempt}",
                std::process::id(),
                now.as_millis()
            ));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path, keep }),
                Err(error) => fault = format!("cannot make `{}`: {error}", path.display()),
            }
        }
        Err(fault)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            complain(&format!("warning: cannot remove `{}`: {error}", self.path.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_is_new_and_private_and_goes_away() {
        let parent = tempfile::tempdir().unwrap();
        let now = Duration::from_secs(1);
        let first = Folder::create(parent.path(), now, false).unwrap();
        let second = Folder::create(parent.path(), now, true).unwrap();
        assert_ne!(first.path(), second.path());
        let mode = first.path().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let (gone, kept) = (first.path().to_owned(), second.path().to_owned());
        drop((first, second));
        assert!(!gone.exists());
        assert!(kept.exists());
    }
}
