//! Reads certificates, keys and roots from files; says what is wrong with each.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{CertRevocationListError, CertificateError, RootCertStore};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::provider;
use crate::regular_file;

/// The most bytes of a PEM file that are read.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// A certificate chain and its key, which belong together.
pub type KeyPair = Arc<CertifiedKey>;

/// A named set of roots.
#[derive(Clone, Debug)]
pub struct Authority {
    /// The name that identities refer to.
    pub name: Arc<str>,
    /// The roots.
    pub roots: Arc<RootCertStore>,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// It cannot be read.
    #[error("cannot read `{}`: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is not what it should be.
    #[error("`{}` {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it is not.
        what: String,
        /// How to mend it; empty when that is plain.
        hint: &'static str,
    },
}

impl MaterialError {
    fn content(path: &Path, what: impl Into<String>, hint: &'static str) -> Self {
        Self::Content { path: path.to_owned(), what: what.into(), hint }
    }

    /// How to mend it; empty when that is plain.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Read { .. } => "",
            Self::Content { hint, .. } => hint,
        }
    }
}

/// Reads a chain and its key, and checks that they belong together.
///
/// # Errors
/// When a file cannot be read, holds no certificate or key, or the two do not match.
pub fn key_pair(certificate: &Path, key: &Path) -> Result<KeyPair, MaterialError> {
    pair(certificates(certificate)?, signing_key(key)?, (certificate, key))
}

/// Puts a chain and its key together; the paths are those of the two.
///
/// # Errors
/// When they do not match.
pub fn pair(
    chain: Vec<CertificateDer<'static>>,
    signing: Arc<dyn SigningKey>,
    (certificate, key): (&Path, &Path),
) -> Result<KeyPair, MaterialError> {
    let pair = CertifiedKey::new(chain, signing);
    pair.keys_match().map_err(|_| {
        let what = format!("is not the key of the certificate `{}`", certificate.display());
        MaterialError::content(key, what, "")
    })?;
    Ok(Arc::new(pair))
}

/// What one's own certificate is shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A server's.
    Server,
    /// A client's.
    Client,
}

/// Why the other side is going to refuse one's own certificate, if it is; each reason continues
/// "the certificate".
#[must_use]
pub fn doubts(pair: &KeyPair, purpose: Purpose, now: Duration) -> Vec<String> {
    let leaf = pair.cert.first().map(|leaf| X509Certificate::from_der(leaf));
    let Some(Ok((_, leaf))) = leaf else {
        return vec!["does not parse".to_owned()];
    };
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = leaf.validity();
    let mut doubts = Vec::new();
    if now > validity.not_after.timestamp() {
        doubts.push(format!("has expired: its last moment was {}", validity.not_after));
    }
    if now < validity.not_before.timestamp() {
        doubts.push(format!("is not valid yet: its first moment is {}", validity.not_before));
    }
    // Without the extension it is for everything.
    if let Ok(Some(usage)) = leaf.extended_key_usage() {
        let (fits, name) = match purpose {
            Purpose::Server => (usage.value.server_auth, "servers"),
            Purpose::Client => (usage.value.client_auth, "clients"),
        };
        if !fits && !usage.value.any {
            doubts.push(format!("is not for TLS {name}, says its extended key usage"));
        }
    }
    doubts
}

/// The first and the last second of a certificate, since 1970.
#[must_use]
pub fn validity_seconds(certificate: &[u8]) -> Option<(i64, i64)> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let validity = certificate.validity();
    Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// Reads a file of root certificates.
///
/// # Errors
/// When it cannot be read, holds none, or holds one that cannot be a root.
pub fn roots(path: &Path) -> Result<Arc<RootCertStore>, MaterialError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate).map_err(|error| {
            let why = in_plain_words(&error);
            let what = format!("holds a certificate that is no root: {why}");
            MaterialError::content(path, what, "")
        })?;
    }
    Ok(Arc::new(store))
}

/// Reads a file of certificates, the leaf of a chain first.
///
/// # Errors
/// When it cannot be read or holds none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let bytes = read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|error| not_pem(path, &error))?;
    if certificates.is_empty() {
        let hint = if is_der(&bytes) {
            "it looks like DER: openssl x509 -inform der -in FILE -out FILE.crt"
        } else if holds(&bytes, "PRIVATE KEY-----") {
            "it holds a key; the certificate belongs here"
        } else {
            ""
        };
        return Err(MaterialError::content(path, "holds no certificate in PEM", hint));
    }
    Ok(certificates)
}

