//! The files of audit logs, and their lines, in constant memory.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::chain::SegmentName;
use crate::regular_file;

/// The longest line that is read: more than any record can have.
pub const LINE_BYTES_MAX: usize = 32 << 20;
/// The most files that are taken from folders.
const SEGMENTS_MAX: usize = 1_000_000;
const READ_BYTES: usize = 256 << 10;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    /// What its name says.
    pub name: SegmentName,
    /// Where it is.
    pub path: PathBuf,
}

/// What cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The folder or file cannot be read.
    #[error("cannot read `{}`: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file that was named is none of an audit log.
    #[error("`{}` is not named like a file of an audit log (audit-CHAIN-NUMBER.jsonl or .jsonl.zst)", .0.display())]
    Name(PathBuf),
    /// More files than can be meant.
    #[error("more than {SEGMENTS_MAX} files of audit logs")]
    TooMany,
}

/// The files of audit logs among these files and in these folders, by chain and number. In a folder, what is
/// named otherwise is left alone; of a file that is there both compressed and not, both come.
///
/// # Errors
/// All that cannot be looked into.
pub fn find(paths: &[PathBuf]) -> Result<Vec<Segment>, Vec<FindError>> {
    let (mut segments, mut faults) = (Vec::new(), Vec::new());
    for path in paths {
        let fault = |error| FindError::Read { path: path.clone(), error };
        match std::fs::metadata(path) {
            Err(error) => faults.push(fault(error)),
            Ok(metadata) if metadata.is_dir() => match std::fs::read_dir(path) {
                Err(error) => faults.push(fault(error)),
                Ok(entries) => {
                    for entry in entries.take(SEGMENTS_MAX) {
                        match entry {
                            Ok(entry) => segments.extend(segment(&entry.path())),
                            Err(error) => faults.push(fault(error)),
                        }
                    }
                }
            },
            Ok(_) => match segment(path) {
                Some(segment) => segments.push(segment),
                None => faults.push(FindError::Name(path.clone())),
            },
        }
        if segments.len() >= SEGMENTS_MAX {
            faults.push(FindError::TooMany);
            break;
        }
    }
    segments.sort();
    segments.dedup();
    if faults.is_empty() { Ok(segments) } else { Err(faults) }
}

fn segment(path: &Path) -> Option<Segment> {
    let name = path.file_name()?.to_str()?.parse().ok()?;
    Some(Segment { name, path: path.to_owned() })
}

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Without its newline.
    pub bytes: &'a [u8],
    /// Where it begins, in bytes of the uncompressed file.
    pub offset: u64,
    /// Whether its newline is there; a line without one is torn, or is being written.
    pub is_whole: bool,
}

/// Why there is no next line.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The file cannot be read, or is not what its ending says.
    #[error("{0}")]
    Read(#[from] std::io::Error),
    /// No record has such a line.
    #[error("a line at byte {offset} is longer than {LINE_BYTES_MAX} bytes")]
    TooLong {
        /// Where it begins.
        offset: u64,
    },
}

/// The lines of a file, one at a time.
pub struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    offset: u64,
    /// What comes next is still of a line that was too long.
    is_within: bool,
}

impl std::fmt::Debug for Lines<Box<dyn BufRead + '_>> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Lines").field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl Segment {
    /// Its bytes on the disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |data| data.len())
    }

    /// Opens it, compressed or not. `progress` hears of bytes of the file as they are read.
    ///
    /// # Errors
    /// When that cannot be.
    pub fn lines<'a>(
        &self,
        progress: &'a dyn Fn(u64),
    ) -> std::io::Result<Lines<Box<dyn BufRead + 'a>>> {
        let (opened, is_compressed) = match regular_file::open(&self.path) {
            // It was compressed since it was found.
            Err(error) if error.kind() == ErrorKind::NotFound && !self.name.compressed => {
                let name = SegmentName { compressed: true, ..self.name };
                let now = regular_file::open(&self.path.with_file_name(name.to_string()));
                (now.map_err(|_| error)?, true)
            }
            opened => (opened?, self.name.compressed),
        };
        let file = Counted { file: opened, progress };
        let reader: Box<dyn BufRead + 'a> = if is_compressed {
            let decoder = zstd::Decoder::new(file)?;
            Box::new(BufReader::with_capacity(READ_BYTES, decoder))
        } else {
            Box::new(BufReader::with_capacity(READ_BYTES, file))
        };
        Ok(Lines::new(reader))
    }
}

