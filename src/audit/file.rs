//! The file that records are appended to: one per process, never reused, mode 0600.
//!
//! Bytes stay in memory until the disk has said that it keeps them. What was half written is cut
//! off again, and what a failed sync may have lost is written anew, so that the file holds whole
//! lines, each once, however often the disk refuses in between.

use std::fs::File;
use std::io::{ErrorKind, Result, Write};
use std::os::unix::fs::MetadataExt as _;

/// The buffer keeps this much when it is empty. Under load it fills to some 3 MiB: what may stay unsynced and what is
/// written at once. Given back, its pages would have to be made anew each time.
const SPARE_BYTES: usize = 4 << 20;

/// What a log needs of a disk; tests put a faulty one here.
pub(super) trait Disk: Send + 'static {
    fn length(&self) -> Result<u64>;
    fn append(&mut self, bytes: &[u8]) -> Result<usize>;
    fn cut(&mut self, length: u64) -> Result<()>;
    fn sync(&mut self) -> Result<()>;
    /// Names that the file has; none when it was deleted.
    fn links(&self) -> Result<u64>;
}

impl Disk for File {
    fn length(&self) -> Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<usize> {
        self.write(bytes)
    }

    fn cut(&mut self, length: u64) -> Result<()> {
        self.set_len(length)
    }

    fn sync(&mut self) -> Result<()> {
        self.sync_data()
    }

    fn links(&self) -> Result<u64> {
        Ok(self.metadata()?.nlink())
    }
}

/// An open log file.
#[derive(Debug)]
pub(super) struct LogFile<D> {
    disk: D,
    /// What the disk has not said it keeps.
    pending: Vec<u8>,
    /// How much of it is in the file.
    written: usize,
    /// How long the file was before any of it.
    start: u64,
    /// How long the file is, unless somebody shortened it.
    expected: u64,
    was_shortened: bool,
    /// Whole lines end here, and what follows must go before anything is written.
    cut_to: Option<u64>,
}

impl<D: Disk> LogFile<D> {
    pub(super) const fn new(disk: D) -> Self {
        Self {
            disk,
            pending: Vec::new(),
            written: 0,
            start: 0,
            expected: 0,
            was_shortened: false,
            cut_to: None,
        }
    }

    pub(super) const fn disk(&self) -> &D {
        &self.disk
    }

    /// How long the file should be.
    pub(super) const fn expected_bytes(&self) -> u64 {
        self.expected
    }

    /// Whether somebody shortened the file.
    pub(super) fn was_shortened(&self) -> bool {
        self.was_shortened || self.disk.length().is_ok_and(|length| length < self.expected)
    }

    /// Where the next lines are put together.
    pub(super) const fn pending(&mut self) -> &mut Vec<u8> {
        &mut self.pending
    }

    /// Bytes that the disk has not said it keeps.
    pub(super) const fn unsynced_bytes(&self) -> usize {
        self.pending.len()
    }

    /// Bytes that are not in the file yet.
    pub(super) const fn unwritten_bytes(&self) -> usize {
        self.pending.len() - self.written
    }

