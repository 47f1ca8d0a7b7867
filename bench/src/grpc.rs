//! The few gRPC messages the bench needs, encoded by hand so that neither driver nor stand-in spends time on it.
//! Field numbers are etcd's; every message is canonical: fields ascending, varints minimal, no default written.
//!
//! A frame is `00`, the length as four big-endian bytes, then the message. In the messages a byte such as `0a`
//! is `field << 3 | type`, type 0 a varint and type 2 a length with bytes.

use bytes::{BufMut, Bytes, BytesMut};

pub const RANGE_PATH: &str = "/etcdserverpb.KV/Range";
pub const PUT_PATH: &str = "/etcdserverpb.KV/Put";
pub const TXN_PATH: &str = "/etcdserverpb.KV/Txn";
pub const WATCH_PATH: &str = "/etcdserverpb.Watch/Watch";
/// Every key of the bench begins so.
pub const PREFIX: &[u8] = b"/bench/";

const FRAME_HEAD_BYTES: usize = 5;
const KEY_NAME: &[u8] = b"key-";
/// What follows PREFIX in a key that says how the stand-in is to answer: `/bench/answer/BYTES/KEYS/key-000042`.
const ANSWER: &str = "answer/";
const KEY_DIGITS: u32 = 6;
pub const KEYS: u32 = 1_000_000;

/// ResponseHeader: cluster_id = 1 (`08 01`), member_id = 2 (`10 02`), revision = 1000 (`18 e8 07`),
/// raft_term = 2 (`20 02`).
const RESPONSE_HEADER: &[u8] = &[0x08, 0x01, 0x10, 0x02, 0x18, 0xe8, 0x07, 0x20, 0x02];

/// What the stand-in answers a Range with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Answer {
    pub value_bytes: usize,
    pub keys: usize,
}

impl Answer {
    pub const DEFAULT: Self = Self { value_bytes: 128, keys: 1 };

    /// What a request made by [`range_request`] wants.
    pub fn wanted(request: &[u8]) -> Self {
        // Frame, tag and length of the key; all keys are shorter than 128 bytes.
        let key = request.get(FRAME_HEAD_BYTES + 2 + PREFIX.len()..).unwrap_or_default();
        let mut parts =
            key.strip_prefix(ANSWER.as_bytes()).unwrap_or_default().split(|byte| *byte == b'/');
        let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
        match (number(), number()) {
            (Some(value_bytes), Some(keys)) => Self { value_bytes, keys },
            _ => Self::DEFAULT,
        }
    }
}

/// `/bench/key-000042`.
pub fn key(number: u32) -> Vec<u8> {
    named(PREFIX.to_vec(), number)
}

fn named(mut key: Vec<u8>, number: u32) -> Vec<u8> {
    key.extend_from_slice(KEY_NAME);
    for place in (0..KEY_DIGITS).rev() {
        key.push(b'0' + (number / 10_u32.pow(place) % 10) as u8);
    }
    key
}

/// RangeRequest: key = 1 (`0a`, length, bytes), range_end = 2 (`12`) where several keys are wanted.
pub fn range_request(number: u32, answer: Answer) -> Bytes {
    let mut message = BytesMut::with_capacity(64);
    if answer == Answer::DEFAULT {
        field_bytes(&mut message, 0x0a, &key(number));
        return framed(&message);
    }
    let mut folder = PREFIX.to_vec();
    folder.extend_from_slice(format!("{ANSWER}{}/{}/", answer.value_bytes, answer.keys).as_bytes());
    field_bytes(&mut message, 0x0a, &named(folder.clone(), number));
    if answer.keys > 1 {
        field_bytes(&mut message, 0x12, &prefix_end(&folder));
    }
    framed(&message)
}

/// The first key that does not begin with the folder: its closing `/` becomes `0`.
fn prefix_end(folder: &[u8]) -> Vec<u8> {
    let (_, start) = folder.split_last().unwrap();
    [start, b"0"].concat()
}

/// PutRequest: key = 1 (`0a`), value = 2 (`12`).
pub fn put_request(number: u32, value: &[u8]) -> Bytes {
    framed(&put(number, value))
}

fn put(number: u32, value: &[u8]) -> BytesMut {
    let mut message = BytesMut::with_capacity(value.len() + 32);
    field_bytes(&mut message, 0x0a, &key(number));
    field_bytes(&mut message, 0x12, value);
    message
}

/// TxnRequest: compare = 1 (`0a`) with result = 1 NOT_EQUAL (`08 03`), target = 2 CREATE (`10 01`), key = 3 (`1a`) and
/// create_revision = 5 (`28 00`), so it holds for every key there is; success = 2 (`12`) with request_put = 2 (`12`).
pub fn txn_request(number: u32, value: &[u8]) -> Bytes {
    let mut compare = BytesMut::new();
    compare.put_slice(&[0x08, 0x03, 0x10, 0x01]);
    field_bytes(&mut compare, 0x1a, &key(number));
    compare.put_slice(&[0x28, 0x00]);
    let mut operation = BytesMut::new();
    field_bytes(&mut operation, 0x12, &put(number, value));
    let mut message = BytesMut::new();
    field_bytes(&mut message, 0x0a, &compare);
    field_bytes(&mut message, 0x12, &operation);
    framed(&message)
}

