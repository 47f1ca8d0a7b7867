//! Keys as a record shows them: whole, cut, or cut and hashed; and whether a key is among them.
//!
//! Pure. What a record does not show is never told as a yes nor as a no.

use aws_lc_rs::digest::{SHA256, digest};

use super::record::shown_key;
use crate::chain::to_hex;
use crate::keyed_hash::{Hashed, KeyedHash};

/// Keys from one on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The first, or its beginning.
    pub start: Vec<u8>,
    /// Whether the first has more than that.
    pub start_is_cut: bool,
    /// What tells the first, when it is cut.
    pub digest: Option<Digest>,
    /// Where they end.
    pub end: KeysEnd,
    /// Whether the end has more than what is shown.
    pub end_is_cut: bool,
}

/// What tells a key of which only the beginning is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Digest {
    /// SHA-256, hex: it was too long.
    Sha256(String),
    /// A keyed hash: a rule hides it.
    Keyed(Hashed),
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
    /// Its keyed hash, when a hash key is known.
    hashed: Option<Hashed>,
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
        let hashed = hash.map(|hash| hash.of_key(&bytes));
        Self { bytes, hashed }
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
}

impl Keys {
    /// Whether this key is among them.
    #[must_use]
    pub fn hold(&self, asked: &AskedKey) -> Holds {
        let (key, start) = (asked.bytes.as_slice(), self.start.as_slice());
        let begins = key.starts_with(start);
        let to = match &self.end {
            KeysEnd::Point if !self.start_is_cut => return Holds::when(start == key),
            KeysEnd::Point if !begins => return Holds::No,
            KeysEnd::Point => return self.is_first(asked),
            KeysEnd::Before(end) if self.end_is_cut && key.starts_with(end) => Holds::Perhaps,
            KeysEnd::Before(end) => Holds::when(key < end.as_slice()),
            KeysEnd::Infinity => Holds::Yes,
        };
        let from = match self.start_is_cut && begins {
            true => Holds::Perhaps,
            false => Holds::when(start <= key),
        };
        from.min(to)
    }

    /// Whether a key is the first, of which only the beginning is shown.
    fn is_first(&self, asked: &AskedKey) -> Holds {
        match (&self.digest, &asked.hashed) {
            (Some(Digest::Sha256(whole)), _) => {
                Holds::when(*whole == to_hex(digest(&SHA256, &asked.bytes).as_ref()))
            }
            // Another hash key says nothing of this one's.
            (Some(Digest::Keyed(hashed)), Some(asked)) if hashed.key == asked.key => {
                Holds::when(hashed.hash == asked.hash)
            }
            (Some(Digest::Keyed(_)) | None, _) => Holds::Perhaps,
        }
    }

    /// Whether a key with this prefix is among them.
    #[must_use]
    pub fn overlap(&self, prefix: &[u8]) -> Holds {
        let start = self.start.as_slice();
        let within = start.starts_with(prefix);
        let may_begin_within = within || (self.start_is_cut && prefix.starts_with(start));
        match &self.end {
            KeysEnd::Point if within => Holds::Yes,
            KeysEnd::Point if may_begin_within => Holds::Perhaps,
            KeysEnd::Point => Holds::No,
            end => {
                let (reaches, surely) = match end {
                    KeysEnd::Before(end) if self.end_is_cut && prefix.starts_with(end) => {
                        (true, false)
                    }
                    KeysEnd::Before(end) => (end.as_slice() > prefix, true),
                    KeysEnd::Point | KeysEnd::Infinity => (true, true),
                };
                match (reaches && (may_begin_within || start < prefix), surely) {
                    (false, _) => Holds::No,
                    (true, true) if !self.start_is_cut || !prefix.starts_with(start) => Holds::Yes,
                    (true, _) => Holds::Perhaps,
                }
            }
        }
    }

