//! Sinks get every line of the log, byte for byte; a required one is waited for, and what another loses is recorded.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

use ringfence::etcd::pb::etcdserverpb::{
    PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, request_op,
};
use rustls::{ServerConnection, StreamOwned};

use crate::support::{Etcd, PATIENCE, Pki, RawClient, Ringfence, Settings, http_get, wait_for};

const PUT: &str = "/etcdserverpb.KV/Put";

/// What a collector was told, as lines.
type Told = Arc<Mutex<Vec<String>>>;

fn told(told: &Told) -> Vec<String> {
    told.lock().unwrap().clone()
}

/// Reads messages with octet counting until the other side ends.
fn read_syslog(stream: impl Read, told: &Told) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut length = Vec::new();
        if stream.read_until(b' ', &mut length).unwrap_or(0) == 0 {
            return;
        }
        let length: usize = std::str::from_utf8(&length).unwrap().trim_end().parse().unwrap();
        let mut message = vec![0; length];
        if stream.read_exact(&mut message).is_err() {
            return;
        }
        told.lock().unwrap().push(String::from_utf8(message).unwrap());
    }
}

/// The lines in syslog messages, whose heads are of RFC 5424.
fn lines_of_syslog(messages: &[String]) -> Vec<String> {
    let line = |message: &String| {
        let (head, line) = message.split_once(" - ").unwrap();
        let kind = line.split("\"type\":\"").nth(1).unwrap().split('"').next().unwrap();
        let time = line.split("\"time\":\"").nth(1).unwrap().split('"').next().unwrap();
        let fields: Vec<&str> = head.split(' ').collect();
        assert!(matches!(fields[0], "<86>1" | "<84>1" | "<83>1"), "{head}");
        assert_eq!((fields[1], fields[3], fields[5], fields.len()), (time, "ringfence", kind, 6));
        line.to_owned()
    };
    messages.iter().map(line).collect()
}

/// Takes connections one after the other, with what a thread does to each.
fn listen(take: impl Fn(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            take(stream.unwrap());
        }
    });
    port
}

/// A collector of OTLP: the first answer is 503, as of one that is busy.
fn otlp_collector(bodies: &Told) -> u16 {
    let first = Mutex::new(true);
    otlp_collector_that(bodies, move |_| {
        std::mem::take(&mut *first.lock().unwrap()).then_some("503 Busy")
    })
}

/// Instead of a status: the connection ends without an answer.
const BREAKS_OFF: &str = "";

/// A collector of OTLP that refuses some bodies, with which status.
fn otlp_collector_that(
    bodies: &Told,
    refuses: impl Fn(&str) -> Option<&'static str> + Send + 'static,
) -> u16 {
    let bodies = Arc::clone(bodies);
    listen(move |stream| collect(stream, &bodies, &refuses))
}

fn collect(
    stream: impl Read + Write,
    bodies: &Told,
    refuses: impl Fn(&str) -> Option<&'static str>,
) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        for line in head.lines().filter_map(|line| line.strip_prefix("content-length: ")) {
            length = line.parse().unwrap();
        }
        assert!(head.starts_with("POST /v1/logs HTTP/1.1\r\n"), "{head}");
        assert!(
            head.contains("authorization: Bearer t0ken\r\n") || !head.contains("authorization"),
            "{head}"
        );
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let body = String::from_utf8(body).unwrap();
        let refused = refuses(&body);
        if refused.is_none() {
            bodies.lock().unwrap().push(body);
        }
        if refused == Some(BREAKS_OFF) {
            return;
        }
        let status = refused.unwrap_or("200 OK");
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n{{}}");
        reader.get_mut().write_all(answer.as_bytes()).unwrap();
        reader.get_mut().flush().unwrap();
    }
}

fn lines_of_otlp(bodies: &[String]) -> Vec<String> {
    let body = |text: &String| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let bodies = bodies.iter().map(body);
    let records = bodies.flat_map(|body| {
        let records = body.pointer("/resourceLogs/0/scopeLogs/0/logRecords").unwrap();
        records.as_array().unwrap().clone()
    });
    let line =
        |record: serde_json::Value| record["body"]["stringValue"].as_str().unwrap().to_owned();
    records.map(line).collect()
}

