//! Reads certificates, keys and roots from files; says what is wrong with each.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::provider;

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
    },
}

impl MaterialError {
    fn content(path: &Path, what: impl Into<String>) -> Self {
        Self::Content { path: path.to_owned(), what: what.into() }
    }
}

/// Reads a chain and its key, and checks that they belong together.
///
/// # Errors
/// When a file cannot be read, holds no certificate or key, or the two do not match.
pub fn key_pair(certificate: &Path, key: &Path) -> Result<KeyPair, MaterialError> {
    let chain = certificates(certificate)?;
    let pem = read(key)?;
    let key_der = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| MaterialError::content(key, "holds no private key in PEM"))?;
    let signing = provider().key_provider.load_private_key(key_der);
    let signing = signing
        .map_err(|error| MaterialError::content(key, format!("is no usable key: {error}")))?;
    let pair = CertifiedKey::new(chain, signing);
    pair.keys_match().map_err(|_| {
        let what = format!("is not the key of the certificate `{}`", certificate.display());
        MaterialError::content(key, what)
    })?;
    Ok(Arc::new(pair))
}

/// Reads a file of root certificates.
///
/// # Errors
/// When it cannot be read, holds none, or holds one that cannot be a root.
pub fn roots(path: &Path) -> Result<Arc<RootCertStore>, MaterialError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate).map_err(|error| {
            MaterialError::content(path, format!("holds a certificate that is no root: {error}"))
        })?;
    }
    Ok(Arc::new(store))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let pem = read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates
        .map_err(|error| MaterialError::content(path, format!("is not PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(MaterialError::content(path, "holds no certificate in PEM"));
    }
    Ok(certificates)
}

fn read(path: &Path) -> Result<Vec<u8>, MaterialError> {
    let error = |error| MaterialError::Read { path: path.to_owned(), error };
    let length = std::fs::metadata(path).map_err(error)?.len();
    if length > FILE_BYTES_MAX {
        return Err(MaterialError::content(path, format!("is larger than {FILE_BYTES_MAX} bytes")));
    }
    std::fs::read(path).map_err(error)
}
