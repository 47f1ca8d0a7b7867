//! Verifies a client's chain against each named CA, and keeps which one vouched. The stock verifier
//! does not say, and shows no certificate after a refusal; one verifier per connection does both. What is revoked is
//! refused, whoever else vouches.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::material::Authority;
use super::provider;
use super::revocation::{Denied, List, Lists, Mode, Revocation, Revoked};

/// Every named CA with its verifiers, and what is denied.
#[derive(Debug)]
pub struct Authorities {
    /// A CA with several roots of one name has as many.
    verifiers: Vec<Verifier>,
    hints: Vec<DistinguishedName>,
    denied: Arc<Denied>,
}

/// A verifier of a named CA, or of one of its roots.
#[derive(Debug)]
struct Verifier {
    name: Arc<str>,
    verifier: Arc<dyn ClientCertVerifier>,
    /// By any list of its roots.
    revoked: Revoked,
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

/// The most certificates between a client's and a root's.
const INTERMEDIATES_MAX: usize = 8;
/// The most bytes of all that a client shows.
const CHAIN_BYTES_MAX: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
#[error(
    "it comes with more than {INTERMEDIATES_MAX} intermediates, or {CHAIN_BYTES_MAX} bytes in all"
)]
struct ChainTooLong;

#[derive(Debug, thiserror::Error)]
#[error("no CA is configured")]
struct NoAuthority;

impl Authorities {
    /// A verifier for each of them; nothing is revoked.
    ///
    /// # Errors
    /// When the roots of one make no verifier.
    pub fn new(authorities: &[Authority]) -> Result<Self, Error> {
        Self::with_revocation(authorities, &Revocation::none())
    }

    /// A verifier for each of them, with what is revoked.
    ///
    /// # Errors
    /// When the roots of one make no verifier, or one wants a list and has none.
    pub fn with_revocation(
        authorities: &[Authority],
        revocation: &Revocation,
    ) -> Result<Self, Error> {
        let mut verifiers = Vec::new();
        let mut hints = Vec::new();
        for authority in authorities {
            let named = |why: String| Error::General(format!("CA `{}`: {why}", authority.name));
            hints.extend(authority.roots.subjects());
            match revocation.of(&authority.name) {
                None => {
                    let verifier = verifier(Arc::clone(&authority.roots), None).map_err(named)?;
                    let (name, revoked) = (Arc::clone(&authority.name), Revoked::default());
                    verifiers.push(Verifier { name, verifier, revoked });
                }
                // Without any list rustls would not ask for one.
                Some(lists) if lists.mode() == Mode::Hard && lists.in_force().next().is_none() => {
                    return Err(named("no revocation list is there".to_owned()));
                }
                Some(lists) => {
                    for roots in apart(&authority.roots) {
                        let revoked = Revoked::of(lists_of_roots(&roots, lists));
                        let verifier = verifier(Arc::new(roots), Some(lists)).map_err(named)?;
                        let name = Arc::clone(&authority.name);
                        verifiers.push(Verifier { name, verifier, revoked });
                    }
                }
            }
        }
        Ok(Self { verifiers, hints, denied: Arc::clone(revocation.denied()) })
    }