/// TxnRequest of Puts alone: success = 2 (`12`) with request_put = 2 (`12`), for each number.
pub fn fill_request(numbers: std::ops::Range<u32>, value: &[u8]) -> Bytes {
    let mut message = BytesMut::new();
    for number in numbers {
        let mut operation = BytesMut::new();
        field_bytes(&mut operation, 0x12, &put(number, value));
        field_bytes(&mut message, 0x12, &operation);
    }
    framed(&message)
}

/// WatchRequest: create_request = 1 (`0a`) with key = 1 (`0a`) and range_end = 2 (`12`): all keys of the bench.
pub fn watch_request() -> Bytes {
    let mut create = BytesMut::new();
    field_bytes(&mut create, 0x0a, PREFIX);
    field_bytes(&mut create, 0x12, &prefix_end(PREFIX));
    let mut message = BytesMut::new();
    field_bytes(&mut message, 0x0a, &create);
    framed(&message)
}

/// RangeResponse: header = 1 (`0a`), kvs = 2 (`12`) with one KeyValue, count = 4 (`20 01`).
/// KeyValue: key = 1 (`0a`), create_revision = 2 (`10 07`), mod_revision = 3 (`18 08`), version = 4 (`20 02`),
/// value = 5 (`2a`).
pub fn range_response(answer: Answer) -> Bytes {
    let mut pair = BytesMut::new();
    field_bytes(&mut pair, 0x0a, &key(0));
    pair.put_slice(&[0x10, 0x07, 0x18, 0x08, 0x20, 0x02]);
    field_bytes(&mut pair, 0x2a, &vec![b'v'; answer.value_bytes]);
    let mut message = BytesMut::with_capacity((pair.len() + 8) * answer.keys + 16);
    field_bytes(&mut message, 0x0a, RESPONSE_HEADER);
    for _ in 0..answer.keys {
        field_bytes(&mut message, 0x12, &pair);
    }
    message.put_u8(0x20);
    varint(&mut message, answer.keys);
    framed(&message)
}

/// PutResponse: header = 1 (`0a`).
pub fn put_response() -> Bytes {
    let mut message = BytesMut::new();
    field_bytes(&mut message, 0x0a, RESPONSE_HEADER);
    framed(&message)
}

/// The body of one answer: only its head is kept, and its length.
#[derive(Default)]
pub struct Received {
    head: [u8; FRAME_HEAD_BYTES],
    bytes: usize,
}

impl Received {
    pub fn add(&mut self, chunk: &[u8]) {
        let missing = FRAME_HEAD_BYTES.saturating_sub(self.bytes).min(chunk.len());
        let start = self.bytes.min(FRAME_HEAD_BYTES);
        self.head[start..start + missing].copy_from_slice(&chunk[..missing]);
        self.bytes += chunk.len();
    }

    /// Whether it was exactly one uncompressed, non-empty message.
    pub fn is_one_message(&self) -> bool {
        let [0, a, b, c, d] = self.head else {
            return false;
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        length > 0 && self.bytes == FRAME_HEAD_BYTES + length
    }
}

fn field_bytes(message: &mut BytesMut, tag: u8, bytes: &[u8]) {
    message.put_u8(tag);
    varint(message, bytes.len());
    message.put_slice(bytes);
}

fn varint(message: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        message.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    message.put_u8(value as u8);
}

fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(FRAME_HEAD_BYTES + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.put_slice(message);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_the_bytes_the_documentation_says() {
        let range = range_request(42, Answer::DEFAULT);
        assert_eq!(&range[..], b"\x00\x00\x00\x00\x13\x0a\x11/bench/key-000042");
        let watch = watch_request();
        assert_eq!(&watch[..], b"\x00\x00\x00\x00\x14\x0a\x12\x0a\x07/bench/\x12\x07/bench0");
    }

    #[test]
    fn a_range_request_says_how_the_stand_in_is_to_answer() {
        for answer in [
            Answer::DEFAULT,
            Answer { value_bytes: 1 << 20, keys: 1 },
            Answer { value_bytes: 16, keys: 1000 },
        ] {
            assert_eq!(Answer::wanted(&range_request(7, answer)), answer);
        }
        assert_eq!(Answer::wanted(b""), Answer::DEFAULT);
    }

    #[test]
    fn lengths_over_127_take_two_bytes() {
        let frame = range_response(Answer::DEFAULT);
        // Frame head 5, header field 11, then kvs: tag, and a length of 19 + 6 + 131 = 156.
        assert_eq!(&frame[16..19], &[0x12, 0x9c, 0x01]);
    }

    fn check(chunks: &[&[u8]], expected: bool) {
        let mut received = Received::default();
        chunks.iter().for_each(|chunk| received.add(chunk));
        assert_eq!(received.is_one_message(), expected, "{chunks:?}");
    }

    #[test]
    fn anything_but_one_whole_message_is_refused() {
        check(&[&put_response()], true);
        check(&[&[0, 0], &[0, 0], &[2, 9], &[9]], true);
        check(&[], false);
        check(&[&[0, 0, 0, 0, 0]], false);
        check(&[&[1, 0, 0, 0, 1, 9]], false);
        check(&[&[0, 0, 0, 0, 1, 9, 9]], false);
    }
}
