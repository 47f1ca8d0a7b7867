//! Keys and ranges: Range, Put, DeleteRange and Txn.

use bytes::Bytes;
use ringfence::etcd::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, compare,
    request_op,
};

use crate::ground::{Case, Ground, Report, Sent, Who, bytes, play};

const RANGE: &str = "/etcdserverpb.KV/Range";
const STREAM: &str = "/etcdserverpb.KV/RangeStream";
const PUT: &str = "/etcdserverpb.KV/Put";
const DELETE: &str = "/etcdserverpb.KV/DeleteRange";
const TXN: &str = "/etcdserverpb.KV/Txn";
const DUPLICATE: &str = "etcdserver: duplicate key given in txn request";
const NO_KEY: &str = "etcdserver: key is not provided";
const NOT_AFTER: &str = "ringfence: range_end is not after key";

pub fn range(key: &[u8], end: &[u8]) -> RangeRequest {
    let copy = Bytes::copy_from_slice;
    RangeRequest { key: copy(key), range_end: copy(end), ..Default::default() }
}

pub fn put(key: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() }
}

fn delete(key: &[u8], end: &[u8]) -> DeleteRangeRequest {
    let copy = Bytes::copy_from_slice;
    DeleteRangeRequest { key: copy(key), range_end: copy(end), ..Default::default() }
}

fn does(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

pub fn puts(put: PutRequest) -> RequestOp {
    does(request_op::Request::RequestPut(put))
}

fn nested(txn: TxnRequest) -> RequestOp {
    does(request_op::Request::RequestTxn(txn))
}

fn success(operations: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success: operations, ..Default::default() }
}

/// A transaction around one that many times.
fn wrapped(inner: TxnRequest, times: usize) -> TxnRequest {
    (0..times).fold(inner, |inner, _| success(vec![nested(inner)]))
}

/// A field of bytes: its tag, its length, itself. All short.
fn field(tag: u8, value: &[u8]) -> Vec<u8> {
    [&[tag, u8::try_from(value.len()).unwrap()], value].concat()
}

pub async fn run() -> Report {
    let mut whole = Report::default();
    let report = &mut whole;
    let mut ground = Ground::start().await;
    for key in [&b"/a/x"[..], b"/b", b"\xff\xffx"] {
        let direct = crate::support::RawClient::connect_plain(ground.etcd.port()).await;
        let put = PutRequest { key: key.into(), ..put("") };
        assert_eq!(direct.unary(PUT, &put).await.grpc_status, Some(0));
    }
    ranges(&mut ground, report).await;
    range_fields(&mut ground, report).await;
    writes(&mut ground, report).await;
    transactions(&mut ground, report).await;
    ending_transactions(&mut ground, report).await;
    doubtful_transactions(&mut ground, report).await;
    ground.finish(report);
    before_an_older_etcd(report).await;
    whole
}

async fn ranges(ground: &mut Ground, report: &mut Report) {
    let case = |number, name, key: &[u8], end: &[u8]| {
        Case::new(number, name, RANGE, &bytes(&range(key, end)))
    };
    let point = bytes(&range(b"/a/x", b""));
    let empty_end = [&point[..], b"\x12\x00"].concat();
    let ends = |code| move |case: Case<'static>| case.refused(code, NOT_AFTER, "malformed");
    let inverted = ends(3);
    for case in [
        case(1, "one's own key", b"/a/x", b"").fine(),
        case(2, "another's key", b"/b", b""),
        case(3, "one's own prefix", b"/a/", b"/a0").fine(),
        case(4, "a range that ends beyond it", b"/a/", b"/a1"),
        case(5, "a range that begins before it", b"/a", b"/a0"),
        case(6, "from one's own key to the end of the store", b"/a/x", b"\0"),
        case(7, "the whole store", b"\0", b"\0"),
        Case::new(8, "a range_end that is present and empty is none", RANGE, &empty_end)
            .fine_as(&point),
        inverted(case(11, "a range that ends where it begins", b"/a/x", b"/a/x")),
        inverted(case(12, "a range that ends before it begins", b"/a/x", b"/a/b")),
        case(13, "no key at all", b"", b"").refused(3, NO_KEY, "malformed"),
        inverted(case(14, "two zero bytes are an end, and no infinity", b"/a/", b"\0\0")),
        case(15, "a range within one's own prefix", b"/a/", b"/a/\xff").fine(),
        case(16, "from the key on that a prefix of 0xff begins with", b"\xff\xff", b"\0")
            .by(Who::B)
            .fine(),
        case(16, "from a key before it on", b"\xff", b"\0").by(Who::B),
        case(17, "the prefix without its slash", b"/a", b""),
        case(18, "dots are bytes, and lead nowhere", b"/a/../b", b"").fine(),
        case(19, "zero, newline and 0xff in a key", b"/a/\0\n\xff", b"").fine(),
    ] {
        play(ground, report, case).await;
    }
}

