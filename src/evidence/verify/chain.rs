//! One chain, followed from its first line to its last.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::copies::{Difference, compare};
use super::keys::{ProcessKey, PublicKey};
use super::{Finding, Place, Report, What};
use crate::chain::{ChainId, Head, LineHash, head};
use crate::evidence::segments::{Line, LineError, Lines, Segment};

/// Records are stamped by many threads; one may overtake another by so much and it is no finding.
const CLOCK_SLACK_SECONDS: i64 = 5;
/// A record that was moved is looked for among so many lines behind its place.
const MOVED_BY_MAX: usize = 1000;

/// Findings about single records that are told; those about chains come on top.
const NOTES_MAX: usize = 10_000;
/// The most of a reason that is shown.
const REASON_CHARS_MAX: usize = 64;

/// What is known of a chain once it was followed.
#[derive(Debug, Default)]
pub(super) struct Followed {
    pub(super) epoch: Option<u64>,
    /// The first record that is there.
    pub(super) first: u64,
    pub(super) last: (u64, LineHash),
    /// Of the records that others know.
    pub(super) hashes: BTreeMap<u64, LineHash>,
    /// What its first record says of earlier chains.
    pub(super) after: Vec<(ChainId, u64, LineHash)>,
    /// What it says was removed: chain, segment, last record. Of a sealed chain only what is sealed.
    pub(super) removed: Vec<(ChainId, u32, u64, LineHash)>,
    /// Its first files are not there: the first that is, and what that one stands behind.
    pub(super) behind: Option<(u32, u64, LineHash)>,
    pub(super) is_faulty: bool,
}

/// A chain on its way.
pub(super) struct Chain<'k> {
    id: ChainId,
    key: Option<&'k PublicKey>,
    process_key: Option<ProcessKey>,
    /// Records whose hashes others want to compare.
    wanted: BTreeSet<u64>,
    found: Followed,
    sealed: u64,
    /// Removals behind the last checkpoint.
    removed_unsealed: Vec<(ChainId, u32, u64, LineHash)>,
    has_ended: bool,
    stopped: bool,
    newest_time: String,
}

impl<'k> Chain<'k> {
    pub(super) fn new(id: ChainId, key: Option<&'k PublicKey>, wanted: BTreeSet<u64>) -> Self {
        Self {
            id,
            key,
            process_key: None,
            wanted,
            found: Followed::default(),
            sealed: 0,
            removed_unsealed: Vec::new(),
            has_ended: false,
            stopped: false,
            newest_time: String::new(),
        }
    }

    /// Follows it through its files, in their order, to the first thing that is wrong.
    pub(super) fn follow(
        mut self,
        files: &[&Segment],
        report: &mut Report,
        progress: &dyn Fn(u64),
    ) -> Followed {
        let mut next = 1;
        let mut files = files.iter().peekable();
        while let Some(file) = files.next() {
            let number = file.name.number;
            let is_again = |other: &&&Segment| other.name.number == number;
            let copies =
                std::iter::from_fn(|| files.next_if(is_again)).copied().collect::<Vec<_>>();
            let file = self.longest(file, &copies, report, progress);
            let is_last = files.peek().is_none();
            let result = if number == next || next == 1 {
                if number > 1 && next == 1 {
                    self.found.behind = Some((number, 0, LineHash::ZERO));
                }
                self.follow_file(file, is_last, report, progress)
            } else {
                Err(self.finding(file, 0, 0, What::FilesMissing(next, number - 1)))
            };
            if let Err(finding) = result {
                self.found.is_faulty = true;
                report.faults.push(finding);
                break;
            }
            next = number.saturating_add(1);
        }
        if !self.found.is_faulty {
            self.note_end(report);
        }
        // Of those that are there.
        let before = self.found.first.saturating_sub(1);
        report.sealed = report.sealed.saturating_add(self.sealed.saturating_sub(before));
        // Who can write behind the last checkpoint must not excuse a file that is not there.
        if self.process_key.is_none() {
            self.found.removed.append(&mut self.removed_unsealed);
        }
        self.found
    }

