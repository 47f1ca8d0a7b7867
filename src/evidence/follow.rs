//! Reads on in audit logs that are being written: across rotation, compression and new processes.
//!
//! It holds no file open between turns, and remembers of each chain only where it is.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use super::calls::{Call, Unread};
use super::joining::Joining;
use super::segments::{FindError, LineError, Lines, Segment, find};
use crate::chain::{ChainId, SegmentName, head};
use crate::regular_file;

/// Lines that cannot be read and are told in one turn.
const UNREAD_MAX: usize = 100;
/// How often the files are listed in one turn, at most: a busy log may be rotated again while it is read. What is
/// not there at the last listing is told.
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
    /// That the file cannot be read is told once.
    is_told: bool,
    since: Since,
    joining: Joining,
}

/// How far back a chain was read.
#[derive(Debug, PartialEq, Eq)]
enum Since {
    Beginning,
    /// It has older files; the first record that was read is of that time.
    Time(String),
    /// It has older files, and nothing was read yet.
    Never,
}

impl Follow {
    /// Begins with the last files of each chain, so many of them.
    ///
    /// # Errors
    /// All that cannot be looked into.
    pub fn from_last(paths: &[PathBuf], files: usize) -> Result<Self, Vec<FindError>> {
        let first = |segments: Vec<Segment>| {
            let numbers: BTreeSet<u32> = segments.iter().map(|file| file.name.number).collect();
            let number = *numbers.iter().rev().take(files).next_back()?;
            let at = segments.iter().position(|file| file.name.number == number)?;
            let since = if at > 0 { Since::Never } else { Since::Beginning };
            let place = |name: SegmentName| Place { since, ..Place::new(name.number) };
            segments.get(at).map(|segment| (segment.name.chain, place(segment.name)))
        };
        let chains = by_chain(find(paths)?).into_values().filter_map(first).collect();
        Ok(Self { paths: paths.to_owned(), chains })
    }

    /// Whether all calls from that time on were read, as far as the files have them.
    #[must_use]
    pub fn reaches_back_to(&self, time: &str) -> bool {
        self.chains.values().all(|place| match &place.since {
            Since::Beginning => true,
            Since::Time(since) => since.as_str() <= time,
            Since::Never => false,
        })
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
        // A file that is compressed meanwhile has another name, and a listing may miss one that is renamed: nothing
        // behind it is read before it.
        for again in (0..LISTINGS_MAX).rev() {
            let segments = find(&self.paths)?;
            if self.read_listed(segments, again == 0, is_wanted, tell, &mut unread) {
                break;
            }
        }
        self.chains.values_mut().for_each(|place| place.joining.tell_open(tell));
        Ok(unread)
    }

    /// False when a file is not there that must come first; `skips` has it told instead.
    fn read_listed(
        &mut self,
        segments: Vec<Segment>,
        skips: bool,
        is_wanted: &dyn Fn(&Call) -> bool,
        tell: &mut dyn FnMut(Call),
        unread: &mut Vec<Unread>,
    ) -> bool {
        let chains = by_chain(segments);
        let mut is_complete = true;
        // One that a listing missed would be read from its beginning again.
        if self.chains.keys().any(|chain| !chains.contains_key(chain)) {
            is_complete = false;
            if skips {
                self.forget_others(&chains, tell);
            }
        }
        for files in chains.values() {
            let Some(first) = files.first() else { continue };
            let begins = || Place::new(first.name.number);
            let place = self.chains.entry(first.name.chain).or_insert_with(begins);
            is_complete &= place.read_files(files, skips, is_wanted, tell, unread);
        }
        is_complete
    }

    fn forget_others(
        &mut self,
        chains: &BTreeMap<ChainId, Vec<Segment>>,
        tell: &mut dyn FnMut(Call),
    ) {
        self.chains.retain(|chain, place| {
            let is_here = chains.contains_key(chain);
            if !is_here {
                place.joining.end(tell);
            }
            is_here
        });
    }

    /// Tells what is open now, at once.
    pub fn tell_all_open(&mut self, tell: &mut dyn FnMut(Call)) {
        self.chains.values_mut().for_each(|place| place.joining.tell_all_open(tell));
    }
}

/// The files of each chain in their order; one that is there compressed as well comes twice, the compressed one last.
fn by_chain(segments: Vec<Segment>) -> BTreeMap<ChainId, Vec<Segment>> {
    let mut chains: BTreeMap<ChainId, Vec<Segment>> = BTreeMap::new();
    for segment in segments {
        chains.entry(segment.name.chain).or_default().push(segment);
    }
    chains
}

