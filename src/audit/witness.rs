//! A second place for first records and checkpoints: a file on another disk, or one that a collector reads. Who
//! cuts the end of the log off, and cannot reach this place, is found out.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::folder::{FileError, fault};

/// The most bytes that wait while the place cannot be written; then the oldest go.
const PENDING_BYTES_MAX: usize = 1 << 20;

/// The file and what it does not have yet.
#[derive(Debug)]
pub(super) struct Witness {
    file: File,
    path: PathBuf,
    pending: Vec<u8>,
    is_failing: bool,
}

impl Witness {
    /// Appends to the file, which may be there.
    pub(super) fn open(path: &Path) -> Result<Self, FileError> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        let file = file.map_err(fault(path))?;
        Ok(Self { file, path: path.to_owned(), pending: Vec::new(), is_failing: false })
    }

    /// Takes a line, with its newline.
    pub(super) fn push(&mut self, line: &[u8]) {
        if self.pending.len() + line.len() > PENDING_BYTES_MAX {
            self.pending.clear();
        }
        self.pending.extend_from_slice(line);
    }

    /// Writes what waits. The log itself does not wait for it: what is missing here shows when the two are
    /// compared.
    pub(super) fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let written = self.file.write_all(&self.pending).and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => {
                self.pending.clear();
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!(path = %self.path.display(), "the witness is written again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::error!(
                        path = %self.path.display(),
                        %error,
                        "the witness of the audit log cannot be written; the log goes on without"
                    );
                }
            }
        }
    }
}
