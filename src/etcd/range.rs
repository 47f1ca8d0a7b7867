//! Keys and key ranges as etcd means them, turned once into types that cannot be misread.
//!
//! A range is half-open. etcd writes it as (`key`, `range_end`): no end is the single key, the end
//! `"\0"` is "to infinity", anything else is excluded (server/etcdserver/txn, `mkGteRange`).

use std::fmt;

use bytes::Bytes;

/// A key as the client says it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientKey(Bytes);

/// A key as etcd holds it. Policy, leases and audit speak of stored keys only.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoredKey(Bytes);

/// Where a range ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RangeEnd {
    /// The range is its start alone.
    Point,
    /// The first key that is no longer in the range.
    Before(StoredKey),
    /// Every key from the start on.
    Infinity,
}

/// A non-empty, half-open range of stored keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    start: StoredKey,
    end: RangeEnd,
}

/// Why (`key`, `range_end`) is no range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// etcd refuses an empty key on every KV call (api/v3rpc/key.go).
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// The end is not after the start. etcd answers an empty result; ringfence refuses, because a
    /// range without keys cannot lie inside a right.
    #[error("ringfence: range_end is not after key")]
    EndNotAfterStart,
}

impl ClientKey {
    /// Takes the bytes of a request's key field.
    #[must_use]
    pub const fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// Whether the field was absent (or present with length 0, which means the same here).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key under which etcd holds it: today the same bytes.
    #[must_use]
    pub fn into_stored(self) -> StoredKey {
        StoredKey(self.0)
    }
}

impl StoredKey {
    /// Takes bytes that are known to be a stored key: from a policy, or from etcd itself.
    #[must_use]
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// The key's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for StoredKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}`", self.0.escape_ascii())
    }
}

impl KeyRange {
    /// The same, apart from the request that it came with: that is not kept in memory by it.
    #[must_use]
    pub fn detached(&self) -> Self {
        let copy = |key: &StoredKey| StoredKey(Bytes::copy_from_slice(&key.0));
        let end = match &self.end {
            RangeEnd::Before(end) => RangeEnd::Before(copy(end)),
            RangeEnd::Point => RangeEnd::Point,
            RangeEnd::Infinity => RangeEnd::Infinity,
        };
        Self { start: copy(&self.start), end }
    }

    /// How long its keys are.
    #[must_use]
    pub fn key_bytes(&self) -> usize {
        let end = match &self.end {
            RangeEnd::Before(end) => end.0.len(),
            RangeEnd::Point | RangeEnd::Infinity => 0,
        };
        self.start.0.len() + end
    }

    /// The range that a request's `key` and `range_end` name. A `range_end` of length 0 is no
    /// range_end, however it was encoded: decoders of different etcd releases disagree on it.
    ///
    /// # Errors
    /// When the key is empty or the end is not after it.
    pub fn from_request(key: ClientKey, range_end: ClientKey) -> Result<Self, RangeError> {
        if key.is_empty() {
            return Err(RangeError::EmptyKey);
        }
        let start = key.into_stored();
        let end = if range_end.is_empty() {
            RangeEnd::Point
        } else if range_end.0.as_ref() == b"\0" {
            RangeEnd::Infinity
        } else if range_end.0 <= start.0 {
            return Err(RangeError::EndNotAfterStart);
        } else {
            RangeEnd::Before(range_end.into_stored())
        };
        Ok(Self { start, end })
    }

    /// The single key.
    #[must_use]
    pub const fn point(key: StoredKey) -> Self {
        Self { start: key, end: RangeEnd::Point }
    }

    /// Every key that begins with `prefix`; the empty prefix is every key.
    #[must_use]
    pub fn prefix(prefix: &[u8]) -> Self {
        let start = StoredKey::new(prefix.to_vec());
        Self { start, end: prefix_end(prefix) }
    }

    /// `[start, end)`, or everything from `start` on when `end` is `None`. `None` as a result
    /// means that the end is not after the start.
    #[must_use]
    pub fn between(start: &[u8], end: Option<&[u8]>) -> Option<Self> {
        let end = match end {
            None => RangeEnd::Infinity,
            Some(end) if end > start => RangeEnd::Before(StoredKey::new(end.to_vec())),
            Some(_) => return None,
        };
        Some(Self { start: StoredKey::new(start.to_vec()), end })
    }

    /// The first key of the range.
    #[must_use]
    pub const fn start(&self) -> &StoredKey {
        &self.start
    }

    /// Where the range ends.
    #[must_use]
    pub const fn end(&self) -> &RangeEnd {
        &self.end
    }

    /// Whether the request named a single key, without a range_end.
    #[must_use]
    pub const fn is_point(&self) -> bool {
        matches!(self.end, RangeEnd::Point)
    }

    /// Whether `key` lies in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Point => key == self.start.as_bytes(),
            RangeEnd::Before(end) => key >= self.start.as_bytes() && key < end.as_bytes(),
            RangeEnd::Infinity => key >= self.start.as_bytes(),
        }
    }
}

/// The first key after every key with this prefix: the last byte below 0xff is raised by one and
/// the tail is cut (etcd clientv3 `GetPrefixRangeEnd`).
fn prefix_end(prefix: &[u8]) -> RangeEnd {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(raised) = last.checked_add(1) {
            end.push(raised);
            return RangeEnd::Before(StoredKey::new(end));
        }
    }
    RangeEnd::Infinity
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: &'static [u8], range_end: &'static [u8], expected: Result<RangeEnd, RangeError>) {
        let range = KeyRange::from_request(
            ClientKey::new(Bytes::from_static(key)),
            ClientKey::new(Bytes::from_static(range_end)),
        );
        assert_eq!(range.map(|range| range.end), expected);
    }

    #[test]
    fn a_request_range_is_read_as_etcd_reads_it() {
        check(b"/a/x", b"", Ok(RangeEnd::Point));
        check(b"/a/", b"/a0", Ok(RangeEnd::Before(StoredKey::new("/a0"))));
        check(b"/a/", b"\0", Ok(RangeEnd::Infinity));
        check(b"\0", b"\0", Ok(RangeEnd::Infinity));
        check(b"\0", b"\0\0", Ok(RangeEnd::Before(StoredKey::new("\0\0"))));
        check(b"/a/", b"\0\0", Err(RangeError::EndNotAfterStart));
        check(b"/a/x", b"/a/x", Err(RangeError::EndNotAfterStart));
        check(b"/a/x", b"/a/b", Err(RangeError::EndNotAfterStart));
        check(b"", b"/a", Err(RangeError::EmptyKey));
        check(b"", b"", Err(RangeError::EmptyKey));
    }

    #[test]
    fn a_prefix_ends_where_etcd_clients_end_it() {
        assert_eq!(KeyRange::prefix(b"/a/").end, RangeEnd::Before(StoredKey::new("/a0")));
        assert_eq!(KeyRange::prefix(b"a\xff\xff").end, RangeEnd::Before(StoredKey::new("b")));
        assert_eq!(KeyRange::prefix(b"\xff\xff").end, RangeEnd::Infinity);
        assert_eq!(KeyRange::prefix(b"").end, RangeEnd::Infinity);
    }
}
