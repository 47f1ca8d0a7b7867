//! Reads the few facts of a reply that the audit log wants, while the bytes pass by: the store's
//! revision and the count. It keeps no bytes, changes none, and a reply it cannot follow has no
//! facts; nothing is decided on them.

mod scan;
mod without;

pub use without::{Piece, Unreadable, WithoutWatches};

use scan::{Found, Scan};

use super::catalog::{Rpc, Shape};

/// What a reply says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseFacts {
    /// `header.revision`.
    pub revision: Option<i64>,
    /// Keys in the range (Range), keys deleted (DeleteRange).
    pub count: Option<i64>,
    /// Whether the compares held (Txn).
    pub succeeded: Option<bool>,
}

/// Field 3 of the header (rpc.proto).
const REVISION_FIELD: u64 = 3;

/// Reads the facts of a unary reply, chunk by chunk.
#[derive(Debug)]
pub struct ResponseScan {
    number_field: Option<u64>,
    is_txn: bool,
    /// `None` when the reply has no header, or has been read.
    scan: Option<Scan>,
    facts: ResponseFacts,
}

impl ResponseScan {
    /// A scan for the reply of that RPC.
    #[must_use]
    pub fn new(rpc: Rpc) -> Self {
        let number_field = if rpc == Rpc::Range {
            Some(4)
        } else if matches!(rpc, Rpc::DeleteRange | Rpc::Txn) {
            Some(2)
        } else {
            None
        };
        let has_header =
            rpc.entry().shape == Shape::Unary && !matches!(rpc, Rpc::HealthCheck | Rpc::HealthList);
        Self {
            number_field,
            is_txn: rpc == Rpc::Txn,
            scan: has_header.then(Scan::default),
            facts: ResponseFacts::default(),
        }
    }

    /// Takes the next bytes of the reply.
    pub fn push(&mut self, chunk: &[u8]) {
        let Some(scan) = &mut self.scan else { return };
        let (facts, mut ended) = (&mut self.facts, false);
        scan.push(chunk, &mut |found| match found {
            // A unary reply is one message; what comes behind it in the same chunk says nothing of it.
            _ if ended => {}
            Found::Header { field: REVISION_FIELD, value } => {
                facts.revision = Some(value.cast_signed());
            }
            Found::Number { field, value } if Some(field) == self.number_field => {
                if self.is_txn {
                    facts.succeeded = Some(value != 0);
                } else {
                    facts.count = Some(value.cast_signed());
                }
            }
            Found::Header { .. } | Found::Number { .. } => {}
            Found::MessageEnd => ended = true,
        });
        if ended {
            self.scan = None;
        }
    }

    /// What has been read so far.
    #[must_use]
    pub const fn facts(&self) -> ResponseFacts {
        self.facts
    }
}

/// What one message of a watch or keep-alive stream says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageFacts {
    /// The header.
    pub header: Header,
    /// `watch_id` of a watch, `ID` of a lease.
    pub id: i64,
    /// It answers a create (Watch).
    pub created: bool,
    /// The watch is over (Watch).
    pub canceled: bool,
}

/// A response's header: which member answered, and when by the store's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The cluster's ID.
    pub cluster_id: u64,
    /// The member's ID.
    pub member_id: u64,
    /// The store's revision.
    pub revision: i64,
    /// The term of the leadership.
    pub raft_term: u64,
}

/// Where a stream of messages stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessagePosition {
    /// Between two messages.
    Between,
    /// In a message's prefix: how many of its bytes have come, and the length as far as they say it.
    Prefix(u8, u32),
    /// In a message, of which so many bytes are to come.
    Message(u64),
}

/// Reads the facts of each message of a stream, chunk by chunk.
#[derive(Debug, Default)]
pub struct StreamScan {
    scan: Scan,
    facts: MessageFacts,
}

impl StreamScan {
    /// Takes the next bytes; tells the facts of each message that ends in them.
    pub fn push(&mut self, chunk: &[u8], mut ended: impl FnMut(MessageFacts)) {
        let facts = &mut self.facts;
        self.scan.push(chunk, &mut |found| match found {
            Found::Header { field: 1, value } => facts.header.cluster_id = value,
            Found::Header { field: 2, value } => facts.header.member_id = value,
            Found::Header { field: REVISION_FIELD, value } => {
                facts.header.revision = value.cast_signed();
            }
            Found::Header { field: 4, value } => facts.header.raft_term = value,
            Found::Number { field: 2, value } => facts.id = value.cast_signed(),
            Found::Number { field: 3, value } => facts.created = value != 0,
            Found::Number { field: 4, value } => facts.canceled = value != 0,
            Found::Header { .. } | Found::Number { .. } => {}
            Found::MessageEnd => ended(std::mem::take(facts)),
        });
    }

    /// Where the stream stands.
    #[must_use]
    pub const fn position(&self) -> MessagePosition {
        self.scan.position()
    }

