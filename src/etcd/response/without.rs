//! Takes the messages of some watches out of a stream of etcd's, chunk by chunk. A message is held back until its
//! watch is known, which is some bytes behind its beginning (rpc.proto: `header` is field 1, `watch_id` field 2).
//!
//! It changes no message. What it cannot follow it does not let pass.

use std::collections::HashSet;

use bytes::{Buf as _, Bytes, BytesMut};

use super::MessagePosition;

const GRPC_PREFIX_BYTES: usize = 5;
/// The most bytes that are held back; a header has some forty.
const HELD_BYTES_MAX: usize = 1024;
/// As much as is looked at in one step.
const STEP_BYTES: usize = 64;
const HEADER_TAG: u8 = 0x0a;
const WATCH_ID_TAG: u8 = 0x10;

/// What becomes of the bytes of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of a message.
    Bytes(Bytes),
    /// So many bytes do not go on.
    Dropped(usize),
    /// Between two messages.
    Boundary,
}

/// The stream is none of etcd's watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of the watch stream cannot be read")]
pub struct Unreadable;

/// The watches whose messages go no further.
#[derive(Debug)]
pub struct WithoutWatches {
    ids: HashSet<i64>,
    at: At,
}

#[derive(Debug)]
enum At {
    /// So much of a message, of a watch that is not known yet.
    Held(BytesMut),
    /// In the prefix of a message that has begun to pass: its bytes so far, and the length that they say.
    Prefix(u8, u32),
    /// In a message that passes: so much is left.
    Passing(u64),
    /// In one that does not.
    Dropping(u64),
}

impl WithoutWatches {
    /// Begins where a stream stands, which is before the bytes that come next. A message that has begun to pass is not cut in half.
    #[must_use]
    pub fn from_here(position: MessagePosition) -> Self {
        let at = match position {
            MessagePosition::Between => At::Held(BytesMut::new()),
            MessagePosition::Prefix(bytes, length) => At::Prefix(bytes, length),
            MessagePosition::Message(left) => At::Passing(left),
        };
        Self { ids: HashSet::new(), at }
    }

    /// From the next message on none of this watch passes.
    pub fn add(&mut self, id: i64) {
        self.ids.insert(id);
    }

    /// Whether messages of that watch do not pass.
    #[must_use]
    pub fn stops(&self, id: i64) -> bool {
        self.ids.contains(&id)
    }

    /// Whether a part of a message has passed.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        matches!(self.at, At::Prefix(..) | At::Passing(_))
    }

    /// Whether what has passed so far ends with a message.
    #[must_use]
    pub const fn is_between_messages(&self) -> bool {
        matches!(self.at, At::Held(_) | At::Dropping(_))
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// When a message cannot be followed; nothing of it has passed.
    pub fn push(
        &mut self,
        mut chunk: Bytes,
        passed: &mut impl FnMut(Piece),
    ) -> Result<(), Unreadable> {
        while chunk.has_remaining() {
            let at = std::mem::replace(&mut self.at, At::Held(BytesMut::new()));
            self.at = match at {
                At::Held(held) => self.hold(held, &mut chunk, passed)?,
                At::Prefix(bytes, length) => {
                    let byte = chunk.split_to(1);
                    let length = length << 8 | u32::from(byte.first().copied().unwrap_or(0));
                    passed(Piece::Bytes(byte));
                    if usize::from(bytes) + 1 < GRPC_PREFIX_BYTES {
                        At::Prefix(bytes + 1, length)
                    } else {
                        passing(u64::from(length), passed)
                    }
                }
                At::Passing(left) => {
                    let piece = chunk.split_to(least(left, chunk.len()));
                    let left = left - piece.len() as u64;
                    passed(Piece::Bytes(piece));
                    passing(left, passed)
                }
                At::Dropping(left) => {
                    let dropped = least(left, chunk.len());
                    chunk.advance(dropped);
                    passed(Piece::Dropped(dropped));
                    dropping(left - dropped as u64, passed)
                }
            };
        }
        Ok(())
    }

    /// Holds some bytes more back, and lets them go when their watch is known.
    fn hold(
        &self,
        mut held: BytesMut,
        chunk: &mut Bytes,
        passed: &mut impl FnMut(Piece),
    ) -> Result<At, Unreadable> {
        let wanted = match length_of(&held) {
            None => (GRPC_PREFIX_BYTES - held.len()) as u64,
            Some(length) => left_of(length, &held).min(STEP_BYTES as u64),
        };
        held.extend_from_slice(&chunk.split_to(least(wanted, chunk.len())));
        let Some(length) = length_of(&held) else { return Ok(At::Held(held)) };
        let left = left_of(length, &held);
        let message = held.get(GRPC_PREFIX_BYTES..).unwrap_or_default();
        match watch_id(message, left == 0)? {
            Some(id) if self.ids.contains(&id) => {
                passed(Piece::Dropped(held.len()));
                Ok(dropping(left, passed))
            }
            Some(_) => {
                passed(Piece::Bytes(held.freeze()));
                Ok(passing(left, passed))
            }
            None if held.len() >= HELD_BYTES_MAX => Err(Unreadable),
            None => Ok(At::Held(held)),
        }
    }
}

