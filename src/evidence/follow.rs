//! Reads on in audit logs that are being written: across rotation, compression and new processes.
//!
//! It holds no file open between turns, and remembers of each chain only where it is.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use super::calls::{Call, Unread};
use super::joining::Joining;
use super::segments::{FindError, LineError, Lines, Segment, find};
use crate::chain::ChainId;

/// Lines that cannot be read and are told in one turn.
const UNREAD_MAX: usize = 100;
/// How often the files are listed in one turn.
const LISTINGS_MAX: usize = 10;

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
    /// Begins with the last files of each chain, so many of them.
    ///
    /// # Errors
    /// All that cannot be looked into.
    pub fn from_last(paths: &[PathBuf], files: usize) -> Result<Self, Vec<FindError>> {
        let first = |segments: Vec<Segment>| {
            let at = segments.len().saturating_sub(files);
            segments.get(at).map(|segment| (segment.name.chain, Place::new(segment.name.number)))
        };
        let chains = by_chain(find(paths)?).into_values().filter_map(first).collect();
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
        // A file that is compressed meanwhile has another name: nothing behind it is read before it.
        for _ in 0..LISTINGS_MAX {
            if !self.read_new(is_wanted, tell, &mut unread)? {
                break;
            }
        }
        self.chains.values_mut().for_each(|place| place.joining.tell_open(tell));
        Ok(unread)
    }

    /// Whether a file was gone when it was to be read.
    fn read_new(
        &mut self,
        is_wanted: &dyn Fn(&Call) -> bool,
        tell: &mut dyn FnMut(Call),
        unread: &mut Vec<Unread>,
    ) -> Result<bool, Vec<FindError>> {
        Ok(self.read_listed(find(&self.paths)?, is_wanted, tell, unread))
    }

    fn read_listed(
        &mut self,
        segments: Vec<Segment>,
        is_wanted: &dyn Fn(&Call) -> bool,
        tell: &mut dyn FnMut(Call),
        unread: &mut Vec<Unread>,
    ) -> bool {
        let files = by_chain(segments);
        self.chains.retain(|chain, _| files.contains_key(chain));
        let mut is_any_gone = false;
        for files in files.into_values() {
            let Some(first) = files.first() else { continue };
            let begins = || Place::new(first.name.number);
            let place = self.chains.entry(first.name.chain).or_insert_with(begins);
            for file in &files {
                if file.name.number > place.number {
                    place.move_to(file.name.number);
                }
                let is_here = file.name.number == place.number && !place.is_done;
                if is_here && !place.read(file, is_wanted, tell, unread) {
                    is_any_gone = true;
                    break;
                }
            }
        }
        is_any_gone
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
    fn new(number: u32) -> Self {
        Self { number, offset: 0, is_done: false, joining: Joining::following() }
    }

    fn move_to(&mut self, number: u32) {
        (self.number, self.offset, self.is_done) = (number, 0, false);
    }

    /// False when the file is gone: what is behind it waits for the next listing.
    fn read(
        &mut self,
        file: &Segment,
        is_wanted: &dyn Fn(&Call) -> bool,
        tell: &mut dyn FnMut(Call),
        unread: &mut Vec<Unread>,
    ) -> bool {
        let offset = self.offset;
        let Err(error) = self.read_lines(file, is_wanted, tell, unread) else { return true };
        let is_gone =
            matches!(&error, LineError::Read(error) if error.kind() == io::ErrorKind::NotFound);
        if !is_gone {
            self.is_done = true;
            unread.push(Unread { path: file.path.clone(), offset, why: error.to_string() });
        }
        !is_gone
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The attack: much traffic has files rotated, and what stood in one that is compressed just then is not shown.
    #[test]
    fn a_file_that_is_compressed_between_listing_and_reading_is_not_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let name = |number: u32| {
            folder.path().join(format!("audit-1790000000123-9f86d081884c7d65-{number:06}.jsonl"))
        };
        let line = |seq| {
            format!(
                "{{\"v\":1,\"seq\":{seq},\"time\":\"2027-01-15T08:00:0{seq}.000000Z\",\"type\":\"decision\",\"verdict\":\"deny\"}}\n"
            )
        };
        std::fs::write(name(1), line(1)).unwrap();
        let paths = [folder.path().to_owned()];
        let mut follow = Follow::from_last(&paths, 1).unwrap();
        let mut listed = find(&paths).unwrap();
        std::fs::write(name(2), line(2)).unwrap();
        let packed = zstd::encode_all(line(1).as_bytes(), 1).unwrap();
        std::fs::write(name(1).with_extension("jsonl.zst"), packed).unwrap();
        std::fs::remove_file(name(1)).unwrap();
        // What was listed before: the first under its old name, and the second.
        listed.extend(find(&[name(2)]).unwrap());
        let mut told = Vec::new();
        let (all, mut unread) = (|_: &Call| true, Vec::new());
        let mut tell = |call: Call| told.push(call.seq);
        assert!(follow.read_listed(listed, &all, &mut tell, &mut unread));
        assert!(follow.turn(&all, &mut tell).unwrap().is_empty() && unread.is_empty());
        assert_eq!(told, [1, 2]);
    }
}