    fn note_end(&self, report: &mut Report) {
        let (last, _) = self.found.last;
        let mut note = |what| {
            report.notes.push(Finding { chain: Some(self.id), place: None, what });
        };
        if !self.has_ended {
            note(What::Open);
        }
        if self.process_key.is_none() {
            note(What::NoSeal);
        }
        // The record of a good end stands behind the last seal; it says nothing that could be hidden.
        let unsealed = last.saturating_sub(self.sealed);
        if self.process_key.is_some() && unsealed > u64::from(self.stopped) {
            note(What::Unsealed(unsealed));
        }
    }

    /// Of all copies of a file the one that has the others in it.
    fn longest<'s>(
        &mut self,
        file: &'s Segment,
        copies: &[&'s Segment],
        report: &mut Report,
        progress: &dyn Fn(u64),
    ) -> &'s Segment {
        let mut longest = file;
        for copy in copies {
            match compare(longest, copy, progress) {
                Ok(Ordering::Less) => longest = copy,
                Ok(Ordering::Equal | Ordering::Greater) => {}
                Err(difference) => {
                    let what = match difference {
                        Difference::At(record) => What::CopiesDiffer(record),
                        Difference::Unreadable(error) => What::Unreadable(error.to_string()),
                    };
                    self.found.is_faulty = true;
                    report.faults.push(self.finding(copy, 0, 0, what));
                }
            }
        }
        if !copies.is_empty() {
            report.notes.push(self.finding(longest, 0, 0, What::Twice));
        }
        longest
    }

    fn finding(&self, file: &Segment, record: u64, offset: u64, what: What) -> Finding {
        let place = Place { path: file.path.clone(), record, offset };
        Finding { chain: Some(self.id), place: Some(place), what }
    }

    fn follow_file(
        &mut self,
        file: &Segment,
        is_last: bool,
        report: &mut Report,
        progress: &dyn Fn(u64),
    ) -> Result<(), Finding> {
        let expected = |chain: &Self| chain.found.last.0.saturating_add(1);
        let unreadable = |chain: &Self, error: LineError| {
            chain.finding(file, expected(chain), 0, What::Unreadable(error.to_string()))
        };
        let lines = file.lines(progress).map_err(|error| unreadable(self, error.into()));
        let mut lines = lines?;
        let mut is_first = true;
        loop {
            let line = match lines.next_line() {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(()),
                Err(error) => return Err(unreadable(self, error)),
            };
            let (offset, record) = (line.offset, expected(self));
            if !line.is_whole {
                if is_last && !self.has_ended {
                    // It may be on its way; what is missing of it is said with the chain's open end.
                    return Ok(());
                }
                return Err(self.finding(file, record, offset, What::Torn));
            }
            let bytes = line.bytes.len() as u64 + 1;
            let followed = self.follow_line(line, std::mem::take(&mut is_first));
            match followed {
                Ok(notes) => {
                    report.records += 1;
                    report.bytes += bytes;
                    for what in notes {
                        if report.notes.len() < NOTES_MAX {
                            report.notes.push(self.finding(file, record, offset, what));
                        } else {
                            report.notes_left_out += 1;
                        }
                    }
                }
                Err(What::Missing(expected, _)) if follows_soon(&mut lines, expected) => {
                    let what = What::Reordered { found: expected + 1, expected };
                    return Err(self.finding(file, record, offset, what));
                }
                Err(what) => return Err(self.finding(file, record, offset, what)),
            }
        }
    }

    fn follow_line(&mut self, line: Line<'_>, opens_file: bool) -> Result<Vec<What>, What> {
        let head = head(line.bytes).ok_or(What::NoRecord("it does not begin like one"))?;
        let previous =
            LineHash::previous_in(line.bytes).ok_or(What::NoRecord("it does not end like one"))?;
        let begins = self.found.first == 0;
        if let Some(behind) = self.found.behind.as_mut().filter(|_| begins) {
            // The files before are gone; whether the log says so is seen when all chains were followed.
            *behind = (behind.0, head.sequence.saturating_sub(1), previous);
            self.found.last = (head.sequence.saturating_sub(1), previous);
        }
        self.check_order(&head, previous)?;
        if self.has_ended && head.kind != "chain.recovered" {
            return Err(What::BehindEnd);
        }
        if begins {
            self.found.first = head.sequence;
        }
        let hash = LineHash::of(line.bytes);
        self.found.last = (head.sequence, hash);
        if self.wanted.contains(&head.sequence) {
            self.found.hashes.insert(head.sequence, hash);
        }
        let mut notes = Vec::new();
        notes.extend(self.clock(head.time));
        notes.extend(self.special(&head, line.bytes, previous, (begins, opens_file))?);
        Ok(notes)
    }

    fn check_order(&self, head: &Head<'_>, previous: LineHash) -> Result<(), What> {
        let (last, hash) = self.found.last;
        let expected = last.saturating_add(1);
        if head.sequence > expected {
            return Err(What::Missing(expected, head.sequence - 1));
        }
        if head.sequence == last && last > 0 {
            return Err(What::Inserted(last));
        }
        if head.sequence < expected {
            return Err(What::Reordered { found: head.sequence, expected });
        }
        if previous == hash {
            return Ok(());
        }
        Err(if last == 0 {
            What::WrongBeginning("it stands behind another record")
        } else {
            What::Changed(last)
        })
    }

    /// How far the clock went back, if it did.
    fn clock(&mut self, time: &str) -> Option<What> {
        // All are written alike, so that they sort as texts.
        if time >= self.newest_time.as_str() {
            time.clone_into(&mut self.newest_time);
            return None;
        }
        let parse = |text: &str| OffsetDateTime::parse(text, &Rfc3339).ok();
        let back = parse(&self.newest_time)? - parse(time)?;
        if back.whole_seconds() <= CLOCK_SLACK_SECONDS {
            return None;
        }
        time.clone_into(&mut self.newest_time);
        Some(What::ClockBack(back.whole_seconds().unsigned_abs()))
    }

    /// Records about the log itself.
    fn special(
        &mut self,
        head: &Head<'_>,
        line: &[u8],
        previous: LineHash,
        (begins, opens_file): (bool, bool),
    ) -> Result<Option<What>, What> {
        let first_of_all = begins && self.found.behind.is_none();
        let must_be = match (first_of_all, opens_file) {
            (true, _) => Some("process.start"),
            (false, true) => Some("segment.start"),
            (false, false) => None,
        };
        if must_be.is_some_and(|kind| kind != head.kind)
            && !(begins && head.kind == "chain.recovered")
        {
            return Err(What::WrongBeginning("it is no first record of a file"));
        }
        match head.kind {
            "process.start" | "segment.start" => self.begin(&json(line)?, begins)?,
            "checkpoint" => self.checkpoint(head, &json(line)?, previous)?,
            "process.stop" => (self.has_ended, self.stopped) = (true, true),
            "chain.recovered" => (self.has_ended, self.stopped) = (true, false),
            "audit.gap" => {
                let record = json(line)?;
                let reason = record.get("reason").and_then(Value::as_str);
                let reason = reason.map(|reason| reason.chars().take(REASON_CHARS_MAX).collect());
                return Ok(Some(What::Gap(reason.unwrap_or_default())));
            }
            "segment.removed" => {
                let record = json(line)?;
                let removed = removed(&record).ok_or(What::NoRecord("a field is missing"))?;
                self.removed_unsealed.push(removed);
            }
            _ => {}
        }
        Ok(None)
    }

    /// The first record of a file says whose it is, and by whom it is sealed.
    fn begin(&mut self, record: &Value, begins: bool) -> Result<(), What> {
        let text = |name: &str| record.get(name).and_then(Value::as_str);
        if text("chain") != Some(self.id.to_string().as_str()) {
            return Err(What::WrongBeginning("another chain"));
        }
        let epoch = record.get("epoch").and_then(Value::as_u64);
        if epoch.is_none() || (!begins && epoch != self.found.epoch) {
            return Err(What::WrongBeginning("another epoch"));
        }
        self.found.epoch = epoch;
        if let Some(after) = record.get("after").and_then(Value::as_array) {
            self.found.after = after.iter().filter_map(earlier).collect();
        }
        if begins { self.take_key(record, epoch.unwrap_or_default()) } else { Ok(()) }
    }

    fn take_key(&mut self, record: &Value, epoch: u64) -> Result<(), What> {
        let Some(key) = record.get("key") else {
            return self.key.map_or(Ok(()), |_| Err(What::NotSealed));
        };
        let text = |name: &str| key.get(name).and_then(Value::as_str).unwrap_or_default();
        let (log, public, signature) = (text("log"), text("public"), text("signature"));
        if let Some(known) = self.key {
            if known.id() != log {
                return Err(What::WrongKey(log.to_owned()));
            }
            if !known.vouches(self.id, epoch, public, signature) {
                return Err(What::BadSignature("first record"));
            }
        }
        self.process_key = ProcessKey::new(public);
        self.process_key.as_ref().map(|_| ()).ok_or(What::BadSignature("first record"))
    }

    fn checkpoint(
        &mut self,
        head: &Head<'_>,
        record: &Value,
        previous: LineHash,
    ) -> Result<(), What> {
        let signature = record.get("signature").and_then(Value::as_str).unwrap_or_default();
        let of = (self.id, self.found.epoch.unwrap_or_default());
        let place = (head.sequence, head.time);
        let is_signed =
            self.process_key.as_ref().is_some_and(|key| key.sealed(of, place, previous, signature));
        if !is_signed {
            return Err(What::BadSignature("checkpoint"));
        }
        self.sealed = head.sequence;
        self.found.removed.append(&mut self.removed_unsealed);
        Ok(())
    }
}