/// Whether a file has a whole line.
fn has_a_line(file: &Segment) -> bool {
    let line = |mut lines: Lines<Box<dyn BufRead>>| {
        lines.next_line().is_ok_and(|line| line.is_some_and(|line| line.is_whole))
    };
    behind(file, 0).is_ok_and(|lines| lines.is_some_and(line))
}

impl Place {
    fn new(number: u32) -> Self {
        let (since, joining) = (Since::Beginning, Joining::following());
        Self { number, offset: 0, is_done: false, is_told: false, since, joining }
    }

    fn move_to(&mut self, number: u32) {
        (self.number, self.offset, self.is_done, self.is_told) = (number, 0, false, false);
    }

    /// False when a file is not there that must come first; `skips` has it told instead.
    fn read_files(
        &mut self,
        files: &[Segment],
        skips: bool,
        is_wanted: &dyn Fn(&Call) -> bool,
        tell: &mut dyn FnMut(Call),
        unread: &mut Vec<Unread>,
    ) -> bool {
        let last = files.last().map_or(0, |file| file.name.number);
        for file in files {
            if file.name.number > self.number {
                // The next file is made before the end of this one is written, and has its first line behind it.
                let here = self.number;
                let current = || files.iter().filter(|file| file.name.number == here);
                let may_come = file.name.number == last && current().next().is_some();
                if !self.is_done && may_come && !has_a_line(file) {
                    return true;
                }
                for current in current() {
                    let is_open = !self.is_done;
                    if is_open && !self.read(current, skips, false, is_wanted, tell, unread) {
                        return false;
                    }
                }
                if let Some(why) = self.missing_before(file.name.number) {
                    if !skips {
                        return false;
                    }
                    unread.push(Unread { path: file.path.clone(), offset: 0, why });
                }
                self.move_to(file.name.number);
            }
            let is_last = file.name.number == last;
            let is_here = file.name.number == self.number && !self.is_done;
            if is_here && !self.read(file, skips, is_last, is_wanted, tell, unread) {
                return false;
            }
            let is_plain = |other: &Segment| !other.name.compressed;
            let same = files.iter().filter(|other| other.name.number == self.number);
            // Nothing more can come in a file that is compressed, unless the other is still there, and perhaps in use.
            self.is_done |= is_here && file.name.compressed && !same.into_iter().any(is_plain);
        }
        true
    }

    /// What was not read before that file.
    fn missing_before(&self, number: u32) -> Option<String> {
        let (first, last) = (self.number + u32::from(self.is_done), number.saturating_sub(1));
        match last.checked_sub(first)? {
            0 if !self.is_done => Some(format!(
                "what was behind byte {} of file {first} was not read: it has no end, or is gone",
                self.offset
            )),
            _ => {
                Some(format!("files {first} to {last} before it were not read: they are not there"))
            }
        }
    }

    /// False when the file cannot be read now, and what is behind it has to wait.
    fn read(
        &mut self,
        file: &Segment,
        skips: bool,
        is_last: bool,
        is_wanted: &dyn Fn(&Call) -> bool,
        tell: &mut dyn FnMut(Call),
        unread: &mut Vec<Unread>,
    ) -> bool {
        let offset = self.offset;
        let error = match self.read_lines(file, is_wanted, tell, unread) {
            Ok(is_fine) => {
                // What is told already comes again as long as nothing stands behind it.
                self.is_told &= !is_fine;
                return true;
            }
            Err(error) => error,
        };
        let is_of_now = matches!(&error, LineError::Read(_)) && !file.name.compressed;
        let is_gone =
            matches!(&error, LineError::Read(error) if error.kind() == io::ErrorKind::NotFound);
        if (is_of_now || is_gone) && !skips {
            return false;
        }
        if !std::mem::replace(&mut self.is_told, true) {
            unread.push(Unread { path: file.path.clone(), offset, why: error.to_string() });
        }
        // The last one is tried again at the next turn.
        self.is_done = !(is_of_now && is_last);
        true
    }

