//! Plain HTTP: etcd's pages are served to who holds their verb, over HTTP/1.1 and HTTP/2; nothing
//! else is, and nothing of a client's travels on (attack cases 106 to 110).

use bytes::Bytes;
use http::Method;
use ringfence::etcd::Page;
use serde_json::{Value, json};

use crate::support::{Etcd, Http1, HttpTap, Pki, RawClient, Ringfence, Then, response_head};

/// What etcd itself sends with every answer, and nobody here may hear.
const CROSS_ORIGIN: &str = "access-control-";

/// Asks over both versions of HTTP; the status and the body, which must be the same.
pub async fn get(pki: &Pki, name: &str, port: u16, target: &str) -> (u16, String) {
    let second = RawClient::connect(pki, name, port).await.get(target).await;
    let first = Http1::connect(pki, name, port).await.get(target).await;
    assert_eq!(first.status, second.http_status, "{target}");
    assert_eq!(second.grpc_status, None, "{target}");
    for name in second.headers.keys() {
        assert_eq!(name, "content-type", "{target}");
    }
    let content_type = second.headers["content-type"].to_str().unwrap();
    assert!(first.headers.contains(&format!("content-type: {content_type}")), "{first:?}");
    assert!(first.headers.iter().all(|header| !header.starts_with(CROSS_ORIGIN)), "{first:?}");
    let bodies = [first.body, second.data].map(|body| String::from_utf8(body).unwrap());
    if target != "/metrics" {
        assert_eq!(bodies[0], bodies[1], "{target}");
    }
    (first.status, bodies[1].clone())
}

pub fn outcomes(ringfence: &Ringfence) -> Vec<Value> {
    let of_type = |record: &Value| record["type"] == "outcome";
    ringfence.records().into_iter().filter(of_type).collect()
}

#[tokio::test]
async fn every_page_of_the_newest_etcd_is_served_to_who_holds_its_verb() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let pages = [
        ("acme", "/health", "{\"health\":\"true\",\"reason\":\"\"}"),
        (
            "acme",
            "/health?serializable=true&exclude=NOSPACE",
            "{\"health\":\"true\",\"reason\":\"\"}",
        ),
        ("acme", "/livez", "ok\n"),
        ("acme", "/livez?verbose", "[+]serializable_read ok\nok\n"),
        ("acme", "/livez/serializable_read?verbose", "[+]serializable_read ok\nok\n"),
        ("acme", "/readyz", "ok\n"),
        (
            "acme",
            "/readyz?verbose&exclude=data_corruption&exclude=serializable_read&exclude=linearizable_read",
            "[+]non_learner ok\nok\n",
        ),
        ("acme", "/readyz/data_corruption?verbose", "[+]data_corruption ok\nok\n"),
        ("acme", "/readyz/serializable_read", "ok\n"),
        ("acme", "/readyz/linearizable_read", "ok\n"),
        ("acme", "/readyz/non_learner?verbose", "[+]non_learner ok\nok\n"),
        (
            "apiserver",
            "/version",
            "{\"etcdserver\":\"3.7.1\",\"etcdcluster\":\"3.7.0\",\"storage\":\"3.7.0\"}",
        ),
    ];
    for (name, target, expected) in pages {
        let (status, body) = get(&pki, name, ringfence.port, target).await;
        assert_eq!((status, &*body), (200, expected), "{target}");
    }
    let (status, metrics) = get(&pki, "apiserver", ringfence.port, "/metrics").await;
    assert!(status == 200 && metrics.len() > 100_000, "{} bytes", metrics.len());
    assert!(metrics.contains("etcd_server_has_leader 1\n") && metrics.ends_with('\n'));

    let counted = ringfence.metrics();
    assert!(counted.contains("requests_total{rpc=\"/health\",verdict=\"allow\"} 4"), "{counted}");
    let decisions = ringfence.decisions();
    assert_eq!(decisions.len(), 2 * (pages.len() + 1));
    assert!(decisions.iter().all(|record| record["verdict"] == "allow" && record["rpc"].is_null()));
    let of = |path: &str| decisions.iter().find(|record| record["path"] == path).unwrap();
    // As it is sent, not as it was asked for.
    let health = of("/health?exclude=NOSPACE&serializable=true");
    assert_eq!(health["touches"], json!([{ "verb": "health" }]));
    assert!(health["rules"][0].as_str().unwrap().starts_with("tenant/4 "), "{health}");
    assert_eq!(of("/version")["touches"], json!([{ "verb": "version" }]));
    assert_eq!(of("/metrics")["touches"], json!([{ "verb": "metrics" }]));
    let outcomes = outcomes(&ringfence);
    assert_eq!(outcomes.len(), decisions.len());
    assert!(outcomes.iter().all(|outcome| outcome["status"] == 200 && outcome["fault"].is_null()));
    let bytes = |outcome: &Value| outcome["response_bytes"].as_u64().unwrap();
    assert_eq!(bytes(&outcomes[0]), 29);
    assert!(bytes(outcomes.last().unwrap()) > 100_000);
    let decided = |outcome: &Value| decisions.iter().any(|record| record["seq"] == outcome["seq"]);
    assert!(!outcomes.iter().any(decided));
}

