//! Paths, frames, headers, certificates and floods: what stands around a request.

use std::time::Duration;

use http::Method;
use ringfence::etcd::pb::etcdserverpb::AuthRoleGetRequest;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use crate::ground::{Case, DENIED, Ground, Report, Sent, bytes, heard, play};
use crate::keys::range;
use crate::support::wire::{
    CONTINUATION, END_HEADERS, ENHANCE_YOUR_CALM, HEADERS, PING, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, WireClient, frame, header_block, request,
};
use crate::support::{Etcd, Http1, Pki, RawClient, Ringfence, framed, free_port};

const RANGE: &str = "/etcdserverpb.KV/Range";
const UNKNOWN: &str = "ringfence: unknown service or method";

fn told(holds: bool, what: &impl std::fmt::Debug) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{what:?}")) }
}

pub async fn run() -> Report {
    let mut whole = Report::default();
    let report = &mut whole;
    let mut ground = Ground::start().await;
    paths(&mut ground, report).await;
    frames(&mut ground, report).await;
    malformed(&mut ground, report).await;
    given_up(&mut ground, report).await;
    headers(&mut ground, report).await;
    pages(&mut ground, report).await;
    http1(&mut ground, report).await;
    floods(&ground, report).await;
    ground.finish(report);
    cheap_frames(report).await;
    clamped(report).await;
    outages(report).await;
    whole
}

