//! The table in docs/authorization.md that says what each field of each request needs, held to the
//! program: every RPC of the catalog and every field of its request stands there exactly once, and a
//! request in which that field is set needs the verbs that are said.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test fails by panicking; helpers of tests are no #[test] themselves"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use bytes::Bytes;
use prost::Message as _;
use prost::encoding::{encode_key, encode_varint};
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use ringfence::etcd::{CanonicalRequest, KeyVerb, Rpc, StoreVerb, Touch};

/// The messages of the protocol by full name, and the request of each path.
struct Protocol {
    messages: BTreeMap<String, DescriptorProto>,
    requests: BTreeMap<String, String>,
}

impl Protocol {
    fn read() -> Self {
        let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
        let set = FileDescriptorSet::decode(&bytes[..]).unwrap();
        let mut protocol = Self { messages: BTreeMap::new(), requests: BTreeMap::new() };
        for file in &set.file {
            let package = file.package();
            for message in &file.message_type {
                let name = format!("{package}.{}", message.name());
                protocol.messages.insert(name, message.clone());
            }
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{package}.{}/{}", service.name(), method.name());
                    let request = method.input_type().trim_start_matches('.').to_owned();
                    protocol.requests.insert(path, request);
                }
            }
        }
        protocol
    }

    fn request(&self, rpc: Rpc) -> &DescriptorProto {
        &self.messages[&self.requests[rpc.path()]]
    }

    /// What the field holds, when that is a message with fields that are told one by one. A request
    /// within a request is not: it needs what it needs as a call of its own.
    fn told_apart(&self, field: &FieldDescriptorProto) -> Option<&DescriptorProto> {
        let name = field.type_name().trim_start_matches('.');
        let is_request = self.requests.values().any(|request| request == name);
        self.messages.get(name).filter(|message| !is_request && !message.field.is_empty())
    }

    /// The path of every field, through the messages within.
    fn fields(&self, message: &DescriptorProto) -> Vec<String> {
        let within = |field: &FieldDescriptorProto| match self.told_apart(field) {
            None => vec![field.name().to_owned()],
            Some(inner) => {
                let inner = self.fields(inner).into_iter();
                inner.map(|path| format!("{}.{path}", field.name())).collect()
            }
        };
        message.field.iter().flat_map(within).collect()
    }

    /// A message in which exactly the fields of these paths are set.
    fn encode(&self, message: &DescriptorProto, paths: &[(&str, u64)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for field in &message.field {
            let mut inner = Vec::new();
            for (path, number) in paths {
                let (first, rest) = path.split_once('.').unwrap_or((path, ""));
                if first == field.name() {
                    inner.push((rest, *number));
                }
            }
            if inner.is_empty() {
                continue;
            }
            let value = match self.told_apart(field) {
                Some(within) => self.encode(within, &inner),
                None => self.value(field),
            };
            let tag = u32::try_from(field.number()).unwrap();
            if matches!(field.r#type(), Type::Bytes | Type::String | Type::Message) {
                encode_key(tag, prost::encoding::WireType::LengthDelimited, &mut bytes);
                encode_varint(value.len() as u64, &mut bytes);
                bytes.extend(value);
            } else {
                encode_key(tag, prost::encoding::WireType::Varint, &mut bytes);
                encode_varint(inner[0].1, &mut bytes);
            }
        }
        bytes
    }

    /// A value for a field that is no number: a range ends after the key with which it begins.
    fn value(&self, field: &FieldDescriptorProto) -> Vec<u8> {
        let message = self.messages.get(field.type_name().trim_start_matches('.'));
        match (message, field.name()) {
            (None, "range_end") => b"z".to_vec(),
            (None, _) => b"k".to_vec(),
            (Some(inner), "request_txn") => self.encode(inner, &[("compare.key", 1)]),
            (Some(inner), _) if inner.field.is_empty() => Vec::new(),
            (Some(inner), _) => self.encode(inner, &[("key", 1)]),
        }
    }

    /// The verbs that a request with these fields needs.
    fn verbs(&self, rpc: Rpc, paths: &[(&str, u64)]) -> BTreeSet<&'static str> {
        let bytes = Bytes::from(self.encode(self.request(rpc), paths));
        let request = CanonicalRequest::read(rpc, &bytes, &mut || 1 << 40);
        let request = request.unwrap_or_else(|error| panic!("{rpc:?} with {paths:?}: {error}"));
        request.touches().iter().filter_map(verb).collect()
    }
}

fn verb(touch: &Touch) -> Option<&'static str> {
    match touch {
        Touch::Key { verb, .. } => Some(verb.name()),
        Touch::Store(verb) => Some(verb.name()),
        Touch::Lease { .. } => Some(StoreVerb::Lease.name()),
        Touch::CancelWatch(_) | Touch::WatchProgress => None,
    }
}

