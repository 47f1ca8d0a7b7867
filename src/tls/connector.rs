//! The client handshake towards etcd: the server is verified by name, our certificate is shown.

use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::material::KeyPair;
use super::provider;

/// Connects to servers that a set of roots vouches for.
#[derive(Clone)]
pub struct Connector {
    inner: TlsConnector,
    /// A hash of whom it trusts and what it shows.
    material: [u8; 32],
}

/// Equal are two that trust the same and show the same: a connection of one is as good as one of the other.
impl PartialEq for Connector {
    fn eq(&self, other: &Self) -> bool {
        self.material == other.material
    }
}

impl Eq for Connector {}

impl std::fmt::Debug for Connector {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl Connector {
    /// A connector; `certificate` is shown when the server asks for one.
    ///
    /// # Errors
    /// When the provider has no usable protocol version.
    pub fn new(
        roots: Arc<RootCertStore>,
        certificate: Option<&KeyPair>,
    ) -> Result<Self, rustls::Error> {
        let material = material_of(&roots, certificate);
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_root_certificates(roots);
        let mut config = match certificate {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let shown = SingleCertAndKey::from(rustls::sign::CertifiedKey::clone(pair));
                builder.with_client_cert_resolver(Arc::new(shown))
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { inner: TlsConnector::from(Arc::new(config)), material })
    }

    /// The same, without a word about which protocol is to be spoken: what a server that serves
    /// both then speaks is HTTP/1.1.
    #[must_use]
    pub fn without_protocols(&self) -> Self {
        let mut config = ClientConfig::clone(self.inner.config());
        config.alpn_protocols.clear();
        Self { inner: TlsConnector::from(Arc::new(config)), material: self.material }
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// When the server is not who it should be, or does not speak TLS.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        name: ServerName<'static>,
        stream: S,
    ) -> std::io::Result<TlsStream<S>> {
        self.inner.connect(name, stream).await
    }
}

/// The key is told by its certificate: only pairs that belong together are made.
fn material_of(roots: &RootCertStore, certificate: Option<&KeyPair>) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut add = |bytes: &[u8]| {
        context.update(&bytes.len().to_be_bytes());
        context.update(bytes);
    };
    for root in &roots.roots {
        add(&root.subject);
        add(&root.subject_public_key_info);
        add(root.name_constraints.as_deref().unwrap_or_default());
    }
    for certificate in certificate.iter().flat_map(|pair| &pair.cert) {
        add(certificate);
    }
    let mut material = [0; 32];
    material.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    material
}
