//! The server handshake: TLS 1.2 or 1.3, a client certificate is required, nothing is resumed.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::material::{Authority, KeyPair};
use super::provider;
use super::verifier::{Authorities, ConnectionVerifier, Doubt, Presented, doubt};

/// Accepts handshakes with one certificate and a set of named CAs.
#[derive(Debug)]
pub struct Acceptor {
    provider: Arc<CryptoProvider>,
    certificate: Arc<SingleCertAndKey>,
    authorities: Arc<Authorities>,
    handshake_timeout: Duration,
}

/// A client that proved who it is.
#[derive(Debug)]
pub struct Accepted {
    /// The stream.
    pub stream: TlsStream<TcpStream>,
    /// The named CA that vouches.
    pub authority: Arc<str>,
    /// The leaf certificate.
    pub leaf: CertificateDer<'static>,
    /// The certificates that came with it.
    pub intermediates: Vec<CertificateDer<'static>>,
    /// What the client wants to speak.
    pub protocol: Protocol,
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: &'static str,
}

/// What was agreed on by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `h2`
    Http2,
    /// `http/1.1`, or nothing.
    Http1,
}

/// Why a handshake came to nothing. The reasons are few, so that they can be counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeRefusal {
    /// A short, fixed name.
    pub reason: &'static str,
    /// What rustls says.
    pub detail: String,
    /// The certificate that was presented, if it came to that.
    pub leaf: Option<CertificateDer<'static>>,
}

impl Acceptor {
    /// An acceptor to which nothing is revoked.
    ///
    /// # Errors
    /// When a CA's roots make no verifier.
    pub fn new(
        certificate: &KeyPair,
        authorities: &[Authority],
        handshake_timeout: Duration,
    ) -> Result<Self, rustls::Error> {
        let authorities = Arc::new(Authorities::new(authorities)?);
        Ok(Self::with_authorities(certificate, authorities, handshake_timeout))
    }

    /// An acceptor that asks these CAs, and what they know to be revoked.
    #[must_use]
    pub fn with_authorities(
        certificate: &KeyPair,
        authorities: Arc<Authorities>,
        handshake_timeout: Duration,
    ) -> Self {
        let certificate = Arc::new(SingleCertAndKey::from(CertifiedKey::clone(certificate)));
        Self { provider: provider(), certificate, authorities, handshake_timeout }
    }

    /// Those who vouch.
    #[must_use]
    pub const fn authorities(&self) -> &Arc<Authorities> {
        &self.authorities
    }

    /// Shakes hands within the deadline.
    ///
    /// # Errors
    /// When the client is too slow, or is refused.
    pub async fn accept(&self, stream: TcpStream) -> Result<Accepted, HandshakeRefusal> {
        let presented = Arc::new(OnceLock::new());
        let refusal = |reason, detail: String| HandshakeRefusal {
            reason,
            detail,
            leaf: presented.get().map(|found: &Presented| found.leaf.clone()),
        };
        let verifier = ConnectionVerifier {
            authorities: Arc::clone(&self.authorities),
            presented: Arc::clone(&presented),
        };
        let config =
            self.config(verifier).map_err(|error| refusal("internal", error.to_string()))?;
        let handshake = TlsAcceptor::from(Arc::new(config)).accept(stream);
        let stream = match tokio::time::timeout(self.handshake_timeout, handshake).await {
            Err(_) => {
                return Err(refusal("handshake_timeout", "no handshake in time".to_owned()));
            }
            Ok(Err(error)) => {
                let verdict = presented.get().and_then(|found| found.verdict.as_ref().err());
                let reason = verdict.map_or_else(|| reason_of(&error), verdict_reason);
                return Err(refusal(reason, error.to_string()));
            }
            Ok(Ok(stream)) => stream,
        };
        let (_, session) = stream.get_ref();
        let protocol = match session.alpn_protocol() {
            Some(b"h2") => Protocol::Http2,
            _ => Protocol::Http1,
        };
        let version = match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLSv1.3",
        };
        let Some(found) = presented.get() else {
            return Err(refusal("no_certificate", "the handshake verified no one".to_owned()));
        };
        match &found.verdict {
            Ok(authority) => Ok(Accepted {
                authority: Arc::clone(authority),
                leaf: found.leaf.clone(),
                intermediates: found.intermediates.clone(),
                protocol,
                version,
                stream,
            }),
            Err(error) => Err(refusal(verdict_reason(error), error.to_string())),
        }
    }

    /// A config per connection, because its verifier is. Resumption stays off: a resumed session
    /// never calls the verifier, so a ticket would outlive the certificate it was given for.
    fn config(&self, verifier: ConnectionVerifier) -> Result<ServerConfig, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::clone(&self.certificate) as Arc<_>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// A certificate that was judged and refused.
#[must_use]
pub const fn verdict_reason(error: &rustls::Error) -> &'static str {
    match doubt(error) {
        Doubt::Revoked => "certificate_revoked",
        Doubt::Expired | Doubt::Other => "certificate_refused",
    }
}

/// A handshake that failed before a certificate was judged.
fn reason_of(error: &std::io::Error) -> &'static str {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::NoCertificatesPresented) => "no_certificate",
        Some(_) => "tls_error",
        None => "connection_lost",
    }
}
