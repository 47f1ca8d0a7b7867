//! What a log proves: each chain is followed line by line, each signature is checked, and the first record that
//! is not as it must be is named. What is not proven is said as well.

mod chain;
mod copies;
mod keys;
mod witness;

pub use keys::PublicKey;
pub use witness::Witness;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use crate::chain::{ChainId, LineHash};

use super::segments::Segment;
use chain::{Chain, Followed, named_by};

/// What an auditor knows from elsewhere.
#[derive(Debug, Default)]
pub struct Knowledge {
    /// The long-term public key.
    pub key: Option<PublicKey>,
    /// What the file says that checkpoints also went to.
    pub witness: Option<Witness>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// What is wrong: at most one for each chain, and what only shows when chains are compared.
    pub faults: Vec<Finding>,
    /// What is odd and no fault, and what is not proven.
    pub notes: Vec<Finding>,
    /// Notes about single records beyond those.
    pub notes_left_out: u64,
    /// Records that were followed.
    pub records: u64,
    /// Bytes of their lines.
    pub bytes: u64,
    /// Chains that were followed.
    pub chains: usize,
    /// Records with a valid signature behind them.
    pub sealed: u64,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whose chain, unless it is about all.
    pub chain: Option<ChainId>,
    /// The file, and the record and byte in it.
    pub place: Option<Place>,
    /// What.
    pub what: What,
}

/// Where something was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// The record that was expected there.
    pub record: u64,
    /// Where its line begins, in the uncompressed file.
    pub offset: u64,
}

/// Kinds of findings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum What {
    /// A line that is no record.
    #[error("changed: this line is no record ({0})")]
    NoRecord(&'static str),
    /// The hash of a line is not what the next one says.
    #[error("changed: record {0} is not the one that record {next} was written behind", next = .0 + 1)]
    Changed(u64),
    /// Numbers are left out.
    #[error("missing: records {0} to {1} are not there")]
    Missing(u64, u64),
    /// A number that was there already.
    #[error("inserted: another record {0}")]
    Inserted(u64),
    /// A number from before.
    #[error("reordered: record {expected} is not in its place")]
    Reordered {
        /// What is there.
        found: u64,
        /// What must be.
        expected: u64,
    },
    /// A file is not there.
    #[error(
        "missing: files {0} to {1} of this chain are not there, and the log does not say that it removed them"
    )]
    FilesMissing(u32, u32),
    /// The first record does not say which chain it begins, or another.
    #[error("changed: the chain begins with a record that says otherwise ({0})")]
    WrongBeginning(&'static str),
    /// The end is not there.
    #[error("truncated: it ends with record {ends}, and {by} knows record {known}")]
    Truncated {
        /// The last record.
        ends: u64,
        /// One that was there.
        known: u64,
        /// Who says so.
        by: String,
    },
    /// Another chain or the witness saw another record of that number.
    #[error("changed: record {record} is not the one that {by} knows")]
    Differs {
        /// Which.
        record: u64,
        /// Who says so.
        by: String,
    },
    /// A chain that is known of is not there.
    #[error("missing: {by} knows this chain, and no file of it is there")]
    ChainMissing {
        /// Who says so.
        by: String,
    },
    /// A line without its newline that is not the last of a running chain.
    #[error("torn: the last line is cut short")]
    Torn,
    /// A record behind the end of the chain.
    #[error("inserted: a record behind the end of the chain")]
    BehindEnd,
    /// A signature that does not fit.
    #[error("bad signature: the {0} is not signed by the key that it names")]
    BadSignature(&'static str),
    /// Another long-term key.
    #[error("wrong key: it is sealed with the key {0}, not with the one that was given")]
    WrongKey(String),
    /// A key was given, and the chain is not sealed.
    #[error("not sealed: a key was given, and this chain has no checkpoints")]
    NotSealed,
    /// Two chains of one epoch.
    #[error("repeated epoch {0}: chain {1} has it as well")]
    EpochRepeated(u64, ChainId),
    /// A file that cannot be read.
    #[error("unreadable: {0}")]
    Unreadable(String),
    /// The file is there more than once, and its copies do not say the same.
    #[error(
        "not alike: this file is there more than once, and from its line {0} on the copies differ"
    )]
    CopiesDiffer(u64),
    /// The file is there more than once.
    #[error(
        "twice: this file is there more than once, compressed or as a copy; the longest was followed"
    )]
    Twice,
    /// The clock went back.
    #[error("the clock went back by {0} seconds here")]
    ClockBack(u64),
    /// Nobody signed the end.
    #[error(
        "the last {0} records are chained but not sealed: whoever can write the file could have put them there"
    )]
    Unsealed(u64),
    /// No key.
    #[error("no --key was given: that the chain was not written anew as a whole is not proven")]
    NoKey,
    /// No witness.
    #[error("no --witness was given: that no end and no last chain was cut off is not proven")]
    NoWitness,
    /// Somebody wrote into the witness.
    #[error("contradicted: the witness has record {0} of this chain twice, and not alike")]
    WitnessContradicts(u64),
    /// No seal.
    #[error("the chain has no checkpoints: that it was not written anew as a whole is not proven")]
    NoSeal,
    /// A chain that may be going on.
    #[error(
        "it has no end: its process runs, or was killed and no other has begun since; records behind the last one may be gone"
    )]
    Open,
    /// Records may be gone, as the log says itself.
    #[error("the log says itself that records may be gone: {0}")]
    Gap(String),
    /// Removed by retention.
    #[error("files {0} to {1} were removed by retention, as the log says")]
    Removed(u32, u32),
    /// No longer comparable.
    #[error("{0} of the records that the witness knows stand in files that are not there any more")]
    WitnessRemoved(u64),
    /// Nothing to hold them against.
    #[error(
        "the witness knows nothing of {0} of the chains: whether their ends were cut off is not proven"
    )]
    WitnessSilent(usize),
    /// Torn, and no proof of anything.
    #[error(
        "{0} lines of the witness are no records of a log: torn when a process or its disk ended"
    )]
    WitnessUnread(u64),
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.place, self.chain) {
            (Some(place), _) => write!(
                formatter,
                "{}: record {}, byte {}: ",
                place.path.display(),
                place.record,
                place.offset
            )?,
            (None, Some(chain)) => write!(formatter, "chain {chain}: ")?,
            (None, None) => {}
        }
        self.what.fmt(formatter)
    }
}