async fn range_fields(ground: &mut Ground, report: &mut Report) {
    let other = || range(b"/b", b"");
    let counted = RangeRequest { count_only: true, ..other() };
    let names = RangeRequest { keys_only: true, ..other() };
    let old = RangeRequest { revision: 1, ..range(b"/a/", b"/a0") };
    let sorted = RangeRequest { sort_order: 99, ..range(b"/a/x", b"") };
    let compacted = Case::new(22, "history of one's own prefix", RANGE, &bytes(&old)).fine();
    for case in [
        Case::new(20, "the count of another's keys", RANGE, &bytes(&counted)),
        Case::new(21, "the names of another's keys", RANGE, &bytes(&names)),
        compacted,
        Case::new(23, "an unknown sort order", RANGE, &bytes(&sorted)).refused(
            3,
            "etcdserver: invalid sort option",
            "malformed",
        ),
        Case::new(24, "another's key in pieces", STREAM, &bytes(&other())),
        Case::new(24, "one's own prefix in pieces", STREAM, &bytes(&range(b"/a/", b"/a0"))).fine(),
        Case::new(25, "pieces to the end of the store", STREAM, &bytes(&range(b"/a/", b"\0"))),
    ] {
        play(ground, report, case).await;
    }
}

/// An etcd that does not know the RPC yet says so itself.
async fn before_an_older_etcd(report: &mut Report) {
    let mut ground = Ground::start_before("3.5").await;
    let unknown = "unknown method RangeStream for service etcdserverpb.KV";
    let own = bytes(&range(b"/a/", b"/a0"));
    let case = Case {
        verdict: (12, unknown),
        sent: Sent::Same,
        ..Case::new(24, "one's own prefix in pieces, before etcd 3.5", STREAM, &own)
    };
    play(&mut ground, report, case).await;
    let others = bytes(&range(b"/b", b""));
    play(&mut ground, report, Case::new(24, "another's, before etcd 3.5", STREAM, &others)).await;
    ground.finish(report);
}

async fn writes(ground: &mut Ground, report: &mut Report) {
    let prev = PutRequest { prev_kv: true, ..put("/a/x") };
    let ignored = PutRequest { ignore_value: true, value: Bytes::new(), ..put("/a/absent") };
    let nobodys = PutRequest { lease: i64::MAX, ..put("/a/x") };
    let negative = PutRequest { lease: -1, ..put("/a/x") };
    let large = PutRequest { value: vec![7; (2 << 20) + 1].into(), ..put("/a/x") };
    let both = PutRequest { ignore_value: true, ..put("/a/x") };
    let length = bytes(&large).len();
    let too_large = format!("grpc: received message larger than max ({length} vs. 2097152)");
    let deleted_prev = DeleteRangeRequest { prev_kv: true, ..delete(b"/a/x", b"") };
    let point = bytes(&delete(b"/a/gone", b""));
    let empty_end = [&point[..], b"\x12\x00"].concat();
    for case in [
        Case::new(26, "a put on another's key", PUT, &bytes(&put("/b"))),
        Case::new(27, "the old value, by one who may only write", PUT, &bytes(&prev)).by(Who::W),
        Case::new(28, "whether a key exists, by ignore_value", PUT, &bytes(&ignored)).by(Who::W),
        Case::new(30, "a lease that does not exist", PUT, &bytes(&nobodys)).reason("foreign_lease"),
        Case::new(31, "a negative lease", PUT, &bytes(&negative)).reason("foreign_lease"),
        Case::new(32, "a value of 2 MiB and a byte", PUT, &bytes(&large))
            .refused(8, &too_large, "frame"),
        // ringfence leaves this one to etcd: it has one meaning, and etcd refuses it.
        Case {
            verdict: (3, "etcdserver: value is provided"),
            ..Case::new(33, "a value beside ignore_value", PUT, &bytes(&both)).fine()
        }
        .reason_of_etcd(),
        Case::new(
            34,
            "a deletion that ends before it begins",
            DELETE,
            &bytes(&delete(b"/a/gone", b"/a/gond")),
        )
        .refused(3, NOT_AFTER, "malformed"),
        Case::new(
            34,
            "a part of one's own prefix deleted",
            DELETE,
            &bytes(&delete(b"/a/gone", b"/a/gonf")),
        )
        .fine(),
        Case::new(35, "the whole store deleted", DELETE, &bytes(&delete(b"\0", b"\0"))),
        Case::new(
            36,
            "the old value of a deleted key, by one who may only write",
            DELETE,
            &bytes(&deleted_prev),
        )
        .by(Who::W),
        Case::new(37, "an empty range_end deletes a single key", DELETE, &empty_end)
            .fine_as(&point),
        // `delete` is what `deleted` takes: the keys are gone by then. docs/authorization.md.
        Case::new(
            38,
            "the number of deleted keys, by one who may delete them",
            DELETE,
            &bytes(&delete(b"/a/gone", b"")),
        )
        .by(Who::W)
        .fine(),
    ] {
        play(ground, report, case).await;
    }
}

