//! The few gRPC messages the bench needs, encoded by hand so that neither driver nor stand-in spends time on it.
//! Field numbers are etcd's; every message is canonical: fields ascending, varints minimal, no default written.
//!
//! A frame is `00`, the length as four big-endian bytes, then the message. In the messages a byte such as `0a`
//! is `field << 3 | type`, type 0 a varint and type 2 a length with bytes.

use bytes::{BufMut, Bytes, BytesMut};

pub const RANGE_PATH: &str = "/etcdserverpb.KV/Range";
pub const PUT_PATH: &str = "/etcdserverpb.KV/Put";

const FRAME_HEAD_BYTES: usize = 5;
const KEY_PREFIX: &[u8] = b"/bench/key-";
const KEY_DIGITS: u32 = 6;
pub const KEYS: u32 = 1_000_000;

/// ResponseHeader: cluster_id = 1 (`08 01`), member_id = 2 (`10 02`), revision = 1000 (`18 e8 07`),
/// raft_term = 2 (`20 02`).
const RESPONSE_HEADER: &[u8] = &[0x08, 0x01, 0x10, 0x02, 0x18, 0xe8, 0x07, 0x20, 0x02];

/// `/bench/key-000042`.
pub fn key(number: u32) -> Vec<u8> {
    let mut key = KEY_PREFIX.to_vec();
    for place in (0..KEY_DIGITS).rev() {
        key.push(b'0' + (number / 10_u32.pow(place) % 10) as u8);
    }
    key
}

/// RangeRequest: key = 1 (`0a`, length, bytes).
pub fn range_request(number: u32) -> Bytes {
    let mut message = BytesMut::with_capacity(32);
    field_bytes(&mut message, 0x0a, &key(number));
    framed(&message)
}

/// PutRequest: key = 1 (`0a`), value = 2 (`12`).
pub fn put_request(number: u32, value: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(value.len() + 32);
    field_bytes(&mut message, 0x0a, &key(number));
    field_bytes(&mut message, 0x12, value);
    framed(&message)
}

/// RangeResponse: header = 1 (`0a`), kvs = 2 (`12`) with one KeyValue, count = 4 (`20 01`).
/// KeyValue: key = 1 (`0a`), create_revision = 2 (`10 07`), mod_revision = 3 (`18 08`), version = 4 (`20 02`),
/// value = 5 (`2a`).
pub fn range_response(value_bytes: usize) -> Bytes {
    let mut pair = BytesMut::new();
    field_bytes(&mut pair, 0x0a, &key(0));
    pair.put_slice(&[0x10, 0x07, 0x18, 0x08, 0x20, 0x02]);
    field_bytes(&mut pair, 0x2a, &vec![b'v'; value_bytes]);
    let mut message = BytesMut::new();
    field_bytes(&mut message, 0x0a, RESPONSE_HEADER);
    field_bytes(&mut message, 0x12, &pair);
    message.put_slice(&[0x20, 0x01]);
    framed(&message)
}

/// PutResponse: header = 1 (`0a`).
pub fn put_response() -> Bytes {
    let mut message = BytesMut::new();
    field_bytes(&mut message, 0x0a, RESPONSE_HEADER);
    framed(&message)
}

/// Whether the bytes are exactly one uncompressed, non-empty message: what every canned answer is.
pub fn is_one_message(body: &[u8]) -> bool {
    match body.split_first_chunk::<FRAME_HEAD_BYTES>() {
        Some((&[0, a, b, c, d], message)) => {
            !message.is_empty() && u32::from_be_bytes([a, b, c, d]) as usize == message.len()
        }
        _ => false,
    }
}

fn field_bytes(message: &mut BytesMut, tag: u8, bytes: &[u8]) {
    message.put_u8(tag);
    let mut length = bytes.len();
    while length >= 0x80 {
        message.put_u8(length as u8 | 0x80);
        length >>= 7;
    }
    message.put_u8(length as u8);
    message.put_slice(bytes);
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
    fn a_range_request_is_the_bytes_the_documentation_says() {
        assert_eq!(&range_request(42)[..], b"\x00\x00\x00\x00\x13\x0a\x11/bench/key-000042");
    }

    #[test]
    fn lengths_over_127_take_two_bytes() {
        let frame = range_response(128);
        assert!(is_one_message(&frame));
        // Frame head 5, header field 11, then kvs: tag, and a length of 19 + 6 + 131 = 156.
        assert_eq!(&frame[16..19], &[0x12, 0x9c, 0x01]);
    }

    #[test]
    fn anything_but_one_whole_message_is_refused() {
        assert!(is_one_message(&put_response()));
        assert!(!is_one_message(&[]));
        assert!(!is_one_message(&[0, 0, 0, 0, 0]));
        assert!(!is_one_message(&[1, 0, 0, 0, 1, 9]));
        assert!(!is_one_message(&[0, 0, 0, 0, 1, 9, 9]));
    }
}
