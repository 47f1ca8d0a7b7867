//! What requests touch, at every depth and with every field that reveals more.

use super::*;
use crate::etcd::range::StoredKey;

fn point(verb: KeyVerb, key: &'static str) -> Touch {
    Touch::Key { verb, range: KeyRange::point(StoredKey::new(key)) }
}

fn check_txn(request: &TxnRequest, expected: Result<&[Touch], InvalidRequest>) {
    let mut touches = Touches::new();
    let result = txn(request, &mut touches).map(|()| touches.to_vec());
    assert_eq!(result, expected.map(<[Touch]>::to_vec));
}

fn op(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn put_of(key: &'static str) -> PutRequest {
    PutRequest { key: key.into(), ..Default::default() }
}

#[test]
fn a_put_needs_more_for_what_it_reveals() {
    let reveals = [
        PutRequest { prev_kv: true, ..put_of("k") },
        PutRequest { ignore_value: true, ..put_of("k") },
        PutRequest { ignore_lease: true, ..put_of("k") },
    ];
    for request in reveals {
        let mut touches = Touches::new();
        put(&request, &mut touches).unwrap();
        assert_eq!(touches.to_vec(), [point(KeyVerb::Get, "k"), point(KeyVerb::Put, "k")]);
    }
    let mut touches = Touches::new();
    put(&PutRequest { lease: 7, ..put_of("k") }, &mut touches).unwrap();
    let attach = Touch::Lease { usage: LeaseUse::Attach, lease: 7 };
    let expected = [point(KeyVerb::Put, "k"), point(KeyVerb::Delete, "k"), attach];
    assert_eq!(touches.to_vec(), expected);
}

#[test]
fn counting_and_listing_keys_is_reading() {
    let plain = RangeRequest { key: "a".into(), range_end: "b".into(), ..Default::default() };
    for request in [
        plain.clone(),
        RangeRequest { count_only: true, ..plain.clone() },
        RangeRequest { keys_only: true, ..plain },
    ] {
        let mut touches = Touches::new();
        range(&request, &mut touches).unwrap();
        let range = KeyRange::between(b"a", Some(b"b")).unwrap();
        assert_eq!(touches.to_vec(), [Touch::Key { verb: KeyVerb::List, range }]);
    }
}

#[test]
fn both_branches_count_at_every_depth() {
    let inner = TxnRequest {
        compare: vec![Compare { key: "c2".into(), ..Default::default() }],
        success: vec![],
        failure: vec![op(request_op::Request::RequestPut(put_of("f2")))],
    };
    let outer = TxnRequest {
        compare: vec![Compare { key: "c1".into(), ..Default::default() }],
        success: vec![op(request_op::Request::RequestPut(PutRequest {
            prev_kv: true,
            ..put_of("s1")
        }))],
        failure: vec![op(request_op::Request::RequestTxn(inner))],
    };
    check_txn(
        &outer,
        Ok(&[
            point(KeyVerb::Get, "c1"),
            point(KeyVerb::Get, "s1"),
            point(KeyVerb::Put, "s1"),
            point(KeyVerb::Get, "c2"),
            point(KeyVerb::Put, "f2"),
        ]),
    );
}

#[test]
fn operations_are_bounded_as_in_etcd_and_in_all() {
    let puts = |count: usize| vec![op(request_op::Request::RequestPut(put_of("k"))); count];
    let flat = |count| TxnRequest { success: puts(count), ..Default::default() };
    let mut touches = Touches::new();
    assert_eq!(txn(&flat(128), &mut touches), Ok(()));
    check_txn(&flat(129), Err(InvalidRequest::TooManyOperations));
    let nest = |count: usize, txn: TxnRequest| TxnRequest {
        success: vec![op(request_op::Request::RequestTxn(txn)); count],
        ..Default::default()
    };
    check_txn(&nest(64, flat(65)), Err(InvalidRequest::TooManyOperations));
    // 40 * 40 * 48 operations stay within 128 along each path, but not within what is recorded
    check_txn(&nest(40, nest(40, flat(48))), Err(InvalidRequest::TooManyOperations));
}

#[test]
fn what_ends_etcd_is_refused() {
    let everything = DeleteRangeRequest {
        key: "k".into(),
        range_end: Bytes::from_static(b"\0"),
        prev_kv: false,
    };
    let operations = vec![
        op(request_op::Request::RequestDeleteRange(everything)),
        op(request_op::Request::RequestPut(PutRequest { ignore_value: true, ..put_of("k") })),
    ];
    let txn = TxnRequest { failure: operations, ..Default::default() };
    check_txn(&txn, Err(InvalidRequest::DuplicateKey));
}
