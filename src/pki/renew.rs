//! A new certificate and key in the place of a pair that ends. What the certificate says stays the same, byte by
//! byte; serial number, dates and key are new.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    Certificate, CertificateParams, CustomExtension, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData as _,
};
use time::OffsetDateTime;
use x509_parser::oid_registry::{
    OID_CT_LIST_SCT, OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
};
use x509_parser::prelude::X509Certificate;

use super::authority::{self, Authority, belong};
use super::fault::Fault;
use super::replace::{self, Prepared};
use super::sections;
use crate::chain::to_hex;

const DAY_SECONDS: i64 = 86_400;
/// A clock that is a little behind must not refuse a new certificate.
const BEFORE_SECONDS: i64 = DAY_SECONDS;

/// What was done.
#[derive(Debug)]
pub struct Renewed {
    /// The new certificate and key.
    pub files: Vec<PathBuf>,
    /// The old ones.
    pub kept: Vec<PathBuf>,
    /// Who signed both.
    pub authority: String,
    /// The old certificate's serial number, lower-case hex.
    pub old_serial: String,
    /// The new one's.
    pub serial: String,
    /// The last second of the new one, since 1970.
    pub not_after_seconds: i64,
    /// Whether that is the authority's last second, and less than was asked for.
    pub is_cut: bool,
}

/// Renews the pair NAME.crt and NAME.key of a folder.
///
/// # Errors
/// When there is no such pair, it is an authority's own, its authority's key is not there, or a file cannot be
/// written. The old pair is in its place then; when nothing but the very last rename failed, it is so after the
/// next run.
pub fn renew(folder: &Path, name: &str, days: u32, now: Duration) -> Result<Renewed, Fault> {
    let _lock = replace::lock(folder)?;
    let name = plain(name)?;
    let path = folder.join(format!("{name}.crt"));
    let chain = authority::chain(&path)?;
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err(Fault::new(format!("`{}` holds no certificate", path.display()), ""));
    };
    let old = authority::parse(&path, &leaf.der)?;
    if old.is_ca() {
        let what = format!("`{}` is an authority's own certificate", path.display());
        let hint =
            "with a new key it would sign nothing that the old one has signed: make another one";
        return Err(Fault::new(what, hint));
    }
    let authority = authority_of(folder, &path, &old)?;
    let now_seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let issuer = authority.issuer(now_seconds)?;
    let wanted = now_seconds.saturating_add(i64::from(days).saturating_mul(DAY_SECONDS));
    let not_after_seconds = wanted.min(authority.not_after_seconds()?);
    let (key, new) = sign(&old, &authority, &issuer, [now_seconds, not_after_seconds])?;
    let serial = authority::parse(&path, new.der()).map(|new| to_hex(new.raw_serial()))?;
    let mut text = new.pem().into_bytes();
    intermediates.iter().for_each(|section| text.extend_from_slice(&section.text));
    let old_serial = to_hex(old.raw_serial());
    let kept = keep(folder, &name, &old)?;
    let files = place(folder, &name, &text, &key.serialize_pem())?;
    Ok(Renewed {
        files,
        kept,
        authority: authority.name,
        old_serial,
        serial,
        not_after_seconds,
        is_cut: not_after_seconds < wanted,
    })
}

/// NAME becomes part of a file's name; with its ending it is taken for what is meant.
pub(super) fn plain(name: &str) -> Result<String, Fault> {
    let name = name.strip_suffix(".crt").unwrap_or(name);
    let may_be = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(may_be) {
        let hint = "the NAME of NAME.crt in the folder: A-Z a-z 0-9 - _ .";
        return Err(Fault::new(format!("`{name}` is no name of a pair"), hint));
    }
    Ok(name.to_owned())
}

/// The authority of the folder that has signed a certificate.
pub(super) fn authority_of(
    folder: &Path,
    path: &Path,
    certificate: &X509Certificate<'_>,
) -> Result<Authority, Fault> {
    let authorities = authority::all(folder)?;
    let names: Vec<String> =
        authorities.iter().map(|authority| format!("`{}`", authority.name)).collect();
    authorities.into_iter().find(|authority| authority.signed(certificate)).ok_or_else(|| {
        let what =
            format!("no authority in `{}` has signed `{}`", folder.display(), path.display());
        let hint = if names.is_empty() {
            "the authority's NAME.crt and NAME.key belong into the folder".to_owned()
        } else {
            format!(
                "authorities in it: {}; the one that has signed it belongs there",
                names.join(", ")
            )
        };
        Fault::new(what, hint)
    })
}