/// Whether the record that was expected comes a little later: then it was moved, not taken out.
fn follows_soon<R: BufRead>(lines: &mut Lines<R>, expected: u64) -> bool {
    (0..MOVED_BY_MAX).any(|_| {
        let line = lines.next_line().ok().flatten();
        line.and_then(|line| head(line.bytes).map(|head| head.sequence)) == Some(expected)
    })
}

fn json(line: &[u8]) -> Result<Value, What> {
    serde_json::from_slice(line).map_err(|_| What::NoRecord("it is not JSON"))
}

/// Another chain, as a first record names it.
pub(super) fn earlier(entry: &Value) -> Option<(ChainId, u64, LineHash)> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str);
    let chain = text("chain")?.parse().ok()?;
    Some((chain, entry.get("last_seq")?.as_u64()?, text("last_hash")?.parse().ok()?))
}

fn removed(record: &Value) -> Option<(ChainId, u32, u64, LineHash)> {
    let (chain, sequence, hash) = earlier(record)?;
    let segment = u32::try_from(record.get("segment")?.as_u64()?).ok()?;
    Some((chain, segment, sequence, hash))
}

/// What the first record of these files says of other chains, in whichever copy; nothing when it cannot be read.
pub(super) fn named_by(files: &[&Segment]) -> Vec<(ChainId, u64)> {
    let first = files.first().map(|file| file.name.number);
    let copies = files.iter().take_while(|file| Some(file.name.number) == first);
    copies.flat_map(|file| named_by_copy(file)).collect()
}

fn named_by_copy(file: &Segment) -> Vec<(ChainId, u64)> {
    let named = file.lines(&|_| {}).ok().and_then(|mut lines| {
        let line = lines.next_line().ok()??;
        let record: Value = serde_json::from_slice(line.bytes).ok()?;
        let after = record.get("after")?.as_array()?;
        Some(after.iter().filter_map(earlier).map(|earlier| (earlier.0, earlier.1)).collect())
    });
    named.unwrap_or_default()
}
