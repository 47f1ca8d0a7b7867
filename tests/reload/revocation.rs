//! What is revoked while ringfence runs, by revocation lists and deny lists.

use std::time::Duration;

use ringfence::etcd::pb::etcdserverpb::WatchResponse;
use rustls::HandshakeKind;
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::{Etcd, Pki, RawClient, RawStream, Ringfence, http_get, wait_for};
use crate::{DENIED, WATCH, event, may_read, put, watch};

const BROKEN: &str = "ringfence_reload_failing{unit=\"revocation\"}";

/// Has it ask the tenants' CA for a list, and deny what a file says; generation 2.
fn with_lists(pki: &Pki, ringfence: &Ringfence, mode: &str) {
    let roots = format!("roots = \"{}/tenants-ca.crt\"\n", pki.path("").display());
    let list = pki.path("tenants-ca.crl");
    let lists = format!("{roots}crl_files = [{list:?}]\ncrl = \"{mode}\"\n");
    let config = ringfence.file("ringfence.toml").replace(&roots, &lists);
    ringfence.replace_file("deny.txt", "# nobody yet\n");
    let config = format!("{config}\n[revocation]\ndeny_files = [\"deny.txt\"]\n");
    ringfence.replace_file("ringfence.toml", &config);
    ringfence.wait_for_generation(2);
}

/// Whether a connection with that certificate gets as far as a call.
async fn gets_in(pki: &Pki, name: &str, port: u16) -> bool {
    let connector = TlsConnector::from(pki.client_config(Some(name), &["h2"]));
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let host = ServerName::try_from("localhost").unwrap();
    let Ok(mut stream) = connector.connect(host, stream).await else { return false };
    // In TLS 1.3 the refusal comes behind the client's own end of the handshake; else SETTINGS come.
    matches!(stream.read(&mut [0; 1]).await, Ok(1))
}

