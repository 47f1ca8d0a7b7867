//! The chains that are in the folder when a process begins: how each ended is said in its first record, and
//! what a process that was killed left open is closed.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{
    BufRead as _, BufReader, ErrorKind, Read as _, Result, Seek as _, SeekFrom, Write as _,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::chain::{ChainEnd, ChainEvent, EarlierChain};
use super::event::{Event, Record};
use super::folder::{FileError, fault};
use super::line::LineWriter;
use super::reservation;
use crate::chain::{ChainId, LineHash, NUMBER_MAX, SegmentName};
use crate::regular_file;

/// The most chains that a first record names.
const AFTER_MAX: usize = 64;
/// The longest line, and the longest torn one, that is looked at.
const LINE_BYTES_MAX: u64 = 32 << 20;
/// The most bytes of a first line that are read.
const FIRST_LINE_BYTES_MAX: u64 = 1 << 20;
const STEP_BYTES: u64 = 64 << 10;

/// What was in the folder.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    /// The highest epoch of any chain.
    pub(super) epoch: u64,
    /// The newest first.
    pub(super) after: Vec<EarlierChain>,
    /// Files of reservations that have been counted.
    counted: Vec<PathBuf>,
}

impl Earlier {
    /// Takes away what the new chain's first record now says.
    pub(super) fn forget_reservations(&self) {
        for path in &self.counted {
            drop(std::fs::remove_file(path));
        }
    }
}

/// Looks at the chains of the folder and closes those whose process is gone. `by` is the chain of this
/// process.
///
/// # Errors
/// When a file cannot be read or mended.
pub(super) fn look(
    directory: &Path,
    by: ChainId,
    now: Duration,
) -> std::result::Result<Earlier, FileError> {
    let mut earlier = Earlier::default();
    for name in last_files(directory)?.into_values().rev() {
        earlier.take(directory, name, by, now)?;
    }
    Ok(earlier)
}

/// The last file of each chain.
fn last_files(directory: &Path) -> std::result::Result<BTreeMap<ChainId, SegmentName>, FileError> {
    let mut last: BTreeMap<ChainId, SegmentName> = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(fault(directory))? {
        let name = entry.map_err(fault(directory))?.file_name();
        let Some(name) = name.to_str().and_then(|name| name.parse::<SegmentName>().ok()) else {
            continue;
        };
        let known = last.entry(name.chain).or_insert(name);
        // Of a segment that is there in both forms, the one that is not compressed is whole.
        if (name.number, !name.compressed) > (known.number, !known.compressed) {
            *known = name;
        }
    }
    Ok(last)
}

impl Earlier {
    fn take(
        &mut self,
        directory: &Path,
        name: SegmentName,
        by: ChainId,
        now: Duration,
    ) -> std::result::Result<(), FileError> {
        let path = directory.join(name.to_string());
        let epoch = match epoch_of(&path, name.compressed) {
            // Another process tidied it away.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            epoch => epoch.map_err(fault(&path))?,
        };
        self.epoch = self.epoch.max(epoch);
        if name.compressed {
            return Ok(());
        }
        match close(&path, name.number, by, now).map_err(fault(&path))? {
            Closing::Done(end, whole) => self.note(directory, name.chain, end, &whole),
            // Killed between a new file and its first record: the chain ends in the file before.
            Closing::Empty if name.number > 1 => {
                std::fs::remove_file(&path).map_err(fault(&path))?;
                let before = SegmentName { number: name.number - 1, ..name };
                let is_there = directory.join(before.to_string()).exists();
                return if is_there { self.take(directory, before, by, now) } else { Ok(()) };
            }
            Closing::Empty | Closing::Unreadable => tracing::warn!(
                file = %path.display(),
                "the last record of this audit log cannot be read; it is left as it is"
            ),
        }
        Ok(())
    }

    fn note(&mut self, directory: &Path, chain: ChainId, end: ChainEnd, whole: &EndOfFile) {
        let reserved = directory.join(reservation::file_name(chain));
        let (sequence, hash) = (whole.sequence, whole.hash);
        let mut lost_at_most = None;
        if end != ChainEnd::Running {
            let lost =
                reservation::read(&reserved).map(|reserved| reserved.saturating_sub(sequence));
            lost_at_most = lost.filter(|lost| *lost > 0);
            self.counted.push(reserved);
        }
        if self.after.len() < AFTER_MAX {
            self.after.push(EarlierChain { chain, sequence, hash, end, lost_at_most });
        }
    }
}