async fn transactions(ground: &mut Ground, report: &mut Report) {
    let on = |key: &str| Compare {
        key: key.to_owned().into(),
        target_union: Some(compare::TargetUnion::Version(1)),
        ..Default::default()
    };
    let compared = TxnRequest { compare: vec![on("/b")], ..Default::default() };
    let failure = TxnRequest { failure: vec![puts(put("/b"))], ..Default::default() };
    let deep = wrapped(success(vec![puts(put("/b"))]), 2);
    let never = TxnRequest {
        compare: vec![on("/a/x")],
        failure: vec![nested(success(vec![puts(put("/b"))]))],
        ..Default::default()
    };
    let from =
        |key: &str| does(request_op::Request::RequestDeleteRange(delete(key.as_bytes(), b"\0")));
    let both = success(vec![puts(put("/a/")), from("/a/x")]);
    let over = success(vec![puts(put("/a/x")), from("/a/")]);
    let foreign = success(vec![puts(PutRequest { lease: 12345, ..put("/a/x") })]);
    let prev = success(vec![puts(PutRequest { prev_kv: true, ..put("/a/x") })]);
    let many = success(
        (0..129).map(|_| does(request_op::Request::RequestRange(range(b"/a/x", b"")))).collect(),
    );
    // 20 levels of 64: amplification by nesting.
    let wide = (0..20).fold(success(vec![]), |inner, _| {
        let mut operations: Vec<_> = (0..63).map(|_| puts(put("/a/x"))).collect();
        operations.push(nested(inner));
        success(operations)
    });
    let too_many = "etcdserver: too many operations in txn request";
    for case in
        [
            Case::new(39, "a compare on another's key", TXN, &bytes(&compared)),
            Case::new(40, "a put on it in the branch of failure", TXN, &bytes(&failure)),
            Case::new(41, "a put on it two transactions down", TXN, &bytes(&deep)),
            Case::new(44, "129 operations", TXN, &bytes(&many)).refused(3, too_many, "malformed"),
            Case::new(49, "a deletion to the end of the store beside a put", TXN, &bytes(&both)),
            // A denial in the list of cases. The shape is refused first, whoever asks: see `ending`.
            Case::new(49, "the same, and the put is on a key that it deletes", TXN, &bytes(&over))
                .refused(3, DUPLICATE, "malformed"),
            Case::new(51, "a put below a branch that will not be taken", TXN, &bytes(&never)),
            Case::new(52, "thousands of operations in nested branches", TXN, &bytes(&wide))
                .refused(3, too_many, "malformed"),
            Case::new(
                53,
                "a foreign lease inside a transaction (CVE-2026-44283)",
                TXN,
                &bytes(&foreign),
            )
            .reason("foreign_lease"),
            Case::new(
                54,
                "prev_kv inside a transaction, by one who may only write",
                TXN,
                &bytes(&prev),
            )
            .by(Who::W),
        ]
    {
        play(ground, report, case).await;
    }
}

