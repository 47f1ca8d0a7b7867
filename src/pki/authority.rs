//! The authorities of a folder: their certificates, and their keys to sign with. Where `cert make` puts them,
//! NAME.crt and NAME.key.

use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use rcgen::string::{BmpString, Ia5String, PrintableString, TeletexString, UniversalString};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SerialNumber,
};
use x509_parser::asn1_rs::Tag;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Name};

use super::fault::Fault;
use super::sections::{self, Kind, Section};

/// A key identifier is that much of a SHA-256.
const KEY_IDENTIFIER_BYTES: usize = 20;

/// An authority whose certificate is in a folder.
#[derive(Clone, Debug)]
pub(super) struct Authority {
    pub(super) name: String,
    pub(super) folder: PathBuf,
    der: Vec<u8>,
}

/// Every authority of a folder, by name. Files that hold no certificate are passed over: what is missed is
/// named when it is needed.
pub(super) fn all(folder: &Path) -> Result<Vec<Authority>, Fault> {
    let mut authorities = Vec::new();
    for name in names(folder, |name| name.strip_suffix(".crt").map(str::to_owned))? {
        let Ok(chain) = chain(&folder.join(format!("{name}.crt"))) else { continue };
        let Some(first) = chain.into_iter().next() else { continue };
        let authority = Authority { name, folder: folder.to_owned(), der: first.der };
        if authority.certificate().is_ok_and(|certificate| certificate.is_ca()) {
            authorities.push(authority);
        }
    }
    Ok(authorities)
}

/// The names in a folder that `of` takes, in order.
pub(super) fn names(
    folder: &Path,
    of: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>, Fault> {
    let unread = |error| Fault::unread(folder, &error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unread)? {
        let entry = entry.map_err(unread)?.file_name();
        names.extend(entry.to_str().filter(|name| !name.starts_with('.')).and_then(&of));
    }
    names.sort();
    Ok(names)
}

/// The certificates of a file, in their order.
pub(super) fn chain(path: &Path) -> Result<Vec<Section>, Fault> {
    let (sections, faults) = sections::read(path)?;
    if let Some(fault) = faults.into_iter().next() {
        return Err(fault);
    }
    let is_certificate = |section: &Section| section.kind == Kind::Certificate;
    let chain: Vec<Section> = sections.into_iter().filter(is_certificate).collect();
    if chain.is_empty() {
        let hint = "`ringfence cert inspect` says what it holds";
        return Err(Fault::new(format!("`{}` holds no certificate", path.display()), hint));
    }
    Ok(chain)
}

/// The private key in a file.
pub(super) fn key(path: &Path) -> Result<KeyPair, Fault> {
    let (sections, _) = sections::read(path)?;
    let keys = sections.into_iter().filter(|section| matches!(section.kind, Kind::PrivateKey(_)));
    let key = keys.map(|section| KeyPair::try_from(section.der)).next();
    key.and_then(Result::ok).ok_or_else(|| {
        let hint = "`ringfence cert inspect` says what it holds; encrypted keys are not read";
        Fault::new(format!("`{}` holds no private key that can be used", path.display()), hint)
    })
}

/// Parses a certificate of a file.
pub(super) fn parse<'a>(path: &Path, der: &'a [u8]) -> Result<X509Certificate<'a>, Fault> {
    let parsed = X509Certificate::from_der(der).map(|(_, parsed)| parsed);
    parsed.map_err(|_| {
        let what = format!("the certificate in `{}` does not parse", path.display());
        Fault::new(what, "have it made anew")
    })
}

/// Whether a key is the one of a certificate.
pub(super) fn belong(certificate: &X509Certificate<'_>, key: &KeyPair) -> bool {
    certificate.public_key().subject_public_key.data.as_ref() == key.der_bytes()
}

impl Authority {
    pub(super) fn path(&self, ending: &str) -> PathBuf {
        self.folder.join(format!("{}.{ending}", self.name))
    }

    pub(super) fn has_key(&self) -> bool {
        self.path("key").exists()
    }

