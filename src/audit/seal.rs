//! The keys that seal a log: the long-term one, which speaks for each process once, and the process's own,
//! which signs checkpoints and is gone when the process is, so that nobody can seal old records anew.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;

use super::chain::EpochKey;
use crate::chain::{ChainId, LineHash, checkpoint_statement, epoch_statement, to_hex};
use crate::regular_file;

/// The most bytes of a key's file that are read.
const KEY_FILE_BYTES_MAX: u64 = 64 << 10;

/// The key of all processes that write this log.
pub struct LongTermKey {
    pair: Ed25519KeyPair,
}

impl LongTermKey {
    /// Reads a file that `ringfence audit keygen` made.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let name = path.display();
        let text = regular_file::read(path, KEY_FILE_BYTES_MAX)
            .map_err(|error| format!("cannot read the key `{name}`: {error}"))?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(&text)
            .map_err(|_| format!("`{name}` holds no private key (PEM, PKCS #8)"))?;
        let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der())
            .or_else(|_| Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()))
            .map_err(|_| format!("`{name}` holds a private key that is none of Ed25519"))?;
        Ok(Self { pair })
    }

    /// SHA-256 of the public key, hex.
    #[must_use]
    pub fn id(&self) -> String {
        to_hex(digest(&SHA256, self.pair.public_key().as_ref()).as_ref())
    }
}

impl fmt::Debug for LongTermKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("LongTermKey").field("id", &self.id()).finish_non_exhaustive()
    }
}

/// How often a chain is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealEvery {
    /// The longest time between two checkpoints while records come.
    pub time: Duration,
    /// The most records between two.
    pub records: u64,
}

/// Signs the checkpoints of one process.
pub(super) struct Sealer {
    pair: Ed25519KeyPair,
    chain: ChainId,
    epoch: u64,
    pub(super) every: SealEvery,
}

impl Sealer {
    /// A new key for this chain, and the long-term key's word for it; `None` when the system gives no
    /// randomness.
    pub(super) fn new(
        key: &LongTermKey,
        chain: ChainId,
        epoch: u64,
        every: SealEvery,
    ) -> Option<(Self, EpochKey)> {
        let pair = Ed25519KeyPair::generate().ok()?;
        let public = to_hex(pair.public_key().as_ref());
        let statement = epoch_statement(chain, epoch, &public);
        let signature = to_hex(key.pair.sign(statement.as_bytes()).as_ref());
        let epoch_key = EpochKey { log: key.id(), public, signature };
        Some((Self { pair, chain, epoch, every }, epoch_key))
    }

    /// The signature of the checkpoint at that place, hex.
    pub(super) fn sign(&self, sequence: u64, time: &str, previous: LineHash) -> String {
        let statement = checkpoint_statement(self.chain, self.epoch, sequence, time, previous);
        to_hex(self.pair.sign(statement.as_bytes()).as_ref())
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sealer").field("every", &self.every).finish_non_exhaustive()
    }
}
