//! For every RPC of the catalog and every message that its description allows: what was read is what is
//! sent, and nothing of what is sent goes unseen. The messages are made from the descriptors, so a field
//! that a later etcd adds is in them without anybody thinking of it.

#![expect(clippy::wildcard_enum_match_arm, reason = "kinds of fields are protobuf's, not etcd's")]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use proptest::prelude::*;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

use super::*;
use crate::etcd::catalog::Demand;
use crate::etcd::range::RangeEnd;

/// The descriptions of all messages by full name, and the name of each RPC's request by path.
struct Described {
    messages: BTreeMap<String, DescriptorProto>,
    requests: BTreeMap<String, String>,
}

static DESCRIBED: LazyLock<Described> = LazyLock::new(|| {
    let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
    let set = FileDescriptorSet::decode(&bytes[..]).unwrap();
    let mut described = Described { messages: BTreeMap::new(), requests: BTreeMap::new() };
    for file in set.file {
        let scope = format!(".{}", file.package());
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                described.requests.insert(path, method.input_type().to_owned());
            }
        }
        for message in file.message_type {
            collect(&scope, message, &mut described.messages);
        }
    }
    described
});

fn collect(scope: &str, message: DescriptorProto, all: &mut BTreeMap<String, DescriptorProto>) {
    let name = format!("{scope}.{}", message.name());
    for nested in message.nested_type.clone() {
        collect(&name, nested, all);
    }
    all.insert(name, message);
}

fn request_of(rpc: Rpc) -> &'static DescriptorProto {
    &DESCRIBED.messages[&DESCRIBED.requests[rpc.path()]]
}

/// Bytes at random, taken one by one; behind their end come zeros.
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or_default()
    }

    /// Few bytes from a small alphabet, so that a key is at times the end of its own range.
    fn key(&mut self) -> Vec<u8> {
        let length = self.byte() % 4;
        (0..length).map(|_| [0, b'a', b'b', 0xff][usize::from(self.byte() % 4)]).collect()
    }

    /// Small numbers most of the time, each enum's among them.
    fn number(&mut self, kind: Type) -> u64 {
        let byte = self.byte();
        match kind {
            Type::Bool => u64::from(byte & 1),
            Type::Enum | Type::Uint32 => u64::from(byte % 8),
            _ if byte > 250 => u64::MAX,
            _ => u64::from(byte),
        }
    }
}

/// A message in its canonical encoding: fields in order, nothing that is zero or empty, one member of a
/// oneof at most.
fn message(described: &DescriptorProto, depth: usize, choices: &mut Choices<'_>) -> Vec<u8> {
    let mut fields: Vec<&FieldDescriptorProto> = described.field.iter().collect();
    fields.sort_by_key(|field| field.number());
    let chosen: Vec<u8> = described.oneof_decl.iter().map(|_| choices.byte()).collect();
    let mut bytes = Vec::new();
    for field in &fields {
        let mut times = match (field.label(), choices.byte()) {
            (Label::Repeated, byte) => usize::from(byte % 4),
            (_, byte) => usize::from(byte % 4 > 0),
        };
        if let Some(oneof) = field.oneof_index {
            let members = || fields.iter().filter(|other| other.oneof_index == Some(oneof));
            let choice = usize::from(chosen[usize::try_from(oneof).unwrap()]);
            let member = members().nth(choice % members().count()).unwrap();
            times = usize::from(member.number() == field.number());
        }
        let is_packed = field.label() == Label::Repeated
            && matches!(field.r#type(), Type::Enum | Type::Bool | Type::Int64 | Type::Uint64);
        let mut packed = Vec::new();
        for _ in 0..times {
            match field.r#type() {
                Type::Message if depth == 0 => {}
                Type::Message => {
                    let inner = &DESCRIBED.messages[field.type_name()];
                    put_bytes(field, &message(inner, depth - 1, choices), &mut bytes);
                }
                Type::Bytes | Type::String => {
                    let mut content = choices.key();
                    if field.r#type() == Type::String {
                        content.iter_mut().for_each(|byte| *byte &= 0x7f);
                    }
                    let may_be_empty =
                        field.oneof_index.is_some() || field.label() == Label::Repeated;
                    if may_be_empty || !content.is_empty() {
                        put_bytes(field, &content, &mut bytes);
                    }
                }
                kind => {
                    let number = choices.number(kind);
                    if is_packed {
                        prost::encoding::encode_varint(number, &mut packed);
                    } else if number != 0 || field.oneof_index.is_some() {
                        put_tag(field, 0, &mut bytes);
                        prost::encoding::encode_varint(number, &mut bytes);
                    }
                }
            }
        }
        if !packed.is_empty() {
            put_bytes(field, &packed, &mut bytes);
        }
    }
    bytes
}

