//! A record as a reader sees it: borrowed from its line, with the fields that questions are about.

use std::borrow::Cow;

use serde::Deserialize;

use super::keys::{Digest, Keys, KeysEnd};
use crate::chain::{from_hex, to_hex};
use crate::keyed_hash::Hashed;

/// The fields of a record about a call or a connection; which of them it has depends on its type.
#[derive(Debug, Deserialize)]
pub struct Record<'l> {
    /// Its place in the chain.
    pub seq: u64,
    /// When.
    #[serde(borrow)]
    pub time: Cow<'l, str>,
    /// `decision` and the like.
    #[serde(borrow, rename = "type")]
    pub kind: Cow<'l, str>,
    /// Which connection.
    pub connection: Option<u64>,
    /// Which of its calls.
    pub call: Option<u64>,
    /// Which message of a stream.
    pub message: Option<u64>,
    /// Which of ringfence's own steps.
    pub step: Option<u64>,
    /// Who.
    #[serde(borrow)]
    pub principal: Option<Cow<'l, str>>,
    /// The RPC.
    #[serde(borrow)]
    pub rpc: Option<Cow<'l, str>>,
    /// What is no RPC.
    #[serde(borrow)]
    pub path: Option<Cow<'l, str>>,
    /// `allow`, `deny` or `refuse`.
    #[serde(borrow)]
    pub verdict: Option<Cow<'l, str>>,
    /// Why not.
    #[serde(borrow)]
    pub reason: Option<Cow<'l, str>>,
    /// Rules that allow.
    #[serde(borrow, default)]
    pub rules: Vec<Cow<'l, str>>,
    /// The rule that denies.
    #[serde(borrow)]
    pub rule: Option<Cow<'l, str>>,
    /// How much of it was recorded, when that is not everything.
    #[serde(borrow)]
    pub level: Option<Cow<'l, str>>,
    /// How many alike it stands for.
    pub one_in: Option<u64>,
    /// What is done.
    #[serde(borrow, default)]
    pub touches: Vec<Touch<'l>>,
    /// gRPC status.
    pub status: Option<u16>,
    /// Why it has none of etcd's.
    #[serde(borrow)]
    pub fault: Option<Cow<'l, str>>,
    /// The store's revision.
    pub revision: Option<i64>,
    /// How many keys.
    pub count: Option<i64>,
    /// From the decision to the end.
    pub latency_us: Option<u64>,
    /// Address and port of a client.
    #[serde(borrow)]
    pub source: Option<Cow<'l, str>>,
}

/// One thing that a request does.
#[derive(Debug, Deserialize)]
pub struct Touch<'l> {
    /// With which verb.
    #[serde(borrow)]
    pub verb: Cow<'l, str>,
    #[serde(borrow)]
    key: Option<Cow<'l, str>>,
    #[serde(borrow)]
    key_hex: Option<Cow<'l, str>>,
    #[serde(borrow)]
    key_sha256: Option<Cow<'l, str>>,
    #[serde(default)]
    key_is_cut: bool,
    #[serde(borrow)]
    key_hmac: Option<Cow<'l, str>>,
    #[serde(borrow)]
    range_end: Option<Cow<'l, str>>,
    #[serde(borrow)]
    range_end_hex: Option<Cow<'l, str>>,
    #[serde(borrow)]
    range_end_sha256: Option<Cow<'l, str>>,
    #[serde(default)]
    range_end_is_cut: bool,
    #[serde(default)]
    to_infinity: bool,
    #[serde(borrow)]
    value_hmac: Option<Cow<'l, str>>,
    #[serde(borrow)]
    lease: Option<Cow<'l, str>>,
}

impl Touch<'_> {
    /// The keys that it is about; `None` when it is about none, or they cannot be read.
    #[must_use]
    pub fn keys(&self) -> Option<Keys> {
        let start = bytes(self.key.as_deref(), self.key_hex.as_deref())?;
        let end = bytes(self.range_end.as_deref(), self.range_end_hex.as_deref());
        let end = match (end, self.to_infinity) {
            (_, true) => KeysEnd::Infinity,
            (Some(end), false) => KeysEnd::Before(end),
            (None, false) => KeysEnd::Point,
        };
        let keyed = self.key_hmac.as_deref().and_then(Hashed::from_text).map(Digest::Keyed);
        let whole = self.key_sha256.as_deref().map(|whole| Digest::Sha256(whole.to_owned()));
        Some(Keys {
            start,
            start_is_cut: self.key_is_cut || self.key_sha256.is_some(),
            digest: keyed.or(whole),
            end,
            end_is_cut: self.range_end_is_cut || self.range_end_sha256.is_some(),
        })
    }

    /// Whether it is about keys that the record does not show.
    #[must_use]
    pub fn is_unnamed(&self) -> bool {
        let of_keys = ["get", "list", "watch", "put", "delete"];
        self.key.is_none() && self.key_hex.is_none() && of_keys.contains(&&*self.verb)
    }

    /// For people: the verb, and what it is done to.
    #[must_use]
    pub fn shown(&self) -> String {
        let verb = printable(&self.verb);
        let mut shown = match (self.keys(), &self.lease) {
            (Some(keys), _) => format!("{verb} {}", keys.shown()),
            (None, Some(lease)) => format!("{verb} {}", printable(lease)),
            (None, None) => verb,
        };
        if let Some(hash) = &self.value_hmac {
            shown.push_str(&format!(" value hmac:{}", printable(hash)));
        }
        shown
    }
}

fn bytes(text: Option<&str>, hex: Option<&str>) -> Option<Vec<u8>> {
    text.map(|text| text.as_bytes().to_vec()).or_else(|| from_hex(hex?))
}

/// A key for people: text without control characters, or hex.
#[must_use]
pub fn shown_key(key: &[u8]) -> String {
    std::str::from_utf8(key).map_or_else(|_| format!("0x{}", to_hex(key)), printable)
}

/// A text that cannot steer a terminal: tenants choose keys and paths.
#[must_use]
pub fn printable(text: &str) -> String {
    let steers = |character: char| {
        character.is_control()
            || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if steers(character) {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tenants_choose_cannot_steer_a_terminal() {
        assert_eq!(printable("a\x1b[2Jb\r\n"), "a\\u{1b}[2Jb\\u{d}\\u{a}");
        assert_eq!(printable("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(shown_key(b"\xff\x00"), "0xff00");
        assert_eq!(shown_key("grün".as_bytes()), "grün");
    }
}
