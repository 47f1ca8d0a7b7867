//! Shapes that two decoders could read differently, one by one.

use super::*;

const TXN: &str = "etcdserverpb.TxnRequest";
const RANGE: &str = "etcdserverpb.RangeRequest";
const PUT: &str = "etcdserverpb.PutRequest";

fn check(message: &'static str, bytes: &[u8], expected: Result<(), Fault>) {
    assert_eq!(walk(message, bytes).map_err(|error| error.fault), expected, "{bytes:x?}");
}

#[test]
fn plain_requests_pass() {
    check(RANGE, b"", Ok(()));
    check(RANGE, b"\x0a\x04/a/x", Ok(()));
    check(RANGE, b"\x0a\x04/a/x\x12\x00", Ok(()));
    check(RANGE, b"\x12\x01b\x0a\x01a", Ok(()));
    check(PUT, b"\x0a\x01k\x12\x01v\x18\x05\x20\x01", Ok(()));
    check(TXN, b"\x12\x07\x0a\x05\x0a\x01k\x12\x00", Ok(()));
}

#[test]
fn every_shape_that_decoders_read_differently_is_refused() {
    // one message that is harmless as read here, and another to etcd
    check(RANGE, b"\x0a\x01a\x0a\x01b", Err(Fault::SetTwice("key")));
    check(RANGE, b"\xa2\x06\x01x", Err(Fault::UnknownField(100)));
    check(RANGE, b"\x08\x01", Err(Fault::WrongWireType("key")));
    check(RANGE, b"\x1a\x01x", Err(Fault::WrongWireType("limit")));
    check(RANGE, b"\x0b\x0c", Err(Fault::WrongWireType("key")));
    check(RANGE, b"\x0c", Err(Fault::WrongWireType("key")));
    check(RANGE, b"\x02\x00", Err(Fault::UnknownField(0)));
    check(RANGE, b"\x8a\x80\x80\x80\x80\x01\x01x", Err(Fault::UnknownField(0x1_0000_0001)));
    check(RANGE, b"\x8a\x80\x00\x01x", Err(Fault::Varint));
    check(RANGE, b"\x0a\x05ab", Err(Fault::Length));
    check(RANGE, b"\x0a\x81\x00a", Err(Fault::Varint));
    check(RANGE, b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", Err(Fault::Length));
    check(RANGE, b"\x0a", Err(Fault::Length));
    check(RANGE, b"\x40\x02", Err(Fault::Varint)); // a bool of 2
    check(RANGE, b"\x28\x80\x80\x80\x80\x10", Err(Fault::Varint)); // an enum of 2^32
    check(RANGE, b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", Err(Fault::Varint));
    check("etcdserverpb.AuthRoleAddRequest", b"\x0a\x01\xff", Err(Fault::NotUtf8("name")));
    check("etcdserverpb.NoSuchRequest", b"", Err(Fault::NoShape));
}

#[test]
fn a_oneof_is_set_once() {
    let range_twice = b"\x12\x0a\x0a\x03\x0a\x01a\x0a\x03\x0a\x01b";
    check(TXN, range_twice, Err(Fault::OneofSetTwice("request_range")));
    let range_and_put = b"\x12\x0a\x0a\x03\x0a\x01a\x12\x03\x0a\x01b";
    check(TXN, range_and_put, Err(Fault::OneofSetTwice("request_put")));
}

#[test]
fn nesting_is_bounded_without_deep_recursion() {
    let mut bytes = Vec::new();
    for _ in 0..5000 {
        // RequestOp.request_txn (4) inside TxnRequest.success (2)
        let mut operation = vec![0x22];
        push_length(&mut operation, bytes.len());
        operation.extend(&bytes);
        let mut txn = vec![0x12];
        push_length(&mut txn, operation.len());
        txn.extend(&operation);
        bytes = txn;
    }
    check(TXN, &bytes, Err(Fault::TooDeep));
}

fn push_length(bytes: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        bytes.push(0x80 | length.to_le_bytes()[0]);
        length >>= 7;
    }
    bytes.push(length.to_le_bytes()[0]);
}

#[test]
fn no_message_has_a_field_number_that_the_set_of_seen_fields_cannot_hold() {
    for shape in MESSAGES {
        for field in shape.fields {
            assert!(field.number < 128, "{}.{}", shape.name, field.name);
            assert!(field.oneof.is_none_or(|index| index < 64));
        }
    }
}