/// The new key and certificate.
fn sign(
    old: &X509Certificate<'_>,
    authority: &Authority,
    issuer: &Issuer<'static, KeyPair>,
    [now_seconds, not_after_seconds]: [i64; 2],
) -> Result<(KeyPair, Certificate), Fault> {
    let cannot = |why: &str| {
        let hint = "make it anew: `ringfence cert make`, or whatever made it";
        Fault::new(format!("the certificate cannot be renewed: {why}"), hint)
    };
    let may_sign = issuer.key_usages();
    if !may_sign.is_empty() && !may_sign.contains(&KeyUsagePurpose::KeyCertSign) {
        return Err(cannot("its authority may not sign, says its key usage"));
    }
    let key = KeyPair::generate().map_err(|error| cannot(&error.to_string()))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = authority::distinguished_name(old.subject())
        .ok_or_else(|| cannot("its subject is in an encoding that ringfence cannot write"))?;
    params.serial_number = authority::serial_number();
    if params.serial_number.is_none() {
        return Err(cannot("the system gives no randomness"));
    }
    let time = |seconds| {
        OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| cannot(&error.to_string()))
    };
    let from = authority.certificate()?.validity().not_before.timestamp();
    params.not_before = time(now_seconds.saturating_sub(BEFORE_SECONDS).max(from))?;
    params.not_after = time(not_after_seconds)?;
    params.use_authority_key_identifier_extension = true;
    let of_old_signature = [OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_CT_LIST_SCT];
    for extension in old.iter_extensions() {
        if extension.oid == OID_X509_EXT_SUBJECT_KEY_IDENTIFIER {
            params.custom_extensions.push(key_identifier(&key));
        } else if !of_old_signature.contains(&extension.oid) {
            let oid: Option<Vec<u64>> = extension.oid.iter().map(Iterator::collect);
            let oid = oid.ok_or_else(|| cannot("an extension has an odd name"))?;
            let mut same = CustomExtension::from_oid_content(&oid, extension.value.to_vec());
            same.set_criticality(extension.critical);
            params.custom_extensions.push(same);
        }
    }
    let signed = params.signed_by(&key, issuer).map_err(|error| cannot(&error.to_string()))?;
    let new = authority::parse(&authority.path("crt"), signed.der())?;
    if new.subject().as_raw() != old.subject().as_raw() {
        return Err(cannot("its subject has several values of one kind, or in one place"));
    }
    if !authority.signed(&new) {
        return Err(cannot("what comes of it does not verify"));
    }
    Ok((key, signed))
}

/// An OCTET STRING of 20 bytes.
fn key_identifier(key: &KeyPair) -> CustomExtension {
    let identifier = authority::key_identifier(&key.subject_public_key_info());
    let content = [0x04, 0x14].into_iter().chain(identifier).collect();
    CustomExtension::from_oid_content(&[2, 5, 29, 14], content)
}

/// The old pair stays beside the new one. What an interrupted run has kept is as good.
fn keep(folder: &Path, name: &str, old: &X509Certificate<'_>) -> Result<Vec<PathBuf>, Fault> {
    let serial = to_hex(old.raw_serial());
    let key_path = folder.join(format!("{name}.key"));
    let kept_path = |ending: &str| folder.join(format!("{name}.{ending}.{serial}"));
    let mut kept = Vec::new();
    if key_path.exists() {
        let is_its_key = |path: &Path| authority::key(path).is_ok_and(|key| belong(old, &key));
        if is_its_key(&key_path) {
            kept.push((key_path, kept_path("key"), 0o600));
        } else if !is_its_key(&kept_path("key")) {
            let certificate = folder.join(format!("{name}.crt"));
            let what =
                format!("`{}` is not the key of `{}`", key_path.display(), certificate.display());
            return Err(Fault::new(
                what,
                "nothing is thrown away: put the right key there, or none",
            ));
        }
    }
    kept.push((folder.join(format!("{name}.crt")), kept_path("crt"), 0o644));
    let mut paths = Vec::new();
    for (from, to, mode) in kept {
        let text = sections::bytes(&from)?;
        paths.push(Prepared::write(&to, &text, mode)?.place()?);
    }
    replace::sync(folder)?;
    Ok(paths)
}

/// Both are on disk before the first one is put in its place, so that only two renames lie between two whole pairs.
fn place(folder: &Path, name: &str, chain: &[u8], key: &str) -> Result<Vec<PathBuf>, Fault> {
    let certificate = Prepared::write(&folder.join(format!("{name}.crt")), chain, 0o644)?;
    let key = Prepared::write(&folder.join(format!("{name}.key")), key.as_bytes(), 0o600)?;
    let files = vec![key.place()?, certificate.place()?];
    replace::sync(folder)?;
    Ok(files)
}
