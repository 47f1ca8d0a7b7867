//! HMAC-SHA-256 of keys and values (RFC 2104), so that the audit log can show that two are equal and say neither.
//! Who has no key file cannot try out what a key or value might be.
//!
//! Pure: the text of the key file comes in as an argument.

use std::fmt;

use aws_lc_rs::hmac;

use crate::chain::{from_hex, to_hex};

/// Bytes of a key, as many as the hash has.
pub const KEY_BYTES: usize = 32;

/// So that a value that reads like a key has another hash, and neither is the name of the hash key.
const OF_KEY: &[u8] = b"ringfence audit key v1\n";
const OF_VALUE: &[u8] = b"ringfence audit value v1\n";
const OF_NAME: &[u8] = b"ringfence audit hash key v1\n";
/// Bytes of the hash that names the hash key.
const NAME_BYTES: usize = 8;

/// Hashes with one key.
#[derive(Clone)]
pub struct KeyedHash {
    key: hmac::Key,
}

/// Why a text is no hash key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("holds no hash key: one line of 64 hex digits; lines that begin with # do not count")]
pub struct NoHashKey;

impl KeyedHash {
    /// Reads the text of a key file: one line of 64 hex digits; lines that begin with `#` do not count.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn from_text(text: &str) -> Result<Self, NoHashKey> {
        let is_key = |line: &&str| !line.is_empty() && !line.starts_with('#');
        let mut lines = text.lines().map(str::trim).filter(is_key);
        let (Some(line), None) = (lines.next(), lines.next()) else { return Err(NoHashKey) };
        let key = from_hex(line).filter(|key| key.len() == KEY_BYTES).ok_or(NoHashKey)?;
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &key) })
    }

    /// The hash of a key of etcd.
    #[must_use]
    pub fn of_key(&self, key: &[u8]) -> [u8; 32] {
        self.hash(OF_KEY, key)
    }

    /// The hash of a value.
    #[must_use]
    pub fn of_value(&self, value: &[u8]) -> [u8; 32] {
        self.hash(OF_VALUE, value)
    }

    /// A short name of the hash key, 16 hex digits, which tells nothing of it.
    #[must_use]
    pub fn name(&self) -> String {
        let hash = self.hash(OF_NAME, b"");
        to_hex(hash.get(..NAME_BYTES).unwrap_or_default())
    }

    fn hash(&self, of: &[u8], bytes: &[u8]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(of);
        context.update(bytes);
        let mut hash = [0; 32];
        let tag = context.sign();
        hash.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        hash
    }
}

impl fmt::Debug for KeyedHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("KeyedHash").field("name", &self.name()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_hmac_of_rfc_2104_and_tells_keys_from_values() {
        let hash = KeyedHash::from_text(&format!("# a comment\n{}\n", "0b".repeat(32))).unwrap();
        // printf 'ringfence audit value v1\nhunter2' | openssl dgst -sha256 -mac HMAC -macopt hexkey:0b0b...
        assert_eq!(
            to_hex(&hash.of_value(b"hunter2")),
            "4b3c45ea47a1c88497343b3efa7cc23ba6bf2a91b59fac1444dbbbeda90db81f"
        );
        assert_ne!(hash.of_value(b"a"), hash.of_key(b"a"));
        assert_eq!(hash.name().len(), 16);
        assert!(!format!("{hash:?}").contains("0b0b"));
    }

    #[test]
    fn a_file_holds_one_key() {
        let line = "ab".repeat(32);
        for text in
            ["", "# only this", "abcd", line.get(2..).unwrap(), &format!("{line}\n{line}"), "zz"]
        {
            assert_eq!(KeyedHash::from_text(text).unwrap_err(), NoHashKey, "{text}");
        }
        assert!(KeyedHash::from_text(&format!("\n  {line}  \n")).is_ok());
    }
}
