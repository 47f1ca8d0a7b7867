//! Keys as a record shows them: plain, cut behind some parts, or hashed; and whether a key is among them.
//!
//! Pure. What a record does not show is never told as a yes nor as a no.

use aws_lc_rs::digest::{SHA256, digest};

use super::record::shown_key;
use crate::chain::to_hex;
use crate::keyed_hash::KeyedHash;

/// Keys from one on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// As they are.
    Plain {
        /// The first; cut when it is very long.
        start: Vec<u8>,
        /// SHA-256 of the whole first key, hex, when it was cut.
        whole: Option<String>,
        /// Where they end.
        end: KeysEnd,
    },
    /// Cut behind some parts, because a rule says so.
    Cut {
        /// The beginning of the first.
        start: Vec<u8>,
        /// Whether the first has more than its beginning.
        start_is_cut: bool,
        /// Where they end, or the beginning of it.
        end: KeysEnd,
        /// Whether the end has more than that.
        end_is_cut: bool,
    },
    /// Hashed, because a rule says so.
    Hashed {
        /// The first one's hash, hex.
        start: String,
        /// Whether there may be more than the first.
        is_range: bool,
    },
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

/// A key that is asked about.
#[derive(Clone, Debug)]
pub struct AskedKey {
    bytes: Vec<u8>,
    /// Its keyed hash, hex, when the hash key is known.
    hash: Option<String>,
}

/// Whether a key is among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holds {
    /// It is not.
    No,
    /// The record does not show enough to tell.
    Perhaps,
    /// It is.
    Yes,
}

impl AskedKey {
    /// A key, and what hashes it.
    #[must_use]
    pub fn new(bytes: Vec<u8>, hash: Option<&KeyedHash>) -> Self {
        let hash = hash.map(|hash| to_hex(&hash.of_key(&bytes)));
        Self { bytes, hash }
    }

    /// For people.
    #[must_use]
    pub fn shown(&self) -> String {
        shown_key(&self.bytes)
    }
}

impl Holds {
    const fn when(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }

    const fn perhaps_when(holds: bool) -> Self {
        if holds { Self::Perhaps } else { Self::No }
    }
}

impl Keys {
    /// Whether this key is among them.
    #[must_use]
    pub fn hold(&self, asked: &AskedKey) -> Holds {
        let key = asked.bytes.as_slice();
        match self {
            Self::Plain { start, whole, end } => Holds::when(match (end, whole) {
                (KeysEnd::Point, None) => start == key,
                (KeysEnd::Point, Some(whole)) => *whole == to_hex(digest(&SHA256, key).as_ref()),
                (KeysEnd::Before(end), _) => start.as_slice() <= key && key < end.as_slice(),
                (KeysEnd::Infinity, _) => start.as_slice() <= key,
            }),
            Self::Cut { start, start_is_cut, end, end_is_cut } => {
                let from = match (start_is_cut, key.starts_with(start)) {
                    (true, true) => Holds::Perhaps,
                    (_, _) => Holds::when(start.as_slice() <= key),
                };
                let to = match end {
                    KeysEnd::Point if *start_is_cut => Holds::when(key.starts_with(start)),
                    KeysEnd::Point => Holds::when(start == key),
                    KeysEnd::Before(end) if *end_is_cut && key.starts_with(end) => Holds::Perhaps,
                    KeysEnd::Before(end) => Holds::when(key < end.as_slice()),
                    KeysEnd::Infinity => Holds::Yes,
                };
                from.min(to)
            }
            Self::Hashed { start, is_range } => match (&asked.hash, is_range) {
                (Some(hash), false) => Holds::when(hash == start),
                (None, false) | (_, true) => Holds::Perhaps,
            },
        }
    }

    /// Whether a key with this prefix is among them.
    #[must_use]
    pub fn overlap(&self, prefix: &[u8]) -> Holds {
        let overlap = |start: &[u8], end: &KeysEnd| {
            let begins_before_its_end = start.starts_with(prefix) || start < prefix;
            match end {
                KeysEnd::Point => start.starts_with(prefix),
                KeysEnd::Before(end) => begins_before_its_end && end.as_slice() > prefix,
                KeysEnd::Infinity => begins_before_its_end,
            }
        };
        match self {
            Self::Plain { start, end, .. } => Holds::when(overlap(start, end)),
            Self::Cut { start, end: KeysEnd::Point, .. } if start.starts_with(prefix) => Holds::Yes,
            Self::Cut { start, end: KeysEnd::Point, .. } => {
                Holds::perhaps_when(prefix.starts_with(start))
            }
            Self::Cut { start, end, end_is_cut, .. } => {
                let reaches = match end {
                    KeysEnd::Before(end) => *end_is_cut && prefix.starts_with(end),
                    KeysEnd::Point | KeysEnd::Infinity => false,
                };
                Holds::perhaps_when(reaches || overlap(start, end))
            }
            Self::Hashed { .. } => Holds::Perhaps,
        }
    }

