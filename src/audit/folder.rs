//! The folder of the log: its files, one after another for each chain, mode 0600, locked by the process that
//! writes, each known to be there before anything is written to it.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::file::Disk;
use crate::chain::{ChainId, SegmentName};

/// Who opens the folder, or tidies it, holds this file's lock.
const LOCK: &str = ".lock";
/// How long it may take others to open or tidy.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open `{}` for the audit log: {error}", path.display())]
pub struct FileError {
    /// The folder or file.
    pub path: PathBuf,
    /// Why.
    pub error: Error,
}

/// Names the file in an error.
pub(super) fn fault(path: &Path) -> impl FnOnce(Error) -> FileError {
    let path = path.to_owned();
    move |error| FileError { path, error }
}

/// Whether a file is where it was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    InPlace,
    /// There is none of that name, or another file: renamed, deleted or replaced.
    Gone,
}

/// Where the writer gets its files from; tests put faulty ones here.
pub(super) trait Segments: Send + 'static {
    type Disk: Disk;
    /// The number of the file that was opened last.
    fn number(&self) -> u32;
    /// Makes the next file.
    fn next(&mut self) -> Result<Self::Disk>;
    /// Whether the file that was opened last is still where it was.
    fn standing(&self) -> Standing;
}

/// The files of one chain.
#[derive(Debug)]
pub(super) struct Folder {
    directory: PathBuf,
    chain: ChainId,
    number: u32,
    /// Which file it was: device and number.
    identity: (u64, u64),
}

/// That this process alone opens or tidies the folder.
#[derive(Debug)]
pub(super) struct FolderLock(#[expect(dead_code, reason = "held until it is dropped")] File);

/// Makes the folder, with mode 0700 and kept by its parents, unless it is there.
pub(super) fn make(directory: &Path) -> std::result::Result<(), FileError> {
    let made = directory.ancestors().take_while(|folder| !is_there(folder)).count();
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(fault(directory))?;
    // A folder that was made is kept by its parent.
    for folder in directory.ancestors().take(made + 1) {
        sync(folder).map_err(fault(folder))?;
    }
    Ok(())
}

fn is_there(folder: &Path) -> bool {
    folder.as_os_str().is_empty() || folder.exists()
}

/// Has the disk keep which files there are.
pub(super) fn sync(folder: &Path) -> Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)?.sync_all()
}

impl FolderLock {
    /// Waits for it, but not for ever.
    pub(super) fn take(directory: &Path) -> std::result::Result<Self, FileError> {
        let path = directory.join(LOCK);
        // To open a pipe would wait for ever.
        if path.metadata().is_ok_and(|data| !data.is_file()) {
            let error = Error::new(ErrorKind::InvalidInput, "it is no regular file");
            return Err(FileError { path, error });
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let file = file.map_err(fault(&path))?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::Error(error)) => return Err(FileError { path, error }),
                Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(TryLockError::WouldBlock) => {
                    let error = Error::new(ErrorKind::WouldBlock, "another process holds its lock");
                    return Err(FileError { path, error });
                }
            }
        }
    }
}

impl Folder {
    /// The files of a chain that has none yet.
    pub(super) const fn new(directory: PathBuf, chain: ChainId) -> Self {
        Self { directory, chain, number: 0, identity: (0, 0) }
    }

    /// The file that was opened last.
    pub(super) fn path(&self) -> PathBuf {
        self.path_of(self.number)
    }

    fn path_of(&self, number: u32) -> PathBuf {
        let name = SegmentName { chain: self.chain, number, compressed: false };
        self.directory.join(name.to_string())
    }
}

impl Segments for Folder {
    type Disk = File;

    fn number(&self) -> u32 {
        self.number
    }

    fn next(&mut self) -> Result<File> {
        let number = self.number.saturating_add(1);
        if number > SegmentName::NUMBER_MAX {
            return Err(Error::other("the chain has as many files as it may have; restart"));
        }
        let path = self.path_of(number);
        let file =
            OpenOptions::new().create_new(true).append(true).read(true).mode(0o600).open(&path)?;
        let ready = file.try_lock().map_err(Error::from).and_then(|()| {
            file.sync_all()?;
            sync(&self.directory)?;
            file.metadata()
        });
        match ready {
            Ok(metadata) => {
                self.number = number;
                self.identity = (metadata.dev(), metadata.ino());
                Ok(file)
            }
            Err(error) => {
                drop(std::fs::remove_file(&path));
                Err(error)
            }
        }
    }

    fn standing(&self) -> Standing {
        match std::fs::symlink_metadata(self.path()) {
            Ok(metadata) if (metadata.dev(), metadata.ino()) == self.identity => Standing::InPlace,
            Ok(_) => Standing::Gone,
            Err(error) if error.kind() == ErrorKind::NotFound => Standing::Gone,
            // What cannot be looked at now is not known to be gone.
            Err(_) => Standing::InPlace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_lies_in_a_folder_of_its_own_and_takes_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("a/b");
        make(&directory).unwrap();
        let chain = ChainId::new(5, [1; 8]);
        let mut files = Folder::new(directory.clone(), chain);
        let first = files.next().unwrap();
        assert_eq!(files.path(), directory.join("audit-5-0101010101010101-000001.jsonl"));
        assert!(matches!(first.try_lock(), Ok(()) | Err(TryLockError::WouldBlock)));
        let mut again = Folder::new(directory, chain);
        assert_eq!(again.next().unwrap_err().kind(), ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_file_that_is_renamed_deleted_or_replaced_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Folder::new(folder.path().to_owned(), ChainId::new(5, [1; 8]));
        let _first = files.next().unwrap();
        assert_eq!(files.standing(), Standing::InPlace);
        std::fs::rename(files.path(), folder.path().join("moved")).unwrap();
        assert_eq!(files.standing(), Standing::Gone);
        std::fs::write(files.path(), "another").unwrap();
        assert_eq!(files.standing(), Standing::Gone);
        std::fs::rename(folder.path().join("moved"), files.path()).unwrap();
        assert_eq!(files.standing(), Standing::InPlace);
    }

    #[test]
    fn one_at_a_time_opens_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let held = FolderLock::take(folder.path()).unwrap();
        let path = folder.path().to_owned();
        let waiting = std::thread::spawn(move || FolderLock::take(&path).map(drop));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished());
        drop(held);
        waiting.join().unwrap().unwrap();
    }
}