/// Whether the chain whose last file this is has ended, in good order or closed by a later process.
pub(super) fn is_closed(path: &Path) -> Result<bool> {
    Ok(end_of(&mut regular_file::open(path)?)?
        .is_some_and(|end| end.closed.is_some() && end.torn.is_empty()))
}

/// The epoch that the first line names; 0 when it names none.
fn epoch_of(path: &Path, compressed: bool) -> Result<u64> {
    let file = regular_file::open(path)?;
    let mut line = Vec::new();
    if compressed {
        let decoder = zstd::Decoder::new(file)?.take(FIRST_LINE_BYTES_MAX);
        BufReader::new(decoder).read_until(b'\n', &mut line)?;
    } else {
        BufReader::new(file.take(FIRST_LINE_BYTES_MAX)).read_until(b'\n', &mut line)?;
    }
    let record: Option<Value> = serde_json::from_slice(&line).ok();
    let epoch = record.and_then(|record| record.get("epoch")?.as_u64());
    Ok(epoch.filter(|epoch| *epoch <= NUMBER_MAX).unwrap_or(0))
}

/// Where a file ends.
struct EndOfFile {
    /// The last whole record; 0 when there is none.
    sequence: u64,
    hash: LineHash,
    /// It is the end of a chain, and how it came to it.
    closed: Option<ChainEnd>,
    /// Whole lines end here.
    whole_bytes: u64,
    /// What stands behind.
    torn: Vec<u8>,
}

/// What came of closing a chain.
enum Closing {
    Done(ChainEnd, EndOfFile),
    /// The file has no whole line.
    Empty,
    /// Its last line is no record.
    Unreadable,
}

/// Closes the chain whose last file this is, unless its process runs or closed it.
fn close(path: &Path, number: u32, by: ChainId, now: Duration) -> Result<Closing> {
    let mut file = OpenOptions::new().read(true).append(true).open(path)?;
    let is_running = match file.try_lock() {
        Ok(()) => false,
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(error)) => return Err(error),
    };
    let Some(end) = end_of(&mut file)? else { return Ok(Closing::Unreadable) };
    if is_running {
        return Ok(Closing::Done(ChainEnd::Running, end));
    }
    if let Some(closed) = end.closed.filter(|_| end.torn.is_empty()) {
        return Ok(Closing::Done(closed, end));
    }
    if end.sequence == 0 && number > 1 {
        return Ok(Closing::Empty);
    }
    let torn = (!end.torn.is_empty()).then(|| LineHash::of(&end.torn));
    let event = ChainEvent::Recovered { by, torn_bytes: end.torn.len() as u64, torn };
    let record = Record { time: now, event: Event::Chain(event) };
    let sequence = end.sequence + 1;
    let mut line = Vec::new();
    let hash = LineWriter::default().write(sequence, end.hash, &record, &mut line);
    file.set_len(end.whole_bytes)?;
    file.write_all(&line)?;
    file.sync_all()?;
    Ok(Closing::Done(ChainEnd::Recovered, EndOfFile { sequence, hash, ..end }))
}

/// Reads from the back until the last whole line is there.
fn end_of(file: &mut File) -> Result<Option<EndOfFile>> {
    let length = file.metadata()?.len();
    let mut tail: Vec<u8> = Vec::new();
    let mut start = length;
    loop {
        let newlines = tail.iter().rev().filter(|byte| **byte == b'\n').take(2).count();
        if newlines == 2 || start == 0 {
            break;
        }
        if length - start > 2 * LINE_BYTES_MAX {
            return Ok(None);
        }
        let step = STEP_BYTES.max(length - start).min(start);
        start -= step;
        let mut more = vec![0; usize::try_from(step).unwrap_or_default()];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut more)?;
        more.append(&mut tail);
        tail = more;
    }
    let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let (lines, torn) = tail.split_at_checked(whole).unwrap_or_default();
    let whole_bytes = start + whole as u64;
    let torn = torn.to_vec();
    let Some(line) = lines.strip_suffix(b"\n") else {
        let hash = LineHash::ZERO;
        return Ok(Some(EndOfFile { sequence: 0, hash, closed: None, whole_bytes, torn }));
    };
    let line = line.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    let record: Option<Value> = serde_json::from_slice(line).ok();
    let Some(record) = record else { return Ok(None) };
    let sequence = record.get("seq").and_then(Value::as_u64);
    let Some(sequence) = sequence.filter(|number| *number <= NUMBER_MAX) else { return Ok(None) };
    let kind = record.get("type").and_then(Value::as_str);
    let closed = match kind {
        Some("process.stop") => Some(ChainEnd::Stopped),
        Some("chain.recovered") => Some(ChainEnd::Recovered),
        _ => None,
    };
    let hash = LineHash::of(line);
    Ok(Some(EndOfFile { sequence, hash, closed, whole_bytes, torn }))
}

