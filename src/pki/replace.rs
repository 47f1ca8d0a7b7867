//! Puts files in the place of others so that nobody ever reads half of one, and no crash leaves one.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::fault::Fault;

/// A file that is on disk under another name.
#[derive(Debug)]
pub(super) struct Prepared {
    temporary: PathBuf,
    path: PathBuf,
}

impl Prepared {
    /// Writes what is to stand at `path`. It will belong to whom the file there belongs to.
    pub(super) fn write(path: &Path, text: &[u8], mode: u32) -> Result<Self, Fault> {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(".new");
        let temporary = path.with_file_name(name);
        // From here on whatever was written goes away again, unless it is put in its place.
        let prepared = Self { temporary, path: path.to_owned() };
        let written = write_new(&prepared.temporary, path, text, mode);
        written.map_err(|error| Fault::unwritten(path, &error))?;
        Ok(prepared)
    }

    /// Puts it in its place.
    pub(super) fn place(self) -> Result<PathBuf, Fault> {
        let placed = std::fs::rename(&self.temporary, &self.path);
        placed.map_err(|error| Fault::unwritten(&self.path, &error))?;
        Ok(self.path.clone())
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // In its place, or of no use. The next run removes what cannot be removed now.
        drop(std::fs::remove_file(&self.temporary));
    }
}

fn write_new(temporary: &Path, path: &Path, text: &[u8], mode: u32) -> Result<(), Error> {
    let old = match std::fs::symlink_metadata(path) {
        Ok(old) if old.is_file() => Some(old),
        Ok(_) => return Err(Error::new(ErrorKind::InvalidInput, "it is no regular file")),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    // What a run left that was killed. The lock of the folder sees to it that no other run is at it.
    match std::fs::remove_file(temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(temporary)?;
    let new = file.metadata()?;
    if let Some(old) = old.filter(|old| (old.uid(), old.gid()) != (new.uid(), new.gid())) {
        std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
    }
    file.write_all(text)?;
    file.sync_all()
}

/// Makes the names of a folder's files last.
pub(super) fn sync(folder: &Path) -> Result<(), Fault> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| Fault::unwritten(folder, &error))
}

/// Keeps other runs out of a folder until it is dropped.
pub(super) fn lock(folder: &Path) -> Result<File, Fault> {
    let file = File::open(folder).map_err(|error| Fault::unread(folder, &error))?;
    let is_folder = file.metadata().is_ok_and(|metadata| metadata.is_dir());
    if !is_folder {
        let hint = "the folder that `ringfence cert make` filled";
        return Err(Fault::new(format!("`{}` is no folder", folder.display()), hint));
    }
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(error) => {
            let what = format!("cannot lock `{}`: {error}", folder.display());
            Err(Fault::new(what, "when another run is at it, run this one again"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        let names = || {
            let entries = std::fs::read_dir(folder.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
        };
        std::fs::write(&path, "old").unwrap();
        drop(Prepared::write(&path, b"new", 0o600).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names(), ["a.key"]);
        // A run that was killed.
        std::mem::forget(Prepared::write(&path, b"half", 0o600).unwrap());
        Prepared::write(&path, b"new", 0o600).unwrap().place().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(), ["a.key"]);
    }

    /// The mistake: root renews the key of a program that runs as somebody else, who cannot read it any more.
    #[test]
    fn a_file_keeps_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        std::fs::write(&path, "old").unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), Some(65_533)).unwrap();
        Prepared::write(&path, b"new", 0o600).unwrap().place().unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (65_534, 65_533));
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_cannot_be_put_in_its_place_is_not_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        let prepared = Prepared::write(&path, b"new", 0o600).unwrap();
        std::fs::create_dir(&path).unwrap();
        prepared.place().unwrap_err();
        Prepared::write(&path, b"new", 0o600).unwrap_err();
        let left = std::fs::read_dir(folder.path()).unwrap();
        assert_eq!(left.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>(), ["a.key"]);
    }

    #[test]
    fn a_link_is_not_replaced_by_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.crt");
        std::os::unix::fs::symlink("elsewhere.crt", &path).unwrap();
        let fault = Prepared::write(&path, b"new", 0o644).unwrap_err();
        assert!(fault.what.ends_with("it is no regular file"), "{fault}");
    }

    #[test]
    fn two_runs_are_not_at_a_folder_together() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        let why = lock(folder.path()).unwrap_err().what;
        assert!(why.starts_with("cannot lock"), "{why}");
        drop(first);
        lock(folder.path()).unwrap();
    }
}