    /// For people.
    #[must_use]
    pub fn shown(&self) -> String {
        let cut = |is_cut: bool| if is_cut { "…" } else { "" };
        let mut start = format!("{}{}", shown_key(&self.start), cut(self.start_is_cut));
        if let Some(Digest::Keyed(hashed)) = &self.digest {
            start.push_str(&format!(" hmac:{hashed}"));
        }
        match &self.end {
            KeysEnd::Point => start,
            KeysEnd::Before(end) => {
                format!("[{start}, {}{})", shown_key(end), cut(self.end_is_cut))
            }
            KeysEnd::Infinity => format!("[{start}, end)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Touch;
    use super::Holds::{No, Perhaps, Yes};
    use super::*;

    fn hash(digits: &str) -> KeyedHash {
        KeyedHash::from_text(&digits.repeat(32)).unwrap()
    }

    fn check(touch: &str, key: &str, holds: Holds, prefix: &str, overlaps: Holds) {
        let keys = serde_json::from_str::<Touch<'_>>(touch).unwrap().keys().unwrap();
        let asked = AskedKey::new(key.as_bytes().to_vec(), Some(&hash("0b")));
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
    }

    #[test]
    fn a_key_that_is_too_long_is_told_by_its_digest_and_its_range_is_not_told_for_sure() {
        // printf '/a/long' | sha256sum
        let whole = "4b0dabf9ec34583f474b19f8554c88e5d19c8d761faf3d6a78d8053fc08349ab";
        let point = format!(r#"{{"verb":"put","key":"/a","key_bytes":7,"key_sha256":"{whole}"}}"#);
        check(&point, "/a/long", Yes, "/a", Yes);
        check(&point, "/a/other", No, "/a/l", Perhaps);
        check(&point, "/b", No, "/b", No);
        let range = format!(
            r#"{{"verb":"delete","key":"/a","key_bytes":7,"key_sha256":"{whole}","to_infinity":true}}"#
        );
        check(&range, "/a/long", Perhaps, "/a/z", Perhaps);
        check(&range, "/b", Yes, "/b", Yes);
        let end = format!(
            r#"{{"verb":"delete","key":"/","range_end":"/a","range_end_bytes":7,"range_end_sha256":"{whole}"}}"#
        );
        check(&end, "/a/k", Perhaps, "/a/k", Perhaps);
        check(&end, "/A", Yes, "/b", No);
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
        check(range, "/a/d", No, "/a/bb", Yes);
        check(range, "/a/a", No, "/0", No);
        let end = r#"{"verb":"delete","key":"/a","range_end":"/a/c/","range_end_is_cut":true}"#;
        check(end, "/a/b", Yes, "/a/c/d", Perhaps);
        let open = r#"{"verb":"delete","key":"/a/","key_is_cut":true,"to_infinity":true}"#;
        check(open, "/b", Yes, "/b", Yes);
        check(open, "/a/x", Perhaps, "/!", No);
    }

    #[test]
    fn a_hashed_key_is_known_by_who_has_its_hash_key_and_by_nobody_else() {
        let hmac = hash("0b").of_key(b"/a/x");
        let point =
            format!(r#"{{"verb":"put","key":"/a/","key_is_cut":true,"key_hmac":"{hmac}"}}"#);
        check(&point, "/a/x", Yes, "/a/", Yes);
        check(&point, "/a/y", No, "/a/y", Perhaps);
        check(&point, "/b/x", No, "/b/", No);
        let keys = serde_json::from_str::<Touch<'_>>(&point).unwrap().keys().unwrap();
        // The attack on an auditor: a wrong or rotated hash key that makes the true one nobody's.
        for other in [None, Some(hash("0c"))] {
            for key in ["/a/x", "/a/y"] {
                let asked = AskedKey::new(key.as_bytes().to_vec(), other.as_ref());
                assert_eq!(keys.hold(&asked), Perhaps);
            }
        }
        // A range of which one end is hidden shows the other.
        let range = format!(
            r#"{{"verb":"delete","key":"/0","range_end":"/a/","range_end_is_cut":true,"range_end_hmac":"{hmac}"}}"#
        );
        check(&range, "/1", Yes, "/1", Yes);
        check(&range, "/a/x", Perhaps, "/b", No);
        check(&range, "/b", No, "/!", No);
    }
}
