//! What one connection, or one source, may do to the others: nothing, and that briefly.

use std::time::Duration;

use prost::Message as _;
use ringfence::etcd::pb::etcdserverpb::{PutRequest, RangeRequest};
use tokio::net::TcpStream;

use crate::support::wire::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, HEADERS, NO_ERROR, PING,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, WireClient, frame, header_block, request,
};
use crate::support::{Etcd, PATIENCE, Pki, RawClient, Ringfence, Tap, framed, wait_for};

const RANGE: &str = "/etcdserverpb.KV/Range";
/// Field 1, 15 bytes: a key that the tenant may read.
const OWN_KEY: &[u8] = b"\x0a\x0f/tenants/acme/x";
/// The most that ringfence may take while 20 connections do what they can against its memory. h2
/// itself keeps about 3 KB for each of their 16,000 streams; a task for each would double that.
const MEMORY_BYTES_MAX: u64 = 128 << 20;

struct Bench {
    pki: Pki,
    /// Keeps the other side alive.
    _tap: Tap,
    ringfence: Ringfence,
}

impl Bench {
    async fn start(limits: &str) -> Self {
        let pki = Pki::make();
        let tap = Tap::start().await;
        let ringfence = Ringfence::start_with(&pki, &tap.endpoint, &format!("[limits]\n{limits}"));
        Self { pki, _tap: tap, ringfence }
    }

    async fn greeted(&self) -> WireClient {
        WireClient::greeted(&self.pki, "acme", self.ringfence.port).await
    }

    /// A neighbour that was there before is served.
    async fn neighbour(&self) -> RawClient {
        let neighbour = RawClient::connect(&self.pki, "globex", self.ringfence.port).await;
        served(&neighbour).await;
        neighbour
    }

    fn wait_for_end(&self, reason: &str, count: usize) {
        let wanted = format!("ringfence_connections_ended_total{{reason=\"{reason}\"}} {count}\n");
        wait_for(&wanted, || self.ringfence.metrics().contains(&wanted));
    }

    /// Stops it; why each connection ended and how many calls it made, in that order.
    fn endings(mut self) -> Vec<(String, u64)> {
        assert_eq!(self.ringfence.stop().code(), Some(0));
        let records = self.ringfence.records();
        // Those that were open to the end have no reason.
        let has_ended = |record: &&serde_json::Value| {
            record["type"] == "connection.close" && record["reason"].is_string()
        };
        let closed = records.iter().filter(has_ended);
        let ending = |record: &serde_json::Value| {
            (record["reason"].as_str().unwrap().to_owned(), record["calls"].as_u64().unwrap())
        };
        closed.map(ending).collect()
    }
}

async fn served(neighbour: &RawClient) {
    let reply = neighbour.unary_bytes(RANGE, b"\x0a\x11/tenants/globex/x").await;
    assert_eq!(reply.grpc_status, Some(0), "{reply:?}");
}

/// Sends all of it; then the connection must end by itself for that reason, with GOAWAY, and the
/// neighbour must not notice.
async fn check_flood(limits: &str, attack: &[u8], reason: &str, code: u32) {
    let bench = Bench::start(limits).await;
    let neighbour = bench.neighbour().await;
    let mut attacker = bench.greeted().await;
    // It may be closed before all is sent.
    drop(attacker.send(attack).await);
    assert_eq!(attacker.read_to_end().await, [code], "{reason}");
    bench.wait_for_end(reason, 1);
    served(&neighbour).await;
    let endings = bench.endings();
    assert_eq!(endings[0].0, reason, "{endings:?}");
    assert!(endings.iter().skip(1).all(|(reason, _)| reason == "drained"), "{endings:?}");
}

