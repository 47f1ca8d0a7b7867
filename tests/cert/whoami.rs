//! Who somebody is, in the words of the server that runs.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use ringfence::tls::{Acceptor, Authorities};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::Folder;

#[test]
fn somebody_is_named_with_authority_identity_and_roles() {
    let folder = Folder::new();
    let said = folder.check(&["whoami", "pki/apiserver.crt"], 0, "pki/apiserver.crt: apiserver\n");
    let expected = "pki/apiserver.crt: apiserver\n  subject     CN=kube-apiserver-etcd-client\n  \
        CA          kubernetes\n  identity    apiserver\n  roles       reader, writer\n  \
        to etcd as  ringfence\n";
    assert_eq!(said, expected);
    let found = folder.json(&["whoami", "pki/acme.crt"]);
    assert_eq!(found["result"], "matched");
    assert_eq!(found["principal"], "tenant(uri=spiffe://example.org/tenant/acme)");
    assert_eq!(found["ca"], "tenants");
    assert_eq!(found["roles"], serde_json::json!(["reader"]));
}

#[test]
fn nobody_is_told_why_by_every_identity() {
    let folder = Folder::new();
    let expected = "pki/etcd-server.crt: nobody: no identity matches the certificate\n  \
        subject     CN=etcd\n  CA          kubernetes\n  identity `apiserver`: the common name is `etcd`, \
        it wants `kube-apiserver-etcd-client`\n  identity `tenant`: the CA is `kubernetes`, it wants `tenants`\n";
    assert_eq!(folder.check(&["whoami", "pki/etcd-server.crt"], 1, ""), expected);
    let found = folder.json(&["whoami", "pki/etcd-server.crt"]);
    assert_eq!(found["identities"][1]["identity"], "tenant");
    assert_eq!(found["identities"][1]["matches"], false);
}

#[test]
fn the_answer_is_bounded_however_many_identities_there_are() {
    let folder = Folder::new();
    let identity = |number: usize| {
        format!(
            "[[identity]]\nname = \"i{number}\"\nmatch = {{ ca = \"tenants\", cn = \"c{number}\" }}\nroles = [\"reader\"]\n"
        )
    };
    let many: String = (0..1000).map(identity).collect();
    fs::write(folder.path("policy.toml"), format!("{}{many}", crate::POLICY)).unwrap();
    let said = folder.check(&["whoami", "pki/etcd-server.crt"], 1, "pki/etcd-server.crt: nobody");
    assert_eq!(said.lines().count(), 24, "{said}");
    assert!(said.ends_with("  and 982 more identities\n"), "{said}");
}

#[test]
fn two_identities_that_match_are_both_named() {
    let folder = Folder::new();
    let other = "[[identity]]\nname = \"other\"\nmatch = { ca = \"tenants\", cn = \"acme\" }\nroles = [\"reader\"]\n";
    fs::write(folder.path("policy.toml"), format!("{}{other}", crate::POLICY)).unwrap();
    let said = folder.check(&["whoami", "pki/acme.crt"], 1, "");
    assert!(
        said.starts_with(
            "pki/acme.crt: nobody: several identities match the certificate: tenant, other\n"
        ),
        "{said}"
    );
    assert!(said.contains("  identity `tenant`: matches\n  identity `other`: matches\n"), "{said}");
}

#[test]
fn what_is_no_question_gets_no_answer() {
    let folder = Folder::new();
    folder.check(&["whoami"], 2, "error: ");
    folder.check(&["whoami", "pki/gone.crt"], 2, "error: cannot read `pki/gone.crt`");
    folder.check(
        &["whoami", "pki/acme.key"],
        2,
        "error: `pki/acme.key` holds no certificate in PEM\n",
    );
    folder.check(
        &["whoami", "--config", "gone.toml", "pki/acme.crt"],
        2,
        "error: gone.toml: cannot read",
    );
    folder.change("policy.toml", "roles = [\"reader\"]", "roles = [\"gone\"]");
    folder.check(
        &["whoami", "pki/acme.crt"],
        2,
        "error: policy.toml:10: identity `tenant` has the role",
    );
}

