//! Malformed requests, and that what was read is what is sent.

use proptest::prelude::*;

use super::*;
use crate::etcd::pb::etcdserverpb::{Compare, RequestOp, compare, request_op};
use crate::etcd::range::RangeError;
use crate::etcd::wire::Fault;

fn read(rpc: Rpc, bytes: &[u8]) -> Result<CanonicalRequest, Malformed> {
    CanonicalRequest::read(rpc, &Bytes::copy_from_slice(bytes), &mut || 0)
}

/// What is sent upstream for these bytes, or why nothing is.
fn check(rpc: Rpc, bytes: &[u8], expected: Result<&[u8], &str>) {
    let sent = read(rpc, bytes).map(|request| request.body().to_vec());
    let expected = expected.map(<[u8]>::to_vec).map_err(str::to_owned);
    let shown = bytes.get(..64).unwrap_or(bytes);
    assert_eq!(sent.map_err(|error| error.to_string()), expected, "{shown:x?}");
}

#[test]
fn malformed_shapes_are_refused_or_reencoded_as_decided() {
    use Rpc::{Range, Txn};
    // 8: an empty range_end never travels on
    check(Range, b"\x0a\x04/a/x\x12\x00", Ok(b"\x0a\x04/a/x"));
    // 9, 10: nor inside an operation or a compare of a transaction
    check(Txn, b"\x12\x07\x0a\x05\x0a\x01k\x12\x00", Ok(b"\x12\x05\x0a\x03\x0a\x01k"));
    check(Txn, b"\x0a\x08\x1a\x01k\x20\x00\x82\x04\x00", Ok(b"\x0a\x05\x1a\x01k\x20\x00"));
    // fields out of order, defaults written out
    check(Range, b"\x12\x02/b\x0a\x02/a\x18\x00", Ok(b"\x0a\x02/a\x12\x02/b"));
    // 46, 47, 48: operations that decoders merge or replace
    let refused =
        "ringfence: etcdserverpb.RequestOp.request_range sets a oneof that is already set";
    check(Txn, b"\x12\x0c\x0a\x05\x0a\x01a\x48\x01\x0a\x03\x0a\x01a", Err(refused));
    // 119 to 121
    check(
        Range,
        b"\x08\x01\x0a\x01a",
        Err("ringfence: etcdserverpb.RangeRequest.key has a wrong wire type"),
    );
    check(
        Range,
        b"\x0a\x01a\x8a\x80\x80\x80\x80\x01\x01b",
        Err("ringfence: etcdserverpb.RangeRequest has no field 4294967297"),
    );
    check(
        Range,
        b"\x0a\x01a\xa2\x06\x00",
        Err("ringfence: etcdserverpb.RangeRequest has no field 100"),
    );
}

#[test]
fn requests_that_etcd_would_not_run_are_refused_with_its_words() {
    use Rpc::{Range, Txn};
    // 13, 11, 12, 23, 45
    check(Range, b"", Err("etcdserver: key is not provided"));
    check(Range, b"\x0a\x01b\x12\x01b", Err("ringfence: range_end is not after key"));
    check(Range, b"\x0a\x01b\x12\x01a", Err("ringfence: range_end is not after key"));
    check(Range, b"\x0a\x01b\x28\x63", Err("etcdserver: invalid sort option"));
    check(Txn, b"\x12\x00", Err("etcdserver: key not found"));
    // 50: target VALUE with a mod_revision, and enum numbers nobody knows
    check(
        Txn,
        b"\x0a\x07\x10\x03\x1a\x01k\x30\x01",
        Err("ringfence: compare target and target_union disagree"),
    );
    check(Txn, b"\x0a\x05\x08\x09\x1a\x01k", Err("ringfence: compare has an unknown result"));
    check(Txn, b"\x0a\x05\x10\x09\x1a\x01k", Err("ringfence: compare has an unknown target"));
}

#[test]
fn a_refusal_names_the_shape() {
    let error = read(Rpc::Range, b"\x0a\x01a\x0a\x01b").unwrap_err();
    let Malformed::Wire(wire) = error else { panic!("{error:?}") };
    assert_eq!(wire.fault, Fault::SetTwice("key"));
    let error = read(Rpc::Range, b"").unwrap_err();
    assert_eq!(error, Malformed::Request(InvalidRequest::Range(RangeError::EmptyKey)));
}

