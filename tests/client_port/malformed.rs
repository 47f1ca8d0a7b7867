//! Malformed requests: each is refused, or sent on in its one canonical form. What reached the
//! other side is shown by a tap.

use bytes::Bytes;
use http::{Method, Request};

use crate::support::{Pki, RawClient, Ringfence, Tap, framed};

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
/// Field 1, 14 bytes: a key that the tenant may read.
const OWN_KEY: &[u8] = b"\x0a\x0f/tenants/acme/x";

struct Bench {
    tap: Tap,
    client: RawClient,
    ringfence: Ringfence,
    calls: usize,
}

impl Bench {
    async fn start() -> Self {
        let pki = Pki::make();
        let tap = Tap::start().await;
        let ringfence = Ringfence::start(&pki, &tap.endpoint);
        let client = RawClient::connect(&pki, "acme", ringfence.port).await;
        Self { tap, client, ringfence, calls: 0 }
    }

    /// What the client heard, and which message went on.
    async fn check(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        data: impl Into<Bytes>,
        status: u16,
        message: &str,
        sent: Option<&[u8]>,
    ) {
        self.calls += 1;
        let reply = self.client.call(path, headers, data.into()).await;
        assert_eq!(
            (reply.grpc_status, reply.grpc_message.as_str()),
            (Some(status), message),
            "{path} {headers:?}"
        );
        let tapped = self.tap.take();
        let data: Vec<&[u8]> = tapped.iter().map(|request| &request.data[5..]).collect();
        assert_eq!(data, sent.into_iter().collect::<Vec<_>>(), "{path} {headers:?}");
    }

    /// Exactly one decision record per call.
    fn finish(mut self) -> Vec<serde_json::Value> {
        drop(self.client);
        let decisions = self.ringfence.decisions();
        assert_eq!(decisions.len(), self.calls, "one decision record per call");
        decisions
    }
}

fn own(more: &[u8]) -> Bytes {
    framed(&[OWN_KEY, more].concat())
}

#[tokio::test]
async fn messages_have_one_meaning_or_none() {
    let mut bench = Bench::start().await;
    let refused = |what: &str| format!("ringfence: etcdserverpb.RangeRequest{what}");
    bench.check(RANGE, &[], own(b""), 0, "", Some(OWN_KEY)).await;
    // 8: present but empty
    bench.check(RANGE, &[], own(b"\x12\x00"), 0, "", Some(OWN_KEY)).await;
    bench.check(RANGE, &[], own(b"\x18\x00"), 0, "", Some(OWN_KEY)).await;
    // 119 to 122
    bench.check(RANGE, &[], own(b"\x08\x01"), 3, &refused(".key is set twice"), None).await;
    bench
        .check(RANGE, &[], framed(b"\x08\x01"), 3, &refused(".key has a wrong wire type"), None)
        .await;
    let aliased = own(b"\x8a\x80\x80\x80\x80\x01\x07/secret");
    bench.check(RANGE, &[], aliased, 3, &refused(" has no field 4294967297"), None).await;
    bench.check(RANGE, &[], own(b"\xa2\x06\x00"), 3, &refused(" has no field 100"), None).await;
    let twice = own(b"\x0a\x01b");
    bench.check(RANGE, &[], twice, 3, &refused(".key is set twice"), None).await;
    let group = own(b"\x6b\x6c");
    bench
        .check(RANGE, &[], group, 3, &refused(".max_create_revision has a wrong wire type"), None)
        .await;
    // 13, 11, 12, 23
    bench.check(RANGE, &[], framed(b""), 3, "etcdserver: key is not provided", None).await;
    let inverted = own(b"\x12\x0f/tenants/acme/b");
    bench.check(RANGE, &[], inverted, 3, "ringfence: range_end is not after key", None).await;
    bench.check(RANGE, &[], own(b"\x28\x63"), 3, "etcdserver: invalid sort option", None).await;
    // 45, 47
    bench.check(TXN, &[], framed(b"\x12\x00"), 3, "etcdserver: key not found", None).await;
    let merged = b"\x12\x22\x0a\x11\x0a\x0f/tenants/acme/x\x0a\x0d\x0a\x0b/tenants/gl";
    let message =
        "ringfence: etcdserverpb.RequestOp.request_range sets a oneof that is already set";
    bench.check(TXN, &[], framed(merged), 3, message, None).await;
    let decisions = bench.finish();
    let verdicts = |verdict| decisions.iter().filter(|record| record["verdict"] == verdict).count();
    assert_eq!((verdicts("allow"), verdicts("refuse"), verdicts("deny")), (3, 11, 0));
}