/// The attack: a client's file whose PEM label steers the terminal of whoever asks who it is.
#[test]
fn the_label_of_a_section_cannot_steer_a_terminal() {
    let folder = Folder::new();
    let evil = "-----BEGIN \u{1b}[31m-----\nMAA=\n";
    fs::write(folder.path("evil.crt"), evil).unwrap();
    let said = folder.check(&["whoami", "evil.crt"], 2, "error: ");
    assert!(said.contains("[31m") && !said.contains('\u{1b}'), "{said}");
    let program = env!("CARGO_BIN_EXE_ringfence");
    let mut command = std::process::Command::new(program);
    command.args(["can-i", "--certificate", "evil.crt", "get", "/a/b"]);
    let output = command.current_dir(folder.path("")).output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(said.contains("[31m") && !said.contains('\u{1b}'), "{said}");
}

/// The server that runs refuses each of them with the same words, but for the second in which it does.
#[tokio::test]
async fn a_refusal_is_said_as_the_server_records_it() {
    let folder = Folder::with(
        "[[certificate]]\nname = \"later\"\nauthority = \"tenants-ca\"\nuse = [\"client\"]\nstarts_in_days = 2\n",
    );
    for (name, words) in [
        ("expired", "it has expired"),
        ("later", "it is not valid yet"),
        ("foreign", "no configured CA has signed it, or its chain lacks an intermediate"),
        ("ringfence-server", "its extended key usage does not allow this use"),
        ("tenants-ca", "it is a CA's own certificate"),
    ] {
        compare(&folder, name, words).await;
    }
    let twice =
        "[[client.ca]]\nname = \"twice\"\nroots = \"pki/tenants-ca.crt\"\n\n[client.advertise]";
    folder.change("ringfence.toml", "[client.advertise]", twice);
    compare(&folder, "acme", "the certificate verifies under two named CAs: tenants and twice")
        .await;
}

pub(crate) async fn compare(folder: &Folder, name: &str, words: &str) {
    let file = format!("pki/{name}.crt");
    let found = folder.json(&["whoami", &file]);
    assert_eq!(found["why"], words, "{name}");
    let said = folder.check(&["whoami", &file], 1, "");
    assert!(said.starts_with(&format!("{file}: refused at the handshake: {words}\n")), "{said}");
    let refusal = refused_by_server(folder, name).await;
    assert_eq!(found["reason"], refusal.reason, "{name}");
    let without_digits = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
    let detail = found["detail"].as_str().unwrap();
    assert_eq!(without_digits(detail), without_digits(&refusal.detail), "{name}");
}

async fn refused_by_server(folder: &Folder, name: &str) -> ringfence::tls::HandshakeRefusal {
    let config = folder.path("ringfence.toml");
    let config = ringfence::config::load(&config, ringfence::clock::since_epoch()).unwrap();
    let timeout = Duration::from_secs(60);
    let authorities =
        Authorities::with_revocation(&config.authorities, &config.revocation).unwrap();
    let acceptor = Acceptor::with_authorities(&config.certificate, authorities.into(), timeout);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = client_config(folder, name);
    let client = tokio::spawn(async move {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(client);
        let server = ServerName::try_from("localhost").unwrap();
        // With TLS 1.3 the client learns of the refusal when it reads.
        drop(connector.connect(server, stream).await);
    });
    let (stream, _) = listener.accept().await.unwrap();
    let refusal = acceptor.accept(stream).await.unwrap_err();
    client.await.unwrap();
    refusal
}

fn client_config(folder: &Folder, name: &str) -> Arc<ClientConfig> {
    let read = |file: &str| fs::read(folder.path(file)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&read("pki/kubernetes-ca.crt")).unwrap()).unwrap();
    let chain = CertificateDer::from_pem_slice(&read(&format!("pki/{name}.crt"))).unwrap();
    let key = PrivateKeyDer::from_pem_slice(&read(&format!("pki/{name}.key"))).unwrap();
    let config = ClientConfig::builder_with_provider(ringfence::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![chain], key);
    Arc::new(config.unwrap())
}