async fn put(client: &RawClient, key: &str) -> Option<u16> {
    let request =
        PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() };
    client.unary(PUT, &request).await.grpc_status
}

/// All kinds at once, beside the file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_sink_gets_every_line_in_its_order() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let folder = tempfile::tempdir().unwrap();
    let [tcp, tls, unix, otlp, otlps]: [Told; 5] = std::array::from_fn(|_| Told::default());
    let for_tcp = Arc::clone(&tcp);
    let tcp_port = listen(move |stream| read_syslog(stream, &for_tcp));
    let (for_tls, server) = (Arc::clone(&tls), pki.tls_server());
    let tls_port = listen(move |stream| {
        let session = ServerConnection::new(Arc::clone(&server)).unwrap();
        read_syslog(StreamOwned::new(session, stream), &for_tls);
    });
    let socket = folder.path().join("log");
    let (for_unix, datagrams) = (Arc::clone(&unix), UnixDatagram::bind(&socket).unwrap());
    std::thread::spawn(move || {
        let mut message = vec![0; 1 << 20];
        while let Ok(length) = datagrams.recv(&mut message) {
            let message = String::from_utf8(message[..length].to_vec()).unwrap();
            for_unix.lock().unwrap().push(message);
        }
    });
    let otlp_port = otlp_collector(&otlp);
    let (for_otlps, server) = (Arc::clone(&otlps), pki.tls_server());
    let otlps_port = listen(move |stream| {
        let session = ServerConnection::new(Arc::clone(&server)).unwrap();
        collect(StreamOwned::new(session, stream), &for_otlps, |_| None);
    });
    let token = folder.path().join("token");
    std::fs::write(&token, "Bearer t0ken\n").unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let audit = format!(
        "[[audit.sink]]\nname = \"out\"\nto = \"stdout\"\n\
         [[audit.sink]]\nname = \"tcp\"\nto = \"syslog+tcp://127.0.0.1:{tcp_port}\"\nrequired = true\n\
         [[audit.sink]]\nname = \"tls\"\nto = \"syslog+tls://localhost:{tls_port}\"\nca = {ca:?}\n\
         [[audit.sink]]\nname = \"unix\"\nto = \"syslog+unix://{}\"\n\
         [[audit.sink]]\nname = \"otlp\"\nto = \"otlp+http://127.0.0.1:{otlp_port}/v1/logs\"\n\
         authorization = {token:?}\n\
         [[audit.sink]]\nname = \"otlps\"\nto = \"otlp+https://localhost:{otlps_port}/v1/logs\"\nca = {ca:?}\n\
         authorization = {token:?}\nrequired = true\n",
        socket.display(),
        ca = pki.path("kubernetes-ca.crt"),
    );
    let settings = Settings { audit: &audit, ..Settings::default() };
    let mut ringfence = Ringfence::start_as(&pki, &etcd.endpoint(), &settings);
    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    for number in 0..300 {
        assert_eq!(put(&client, &format!("/tenants/acme/{number}")).await, Some(0));
    }
    assert_eq!(put(&client, "/tenants/globex/x").await, Some(7));
    tokio::task::block_in_place(|| assert_eq!(ringfence.stop().code(), Some(0)));
    let log = ringfence.audit_text();
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines.len() > 600);
    assert_eq!(ringfence.stdout(), log);
    for (name, found) in [
        ("tcp", lines_of_syslog(&told(&tcp))),
        ("tls", lines_of_syslog(&told(&tls))),
        ("unix", lines_of_syslog(&told(&unix))),
        ("otlp", lines_of_otlp(&told(&otlp))),
        ("otlps", lines_of_otlp(&told(&otlps))),
    ] {
        assert_eq!(found.len(), lines.len(), "{name}");
        assert!(found.iter().zip(&lines).all(|(found, line)| found == line), "{name}");
    }
}