    /// Whether both are one authority: whoever trusts one takes the other's lists.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let (Ok(own), Ok(others)) = (self.certificate(), other.certificate()) else { return false };
        own.subject().as_raw() == others.subject().as_raw()
            && own.public_key().raw == others.public_key().raw
    }

    pub(super) fn certificate(&self) -> Result<X509Certificate<'_>, Fault> {
        parse(&self.path("crt"), &self.der)
    }

    /// Whether it has signed a certificate.
    pub(super) fn signed(&self, certificate: &X509Certificate<'_>) -> bool {
        self.certificate().is_ok_and(|own| {
            own.subject().as_raw() == certificate.issuer().as_raw()
                && certificate.verify_signature(Some(own.public_key())).is_ok()
        })
    }

    /// What signs in its name.
    pub(super) fn issuer(&self, now_seconds: i64) -> Result<Issuer<'static, KeyPair>, Fault> {
        let path = self.path("key");
        let key = key(&path).map_err(|fault| {
            let hint = "put the authority's key there to sign, and take it away afterwards";
            Fault::new(fault.what, hint)
        })?;
        let own = self.certificate()?;
        if !belong(&own, &key) {
            let certificate = self.path("crt");
            let what =
                format!("`{}` is not the key of `{}`", path.display(), certificate.display());
            return Err(Fault::new(what, "the two belong together"));
        }
        let cannot = |why: &str| {
            let what = format!("the authority `{}` {why}", self.name);
            Fault::new(what, "a new authority is needed, and certificates that it signs")
        };
        if now_seconds > own.validity().not_after.timestamp() {
            return Err(cannot("has expired"));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(own.subject())
            .ok_or_else(|| cannot("has a name that ringfence cannot write"))?;
        params.key_usages = key_usages(&own).ok_or_else(|| cannot("does not parse"))?;
        params.key_identifier_method = KeyIdMethod::PreSpecified(self.key_identifier()?);
        Ok(Issuer::new(params, key))
    }

    /// What its lists name it by.
    pub(super) fn key_identifier(&self) -> Result<Vec<u8>, Fault> {
        let own = self.certificate()?;
        let said = own.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0.to_vec()),
            _ => None,
        });
        Ok(said.unwrap_or_else(|| key_identifier(own.public_key().raw)))
    }

    /// When it ends.
    pub(super) fn not_after_seconds(&self) -> Result<i64, Fault> {
        Ok(self.certificate()?.validity().not_after.timestamp())
    }
}

/// What an authority may do; nothing said is everything.
fn key_usages(own: &X509Certificate<'_>) -> Option<Vec<KeyUsagePurpose>> {
    let Some(usage) = own.key_usage().ok()?.map(|usage| usage.value) else { return Some(vec![]) };
    let named = [
        (usage.key_cert_sign(), KeyUsagePurpose::KeyCertSign),
        (usage.crl_sign(), KeyUsagePurpose::CrlSign),
        (true, KeyUsagePurpose::DigitalSignature),
    ];
    Some(named.into_iter().filter(|(may, _)| *may).map(|(_, usage)| usage).collect())
}

/// As rcgen makes it.
pub(super) fn key_identifier(public_key: &[u8]) -> Vec<u8> {
    let hash = digest::digest(&digest::SHA256, public_key);
    hash.as_ref().iter().take(KEY_IDENTIFIER_BYTES).copied().collect()
}

/// The same name again, each text in its own encoding; `None` when it cannot be written. Whoever uses it
/// compares what came of it: of two values of one kind only one is written.
pub(super) fn distinguished_name(name: &X509Name<'_>) -> Option<DistinguishedName> {
    let mut written = DistinguishedName::new();
    for attribute in name.iter_attributes() {
        let kind: Vec<u64> = attribute.attr_type().iter()?.collect();
        let data = attribute.attr_value().data;
        let text = || std::str::from_utf8(data).ok();
        let value = match attribute.attr_value().header.tag() {
            Tag::Utf8String => DnValue::Utf8String(text()?.to_owned()),
            Tag::PrintableString => {
                DnValue::PrintableString(PrintableString::try_from(text()?).ok()?)
            }
            Tag::Ia5String => DnValue::Ia5String(Ia5String::try_from(text()?).ok()?),
            Tag::T61String => DnValue::TeletexString(TeletexString::try_from(text()?).ok()?),
            Tag::BmpString => DnValue::BmpString(BmpString::from_utf16be(data.to_vec()).ok()?),
            Tag::UniversalString => {
                DnValue::UniversalString(UniversalString::from_utf32be(data.to_vec()).ok()?)
            }
            _ => return None,
        };
        written.push(DnType::from_oid(&kind), value);
    }
    Some(written)
}

/// 126 random bits: nobody can guess the next one, and no two are alike.
pub(super) fn serial_number() -> Option<SerialNumber> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    // Positive, and always of the same length.
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    Some(SerialNumber::from_slice(&bytes))
}