#[tokio::test]
async fn a_ping_flood_ends_the_connection_and_nothing_else() {
    let limits = "control_frames_per_second = 10";
    let questions = frame(PING, 0, 0, b"12345678").repeat(400);
    check_flood(limits, &questions, "control_flood", ENHANCE_YOUR_CALM).await;
    let answers = frame(PING, ACK, 0, b"12345678").repeat(400);
    check_flood(limits, &answers, "control_flood", ENHANCE_YOUR_CALM).await;
}

/// A reply taken byte by byte: each costs us a frame and the client thirteen bytes.
#[tokio::test]
async fn windows_of_one_byte_end_the_connection_and_nothing_else() {
    let closed_windows = frame(SETTINGS, 0, 0, b"\0\x04\0\0\0\0");
    let one_byte = frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).repeat(400);
    let attack = [closed_windows, request(1, RANGE, OWN_KEY), one_byte].concat();
    let limits = "control_frames_per_second = 10";
    check_flood(limits, &attack, "control_flood", ENHANCE_YOUR_CALM).await;
}

#[tokio::test]
async fn a_settings_flood_ends_the_connection_and_nothing_else() {
    let settings = frame(SETTINGS, 0, 0, b"\0\x04\0\0\xff\xff").repeat(100);
    let limits = "control_frames_per_second = 10";
    check_flood(limits, &settings, "control_flood", ENHANCE_YOUR_CALM).await;
}

/// CVE-2024-27316: a header block without end, a byte at a time.
#[tokio::test]
async fn a_continuation_flood_ends_the_connection_and_nothing_else() {
    let first = frame(HEADERS, 0, 1, &header_block(RANGE));
    let flood = [first, frame(CONTINUATION, 0, 1, b"").repeat(50)].concat();
    check_flood("", &flood, "continuation_flood", ENHANCE_YOUR_CALM).await;
}

