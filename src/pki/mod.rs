//! Makes a small PKI from a recipe (authorities and certificates as PEM files, keys with mode 0600), renews and revokes
//! in it or in one that others made, and tells what stands in such files. It serves nobody, and the server needs none of it
//! to run.

mod authority;
pub mod describe;
mod fault;
pub mod lifetime;
mod recipe;
mod renew;
mod replace;
pub mod revocation;
mod sections;

pub use fault::Fault;
pub use recipe::{AuthorityRecipe, CertificateRecipe, Recipe};
pub use renew::{Renewed, renew};

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

use crate::chain::to_hex;
use crate::keyed_hash::KEY_BYTES;

/// Authorities outlive what they sign.
const AUTHORITY_DAYS: i64 = 3650;

/// Why no PKI was made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be written; one that is there is never replaced.
    #[error("cannot write `{}`: {error}{}", path.display(), hint(error))]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A certificate that cannot be.
    #[error("certificate `{name}`: {error}")]
    Certificate {
        /// Its name in the recipe.
        name: String,
        /// Why.
        error: rcgen::Error,
    },
}

/// Makes every authority and certificate of the recipe in the folder: `NAME.crt` and `NAME.key`.
///
/// # Errors
/// When a file is already there or cannot be written, or a certificate cannot be made.
pub fn make(recipe: &Recipe, folder: &Path, now: Duration) -> Result<Vec<PathBuf>, PkiError> {
    let mut files = Vec::new();
    for authority in &recipe.authorities {
        let named = |error| PkiError::Certificate { name: authority.name.clone(), error };
        let issuer = self::authority(authority, now).map_err(named)?;
        files.push((format!("{}.crt", authority.name), issuer.pem(), 0o644));
        files.push((format!("{}.key", authority.name), issuer.key().serialize_pem(), 0o600));
        for certificate in &recipe.certificates {
            if certificate.authority != authority.name {
                continue;
            }
            let named = |error| PkiError::Certificate { name: certificate.name.clone(), error };
            let (chain, key) = leaf(certificate, &issuer, now).map_err(named)?;
            files.push((format!("{}.crt", certificate.name), chain, 0o644));
            files.push((format!("{}.key", certificate.name), key, 0o600));
        }
    }
    // Only now, so that a recipe that cannot be followed leaves no half of its files behind.
    let write_error = |error| PkiError::Write { path: folder.to_owned(), error };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(write_error)?;
    files.iter().map(|(name, text, mode)| write(&folder.join(name), text, *mode)).collect()
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AlreadyExists => "\n  hint: nothing is replaced: give another name",
        _ => "",
    }
}

fn authority(
    recipe: &AuthorityRecipe,
    now: Duration,
) -> Result<CertifiedIssuer<'static, KeyPair>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, recipe.common_name.clone());
    params.serial_number = authority::serial_number();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now, -1, AUTHORITY_DAYS);
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

fn leaf(
    recipe: &CertificateRecipe,
    issuer: &CertifiedIssuer<'static, KeyPair>,
    now: Duration,
) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for (kind, values) in [
        (DnType::OrganizationName, &recipe.organizations),
        (DnType::OrganizationalUnitName, &recipe.organizational_units),
    ] {
        for value in values {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
    }
    if let Some(common_name) = &recipe.common_name {
        params.distinguished_name.push(DnType::CommonName, common_name.clone());
    }
    for dns in &recipe.dns {
        params.subject_alt_names.push(SanType::DnsName(Ia5String::try_from(dns.as_str())?));
    }
    for uri in &recipe.uris {
        params.subject_alt_names.push(SanType::URI(Ia5String::try_from(uri.as_str())?));
    }
    params.subject_alt_names.extend(recipe.ips.iter().map(|ip| SanType::IpAddress(*ip)));
    params.serial_number = authority::serial_number();
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if recipe.server {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    if recipe.client {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    set_validity(&mut params, now, recipe.valid_from_days, recipe.valid_days);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn set_validity(params: &mut CertificateParams, now: Duration, from_days: i64, days: i64) {
    let now = OffsetDateTime::UNIX_EPOCH
        .saturating_add(time::Duration::try_from(now).unwrap_or_default());
    params.not_before = now.saturating_add(time::Duration::days(from_days));
    params.not_after = params.not_before.saturating_add(time::Duration::days(days));
}

/// Makes an Ed25519 key for an audit log: `FILE` with mode 0600, and `FILE.pub`.
///
/// # Errors
/// When a file is already there or cannot be written, or there is no randomness.
pub fn make_signing_key(file: &Path) -> Result<[PathBuf; 2], PkiError> {
    let named = |error| PkiError::Certificate { name: file.display().to_string(), error };
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(named)?;
    let mut public = file.as_os_str().to_owned();
    public.push(".pub");
    // The public one first: whatever fails, no private key is left that has none.
    let public = write(Path::new(&public), &key.public_key_pem(), 0o644)?;
    let private = write(file, &key.serialize_pem(), 0o600);
    if private.is_err() {
        drop(std::fs::remove_file(&public));
    }
    Ok([private?, public])
}

/// Makes a key for keyed hashes, mode 0600.
///
/// # Errors
/// When a file is already there or cannot be written, or there is no randomness.
pub fn make_hash_key(file: &Path) -> Result<PathBuf, PkiError> {
    let mut key = [0; KEY_BYTES];
    let write_error = |error| PkiError::Write { path: file.to_owned(), error };
    aws_lc_rs::rand::fill(&mut key)
        .map_err(|_| write_error(std::io::Error::other("the system gives no randomness")))?;
    let text = format!("# ringfence audit hash key\n{}\n", to_hex(&key));
    write(file, &text, 0o600)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<PathBuf, PkiError> {
    let file = OpenOptions::new().create_new(true).write(true).mode(mode).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| PkiError::Write { path: path.to_owned(), error })?;
    Ok(path.to_owned())
}
