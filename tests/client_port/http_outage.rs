//! Plain HTTP when something goes wrong: etcd hangs, breaks off, never ends; clients do not read or
//! go away; the audit log takes nothing; the process ends.

use std::time::Duration;

use crate::http::{HOST, get, outcomes};
use crate::support::{
    Http1, HttpTap, PATIENCE, Pki, RawClient, Reply, Ringfence, Then, response_head, wait_for,
};

/// Every way in which etcd can fail to show a page has an answer and a fault.
#[tokio::test]
async fn an_etcd_that_does_not_show_the_page_is_told_apart() {
    let pki = Pki::make();
    let chunked = response_head(&["transfer-encoding: chunked"]);
    for (answer, then, status, fault) in [
        ("".to_owned(), Then::Hang, 504, "timeout"),
        ("SSH-2.0-x\r\n\r\n".to_owned(), Then::End, 502, "broken"),
        (
            "HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n".to_owned(),
            Then::End,
            502,
            "broken",
        ),
        (response_head(&["content-length: 67108865"]), Then::End, 502, "too_large"),
        // The head is on its way already: what is missing must show.
        (format!("{}x", response_head(&["content-length: 9"])), Then::End, 0, "broken"),
        (format!("{chunked}1\r\nx\r\n"), Then::End, 0, "broken"),
    ] {
        let tap = HttpTap::start(answer.clone(), then).await;
        let limits = "[limits]\ncall_timeout_seconds = 1\n";
        let mut ringfence = Ringfence::start_with(&pki, &tap.endpoint, limits);
        let reply = RawClient::connect(&pki, "acme", ringfence.port).await.get("/health").await;
        let mut client = Http1::connect(&pki, "acme", ringfence.port).await;
        client.send(format!("GET /health HTTP/1.1\r\n{HOST}\r\n")).await;
        let first = String::from_utf8(client.rest().await).unwrap();
        if status == 0 {
            assert!(reply.broken && reply.http_status == 200, "{answer}: {reply:?}");
            assert!(first.ends_with('x') || first.ends_with("x\r\n"), "{answer}: {first}");
        } else {
            assert_eq!(reply.http_status, status, "{answer}");
            assert!(first.starts_with(&format!("HTTP/1.1 {status}")), "{answer}: {first}");
        }
        assert_eq!(ringfence.decisions().len(), 2);
        for outcome in outcomes(&ringfence) {
            assert_eq!(outcome["fault"], fault, "{answer}: {outcome}");
            let expected = if status == 0 { 200 } else { status };
            assert_eq!(outcome["status"], expected, "{answer}: {outcome}");
        }
    }
    let endpoints = "endpoints = [\"http://127.0.0.1:1\"]";
    let mut ringfence = Ringfence::start_before(&pki, endpoints, "");
    assert_eq!(get(&pki, "acme", ringfence.port, "/health").await.0, 502);
    assert_eq!(ringfence.decisions().len(), 2);
    assert!(outcomes(&ringfence).iter().all(|outcome| outcome["fault"] == "unreachable"));
}

/// What an etcd that never ends its page sends again and again.
const CHUNK: &[u8] = &[b'x'; 65_536];

/// Readers that do not read take no one else's place, and are cut at the deadline.
#[tokio::test]
async fn a_page_that_nobody_reads_ends_at_its_deadline_and_holds_up_nobody() {
    let pki = Pki::make();
    let tap = HttpTap::start(response_head(&["connection: close"]), Then::Repeat(CHUNK)).await;
    let limits = "[limits]\ncall_timeout_seconds = 5\n";
    let mut ringfence = Ringfence::start_with(&pki, &tap.endpoint, limits);
    let second = RawClient::connect(&pki, "acme", ringfence.port).await;
    let mut stopped = Vec::new();
    for _ in 0..4 {
        stopped.push(second.get_and_stop_reading("/health").await);
    }
    // The share is counted per core, and this is the same connection.
    assert_eq!(second.get("/health").await.http_status, 429);
    let mut first = Http1::connect(&pki, "globex", ringfence.port).await;
    first.send(format!("GET /health HTTP/1.1\r\n{HOST}\r\n")).await;
    let other = RawClient::connect(&pki, "apiserver", ringfence.port).await;
    let page = other.get_and_stop_reading("/version").await;
    assert_eq!(page.status(), 200);
    assert!(ringfence.memory_bytes() < 64 << 20, "{} bytes", ringfence.memory_bytes());
    wait_for("the cut", || ringfence.metrics().contains("upstream_connections 0"));
    assert_eq!(ringfence.decisions().len(), 7);
    let outcomes = outcomes(&ringfence);
    assert_eq!(outcomes.len(), 6);
    assert!(outcomes.iter().all(|outcome| outcome["fault"] == "timeout"), "{outcomes:?}");
    drop((stopped, page, first));
}