/// CVE-2023-44487: streams that are opened to be given up.
#[tokio::test]
async fn a_rapid_reset_ends_the_connection_and_nothing_else() {
    let open_and_reset = |stream: u32| {
        let opened = frame(HEADERS, END_HEADERS, stream, &header_block(RANGE));
        [opened, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    };
    let flood: Vec<u8> = (0..40).flat_map(|number| open_and_reset(2 * number + 1)).collect();
    check_flood("resets_per_second = 1", &flood, "reset_flood", ENHANCE_YOUR_CALM).await;
}

#[tokio::test]
async fn a_frame_longer_than_announced_ends_the_connection_and_nothing_else() {
    let frame_size_error = 6;
    let large = frame(DATA, 0, 1, &[0; 16_385]);
    check_flood("", &large[..9], "frame_size", frame_size_error).await;
}

/// The slow way: header blocks that come byte by byte, or never as a whole.
#[tokio::test]
async fn a_half_sent_header_block_has_a_deadline() {
    let bench = Bench::start("header_timeout_seconds = 1").await;
    let neighbour = bench.neighbour().await;
    let block = header_block(RANGE);
    let whole = frame(HEADERS, END_HEADERS, 1, &block);
    let mut pieces = bench.greeted().await;
    pieces.send(&frame(HEADERS, 0, 1, &block)).await.unwrap();
    assert_eq!(pieces.read_to_end().await, [ENHANCE_YOUR_CALM]);
    let mut drips = bench.greeted().await;
    for byte in whole {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if drips.send(&[byte]).await.is_err() {
            break;
        }
    }
    drips.read_to_end().await;
    bench.wait_for_end("half_sent", 2);
    served(&neighbour).await;
    assert_eq!(bench.endings()[..2], [("half_sent".to_owned(), 0), ("half_sent".to_owned(), 0)]);
}

#[tokio::test]
async fn a_client_that_is_silent_after_the_handshake_is_let_go() {
    let bench = Bench::start("first_request_timeout_seconds = 1").await;
    let port = bench.ringfence.port;
    let mut silent = WireClient::connect(&bench.pki, "acme", "h2", port).await;
    let mut http1 = WireClient::connect(&bench.pki, "acme", "http/1.1", port).await;
    http1.send(b"GET /health HTTP/1.1\r\nhost: local").await.unwrap();
    let mut greeted = bench.greeted().await;
    assert_eq!(greeted.read_to_end().await, [NO_ERROR, NO_ERROR], "told politely");
    silent.read_to_end().await;
    http1.read_to_end().await;
    for reason in ["no_request", "no_preface", "http1"] {
        bench.wait_for_end(reason, 1);
    }
    assert!(bench.endings().iter().all(|(_, calls)| *calls == 0));
}

#[tokio::test]
async fn an_idle_connection_is_let_go_and_a_busy_one_is_not() {
    let bench = Bench::start("idle_timeout_seconds = 3").await;
    let mut idle = bench.greeted().await;
    let mut busy = bench.greeted().await;
    idle.send(&request(1, RANGE, OWN_KEY)).await.unwrap();
    // A call that is open is not idle, although nothing happens for longer than the timeout.
    busy.send(&frame(HEADERS, END_HEADERS, 1, &header_block(RANGE))).await.unwrap();
    assert_eq!(idle.read_to_end().await, [NO_ERROR, NO_ERROR], "told politely");
    bench.wait_for_end("idle", 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!bench.ringfence.metrics().contains("{reason=\"idle\"} 2\n"));
    busy.send(&frame(DATA, END_STREAM, 1, &framed(OWN_KEY))).await.unwrap();
    busy.read_replies(1).await;
    assert_eq!(busy.read_to_end().await, [NO_ERROR, NO_ERROR]);
    bench.wait_for_end("idle", 2);
    assert_eq!(bench.endings(), [("idle".to_owned(), 1), ("idle".to_owned(), 1)]);
}

/// PINGs keep nothing alive, and a client that ignores GOAWAY is cut.
#[tokio::test]
async fn a_client_that_will_not_go_is_cut() {
    let bench = Bench::start("idle_timeout_seconds = 3\ndrain_timeout_seconds = 1\n").await;
    let mut client = bench.greeted().await;
    client.send(&request(1, RANGE, OWN_KEY)).await.unwrap();
    let ping = frame(PING, 0, 0, b"12345678");
    let patience = tokio::time::Instant::now() + PATIENCE;
    while client.send(&ping).await.is_ok() {
        assert!(tokio::time::Instant::now() < patience, "PINGs keep a connection alive");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(bench.endings(), [("idle".to_owned(), 1)]);
}

/// The end of its life waits for a call that is open.
#[tokio::test]
async fn a_connection_that_got_old_ends_after_its_calls() {
    let bench = Bench::start("lifetime_seconds = 3").await;
    let mut client = bench.greeted().await;
    client.send(&request(1, RANGE, OWN_KEY)).await.unwrap();
    client.send(&frame(HEADERS, END_HEADERS, 3, &header_block(RANGE))).await.unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    client.send(&frame(DATA, END_STREAM, 3, &framed(OWN_KEY))).await.unwrap();
    assert_eq!(client.read_to_end().await, [NO_ERROR, NO_ERROR]);
    let mut ringfence = bench.ringfence;
    assert_eq!(ringfence.stop().code(), Some(0));
    let records = ringfence.records();
    let of_type = |name: &'static str| records.iter().filter(move |record| record["type"] == name);
    assert!(of_type("connection.close").all(|record| record["reason"] == "lifetime"));
    assert_eq!(of_type("outcome").filter(|record| record["status"] == 0).count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_source_has_so_many_connections_and_gets_its_places_back() {
    let bench = Bench::start("connections_per_source = 4").await;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(bench.neighbour().await);
    }
    for _ in 0..20 {
        let mut refused = TcpStream::connect(("127.0.0.1", bench.ringfence.port)).await.unwrap();
        let reading = tokio::io::AsyncReadExt::read(&mut refused, &mut [0; 8]).await;
        assert!(matches!(reading, Ok(0) | Err(_)), "{reading:?}");
    }
    for neighbour in &open {
        served(neighbour).await;
    }
    let refused = "ringfence_handshakes_refused_total{reason=\"source_full\"} 20\n";
    assert!(bench.ringfence.metrics().contains(refused));
    open.clear();
    bench.wait_for_end("client_closed", 4);
    // The place is given back a moment after the end is counted.
    wait_for("a free place", || bench.ringfence.metrics().contains("ringfence_connections 0\n"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    bench.neighbour().await;
    let mut ringfence = bench.ringfence;
    assert_eq!(ringfence.stop().code(), Some(0));
    let records = ringfence.records();
    let folded: Vec<_> =
        records.iter().filter(|record| record["reason"] == "source_full").collect();
    assert!(folded.len() <= 4, "twenty refusals are a line and a count: {folded:?}");
    assert!(folded.iter().all(|record| record["source"] == "127.0.0.1"), "{folded:?}");
}

/// What we owe a client that reads nothing (SETTINGS and PING answers, replies, resets) waits at the
/// client, at etcd or nowhere, but not in memory. With the default limits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_ask_for_much_and_read_nothing_cost_no_memory() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    put_two_mebibytes(&pki, ringfence.port).await;
    let neighbour = RawClient::connect(&pki, "globex", ringfence.port).await;
    let before = ringfence.memory_bytes();
    for round in 1..=3 {
        let attackers = ask_for_much_and_read_nothing(&pki, ringfence.port).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        served(&neighbour).await;
        let memory = ringfence.memory_bytes();
        println!("memory: {before} bytes before, {memory} in round {round}");
        assert!(memory < MEMORY_BYTES_MAX, "{memory} bytes, {before} before");
        drop(attackers);
        served(&neighbour).await;
    }
    assert_eq!(ringfence.stop().code(), Some(0));
}

/// The attack: sockets without a word, as many as there may be handshakes under way.
#[tokio::test]
async fn silent_sockets_of_one_source_leave_places_for_handshakes_of_others() {
    let bench = Bench::start("pending_handshakes = 8\nhandshake_timeout_seconds = 60").await;
    let mut silent = Vec::new();
    for _ in 0..16 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let address = format!("127.0.0.1:{}", bench.ringfence.port).parse().unwrap();
        silent.push(socket.connect(address).await.unwrap());
    }
    let refused = "ringfence_handshakes_refused_total{reason=\"handshakes_full\"} 14\n";
    wait_for(refused, || bench.ringfence.metrics().contains(refused));
    bench.neighbour().await;
}

/// The attack: replies that end their calls, and then wait for ever in the connection's buffers.
#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_off() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let limits = "[limits]\ncall_timeout_seconds = 1";
    let ringfence = Ringfence::start_with(&pki, &etcd.endpoint(), limits);
    put_two_mebibytes(&pki, ringfence.port).await;
    let neighbour = RawClient::connect(&pki, "globex", ringfence.port).await;
    let attackers = ask_for_much_and_read_nothing(&pki, ringfence.port).await;
    // Where the socket took what came before the call's time was over, nothing waits: on a busy machine
    // that is most of them.
    let cut_off = |metrics: &str| {
        let start = "ringfence_connections_ended_total{reason=\"stalled\"} ";
        let count = metrics.lines().find_map(|line| line.strip_prefix(start));
        count.map_or(0, |count| count.parse::<usize>().unwrap())
    };
    wait_for("the end of clients that do not read", || cut_off(&ringfence.metrics()) > 0);
    drop(attackers);
    served(&neighbour).await;
}

/// What the clients below ask for.
async fn put_two_mebibytes(pki: &Pki, port: u16) {
    let writer = RawClient::connect(pki, "acme", port).await;
    for number in 0..2 {
        let key = format!("/tenants/acme/large-{number}");
        let put =
            PutRequest { key: key.into(), value: vec![7; 1 << 20].into(), ..Default::default() };
        let reply = writer.call("/etcdserverpb.KV/Put", &[], framed(&put.encode_to_vec())).await;
        assert_eq!(reply.grpc_status, Some(0));
    }
}

/// Twenty clients that ask for 20 MiB each, for answers to PINGs and SETTINGS, and for refusals.
async fn ask_for_much_and_read_nothing(pki: &Pki, port: u16) -> Vec<WireClient> {
    let all = RangeRequest {
        key: "/tenants/acme/large-".into(),
        range_end: "/tenants/acme/large.".into(),
        ..Default::default()
    };
    let all = all.encode_to_vec();
    // Windows as large as can be, so that nothing but our own bounds hold replies back.
    let largest = 0x7fff_0000_u32.to_be_bytes();
    let mut requests = frame(SETTINGS, 0, 0, &[&[0, 4], &largest[..]].concat());
    requests.extend(frame(WINDOW_UPDATE, 0, 0, &largest));
    requests.extend((0..10).flat_map(|number| request(2 * number + 1, RANGE, &all)));
    let ping = frame(PING, 0, 0, b"12345678");
    let mut flood = [ping.clone(), frame(SETTINGS, 0, 0, b"")].concat().repeat(100);
    flood.extend((100..900).flat_map(|number| request(2 * number + 1, "/nobody/Knows", b"")));
    flood.extend(ping.repeat(2000));
    let mut attackers = Vec::new();
    for _ in 0..20 {
        let mut attacker = WireClient::greeted(pki, "acme", port).await;
        attacker.send(&requests).await.unwrap();
        attackers.push(attacker);
    }
    for attacker in &mut attackers {
        drop(attacker.send_unless_stuck(&flood).await);
    }
    attackers
}

/// As Go's and Java's gRPC clients do while they measure the line: a PING for each reply, and windows
/// updated each time. With the default limits, and as fast as it goes.
#[tokio::test]
async fn a_client_that_measures_the_line_is_never_cut() {
    let bench = Bench::start("").await;
    let mut client = bench.greeted().await;
    let (rounds, calls) = (100, 100);
    for round in 0..rounds {
        let mut bytes = Vec::new();
        for call in 0..calls {
            let stream = 2 * (round * calls + call) + 1;
            bytes.extend(request(stream, RANGE, OWN_KEY));
            bytes.extend(frame(PING, 0, 0, b"12345678"));
            bytes.extend(frame(WINDOW_UPDATE, 0, stream, &[0, 0, 0, 40]));
            bytes.extend(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 40]));
        }
        client.send(&bytes).await.unwrap();
        client.read_replies(usize::try_from(calls).unwrap()).await;
    }
    drop(client);
    bench.wait_for_end("client_closed", 1);
    assert_eq!(bench.endings(), [("client_closed".to_owned(), u64::from(rounds * calls))]);
}

/// Deadlines that pass for many calls at once are no rapid reset. With the default limits.
#[tokio::test]
async fn a_client_that_gives_up_many_calls_at_once_is_never_cut() {
    let bench = Bench::start("").await;
    let mut client = bench.greeted().await;
    // No more at once than h2 bears before they are served (64).
    let (rounds, calls) = (20, 60);
    for round in 0..rounds {
        let first = 2 * round * (calls + 1) + 1;
        let streams = || (0..calls).map(|call| first + 2 * call);
        let open = |stream| frame(HEADERS, END_HEADERS, stream, &header_block(RANGE));
        let reset = |stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]);
        client.send(&streams().flat_map(open).collect::<Vec<_>>()).await.unwrap();
        client.send(&streams().flat_map(reset).collect::<Vec<_>>()).await.unwrap();
        client.send(&request(first + 2 * calls, RANGE, OWN_KEY)).await.unwrap();
        client.read_replies(1).await;
    }
    drop(client);
    bench.wait_for_end("client_closed", 1);
    let endings = bench.endings();
    assert_eq!(endings[0].0, "client_closed");
    assert!(endings[0].1 >= u64::from(rounds), "{endings:?}");
}