fn put_tag(field: &FieldDescriptorProto, wire_type: u64, bytes: &mut Vec<u8>) {
    let number = u64::try_from(field.number()).unwrap();
    prost::encoding::encode_varint(number << 3 | wire_type, bytes);
}

fn put_bytes(field: &FieldDescriptorProto, content: &[u8], bytes: &mut Vec<u8>) {
    put_tag(field, 2, bytes);
    prost::encoding::encode_varint(content.len() as u64, bytes);
    bytes.extend(content);
}

/// The keys and leases of a message, at any depth, found by the names of its fields alone.
#[derive(Debug, Default)]
struct Named {
    ranges: Vec<(Vec<u8>, Vec<u8>)>,
    leases: Vec<i64>,
}

impl Named {
    /// A decoder that knows nothing of etcd: it believes the descriptors.
    fn find(&mut self, described: &DescriptorProto, mut bytes: &[u8]) {
        let (mut key, mut range_end, mut names_keys) = (vec![], vec![], false);
        for field in &described.field {
            names_keys |= field.name() == "key" && field.r#type() == Type::Bytes;
        }
        while !bytes.is_empty() {
            let tag = prost::encoding::decode_varint(&mut bytes).unwrap();
            let number = i32::try_from(tag >> 3).unwrap();
            let field = described.field.iter().find(|field| field.number() == number).unwrap();
            let value = prost::encoding::decode_varint(&mut bytes).unwrap();
            if tag & 7 == 0 {
                let is_lease = field.name() == "lease" && described.name() != "Compare";
                if is_lease && value != 0 {
                    self.leases.push(value.cast_signed());
                }
                continue;
            }
            let (content, rest) = bytes.split_at(usize::try_from(value).unwrap());
            bytes = rest;
            match (field.r#type(), field.name()) {
                (Type::Message, _) => self.find(&DESCRIBED.messages[field.type_name()], content),
                (Type::Bytes, "key") => key = content.to_vec(),
                (Type::Bytes, "range_end") => range_end = content.to_vec(),
                _ => {}
            }
        }
        if names_keys {
            self.ranges.push((key, range_end));
        }
    }
}

/// Whether a touch is about exactly these keys; only a watch takes an empty key, as the first there is.
fn is_about(touch: &Touch, key: &[u8], range_end: &[u8]) -> bool {
    let Touch::Key { range, .. } = touch else { return false };
    let key = if key.is_empty() { &b"\0"[..] } else { key };
    let end = match range_end {
        b"" => RangeEnd::Point,
        b"\0" => RangeEnd::Infinity,
        end => RangeEnd::Before(StoredKey::new(end.to_vec())),
    };
    range.start().as_bytes() == key && *range.end() == end
}