    /// The one CA under which the chain verifies. When none vouches, the error is the first that says
    /// more than "unknown issuer", if one does.
    ///
    /// # Errors
    /// When no CA vouches, or two do, or a certificate is revoked or denied.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Arc<str>, Error> {
        let mut vouching: Option<Arc<str>> = None;
        let mut refusal = other(NoAuthority);
        let chain = || std::iter::once(leaf).chain(intermediates);
        for Verifier { name, verifier, revoked } in &self.verifiers {
            match (verifier.verify_client_cert(leaf, intermediates, now), &vouching) {
                (Ok(_), _) if revoked.has_any(chain()) => {
                    return Err(Error::InvalidCertificate(CertificateError::Revoked));
                }
                (Ok(_), None) => vouching = Some(Arc::clone(name)),
                // By two roots of one name.
                (Ok(_), Some(first)) if first == name => {}
                (Ok(_), Some(first)) => {
                    return Err(other(AmbiguousAuthority(Arc::clone(first), Arc::clone(name))));
                }
                // This CA has signed it and takes it back, or may have: then no other may vouch.
                (Err(error), _) if is_about_revocation(&error) => return Err(error),
                // An expired certificate of a known CA says more than "unknown issuer" of another.
                (Err(error), _) => {
                    if worth(&refusal) == 0 || worth(&error) > worth(&refusal) {
                        refusal = error;
                    }
                }
            }
        }
        let vouching = vouching.ok_or(refusal)?;
        self.check_denied(&vouching, leaf, intermediates)?;
        Ok(vouching)
    }

    /// Looks for every certificate that was shown, needed or not.
    fn check_denied(
        &self,
        vouching: &str,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), Error> {
        if self.denied.is_empty() {
            return Ok(());
        }
        for der in std::iter::once(leaf).chain(intermediates) {
            // What cannot be read may be what is denied.
            let (_, certificate) = X509Certificate::from_der(der)
                .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
            if self.denied.find(vouching, der, &certificate).is_some() {
                return Err(Error::InvalidCertificate(CertificateError::Revoked));
            }
        }
        Ok(())
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

fn verifier(
    roots: Arc<RootCertStore>,
    lists: Option<&Lists>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider());
    let builder = match lists {
        None => builder,
        Some(lists) => {
            let builder = builder.with_crls(of_roots(&roots, lists));
            match lists.mode() {
                Mode::Hard => builder.enforce_revocation_expiration(),
                Mode::Soft => builder.allow_unknown_revocation_status(),
            }
        }
    };
    builder.build().map_err(|error| error.to_string())
}

/// rustls asks the first list that names a certificate's issuer, and refuses the certificate when another key has signed
/// that list. A CA that has a new key under its old name has two such lists, so each verifier gets those of its roots.
fn of_roots(
    roots: &RootCertStore,
    lists: &Lists,
) -> Vec<rustls::pki_types::CertificateRevocationListDer<'static>> {
    let of_roots: Vec<_> = lists_of_roots(roots, lists).map(|list| list.der.clone()).collect();
    if of_roots.is_empty() && lists.mode() == Mode::Hard {
        // Without any list nothing would be asked for. By one of another key everything is refused.
        return lists.in_force().map(|list| list.der.clone()).collect();
    }
    of_roots
}

fn lists_of_roots<'l>(roots: &RootCertStore, lists: &'l Lists) -> impl Iterator<Item = &'l List> {
    lists.in_force().filter(move |list| {
        roots.roots.iter().any(|root| list.may_be_of(&root.subject_public_key_info))
    })
}

/// Roots of one name and different keys apart from each other.
fn apart(roots: &RootCertStore) -> Vec<RootCertStore> {
    let mut parts: Vec<RootCertStore> = Vec::new();
    for root in &roots.roots {
        let collides = |part: &&mut RootCertStore| {
            part.roots.iter().any(|other| {
                other.subject == root.subject
                    && other.subject_public_key_info != root.subject_public_key_info
            })
        };
        match parts.iter_mut().find(|part| !collides(part)) {
            Some(part) => part.roots.push(root.clone()),
            None => parts.push(RootCertStore { roots: vec![root.clone()] }),
        }
    }
    parts
}

/// Whether a path to a root was found, and what is revoked stood in the way.
const fn is_about_revocation(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(
            CertificateError::Revoked
                | CertificateError::UnknownRevocationStatus
                | CertificateError::ExpiredRevocationList
                | CertificateError::ExpiredRevocationListContext { .. }
        ) | Error::InvalidCertRevocationList(_)
    )
}

/// How much a refusal says; of several the one that says most is told.
const fn worth(error: &Error) -> u8 {
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::Other(_)) => {
            0
        }
        // Of two roots of one name, one has not signed it.
        Error::InvalidCertificate(CertificateError::BadSignature) => 1,
        _ => 2,
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// A chain is kept as long as its connection, and looked at whenever one of its certificates ends.
fn within_bounds(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<(), Error> {
    let bytes = std::iter::once(leaf).chain(intermediates).map(|der| der.len()).sum::<usize>();
    if intermediates.len() <= INTERMEDIATES_MAX && bytes <= CHAIN_BYTES_MAX {
        return Ok(());
    }
    Err(other(ChainTooLong))
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
        let verdict = within_bounds(end_entity, intermediates)
            .and_then(|()| self.authorities.verify(end_entity, intermediates, now));
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
