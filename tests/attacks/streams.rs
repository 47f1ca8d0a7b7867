//! Watches: each create is decided on its own, and a stream is nobody else's.

use bytes::Bytes;
use ringfence::etcd::pb::etcdserverpb::watch_request::RequestUnion;
use ringfence::etcd::pb::etcdserverpb::{
    PutRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest,
    WatchResponse,
};

use crate::ground::{Ground, Report, bytes};
use crate::keys::put;
use crate::support::{Etcd, Pki, RawClient, RawStream, Ringfence, framed};

const WATCH: &str = "/etcdserverpb.Watch/Watch";
const DENIED: &str = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";

fn create(key: &[u8], end: &[u8]) -> WatchCreateRequest {
    let copy = Bytes::copy_from_slice;
    WatchCreateRequest { key: copy(key), range_end: copy(end), ..Default::default() }
}

fn request(create: WatchCreateRequest) -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

fn ask(union: RequestUnion) -> WatchRequest {
    WatchRequest { request_union: Some(union) }
}

/// What a create came to: its watch, or why it was canceled.
async fn created(stream: &mut RawStream) -> Result<i64, String> {
    let response: WatchResponse = stream.next().await;
    assert!(response.created, "{response:?}");
    if response.canceled { Err(response.cancel_reason) } else { Ok(response.watch_id) }
}

fn told(holds: bool, what: &impl std::fmt::Debug) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{what:?}")) }
}

pub async fn run() -> Report {
    let mut whole = Report::default();
    let report = &mut whole;
    let mut ground = Ground::start().await;
    denied(&mut ground, report).await;
    one_stream(&mut ground, report).await;
    apart(&mut ground, report).await;
    doubtful(&mut ground, report).await;
    large(&mut ground, report).await;
    ground.finish(report);
    crowded(report).await;
    whole
}

async fn denied(ground: &mut Ground, report: &mut Report) {
    let direct = RawClient::connect_plain(ground.etcd.port()).await;
    for (number, name, key, end) in [
        (55, "a watch of everything, without a key", &b""[..], &b"\0"[..]),
        (56, "a watch from one's own key to the end (GHSA-xg4h-6gfc-h4m8)", b"/a/x", b"\0"),
        (58, "a watch without key and end is one of the first key", b"", b""),
    ] {
        ground.expect(number, 7, Some("no_rule"));
        let mut stream = ground.a.stream(WATCH).await;
        stream.send(&request(create(key, end)));
        let answer = created(&mut stream).await;
        let reached = ground.reached().await;
        let fared =
            told(answer == Err(DENIED.to_owned()) && reached.is_empty(), &(answer, reached));
        report.add(number, name, "created and canceled, no_rule", fared);
    }
    // Present but empty: a point. Another key of A's brings no event.
    ground.expect(57, 0, None);
    let mut stream = ground.a.stream(WATCH).await;
    let point = [&bytes(&create(b"/a/x", b""))[..], b"\x12\x00"].concat();
    let mut message = vec![0x0a, u8::try_from(point.len()).unwrap()];
    message.extend(&point);
    stream.send_bytes(&message);
    let answer = created(&mut stream).await;
    for key in ["/a/y", "/a/x"] {
        assert_eq!(direct.unary("/etcdserverpb.KV/Put", &put(key)).await.grpc_status, Some(0));
    }
    let event: WatchResponse = stream.next().await;
    let keys: Vec<_> = event.events.iter().map(|event| event.kv.clone().unwrap().key).collect();
    let reached = ground.reached().await;
    let canonical = reached[0].is(WATCH, &bytes(&request(create(b"/a/x", b""))));
    let fared = told(answer.is_ok() && keys == ["/a/x"] && canonical, &(answer, keys, reached));
    report.add(57, "an empty range_end of a watch is none", "etcd answers", fared);
}

