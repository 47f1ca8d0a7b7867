//! Certificates: which of them get in, and which of them are somebody.

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::ground::{DENIED, Ground, Report, bytes, heard};
use crate::keys::range;
use crate::support::wire::{SETTINGS, frame};
use crate::support::{Etcd, Pki, RawClient, Ringfence, framed};

const RANGE: &str = "/etcdserverpb.KV/Range";

fn told(holds: bool, what: &impl std::fmt::Debug) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{what:?}")) }
}

pub async fn run() -> Report {
    let mut whole = Report::default();
    let report = &mut whole;
    let mut ground = Ground::start().await;
    certificates(&mut ground, report).await;
    old_tls(&ground, report).await;
    ground.finish(report);
    refused_ones(report).await;
    bent_names(report).await;
    ambiguous(report).await;
    whole
}

/// Whether a connection with that certificate gets as far as a request.
pub async fn gets_in(pki: &Pki, name: Option<&str>, port: u16) -> bool {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let connector = TlsConnector::from(pki.client_config(name, &["h2"]));
    let host = ServerName::try_from("localhost").unwrap();
    let Ok(mut stream) = connector.connect(host, stream).await else { return false };
    // In TLS 1.3 the refusal comes behind the client's own end of the handshake.
    drop(stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await);
    drop(stream.write_all(&frame(SETTINGS, 0, 0, b"")).await);
    let mut first = [0; 1];
    matches!(stream.read(&mut first).await, Ok(1))
}

async fn certificates(ground: &mut Ground, report: &mut Report) {
    let port = ground.ringfence.port;
    for (number, name, certificate) in [
        (132, "no certificate", None),
        (133, "an expired certificate", Some("expired")),
        (133, "a certificate of an unknown CA", Some("foreign")),
        (133, "a certificate for servers only", Some("ringfence-server")),
    ] {
        let refused = !gets_in(&ground.pki, certificate, port).await;
        report.add(number, name, "a TLS alert, no request", told(refused, &refused));
    }
    let key = bytes(&range(b"/a/x", b""));
    for (number, name, certificate) in [
        (135, "a certificate without a CN", "ringfence-client"),
        (140, "a certificate of an etcd member", "etcd-server"),
    ] {
        ground.expect(number, 7, Some("no_principal"));
        let client = RawClient::connect(&ground.pki, certificate, port).await;
        let reply = heard(&client.call(RANGE, &[], framed(&key)).await);
        let reached = ground.reached().await;
        let fared = told((reply.0, reply.1.as_str()) == DENIED && reached.is_empty(), &reply);
        report.add(number, name, "status 7, no_principal", fared);
    }
    // One configuration, so that the client would resume if it could.
    let config = ground.pki.client_config(Some("acme"), &["h2"]);
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let host = ServerName::try_from("localhost").unwrap();
        let mut stream =
            TlsConnector::from(std::sync::Arc::clone(&config)).connect(host, stream).await.unwrap();
        drop(stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await);
        drop(stream.write_all(&frame(SETTINGS, 0, 0, b"")).await);
        // Tickets would come with the first bytes of the server.
        let mut first = [0; 64];
        drop(stream.read(&mut first).await);
        kinds.push(stream.get_ref().1.handshake_kind());
    }
    let full = kinds.iter().all(|kind| *kind == Some(rustls::HandshakeKind::Full));
    report.add(138, "a session resumed", "every handshake is a full one", told(full, &kinds));
}

/// A ClientHello of TLS 1.1, which has no extension that names a newer version.
async fn old_tls(ground: &Ground, report: &mut Report) {
    let random = [7; 32];
    let body = [&[3, 2][..], &random, &[0], &[0, 2, 0, 0x2f], &[1, 0]].concat();
    let length = u8::try_from(body.len()).unwrap();
    let hello = [&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &body].concat();
    let mut stream = TcpStream::connect(("127.0.0.1", ground.ringfence.port)).await.unwrap();
    stream.write_all(&hello).await.unwrap();
    let mut answer = Vec::new();
    let read =
        tokio::time::timeout(crate::support::PATIENCE, stream.read_to_end(&mut answer)).await;
    // One record, of type alert, and it is fatal.
    let alert = answer.len() == 7 && answer[0] == 21 && answer[5] == 2;
    report.add(138, "TLS 1.1", "a TLS alert, no request", told(read.is_ok() && alert, &answer));
}