async fn paths(ground: &mut Ground, report: &mut Report) {
    let message = bytes(&range(b"/a/x", b""));
    for (number, name, path) in [
        (100, "a path with an escape", "/etcdserverpb.KV/%52ange"),
        (101, "a path with an escaped slash", "/etcdserverpb.KV%2FRange"),
        (102, "a path with a query", "/etcdserverpb.KV/Range?x"),
        (103, "a path with two slashes", "//etcdserverpb.KV/Range"),
        (103, "a path that goes up again", "/x/../etcdserverpb.KV/Range"),
        (104, "a path in lower case", "/etcdserverpb.kv/range"),
        (105, "reflection", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
        (106, "the JSON gateway, as gRPC", "/v3/kv/range"),
    ] {
        let case = Case::new(number, name, path, &message).refused(12, UNKNOWN, "unknown_path");
        play(ground, report, case).await;
    }
    // The HTTP/2 layer refuses such a head itself, before there is a request to record.
    let mut wire = WireClient::greeted(&ground.pki, "acme", ground.ringfence.port).await;
    let head = frame(HEADERS, END_HEADERS, 1, &header_block("etcdserverpb.KV/Range"));
    wire.send(&head).await.unwrap();
    let mut answer = wire.read().await;
    while answer.as_ref().is_some_and(|frame| frame.kind == SETTINGS || frame.kind == 8) {
        answer = wire.read().await;
    }
    let reset = answer.as_ref().is_none_or(|frame| frame.kind == RST_STREAM || frame.kind == 7);
    let reached = ground.reached().await;
    let fared = told(reset && reached.is_empty(), &(answer, reached));
    report.add(99, "a path without its slash", "reset by the HTTP/2 layer, no record", fared);
}

async fn frames(ground: &mut Ground, report: &mut Report) {
    let key = bytes(&range(b"/a/x", b""));
    let one = framed(&key);
    let more = "ringfence: the request holds more than one message";
    let ends = "ringfence: the request ends before its message does";
    let bomb = framed(&vec![0; 1024]);
    let gzip: &[(&str, &str)] = &[("grpc-encoding", "gzip")];
    for case in [
        Case::new(113, "the compressed flag without an encoding", RANGE, &key)
            .data([&[1], &one[1..]].concat())
            .refused(13, "grpc: compressed flag set with identity or empty encoding", "frame"),
        Case::new(114, "something to expand", RANGE, &key).headers(gzip).data(bomb).refused(
            12,
            "ringfence: grpc-encoding is not identity",
            "metadata",
        ),
        Case::new(115, "two messages", RANGE, &key)
            .data([&one[..], &one[..]].concat())
            .refused(13, more, "frame"),
        Case::new(117, "a length of four gigabytes", RANGE, &key)
            .data(&b"\0\xff\xff\xff\xff"[..])
            .refused(8, "grpc: received message larger than max (4294967295 vs. 2097152)", "frame"),
        Case::new(118, "a byte behind the message", RANGE, &key)
            .data([&one[..], b"x"].concat())
            .refused(13, more, "frame"),
        Case::new(116, "no message at all", RANGE, &key).data(&b""[..]).refused(13, ends, "frame"),
    ] {
        play(ground, report, case).await;
    }
}

async fn malformed(ground: &mut Ground, report: &mut Report) {
    let key = bytes(&range(b"/a/x", b""));
    let with = |tail: &[u8]| [&key[..], tail].concat();
    let no = |what: &str| format!("ringfence: etcdserverpb.RangeRequest{what}");
    let (type_, alias, unknown, group) = (
        no(".key has a wrong wire type"),
        no(" has no field 4294967297"),
        no(" has no field 100"),
        no(".max_create_revision has a wrong wire type"),
    );
    let role = bytes(&AuthRoleGetRequest::default());
    for case in [
        Case::new(119, "a field with another wire type", RANGE, b"\x08\x01").refused(
            3,
            &type_,
            "malformed",
        ),
        Case::new(
            120,
            "a tag that wraps to another field",
            RANGE,
            &with(b"\x8a\x80\x80\x80\x80\x01\x02/b"),
        )
        .refused(3, &alias, "malformed"),
        Case::new(121, "a field that nobody knows", RANGE, &with(b"\xa2\x06\x00")).refused(
            3,
            &unknown,
            "malformed",
        ),
        Case::new(122, "a group", RANGE, &with(b"\x6b\x6c")).refused(3, &group, "malformed"),
        Case::new(
            123,
            "a name that is no text",
            "/etcdserverpb.Auth/RoleGet",
            &[&role[..], b"\x0a\x01\xff"].concat(),
        )
        .refused(
            3,
            "ringfence: etcdserverpb.AuthRoleGetRequest.role is not UTF-8",
            "malformed",
        ),
    ] {
        play(ground, report, case).await;
    }
}

async fn given_up(ground: &mut Ground, report: &mut Report) {
    let key = bytes(&range(b"/a/x", b""));
    ground.expect(124, 0, None);
    ground.expect(124, 1, Some("aborted"));
    let refused = format!("requests_total{{rpc=\"{RANGE}\",verdict=\"refuse\"}}");
    let count = |ground: &Ground| {
        let metrics = ground.ringfence.metrics();
        metrics.lines().find(|line| line.contains(&refused)).map(str::to_owned)
    };
    let before = count(ground);
    let mut half = ground.a.stream(RANGE).await;
    half.send_bytes(&key);
    // When another call of the connection is answered, the first half of this one has come.
    let whole = ground.a.call(RANGE, &[], framed(&key)).await;
    assert_eq!(whole.grpc_status, Some(0), "{whole:?}");
    ground.tap.take();
    half.reset();
    // Where this task blocks its thread, the reset would not leave.
    tokio::task::block_in_place(|| {
        crate::support::wait_for("the record", || count(ground) != before);
    });
    let reached = ground.reached().await;
    report.add(
        124,
        "a request given up before its end",
        "aborted",
        told(reached.is_empty(), &reached),
    );
}

async fn headers(ground: &mut Ground, report: &mut Report) {
    let key = bytes(&range(b"/a/x", b""));
    let foreign = bytes(&range(b"/b", b""));
    let forged: &[(&str, &str)] = &[("token", "root.1"), ("authorization", "Bearer root.1")];
    for (number, name, headers) in [
        (125, "a token of root", &forged[..1]),
        (126, "a bearer of root", &forged[1..]),
        (127, "a header of the gateway", &[("grpcgateway-accept", "x")]),
    ] {
        play(ground, report, Case::new(number, name, RANGE, &foreign).headers(headers)).await;
        ground.expect(number, 0, None);
        let reply = ground.a.call(RANGE, headers, framed(&key)).await;
        let reached = ground.reached().await;
        let known = ["client-api-version", "content-type", "hasleader", "te"];
        let clean = reached[0].headers.iter().all(|(name, _)| known.contains(&name.as_str()));
        let fared = told(reply.grpc_status == Some(0) && clean, &(reply, reached));
        report.add(number, "and it stays behind", "not sent on", fared);
    }
    for (name, headers) in [
        ("a leader asked for", &[("hasleader", "true")][..]),
        ("asked for twice, the first counts", &[("hasleader", "true"), ("hasleader", "x")]),
    ] {
        ground.expect(128, 0, None);
        let reply = ground.a.call(RANGE, headers, framed(&key)).await;
        let reached = ground.reached().await;
        let sent = reached[0].headers.iter().filter(|(name, _)| name == "hasleader");
        let once = sent.map(|(_, value)| value.as_str()).eq(["true"]);
        report.add(128, name, "sent on", told(reply.grpc_status == Some(0) && once, &reached));
    }
    for content_type in ["application/grpc+json", "application/grpc-web"] {
        let number = if content_type.ends_with("json") { 111 } else { 112 };
        let text = "ringfence: content-type is neither application/grpc nor application/grpc+proto";
        let headers = [("content-type", content_type)];
        let case = Case::new(number, content_type, RANGE, &key).headers(&headers);
        play(ground, report, case.refused(12, text, "metadata")).await;
    }
    let version = [("client-api-version", "\u{ff}")];
    let text = "ringfence: client-api-version is not 1 to 32 printable characters";
    let case = Case::new(129, "a version that is no text", RANGE, &key).headers(&version);
    play(ground, report, case.refused(3, text, "metadata")).await;
    ground.expect(130, 0, None);
    let reply = ground.a.call(RANGE, &[("grpc-timeout", "99999999H")], framed(&key)).await;
    let reached = ground.reached().await;
    let stays = !reached[0].headers.iter().any(|(name, _)| name == "grpc-timeout");
    let fared = told(reply.grpc_status == Some(0) && stays, &reached);
    report.add(130, "a time of eleven thousand years", "not sent on", fared);
    // Which host a client means is of no meaning here, and etcd hears its own.
    ground.expect(131, 0, None);
    let request = http::Request::post(format!("https://other.example:1{RANGE}"))
        .header("content-type", "application/grpc")
        .header("host", "another.example");
    let reply = ground.a.send(request.body(()).unwrap(), framed(&key)).await;
    let reached = ground.reached().await;
    let told_etcd = reached[0].headers.iter().any(|(_, value)| value.contains("example"));
    let fared = told(reply.grpc_status == Some(0) && !told_etcd, &(reply, reached));
    report.add(131, "another host than the one that is there, HTTP/2", "ignored", fared);
}

async fn pages(ground: &mut Ground, report: &mut Report) {
    for (number, path) in [
        (106, "/v3/kv/range"),
        (106, "/v3/kv/put"),
        (106, "/v3beta/kv/range"),
        (106, "/%763/kv/range"),
        (106, "/v3alpha/kv/range"),
        (108, "/debug/vars"),
        (108, "/debug/pprof/"),
        (108, "/debug/requests"),
        (108, "/config/local/log"),
        (108, "/v2/keys"),
    ] {
        ground.expect(number, 404, Some("unknown_path"));
        let method = if number == 106 { Method::POST } else { Method::GET };
        let json: &[(&str, &str)] = &[("content-type", "application/json")];
        let reply = ground.a.http(method, path, json, "{}".into()).await;
        let reached = ground.reached().await;
        let fared = told(reply.http_status == 404 && reached.is_empty(), &(reply, reached));
        report.add(number, path, "404, unknown_path", fared);
    }
}

async fn http1(ground: &mut Ground, report: &mut Report) {
    let host = "host: localhost\r\n";
    let upgrade = "upgrade: websocket\r\nconnection: upgrade\r\n";
    let h2c = "upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABk\r\n";
    for (number, name, status, reason, request) in [
        (
            107,
            "a websocket to the gateway",
            404,
            "unknown_path",
            format!("GET /v3/watch HTTP/1.1\r\n{host}{upgrade}\r\n"),
        ),
        (
            109,
            "OPTIONS of everything",
            404,
            "unknown_path",
            format!("OPTIONS * HTTP/1.1\r\n{host}\r\n"),
        ),
        (
            109,
            "OPTIONS of a page",
            405,
            "method",
            format!("OPTIONS /health HTTP/1.1\r\n{host}\r\n"),
        ),
        (
            110,
            "CONNECT",
            404,
            "unknown_path",
            format!("CONNECT localhost:2380 HTTP/1.1\r\n{host}\r\n"),
        ),
        (
            110,
            "an upgrade to HTTP/2",
            400,
            "http",
            format!("GET /health HTTP/1.1\r\n{host}{h2c}\r\n"),
        ),
        (110, "HTTP/1.0", 505, "http", "GET /health HTTP/1.0\r\n\r\n".to_owned()),
        (
            131,
            "two hosts",
            400,
            "http",
            format!("GET /health HTTP/1.1\r\n{host}host: other\r\n\r\n"),
        ),
    ] {
        ground.expect(number, status, Some(reason));
        let mut client = Http1::connect(&ground.pki, "acme", ground.ringfence.port).await;
        client.send(request).await;
        let answer = client.answer().await;
        let open = answer.headers.iter().any(|header| header.starts_with("access-control"));
        let reached = ground.reached().await;
        let fared = told(answer.status == status && !open && reached.is_empty(), &answer);
        report.add(number, name, &format!("{status}, {reason}"), fared);
    }
    // hyper cannot read it, so there is no request to record.
    let mut client = Http1::connect(&ground.pki, "acme", ground.ringfence.port).await;
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let rest = client.rest().await;
    let fared = told(!rest.starts_with(b"HTTP/1.1 2"), &String::from_utf8_lossy(&rest));
    report.add(
        110,
        "the preface of HTTP/2 over HTTP/1.1",
        "refused by the HTTP/1.1 layer, no record",
        fared,
    );
}

/// What costs a client little and a server much: on a ringfence of its own, since each stream of them is a
/// request that has a record.
async fn cheap_frames(report: &mut Report) {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start_with(&pki, &etcd.endpoint(), "");
    let given_up = |stream: u32| {
        let opened = frame(HEADERS, END_HEADERS, stream, &header_block(RANGE));
        [opened, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    };
    let resets: Vec<u8> = (0..10_000).flat_map(|number| given_up(2 * number + 1)).collect();
    let first = frame(HEADERS, 0, 1, &header_block(RANGE));
    let continued = [first, frame(CONTINUATION, 0, 1, b"").repeat(10_000)].concat();
    let own = bytes(&range(b"/tenants/acme/x", b""));
    let closed = frame(SETTINGS, 0, 0, b"\0\x04\0\0\0\0");
    let one_byte = frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).repeat(10_000);
    let windows = [closed, request(1, RANGE, &own), one_byte].concat();
    for (name, attack) in [
        ("a rapid reset (CVE-2023-44487)", resets),
        ("a flood of CONTINUATION (CVE-2024-27316)", continued),
        ("windows of one byte", windows),
    ] {
        let mut wire = WireClient::greeted(&pki, "acme", ringfence.port).await;
        drop(wire.send(&attack).await);
        let codes = wire.read_to_end().await;
        let neighbour = RawClient::connect(&pki, "globex", ringfence.port).await;
        let served = neighbour.unary(RANGE, &range(b"/tenants/globex/x", b"")).await;
        let fared = codes == [ENHANCE_YOUR_CALM] && served.grpc_status == Some(0);
        report.add(141, name, "GOAWAY, and the end; the neighbour is served", told(fared, &codes));
    }
    let memory = ringfence.memory_bytes();
    report.add(141, "memory afterwards", "below 64 MiB", told(memory < 64 << 20, &memory));
}

async fn floods(ground: &Ground, report: &mut Report) {
    let mut wire = WireClient::greeted(&ground.pki, "acme", ground.ringfence.port).await;
    let pings = frame(PING, 0, 0, b"12345678").repeat(10_000);
    drop(wire.send(&pings).await);
    let codes = wire.read_to_end().await;
    let fared = told(codes == [ENHANCE_YOUR_CALM], &codes);
    report.add(141, "a flood of PING", "GOAWAY, and the end", fared);
    let mut wire = WireClient::greeted(&ground.pki, "acme", ground.ringfence.port).await;
    let settings = frame(SETTINGS, 0, 0, b"").repeat(10_000);
    drop(wire.send(&settings).await);
    let codes = wire.read_to_end().await;
    report.add(
        141,
        "a flood of SETTINGS",
        "GOAWAY, and the end",
        told(codes == [ENHANCE_YOUR_CALM], &codes),
    );
}

/// An etcd that takes requests and never answers them.
async fn mute_etcd() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = h2::server::handshake(stream).await.unwrap();
                let mut kept = Vec::new();
                while let Some(Ok(request)) = server.accept().await {
                    kept.push(request);
                }
            });
        }
    });
    endpoint
}