/// Reads a file with a private key.
///
/// # Errors
/// When it cannot be read or holds none that can be used.
pub fn signing_key(path: &Path) -> Result<Arc<dyn SigningKey>, MaterialError> {
    let bytes = read(path)?;
    if holds(&bytes, "BEGIN ENCRYPTED PRIVATE KEY") || holds(&bytes, "Proc-Type: 4,ENCRYPTED") {
        let hint = "ringfence asks for no passphrase: openssl pkey -in FILE -out FILE.key";
        return Err(MaterialError::content(path, "holds an encrypted key", hint));
    }
    let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
        if !matches!(error, pem::Error::NoItemsFound) {
            return not_pem(path, &error);
        }
        let hint = if is_der(&bytes) {
            "it looks like DER: openssl pkey -inform der -in FILE -out FILE.key"
        } else if holds(&bytes, "BEGIN CERTIFICATE-----") {
            "it holds a certificate; the key belongs here"
        } else {
            ""
        };
        MaterialError::content(path, "holds no private key in PEM", hint)
    })?;
    let signing = provider().key_provider.load_private_key(key);
    signing.map_err(|error| MaterialError::content(path, format!("is no usable key: {error}"), ""))
}

/// The parser's own words are in bytes.
fn not_pem(path: &Path, error: &pem::Error) -> MaterialError {
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).chars().take(80).collect::<String>();
    let why = match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            format!("the line `-----END {}-----` is missing", lossy(end_marker))
        }
        pem::Error::IllegalSectionStart { line } => {
            format!("`{}` begins nothing", lossy(line).trim())
        }
        error => error.to_string(),
    };
    MaterialError::content(path, format!("is not PEM: {why}"), "")
}

/// A DER certificate or key is a sequence.
fn is_der(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x30) && std::str::from_utf8(bytes).is_err()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn read(path: &Path) -> Result<Vec<u8>, MaterialError> {
    let error = |error| MaterialError::Read { path: path.to_owned(), error };
    regular_file::read(path, FILE_BYTES_MAX).map_err(error)
}

/// Why a certificate was refused, in words for people.
#[must_use]
pub fn in_plain_words(error: &rustls::Error) -> String {
    let error = match error {
        rustls::Error::InvalidCertificate(error) => error,
        rustls::Error::InvalidCertRevocationList(CertRevocationListError::BadSignature) => {
            return "the revocation list of its issuer is not signed by that issuer's key"
                .to_owned();
        }
        rustls::Error::InvalidCertRevocationList(CertRevocationListError::IssuerInvalidForCrl) => {
            return "its issuer has signed a revocation list, and may not sign any".to_owned();
        }
        error => return error.to_string(),
    };
    let words = match error {
        CertificateError::Revoked => "it is revoked",
        CertificateError::UnknownRevocationStatus => {
            "no revocation list of its issuer is there, so it may be revoked"
        }
        CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => {
            "the revocation list of its issuer is past its next update, so it may be revoked"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet"
        }
        CertificateError::UnknownIssuer => {
            "no configured CA has signed it, or its chain lacks an intermediate"
        }
        CertificateError::BadSignature => "it is not signed by the key of the CA that it names",
        CertificateError::BadEncoding => "it is no X.509 certificate",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its extended key usage does not allow this use"
        }
        CertificateError::Other(error) => {
            return match error.to_string().as_str() {
                "CaUsedAsEndEntity" => "it is a CA's own certificate".to_owned(),
                other => other.to_owned(),
            };
        }
        error => return error.to_string(),
    };
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_the_other_side_will_refuse_is_doubted() {
        let mut params = rcgen::CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = params.self_signed(&key).unwrap();
        let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let signing = provider().key_provider.load_private_key(der).unwrap();
        let pair = Arc::new(CertifiedKey::new(vec![leaf.der().clone()], signing));

        let check = |purpose, years: u64, expected: &[&str]| {
            let now = Duration::from_secs(years * 31_557_600);
            let found = doubts(&pair, purpose, now);
            assert_eq!(found.len(), expected.len(), "{found:?}");
            assert!(found.iter().zip(expected).all(|(a, b)| a.starts_with(b)), "{found:?}");
        };
        check(Purpose::Server, 55, &[]);
        check(Purpose::Server, 49, &["is not valid yet: its first moment is Jan  1"]);
        check(Purpose::Server, 61, &["has expired: its last moment was Jan  1"]);
        check(Purpose::Client, 61, &["has expired", "is not for TLS clients"]);
    }
}