#[tokio::test]
async fn a_request_is_exactly_one_uncompressed_message() {
    let mut bench = Bench::start().await;
    let ends = "ringfence: the request ends before its message does";
    let more = "ringfence: the request holds more than one message";
    bench.check(RANGE, &[], Bytes::new(), 13, ends, None).await; // 116
    bench.check(RANGE, &[], own(b"").slice(..10), 13, ends, None).await;
    let two = [own(b""), own(b"")].concat();
    bench.check(RANGE, &[], two, 13, more, None).await; // 115
    let tail = [&own(b"")[..], b"x"].concat();
    bench.check(RANGE, &[], tail, 13, more, None).await; // 118
    let huge = Bytes::from_static(b"\0\xff\xff\xff\xff");
    let message = "grpc: received message larger than max (4294967295 vs. 2097152)";
    bench.check(RANGE, &[], huge, 8, message, None).await; // 117
    let flagged = [&[1], &own(b"")[1..]].concat();
    let message = "grpc: compressed flag set with identity or empty encoding";
    bench.check(RANGE, &[], flagged, 13, message, None).await; // 113
    let message = "ringfence: grpc-encoding is not identity";
    bench.check(RANGE, &[("grpc-encoding", "gzip")], own(b""), 12, message, None).await; // 114
    for content_type in ["application/grpc+json", "application/grpc-web", "text/plain"] {
        let message =
            "ringfence: content-type is neither application/grpc nor application/grpc+proto";
        let headers = [("content-type", content_type)];
        bench.check(RANGE, &headers, own(b""), 12, message, None).await; // 111, 112
    }
    bench.finish();
}

#[tokio::test]
async fn a_path_is_in_the_catalog_or_unknown() {
    let mut bench = Bench::start().await;
    for path in [
        "/etcdserverpb.KV/%52ange",
        "/etcdserverpb.KV%2FRange",
        "/etcdserverpb.KV/Range?x",
        "//etcdserverpb.KV/Range",
        "/x/../etcdserverpb.KV/Range",
        "/etcdserverpb.kv/range",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/v3/kv/range",
        "/debug/pprof/",
    ] {
        let message = "ringfence: unknown service or method";
        bench.check(path, &[], own(b""), 12, message, None).await; // 99 to 108
    }
    let decisions = bench.finish();
    assert!(decisions.iter().all(|record| record["verdict"] == "refuse"));
    assert_eq!(decisions[2]["path"], "/etcdserverpb.KV/Range?x");
}

#[tokio::test]
async fn a_forged_token_header_has_no_effect() {
    let mut bench = Bench::start().await;
    let headers = [
        ("token", "root.token"),
        ("authorization", "Bearer root.token"),
        ("grpcgateway-accept", "x"),
        ("x-forwarded-for", "10.0.0.1"),
        ("hasleader", "true"),
        ("client-api-version", "3.7"),
        ("grpc-timeout", "5S"),
    ];
    bench.calls += 1;
    let reply = bench.client.call(RANGE, &headers, own(b"")).await;
    assert_eq!(reply.grpc_status, Some(0));
    let tapped = bench.tap.take();
    let expected = [
        "client-api-version: 3.7",
        "content-type: application/grpc",
        "hasleader: true",
        "te: trailers",
    ];
    assert_eq!(tapped[0].headers, expected);
    assert_eq!(tapped[0].path, RANGE);
    // And the forged name opens nothing.
    let neighbour = framed(b"\x0a\x11/tenants/globex/x");
    bench.check(RANGE, &headers, neighbour, 7, "etcdserver: permission denied", None).await;
    bench.finish();
}

#[tokio::test]
async fn only_post_is_grpc() {
    let mut bench = Bench::start().await;
    for method in [Method::GET, Method::PUT, Method::OPTIONS, Method::DELETE] {
        bench.calls += 1;
        let request = Request::builder()
            .method(method)
            .uri(format!("https://localhost{RANGE}"))
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let reply = bench.client.send(request, own(b"")).await;
        assert_eq!(reply.grpc_status, Some(13), "{reply:?}");
        assert!(bench.tap.take().is_empty());
    }
    bench.finish();
}