async fn clamped(report: &mut Report) {
    let pki = Pki::make();
    let limits = "[limits]\ncall_timeout_seconds = 1";
    let ringfence = Ringfence::start_with(&pki, &mute_etcd().await, limits);
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let own = framed(&bytes(&range(b"/tenants/acme/x", b"")));
    let reply = acme.call(RANGE, &[("grpc-timeout", "99999999H")], own).await;
    let fared = told(reply.grpc_status == Some(4), &reply);
    report.add(130, "and an etcd that never answers", "clamped to call_timeout_seconds", fared);
}

async fn outages(report: &mut Report) {
    let pki = Pki::make();
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let limits = "[limits]\nhandshake_timeout_seconds = 1";
    let mut ringfence = Ringfence::start_with(&pki, &nobody, limits);
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let reply = acme.unary_bytes(RANGE, &bytes(&range(b"/tenants/acme/x", b""))).await;
    report.add(142, "etcd is down", "status 14", told(reply.grpc_status == Some(14), &reply));
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(("127.0.0.1", ringfence.port)).await.unwrap());
    }
    let mut ended = 0;
    for mut stream in silent {
        let mut byte = [0; 1];
        let read = tokio::time::timeout(crate::support::PATIENCE, stream.read(&mut byte)).await;
        ended += usize::from(matches!(read, Ok(Ok(0) | Err(_))));
    }
    let reply = acme.unary_bytes(RANGE, &bytes(&range(b"/tenants/acme/x", b""))).await;
    let fared = told(ended == 100 && reply.grpc_status == Some(14), &ended);
    report.add(139, "sockets that never say a word", "closed after the handshake's time", fared);
    drop(acme);
    assert_eq!(ringfence.stop().code(), Some(0));
    let records = ringfence.records();
    let of = |kind: &str| records.iter().filter(|record| record["type"] == kind).count();
    let unreachable = records.iter().filter(|record| record["fault"] == "unreachable").count();
    let kept = (of("decision"), of("outcome"), unreachable);
    report.add(
        142,
        "and its records",
        "two decisions, two outcomes",
        told(kept == (2, 2, 2), &kept),
    );
    let refused = records.iter().filter(|record| record["type"] == "connection.refused");
    let sockets: u64 = refused.map(|record| record["count"].as_u64().unwrap_or(1)).sum();
    report.add(139, "and their records", "folded, all counted", told(sockets == 100, &sockets));

    let etcd = Etcd::start_plain("3.7");
    let full = Ringfence::start_with_regular_files(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", full.port).await;
    let mut last = acme.unary_bytes(RANGE, &bytes(&range(b"/tenants/acme/x", b""))).await;
    let mut answered = 0;
    for _ in 0..2000 {
        if last.grpc_status != Some(0) {
            break;
        }
        answered += 1;
        last = acme.unary_bytes(RANGE, &bytes(&range(b"/tenants/acme/x", b""))).await;
    }
    let text = "ringfence: the audit log takes no records, nothing was forwarded";
    let fared = told((last.grpc_status, &*last.grpc_message) == (Some(14), text), &last);
    report.add(143, "the audit log is full", "status 14, nothing forwarded", fared);
    let text = full.audit_text();
    // The last line may be cut by the end of the room.
    let whole = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    let decided = whole.filter(|record: &serde_json::Value| record["type"] == "decision").count();
    let fared = told(decided >= answered && answered > 0, &(decided, answered));
    report.add(143, "and its records", "one for each that was answered", fared);
}