/// The fields without which that field means nothing, or no request.
fn companions(rpc: Rpc, field: &str) -> Vec<(&'static str, u64)> {
    let parent = field.rsplit_once('.').map_or("", |(parent, _)| parent);
    let target = |number| vec![("compare.key", 1), ("compare.target", number)];
    match (rpc, parent) {
        (Rpc::Range | Rpc::RangeStream | Rpc::Put | Rpc::DeleteRange, _) => vec![("key", 1)],
        (Rpc::Txn, "compare") => match field {
            "compare.create_revision" => target(1),
            "compare.mod_revision" => target(2),
            "compare.value" => target(3),
            "compare.lease" => target(4),
            _ => vec![("compare.key", 1)],
        },
        (Rpc::Watch, "create_request") => vec![("create_request.key", 1)],
        (Rpc::Proclaim | Rpc::Resign, _) => vec![("leader.key", 1)],
        (Rpc::Lock | Rpc::Campaign, _) => vec![("name", 1)],
        (Rpc::LeaseGrant, _) => vec![("TTL", 1)],
        (Rpc::LeaseTimeToLive, _) => vec![("ID", 1)],
        _ => Vec::new(),
    }
}

/// One row: which RPCs, which fields of theirs, and the verbs that these add.
struct Row {
    rpcs: Vec<Rpc>,
    fields: Vec<String>,
    adds: BTreeSet<String>,
}

/// What stands between backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn table() -> Vec<Row> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/authorization.md");
    let text = fs::read_to_string(file).unwrap();
    let behind = text.split("\n| RPC | field | adds | why |\n").nth(1).unwrap();
    let lines = behind.lines().skip(1).take_while(|line| line.starts_with('|'));
    lines.map(row).collect()
}

fn row(line: &str) -> Row {
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    let [_, rpcs, fields, adds, _, _] = cells[..] else { panic!("no four cells: {line}") };
    let service = rpcs.split(" of ").nth(1).and_then(|service| code(service).next());
    let rpcs = code(rpcs.split(" of ").next().unwrap()).map(|name| named(name, service)).collect();
    let known =
        |name: &&str| KeyVerb::from_name(name).is_some() || StoreVerb::from_name(name).is_some();
    // What is needed later, or in another case, is said behind one of these.
    let first = ["; then", ", instead of", ", or "];
    let adds = first.iter().fold(adds, |adds, word| adds.split(word).next().unwrap());
    let adds = if adds.starts_with("nothing") { "" } else { adds };
    Row {
        rpcs,
        fields: code(fields).map(str::to_owned).collect(),
        adds: code(adds).filter(known).map(str::to_owned).collect(),
    }
}

/// The RPC of that name; `Watch` is etcd's own unless another service is named.
fn named(name: &str, service: Option<&str>) -> Rpc {
    const HEALTH: &str = "grpc.health.v1.Health";
    let fits = |rpc: &&Rpc| {
        let (of, method) = rpc.path()[1..].split_once('/').unwrap();
        method == name && service.map_or(of != HEALTH, |service| of == service)
    };
    *Rpc::ALL.iter().find(fits).unwrap_or_else(|| panic!("no RPC `{name}`"))
}

#[test]
fn every_field_of_every_request_stands_in_the_table_once() {
    let protocol = Protocol::read();
    let mut told = Vec::new();
    for row in table() {
        for rpc in &row.rpcs {
            if row.fields.is_empty() {
                told.push((*rpc, String::new()));
            }
            told.extend(row.fields.iter().map(|field| (*rpc, field.clone())));
        }
    }
    told.sort();
    let mut expected = Vec::new();
    for rpc in Rpc::ALL {
        let fields = protocol.fields(protocol.request(*rpc));
        if fields.is_empty() {
            expected.push((*rpc, String::new()));
        }
        expected.extend(fields.into_iter().map(|field| (*rpc, field)));
    }
    expected.sort();
    assert!(expected.len() > 100, "the descriptors are found");
    assert_eq!(told, expected);
}

#[test]
fn every_field_adds_the_verbs_that_the_table_says() {
    let protocol = Protocol::read();
    for row in table() {
        for rpc in &row.rpcs {
            if row.fields.is_empty() {
                let verbs = protocol.verbs(*rpc, &[]);
                assert_eq!(texts(&verbs), row.adds, "{rpc:?}");
            }
            for field in &row.fields {
                let companions = companions(*rpc, field);
                let needs_none =
                    companions.is_empty() || companions.iter().any(|(path, _)| path == field);
                let before =
                    if needs_none { BTreeSet::new() } else { protocol.verbs(*rpc, &companions) };
                let mut with = companions;
                with.retain(|(path, _)| path != field);
                with.push((field, 1));
                let after = protocol.verbs(*rpc, &with);
                let added = after.difference(&before).copied().collect();
                assert_eq!(texts(&added), row.adds, "{rpc:?} {field}");
            }
        }
    }
}

fn texts(verbs: &BTreeSet<&'static str>) -> BTreeSet<String> {
    verbs.iter().map(|verb| (*verb).to_owned()).collect()
}