/// The attack: the collector is stopped, so that nobody sees what is done next. With a required sink nothing is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_forwarded_while_a_required_sink_is_silent() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let told = Told::default();
    // It takes connections and never shakes hands, until it is let.
    let (let_go, may_go) = std::sync::mpsc::channel::<()>();
    let (may_go, server) = (Mutex::new(may_go), pki.tls_server());
    let for_thread = Arc::clone(&told);
    let port = listen(move |stream| {
        let Ok(gate) = may_go.try_lock() else { return };
        if gate.recv().is_err() {
            return;
        }
        let session = ServerConnection::new(Arc::clone(&server)).unwrap();
        read_syslog(StreamOwned::new(session, stream), &for_thread);
    });
    let audit = format!(
        "wait_seconds = 1\n[[audit.sink]]\nname = \"siem\"\nto = \"syslog+tls://localhost:{port}\"\n\
         required = true\ndeadline_seconds = 1\nca = {:?}\n",
        pki.path("kubernetes-ca.crt")
    );
    let settings = Settings { audit: &audit, ..Settings::default() };
    let mut ringfence = Ringfence::start_as(&pki, &etcd.endpoint(), &settings);
    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    assert_eq!(put(&client, "/tenants/acme/unseen").await, Some(14));
    let ready = || http_get(ringfence.admin_port, "/readyz").unwrap();
    tokio::task::block_in_place(|| {
        wait_for("a reason", || {
            let (status, why) = ready();
            status == 503 && why.contains("the sink `siem`, which is required, takes no records")
        });
    });
    assert!(ringfence.metrics().contains("ringfence_audit_sink_up{sink=\"siem\"}"));
    let past = RawClient::connect_plain(etcd.port()).await;
    let request = RangeRequest { key: "/tenants/acme/unseen".into(), ..Default::default() };
    let reply = past.unary("/etcdserverpb.KV/Range", &request).await;
    let found = reply.message::<RangeResponse>();
    assert_eq!(found.count, 0, "nothing reached etcd");
    // Those that gave up meanwhile are let go, and then one that lasts.
    for _ in 0..1000 {
        let_go.send(()).unwrap();
    }
    tokio::task::block_in_place(|| wait_for("service", || ready().0 == 200));
    assert_eq!(put(&client, "/tenants/acme/seen").await, Some(0));
    tokio::task::block_in_place(|| assert_eq!(ringfence.stop().code(), Some(0)));
    let log = ringfence.audit_text();
    let found = lines_of_syslog(&told.lock().unwrap());
    assert_eq!(found, log.lines().collect::<Vec<_>>());
    assert!(log.contains("\"fault\":\"audit_unavailable\""));
}

/// What an optional sink has no room for is counted in the log, and calls go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_optional_sink_loses_is_recorded_and_stops_nobody() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let audit = "[[audit.sink]]\nname = \"gone\"\nto = \"syslog+tcp://127.0.0.1:1\"\nqueue_bytes = 262144\n";
    let settings = Settings { audit, ..Settings::default() };
    let mut ringfence = Ringfence::start_as(&pki, &etcd.endpoint(), &settings);
    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    let key = format!("/tenants/acme/{}", "k".repeat(900));
    for number in 0..600 {
        assert_eq!(put(&client, &format!("{key}{number}")).await, Some(0));
    }
    let started = std::time::Instant::now();
    while !ringfence.audit_text().contains("\"sink_behind\"") {
        assert!(started.elapsed() < PATIENCE, "no gap is recorded");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    tokio::task::block_in_place(|| {
        assert_eq!(http_get(ringfence.admin_port, "/readyz").unwrap().0, 200);
        assert_eq!(ringfence.stop().code(), Some(0));
    });
    let records = ringfence.records();
    let gaps: Vec<_> = records.iter().filter(|record| record["type"] == "audit.gap").collect();
    assert!(gaps.iter().all(|gap| gap["sink"] == "gone" && gap["reason"] == "sink_behind"));
    assert!(gaps[0]["records_at_most"].as_u64().unwrap() > 10);
    assert!(gaps[0]["first_seq"].as_u64().unwrap() < gaps[0]["last_seq"].as_u64().unwrap());
}

