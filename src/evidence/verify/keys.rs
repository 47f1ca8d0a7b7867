//! The auditor's half of the keys.

use std::fmt;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};

use crate::chain::{ChainId, LineHash, checkpoint_statement, epoch_statement, from_hex, to_hex};
use crate::regular_file;

/// What stands before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410).
const ED25519_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const KEY_BYTES: usize = 32;
/// The most bytes of a key's file that are read.
const KEY_FILE_BYTES_MAX: u64 = 64 << 10;

/// A long-term public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

impl PublicKey {
    /// Reads the `.pub` file that `ringfence audit keygen` made.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let name = path.display();
        let text = regular_file::read(path, KEY_FILE_BYTES_MAX)
            .map_err(|error| format!("cannot read the key `{name}`: {error}"))?;
        let der = SubjectPublicKeyInfoDer::from_pem_slice(&text).map_err(|_| {
            if PrivatePkcs8KeyDer::from_pem_slice(&text).is_ok() {
                format!("`{name}` holds the private key, which no auditor needs")
            } else {
                format!("`{name}` holds no public key (PEM)")
            }
        })?;
        let key = der.as_ref().strip_prefix(&ED25519_PREFIX);
        let key = key.filter(|key| key.len() == KEY_BYTES);
        key.map(|key| Self(key.to_vec())).ok_or_else(|| format!("`{name}` holds no Ed25519 key"))
    }

    /// SHA-256 of it, hex: what a chain's first record names.
    #[must_use]
    pub fn id(&self) -> String {
        to_hex(digest(&SHA256, &self.0).as_ref())
    }

    /// Whether it signed that this process key seals this chain.
    pub(super) fn vouches(
        &self,
        chain: ChainId,
        epoch: u64,
        public_hex: &str,
        signature_hex: &str,
    ) -> bool {
        is_signed(&self.0, &epoch_statement(chain, epoch, public_hex), signature_hex)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.id())
    }
}

/// The public key of one process.
#[derive(Clone, Debug)]
pub(super) struct ProcessKey(Vec<u8>);

impl ProcessKey {
    pub(super) fn new(public_hex: &str) -> Option<Self> {
        from_hex(public_hex).filter(|key| key.len() == KEY_BYTES).map(Self)
    }

    /// Whether it signed the checkpoint at that place.
    pub(super) fn sealed(
        &self,
        (chain, epoch): (ChainId, u64),
        (sequence, time): (u64, &str),
        previous: LineHash,
        signature_hex: &str,
    ) -> bool {
        let statement = checkpoint_statement(chain, epoch, sequence, time, previous);
        is_signed(&self.0, &statement, signature_hex)
    }
}

fn is_signed(key: &[u8], statement: &str, signature_hex: &str) -> bool {
    let key = UnparsedPublicKey::new(&ED25519, key);
    from_hex(signature_hex)
        .is_some_and(|signature| key.verify(statement.as_bytes(), &signature).is_ok())
}
