//! Verifies a client's chain against each named CA, and keeps which one vouched. The stock verifier
//! does not say, and shows no certificate after a refusal; one verifier per connection does both.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

use super::material::Authority;
use super::provider;

/// Every named CA with its verifier.
#[derive(Debug)]
pub struct Authorities {
    verifiers: Vec<(Arc<str>, Arc<dyn ClientCertVerifier>)>,
    hints: Vec<DistinguishedName>,
}

/// What the verifier of one connection found.
#[derive(Clone, Debug)]
pub(super) struct Presented {
    pub(super) leaf: CertificateDer<'static>,
    pub(super) intermediates: Vec<CertificateDer<'static>>,
    pub(super) verdict: Result<Arc<str>, Error>,
}

/// A verifier that serves one connection.
#[derive(Debug)]
pub(super) struct ConnectionVerifier {
    pub(super) authorities: Arc<Authorities>,
    pub(super) presented: Arc<OnceLock<Presented>>,
}

#[derive(Debug, thiserror::Error)]
#[error("the certificate verifies under two named CAs: {0} and {1}")]
struct AmbiguousAuthority(Arc<str>, Arc<str>);

#[derive(Debug, thiserror::Error)]
#[error("no CA is configured")]
struct NoAuthority;

impl Authorities {
    /// A verifier for each of them.
    ///
    /// # Errors
    /// When the roots of one make no verifier.
    pub fn new(authorities: &[Authority]) -> Result<Self, Error> {
        let mut verifiers = Vec::new();
        let mut hints = Vec::new();
        for authority in authorities {
            let roots = Arc::clone(&authority.roots);
            let verifier =
                WebPkiClientVerifier::builder_with_provider(roots, provider())
                    .build()
                    .map_err(|error| Error::General(format!("CA `{}`: {error}", authority.name)))?;
            hints.extend_from_slice(verifier.root_hint_subjects());
            verifiers.push((Arc::clone(&authority.name), verifier));
        }
        Ok(Self { verifiers, hints })
    }

    /// The one CA under which the chain verifies. When none vouches, the error is the first that says
    /// more than "unknown issuer", if one does.
    ///
    /// # Errors
    /// When no CA vouches, or two do.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Arc<str>, Error> {
        let mut vouching: Option<Arc<str>> = None;
        let mut refusal = other(NoAuthority);
        for (name, verifier) in &self.verifiers {
            match (verifier.verify_client_cert(leaf, intermediates, now), &vouching) {
                (Ok(_), None) => vouching = Some(Arc::clone(name)),
                (Ok(_), Some(first)) => {
                    return Err(other(AmbiguousAuthority(Arc::clone(first), Arc::clone(name))));
                }
                // An expired certificate of a known CA says more than "unknown issuer" of another.
                (Err(error), _) => {
                    if refusal_says_less(&refusal) {
                        refusal = error;
                    }
                }
            }
        }
        vouching.ok_or(refusal)
    }
}

/// What is wrong with a chain, as far as it is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// One of its certificates was revoked.
    Revoked,
    /// One of its certificates has expired.
    Expired,
    /// Nobody vouches for it.
    Other,
}

/// What an error says about a chain.
#[must_use]
pub const fn doubt(error: &Error) -> Doubt {
    match error {
        Error::InvalidCertificate(CertificateError::Revoked) => Doubt::Revoked,
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => Doubt::Expired,
        _ => Doubt::Other,
    }
}

fn refusal_says_less(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::Other(_))
    )
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

impl ClientCertVerifier for ConnectionVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.authorities.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verdict = self.authorities.verify(end_entity, intermediates, now);
        let owned = |certificate: &CertificateDer<'_>| certificate.clone().into_owned();
        let presented = Presented {
            leaf: owned(end_entity),
            intermediates: intermediates.iter().map(owned).collect(),
            verdict: verdict.clone(),
        };
        if self.presented.set(presented).is_err() {
            return Err(Error::General("a second certificate in one handshake".to_owned()));
        }
        verdict.map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