#[cfg(test)]
mod tests {
    use super::super::event::Event;
    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn chain(millis: u64) -> ChainId {
        ChainId::new(millis, [7; 8])
    }

    /// A file with so many whole records, the last of which may close the chain, and a torn one.
    fn write(directory: &Path, millis: u64, records: u64, closed: bool, torn: &[u8]) -> PathBuf {
        let name = SegmentName { chain: chain(millis), number: 1, compressed: false };
        let path = directory.join(name.to_string());
        let (mut bytes, mut lines, mut hash) = (Vec::new(), LineWriter::default(), LineHash::ZERO);
        for sequence in 1..=records {
            let event = if closed && sequence == records {
                Event::ProcessStop { left_out: 0 }
            } else {
                Event::Chain(ChainEvent::SegmentStart {
                    chain: chain(millis),
                    epoch: millis,
                    segment: 1,
                    key: None,
                })
            };
            hash = lines.write(sequence, hash, &Record { time: NOW, event }, &mut bytes);
        }
        bytes.extend_from_slice(torn);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn check(records: u64, closed: bool, torn: &[u8], expected: (ChainEnd, u64)) {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), 5, records, closed, torn);
        let before = std::fs::read(&path).unwrap();
        let earlier = look(folder.path(), chain(9), NOW).unwrap();
        let [found] = earlier.after.as_slice() else { panic!("{earlier:?}") };
        assert_eq!((found.end, found.sequence), expected, "{records} {closed} {torn:?}");
        let after = std::fs::read(&path).unwrap();
        let whole = before.len() - torn.len();
        assert_eq!(&after[..whole], &before[..whole], "a whole line was touched");
        let added = &after[whole..];
        if expected.0 == ChainEnd::Stopped {
            assert!(added.is_empty());
        } else {
            assert_eq!(LineHash::of(added.strip_suffix(b"\n").unwrap()), found.hash);
            let record: Value = serde_json::from_slice(added).unwrap();
            assert_eq!(record["type"], "chain.recovered");
            assert_eq!(record["torn_bytes"], torn.len());
            assert_eq!(record["by"], chain(9).to_string());
        }
        // A second look finds it closed and changes nothing.
        let again = look(folder.path(), chain(11), NOW).unwrap();
        assert_eq!((again.after[0].sequence, again.after[0].hash), (found.sequence, found.hash));
        assert_eq!(std::fs::read(&path).unwrap(), after);
    }

    #[test]
    fn a_chain_that_was_left_open_is_closed_once_and_whole_lines_stay() {
        check(3, true, b"", (ChainEnd::Stopped, 3));
        check(3, false, b"", (ChainEnd::Recovered, 4));
        check(3, false, b"{\"v\":1,\"se", (ChainEnd::Recovered, 4));
        check(0, false, b"{\"v\":1,\"se", (ChainEnd::Recovered, 1));
        check(0, false, b"", (ChainEnd::Recovered, 1));
        // More than one step back.
        check(2000, false, &[b'x'; 200_000], (ChainEnd::Recovered, 2001));
    }

    #[test]
    fn a_kill_between_two_files_leaves_no_file_without_a_record() {
        for torn in [&b""[..], b"{\"v\":1"] {
            let folder = tempfile::tempdir().unwrap();
            let first = write(folder.path(), 5, 3, false, b"");
            let name = SegmentName { chain: chain(5), number: 2, compressed: false };
            let second = folder.path().join(name.to_string());
            std::fs::write(&second, torn).unwrap();
            let earlier = look(folder.path(), chain(9), NOW).unwrap();
            assert!(!second.exists());
            assert_eq!((earlier.after[0].end, earlier.after[0].sequence), (ChainEnd::Recovered, 4));
            assert!(std::fs::read_to_string(&first).unwrap().contains("chain.recovered"));
        }
    }

    #[test]
    fn a_chain_that_runs_is_left_alone_and_the_highest_epoch_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), 5, 3, false, b"half");
        write(folder.path(), 4, 3, true, b"");
        let held = OpenOptions::new().append(true).open(&path).unwrap();
        held.try_lock().unwrap();
        let before = std::fs::read(&path).unwrap();
        let earlier = look(folder.path(), chain(9), NOW).unwrap();
        let ends: Vec<_> = earlier.after.iter().map(|chain| (chain.end, chain.sequence)).collect();
        assert_eq!(ends, [(ChainEnd::Running, 3), (ChainEnd::Stopped, 3)]);
        assert_eq!(earlier.epoch, 5);
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