/// It has no `/livez` and `/readyz`, and says so itself.
#[tokio::test]
async fn the_oldest_etcd_is_asked_too_and_answers_for_itself() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.4", &pki);
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let health = get(&pki, "acme", ringfence.port, "/health?exclude=CORRUPT").await;
    assert_eq!(health, (200, "{\"health\":\"true\"}".to_owned()));
    let version = get(&pki, "apiserver", ringfence.port, "/version").await;
    assert_eq!(version, (200, "{\"etcdserver\":\"3.4.23\",\"etcdcluster\":\"3.4.0\"}".to_owned()));
    assert_eq!(get(&pki, "apiserver", ringfence.port, "/metrics").await.0, 200);
    for target in ["/livez", "/readyz/non_learner"] {
        let answer = get(&pki, "acme", ringfence.port, target).await;
        assert_eq!(answer, (404, "404 page not found\n".to_owned()));
    }
    let decisions = ringfence.decisions();
    assert!(decisions.iter().all(|record| record["verdict"] == "allow"));
    let statuses: Vec<Value> =
        outcomes(&ringfence).iter().map(|outcome| outcome["status"].clone()).collect();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 200, 404, 404, 404, 404]);
}

#[tokio::test]
async fn a_page_is_denied_without_its_verb_and_etcd_is_not_asked() {
    let pki = Pki::make();
    let tap = HttpTap::start(response_head(&["content-length: 0"]), Then::End).await;
    let mut ringfence = Ringfence::start(&pki, &tap.endpoint);
    let denied = (403, "ringfence: permission denied\n".to_owned());
    for page in Page::ALL {
        let name = if page.verb().name() == "health" { "apiserver" } else { "acme" };
        assert_eq!(get(&pki, name, ringfence.port, page.path()).await, denied);
    }
    // A certificate that is nobody learns no more, whatever it asks for.
    for target in ["/health", "/metrics", "/nothing"] {
        assert_eq!(get(&pki, "etcd-server", ringfence.port, target).await, denied);
    }
    let decisions = ringfence.decisions();
    assert_eq!(decisions.len(), 2 * (Page::ALL.len() + 3));
    let (policy, nobody) = decisions.split_at(2 * Page::ALL.len());
    for record in policy {
        assert_eq!((&record["verdict"], &record["reason"]), (&json!("deny"), &json!("no_rule")));
        assert_eq!(record["touches"].as_array().unwrap().len(), 1);
    }
    assert!(nobody.iter().all(|record| record["reason"] == "no_principal"));
    assert_eq!(tap.take(), [""; 0]);
    assert!(outcomes(&ringfence).is_empty());
}