fn passing(left: u64, passed: &mut impl FnMut(Piece)) -> At {
    if left > 0 {
        return At::Passing(left);
    }
    passed(Piece::Boundary);
    At::Held(BytesMut::new())
}

fn dropping(left: u64, passed: &mut impl FnMut(Piece)) -> At {
    if left > 0 {
        return At::Dropping(left);
    }
    passed(Piece::Boundary);
    At::Held(BytesMut::new())
}

fn least(left: u64, length: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(length)
}

fn length_of(held: &[u8]) -> Option<u32> {
    let [_, length @ ..] = held.first_chunk::<GRPC_PREFIX_BYTES>()?;
    Some(u32::from_be_bytes(*length))
}

/// How much of a message has not come.
fn left_of(length: u32, held: &[u8]) -> u64 {
    (u64::from(length) + GRPC_PREFIX_BYTES as u64).saturating_sub(held.len() as u64)
}

/// The watch of a message, of which this is the beginning; `None` when that says nothing yet.
fn watch_id(mut message: &[u8], is_whole: bool) -> Result<Option<i64>, Unreadable> {
    loop {
        let Some((tag, rest)) = message.split_first() else {
            // Left out means 0.
            return Ok(is_whole.then_some(0));
        };
        match *tag {
            HEADER_TAG => {
                let Some((length, rest)) = varint(rest)? else { return incomplete(is_whole) };
                let length = usize::try_from(length).map_err(|_| Unreadable)?;
                let Some(rest) = rest.get(length..) else { return incomplete(is_whole) };
                message = rest;
            }
            WATCH_ID_TAG => {
                let Some((id, _)) = varint(rest)? else { return incomplete(is_whole) };
                return Ok(Some(id.cast_signed()));
            }
            // A later field: `created` is the first of them.
            tag if tag > WATCH_ID_TAG => return Ok(Some(0)),
            _ => return Err(Unreadable),
        }
    }
}

const fn incomplete(is_whole: bool) -> Result<Option<i64>, Unreadable> {
    if is_whole { Err(Unreadable) } else { Ok(None) }
}

