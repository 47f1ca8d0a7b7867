//! The file that records are appended to: one per process, never reused, mode 0600.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the audit log `{}`: {error}", path.display())]
pub struct FileError {
    /// The folder or file.
    pub path: PathBuf,
    /// Why.
    pub error: std::io::Error,
}

/// An open log file. Bytes that were taken are written in order, each once, however often the disk
/// refuses in between.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    pending: Vec<u8>,
}

impl LogFile {
    /// Makes `audit-<milliseconds>-<process id>.jsonl` in the folder.
    pub(super) fn create(directory: &Path, now: Duration) -> Result<(Self, PathBuf), FileError> {
        let fault = |path: &Path| {
            let path = path.to_owned();
            move |error| FileError { path, error }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(fault(directory))?;
        let name = format!("audit-{}-{}.jsonl", now.as_millis(), std::process::id());
        let path = directory.join(name);
        let file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(fault(&path))?;
        Ok((Self { file, pending: Vec::new() }, path))
    }

    /// Where the next lines are put together.
    pub(super) const fn pending(&mut self) -> &mut Vec<u8> {
        &mut self.pending
    }

    /// Writes what is pending; on an error what was not written stays pending.
    pub(super) fn flush(&mut self) -> std::io::Result<()> {
        let mut written = 0;
        let result = loop {
            match self.pending.get(written..) {
                None | Some([]) => break Ok(()),
                Some(rest) => match self.file.write(rest) {
                    Ok(0) => break Err(std::io::ErrorKind::WriteZero.into()),
                    Ok(count) => written += count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => break Err(error),
                },
            }
        };
        self.pending.drain(..written);
        result
    }

    /// Asks the disk to keep what was written.
    pub(super) fn sync(&self) -> std::io::Result<()> {
        self.file.sync_data()
    }
}