/// A file that says how much of it was read.
struct Counted<'a> {
    file: File,
    progress: &'a dyn Fn(u64),
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        (self.progress)(read as u64);
        Ok(read)
    }
}

impl<R: BufRead> Lines<R> {
    /// The lines of anything.
    pub const fn new(reader: R) -> Self {
        Self { reader, line: Vec::new(), offset: 0, is_within: false }
    }

    /// The next one; `None` at the end.
    ///
    /// # Errors
    /// When it cannot be read, or is too long; the next call goes on behind that one.
    pub fn next_line(&mut self) -> Result<Option<Line<'_>>, LineError> {
        while self.is_within {
            let read = self.read_bounded()?;
            self.is_within = read > 0 && self.line.last() != Some(&b'\n');
        }
        let offset = self.offset;
        let read = self.read_bounded()?;
        let is_whole = self.line.last() == Some(&b'\n');
        if is_whole {
            self.line.pop();
        } else if self.line.len() > LINE_BYTES_MAX {
            self.is_within = true;
            return Err(LineError::TooLong { offset });
        }
        Ok((read > 0).then_some(Line { bytes: &self.line, offset, is_whole }))
    }

    /// Up to the end of the line, or a little more than a line may have.
    fn read_bounded(&mut self) -> std::io::Result<usize> {
        // A file may be one line of terabytes.
        self.line.clear();
        self.line.shrink_to(READ_BYTES);
        let mut bounded = (&mut self.reader).take(LINE_BYTES_MAX as u64 + 1);
        let read = bounded.read_until(b'\n', &mut self.line)?;
        self.offset += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, u64, bool)]) {
        let mut lines = Lines::new(text.as_bytes());
        for (bytes, offset, is_whole) in expected {
            let line = lines.next_line().unwrap().unwrap();
            assert_eq!(
                (line.bytes, line.offset, line.is_whole),
                (bytes.as_bytes(), *offset, *is_whole)
            );
        }
        assert_eq!(lines.next_line().unwrap(), None, "{text:?}");
    }

    #[test]
    fn lines_are_told_with_their_places() {
        check("", &[]);
        check("a\nbc\n", &[("a", 0, true), ("bc", 2, true)]);
        check("a\n\nb", &[("a", 0, true), ("", 2, true), ("b", 3, false)]);
    }

    #[test]
    fn a_line_without_end_is_an_error_and_no_memory() {
        let mut lines = Lines::new(BufReader::new(std::io::repeat(b'x')));
        assert!(matches!(lines.next_line(), Err(LineError::TooLong { offset: 0 })));
    }

    #[test]
    fn a_file_that_is_compressed_after_it_was_found_is_read_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit-1790000000123-9f86d081884c7d65-000001.jsonl");
        std::fs::write(&path, "a\n").unwrap();
        let found = find(&[folder.path().to_owned()]).unwrap();
        let packed = zstd::encode_all(&b"a\n"[..], 1).unwrap();
        std::fs::write(path.with_extension("jsonl.zst"), packed).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut lines = found[0].lines(&|_| {}).unwrap();
        assert_eq!(lines.next_line().unwrap().unwrap().bytes, b"a");
    }

    /// The attack: a line that nobody can read hides all that is behind it.
    #[test]
    fn behind_a_line_that_is_too_long_reading_goes_on() {
        let long = vec![b'x'; 2 * LINE_BYTES_MAX + 3];
        let text = [b"a\n", &*long, b"\nb\n"].concat();
        let mut lines = Lines::new(&*text);
        assert_eq!(lines.next_line().unwrap().unwrap().bytes, b"a");
        assert!(matches!(lines.next_line(), Err(LineError::TooLong { offset: 2 })));
        let behind = lines.next_line().unwrap().unwrap();
        assert_eq!((behind.bytes, behind.offset), (&b"b"[..], 3 + long.len() as u64));
        assert_eq!(lines.next_line().unwrap(), None);
    }

    #[test]
    fn files_are_found_by_name_and_what_is_no_file_of_a_log_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let name = "audit-1790000000123-9f86d081884c7d65-000001.jsonl";
        for name in [name, &format!("{name}.zst"), "notes.txt", "audit-5-6.jsonl"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let found = find(&[folder.path().to_owned()]).unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        // Named twice, it is one.
        let twice = find(&[folder.path().join(name), folder.path().to_owned()]).unwrap();
        assert_eq!(twice.len(), 2, "{twice:?}");
        let faults = find(&[folder.path().join("notes.txt"), folder.path().join("none")]);
        assert_eq!(faults.unwrap_err().len(), 2);
    }
}