/// The attack: what is done while a required sink is silent is lost with the restart that mends it. The file has
/// all of it, and another sink, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_while_a_required_sink_is_silent_is_in_the_file() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let audit = "wait_seconds = 1\n[[audit.sink]]\nname = \"out\"\nto = \"stdout\"\n\
        [[audit.sink]]\nname = \"siem\"\nto = \"syslog+tcp://127.0.0.1:1\"\nrequired = true\ndeadline_seconds = 1\n";
    let settings = Settings { audit, ..Settings::default() };
    let mut ringfence = Ringfence::start_as(&pki, &etcd.endpoint(), &settings);
    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    for number in 0..20 {
        assert_eq!(put(&client, &format!("/tenants/globex/{number}")).await, Some(7));
    }
    assert_eq!(put(&client, "/tenants/acme/x").await, Some(14));
    tokio::task::block_in_place(|| assert_eq!(ringfence.stop().code(), Some(1)));
    let said = ringfence.log();
    assert!(said.contains("the sink `siem`, which is required, did not take the last"), "{said}");
    let records = ringfence.records();
    let decisions = records.iter().filter(|record| record["type"] == "decision");
    let verdicts: Vec<_> = decisions.map(|record| record["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, [vec!["deny"; 20], vec!["allow"]].concat());
    assert_eq!(records.last().unwrap()["type"], "process.stop");
    assert_eq!(ringfence.stdout(), ringfence.audit_text());
}

/// The attack: standard output goes to a disk that is full, and after the fourth failure nobody waits any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_forwarded_while_a_required_standard_output_is_full() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let audit =
        "wait_seconds = 1\n[[audit.sink]]\nname = \"out\"\nto = \"stdout\"\nrequired = true\n";
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let settings = Settings { audit, stdout: Some(full), ..Settings::default() };
    let mut ringfence = Ringfence::start_as(&pki, &etcd.endpoint(), &settings);
    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    // One before the fourth failure, and one long behind it.
    assert_eq!(put(&client, "/tenants/acme/1").await, Some(14));
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    assert_eq!(put(&client, "/tenants/acme/2").await, Some(14));
    let (status, why) = http_get(ringfence.admin_port, "/readyz").unwrap();
    assert!(status == 503 && why.contains("the sink `out`, which is required"), "{why}");
    let metrics = ringfence.metrics();
    let line = metrics.lines().find(|line| line.starts_with("ringfence_audit_sink_records_total{"));
    assert_eq!(line, Some("ringfence_audit_sink_records_total{sink=\"out\"} 0"));
    tokio::task::block_in_place(|| assert_eq!(ringfence.stop().code(), Some(1)));
}