async fn ends(stream: &mut RawStream, id: i64) {
    let told: WatchResponse = stream.next().await;
    assert_eq!((told.watch_id, told.canceled), (id, true), "{told:?}");
    assert_eq!(told.cancel_reason, DENIED);
    assert_eq!(stream.expect_end().await.grpc_status, Some(7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_certificate_is_cut_and_stays_out_while_the_policy_is_broken() {
    let pki = Pki::make();
    pki.command(&["crl", "--authority", "tenants-ca"]);
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    with_lists(&pki, &ringfence, "hard");
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let globex = RawClient::connect(&pki, "globex", ringfence.port).await;
    let (mut cut, mut stays) = (acme.stream(WATCH).await, globex.stream(WATCH).await);
    let cut_id = watch(&mut cut, "/tenants/acme/").await;
    let stays_id = watch(&mut stays, "/tenants/globex/").await;
    let policy = ringfence.file("policy.toml");
    ringfence.replace_file("policy.toml", "this is no policy");
    wait_for("the failure", || {
        ringfence.metric("ringfence_reload_failing{unit=\"generation\"}") == 1
    });
    pki.command(&["revoke", "acme"]);
    ends(&mut cut, cut_id).await;
    assert!(!gets_in(&pki, "acme", ringfence.port).await);
    let revision = put(&globex, "/tenants/globex/a", "1").await;
    assert_eq!(event(&mut stays, stays_id).await, revision);
    ringfence.replace_file("policy.toml", &policy);
    ringfence.wait_for_generation(3);
    assert!(!gets_in(&pki, "acme", ringfence.port).await);
    assert!(may_read(&globex, "/tenants/globex/a").await);
    let ended = "ringfence_connections_ended_total{reason=\"certificate_revoked\"} 1";
    wait_for("the end", || ringfence.metrics().contains(ended));
    assert!(
        ringfence.metric("ringfence_handshakes_refused_total{reason=\"certificate_revoked\"}") >= 2
    );
    assert_eq!(ringfence.metric("ringfence_watches_cut_total{reason=\"certificate_revoked\"}"), 1);
    assert!(
        ringfence
            .metrics()
            .contains("ringfence_crl_next_update_timestamp_seconds{authority=\"tenants\",")
    );
    assert_eq!(ringfence.stop().code(), Some(0));
    let records = ringfence.records();
    let started = records.iter().filter(|record| record["type"] == "revocation.start");
    let started: Vec<_> = started
        .map(|record| (record["lists"].as_u64().unwrap(), record["revoked"].as_u64().unwrap()))
        .collect();
    assert_eq!(started, [(1, 0), (1, 1)], "with the config that names the list, and by itself");
    assert!(records.iter().any(|record| record["reason"] == "certificate_revoked"));
}

/// The attacks: a list is taken away, and one from before the revocation is put in its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_is_broken_gone_or_older_takes_nothing_back() {
    let pki = Pki::make();
    pki.command(&["crl", "--authority", "tenants-ca"]);
    let before = pki.pem("tenants-ca.crl");
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    with_lists(&pki, &ringfence, "soft");
    pki.command(&["revoke", "acme"]);
    wait_for("the list", || ringfence.log().contains("another set of revocations is in force"));
    let after = pki.pem("tenants-ca.crl");
    assert!(!gets_in(&pki, "acme", ringfence.port).await);
    let list = pki.path("tenants-ca.crl");
    for (what, bytes) in [
        ("gone", None),
        ("broken", Some(b"-----BEGIN X509 CRL-----\nAAAA\n".as_slice())),
        ("older", Some(&before)),
    ] {
        match bytes {
            None => std::fs::remove_file(&list).unwrap(),
            Some(bytes) => std::fs::write(&list, bytes).unwrap(),
        }
        wait_for("the failure", || ringfence.metric(BROKEN) == 1);
        let (status, text) = http_get(ringfence.admin_port, "/readyz?verbose").unwrap();
        assert_eq!(status, 200);
        assert!(text.contains("[!] revocation: what counted goes on: "), "{what}: {text}");
        assert!(!gets_in(&pki, "acme", ringfence.port).await, "{what}");
        // A reload of everything does not take it back either.
        let generation = ringfence.generation();
        ringfence.signal("HUP");
        ringfence.wait_for_generation(generation + 1);
        assert!(!gets_in(&pki, "acme", ringfence.port).await, "{what}");
        assert!(gets_in(&pki, "globex", ringfence.port).await, "{what}");
        std::fs::write(&list, &after).unwrap();
        wait_for("the list again", || ringfence.metric(BROKEN) == 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_denied_without_the_ca() {
    let pki = Pki::make();
    pki.command(&["crl", "--authority", "tenants-ca"]);
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    with_lists(&pki, &ringfence, "hard");
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let mut stream = acme.stream(WATCH).await;
    let id = watch(&mut stream, "/tenants/acme/").await;
    let spki = pki.facts("acme").spki_sha256;
    // A line that cannot be read makes the file invalid as a whole, and says where.
    ringfence.replace_file("deny.txt", &format!("spki-sha256 {spki}\nspki-sha265 {spki}\n"));
    wait_for("the failure", || ringfence.metric(BROKEN) == 1);
    assert!(ringfence.log().contains("deny.txt:2: "), "{}", ringfence.log());
    assert!(may_read(&acme, "/tenants/acme/a").await);
    ringfence.replace_file("deny.txt", &format!("spki-sha256 {spki}  # stolen\n"));
    ends(&mut stream, id).await;
    assert!(!gets_in(&pki, "acme", ringfence.port).await);
    assert!(gets_in(&pki, "globex", ringfence.port).await);
}

/// Nobody can say any more who is revoked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hard_list_that_lapses_ends_those_it_vouched_for() {
    let pki = Pki::make();
    pki.brief_list("tenants-ca", Duration::from_secs(4));
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    with_lists(&pki, &ringfence, "hard");
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let mut stream = acme.stream(WATCH).await;
    let id = watch(&mut stream, "/tenants/acme/").await;
    let apiserver = RawClient::connect(&pki, "apiserver", ringfence.port).await;
    ends(&mut stream, id).await;
    assert!(!gets_in(&pki, "globex", ringfence.port).await);
    // That CA has no list to lapse.
    assert!(may_read(&apiserver, "/registry/a").await);
    pki.command(&["crl", "--authority", "tenants-ca"]);
    wait_for("the list", || ringfence.log().contains("another set of revocations is in force"));
    assert!(gets_in(&pki, "globex", ringfence.port).await);
}

/// The attack: a ticket from before the revocation would skip the certificate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ticket_of_a_revoked_certificate_is_worthless_in_both_versions() {
    let pki = Pki::make();
    pki.command(&["crl", "--authority", "tenants-ca"]);
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    with_lists(&pki, &ringfence, "hard");
    let connectors = [&rustls::version::TLS12, &rustls::version::TLS13]
        .map(|version| TlsConnector::from(pki.resuming_client_config("acme", version)));
    let shake = async |connector: &TlsConnector| {
        let stream = TcpStream::connect(("127.0.0.1", ringfence.port)).await.unwrap();
        let host = ServerName::try_from("localhost").unwrap();
        let mut stream = connector.connect(host, stream).await.ok()?;
        let got_in = matches!(stream.read(&mut [0; 1]).await, Ok(1));
        // Tickets come with what the server says first.
        got_in.then(|| stream.get_ref().1.handshake_kind().unwrap())
    };
    for connector in &connectors {
        for _ in 0..2 {
            assert_eq!(shake(connector).await, Some(HandshakeKind::Full), "nothing is resumed");
        }
    }
    pki.command(&["revoke", "acme"]);
    wait_for("the list", || ringfence.log().contains("another set of revocations is in force"));
    for connector in &connectors {
        assert_eq!(shake(connector).await, None);
    }
}
