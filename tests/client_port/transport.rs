//! Who gets in: certificates, TLS versions, protocols.

use std::process::Command;

use crate::support::{
    Etcd, Pki, RawClient, Ringfence, Tap, framed, http_get, silent_member, wait_for,
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What the client sees after a handshake that must not work. In TLS 1.3 a client learns of the
/// refusal of its certificate with the first read.
async fn refused(pki: &Pki, name: Option<&str>, port: u16) -> String {
    let connector = TlsConnector::from(pki.client_config(name, &["h2"]));
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let host = ServerName::try_from("localhost").unwrap();
    match connector.connect(host, stream).await {
        Err(error) => error.to_string(),
        Ok(mut stream) => {
            let mut byte = [0];
            match stream.read(&mut byte).await {
                Ok(count) => panic!("served: {count} bytes"),
                Err(error) => error.to_string(),
            }
        }
    }
}

#[tokio::test]
async fn without_a_good_certificate_there_is_no_handshake() {
    let pki = Pki::make();
    let tap = Tap::start().await;
    let mut ringfence = Ringfence::start(&pki, &tap.endpoint);
    for (name, alert) in [
        (None, "CertificateRequired"),
        (Some("foreign"), "UnknownCA"),
        (Some("expired"), "CertificateExpired"),
        // 133: a certificate for servers only
        (Some("ringfence-server"), "UnsupportedCertificate"),
    ] {
        let error = refused(&pki, name, ringfence.port).await;
        assert!(error.contains(alert), "{name:?}: {error}");
    }
    // The client hears of it before it is counted.
    wait_for("the count", || ringfence.metrics().contains("reason=\"certificate_refused\"} 3"));
    assert_eq!(ringfence.stop().code(), Some(0));
    let count = |reason: &str| -> u64 {
        let records = ringfence.records();
        let refused = records.iter().filter(|record| record["reason"] == reason);
        refused.map(|record| record["count"].as_u64().unwrap()).sum()
    };
    assert_eq!((count("no_certificate"), count("certificate_refused")), (1, 3));
    let records = ringfence.records();
    let first = records.iter().find(|record| record["reason"] == "certificate_refused").unwrap();
    assert_eq!(first["detail"], "subject `CN=acme`: invalid peer certificate: UnknownIssuer");
    assert!(tap.take().is_empty());
}

/// A verified certificate that is nobody is told so, call by call, and never served.
#[tokio::test]
async fn a_certificate_that_is_nobody_is_denied() {
    let pki = Pki::make();
    let tap = Tap::start().await;
    let mut ringfence = Ringfence::start(&pki, &tap.endpoint);
    let client = RawClient::connect(&pki, "etcd-server", ringfence.port).await;
    let reply = client.unary_bytes("/etcdserverpb.KV/Range", b"\x0a\x01k").await;
    assert_eq!(
        (reply.grpc_status, &*reply.grpc_message),
        (Some(7), "etcdserver: permission denied")
    );
    drop(client);
    let decisions = ringfence.decisions();
    assert_eq!(decisions[0]["reason"], "no_principal");
    assert!(tap.take().is_empty());
}

#[tokio::test]
async fn http_1_is_recorded_and_refused() {
    let pki = Pki::make();
    let tap = Tap::start().await;
    let mut ringfence = Ringfence::start(&pki, &tap.endpoint);
    for alpn in [&["http/1.1"][..], &[]] {
        let connector = TlsConnector::from(pki.client_config(Some("acme"), alpn));
        let stream = TcpStream::connect(("127.0.0.1", ringfence.port)).await.unwrap();
        let host = ServerName::try_from("localhost").unwrap();
        let mut stream = connector.connect(host, stream).await.unwrap();
        let request = b"POST /v3/kv/range HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 404"), "{}", answer.escape_ascii());
    }
    let decisions = ringfence.decisions();
    assert_eq!(decisions.len(), 2);
    assert_eq!(decisions[0]["path"], "/v3/kv/range");
    assert!(tap.take().is_empty());
}