/// The attack: a million empty compares, deep inside. Decoding and encoding them took a core a second.
#[test]
fn a_transaction_of_a_million_nothings_is_refused_before_it_is_built() {
    let mut body = [0x0a, 0].repeat(1_000_000);
    for _ in 0..48 {
        for tag in [0x22, 0x12] {
            let mut outer = vec![tag];
            prost::encoding::encode_varint(body.len() as u64, &mut outer);
            outer.extend(body);
            body = outer;
        }
    }
    let refused = "ringfence: etcdserverpb.TxnRequest has too many parts";
    check(Rpc::Txn, &body, Err(refused));
    let urls = [0x0a, 0].repeat(1_000_000);
    let refused = "ringfence: etcdserverpb.MemberAddRequest has too many parts";
    check(Rpc::MemberAdd, &urls, Err(refused));
}

fn bytes_field() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(prop_oneof![Just(0_u8), Just(b'a'), Just(b'b'), Just(0xff)], 0..4)
        .prop_map(Bytes::from)
}

fn range_request() -> impl Strategy<Value = RangeRequest> {
    (bytes_field(), bytes_field(), any::<i64>(), 0..4_i32, any::<bool>()).prop_map(
        |(key, range_end, limit, sort_order, keys_only)| RangeRequest {
            key,
            range_end,
            limit,
            sort_order,
            keys_only,
            ..Default::default()
        },
    )
}

fn request_op() -> BoxedStrategy<RequestOp> {
    let put = (bytes_field(), bytes_field(), any::<bool>())
        .prop_map(|(key, value, prev_kv)| PutRequest { key, value, prev_kv, ..Default::default() });
    let delete = (bytes_field(), bytes_field(), any::<bool>())
        .prop_map(|(key, range_end, prev_kv)| DeleteRangeRequest { key, range_end, prev_kv });
    let leaf = prop_oneof![
        range_request().prop_map(request_op::Request::RequestRange),
        put.prop_map(request_op::Request::RequestPut),
        delete.prop_map(request_op::Request::RequestDeleteRange),
    ]
    .prop_map(|request| RequestOp { request: Some(request) });
    leaf.prop_recursive(4, 24, 4, |inner| {
        txn_of(inner)
            .prop_map(|txn| RequestOp { request: Some(request_op::Request::RequestTxn(txn)) })
    })
    .boxed()
}

fn txn_of(operation: BoxedStrategy<RequestOp>) -> impl Strategy<Value = TxnRequest> {
    let compare = (bytes_field(), bytes_field()).prop_map(|(key, range_end)| Compare {
        key,
        range_end,
        target_union: Some(compare::TargetUnion::Version(1)),
        ..Default::default()
    });
    (
        proptest::collection::vec(compare, 0..3),
        proptest::collection::vec(operation.clone(), 0..3),
        proptest::collection::vec(operation, 0..3),
    )
        .prop_map(|(compare, success, failure)| TxnRequest { compare, success, failure })
}

proptest! {
    #[test]
    fn what_was_read_is_what_is_sent(txn in txn_of(request_op())) {
        let bytes = Bytes::from(txn.encode_to_vec());
        if let Ok(request) = read(Rpc::Txn, &bytes) {
            prop_assert_eq!(request.body(), &bytes);
            let again = read(Rpc::Txn, request.body()).unwrap();
            prop_assert_eq!(again, request);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_what_passes_is_canonical(
        bytes in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
                for rpc in Rpc::ALL {
            if let Ok(request) = read(*rpc, &bytes) {
                let again = read(*rpc, request.body()).unwrap();
                prop_assert_eq!(again.body(), request.body());
                prop_assert_eq!(again.touches(), request.touches());
            }
        }
    }

    /// The walker finds what it should: a valid message with one byte changed either reads as a
    /// request that encodes to itself, or is refused.
    #[test]
    fn a_changed_byte_is_never_passed_on_unread(
        request in range_request(), position in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = request.encode_to_vec();
        if bytes.is_empty() { return Ok(()); }
        let index = position.index(bytes.len());
        bytes[index] = byte;
        if let Ok(request) = read(Rpc::Range, &bytes) {
            let decoded = RangeRequest::decode(request.body().clone()).unwrap();
            prop_assert_eq!(decoded.encode_to_vec(), request.body().to_vec());
        }
    }
}

/// A request read as another RPC's message would be decided on as something that it is not.
#[test]
fn every_rpc_is_read_as_the_message_that_its_description_names() {
    let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
    let set = prost_types::FileDescriptorSet::decode(&bytes[..]).unwrap();
    let mut described = std::collections::BTreeMap::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                described.insert(path, method.input_type().trim_start_matches('.').to_owned());
            }
        }
    }
    let table = messages::table();
    assert!(table.len() > 30, "{} RPCs", table.len());
    for (rpc, message) in table {
        assert_eq!(described[rpc.path()], message, "{rpc:?}");
    }
}
