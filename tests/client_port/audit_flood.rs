//! Whoever has no certificate can neither fill the disk nor keep a good client from being served.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringfence::etcd::pb::etcdserverpb::RangeRequest;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::support::{Etcd, Pki, RawClient, Ringfence, wait_for};

const ATTACKERS: u32 = 16;
/// Another number of seconds than [`SECONDS`]; `make flood` takes a minute.
const SECONDS_VARIABLE: &str = "RINGFENCE_FLOOD_SECONDS";
const SECONDS: u64 = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_flood_of_refused_handshakes_is_a_bounded_number_of_bytes() {
    let seconds = std::env::var(SECONDS_VARIABLE).map_or(SECONDS, |text| text.parse().unwrap());
    let pki = Arc::new(Pki::make());
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let port = ringfence.port;
    let ending = Arc::new(AtomicBool::new(false));
    let attacks = Arc::new(AtomicU64::new(0));
    let mut attackers = JoinSet::new();
    for attacker in 0..ATTACKERS {
        let (pki, ending) = (Arc::clone(&pki), Arc::clone(&ending));
        attackers.spawn(attack(pki, port, attacker, ending, Arc::clone(&attacks)));
    }
    let (until, mut served) = (Instant::now() + Duration::from_secs(seconds), 0);
    let range = RangeRequest { key: "/tenants/acme/x".into(), ..Default::default() };
    let steady = RawClient::connect(&pki, "acme", port).await;
    while Instant::now() < until {
        let new = RawClient::connect(&pki, "acme", port).await;
        for client in [&new, &steady] {
            let reply = client.unary("/etcdserverpb.KV/Range", &range).await;
            assert_eq!(reply.grpc_status, Some(0), "{reply:?}");
            served += 1;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ending.store(true, Ordering::Relaxed);
    attackers.join_all().await;
    let attacks = attacks.load(Ordering::Relaxed);
    let counted = || {
        let metrics = ringfence.metrics();
        let lines =
            metrics.lines().filter(|line| line.starts_with("ringfence_handshakes_refused_t"));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum::<u64>()
    };
    wait_for("the last refusal", || counted() >= attacks);
    let (refused, memory) = (counted(), ringfence.memory_bytes());
    // The counts of the last interval are recorded at its end.
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(ringfence.stop().code(), Some(0));

    let text = ringfence.audit_text();
    let lines = text.lines().filter(|line| line.contains("\"type\":\"connection.refused\""));
    let (mut bytes, mut records, mut recorded) = (0_u64, 0, 0);
    for line in lines {
        bytes += line.len() as u64 + 1;
        records += 1;
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        recorded += record["count"].as_u64().unwrap();
    }
    println!(
        "{refused} refused in {seconds} s: {records} records, {bytes} bytes; \
         {served} calls served meanwhile; memory {memory} bytes"
    );
    assert_eq!(recorded, refused, "every refusal is counted");
    assert!(refused > 100 * seconds, "that was no flood");
    // Less than 1 MB in a minute; an interval may begin with the flood and one end after it.
    assert!(bytes < 16_000 * seconds + 40_000, "{bytes} bytes");
}

/// Connects again and again, from other addresses: without TLS, without a certificate.
async fn attack(
    pki: Arc<Pki>,
    port: u16,
    attacker: u32,
    ending: Arc<AtomicBool>,
    attacks: Arc<AtomicU64>,
) {
    let connector = TlsConnector::from(pki.client_config(None, &["h2"]));
    let host = ServerName::try_from("localhost").unwrap();
    for number in 0_u32.. {
        if ending.load(Ordering::Relaxed) {
            return;
        }
        let source = Ipv4Addr::from_bits(0x7f01_0000 + (attacker << 10) + (number & 0x3ff));
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((source, 0))).unwrap();
        let Ok(mut stream) = socket.connect(([127, 0, 0, 1], port).into()).await else { continue };
        attacks.fetch_add(1, Ordering::Relaxed);
        let mut answer = [0; 64];
        if number.is_multiple_of(4) {
            if let Ok(mut stream) = connector.connect(host.clone(), stream).await {
                drop(stream.read(&mut answer).await);
            }
        } else {
            drop(stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await);
            while stream.read(&mut answer).await.is_ok_and(|count| count > 0) {}
        }
    }
}