    /// Writes what is pending, all of it or nothing.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.cut()?;
        let Some(mut rest) = self.pending.get(self.written..).filter(|rest| !rest.is_empty())
        else {
            return Ok(());
        };
        let before = self.disk.length()?;
        self.was_shortened |= before < self.expected;
        if self.written == 0 {
            self.start = before;
        }
        while !rest.is_empty() {
            match self.disk.append(rest) {
                Ok(count) if count > 0 => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                refused => {
                    // A full disk takes half a line.
                    self.cut_to = Some(before);
                    drop(self.cut());
                    return Err(refused.err().unwrap_or_else(|| ErrorKind::WriteZero.into()));
                }
            }
        }
        let added = self.pending.len() - self.written;
        self.written = self.pending.len();
        self.expected = before + added as u64;
        Ok(())
    }

    /// Has the disk keep what was written. After an error all that is pending must be flushed again:
    /// the kernel may have dropped the pages and marked them clean, so that the next sync alone
    /// would succeed without having written them.
    pub(super) fn sync(&mut self) -> Result<()> {
        if let Err(error) = self.disk.sync() {
            self.written = 0;
            self.cut_to = Some(self.start);
            self.expected = self.start;
            drop(self.cut());
            return Err(error);
        }
        self.pending.drain(..self.written);
        self.pending.shrink_to(SPARE_BYTES);
        self.written = 0;
        Ok(())
    }

    fn cut(&mut self) -> Result<()> {
        if let Some(length) = self.cut_to {
            // Never longer: somebody may have emptied the file to make room.
            if self.disk.length()? > length {
                self.disk.cut(length)?;
            }
            self.cut_to = None;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Error;
    use std::ops::Range;
    use std::sync::{Arc, Condvar, Mutex, MutexGuard};

    use super::*;

    /// A disk as the kernel shows it: what was written is in its cache, what was synced is kept, and a
    /// sync that fails marks the pages clean all the same.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct FakeDisk(Arc<(Mutex<State>, Condvar)>);

    #[derive(Debug, Default)]
    pub(crate) struct State {
        pub(crate) cache: Vec<u8>,
        pub(crate) kept: Vec<u8>,
        dirty: Vec<Range<usize>>,
        /// The most bytes it has room for.
        pub(crate) full_at: Option<usize>,
        pub(crate) cuts_that_fail: usize,
        pub(crate) syncs_that_fail: usize,
        /// Syncs do not end.
        pub(crate) held: bool,
        pub(crate) syncs_begun: usize,
    }

    impl FakeDisk {
        pub(crate) fn state(&self) -> MutexGuard<'_, State> {
            self.0.0.lock().unwrap()
        }

        pub(crate) fn release(&self) {
            self.state().held = false;
            self.0.1.notify_all();
        }
    }

    impl Disk for FakeDisk {
        fn length(&self) -> Result<u64> {
            Ok(self.state().cache.len() as u64)
        }

        /// Takes at most a few bytes at a time, as a signal or a full disk may make it do.
        fn append(&mut self, bytes: &[u8]) -> Result<usize> {
            let mut state = self.state();
            let length = state.cache.len();
            let room = state.full_at.map_or(usize::MAX, |full_at| full_at.saturating_sub(length));
            let count = bytes.len().min(room).min(1000);
            if count == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            state.cache.extend(&bytes[..count]);
            state.dirty.push(length..length + count);
            Ok(count)
        }

        fn cut(&mut self, length: u64) -> Result<()> {
            let mut state = self.state();
            if state.cuts_that_fail > 0 {
                state.cuts_that_fail -= 1;
                return Err(ErrorKind::ReadOnlyFilesystem.into());
            }
            state.cache.truncate(usize::try_from(length).unwrap());
            Ok(())
        }

        fn links(&self) -> Result<u64> {
            Ok(1)
        }

        fn sync(&mut self) -> Result<()> {
            let mut state = self.state();
            state.syncs_begun += 1;
            state = self.0.1.wait_while(state, |state| state.held).unwrap();
            let dirty = std::mem::take(&mut state.dirty);
            if state.syncs_that_fail > 0 {
                state.syncs_that_fail -= 1;
                return Err(Error::other("lost"));
            }
            let length = state.cache.len();
            state.kept.resize(length, 0);
            for range in dirty {
                let range = range.start.min(length)..range.end.min(length);
                let (kept, cache) = {
                    let state = &mut *state;
                    (&mut state.kept, &state.cache)
                };
                kept[range.clone()].copy_from_slice(&cache[range]);
            }
            Ok(())
        }
    }

    fn log() -> (FakeDisk, LogFile<FakeDisk>) {
        let disk = FakeDisk::default();
        (disk.clone(), LogFile::new(disk))
    }

    fn check(disk: &FakeDisk, cache: &str, kept: &str) {
        let state = disk.state();
        assert_eq!(String::from_utf8_lossy(&state.cache), cache);
        assert_eq!(String::from_utf8_lossy(&state.kept), kept);
    }

    #[test]
    fn a_full_disk_has_whole_lines_and_each_once_when_there_is_room_again() {
        let (disk, mut log) = log();
        log.pending().extend(b"one\ntwo\n");
        log.flush().unwrap();
        disk.state().full_at = Some(14);
        log.pending().extend(b"three\nfour\n");
        for _ in 0..3 {
            assert_eq!(log.flush().unwrap_err().kind(), ErrorKind::StorageFull);
            check(&disk, "one\ntwo\n", "");
        }
        // Half a line cannot be cut off either: then nothing is written behind it.
        disk.state().cuts_that_fail = 2;
        assert_eq!(log.flush().unwrap_err().kind(), ErrorKind::StorageFull);
        check(&disk, "one\ntwo\nthree\n", "");
        disk.state().full_at = None;
        assert_eq!(log.flush().unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
        log.flush().unwrap();
        log.sync().unwrap();
        check(&disk, "one\ntwo\nthree\nfour\n", "one\ntwo\nthree\nfour\n");
        assert_eq!((log.unsynced_bytes(), log.unwritten_bytes()), (0, 0));
    }

    #[test]
    fn what_a_failed_sync_lost_is_written_anew() {
        let (disk, mut log) = log();
        log.pending().extend(b"kept\n");
        log.flush().unwrap();
        log.sync().unwrap();
        log.pending().extend(b"one\n");
        log.flush().unwrap();
        log.pending().extend(b"two\n");
        log.flush().unwrap();
        disk.state().syncs_that_fail = 2;
        log.sync().unwrap_err();
        check(&disk, "kept\n", "kept\n");
        log.flush().unwrap();
        log.sync().unwrap_err();
        log.pending().extend(b"three\n");
        log.flush().unwrap();
        log.sync().unwrap();
        check(&disk, "kept\none\ntwo\nthree\n", "kept\none\ntwo\nthree\n");

        // Without that it would be a hole: the disk here is as treacherous as a real one.
        let mut raw = disk.clone();
        raw.append(b"four\n").unwrap();
        disk.state().syncs_that_fail = 1;
        raw.sync().unwrap_err();
        raw.sync().unwrap();
        check(&disk, "kept\none\ntwo\nthree\nfour\n", "kept\none\ntwo\nthree\n\0\0\0\0\0");
    }

    #[test]
    fn a_file_that_somebody_emptied_goes_on_with_whole_lines() {
        let (disk, mut log) = log();
        log.pending().extend(b"a long first line\n");
        log.flush().unwrap();
        log.sync().unwrap();
        disk.state().full_at = Some(20);
        log.pending().extend(b"second\n");
        log.flush().unwrap_err();
        disk.state().cache.clear();
        log.flush().unwrap();
        check(&disk, "second\n", "a long first line\n");
    }
}