async fn one_stream(ground: &mut Ground, report: &mut Report) {
    for code in [0, 7, 0, 0] {
        ground.expect(59, code, None);
    }
    let mut stream = ground.a.stream(WATCH).await;
    let mut answers = Vec::new();
    for key in ["/a/x", "/b", "/a/y"] {
        stream.send(&request(create(key.as_bytes(), b"")));
        answers.push(created(&mut stream).await);
    }
    let holds = answers[0].is_ok() && answers[1] == Err(DENIED.to_owned()) && answers[2].is_ok();
    let reached = ground.reached().await;
    let asked = |key: &[u8]| framed(&bytes(&request(create(key, b""))));
    let both = [asked(b"/a/x"), asked(b"/a/y")].concat();
    let holds = holds && reached.len() == 1 && reached[0].data == both;
    report.add(
        59,
        "a denied create between two allowed ones",
        "the stream lives on",
        told(holds, &(&answers, reached)),
    );
    // The fourth, below: the same ID as the first, chosen.
    let again =
        WatchCreateRequest { watch_id: *answers[2].as_ref().unwrap(), ..create(b"/a/x", b"") };
    stream.send(&request(again));
    let answer = created(&mut stream).await;
    report.add(60, "an ID that is taken", "canceled by etcd", told(answer.is_err(), &answer));
    ground.expect(63, 0, None);
    let before = WatchCreateRequest { start_revision: -1, ..create(b"/a/x", b"") };
    stream.send(&request(before));
    let answer: WatchResponse = stream.next().await;
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    let fared = told(answer.canceled && answer.cancel_reason == compacted, &answer);
    report.add(63, "a start before all history", "canceled by etcd", fared);
    ground.expect(65, 0, None);
    let direct = RawClient::connect_plain(ground.etcd.port()).await;
    let mut history = ground.a.stream(WATCH).await;
    let all = WatchCreateRequest { start_revision: 1, prev_kv: true, ..create(b"/a/", b"/a0") };
    assert_eq!(direct.unary("/etcdserverpb.KV/Put", &put("/b/secret")).await.grpc_status, Some(0));
    history.send(&request(all));
    let answer = created(&mut history).await;
    let events: WatchResponse = history.next().await;
    let within = events.events.iter().all(|event| {
        let keys = [event.kv.as_ref(), event.prev_kv.as_ref()];
        keys.into_iter().flatten().all(|pair| pair.key.starts_with(b"/a/"))
    });
    let fared = told(answer.is_ok() && within && !events.events.is_empty(), &events);
    report.add(65, "history with old values, of one's own keys only", "etcd answers", fared);
    ground.tap.take();
}

async fn apart(ground: &mut Ground, report: &mut Report) {
    for (number, code) in [(61, 0), (61, 0), (61, 0), (61, 0), (62, 0)] {
        ground.expect(number, code, None);
    }
    // An ID that only B has: every stream counts from 0.
    let of_nobody = 4243;
    let of_b_alone = WatchCreateRequest { watch_id: 4242, ..create(b"/b/", b"/b0") };
    let mut of_b = ground.b.stream(WATCH).await;
    of_b.send(&request(of_b_alone));
    let watch = created(&mut of_b).await.unwrap();
    assert_eq!(watch, 4242);
    let mut of_a = ground.a.stream(WATCH).await;
    of_a.send(&request(create(b"/a/quiet", b"")));
    created(&mut of_a).await.unwrap();
    for watch_id in [watch, of_nobody] {
        of_a.send(&ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })));
    }
    of_a.send(&ask(RequestUnion::ProgressRequest(WatchProgressRequest {})));
    let progress: WatchResponse = of_a.next().await;
    // -1 stands for all watches of the stream; B's is none of them.
    let of_all = progress.watch_id == -1 && progress.events.is_empty() && !progress.canceled;
    let fared = told(of_all, &progress);
    report.add(62, "progress asked for on a stream of one's own", "its own watches only", fared);
    let direct = RawClient::connect_plain(ground.etcd.port()).await;
    assert_eq!(direct.unary("/etcdserverpb.KV/Put", &put("/b/x")).await.grpc_status, Some(0));
    let event: WatchResponse = of_b.next().await;
    report.add(
        61,
        "a watch canceled that is another's or nobody's",
        "no effect",
        told(event.events.len() == 1, &event),
    );
    ground.tap.take();
}

