//! How many records a process has handed out at most, in a small file beside the log: after a kill the next
//! process can say how many were lost. It is written once for many records, before they are handed out.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::chain::ChainId;
use crate::regular_file;

/// The most bytes that a number and its newline take.
const NUMBER_BYTES_MAX: u64 = 64;
/// Handed out at a time: what is lost is told to within so many.
const BLOCK: u64 = 1024;

/// The name of the file.
pub(super) fn file_name(chain: ChainId) -> String {
    format!("audit-{chain}.reserved")
}

/// What a file says; `None` when there is none.
pub(super) fn read(path: &Path) -> Option<u64> {
    let text = regular_file::read(path, NUMBER_BYTES_MAX).ok()?;
    std::str::from_utf8(&text).ok()?.trim().parse().ok()
}

/// The reservation of this process.
#[derive(Debug)]
pub(super) struct Reservation {
    file: File,
    path: PathBuf,
    reserved: u64,
}

impl Reservation {
    /// Reserves the first block.
    pub(super) fn new(path: PathBuf) -> std::io::Result<Self> {
        let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path)?;
        let mut reservation = Self { file, path, reserved: 0 };
        reservation.write(BLOCK)?;
        Ok(reservation)
    }

    /// Makes sure that so many records are reserved. A process that is killed leaves the file as it was
    /// written; it is not synced, so after a power cut it may say less.
    pub(super) fn cover(&mut self, records: u64) {
        if records > self.reserved {
            // The disk may refuse; the number is then too low, and the log will refuse as well.
            drop(self.write(records + BLOCK));
        }
    }

    fn write(&mut self, reserved: u64) -> std::io::Result<()> {
        // Always as long, so that a number never ends in one before it.
        self.file.write_all_at(format!("{reserved:020}\n").as_bytes(), 0)?;
        self.reserved = reserved;
        Ok(())
    }

    /// Nothing is lost: the process ends in good order.
    pub(super) fn end(self) {
        drop(std::fs::remove_file(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_handed_out_is_never_more_than_what_the_file_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file_name(ChainId::new(1, [0; 8])));
        let mut reservation = Reservation::new(path.clone()).unwrap();
        for records in 1..5000 {
            reservation.cover(records);
            let said = read(&path).unwrap();
            assert!(said >= records && said <= records + BLOCK, "{records}: {said}");
        }
        reservation.end();
        assert_eq!(read(&path), None);
    }
}