/// Sockets that never speak are closed at the deadline and take no one else's place.
#[tokio::test]
async fn a_silent_socket_is_closed_at_the_deadline() {
    let pki = Pki::make();
    let tap = Tap::start().await;
    let limits = "[limits]\nhandshake_timeout_seconds = 1\npending_handshakes = 20\n";
    let ringfence = Ringfence::start_with(&pki, &tap.endpoint, limits);
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(("127.0.0.1", ringfence.port)).await.unwrap());
    }
    for mut stream in silent {
        // Closed, by the cap or by the deadline: the read ends.
        let mut bytes = [0; 8];
        let read = tokio::time::timeout(crate::support::PATIENCE, stream.read(&mut bytes));
        assert!(matches!(read.await, Ok(Ok(0) | Err(_))));
    }
    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    let reply = client.unary_bytes("/etcdserverpb.KV/Range", b"\x0a\x0f/tenants/acme/x").await;
    assert_eq!(reply.grpc_status, Some(0));
    let metrics = ringfence.metrics();
    // One source may have a quarter of them under way.
    assert!(metrics.contains("reason=\"handshakes_full\"} 35"), "{metrics}");
    assert!(metrics.contains("reason=\"handshake_timeout\"} 5"), "{metrics}");
}

/// SIGTERM: what is open may finish, the exit code is 0, the log is whole.
#[tokio::test]
async fn sigterm_drains_and_flushes() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let (status, ready) = http_get(ringfence.admin_port, "/readyz?verbose").unwrap();
    assert_eq!(
        (status, ready.as_str()),
        (
            200,
            "[+] audit: ok\n[+] upstream: ok\n[+] draining: ok\n[+] config: generation 1\n[+] revocation: ok\nok\n"
        )
    );
    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    let put = framed(b"\x0a\x0f/tenants/acme/x\x12\x01v");
    assert_eq!(client.call("/etcdserverpb.KV/Put", &[], put).await.grpc_status, Some(0));
    assert_eq!(ringfence.stop().code(), Some(0));
    let records = ringfence.records();
    assert_eq!(records.last().unwrap()["type"], "process.stop");
    for (position, record) in records.iter().enumerate() {
        assert_eq!(record["seq"], position + 1);
    }
    assert!(records.iter().any(|record| record["type"] == "outcome" && record["status"] == 0));
    let log = ringfence.log();
    assert!(log.contains("SIGTERM") && log.contains("ended"), "{log}");
}

/// A second signal does not wait for calls: they are cut, recorded, and the exit code is 1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_the_drain() {
    let pki = Pki::make();
    let (_silent, endpoint) = silent_member();
    let upstream = format!("endpoints = [\"{endpoint}\"]\nconnect_timeout_seconds = 60");
    let limits = "[limits]\ndrain_timeout_seconds = 3600\ncall_timeout_seconds = 3600\n";
    let mut ringfence = Ringfence::start_before(&pki, &upstream, limits);
    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    tokio::spawn(async move {
        // Cut: it never gets an answer.
        client.unary_bytes("/etcdserverpb.KV/Range", b"\x0a\x0f/tenants/acme/x").await
    });
    let allowed = "requests_total{rpc=\"/etcdserverpb.KV/Range\",verdict=\"allow\"} 1";
    wait_for("the call", || ringfence.metrics().contains(allowed));
    ringfence.signal("INT");
    wait_for("the drain", || ringfence.log().contains("ending: no new connections"));
    ringfence.signal("INT");
    assert_eq!(ringfence.wait().code(), Some(1));
    let records = ringfence.records();
    assert_eq!(records.last().unwrap()["type"], "process.stop");
    assert!(records.iter().any(|record| record["fault"] == "aborted"), "{records:?}");
}

/// No certificate, no audit folder, a taken port: one clear line each, exit code 1.
#[test]
fn a_start_that_cannot_be_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("ringfence.toml");
    std::fs::write(&config, "version = 2\n").unwrap();
    let started = Command::new(env!("CARGO_BIN_EXE_ringfence"))
        .args(["serve", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    assert_eq!(started.status.code(), Some(1));
    let said = String::from_utf8(started.stderr).unwrap();
    assert!(
        said.contains("ringfence.toml:1: `version` is 2; this ringfence reads version 1"),
        "{said}"
    );
}