    /// Whether a message of our own may be put in here.
    #[must_use]
    pub const fn is_between_messages(&self) -> bool {
        self.scan.is_between_messages()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::etcd::pb::etcdserverpb::WatchResponse;
    use crate::etcd::pb::etcdserverpb::{
        DeleteRangeResponse, RangeResponse, ResponseHeader, TxnResponse,
    };
    use crate::etcd::pb::mvccpb::{Event, KeyValue};

    fn framed(message: &impl Message) -> Vec<u8> {
        let body = message.encode_to_vec();
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn check(rpc: Rpc, message: &impl Message, expected: ResponseFacts) {
        let bytes = framed(message);
        for chunk_bytes in [1, 2, 3, 7, bytes.len()] {
            let mut scan = ResponseScan::new(rpc);
            for chunk in bytes.chunks(chunk_bytes) {
                scan.push(chunk);
            }
            assert_eq!(scan.facts(), expected, "in chunks of {chunk_bytes}");
        }
    }

    fn header() -> Option<ResponseHeader> {
        Some(ResponseHeader { cluster_id: 9, member_id: 8, revision: 1234, raft_term: 7 })
    }

    #[test]
    fn the_facts_are_found_however_the_reply_is_cut() {
        let kvs =
            vec![KeyValue { key: "k".into(), value: vec![3; 300].into(), ..Default::default() }];
        let range = RangeResponse { header: header(), kvs, more: true, count: 5_000_000 };
        let facts = ResponseFacts { revision: Some(1234), count: Some(5_000_000), succeeded: None };
        check(Rpc::Range, &range, facts);

        let deleted = DeleteRangeResponse { header: header(), deleted: 3, prev_kvs: vec![] };
        let facts = ResponseFacts { revision: Some(1234), count: Some(3), succeeded: None };
        check(Rpc::DeleteRange, &deleted, facts);

        let txn = TxnResponse { header: header(), succeeded: true, responses: vec![] };
        let facts = ResponseFacts { revision: Some(1234), count: None, succeeded: Some(true) };
        check(Rpc::Txn, &txn, facts);

        check(
            Rpc::Put,
            &TxnResponse { header: header(), ..Default::default() },
            ResponseFacts { revision: Some(1234), ..Default::default() },
        );
    }

    #[test]
    fn a_header_last_or_absent_is_no_trouble() {
        check(Rpc::Range, &RangeResponse::default(), ResponseFacts::default());
        let mut scan = ResponseScan::new(Rpc::Range);
        scan.push(&[
            0, 0, 0, 0, 9, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ]);
        assert_eq!(scan.facts(), ResponseFacts::default());
    }

    #[test]
    fn a_second_message_behind_a_unary_reply_changes_no_facts() {
        let first = DeleteRangeResponse { header: header(), deleted: 3, prev_kvs: vec![] };
        let second = DeleteRangeResponse { header: None, deleted: 9, prev_kvs: vec![] };
        let bytes = [framed(&first), framed(&second)].concat();
        let expected = ResponseFacts { revision: Some(1234), count: Some(3), succeeded: None };
        for chunk_bytes in [1, 7, bytes.len()] {
            let mut scan = ResponseScan::new(Rpc::DeleteRange);
            bytes.chunks(chunk_bytes).for_each(|chunk| scan.push(chunk));
            assert_eq!(scan.facts(), expected, "in chunks of {chunk_bytes}");
        }
    }

    #[test]
    fn every_message_of_a_stream_is_told_however_it_is_cut() {
        let kv = KeyValue { key: "k".into(), value: vec![7; 500].into(), ..Default::default() };
        let events = vec![Event { kv: Some(kv), ..Default::default() }; 3];
        let header = header();
        let created = WatchResponse { header, watch_id: 5, created: true, ..Default::default() };
        let denied = WatchResponse {
            watch_id: -1,
            created: true,
            canceled: true,
            cancel_reason: "\u{1}\u{2} no".to_owned(),
            ..Default::default()
        };
        let events = WatchResponse { header, watch_id: 5, events, ..Default::default() };
        let empty = WatchResponse::default();
        let messages = [&created, &denied, &events, &empty, &created];
        let bytes: Vec<u8> = messages.into_iter().flat_map(framed).collect();
        let known = Header { cluster_id: 9, member_id: 8, revision: 1234, raft_term: 7 };
        let of = |header, id, created, canceled| MessageFacts { header, id, created, canceled };
        let expected = [
            of(known, 5, true, false),
            of(Header::default(), -1, true, true),
            of(known, 5, false, false),
            MessageFacts::default(),
            of(known, 5, true, false),
        ];
        for chunk_bytes in [1, 2, 3, 7, 64, bytes.len()] {
            let (mut scan, mut told) = (StreamScan::default(), Vec::new());
            for chunk in bytes.chunks(chunk_bytes) {
                scan.push(chunk, |facts| told.push(facts));
            }
            assert_eq!(told, expected, "in chunks of {chunk_bytes}");
            assert!(scan.is_between_messages());
        }
    }
}