/// What goes out is written from the table, byte for byte, whatever the client says beside it; what
/// comes back is the status, the content type and the body.
#[tokio::test]
async fn no_header_travels_in_either_direction() {
    let pki = Pki::make();
    let answer = [
        "HTTP/1.1 503 Service Unavailable",
        "Access-Control-Allow-Origin: *",
        "Content-Type: text/x-etcd",
        "Set-Cookie: a=b",
        "Location: https://elsewhere.example/",
        "Upgrade: h2c",
        "Trailer: x",
        "Transfer-Encoding: chunked",
        "",
        "3\r\nno\n\r\n0\r\nx: trailer\r\n\r\n",
    ];
    let tap = HttpTap::start(answer.join("\r\n"), Then::End).await;
    let mut ringfence = Ringfence::start(&pki, &tap.endpoint);
    let authority = tap.endpoint.strip_prefix("http://").unwrap();
    let expected = format!(
        "GET /health?exclude=NOSPACE&serializable=true HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n"
    );
    let target = "/health?serializable=true&exclude=NOSPACE";
    let mut client = Http1::connect(&pki, "acme", ringfence.port).await;
    let more = "Cookie: c=d\r\nAuthorization: Bearer x\r\nToken: t\r\nX-Forwarded-For: 1.2.3.4\r\n\
        Accept-Encoding: gzip\r\nOrigin: https://evil.example\r\nConnection: keep-alive, X-Secret\r\n\
        X-Secret: s\r\nTE: trailers\r\nRange: bytes=0-1\r\nContent-Length: 0\r\n";
    client.send(format!("GET {target} HTTP/1.1\r\nHost: evil.example\r\n{more}\r\n")).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, &*answer.body), (503, &b"no\n"[..]));
    assert_eq!(answer.headers, ["content-type: text/x-etcd", "transfer-encoding: chunked"]);
    assert_eq!(tap.take(), [&*expected]);

    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    let headers = [
        ("cookie", "c=d"),
        ("authorization", "Bearer x"),
        ("token", "t"),
        ("origin", "https://evil.example"),
        ("accept-encoding", "gzip"),
        ("te", "trailers"),
    ];
    let reply = client.http(Method::GET, target, &headers, Bytes::new()).await;
    assert_eq!((reply.http_status, &*reply.data), (503, &b"no\n"[..]));
    assert_eq!(reply.headers.len(), 1, "{:?}", reply.headers);
    assert_eq!(tap.take(), [expected]);
    assert_eq!(ringfence.decisions().len(), 2);
    assert!(outcomes(&ringfence).iter().all(|outcome| outcome["status"] == 503));
}

/// Attack cases 106 to 110, and every page bent a little: refused, recorded, never sent on.
#[tokio::test]
async fn other_paths_methods_queries_and_bodies_are_refused_over_http_1() {
    let pki = Pki::make();
    let tap = HttpTap::start(response_head(&["content-length: 0"]), Then::End).await;
    let mut ringfence = Ringfence::start(&pki, &tap.endpoint);
    let mut refusals: Vec<(String, u16, &str)> = Vec::new();
    let mut refused = |first: &str, headers: &str, status: u16, reason: &'static str| {
        refusals.push((format!("{first}\r\n{headers}\r\n"), status, reason));
    };
    for target in UNKNOWN_TARGETS {
        refused(&format!("GET {target} HTTP/1.1"), HOST, 404, "unknown_path");
    }
    for first in [
        "POST /v3/kv/range HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "OPTIONS /v3/kv/range HTTP/1.1",
        "CONNECT localhost:2379 HTTP/1.1",
        "GET http://evil.example/health HTTP/1.1",
        "GET https://localhost/health HTTP/1.1",
        "GET /v2/keys HTTP/1.0",
        "POST /etcdserverpb.KV/Range HTTP/1.1",
    ] {
        refused(first, HOST, 404, "unknown_path");
    }
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n";
    refused("GET /v3/watch HTTP/1.1", &format!("{HOST}{upgrade}"), 404, "unknown_path");
    for method in ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "X"] {
        refused(&format!("{method} /health HTTP/1.1"), HOST, 405, "method");
        refused(&format!("{method} /metrics HTTP/1.1"), HOST, 405, "method");
    }
    for target in BAD_QUERIES {
        refused(&format!("GET {target} HTTP/1.1"), HOST, 400, "query");
    }
    let with = |more: &str| format!("{HOST}{more}");
    refused("GET /health HTTP/1.0", HOST, 505, "http");
    refused("GET /health HTTP/1.1", "", 400, "http");
    refused("GET /health HTTP/1.1", &with(HOST), 400, "http");
    refused("GET /health HTTP/1.1", &with(upgrade), 400, "http");
    let h2c = "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n";
    refused("GET /health HTTP/1.1", &with(h2c), 400, "http");
    refused("GET /health HTTP/1.1", &with("content-length: 5\r\n"), 400, "body");
    refused("GET /health HTTP/1.1", &with("transfer-encoding: chunked\r\n"), 400, "body");

    for (request, status, _) in &refusals {
        let mut client = Http1::connect(&pki, "acme", ringfence.port).await;
        // The second is never looked at: with a refusal the connection ends.
        client.send(format!("{request}GET /health HTTP/1.1\r\n{HOST}\r\n")).await;
        let answer = String::from_utf8(client.rest().await).unwrap();
        let said = answer.split(' ').nth(1).unwrap();
        assert_eq!(said, status.to_string(), "{request} {answer}");
        assert!(
            !answer.contains(CROSS_ORIGIN) && answer.matches("\r\n\r\n").count() == 1,
            "{request} {answer}"
        );
        assert!(answer.contains("connection: close\r\n"), "{request} {answer}");
        assert_eq!(*status == 405, answer.contains("allow: GET\r\n"), "{request} {answer}");
    }
    let decisions = ringfence.decisions();
    for ((request, _, reason), record) in refusals.iter().zip(&decisions) {
        assert_eq!((&record["verdict"], &record["reason"]), (&json!("refuse"), &json!(reason)));
        let target = request.split(' ').nth(1).unwrap();
        let path = record["path"].as_str().unwrap();
        assert!(target.starts_with(path), "{target} is recorded as {path}");
    }
    assert_eq!(decisions.len(), refusals.len());
    assert_eq!(tap.take(), [""; 0]);
}

