//! What the writer and the readers of the audit log agree on: chains of records, the names of their files,
//! what is hashed and what is signed. docs/audit-format.md describes it.
//!
//! Pure: no files, no clock; randomness comes in as an argument.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};

/// What ends every line but its brace: the hash of the line before.
const PREVIOUS: &[u8] = b",\"prev\":\"";
/// Bytes behind the last field: quote and brace.
const CLOSING: &[u8] = b"\"}";
const HASH_HEX_BYTES: usize = 64;

/// The SHA-256 of a line, from its first brace to its last.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LineHash([u8; 32]);

impl LineHash {
    /// Stands before the first line of a chain.
    pub const ZERO: Self = Self([0; 32]);

    /// The hash of a line without its newline.
    #[must_use]
    pub fn of(line: &[u8]) -> Self {
        let mut hash = [0; 32];
        for (byte, from) in hash.iter_mut().zip(digest(&SHA256, line).as_ref()) {
            *byte = *from;
        }
        Self(hash)
    }

    /// Appends the field that chains a line to the one before, and closes the line.
    pub fn close_line(&self, line: &mut Vec<u8>) {
        let mut hex = [0; HASH_HEX_BYTES];
        for ([high, low], byte) in hex.as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
            (*high, *low) = (hex_digit(byte >> 4), hex_digit(byte & 0xf));
        }
        line.extend_from_slice(PREVIOUS);
        line.extend_from_slice(&hex);
        line.extend_from_slice(CLOSING);
    }

    /// What a line says of the one before; `None` when it does not end as a line must.
    #[must_use]
    pub fn previous_in(line: &[u8]) -> Option<Self> {
        let rest = line.strip_suffix(CLOSING)?;
        let (rest, hex) = rest.split_at_checked(rest.len().checked_sub(HASH_HEX_BYTES)?)?;
        rest.ends_with(PREVIOUS).then(|| std::str::from_utf8(hex).ok()?.parse().ok())?
    }
}

const fn hex_digit(value: u8) -> u8 {
    if value < 10 { b'0' + value } else { b'a' + value - 10 }
}

/// Lower-case hex, as all hashes, keys and signatures are written.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [hex_digit(byte >> 4), hex_digit(byte & 0xf)]);
    digits.map(char::from).collect()
}

/// The same behind a text: a request may have a megabyte of keys that are no text, and the one who writes them down
/// has others to serve.
pub fn push_hex(bytes: &[u8], text: &mut Vec<u8>) {
    text.reserve(2 * bytes.len());
    for byte in bytes {
        text.extend_from_slice(&[hex_digit(byte >> 4), hex_digit(byte & 0xf)]);
    }
}

/// The bytes of lower-case hex.
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    if rest.is_empty() { bytes.collect() } else { None }
}

impl fmt::Display for LineHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for LineHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for LineHash {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Self, NotOurs> {
        let bytes = from_hex(text).ok_or(NotOurs)?;
        bytes.try_into().map(Self).map_err(|_| NotOurs)
    }
}

/// A name or hash that ringfence does not write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not as ringfence writes it")]
pub struct NotOurs;

/// One process's records: when it started, in milliseconds since 1970, and 64 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId {
    started_millis: u64,
    random: u64,
}

impl ChainId {
    /// The chain of a process that starts then.
    #[must_use]
    pub const fn new(started_millis: u64, random: [u8; 8]) -> Self {
        Self { started_millis, random: u64::from_be_bytes(random) }
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{:016x}", self.started_millis, self.random)
    }
}

impl fmt::Debug for ChainId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for ChainId {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Self, NotOurs> {
        let (started, random) = text.split_once('-').ok_or(NotOurs)?;
        let id = Self {
            started_millis: started.parse().map_err(|_| NotOurs)?,
            random: u64::from_str_radix(random, 16).map_err(|_| NotOurs)?,
        };
        // One spelling for each.
        if id.to_string() == text { Ok(id) } else { Err(NotOurs) }
    }
}

/// A file of a chain: `audit-CHAIN-NUMBER.jsonl`, with `.zst` behind it when it is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// Whose records.
    pub chain: ChainId,
    /// Which of its files, from 1.
    pub number: u32,
    /// By zstd.
    pub compressed: bool,
}

impl SegmentName {
    /// The most segments of a chain; the name has room for six digits.
    pub const NUMBER_MAX: u32 = 999_999;
}

impl fmt::Display for SegmentName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ending = if self.compressed { ".zst" } else { "" };
        write!(formatter, "audit-{}-{:06}.jsonl{ending}", self.chain, self.number)
    }
}