/// Whoever may write to the end of the store could end every etcd for good: each member runs the
/// transaction again at its start. etcd checks for it, but takes the end `"\0"` for a key there.
async fn ending_transactions(ground: &mut Ground, report: &mut Report) {
    let key = || Bytes::from_static(b"\xff\xffx");
    let deletes = || does(request_op::Request::RequestDeleteRange(delete(b"\xff\xff", b"\0")));
    let plain = || PutRequest { key: key(), ..put("") };
    let kept = || PutRequest { ignore_value: true, value: Bytes::new(), ..plain() };
    let lease = PutRequest { ignore_lease: true, ..plain() };
    let below = TxnRequest {
        success: vec![nested(success(vec![deletes()])), nested(success(vec![puts(kept())]))],
        ..Default::default()
    };
    let absent = Compare { key: key(), ..Default::default() };
    let failure = TxnRequest {
        compare: vec![absent],
        failure: vec![deletes(), puts(kept())],
        ..Default::default()
    };
    for (name, txn) in [
        ("a value kept of a key that goes: etcd ends", success(vec![deletes(), puts(kept())])),
        ("a lease kept of a key that goes: etcd ends", success(vec![deletes(), puts(lease)])),
        ("the same in two transactions within", below),
        ("the same in the branch of failure", failure),
        (
            "a key that goes and comes: lost by a compaction",
            success(vec![deletes(), puts(plain())]),
        ),
    ] {
        let case = Case::new(49, name, TXN, &bytes(&txn)).by(Who::B);
        play(ground, report, case.refused(3, DUPLICATE, "malformed")).await;
    }
    // Only one of the two happens.
    let either = TxnRequest {
        compare: vec![Compare {
            result: compare::CompareResult::Greater.into(),
            key: key(),
            ..Default::default()
        }],
        success: vec![puts(kept())],
        failure: vec![deletes()],
    };
    let case = Case::new(49, "a key that stays, or else goes", TXN, &bytes(&either)).by(Who::B);
    play(ground, report, case.fine()).await;
}

async fn doubtful_transactions(ground: &mut Ground, report: &mut Report) {
    let key = field(0x0a, b"/a/x");
    let in_txn = |operation: &[u8]| field(0x12, operation);
    let empty_end = in_txn(&field(0x0a, &[&key[..], b"\x12\x00"].concat()));
    let point = in_txn(&field(0x0a, &key));
    let compared = field(0x0a, &[&field(0x1a, b"/a/x")[..], b"\x20\x01", b"\x82\x04\x00"].concat());
    let compared_point = field(0x0a, &[&field(0x1a, b"/a/x")[..], b"\x20\x01"].concat());
    let deep = bytes(&wrapped(success(vec![]), 60));
    let deeper = (0..5000).fold(Vec::new(), |inner: Vec<u8>, _| {
        let mut outer = vec![0x22];
        prost::encoding::encode_varint(inner.len() as u64, &mut outer);
        outer.extend(inner);
        let mut around = vec![0x12];
        prost::encoding::encode_varint(outer.len() as u64, &mut around);
        around.extend(outer);
        around
    });
    let two = "ringfence: etcdserverpb.RequestOp.request_put sets a oneof that is already set";
    let twice = "ringfence: etcdserverpb.RequestOp.request_range sets a oneof that is already set";
    let both = in_txn(&[field(0x0a, &key), field(0x12, &field(0x0a, b"/b"))].concat());
    let split = in_txn(&[field(0x0a, &key), field(0x0a, &field(0x0a, b"/b"))].concat());
    let merged = in_txn(&[field(0x0a, b"\x48\x01"), field(0x0a, &key)].concat());
    let mismatch = field(0x0a, &[&field(0x1a, b"/a/x")[..], b"\x10\x03\x30\x01"].concat());
    let too_deep = "ringfence: etcdserverpb.TxnRequest is nested too deep";
    for case in [
        Case::new(9, "an empty range_end inside a transaction", TXN, &empty_end).fine_as(&point),
        Case::new(10, "an empty range_end of a compare", TXN, &compared).fine_as(&compared_point),
        Case::new(42, "sixty transactions deep", TXN, &deep).refused(3, too_deep, "malformed"),
        Case::new(43, "five thousand deep in few bytes", TXN, &deeper).refused(
            3,
            too_deep,
            "malformed",
        ),
        Case::new(45, "an operation without content", TXN, b"\x12\x00").refused(
            3,
            "etcdserver: key not found",
            "malformed",
        ),
        Case::new(46, "an operation that is a range and a put", TXN, &both).refused(
            3,
            two,
            "malformed",
        ),
        Case::new(47, "an operation that is two ranges", TXN, &split).refused(
            3,
            twice,
            "malformed",
        ),
        Case::new(48, "a range in two parts that decoders merge or not", TXN, &merged).refused(
            3,
            twice,
            "malformed",
        ),
        Case::new(50, "a compare whose target and value disagree", TXN, &mismatch).refused(
            3,
            "ringfence: compare target and target_union disagree",
            "malformed",
        ),
    ] {
        play(ground, report, case).await;
    }
}