/// Follows every chain of these files. `progress` hears of bytes of the files as they
/// are read.
#[must_use]
pub fn verify(segments: &[Segment], knowledge: &Knowledge, progress: &dyn Fn(u64)) -> Report {
    let mut report = Report::default();
    let mut chains: BTreeMap<ChainId, Vec<&Segment>> = BTreeMap::new();
    for segment in segments {
        chains.entry(segment.name.chain).or_default().push(segment);
    }
    // What others know of a chain has to be remembered while it is followed.
    let mut wanted: BTreeMap<ChainId, BTreeSet<u64>> = BTreeMap::new();
    for (chain, sequence) in chains.values().flat_map(|files| named_by(files)) {
        wanted.entry(chain).or_default().insert(sequence);
    }
    let mut followed = BTreeMap::new();
    for (id, files) in &chains {
        let mut wanted = wanted.remove(id).unwrap_or_default();
        wanted.extend(knowledge.witness.iter().flat_map(|witness| witness.of(*id)));
        let chain = Chain::new(*id, knowledge.key.as_ref(), wanted);
        let end = chain.follow(files, &mut report, progress);
        followed.insert(*id, end);
    }
    report.chains = chains.len();
    compare(&followed, &mut report);
    match &knowledge.witness {
        Some(witness) => witness.compare(&followed, &mut report),
        None => report.notes.push(Finding { chain: None, place: None, what: What::NoWitness }),
    }
    if knowledge.key.is_none() && !followed.is_empty() {
        report.notes.push(Finding { chain: None, place: None, what: What::NoKey });
    }
    report
}

/// What chains say of each other.
fn compare(followed: &BTreeMap<ChainId, Followed>, report: &mut Report) {
    let mut epochs: BTreeMap<u64, ChainId> = BTreeMap::new();
    let mut missing = BTreeSet::new();
    let removed = removed(followed);
    let Report { faults, notes, .. } = report;
    for (id, chain) in followed {
        let fault = |faults: &mut Vec<Finding>, id: ChainId, what| {
            faults.push(Finding { chain: Some(id), place: None, what });
        };
        if let Some(epoch) = chain.epoch
            && let Some(other) = epochs.insert(epoch, *id)
        {
            fault(faults, *id, What::EpochRepeated(epoch, other));
        }
        if let Some((first, sequence, hash)) = chain.behind.filter(|_| !chain.is_faulty) {
            let known = followed
                .values()
                .find_map(|other| removed_hash(&other.removed, *id, first.saturating_sub(1)));
            let what = match known {
                Some(known) if known == (sequence, hash) => What::Removed(1, first - 1),
                Some(_) => What::Differs { record: sequence, by: "the log".to_owned() },
                None => What::FilesMissing(1, first.saturating_sub(1)),
            };
            let finding = Finding { chain: Some(*id), place: None, what };
            match &finding.what {
                What::Removed(..) => notes.push(finding),
                _ => faults.push(finding),
            }
        }
        for (earlier, sequence, hash) in &chain.after {
            let by = format!("chain {id}");
            match followed.get(earlier) {
                None if removed.get(earlier).is_some_and(|last| last >= sequence) => {}
                None => {
                    if missing.insert(*earlier) {
                        fault(faults, *earlier, What::ChainMissing { by });
                    }
                }
                // What is wrong with it has been said.
                Some(found) if found.is_faulty => {}
                Some(found) => match found.hashes.get(sequence) {
                    Some(known) if known == hash => {}
                    Some(_) => fault(faults, *earlier, What::Differs { record: *sequence, by }),
                    None if found.last.0 < *sequence => {
                        let (ends, known) = (found.last.0, *sequence);
                        fault(faults, *earlier, What::Truncated { ends, known, by });
                    }
                    // It stood in a file that was removed; or who names it began after it was asked for.
                    None => {}
                },
            }
        }
    }
}

/// Chains of which retention removed files, and the last record that went with them: it excuses nothing behind.
fn removed(followed: &BTreeMap<ChainId, Followed>) -> BTreeMap<ChainId, u64> {
    let mut last_records = BTreeMap::new();
    for (chain, _, sequence, _) in followed.values().flat_map(|chain| &chain.removed) {
        let last = last_records.entry(*chain).or_insert(0);
        *last = (*last).max(*sequence);
    }
    last_records
}

/// The hash of the last line of a removed file, as some chain says.
fn removed_hash(
    removed: &[(ChainId, u32, u64, LineHash)],
    chain: ChainId,
    segment: u32,
) -> Option<(u64, LineHash)> {
    let found = removed.iter().find(|removed| (removed.0, removed.1) == (chain, segment))?;
    Some((found.2, found.3))
}
