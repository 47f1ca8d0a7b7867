//! Whole handshakes: the reason that is recorded, and the chain that is handed on.

use rustls::ClientConfig;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpSocket};

use super::super::super::{Accepted, Acceptor, HandshakeRefusal};
use super::*;

fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::try_from(key.serialize_der()).unwrap()
}

/// A server's pair, its root and what clients need to trust it.
fn server() -> (crate::tls::KeyPair, Arc<RootCertStore>) {
    let ca = root("server");
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &ca).unwrap();
    let signing = provider().key_provider.load_private_key(private(&key)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    (Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signing)), roots.into())
}

async fn shake(
    world: &World,
    revocation: &Revocation,
    chain: Chain,
    key: PrivateKeyDer<'static>,
) -> Result<Accepted, HandshakeRefusal> {
    let (pair, roots) = server();
    let authorities: Vec<_> = world.authorities.iter().map(|(one, _)| one.clone()).collect();
    let authorities = Arc::new(Authorities::with_revocation(&authorities, revocation).unwrap());
    let acceptor = Acceptor::with_authorities(&pair, authorities, Duration::from_secs(60));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    let stream = socket.connect(listener.local_addr().unwrap()).await.unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").unwrap();
    let client = tokio::spawn(async move { drop(connector.connect(name, stream).await) });
    let accepted = acceptor.accept(listener.accept().await.unwrap().0).await;
    client.await.unwrap();
    accepted
}

#[tokio::test]
async fn a_revoked_client_is_refused_by_a_reason_of_its_own_and_others_show_their_whole_chain() {
    let ca = root("a");
    let middle = intermediate("middle", 5, &ca);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    // The verification is of today, so the dates of the lists do not matter here: soft.
    params.serial_number = Some(SerialNumber::from(9));
    let signed = params.signed_by(&key, &middle).unwrap();
    let chain = vec![signed.der().clone(), middle.der().clone()];
    let world = World::new(&[("a", &[&ca], Some(Mode::Soft))]);
    world.write("a.crl", list(&ca, 1, (-1, 7), &[]));
    let revocation = world.load_silently();
    let accepted = shake(&world, &revocation, chain.clone(), private(&key)).await.unwrap();
    assert_eq!((&*accepted.authority, &accepted.leaf), ("a", &chain[0]));
    assert_eq!(accepted.intermediates, chain[1..]);
    for (file, text) in
        [("deny.txt", "serial a 9\n".to_owned()), ("a.crl", list(&ca, 2, (-1, 7), &[5]))]
    {
        world.write(file, text);
        let (revocation, _) = world.load(None);
        let refusal = shake(&world, &revocation, chain.clone(), private(&key)).await.unwrap_err();
        assert_eq!(refusal.reason, "certificate_revoked", "{refusal:?}");
        assert_eq!(refusal.leaf.as_ref(), Some(&chain[0]));
        drop(fs::remove_file(world.folder.path().join("deny.txt")));
    }
}
