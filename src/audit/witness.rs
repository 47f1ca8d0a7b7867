//! A second place for first records and checkpoints: a file on another disk, or one that a collector reads. Who
//! cuts the end of the log off, and cannot reach this place, is found out.
//!
//! A thread of its own writes it: the log never waits for it, except a little at the very end.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::folder::{FileError, fault};

/// Lines that may wait while the place cannot be written; what comes then is missing there.
const LINES_WAITING_MAX: usize = 4096;
/// The most bytes that are written together.
const PENDING_BYTES_MAX: usize = 1 << 20;
/// How long the thread waits after the place refused.
const RETRY: Duration = Duration::from_secs(1);
/// How long the end of the process waits for the last checkpoint.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// The way to the thread.
#[derive(Debug)]
pub(super) struct Witness {
    lines: SyncSender<Vec<u8>>,
    /// Lines that the log itself does not have yet.
    early: Vec<Vec<u8>>,
    thread: JoinHandle<()>,
}

impl Witness {
    /// Appends to the file, which may be there.
    pub(super) fn open(path: &Path) -> Result<Self, FileError> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        let file = file.map_err(fault(path))?;
        let (lines, waiting) = sync_channel(LINES_WAITING_MAX);
        let place = Place { file, path: path.to_owned(), pending: Vec::new(), is_failing: false };
        let thread = std::thread::Builder::new()
            .name("audit-witness".to_owned())
            .spawn(move || place.write_until_closed(&waiting))
            .map_err(fault(path))?;
        Ok(Self { lines, early: Vec::new(), thread })
    }

    /// Takes a line, with its newline.
    pub(super) fn push(&mut self, line: &[u8]) {
        self.early.push(line.to_vec());
    }

    /// The log has the lines that were pushed.
    pub(super) fn send(&mut self) {
        for line in self.early.drain(..) {
            if self.lines.try_send(line).is_err() {
                tracing::warn!(
                    "the witness of the audit log is behind; a checkpoint is missing there"
                );
            }
        }
    }

    /// Waits for the last lines, but not for long.
    pub(super) fn end(mut self) {
        self.send();
        drop(self.lines);
        let started = Instant::now();
        while !self.thread.is_finished() && started.elapsed() < LAST_PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The file and what it does not have yet.
struct Place {
    file: File,
    path: PathBuf,
    pending: Vec<u8>,
    is_failing: bool,
}

impl Place {
    fn write_until_closed(mut self, waiting: &Receiver<Vec<u8>>) {
        loop {
            let next = if self.pending.is_empty() {
                waiting.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                waiting.recv_timeout(RETRY)
            };
            let ends = matches!(next, Err(RecvTimeoutError::Disconnected));
            for line in next.into_iter().chain(waiting.try_iter()) {
                self.pending.extend_from_slice(&line);
                if self.pending.len() >= PENDING_BYTES_MAX {
                    break;
                }
            }
            self.flush();
            if ends {
                return;
            }
        }
    }

    fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let written = self.file.write_all(&self.pending).and_then(|()| self.file.sync_data());
        let path = self.path.display();
        match written {
            Ok(()) => {
                self.pending.clear();
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!(%path, "the witness is written again");
                }
            }
            Err(error) => {
                if self.pending.len() >= PENDING_BYTES_MAX {
                    self.pending.clear();
                }
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::error!(
                        %path,
                        %error,
                        "the witness of the audit log cannot be written; the log goes on without"
                    );
                }
            }
        }
    }
}
