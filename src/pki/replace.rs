//! Puts files in the place of others so that nobody ever reads half of one, and no crash leaves one.

use std::fs::{File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{Error, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::fault::Fault;

/// Only those who may write in a folder can hold it: whoever may just read the folder could lock the folder itself.
const LOCK: &str = ".ringfence-lock";

/// A file that is on disk under another name.
#[derive(Debug)]
pub(super) struct Prepared {
    temporary: PathBuf,
    path: PathBuf,
}

impl Prepared {
    /// Writes what is to stand at `path`. It will belong to whom the file there belongs to, and keep its mode as far
    /// as that allows no more than `mode`, but for reading by its group. Where there is no file, it gets `mode`.
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
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(temporary)?;
    if let Some(old) = &old {
        give(&file, old)?;
    }
    // A program of the file's group reads its key, whatever the umask of this run is.
    let mode = old.map_or(mode, |old| old.mode() & (mode | 0o040));
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(text)?;
    file.sync_all()
}

/// Makes the names of a folder's files last.
pub(super) fn sync(folder: &Path) -> Result<(), Fault> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| Fault::unwritten(folder, &error))
}

fn give(file: &File, owner: &Metadata) -> Result<(), Error> {
    let new = file.metadata()?;
    if (owner.uid(), owner.gid()) == (new.uid(), new.gid()) {
        return Ok(());
    }
    std::os::unix::fs::fchown(file, Some(owner.uid()), Some(owner.gid()))
}

/// Keeps other runs out of a folder until it is dropped.
pub(super) fn lock(folder: &Path) -> Result<File, Fault> {
    let owner = std::fs::metadata(folder).map_err(|error| Fault::unread(folder, &error))?;
    if !owner.is_dir() {
        let hint = "the folder that `ringfence cert make` filled";
        return Err(Fault::new(format!("`{}` is no folder", folder.display()), hint));
    }
    let path = folder.join(LOCK);
    let file = open_lock(&path, &owner).map_err(|error| Fault::unwritten(&path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let what = format!("cannot lock `{}`: another run is at it", folder.display());
            Err(Fault::new(what, "run this one again when it has ended"))
        }
        Err(TryLockError::Error(error)) => {
            Err(Fault::new(format!("cannot lock `{}`: {error}", folder.display()), ""))
        }
    }
}

/// It stays there, as one that is removed could be held by two. It belongs to the folder's owner, so that a run of
/// root does not shut out the next one of the owner.
fn open_lock(path: &Path, owner: &Metadata) -> Result<File, Error> {
    match OpenOptions::new().create_new(true).write(true).mode(0o600).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
        Ok(file) => {
            give(&file, owner)?;
            return Ok(file);
        }
    }
    let odd = || Error::new(ErrorKind::InvalidInput, "it is no regular file");
    let there = std::fs::symlink_metadata(path)?;
    if !there.is_file() {
        return Err(odd());
    }
    let file = OpenOptions::new().write(true).open(path)?;
    let opened = file.metadata()?;
    // A link that took its place in between leads to another file.
    if (there.dev(), there.ino()) != (opened.dev(), opened.ino()) {
        return Err(odd());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
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
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
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
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
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
        assert!(why.ends_with("another run is at it"), "{why}");
        drop(first);
        lock(folder.path()).unwrap();
    }

    /// The attack: whoever can only read the folder holds a lock of it, and nobody renews or revokes any more.
    #[test]
    fn who_can_only_read_a_folder_cannot_block_it() {
        let folder = tempfile::tempdir().unwrap();
        let reader = File::open(folder.path()).unwrap();
        reader.try_lock().unwrap();
        lock(folder.path()).unwrap();
        let path = folder.path().join(LOCK);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    /// The attack: the lock is a link to a file of somebody else.
    #[test]
    fn a_lock_that_is_a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("other"), "").unwrap();
        std::os::unix::fs::symlink("other", folder.path().join(LOCK)).unwrap();
        let what = lock(folder.path()).unwrap_err().what;
        assert!(what.ends_with("it is no regular file"), "{what}");
    }

    /// The mistake: a key that a program reads by its group is its group's no more; a list is shut by the umask.
    #[test]
    fn a_file_keeps_its_mode_but_for_what_nobody_else_may() {
        let folder = tempfile::tempdir().unwrap();
        let check = |old: Option<u32>, wanted: u32, expected: u32| {
            let path = folder.path().join("a");
            drop(std::fs::remove_file(&path));
            if let Some(old) = old {
                std::fs::write(&path, "old").unwrap();
                std::fs::set_permissions(&path, Permissions::from_mode(old)).unwrap();
            }
            Prepared::write(&path, b"new", wanted).unwrap().place().unwrap();
            let mode = path.metadata().unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode, expected, "{old:?} {wanted:o}");
        };
        check(None, 0o600, 0o600);
        check(Some(0o640), 0o600, 0o640);
        check(Some(0o666), 0o600, 0o640);
        check(Some(0o400), 0o600, 0o400);
        // More than any umask leaves: it is set, not asked for.
        check(None, 0o666, 0o666);
        check(Some(0o664), 0o644, 0o644);
        check(Some(0o600), 0o644, 0o600);
    }
}