/// The attack: a request whose record the collector refuses, for its length or for what it holds, stops everybody's.
async fn check_refused(script: &'static str) {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let told = Told::default();
    let port = otlp_collector_that(&told, move |body| body.contains("<script>").then_some(script));
    let audit = format!(
        "[[audit.sink]]\nname = \"siem\"\nto = \"otlp+http://127.0.0.1:{port}/v1/logs\"\nrequired = true\n"
    );
    let settings = Settings { audit: &audit, ..Settings::default() };
    let mut ringfence = Ringfence::start_as(&pki, &etcd.endpoint(), &settings);
    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    assert_eq!(put(&client, "/tenants/acme/<script>").await, Some(0));
    let operation = |number: usize| RequestOp {
        request: Some(request_op::Request::RequestPut(PutRequest {
            key: format!("/tenants/globex/{number}{}", "\"".repeat(1000)).into(),
            ..Default::default()
        })),
    };
    let long = TxnRequest { success: (0..120).map(operation).collect(), ..Default::default() };
    assert_eq!(client.unary("/etcdserverpb.KV/Txn", &long).await.grpc_status, Some(7));
    let other = RawClient::connect(&pki, "globex", ringfence.port).await;
    for number in 0..50 {
        assert_eq!(put(&other, &format!("/tenants/globex/{number}")).await, Some(0));
    }
    tokio::task::block_in_place(|| assert_eq!(ringfence.stop().code(), Some(0)));
    let log = ringfence.audit_text();
    let found = lines_of_otlp(&self::told(&told));
    let mut stubs = Vec::new();
    for line in log.lines().filter(|line| !found.iter().any(|found| found == line)) {
        let sha256 = ringfence::chain::LineHash::of(line.as_bytes()).to_string();
        let stub = found.iter().find(|found| found.contains(&sha256)).unwrap();
        assert!(!stub.contains("<script>"), "{stub}");
        stubs.push(stub.contains("\"verdict\":\"deny\""));
    }
    // Of the one nothing is said that its client chose; of the other, who was denied what.
    assert_eq!(stubs, [false, true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_a_collector_refuses_stops_no_other() {
    check_refused("403 Forbidden").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_at_which_a_connection_breaks_stops_no_other() {
    check_refused(BREAKS_OFF).await;
}

/// The attack: a collector is flooded until it has a limit, so that what is done meanwhile comes without its keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_has_a_limit_gets_every_line_whole_all_the_same() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let told = Told::default();
    let turn = Mutex::new(0);
    let port = otlp_collector_that(&told, move |_| {
        let mut turn = turn.lock().unwrap();
        *turn += 1;
        (*turn % 3 != 0).then_some("429 Too Many Requests")
    });
    let audit = format!(
        "[[audit.sink]]\nname = \"siem\"\nto = \"otlp+http://127.0.0.1:{port}/v1/logs\"\nrequired = true\n"
    );
    let settings = Settings { audit: &audit, ..Settings::default() };
    let mut ringfence = Ringfence::start_as(&pki, &etcd.endpoint(), &settings);
    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    for number in 0..4 {
        assert_eq!(put(&client, &format!("/tenants/acme/{number}")).await, Some(0));
    }
    tokio::task::block_in_place(|| assert_eq!(ringfence.stop().code(), Some(0)));
    let found = lines_of_otlp(&self::told(&told));
    assert_eq!(found, ringfence.audit_text().lines().collect::<Vec<_>>());
}

/// First records and checkpoints, and nothing else: a witness.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_of_checkpoints_is_a_witness() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("log-key");
    let program = || std::process::Command::new(env!("CARGO_BIN_EXE_ringfence"));
    assert!(program().args(["audit", "keygen"]).arg(&key).status().unwrap().success());
    let audit = format!(
        "[audit.checkpoint]\nkey = {key:?}\nrecords = 10\n\
         [[audit.sink]]\nname = \"elsewhere\"\nto = \"stdout\"\nlines = \"checkpoints\"\n"
    );
    let settings = Settings { audit: &audit, ..Settings::default() };
    let mut ringfence = Ringfence::start_as(&pki, &etcd.endpoint(), &settings);
    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    for number in 0..50 {
        assert_eq!(put(&client, &format!("/tenants/acme/{number}")).await, Some(0));
    }
    tokio::task::block_in_place(|| assert_eq!(ringfence.stop().code(), Some(0)));
    let (log, witnessed) = (ringfence.audit_text(), ringfence.stdout());
    let sealing = |line: &&str| {
        line.contains("\"type\":\"process.start\"") || line.contains("\"type\":\"checkpoint\"")
    };
    assert_eq!(
        witnessed.lines().collect::<Vec<_>>(),
        log.lines().filter(sealing).collect::<Vec<_>>()
    );
    let witness = folder.path().join("witness");
    std::fs::write(&witness, witnessed).unwrap();
    let verified = program()
        .args(["audit", "verify", "--key"])
        .arg(folder.path().join("log-key.pub"))
        .arg("--witness")
        .arg(&witness)
        .arg(ringfence.audit_folder())
        .output()
        .unwrap();
    assert!(verified.status.success(), "{verified:?}");
}
