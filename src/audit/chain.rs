//! What is recorded of the log itself: where a chain begins and after which others, its segments, what
//! seals it, and what was lost. How chains are told apart and hashed is `crate::chain`'s.

use std::sync::Arc;

use crate::chain::{ChainId, LineHash};
use crate::sink::Lost;

/// How a chain begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// Its id.
    pub chain: ChainId,
    /// One more than any chain that was in the folder.
    pub epoch: u64,
    /// Which key seals it, when checkpoints are signed.
    pub key: Option<EpochKey>,
    /// Chains that were there before, the newest first.
    pub after: Vec<EarlierChain>,
}

/// The key of one process, and the word of the long-term key for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochKey {
    /// SHA-256 of the long-term public key, hex.
    pub log: String,
    /// The process's public key, hex.
    pub public: String,
    /// The long-term key's signature, hex.
    pub signature: String,
}

/// A chain that was there before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlierChain {
    /// Its id.
    pub chain: ChainId,
    /// Its last whole record.
    pub sequence: u64,
    /// That record's hash.
    pub hash: LineHash,
    /// How it ended.
    pub end: ChainEnd,
    /// The most records that its process may have lost; absent when that is not known, or none.
    pub lost_at_most: Option<u64>,
}

/// How an earlier chain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainEnd {
    /// Its process ended in good order.
    Stopped,
    /// It did not, and a later process closed the chain.
    Recovered,
    /// Its process runs.
    Running,
}

impl ChainEnd {
    /// The name in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Recovered => "recovered",
            Self::Running => "running",
        }
    }
}

/// A record about the log itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainEvent {
    /// The first record of every segment but the first.
    SegmentStart {
        /// The chain.
        chain: ChainId,
        /// Its epoch.
        epoch: u64,
        /// Which of its segments.
        segment: u32,
        /// The key that seals it, so that a file can be checked alone.
        key: Option<EpochKey>,
    },
    /// The last record of every segment but the last.
    SegmentEnd {
        /// Which.
        segment: u32,
    },
    /// A signature over everything before.
    Checkpoint {
        /// The chain.
        chain: ChainId,
        /// Its epoch.
        epoch: u64,
        /// By the process's key, hex.
        signature: String,
    },
    /// A later process closed the chain.
    Recovered {
        /// Its chain.
        by: ChainId,
        /// Bytes of a torn last line that were cut off.
        torn_bytes: u64,
        /// Their SHA-256, unless there were none.
        torn: Option<LineHash>,
    },
    /// Records may be gone.
    Gap {
        /// Why: a short, fixed name.
        reason: &'static str,
        /// The most that may be gone; absent when none of them need be.
        records: Option<u64>,
    },
    /// Records are missing at a sink; the file has them.
    SinkBehind {
        /// Which.
        sink: Arc<str>,
        /// How many, and between which.
        lost: Lost,
    },
    /// A segment was removed because it was old, or the log too large.
    SegmentRemoved {
        /// Whose.
        chain: ChainId,
        /// Which.
        segment: u32,
        /// Its last record.
        sequence: u64,
        /// That record's hash.
        hash: LineHash,
    },
}
