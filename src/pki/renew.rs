//! A new certificate and key in the place of a pair that ends. What the certificate says stays the same, byte by
//! byte; serial number, dates and key are new.

use std::os::unix::fs::MetadataExt as _;
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
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

use super::authority::{self, Authority, belong};
use super::fault::Fault;
use super::replace::{self, Prepared};
use super::sections::{self, Kind};
use crate::chain::to_hex;

const DAY_SECONDS: i64 = 86_400;
/// A clock that is a little behind must not refuse a new certificate.
const BEFORE_SECONDS: i64 = DAY_SECONDS;
/// Keys of one old certificate's name that are kept beside its own.
const FURTHER_KEYS_MAX: usize = 99;

/// What was done.
#[derive(Debug)]
pub struct Renewed {
    /// The new certificate and key.
    pub files: Vec<PathBuf>,
    /// The old ones.
    pub kept: Vec<PathBuf>,
    /// The key that stood there though it was not the old certificate's.
    pub further_key: Option<PathBuf>,
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
/// When there is no such pair, it is an authority's own or revoked, its authority's key is not there, or a file cannot
/// be written. The old pair is in its place then. If only the last rename failed, key and certificate do not fit;
/// the next run mends that.
pub fn renew(
    folder: &Path,
    name: &str,
    days: u32,
    even_though_revoked: bool,
    now: Duration,
) -> Result<Renewed, Fault> {
    let _lock = replace::lock(folder)?;
    let name = plain(name)?;
    let path = folder.join(format!("{name}.crt"));
    let chain = certificates_only(&path)?;
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
    if is_revoked(&authority, &old)? && !even_though_revoked {
        let list = authority.path("crl");
        let what = format!("`{}` is revoked by `{}`", path.display(), list.display());
        let hint =
            "the new one would not be: --even-though-revoked, when whoever holds it may have it";
        return Err(Fault::new(what, hint));
    }
    let now_seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let issuer = authority.issuer(now_seconds)?;
    let wanted = now_seconds.saturating_add(i64::from(days).saturating_mul(DAY_SECONDS));
    let not_after_seconds = wanted.min(authority.not_after_seconds()?);
    let (key, new) = sign(&old, &authority, &issuer, [now_seconds, not_after_seconds])?;
    let serial = authority::parse(&path, new.der()).map(|new| to_hex(new.raw_serial()))?;
    let mut text = new.pem().into_bytes();
    intermediates.iter().for_each(|section| text.extend_from_slice(&section.text));
    let old_serial = to_hex(old.raw_serial());
    let (files, copies) = put(folder, &name, &old, &text, &key.serialize_pem())?;
    Ok(Renewed {
        files,
        kept: copies.paths.clone(),
        further_key: copies.further_key.clone(),
        authority: authority.name,
        old_serial,
        serial,
        not_after_seconds,
        is_cut: not_after_seconds < wanted,
    })
}

/// What stands in the file is copied into one that everybody may read.
fn certificates_only(path: &Path) -> Result<Vec<sections::Section>, Fault> {
    let (sections, faults) = sections::read(path)?;
    if let Some(fault) = faults.into_iter().next() {
        return Err(fault);
    }
    if let Some(other) = sections.iter().find(|section| section.kind != Kind::Certificate) {
        let what = format!("`{}`, line {}: this is no certificate", path.display(), other.line);
        let hint = "only certificates in NAME.crt, the key in NAME.key: whoever reads the one needs not read the other";
        return Err(Fault::new(what, hint));
    }
    Ok(sections)
}

/// Whether the authority's list, if there is one, has a certificate on it.
fn is_revoked(authority: &Authority, old: &X509Certificate<'_>) -> Result<bool, Fault> {
    let path = authority.path("crl");
    if std::fs::symlink_metadata(&path)
        .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    {
        return Ok(false);
    }
    let odd = |why: &str| {
        let what = format!("the list `{}` cannot be read: {why}", path.display());
        Fault::new(what, "it says what may not be renewed: put the authority's own list there")
    };
    let (sections, faults) = sections::read(&path).map_err(|fault| odd(&fault.what))?;
    if let Some(fault) = faults.first() {
        return Err(odd(&fault.what));
    }
    let own = authority.certificate()?;
    let significant =
        |serial: &[u8]| serial.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<u8>>();
    let serial = significant(old.raw_serial());
    let mut is_on_it = false;
    for section in &sections {
        let parsed = CertificateRevocationList::from_der(&section.der);
        let (_, list) = parsed.map_err(|_| odd("it is no revocation list"))?;
        let is_own = list.issuer().as_raw() == own.subject().as_raw();
        if !is_own || list.verify_signature(own.public_key()).is_err() {
            return Err(odd(&format!("the authority `{}` has not signed it", authority.name)));
        }
        is_on_it |=
            list.iter_revoked_certificates().any(|entry| significant(entry.raw_serial()) == serial);
    }
    Ok(is_on_it)
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
    // Under two names, the one that has the key: it is the one whose list is carried on.
    let mut signers: Vec<Authority> =
        authorities.into_iter().filter(|authority| authority.signed(certificate)).collect();
    signers.sort_by_key(|authority| !authority.has_key());
    signers.into_iter().next().ok_or_else(|| {
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

/// Copies of the old pair. Those that this run made go away again when it fails before anything is replaced.
#[derive(Default)]
struct Copies {
    paths: Vec<PathBuf>,
    further_key: Option<PathBuf>,
    made: Vec<PathBuf>,
}

impl Copies {
    /// Keeps a file under a name that is free, or that has the same in it: what an interrupted run has kept.
    fn keep(&mut self, from: &Path, to: &Path, mode: u32) -> Result<(), Fault> {
        if !is_free_for(from, to)? {
            let what = format!("`{}` is there, and is not `{}`", to.display(), from.display());
            let hint = "nothing is thrown away: it is of another certificate with this serial number; move it away";
            return Err(Fault::new(what, hint));
        }
        if !to.exists() {
            Prepared::write(to, &sections::bytes(from)?, mode)?.place()?;
            self.made.push(to.to_owned());
        }
        Ok(())
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        for path in &self.made {
            // The file that it is a copy of is in its place.
            drop(std::fs::remove_file(path));
        }
    }
}

fn is_free_for(from: &Path, to: &Path) -> Result<bool, Fault> {
    match std::fs::symlink_metadata(to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Fault::unread(to, &error)),
        Ok(there) => Ok(there.is_file() && sections::bytes(to)? == sections::bytes(from)?),
    }
}

/// The old pair stays beside the new one. A key that is there instead of the old one's stays, too: an interrupted run
/// leaves one, but so does somebody who went back to the old certificate, and these two cannot be told apart.
fn keep(folder: &Path, name: &str, old: &X509Certificate<'_>) -> Result<Copies, Fault> {
    let serial = to_hex(old.raw_serial());
    let [certificate, key] = ["crt", "key"].map(|ending| folder.join(format!("{name}.{ending}")));
    let kept_path = |ending: &str| folder.join(format!("{name}.{ending}.{serial}"));
    let mut copies = Copies::default();
    if key.exists() {
        let is_its_key = |path: &Path| authority::key(path).is_ok_and(|key| belong(old, &key));
        if is_its_key(&key) {
            copies.keep(&key, &kept_path("key"), 0o600)?;
            copies.paths.push(kept_path("key"));
        } else if is_its_key(&kept_path("key")) {
            let further = further_path(&key, &kept_path("key"))?;
            copies.keep(&key, &further, 0o600)?;
            copies.further_key = Some(further);
        } else {
            let what = format!("`{}` is not the key of `{}`", key.display(), certificate.display());
            let hint = "nothing is thrown away: put the right key there, or none";
            return Err(Fault::new(what, hint));
        }
    }
    let mode = certificate.metadata().map_err(|error| Fault::unread(&certificate, &error))?.mode();
    copies.keep(&certificate, &kept_path("crt"), mode & 0o644)?;
    copies.paths.push(kept_path("crt"));
    replace::sync(folder)?;
    Ok(copies)
}

fn further_path(key: &Path, kept: &Path) -> Result<PathBuf, Fault> {
    for number in 1..=FURTHER_KEYS_MAX {
        let mut path = kept.as_os_str().to_owned();
        path.push(format!(".{number}"));
        let path = PathBuf::from(path);
        if is_free_for(key, &path)? {
            return Ok(path);
        }
    }
    let what = format!("`{}` has {FURTHER_KEYS_MAX} others beside it", kept.display());
    Err(Fault::new(what, "remove those that nobody needs"))
}

/// Both are on disk, and nothing stands in their way, before the old pair is copied and the first one is put in its
/// place, so that only two renames lie between two whole pairs.
fn put(
    folder: &Path,
    name: &str,
    old: &X509Certificate<'_>,
    chain: &[u8],
    key: &str,
) -> Result<(Vec<PathBuf>, Copies), Fault> {
    let certificate = Prepared::write(&folder.join(format!("{name}.crt")), chain, 0o644)?;
    let key = Prepared::write(&folder.join(format!("{name}.key")), key.as_bytes(), 0o600)?;
    let mut copies = keep(folder, name, old)?;
    let key = key.place()?;
    copies.made.clear();
    let files = vec![key, certificate.place()?];
    replace::sync(folder)?;
    Ok((files, copies))
}