/// Certificates that the usual PKI does not have.
async fn refused_ones(report: &mut Report) {
    let pki = Pki::make_with(
        r#"
[[certificate]]
name = "early"
authority = "tenants-ca"
common_name = "acme"
uri = ["spiffe://example.org/tenant/acme"]
use = ["client"]
starts_in_days = 2
"#,
    );
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec!["acme".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(pki.path("own.crt"), own.pem()).unwrap();
    std::fs::write(pki.path("own.key"), key.serialize_pem()).unwrap();
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start_with(&pki, &etcd.endpoint(), "");
    for (name, certificate) in
        [("a certificate that is not valid yet", "early"), ("one that signed itself", "own")]
    {
        let refused = !gets_in(&pki, Some(certificate), ringfence.port).await;
        report.add(133, name, "a TLS alert, no request", told(refused, &refused));
    }
    let decisions = ringfence.decisions().len();
    let refusals = ringfence.records();
    let refused = |record: &&serde_json::Value| {
        record["type"] == "connection.refused" && record["reason"] == "certificate_refused"
    };
    // The second is folded into the count of the first, which is flushed in its time.
    let kept = (decisions, refusals.iter().filter(refused).count());
    report.add(
        133,
        "and their records",
        "refused connections",
        told(kept.0 == 0 && kept.1 > 0, &kept),
    );
}

/// A name that is nearly one that is known.
async fn bent_names(report: &mut Report) {
    let names = ["", "Acme", "acme ", " acme", "acme\\u0000", "acme.", "a\\u200bcme"];
    let certificates = names.iter().enumerate().map(|(number, name)| {
        format!(
            "[[certificate]]\nname = \"bent-{number}\"\nauthority = \"tenants-ca\"\n\
             common_name = \"{name}\"\nuse = [\"client\"]\n"
        )
    });
    let pki = Pki::make_with(&certificates.collect::<String>());
    let policy = r#"
[[identity]]
name = "acme"
match = { ca = "tenants", cn = "acme" }
roles = ["all"]
[[role]]
name = "all"
rules = [{ prefix = "", allow = ["get"] }]
"#;
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start_with_policy(&pki, &etcd.endpoint(), policy, "");
    let key = bytes(&range(b"/a/x", b""));
    for (number, name) in names.iter().enumerate() {
        let client = RawClient::connect(&pki, &format!("bent-{number}"), ringfence.port).await;
        let reply = heard(&client.call(RANGE, &[], framed(&key)).await);
        let fared = told((reply.0, reply.1.as_str()) == DENIED, &reply);
        report.add(135, &format!("the CN `{name}`, not `acme`"), "status 7, no_principal", fared);
    }
    let recorded = ringfence.decisions();
    let nobody = recorded.iter().filter(|record| record["reason"] == "no_principal").count();
    report.add(135, "and their records", "one for each", told(nobody == names.len(), &nobody));
}

/// CN and URI say two names: whom the rules of both would know is nobody.
async fn ambiguous(report: &mut Report) {
    const POLICY: &str = r#"
[[identity]]
name = "by-name"
match = { ca = "tenants", cn = "acme" }
roles = ["all"]
[[identity]]
name = "by-uri"
match = { ca = "tenants", uri = "spiffe://example.org/tenant/*" }
roles = ["all"]
[[role]]
name = "all"
rules = [{ prefix = "", allow = ["get"] }]
"#;
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start_with_policy(&pki, &etcd.endpoint(), POLICY, "");
    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    let reply = heard(&client.unary_bytes(RANGE, &bytes(&range(b"/a/x", b""))).await);
    drop(client);
    let recorded = ringfence.decisions();
    let once = recorded.len() == 1 && recorded[0]["reason"] == "no_principal";
    let fared = told((reply.0, reply.1.as_str()) == DENIED && once, &(reply, recorded));
    report.add(134, "a certificate that two identities know", "status 7, no_principal", fared);
}