impl FromStr for SegmentName {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Self, NotOurs> {
        let rest = text.strip_prefix("audit-").ok_or(NotOurs)?;
        let (rest, compressed) =
            rest.strip_suffix(".zst").map_or((rest, false), |rest| (rest, true));
        let rest = rest.strip_suffix(".jsonl").ok_or(NotOurs)?;
        let (chain, number) = rest.rsplit_once('-').ok_or(NotOurs)?;
        let number = number.parse().map_err(|_| NotOurs)?;
        let name = Self { chain: chain.parse()?, number, compressed };
        if (1..=Self::NUMBER_MAX).contains(&number) && name.to_string() == text {
            Ok(name)
        } else {
            Err(NotOurs)
        }
    }
}

/// What the long-term key signs when a process begins: which key seals this chain, and its place in the
/// order of all.
#[must_use]
pub fn epoch_statement(chain: ChainId, epoch: u64, public_hex: &str) -> String {
    format!("ringfence audit epoch v1\n{chain}\n{epoch}\n{public_hex}\n")
}

/// What the process's own key signs in a checkpoint: all records before it.
#[must_use]
pub fn checkpoint_statement(
    chain: ChainId,
    epoch: u64,
    sequence: u64,
    time: &str,
    previous: LineHash,
) -> String {
    format!("ringfence audit checkpoint v1\n{chain}\n{epoch}\n{sequence}\n{time}\n{previous}\n")
}

/// The fields that every line begins with.
#[derive(Clone, Copy, Debug)]
pub struct Head<'l> {
    /// Its place in the chain.
    pub sequence: u64,
    /// When, as records show it.
    pub time: &'l str,
    /// The type of the record.
    pub kind: &'l str,
}

/// The highest number of a record, and of an epoch, that is believed: what is read can be counted on from.
pub const NUMBER_MAX: u64 = u64::MAX / 4;

/// What every line begins with; `None` when it is no record.
#[must_use]
pub fn head(line: &[u8]) -> Option<Head<'_>> {
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
    let sequence = sequence.parse().ok().filter(|sequence| *sequence <= NUMBER_MAX)?;
    Some(Head { sequence, time, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_name(text: &str, good: bool) {
        let name: Result<SegmentName, NotOurs> = text.parse();
        assert_eq!(name.is_ok(), good, "{text}");
        assert!(name.is_err() || name.unwrap().to_string() == text);
    }

    #[test]
    fn a_file_name_has_one_spelling() {
        check_name("audit-1790000000123-9f86d081884c7d65-000001.jsonl", true);
        check_name("audit-1790000000123-9f86d081884c7d65-000012.jsonl.zst", true);
        for odd in [
            "audit-1790000000123-9f86d081884c7d65-1.jsonl",
            "audit-1790000000123-9f86d081884c7d65-000000.jsonl",
            "audit-1790000000123-9f86d081884c7d65-1000000.jsonl",
            "audit-1790000000123-9f86d081884c7d65-4294967295.jsonl",
            "audit-01790000000123-9f86d081884c7d65-000001.jsonl",
            "audit-1790000000123-9F86D081884C7D65-000001.jsonl",
            "audit-1790000000123-9f86d081884c7d65-000001.jsonl.gz",
            "audit-1790000000123-000001.jsonl",
            "audit-1790000000123-17.jsonl",
            "",
        ] {
            check_name(odd, false);
        }
    }

    #[test]
    fn a_line_names_the_one_before_at_its_end_and_nowhere_else() {
        let hash = LineHash::of(b"a line");
        let mut line = b"{\"v\":1".to_vec();
        hash.close_line(&mut line);
        assert_eq!(LineHash::previous_in(&line), Some(hash));
        line.push(b' ');
        assert_eq!(LineHash::previous_in(&line), None);
        // A client's key that looks like the field is inside a string, with its quotes escaped.
        assert_eq!(LineHash::previous_in(b"{\"key\":\",\\\"prev\\\":\\\"00\"}"), None);
        for odd in [&b""[..], b"\"}", b"{}", &[b'0'; 200]] {
            assert_eq!(LineHash::previous_in(odd), None);
        }
    }

    #[test]
    fn hex_is_lower_case_and_whole() {
        assert_eq!(from_hex("00ff1a"), Some(vec![0, 255, 26]));
        for odd in ["0", "0G", "FF", "é"] {
            assert_eq!(from_hex(odd), None, "{odd}");
        }
        assert_eq!(to_hex(&[0, 255, 26]), "00ff1a");
    }
}