    /// Whole lines only: one that is being written comes again. False when one was too long to be read.
    fn read_lines(
        &mut self,
        file: &Segment,
        is_wanted: &dyn Fn(&Call) -> bool,
        tell: &mut dyn FnMut(Call),
        unread: &mut Vec<Unread>,
    ) -> Result<bool, LineError> {
        let begins = self.offset;
        let mut is_fine = true;
        let Some(mut lines) = behind(file, begins)? else { return Ok(is_fine) };
        loop {
            let line = match lines.next_line() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                // What is behind it still counts.
                Err(LineError::TooLong { offset }) => {
                    let offset = begins + offset;
                    is_fine = false;
                    if !std::mem::replace(&mut self.is_told, true) && unread.len() < UNREAD_MAX {
                        let why = LineError::TooLong { offset }.to_string();
                        unread.push(Unread { path: file.path.clone(), offset, why });
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            if !line.is_whole {
                break;
            }
            if self.since == Since::Never {
                let time = head(line.bytes).map(|head| head.time.to_owned());
                self.since = time.map_or(Since::Never, Since::Time);
            }
            let is_end = head(line.bytes).is_some_and(|head| head.kind == "segment.end");
            let taken = self.joining.take_line(file.name.chain, line.bytes, is_wanted, tell);
            let offset = begins + line.offset;
            if let Err(why) = taken
                && unread.len() < UNREAD_MAX
            {
                unread.push(Unread { path: file.path.clone(), offset, why });
            }
            self.offset = offset + line.bytes.len() as u64 + 1;
            self.is_done = is_end;
        }
        Ok(is_fine)
    }
}

/// The lines behind an offset of the uncompressed file; `None` when there is nothing.
fn behind(file: &Segment, offset: u64) -> io::Result<Option<Lines<Box<dyn BufRead>>>> {
    let mut plain = regular_file::open(&file.path)?;
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
        assert!(!follow.read_listed(listed, false, &all, &mut tell, &mut unread));
        assert!(follow.turn(&all, &mut tell).unwrap().is_empty() && unread.is_empty());
        assert_eq!(told, [1, 2]);
    }

    /// The attack: files that retention takes while a tail lags behind are passed over without a word.
    #[test]
    fn a_file_that_is_gone_before_it_was_read_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let write = |number: u32, kind: &str| {
            let name = format!("audit-1790000000123-9f86d081884c7d65-{number:06}.jsonl");
            let line = format!(
                "{{\"v\":1,\"seq\":{number},\"time\":\"2027-01-15T08:00:00.000000Z\",\"type\":\"{kind}\",\"verdict\":\"deny\"}}\n"
            );
            std::fs::write(folder.path().join(&name), line).unwrap();
            folder.path().join(name)
        };
        let first = write(1, "segment.end");
        let paths = [folder.path().to_owned()];
        let mut follow = Follow::from_last(&paths, 1).unwrap();
        let mut told = Vec::new();
        let mut turn = |follow: &mut Follow| {
            let unread = follow.turn(&|_| true, &mut |call| told.push(call.seq)).unwrap();
            unread.into_iter().map(|unread| unread.why).collect::<Vec<_>>()
        };
        assert!(turn(&mut follow).is_empty());
        // Its end was seen: that it goes hides nothing.
        std::fs::remove_file(first).unwrap();
        let second = write(2, "decision");
        assert!(turn(&mut follow).is_empty());
        std::fs::remove_file(second).unwrap();
        let third = write(3, "decision");
        assert!(turn(&mut follow)[0].contains("of file 2 was not read"));
        std::fs::remove_file(third).unwrap();
        write(6, "decision");
        assert!(turn(&mut follow)[0].contains("files 3 to 5 before it were not read"));
        assert!(turn(&mut follow).is_empty());
        assert_eq!(told, [2, 3, 6]);
    }

    /// The attack: who can append to the file once has a tail see nothing more of it.
    #[test]
    fn behind_a_line_that_is_too_long_a_tail_goes_on_and_says_so_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit-1790000000123-9f86d081884c7d65-000001.jsonl");
        let line = |seq| {
            format!(
                "{{\"v\":1,\"seq\":{seq},\"time\":\"2027-01-15T08:00:00.000000Z\",\"type\":\"decision\",\"verdict\":\"deny\"}}\n"
            )
            .into_bytes()
        };
        let long = [vec![b'x'; 33 << 20], b"\n".to_vec()].concat();
        std::fs::write(&path, [line(1), long.clone()].concat()).unwrap();
        let mut follow = Follow::from_last(&[folder.path().to_owned()], 1).unwrap();
        let mut told = Vec::new();
        let mut turn = |follow: &mut Follow| {
            follow.turn(&|_| true, &mut |call| told.push(call.seq)).unwrap().len()
        };
        assert_eq!((turn(&mut follow), turn(&mut follow)), (1, 0));
        std::fs::write(&path, [line(1), long, line(2)].concat()).unwrap();
        assert_eq!((turn(&mut follow), turn(&mut follow)), (0, 0));
        assert_eq!(told, [1, 2]);
    }
}
