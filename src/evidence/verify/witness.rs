//! The second place to which first records and checkpoints went.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufReader;
use std::path::Path;

use serde_json::Value;

use super::chain::Followed;
use super::{Finding, Report, What, removed};
use crate::chain::{ChainId, LineHash};
use crate::evidence::segments::{LineError, Lines};
use crate::regular_file;

/// The records that it knows, by chain.
#[derive(Debug, Default)]
pub struct Witness {
    known: BTreeMap<ChainId, BTreeMap<u64, LineHash>>,
    /// Records that stand there twice, and not alike; the first counts.
    contradicted: BTreeSet<(ChainId, u64)>,
    /// Lines that are no records: a process or its disk ended while it wrote.
    unread: u64,
}

impl Witness {
    /// Reads the file.
    ///
    /// # Errors
    /// Why nothing can be held against it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let fault = |why: String| format!("cannot read the witness `{}`: {why}", path.display());
        let file = regular_file::open(path).map_err(|error| fault(error.to_string()))?;
        let mut lines = Lines::new(BufReader::new(file));
        let mut witness = Self::default();
        loop {
            let line = match lines.next_line() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                // No record is that long; what is behind it still counts.
                Err(LineError::TooLong { .. }) => {
                    witness.unread += 1;
                    continue;
                }
                Err(LineError::Read(error)) => return Err(fault(error.to_string())),
            };
            let record: Option<Value> = serde_json::from_slice(line.bytes).ok();
            let place = record.as_ref().and_then(|record| {
                let chain: ChainId = record.get("chain")?.as_str()?.parse().ok()?;
                Some((chain, record.get("seq")?.as_u64()?))
            });
            match place {
                Some((chain, sequence)) => {
                    let hash = LineHash::of(line.bytes);
                    let known = witness.known.entry(chain).or_default();
                    // Sent again it is the same; whoever can append must not replace what stands there.
                    if *known.entry(sequence).or_insert(hash) != hash {
                        witness.contradicted.insert((chain, sequence));
                    }
                }
                // The last line may be on its way.
                None if !line.is_whole => {}
                // What was torn gets a line of its own.
                None => witness.unread += u64::from(!line.bytes.is_empty()),
            }
        }
        if witness.known.is_empty() && witness.unread > 0 {
            return Err(fault("none of its lines is a first record or a checkpoint".to_owned()));
        }
        Ok(witness)
    }

    /// What it knows of a chain.
    pub(super) fn of(&self, chain: ChainId) -> BTreeSet<u64> {
        self.known.get(&chain).map(|known| known.keys().copied().collect()).unwrap_or_default()
    }

    /// Says what is not there, or otherwise.
    pub(super) fn compare(&self, followed: &BTreeMap<ChainId, Followed>, report: &mut Report) {
        let gone = removed(followed);
        let by = || "the witness".to_owned();
        let mut by_retention = 0;
        for (id, known) in &self.known {
            let mut fault = |what| {
                report.faults.push(Finding { chain: Some(*id), place: None, what });
            };
            let Some(chain) = followed.get(id) else {
                let gone = gone.get(id).copied().unwrap_or(0);
                by_retention += known.range(..=gone).count() as u64;
                if known.keys().next_back().is_some_and(|last| *last > gone) {
                    fault(What::ChainMissing { by: by() });
                }
                continue;
            };
            if chain.is_faulty {
                continue;
            }
            for (sequence, hash) in known {
                match chain.hashes.get(sequence) {
                    Some(found) if found == hash => {}
                    Some(_) => {
                        fault(What::Differs { record: *sequence, by: by() });
                        break;
                    }
                    None if *sequence < chain.first => by_retention += 1,
                    None => {
                        let (ends, known) = (chain.last.0, *sequence);
                        fault(What::Truncated { ends, known, by: by() });
                        break;
                    }
                }
            }
        }
        for (chain, sequence) in &self.contradicted {
            let what = What::WitnessContradicts(*sequence);
            report.faults.push(Finding { chain: Some(*chain), place: None, what });
        }
        let silent = followed.keys().filter(|chain| !self.known.contains_key(chain)).count();
        if silent > 0 {
            let what = What::WitnessSilent(silent);
            report.notes.push(Finding { chain: None, place: None, what });
        }
        let removed = (by_retention > 0).then_some(What::WitnessRemoved(by_retention));
        let unread = (self.unread > 0).then_some(What::WitnessUnread(self.unread));
        for what in removed.into_iter().chain(unread) {
            report.notes.push(Finding { chain: None, place: None, what });
        }
    }
}