#[tokio::test]
async fn other_paths_methods_queries_and_bodies_are_refused_over_http_2() {
    let pki = Pki::make();
    let tap = HttpTap::start(response_head(&["content-length: 0"]), Then::End).await;
    let mut ringfence = Ringfence::start(&pki, &tap.endpoint);
    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    let mut reasons = Vec::new();
    let targets = UNKNOWN_TARGETS.iter().map(|target| (target, 404, "unknown_path"));
    let queries = BAD_QUERIES.iter().map(|target| (target, 400, "query"));
    for (target, status, reason) in targets.chain(queries) {
        let reply = client.get(target).await;
        assert_eq!((reply.http_status, reply.grpc_status), (status, None), "{target}");
        reasons.push(reason);
    }
    let json = [("content-type", "application/json")];
    for (method, path, headers, data, status, reason) in [
        // 106: with any content type but gRPC's
        (Method::POST, "/v3/kv/range", &json[..], "{}", 404, "unknown_path"),
        (Method::POST, "/v3/kv/range", &[], "{}", 404, "unknown_path"),
        (Method::OPTIONS, "/v3/kv/range", &[], "", 404, "unknown_path"),
        (Method::HEAD, "/health", &[], "", 405, "method"),
        (Method::POST, "/health", &json, "{}", 405, "method"),
        (Method::OPTIONS, "/health", &[], "", 405, "method"),
        (Method::DELETE, "/metrics", &[], "", 405, "method"),
        (Method::GET, "/health", &[], "x", 400, "body"),
    ] {
        let reply = client.http(method.clone(), path, headers, data.into()).await;
        assert_eq!((reply.http_status, reply.grpc_status), (status, None), "{method} {path}");
        assert_eq!(reply.headers.contains_key("allow"), status == 405);
        let mut names = reply.headers.keys().map(http::HeaderName::as_str);
        assert!(names.all(|name| !name.starts_with(CROSS_ORIGIN)));
        reasons.push(reason);
    }
    // A page is no RPC, and an RPC is no page: each is told so in its own words.
    let reply = client.unary_bytes("/health", b"").await;
    assert_eq!((reply.http_status, reply.grpc_status), (200, Some(12)));
    reasons.push("unknown_path");
    let reply = client.get("/etcdserverpb.KV/Range").await;
    assert_eq!((reply.http_status, reply.grpc_status), (200, Some(13)));
    reasons.push("method");
    drop(client);
    let decisions = ringfence.decisions();
    let recorded: Vec<&str> =
        decisions.iter().map(|record| record["reason"].as_str().unwrap()).collect();
    assert_eq!(recorded, reasons);
    assert_eq!(tap.take(), [""; 0]);
}

pub const HOST: &str = "host: localhost\r\n";

const UNKNOWN_TARGETS: &[&str] = &[
    "/",
    "//health",
    "/health/",
    "/Health",
    "/%68ealth",
    "/x/../health",
    "/./health",
    "/health%3fexclude=NOSPACE",
    "/health;x",
    "/livez/",
    "/livez/non_learner",
    "/livez/serializable_read/",
    "/readyz/x",
    "/proxy/health",
    "/proxy/metrics",
    "/v3/kv/range",
    "/v3beta/kv/range",
    "/v3alpha/kv/range",
    "/%763/kv/range",
    "/v3/watch",
    "/v3/auth/authenticate",
    "/v2/keys",
    "/debug/vars",
    "/debug/pprof/",
    "/debug/pprof/heap",
    "/debug/requests",
    "/debug/events",
    "/config/local/log",
    "/members",
    "/raft",
    "/versions",
];

const BAD_QUERIES: &[&str] = &[
    "/health?",
    "/health?exclude=",
    "/health?exclude=nospace",
    "/health?exclude=NOSPACE&exclude=NOSPACE",
    "/health?exclude=%4EOSPACE",
    "/health?serializable=1",
    "/health?serializable=true&serializable=false",
    "/health?verbose",
    "/livez?x",
    "/readyz?verbose=1",
    "/readyz/non_learner?exclude=non_learner",
    "/version?x=y",
    "/metrics?name[]=up",
];