    /// For people.
    #[must_use]
    pub fn shown(&self) -> String {
        let cut = |is_cut: bool| if is_cut { "…" } else { "" };
        let (start, start_is_cut, end, end_is_cut) = match self {
            Self::Hashed { start, is_range: false } => return format!("hmac:{start}"),
            Self::Hashed { start, is_range: true } => return format!("[hmac:{start}, ?)"),
            Self::Plain { start, whole, end } => (start, whole.is_some(), end, false),
            Self::Cut { start, start_is_cut, end, end_is_cut } => {
                (start, *start_is_cut, end, *end_is_cut)
            }
        };
        let start = format!("{}{}", shown_key(start), cut(start_is_cut));
        match end {
            KeysEnd::Point => start,
            KeysEnd::Before(end) => format!("[{start}, {}{})", shown_key(end), cut(end_is_cut)),
            KeysEnd::Infinity => format!("[{start}, end)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Touch;
    use super::Holds::{No, Perhaps, Yes};
    use super::*;

    fn check(touch: &str, key: &str, holds: Holds, prefix: &str, overlaps: Holds) {
        let keys = serde_json::from_str::<Touch<'_>>(touch).unwrap().keys().unwrap();
        let hash = KeyedHash::from_text(&"0b".repeat(32)).unwrap();
        let asked = AskedKey::new(key.as_bytes().to_vec(), Some(&hash));
        assert_eq!(keys.hold(&asked), holds, "{touch} {key}");
        assert_eq!(keys.overlap(prefix.as_bytes()), overlaps, "{touch} {prefix}");
    }

    #[test]
    fn a_touch_holds_its_key_and_overlaps_its_prefixes() {
        let point = r#"{"verb":"put","key":"/a/x"}"#;
        check(point, "/a/x", Yes, "/a/", Yes);
        check(point, "/a/xy", No, "/b/", No);
        check(point, "/a", No, "/a/xy", No);
        let range = r#"{"verb":"list","key":"/a/","range_end":"/a0"}"#;
        check(range, "/a/x", Yes, "/a/x", Yes);
        check(range, "/a0", No, "/a0", No);
        check(range, "/a", No, "/", Yes);
        let all = r#"{"verb":"delete","key":"/a/","to_infinity":true}"#;
        check(all, "/b", Yes, "/b", Yes);
        check(all, "/", No, "/9", No);
        check(r#"{"verb":"put","key_hex":"ff00"}"#, "x", No, "", Yes);
        // sha256sum of an empty file, for a key that was cut
        let cut = r#"{"verb":"put","key":"/a","key_bytes":2000,
            "key_sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}"#;
        check(cut, "", Yes, "/a", Yes);
        check(cut, "/a", No, "/b", No);
    }

    #[test]
    fn what_a_rule_cut_off_is_told_as_perhaps() {
        let point = r#"{"verb":"put","key":"/a/b/","key_is_cut":true}"#;
        check(point, "/a/b/c", Perhaps, "/a/", Yes);
        check(point, "/a/c", No, "/a/b/c/", Perhaps);
        check(point, "/a", No, "/b", No);
        let range = r#"{"verb":"list","key":"/a/b/","key_is_cut":true,
            "range_end":"/a/c/","range_end_is_cut":true}"#;
        check(range, "/a/b/x", Perhaps, "/a/b/x", Perhaps);
        check(range, "/a/bb", Yes, "/a/c/d", Perhaps);
        check(range, "/a/c/x", Perhaps, "/a/d", No);
        check(range, "/a/d", No, "/a/", Perhaps);
        check(range, "/a/a", No, "/0", No);
        let end = r#"{"verb":"delete","key":"/a","range_end":"/a/c/","range_end_is_cut":true}"#;
        check(end, "/a/b", Yes, "/a/c/d", Perhaps);
        let open = r#"{"verb":"delete","key":"/a/","key_is_cut":true,"to_infinity":true}"#;
        check(open, "/b", Yes, "/b", Perhaps);
        check(open, "/a/x", Perhaps, "/0", No);
    }

    #[test]
    fn a_hashed_key_is_known_by_who_has_the_hash_key() {
        let hash = KeyedHash::from_text(&"0b".repeat(32)).unwrap();
        let hmac = to_hex(&hash.of_key(b"/a/x"));
        let point = format!(r#"{{"verb":"put","key_hmac":"{hmac}"}}"#);
        check(&point, "/a/x", Yes, "/a/", Perhaps);
        check(&point, "/a/y", No, "/b/", Perhaps);
        let touch: Touch<'_> = serde_json::from_str(&point).unwrap();
        let without = AskedKey::new(b"/a/x".to_vec(), None);
        assert_eq!(touch.keys().unwrap().hold(&without), Perhaps);
        let range = format!(r#"{{"verb":"list","key_hmac":"{hmac}","range_end_hmac":"{hmac}"}}"#);
        check(&range, "/a/x", Perhaps, "/a/", Perhaps);
    }
}
