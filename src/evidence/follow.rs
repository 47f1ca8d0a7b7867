//! Reads on in audit logs that are being written: across rotation, compression and new processes.
//!
//! It holds no file open between turns, and remembers of each chain only where it is.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::time::SystemTime;

use super::calls::{Call, Unread};
use super::joining::Joining;
use super::segments::{FindError, LineError, Lines, Segment, find};
use crate::chain::ChainId;

/// Lines that cannot be read and are told in one turn.
const UNREAD_MAX: usize = 100;

/// Where the reading is.
#[derive(Debug)]
pub struct Follow {
    paths: Vec<PathBuf>,
    chains: BTreeMap<ChainId, Place>,
}

/// Where it is in one chain.
#[derive(Debug)]
struct Place {
    number: u32,
    /// Bytes of whole lines of that file that were read.
    offset: u64,
    /// Nothing more can come in that file.
    is_done: bool,
    joining: Joining,
}

impl Follow {
    /// Begins with the files that were written last, so many of them; of all others only what is new is read.
    ///
    /// # Errors
    /// All that cannot be looked into.
    pub fn from_last(paths: &[PathBuf], files: usize) -> Result<Self, Vec<FindError>> {
        let segments = find(paths)?;
        let written = |segment: &Segment| {
            let modified = std::fs::metadata(&segment.path).and_then(|data| data.modified());
            modified.unwrap_or(SystemTime::UNIX_EPOCH)
        };
        let mut by_time: Vec<(SystemTime, &Segment)> =
            segments.iter().map(|segment| (written(segment), segment)).collect();
        by_time.sort();
        let last = by_time.iter().skip(by_time.len().saturating_sub(files));
        let mut first: BTreeMap<ChainId, u32> = BTreeMap::new();
        for (_, segment) in last {
            let name = segment.name;
            let number = first.entry(name.chain).or_insert(name.number);
            *number = name.number.min(*number);
        }
        let place = |segment: &Segment| match first.get(&segment.name.chain) {
            Some(number) => Place::new(*number, 0),
            None => {
                let bytes = std::fs::metadata(&segment.path).map_or(0, |data| data.len());
                let is_done = segment.name.compressed;
                Place { is_done, ..Place::new(segment.name.number, bytes) }
            }
        };
        // Of each chain the last file counts, which comes last.
        let chains = segments.iter().map(|segment| (segment.name.chain, place(segment))).collect();
        Ok(Self { paths: paths.to_owned(), chains })
    }

    /// Tells what has come since the last turn: calls that ended or were refused, and once those that stay open for
    /// longer than a turn.
    ///
    /// # Errors
    /// All that cannot be looked into.
    pub fn turn(
        &mut self,
        is_wanted: &dyn Fn(&Call) -> bool,
        tell: &mut dyn FnMut(Call),
    ) -> Result<Vec<Unread>, Vec<FindError>> {
        let mut unread = Vec::new();
        let files = by_chain(find(&self.paths)?);
        self.chains.retain(|chain, _| files.contains_key(chain));
        for files in files.into_values() {
            let Some(first) = files.first() else { continue };
            let begins = || Place::new(first.name.number, 0);
            let place = self.chains.entry(first.name.chain).or_insert_with(begins);
            for file in &files {
                let is_next = file.name.number > place.number;
                if is_next {
                    place.move_to(file.name.number);
                }
                if file.name.number == place.number && !place.is_done {
                    place.read(file, is_wanted, tell, &mut unread);
                }
            }
            place.joining.tell_open(tell);
        }
        Ok(unread)
    }

    /// Nothing more is waited for: tells what is open.
    pub fn end(mut self, tell: &mut dyn FnMut(Call)) {
        for place in self.chains.values_mut() {
            place.joining.end(tell);
        }
    }
}

/// The files of each chain in their order; of one that is there twice the one that is not compressed, which is whole.
fn by_chain(segments: Vec<Segment>) -> BTreeMap<ChainId, Vec<Segment>> {
    let mut chains: BTreeMap<ChainId, Vec<Segment>> = BTreeMap::new();
    for segment in segments {
        let files = chains.entry(segment.name.chain).or_default();
        if files.last().is_none_or(|last| last.name.number != segment.name.number) {
            files.push(segment);
        }
    }
    chains
}

impl Place {
    fn new(number: u32, offset: u64) -> Self {
        Self { number, offset, is_done: false, joining: Joining::following() }
    }

    fn move_to(&mut self, number: u32) {
        (self.number, self.offset, self.is_done) = (number, 0, false);
    }

    fn read(
        &mut self,
        file: &Segment,
        is_wanted: &dyn Fn(&Call) -> bool,
        tell: &mut dyn FnMut(Call),
        unread: &mut Vec<Unread>,
    ) {
        let offset = self.offset;
        if let Err(error) = self.read_lines(file, is_wanted, tell, unread) {
            // Compressed meanwhile: the next turn finds it under its other name.
            let is_gone =
                matches!(&error, LineError::Read(error) if error.kind() == io::ErrorKind::NotFound);
            if !is_gone {
                self.is_done = true;
                unread.push(Unread { path: file.path.clone(), offset, why: error.to_string() });
            }
        }
    }

    /// Whole lines only: one that is being written comes again.
    fn read_lines(
        &mut self,
        file: &Segment,
        is_wanted: &dyn Fn(&Call) -> bool,
        tell: &mut dyn FnMut(Call),
        unread: &mut Vec<Unread>,
    ) -> Result<(), LineError> {
        let begins = self.offset;
        let Some(mut lines) = behind(file, begins)? else { return Ok(()) };
        while let Some(line) = lines.next_line()? {
            if !line.is_whole {
                break;
            }
            let taken = self.joining.take_line(file.name.chain, line.bytes, is_wanted, tell);
            let offset = begins + line.offset;
            if let Err(why) = taken
                && unread.len() < UNREAD_MAX
            {
                unread.push(Unread { path: file.path.clone(), offset, why });
            }
            self.offset = offset + line.bytes.len() as u64 + 1;
        }
        self.is_done = file.name.compressed;
        Ok(())
    }
}

/// The lines behind an offset of the uncompressed file; `None` when there is nothing.
fn behind(file: &Segment, offset: u64) -> io::Result<Option<Lines<Box<dyn BufRead>>>> {
    let mut plain = std::fs::File::open(&file.path)?;
    let reader: Box<dyn BufRead> = if file.name.compressed {
        let mut decoder = zstd::Decoder::new(plain)?;
        io::copy(&mut (&mut decoder).take(offset), &mut io::sink())?;
        Box::new(BufReader::new(decoder))
    } else {
        if plain.metadata()?.len() <= offset {
            return Ok(None);
        }
        plain.seek(SeekFrom::Start(offset))?;
        Box::new(BufReader::new(plain))
    };
    Ok(Some(Lines::new(reader)))
}