fn check_sent(rpc: Rpc, request: &CanonicalRequest) {
    let again = CanonicalRequest::read(rpc, request.body(), &mut || 0).unwrap();
    assert_eq!(again, *request, "{rpc:?}");
    if rpc.entry().demand != Demand::Keys {
        return;
    }
    let mut named = Named::default();
    named.find(request_of(rpc), request.body());
    for (key, range_end) in &named.ranges {
        let seen = request.touches().iter().any(|touch| is_about(touch, key, range_end));
        assert!(seen, "{rpc:?}: no touch of {key:?} to {range_end:?} in {:?}", request.touches());
    }
    for lease in &named.leases {
        let seen = request
            .touches()
            .iter()
            .any(|touch| matches!(touch, Touch::Lease { lease: touched, .. } if touched == lease));
        assert!(seen, "{rpc:?}: no touch of lease {lease} in {:?}", request.touches());
    }
}

fn read(rpc: Rpc, bytes: &[u8]) -> Result<CanonicalRequest, Malformed> {
    CanonicalRequest::read(rpc, &Bytes::copy_from_slice(bytes), &mut || 0)
}

fn rpc() -> impl Strategy<Value = Rpc> {
    // Transactions have the most to go wrong.
    prop_oneof![3 => prop::sample::select(Rpc::ALL.to_vec()), 1 => Just(Rpc::Txn)]
}

fn choices() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..400)
}

const DEPTH_MAX: usize = 7;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn whatever_an_rpc_says_is_sent_as_it_was_read(rpc in rpc(), choices in choices()) {
        let bytes = message(request_of(rpc), DEPTH_MAX, &mut Choices(choices.iter()));
        let Ok(request) = read(rpc, &bytes) else { return Ok(()) };
        prop_assert_eq!(request.body(), &bytes, "{:?}: the bytes were canonical", rpc);
        check_sent(rpc, &request);
    }

    #[test]
    fn a_message_with_changes_at_random_is_refused_or_sent_as_it_was_read(
        rpc in rpc(),
        choices in choices(),
        changes in proptest::collection::vec(
            (0..6_u8, any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..4,
        ),
    ) {
        let mut bytes = message(request_of(rpc), DEPTH_MAX, &mut Choices(choices.iter()));
        for (kind, one, other, byte) in changes {
            let (one, other) = (one.index(bytes.len() + 1), other.index(bytes.len() + 1));
            let part = bytes[one.min(other)..one.max(other)].to_vec();
            match kind {
                0 => bytes.insert(one, byte),
                1 => bytes.truncate(one),
                // A part said twice: what decoders merge, add up or replace.
                2 => bytes.extend(part),
                // Fields in another order.
                3 => bytes.rotate_left(one),
                4 if one < bytes.len() => drop(bytes.remove(one)),
                _ if one < bytes.len() => bytes[one] = byte,
                _ => {}
            }
        }
        if let Ok(request) = read(rpc, &bytes) {
            check_sent(rpc, &request);
        }
    }

    #[test]
    fn what_is_read_of_a_message_is_never_more_than_its_own_keys(choices in choices()) {
        let bytes = message(request_of(Rpc::Txn), DEPTH_MAX, &mut Choices(choices.iter()));
        let Ok(request) = read(Rpc::Txn, &bytes) else { return Ok(()) };
        let mut named = Named::default();
        named.find(request_of(Rpc::Txn), &bytes);
        for touch in request.touches() {
            let Touch::Key { range, .. } = touch else { continue };
            let asked = named.ranges.iter().any(|(key, end)| is_about(touch, key, end));
            prop_assert!(asked, "{:?}", range);
        }
    }
}

/// A generator that makes nothing but refused requests would let every property pass.
#[test]
fn most_rpcs_have_messages_that_are_read() {
    let mut unread = Vec::new();
    for rpc in Rpc::ALL {
        let reads = (0..=255_u8).any(|seed| {
            let choices: Vec<u8> =
                (0..60_u32).map(|at| (at * 97 + u32::from(seed) * 31).to_le_bytes()[0]).collect();
            let bytes = message(request_of(*rpc), DEPTH_MAX, &mut Choices(choices.iter()));
            read(*rpc, &bytes).is_ok()
        });
        unread.extend((!reads).then_some(*rpc));
    }
    assert!(unread.is_empty(), "{unread:?}");
}
