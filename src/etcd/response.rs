//! Reads the few facts of a reply that the audit log wants, while the bytes pass by: the store's
//! revision and the count. It keeps no bytes, changes none, and a reply it cannot follow has no
//! facts; nothing is decided on them.

use super::strict::ReadableRpc;

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

/// An incremental walk over one gRPC message, fed chunk by chunk.
#[derive(Debug)]
pub struct ResponseScan {
    number_field: Option<u64>,
    is_txn: bool,
    step: Step,
    /// Bytes of the header message that are still to come; `None` outside the header.
    header_left: Option<u64>,
    varint: u64,
    shift: u32,
    facts: ResponseFacts,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Bytes of the gRPC prefix that are still to come.
    Prefix(u64),
    Tag,
    /// The value of a varint field.
    Number(u64),
    /// The length of a length-delimited field.
    Length(u64),
    /// Content that is passed over.
    Skip(u64),
    /// Nothing more is read.
    Lost,
}

const GRPC_PREFIX_BYTES: u64 = 5;
/// `header` is field 1 of every response, `revision` field 3 of the header (rpc.proto).
const HEADER_FIELD: u64 = 1;
const REVISION_FIELD: u64 = 3;

impl ResponseScan {
    /// A scan for the reply of that RPC.
    #[must_use]
    pub fn new(rpc: ReadableRpc) -> Self {
        let number_field = match rpc {
            ReadableRpc::Range => Some(4),
            ReadableRpc::DeleteRange | ReadableRpc::Txn => Some(2),
            ReadableRpc::Put | ReadableRpc::Compact => None,
        };
        Self {
            number_field,
            is_txn: rpc == ReadableRpc::Txn,
            step: Step::Prefix(GRPC_PREFIX_BYTES),
            header_left: None,
            varint: 0,
            shift: 0,
            facts: ResponseFacts::default(),
        }
    }

    /// Takes the next bytes of the reply.
    pub fn push(&mut self, mut chunk: &[u8]) {
        while let Some((byte, rest)) = chunk.split_first() {
            match self.step {
                Step::Prefix(left) | Step::Skip(left) => {
                    let passed = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
                    chunk = chunk.get(passed..).unwrap_or_default();
                    self.pass(passed, left);
                }
                Step::Tag | Step::Number(_) | Step::Length(_) => {
                    chunk = rest;
                    self.count_header_bytes(1);
                    self.varint_byte(*byte);
                }
                Step::Lost => return,
            }
        }
    }

    /// What has been read so far.
    #[must_use]
    pub const fn facts(&self) -> ResponseFacts {
        self.facts
    }

    fn pass(&mut self, passed: usize, left: u64) {
        let passed = passed as u64;
        let in_prefix = matches!(self.step, Step::Prefix(_));
        if !in_prefix {
            self.count_header_bytes(passed);
        }
        let left = left.saturating_sub(passed);
        self.step = match (left, in_prefix) {
            (0, _) => Step::Tag,
            (_, true) => Step::Prefix(left),
            (_, false) => Step::Skip(left),
        };
    }

    fn count_header_bytes(&mut self, bytes: u64) {
        if let Some(left) = &mut self.header_left {
            *left = left.saturating_sub(bytes);
        }
    }

    fn varint_byte(&mut self, byte: u8) {
        if self.shift > 63 {
            self.step = Step::Lost;
            return;
        }
        self.varint |= u64::from(byte & 0x7f) << self.shift;
        self.shift += 7;
        if byte & 0x80 != 0 {
            return;
        }
        let value = std::mem::take(&mut self.varint);
        self.shift = 0;
        self.step = match self.step {
            Step::Tag => Self::step_after_tag(value),
            Step::Number(field) => {
                self.number(field, value);
                Step::Tag
            }
            Step::Length(field) => self.step_after_length(field, value),
            step @ (Step::Prefix(_) | Step::Skip(_) | Step::Lost) => step,
        };
        if self.header_left == Some(0) {
            self.header_left = None;
        }
    }

    fn step_after_tag(tag: u64) -> Step {
        match tag & 7 {
            0 => Step::Number(tag >> 3),
            1 => Step::Skip(8),
            2 => Step::Length(tag >> 3),
            5 => Step::Skip(4),
            _ => Step::Lost,
        }
    }

    fn step_after_length(&mut self, field: u64, length: u64) -> Step {
        if self.header_left.is_none() && field == HEADER_FIELD && length > 0 {
            self.header_left = Some(length);
            return Step::Tag;
        }
        if length == 0 { Step::Tag } else { Step::Skip(length) }
    }

    fn number(&mut self, field: u64, value: u64) {
        if self.header_left.is_some() {
            if field == REVISION_FIELD {
                self.facts.revision = Some(value.cast_signed());
            }
        } else if Some(field) == self.number_field {
            if self.is_txn {
                self.facts.succeeded = Some(value != 0);
            } else {
                self.facts.count = Some(value.cast_signed());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::etcd::pb::etcdserverpb::{
        DeleteRangeResponse, RangeResponse, ResponseHeader, TxnResponse,
    };
    use crate::etcd::pb::mvccpb::KeyValue;

    fn framed(message: &impl Message) -> Vec<u8> {
        let body = message.encode_to_vec();
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn check(rpc: ReadableRpc, message: &impl Message, expected: ResponseFacts) {
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
        check(ReadableRpc::Range, &range, facts);

        let deleted = DeleteRangeResponse { header: header(), deleted: 3, prev_kvs: vec![] };
        let facts = ResponseFacts { revision: Some(1234), count: Some(3), succeeded: None };
        check(ReadableRpc::DeleteRange, &deleted, facts);

        let txn = TxnResponse { header: header(), succeeded: true, responses: vec![] };
        let facts = ResponseFacts { revision: Some(1234), count: None, succeeded: Some(true) };
        check(ReadableRpc::Txn, &txn, facts);

        check(
            ReadableRpc::Put,
            &TxnResponse { header: header(), ..Default::default() },
            ResponseFacts { revision: Some(1234), ..Default::default() },
        );
    }

    #[test]
    fn a_header_last_or_absent_is_no_trouble() {
        check(ReadableRpc::Range, &RangeResponse::default(), ResponseFacts::default());
        let mut scan = ResponseScan::new(ReadableRpc::Range);
        scan.push(&[
            0, 0, 0, 0, 9, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ]);
        assert_eq!(scan.facts(), ResponseFacts::default());
    }
}
