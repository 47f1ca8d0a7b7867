//! A record as a reader sees it: borrowed from its line, with the fields that questions are about.

use std::borrow::Cow;

use aws_lc_rs::digest::{SHA256, digest};
use serde::Deserialize;

use crate::chain::{from_hex, to_hex};

/// The fields that every line begins with.
pub(super) struct Head<'l> {
    pub(super) sequence: u64,
    pub(super) time: &'l str,
    pub(super) kind: &'l str,
}

/// What every line begins with; `None` when it is no record.
pub(super) fn head(line: &[u8]) -> Option<Head<'_>> {
    // Only the head: a line may have megabytes, and need not be UTF-8 when it was tampered with.
    let start = line.get(..line.len().min(256))?;
    let start = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(start.get(..error.valid_up_to())?).ok()?,
    };
    let rest = start.strip_prefix("{\"v\":1,\"seq\":")?;
    let (sequence, rest) = rest.split_once(",\"time\":\"")?;
    let (time, rest) = rest.split_once("\",\"type\":\"")?;
    let (kind, _) = rest.split_once('"')?;
    Some(Head { sequence: sequence.parse().ok()?, time, kind })
}

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
    #[serde(borrow)]
    range_end: Option<Cow<'l, str>>,
    #[serde(borrow)]
    range_end_hex: Option<Cow<'l, str>>,
    #[serde(default)]
    to_infinity: bool,
    #[serde(borrow)]
    lease: Option<Cow<'l, str>>,
}

/// Keys from one on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The first; cut when the record cut it.
    pub start: Vec<u8>,
    /// SHA-256 of the whole first key, hex, when it was cut.
    pub whole: Option<String>,
    /// Where they end.
    pub end: KeysEnd,
}

/// Where keys end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeysEnd {
    /// It is one key.
    Point,
    /// Before this one.
    Before(Vec<u8>),
    /// Nowhere.
    Infinity,
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
        Some(Keys { start, whole: self.key_sha256.as_deref().map(str::to_owned), end })
    }

    /// For people: the verb, and what it is done to.
    #[must_use]
    pub fn shown(&self) -> String {
        let verb = printable(&self.verb);
        match (self.keys(), &self.lease) {
            (Some(keys), _) => format!("{verb} {}", keys.shown()),
            (None, Some(lease)) => format!("{verb} {}", printable(lease)),
            (None, None) => verb,
        }
    }
}

fn bytes(text: Option<&str>, hex: Option<&str>) -> Option<Vec<u8>> {
    text.map(|text| text.as_bytes().to_vec()).or_else(|| from_hex(hex?))
}

impl Keys {
    /// Whether this key is among them.
    #[must_use]
    pub fn hold(&self, key: &[u8]) -> bool {
        match &self.end {
            KeysEnd::Point => match &self.whole {
                None => self.start == key,
                Some(whole) => *whole == to_hex(digest(&SHA256, key).as_ref()),
            },
            KeysEnd::Before(end) => self.start.as_slice() <= key && key < end.as_slice(),
            KeysEnd::Infinity => self.start.as_slice() <= key,
        }
    }

    /// Whether a key with this prefix is among them.
    #[must_use]
    pub fn overlap(&self, prefix: &[u8]) -> bool {
        let begins_before_its_end =
            self.start.starts_with(prefix) || self.start.as_slice() < prefix;
        match &self.end {
            KeysEnd::Point => self.start.starts_with(prefix),
            KeysEnd::Before(end) => begins_before_its_end && end.as_slice() > prefix,
            KeysEnd::Infinity => begins_before_its_end,
        }
    }

    /// For people.
    #[must_use]
    pub fn shown(&self) -> String {
        let cut = if self.whole.is_some() { "…" } else { "" };
        let start = shown_key(&self.start);
        match &self.end {
            KeysEnd::Point => format!("{start}{cut}"),
            KeysEnd::Before(end) => format!("[{start}, {})", shown_key(end)),
            KeysEnd::Infinity => format!("[{start}, end)"),
        }
    }
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

    fn check(touch: &str, key: &str, holds: bool, prefix: &str, overlaps: bool) {
        let keys = serde_json::from_str::<Touch<'_>>(touch).unwrap().keys().unwrap();
        assert_eq!(keys.hold(key.as_bytes()), holds, "{touch} {key}");
        assert_eq!(keys.overlap(prefix.as_bytes()), overlaps, "{touch} {prefix}");
    }

    #[test]
    fn a_touch_holds_its_key_and_overlaps_its_prefixes() {
        let point = r#"{"verb":"put","key":"/a/x"}"#;
        check(point, "/a/x", true, "/a/", true);
        check(point, "/a/xy", false, "/b/", false);
        check(point, "/a", false, "/a/xy", false);
        let range = r#"{"verb":"list","key":"/a/","range_end":"/a0"}"#;
        check(range, "/a/x", true, "/a/x", true);
        check(range, "/a0", false, "/a0", false);
        check(range, "/a", false, "/", true);
        let all = r#"{"verb":"delete","key":"/a/","to_infinity":true}"#;
        check(all, "/b", true, "/b", true);
        check(all, "/", false, "/9", false);
        check(r#"{"verb":"put","key_hex":"ff00"}"#, "x", false, "", true);
        // sha256sum of an empty file, for a key that was cut
        let cut = r#"{"verb":"put","key":"/a","key_bytes":2000,
            "key_sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}"#;
        check(cut, "", true, "/a", true);
        check(cut, "/a", false, "/b", false);
    }

    #[test]
    fn what_tenants_choose_cannot_steer_a_terminal() {
        assert_eq!(printable("a\x1b[2Jb\r\n"), "a\\u{1b}[2Jb\\u{d}\\u{a}");
        assert_eq!(printable("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(shown_key(b"\xff\x00"), "0xff00");
        assert_eq!(shown_key("grün".as_bytes()), "grün");
    }
}