/// A number of protobuf and what stands behind it; `None` when it is not whole.
fn varint(bytes: &[u8]) -> Result<Option<(u64, &[u8])>, Unreadable> {
    let mut value = 0;
    let mut rest = bytes;
    for shift in (0..64).step_by(7) {
        let Some((byte, behind)) = rest.split_first() else { return Ok(None) };
        rest = behind;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(Some((value, rest)));
        }
    }
    Err(Unreadable)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::super::StreamScan;
    use super::*;
    use crate::etcd::pb::etcdserverpb::{ResponseHeader, WatchResponse};
    use crate::etcd::pb::mvccpb::{Event, KeyValue};

    fn message(id: i64, value_bytes: usize) -> Vec<u8> {
        let header =
            ResponseHeader { cluster_id: u64::MAX, member_id: 8, revision: 5, raft_term: 2 };
        let value = vec![7; value_bytes].into();
        let kv = KeyValue { key: "k".into(), value, ..KeyValue::default() };
        let events = vec![Event { kv: Some(kv), ..Event::default() }];
        let response = WatchResponse {
            header: Some(header),
            watch_id: id,
            events,
            ..WatchResponse::default()
        };
        let body = response.encode_to_vec();
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn pass(without: &mut WithoutWatches, bytes: &[u8], chunk_bytes: usize) -> Vec<u8> {
        let (mut passed, mut all_dropped) = (Vec::new(), 0);
        for chunk in bytes.chunks(chunk_bytes) {
            let mut take = |piece| match piece {
                Piece::Bytes(bytes) => passed.extend_from_slice(&bytes),
                Piece::Dropped(dropped) => all_dropped += dropped,
                Piece::Boundary => {}
            };
            without.push(Bytes::copy_from_slice(chunk), &mut take).unwrap();
        }
        assert_eq!(passed.len() + all_dropped, bytes.len(), "etcd gets its window back");
        passed
    }

    #[test]
    fn a_stopped_watch_says_no_more_and_the_others_all_however_it_is_cut() {
        let ids = [0, 1, 7, 1 << 40, -1, 7, 0, 1, 3, 7];
        let messages: Vec<Vec<u8>> =
            ids.iter().enumerate().map(|(n, id)| message(*id, n * n * 40)).collect();
        for stopped in [vec![7], vec![0], vec![-1, 1], vec![99]] {
            let expected: Vec<u8> = ids
                .iter()
                .zip(&messages)
                .filter(|(id, _)| !stopped.contains(*id))
                .flat_map(|(_, message)| message.clone())
                .collect();
            for chunk_bytes in [1, 2, 5, 6, 63, 64, 65, 1000, 1 << 20] {
                let mut without = WithoutWatches::from_here(MessagePosition::Between);
                stopped.iter().for_each(|id| without.add(*id));
                let passed = pass(&mut without, &messages.concat(), chunk_bytes);
                assert!(passed == expected, "{stopped:?} in chunks of {chunk_bytes}");
                assert!(without.is_between_messages());
            }
        }
    }

    #[test]
    fn a_message_that_has_begun_to_pass_is_passed_to_its_end() {
        let messages = [message(7, 300), message(7, 5), message(1, 5)].concat();
        let whole = message(7, 300).len();
        for begun in 1..whole {
            let mut scan = StreamScan::default();
            scan.push(&messages[..begun], |_| ());
            let mut without = WithoutWatches::from_here(scan.position());
            without.add(7);
            let passed = pass(&mut without, &messages[begun..], 11);
            let expected = [&messages[begun..whole], &message(1, 5)].concat();
            assert!(passed == expected, "begun with {begun}");
        }
    }

    #[test]
    fn what_is_no_watch_response_does_not_pass() {
        let check = |body: &[u8]| {
            let mut bytes = vec![0, 0, 0, 0, u8::try_from(body.len()).unwrap()];
            bytes.extend_from_slice(body);
            let mut without = WithoutWatches::from_here(MessagePosition::Between);
            let mut passed = Vec::new();
            let pushed = without.push(Bytes::from(bytes), &mut |piece| passed.push(piece));
            assert_eq!(pushed, Err(Unreadable), "{body:?}");
            assert_eq!(passed, []);
        };
        check(&[0x08, 1]);
        check(&[0x0a, 200, 1, 2]);
        check(&[0x10, 0x80]);
        check(&[0x10, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]);
    }

    #[test]
    fn an_empty_message_is_of_watch_0() {
        let mut without = WithoutWatches::from_here(MessagePosition::Between);
        assert_eq!(pass(&mut without, &[0; 10], 3), [0; 10]);
        without.add(0);
        assert!(pass(&mut without, &[0; 10], 3).is_empty());
    }
}
