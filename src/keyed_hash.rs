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
    name: String,
}

/// A keyed hash, with the name of the key that made it: who has another key must not take it for the hash of something
/// else. Its text is `NAME:HASH` in hex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashed {
    /// The name of the hash key.
    pub key: String,
    /// The hash, in hex.
    pub hash: String,
}

impl Hashed {
    /// Reads the text.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let (key, hash) = text.split_once(':')?;
        let fits = from_hex(key)?.len() == NAME_BYTES && from_hex(hash)?.len() == KEY_BYTES;
        fits.then(|| Self { key: key.to_owned(), hash: hash.to_owned() })
    }
}

impl fmt::Display for Hashed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.key, self.hash)
    }
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
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let name = to_hex(hash(&key, OF_NAME, b"").get(..NAME_BYTES).unwrap_or_default());
        Ok(Self { key, name })
    }

    /// The hash of a key of etcd.
    #[must_use]
    pub fn of_key(&self, key: &[u8]) -> Hashed {
        self.hashed(OF_KEY, key)
    }

    /// The hash of a value.
    #[must_use]
    pub fn of_value(&self, value: &[u8]) -> Hashed {
        self.hashed(OF_VALUE, value)
    }

    /// A short name of the hash key, 16 hex digits, which tells nothing of it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn hashed(&self, of: &[u8], bytes: &[u8]) -> Hashed {
        Hashed { key: self.name.clone(), hash: to_hex(&hash(&self.key, of, bytes)) }
    }
}

fn hash(key: &hmac::Key, of: &[u8], bytes: &[u8]) -> [u8; KEY_BYTES] {
    let mut context = hmac::Context::with_key(key);
    context.update(of);
    context.update(bytes);
    let mut hash = [0; KEY_BYTES];
    let tag = context.sign();
    hash.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
    hash
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
            hash.of_value(b"hunter2").hash,
            "4b3c45ea47a1c88497343b3efa7cc23ba6bf2a91b59fac1444dbbbeda90db81f"
        );
        assert_ne!(hash.of_value(b"a"), hash.of_key(b"a"));
        assert_eq!(hash.name().len(), 16);
        let hashed = hash.of_key(b"a");
        assert_eq!(Hashed::from_text(&hashed.to_string()), Some(hashed));
        for odd in ["", ":", "00:00", &hash.of_key(b"a").hash, "\u{1b}[2J:00"] {
            assert_eq!(Hashed::from_text(odd), None, "{odd}");
        }
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