/// What hyper cannot read ends the connection before it is a request that could be recorded.
#[tokio::test]
async fn what_is_no_request_at_all_is_answered_by_the_end() {
    let pki = Pki::make();
    let tap = HttpTap::start(response_head(&["content-length: 0"]), Then::End).await;
    let mut ringfence = Ringfence::start(&pki, &tap.endpoint);
    let large = format!("GET /health HTTP/1.1\r\n{HOST}x: {}\r\n\r\n", "x".repeat(66_000));
    let many = format!("GET /health HTTP/1.1\r\n{HOST}{}\r\n", "x: y\r\n".repeat(200));
    for (bytes, status) in [
        (&*large, " 431 "),
        (&many, " 431 "),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ""),
        ("GET /health HTTP/3.0\r\n\r\n", ""),
        ("GET /he alth HTTP/1.1\r\n\r\n", " 400 "),
        ("GET /health HTTP/1.1\r\nhost : x\r\n\r\n", " 400 "),
        (
            "GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            " 400 ",
        ),
        ("\0\r\n\r\n", " 400 "),
    ] {
        let mut client = Http1::connect(&pki, "acme", ringfence.port).await;
        client.send(bytes).await;
        let answer = String::from_utf8(client.rest().await).unwrap();
        let first = answer.lines().next().unwrap_or_default();
        assert!(first.contains(status) && !first.contains(" 200 "), "{bytes:.40}: {answer}");
    }
    assert_eq!(ringfence.decisions().len(), 0);
    assert_eq!(tap.take(), [""; 0]);
}

/// Two requests in one piece have two answers, in order, each recorded; a refusal ends it.
#[tokio::test]
async fn requests_in_one_piece_are_answered_one_after_the_other() {
    let pki = Pki::make();
    let tap = HttpTap::start(response_head(&["content-length: 0"]), Then::End).await;
    let limits = "[limits]\nhandshake_timeout_seconds = 1\n";
    let mut ringfence = Ringfence::start_with(&pki, &tap.endpoint, limits);
    let mut client = Http1::connect(&pki, "acme", ringfence.port).await;
    let request = |target: &str| format!("GET {target} HTTP/1.1\r\n{HOST}\r\n");
    let targets = ["/health", "/livez", "/readyz", "/nothing", "/health"];
    client.send(targets.map(request).concat()).await;
    for expected in [200, 200, 200, 404] {
        assert_eq!(client.answer().await.status, expected);
    }
    assert_eq!(client.rest().await, b"");
    // One that is idle for longer than a handshake may take is closed.
    let mut idle = Http1::connect(&pki, "acme", ringfence.port).await;
    assert_eq!(idle.get("/livez").await.status, 200);
    assert_eq!(idle.rest().await, b"");
    let decisions = ringfence.decisions();
    let paths: Vec<&str> =
        decisions.iter().map(|record| record["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/health", "/livez", "/readyz", "/nothing", "/livez"]);
    assert_eq!(tap.take().len(), 4);
}

/// etcd with `--listen-client-http-urls` serves no HTTP where it serves gRPC.
#[tokio::test]
async fn pages_come_from_their_own_endpoints_when_the_listeners_are_split() {
    let pki = Pki::make();
    let etcd = Etcd::start_split("3.7", &pki);
    let endpoints = format!(
        "endpoints = [\"{}\"]\nhttp_endpoints = [\"http://127.0.0.1:1\", \"{}\"]",
        etcd.endpoint(),
        etcd.http_endpoint()
    );
    let mut ringfence = Ringfence::start_before(&pki, &endpoints, "");
    let health = get(&pki, "acme", ringfence.port, "/health").await;
    assert_eq!(health, (200, "{\"health\":\"true\",\"reason\":\"\"}".to_owned()));
    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    let reply = client.unary_bytes("/etcdserverpb.KV/Range", b"\x0a\x0f/tenants/acme/x").await;
    assert_eq!(reply.grpc_status, Some(0));
    drop(client);
    assert_eq!(ringfence.decisions().len(), 3);

    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    assert_eq!(get(&pki, "acme", ringfence.port, "/health").await.0, 502);
    assert_eq!(ringfence.decisions().len(), 2);
    assert!(outcomes(&ringfence).iter().all(|outcome| outcome["fault"] == "broken"));
}

#[tokio::test]
async fn pages_come_over_plain_http_from_this_machine_too() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    assert_eq!(get(&pki, "acme", ringfence.port, "/readyz").await, (200, "ok\n".to_owned()));
}