#[tokio::test]
async fn a_page_without_an_end_breaks_off_at_the_bound_and_is_never_kept() {
    let pki = Pki::make();
    let tap = HttpTap::start(response_head(&["connection: close"]), Then::Repeat(CHUNK)).await;
    let mut ringfence = Ringfence::start(&pki, &tap.endpoint);
    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    let page = client.get("/health").await;
    assert!(page.broken && page.data.len() <= 64 << 20, "{} bytes", page.data.len());
    assert!(page.data.len() > 63 << 20, "{} bytes", page.data.len());
    assert!(ringfence.memory_bytes() < 64 << 20, "{} bytes", ringfence.memory_bytes());
    drop(client);
    assert_eq!(ringfence.decisions().len(), 1);
    assert_eq!(outcomes(&ringfence)[0]["fault"], "too_large");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_while_etcd_is_asked_gives_up_its_page() {
    let pki = Pki::make();
    let tap = HttpTap::start("", Then::Hang).await;
    let mut ringfence = Ringfence::start(&pki, &tap.endpoint);
    let (waiting, first) = ask_twice(&pki, &ringfence, &tap).await;
    waiting.abort();
    drop((waiting.await, first));
    wait_for("the end", || ringfence.metrics().contains("upstream_connections 0"));
    assert_eq!(ringfence.decisions().len(), 2);
    assert!(outcomes(&ringfence).iter().all(|outcome| outcome["fault"] == "client_gone"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_in_the_middle_of_a_page_gives_it_up() {
    let pki = Pki::make();
    let part = format!("{}x", response_head(&["content-length: 9"]));
    let tap = HttpTap::start(part, Then::Hang).await;
    let mut ringfence = Ringfence::start(&pki, &tap.endpoint);
    let second = RawClient::connect(&pki, "acme", ringfence.port).await;
    let mut body = second.get_and_stop_reading("/health").await.into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "x");
    let mut first = Http1::connect(&pki, "acme", ringfence.port).await;
    first.send(format!("GET /health HTTP/1.1\r\n{HOST}\r\n")).await;
    first.read_until(b"\r\n\r\nx").await;
    drop((second, body, first));
    wait_for("the end", || ringfence.metrics().contains("upstream_connections 0"));
    assert_eq!(ringfence.decisions().len(), 2);
    for outcome in outcomes(&ringfence) {
        assert_eq!(
            (&outcome["fault"], &outcome["response_bytes"]),
            (&"client_gone".into(), &1.into())
        );
    }
}

/// Asks for a page over each version, and comes back when etcd has been asked for both.
async fn ask_twice(
    pki: &Pki,
    ringfence: &Ringfence,
    tap: &HttpTap,
) -> (tokio::task::JoinHandle<Reply>, Http1) {
    let second = RawClient::connect(pki, "acme", ringfence.port).await;
    let waiting = tokio::spawn(async move { second.get("/health").await });
    let mut first = Http1::connect(pki, "acme", ringfence.port).await;
    first.send(format!("GET /health HTTP/1.1\r\n{HOST}\r\n")).await;
    let asking = async {
        let mut asked = 0;
        while asked < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            asked += tap.take().len();
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("etcd is asked");
    (waiting, first)
}

/// SIGTERM while pages are on their way: what is idle ends at once, what is not done in the drain
/// time is cut, and the records say who did it.
#[tokio::test]
async fn a_page_that_outlives_the_drain_time_is_recorded_as_aborted() {
    let pki = Pki::make();
    let tap = HttpTap::start("", Then::Hang).await;
    let limits = "[limits]\ndrain_timeout_seconds = 1\n";
    let mut ringfence = Ringfence::start_with(&pki, &tap.endpoint, limits);
    let mut idle = Http1::connect(&pki, "acme", ringfence.port).await;
    idle.send("GET ").await;
    let (waiting, first) = ask_twice(&pki, &ringfence, &tap).await;
    // Calls were cut: that is no end in good order.
    assert_eq!(ringfence.stop().code(), Some(1));
    drop((waiting.await, first, idle));
    let outcomes = outcomes(&ringfence);
    assert_eq!(outcomes.len(), 2);
    assert!(outcomes.iter().all(|outcome| outcome["fault"] == "aborted"), "{outcomes:?}");
}

/// The audit file may not grow: records stay in the queue, and once it is full nobody is served.
#[tokio::test]
async fn a_page_is_unavailable_when_its_decision_cannot_be_recorded() {
    let pki = Pki::make();
    let tap = HttpTap::start(response_head(&["content-length: 0"]), Then::End).await;
    let ringfence = Ringfence::start_with_regular_files(&pki, &tap.endpoint);
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let mut served = 0;
    while acme.get("/health").await.http_status == 200 {
        served += 1;
        assert!(served < 10_000, "the log has no end");
    }
    assert!(served > 0);
    // A refusal takes less room than a permit, which takes its outcome's too.
    while acme.get("/nothing").await.http_status == 404 {}
    assert_eq!(tap.take().len(), served);
    for target in ["/health", "/version", "/nothing", "/health?x"] {
        let reply = acme.get(target).await;
        let said = "ringfence: the audit log takes no records\n".as_bytes();
        assert_eq!((reply.http_status, &*reply.data), (503, said), "{target}");
    }
    assert_eq!(tap.take(), [""; 0]);
}
