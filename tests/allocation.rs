//! What reading a request takes in memory, whatever its bytes say: a bound for each byte that was really
//! sent, and one for all of them. The counter counts by thread, so it sees nothing of other tests.

#![expect(clippy::unwrap_used, reason = "a test; helpers are no #[test] themselves")]

use allocation_counter::measure;
use bytes::Bytes;
use proptest::prelude::*;
use ringfence::etcd::{CanonicalRequest, Rpc};
use ringfence::grpc::frame::{MessageReader, MessageSplitter};

/// Bytes in memory at the same time for each byte of a message. Two bytes make an empty part of a
/// transaction, which is a struct of more than a hundred; the list of them grows by doubling.
const HELD_BYTES_PER_BYTE: u64 = 256;
/// What a message takes that holds nothing: an error, the touch of a watch.
const HELD_BYTES_AT_LEAST: u64 = 4096;
/// The most that the parts of one message take, however long it is; on top come its own bytes, as they are
/// sent and once encoded anew.
const HELD_BYTES_FOR_PARTS_MAX: u64 = 16 << 20;

/// The most bytes that reading held at the same time.
fn held_bytes(rpc: Rpc, message: &Bytes) -> u64 {
    let read = || drop(CanonicalRequest::read(rpc, message, &mut || 0));
    measure(read).bytes_max
}

fn check(rpc: Rpc, message: &[u8]) {
    let message = Bytes::copy_from_slice(message);
    let (held, length) = (held_bytes(rpc, &message), message.len() as u64);
    let most = HELD_BYTES_AT_LEAST + HELD_BYTES_PER_BYTE * length;
    assert!(held <= most, "{rpc:?}: {held} bytes for a message of {length}");
    let most = HELD_BYTES_FOR_PARTS_MAX + 3 * length;
    assert!(held <= most, "{rpc:?}: {held} bytes for a message of {length}");
}

/// A length-delimited field around a content.
fn within(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    let mut length = content.len();
    while length > 127 {
        bytes.push(u8::try_from(length & 127).unwrap() | 128);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap());
    bytes.extend(content);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_at_random_take_no_more_than_their_multiple(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        Rpc::ALL.iter().for_each(|rpc| check(*rpc, &bytes));
    }

    /// The attack: lengths that promise what never comes, in every place where one can stand.
    #[test]
    fn a_length_that_lies_takes_no_more_than_its_multiple(
        tags in proptest::collection::vec(prop::sample::select(vec![0x0a_u8, 0x12, 0x1a, 0x22]), 1..20),
        length in any::<u32>(),
    ) {
        let mut bytes = Vec::new();
        for tag in tags {
            bytes.push(tag);
            // A varint of five bytes: up to 2^31.
            let [low, high, ..] = length.to_le_bytes();
            bytes.extend([0x80 | low, 0x80 | high, 0xff, 0xff, 0x07]);
        }
        Rpc::ALL.iter().for_each(|rpc| check(*rpc, &bytes));
    }

    /// The same of frames: five bytes must not cost a gigabyte.
    #[test]
    fn a_frame_takes_what_has_come_and_not_what_it_promises(
        length in any::<u32>(), content in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let frame = [&[0][..], &length.to_be_bytes(), &content].concat();
        for chunk_bytes in [1, 7, frame.len()] {
            let chunks: Vec<Bytes> = frame.chunks(chunk_bytes).map(Bytes::copy_from_slice).collect();
            let held = measure(|| {
                let mut reader = MessageReader::new(usize::MAX);
                let _ = chunks.into_iter().try_for_each(|chunk| reader.push(chunk));
                let mut splitter = MessageSplitter::new(usize::MAX);
                for chunk in frame.chunks(chunk_bytes) {
                    splitter.push(chunk);
                    let _ = splitter.next_message();
                }
            });
            let most = HELD_BYTES_AT_LEAST + 8 * frame.len() as u64;
            prop_assert!(held.bytes_max <= most, "{} bytes", held.bytes_max);
        }
    }
}

/// The attack: parts of two bytes, as many as fit: below the size at which a message is walked before it
/// is built, above it, and in every list that a message has.
#[test]
fn many_small_parts_take_no_more_than_their_multiple() {
    for parts in [1, 2000, 2048, 2049, 8000, 16_000, 1_000_000] {
        for tag in [0x0a, 0x12, 0x1a] {
            let empty = [tag, 0].repeat(parts);
            Rpc::ALL.iter().for_each(|rpc| check(*rpc, &empty));
            // The same inside a nested transaction: RequestOp.request_txn within TxnRequest.success.
            check(Rpc::Txn, &within(0x12, &within(0x22, &empty)));
        }
        // Ranges of one key: the touches are built too.
        let range = within(0x12, &within(0x0a, &within(0x0a, b"k")));
        check(Rpc::Txn, &range.repeat(parts.min(100_000)));
    }
}

/// The counter itself: a measure that always says zero would let everything pass.
#[test]
fn what_is_built_is_counted() {
    let message = Bytes::from(within(0x12, &within(0x0a, &within(0x0a, b"k"))).repeat(100));
    assert!(held_bytes(Rpc::Txn, &message) > 100 * 64);
    assert!(measure(|| drop(vec![0_u8; 1 << 20])).bytes_max >= 1 << 20);
}