async fn doubtful(ground: &mut Ground, report: &mut Report) {
    let one = bytes(&create(b"/a/x", b""));
    let other = bytes(&create(b"/b", b""));
    let field = |bytes: &[u8]| [&[0x0a, u8::try_from(bytes.len()).unwrap()], bytes].concat();
    let filters = WatchCreateRequest { filters: vec![7], ..create(b"/a/x", b"") };
    for (number, name, text, message) in [
        (66, "a request that asks for nothing", "ringfence: the watch request is empty", vec![]),
        (
            67,
            "two creates in one message",
            "ringfence: etcdserverpb.WatchRequest.create_request sets a oneof that is already set",
            [field(&one), field(&other)].concat(),
        ),
        (
            70,
            "an unknown filter",
            "ringfence: `filters` has an unknown number",
            bytes(&request(filters)),
        ),
    ] {
        ground.expect(number, 3, Some("malformed"));
        let reply = ground.a.first_message(WATCH, &message, false).await;
        let reached = ground.reached().await;
        let refused = reply.grpc_status == Some(3) && reply.grpc_message == text;
        let fared = told(refused && reached.is_empty(), &(reply, reached));
        report.add(number, name, "status 3, malformed", fared);
    }
}

async fn large(ground: &mut Ground, report: &mut Report) {
    ground.expect(68, 0, None);
    let mut stream = ground.a.stream(WATCH).await;
    let all = WatchCreateRequest { fragment: true, start_revision: 1, ..create(b"/a/l", b"/a/m") };
    let direct = RawClient::connect_plain(ground.etcd.port()).await;
    for number in 0..10 {
        let value = vec![7; 1 << 20].into();
        let put = PutRequest { value, ..put(&format!("/a/large-{number}")) };
        assert_eq!(direct.unary("/etcdserverpb.KV/Put", &put).await.grpc_status, Some(0));
    }
    stream.send(&request(all));
    created(&mut stream).await.unwrap();
    let mut keys = Vec::new();
    while keys.len() < 10 {
        let response: WatchResponse = stream.next().await;
        keys.extend(response.events.iter().map(|event| event.kv.clone().unwrap().key));
    }
    let expected: Vec<Bytes> = (0..10).map(|number| format!("/a/large-{number}").into()).collect();
    report.add(
        68,
        "ten megabytes of events in fragments",
        "in order and whole",
        told(keys == expected, &keys),
    );
    ground.tap.take();
}

/// More watches than a principal may have.
async fn crowded(report: &mut Report) {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let limits = "[limits]\nwatches_per_principal = 50";
    let mut ringfence = Ringfence::start_with(&pki, &etcd.endpoint(), limits);
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let mut stream = acme.stream(WATCH).await;
    let mut refused = 0;
    for number in 0..60 {
        let key = format!("/tenants/acme/{number}");
        stream.send(&request(create(key.as_bytes(), b"")));
        match created(&mut stream).await {
            Ok(_) => {}
            Err(reason) if reason.ends_with("etcdserver: too many requests") => refused += 1,
            Err(reason) => panic!("{reason}"),
        }
    }
    report.add(
        69,
        "watches without end",
        "created and canceled, share",
        told(refused == 10, &refused),
    );
    drop((stream, acme));
    let recorded = ringfence.decisions();
    let of = |reason: &str| recorded.iter().filter(|record| record["reason"] == reason).count();
    let fared = told((recorded.len(), of("share")) == (60, 10), &(recorded.len(), of("share")));
    report.add(69, "and their records", "one for each", fared);
}
