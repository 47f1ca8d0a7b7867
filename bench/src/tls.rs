//! TLS configurations of the bench: mutual on every hop, h2 only, no resumption (ringfence has none either).
//! Reads the folder that `pki` writes; chooses no ciphers, so that every contestant negotiates its default.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Outcome;

/// Serves as `server.crt` and takes only clients that the CA vouches for.
pub fn server(pki: &Path) -> Outcome<Arc<ServerConfig>> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(pki)?), provider());
    let verifier = verifier.build().map_err(|error| format!("client verifier: {error}"))?;
    let (chain, key) = pair(pki, "server")?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| format!("server certificate: {error}"))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Connects as `NAME.crt`, or with no certificate at all where `name` is None.
pub fn client(pki: &Path, name: Option<&str>) -> Outcome<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(pki)?);
    let mut config = match name {
        Some(name) => {
            let (chain, key) = pair(pki, name)?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("{name} certificate: {error}"))?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// One connection, up to the end of our side of the handshake.
pub async fn connect(address: &str, config: Arc<ClientConfig>) -> Outcome<TlsStream<TcpStream>> {
    let stream =
        TcpStream::connect(address).await.map_err(|error| format!("{address}: {error}"))?;
    stream.set_nodelay(true).map_err(|error| format!("{address}: {error}"))?;
    let name = ServerName::try_from("localhost").unwrap();
    let connected = TlsConnector::from(config).connect(name, stream).await;
    connected.map_err(|error| format!("{address}: TLS: {error}"))
}

/// What the two ends agreed on, such as `TLSv1_3 TLS13_AES_256_GCM_SHA384`.
pub fn session(stream: &TlsStream<TcpStream>) -> String {
    let (_, session) = stream.get_ref();
    match (session.protocol_version(), session.negotiated_cipher_suite()) {
        (Some(version), Some(suite)) => format!("{version:?} {:?}", suite.suite()),
        _ => "unknown".to_owned(),
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn roots(pki: &Path) -> Outcome<RootCertStore> {
    let path = pki.join("ca.crt");
    let mut roots = RootCertStore::empty();
    let certificate =
        CertificateDer::from_pem_file(&path).map_err(|error| unreadable(&path, &error))?;
    roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(roots)
}

fn pair(pki: &Path, name: &str) -> Outcome<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let certificate = pki.join(format!("{name}.crt"));
    let key = pki.join(format!("{name}.key"));
    Ok((
        vec![
            CertificateDer::from_pem_file(&certificate)
                .map_err(|error| unreadable(&certificate, &error))?,
        ],
        PrivateKeyDer::from_pem_file(&key).map_err(|error| unreadable(&key, &error))?,
    ))
}

fn unreadable(path: &Path, error: &dyn std::fmt::Debug) -> String {
    format!("{}: {error:?}; make the folder with `ringfence-bench pki DIR`", path.display())
}
