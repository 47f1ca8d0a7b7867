//! What stands in a file of certificates, revocation lists and keys, told for people and programs.
//!
//! It tells and judges dates; it verifies nothing.

use std::net::IpAddr;
use std::path::Path;

use aws_lc_rs::digest;
use serde::Serialize;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521,
    OID_PKCS1_RSAENCRYPTION, OID_SIG_ED448, OID_SIG_ED25519,
};
use x509_parser::prelude::{
    CertificateRevocationList, FromDer as _, SubjectPublicKeyInfo, X509Certificate, X509Name,
};
use x509_parser::public_key::PublicKey;

use super::fault::Fault;
use super::lifetime::{Lifetime, State, rfc3339};
use super::sections::{self, Kind, Section};
use crate::chain::to_hex;

/// One section of a file.
#[derive(Debug, Serialize)]
pub struct Item {
    /// The file, as it was named.
    pub file: String,
    /// The section's first line, from 1.
    pub line: usize,
    /// What it is.
    #[serde(flatten)]
    pub what: What,
}

/// What a section is.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// A certificate.
    Certificate(Box<Certificate>),
    /// A revocation list.
    RevocationList(RevocationList),
    /// A private key. Nothing secret is in here.
    PrivateKey {
        /// `PKCS#8`, `SEC 1` or `PKCS#1`.
        form: &'static str,
        /// Its public half; `None` when it is of a kind that ringfence does not know.
        public: Option<Key>,
    },
    /// A public key.
    PublicKey {
        /// The key.
        public: Key,
    },
    /// Something else.
    Other {
        /// What stands behind BEGIN.
        label: String,
    },
}

/// A certificate.
#[derive(Debug, Serialize)]
pub struct Certificate {
    /// The subject.
    pub subject: String,
    /// The issuer.
    pub issuer: String,
    /// Lower-case hex, as in audit records.
    pub serial: String,
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ip: Vec<IpAddr>,
    /// URIs.
    pub uri: Vec<String>,
    /// E-mail addresses.
    pub email: Vec<String>,
    /// Names of other kinds, which no identity is matched by.
    pub other_names: usize,
    /// The public key.
    pub key: Key,
    /// SHA-256 of the certificate, lower-case hex.
    pub sha256: String,
    /// Key usages, by the names of RFC 5280; `None` is all.
    pub key_usage: Option<Vec<&'static str>>,
    /// Extended key usages likewise, or OIDs; `None` is all.
    pub extended_key_usage: Option<Vec<String>>,
    /// Whether it may sign certificates.
    pub ca: bool,
    /// Dates.
    #[serde(flatten)]
    pub dates: Dates,
}

/// A revocation list.
#[derive(Debug, Serialize)]
pub struct RevocationList {
    /// Who signed it.
    pub issuer: String,
    /// Its number, decimal.
    pub number: Option<String>,
    /// What it revokes.
    pub revoked: Vec<Revoked>,
    /// Dates: those of this update and the next.
    #[serde(flatten)]
    pub dates: Dates,
}

/// One entry of a revocation list.
#[derive(Debug, Serialize)]
pub struct Revoked {
    /// Lower-case hex, as in audit records.
    pub serial: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// Why, by the names of x509; `None` is not said.
    pub reason: Option<String>,
}

/// A public key.
#[derive(Debug, Serialize)]
pub struct Key {
    /// `ECDSA P-256`, `RSA`, ...
    pub algorithm: String,
    /// 0 when it is not known.
    pub size_bits: usize,
    /// SHA-256 of the SubjectPublicKeyInfo, lower-case hex: `spki` of a policy.
    pub spki_sha256: String,
}

/// From when until when, and what that means.
#[derive(Debug, Serialize)]
pub struct Dates {
    /// RFC 3339, UTC.
    pub not_before: String,
    /// RFC 3339, UTC; `None` when there is no end.
    pub not_after: Option<String>,
    /// `None` when there is no end.
    pub seconds_left: Option<i64>,
    /// What that means.
    pub state: State,
    /// The same for programs.
    #[serde(skip)]
    pub lifetime: Lifetime,
}

impl Dates {
    fn new(from_seconds: i64, until_seconds: Option<i64>, now_seconds: i64) -> Self {
        let until = until_seconds.unwrap_or(i64::MAX);
        let lifetime = Lifetime { from_seconds, until_seconds: until };
        Self {
            not_before: rfc3339(from_seconds),
            not_after: until_seconds.map(rfc3339),
            seconds_left: until_seconds.map(|_| lifetime.left_seconds(now_seconds)),
            state: lifetime.state(now_seconds),
            lifetime,
        }
    }

    /// What is left, in words.
    #[must_use]
    pub fn in_words(&self, now_seconds: i64) -> String {
        match self.not_after {
            Some(_) => self.lifetime.in_words(now_seconds),
            None => "without an end".to_owned(),
        }
    }
}

impl What {
    /// Dates, if it has any.
    #[must_use]
    pub const fn dates(&self) -> Option<&Dates> {
        match self {
            Self::Certificate(certificate) => Some(&certificate.dates),
            Self::RevocationList(list) => Some(&list.dates),
            Self::PrivateKey { .. } | Self::PublicKey { .. } | Self::Other { .. } => None,
        }
    }
}

/// Every section of a file that can be read, and what is wrong with the others.
///
/// # Errors
/// When the file cannot be read, or has no section.
pub fn describe(path: &Path, now_seconds: i64) -> Result<(Vec<Item>, Vec<Fault>), Fault> {
    let (sections, mut faults) = sections::read(path)?;
    let mut items = Vec::new();
    for section in sections {
        let line = section.line;
        match what(section, now_seconds) {
            Ok(what) => items.push(Item { file: path.display().to_string(), line, what }),
            Err(why) => {
                let what = format!("`{}`, line {line}: {why}", path.display());
                faults.push(Fault::new(what, "have it made anew by whoever made it"));
            }
        }
    }
    Ok((items, faults))
}

fn what(section: Section, now_seconds: i64) -> Result<What, &'static str> {
    Ok(match section.kind {
        Kind::Certificate => What::Certificate(Box::new(certificate(&section.der, now_seconds)?)),
        Kind::RevocationList => What::RevocationList(revocation_list(&section.der, now_seconds)?),
        Kind::PrivateKey(form) => What::PrivateKey { form, public: public_half(&section.der) },
        Kind::PublicKey => {
            let (_, spki) = SubjectPublicKeyInfo::from_der(&section.der)
                .map_err(|_| "the public key does not parse")?;
            What::PublicKey { public: key(&spki) }
        }
        Kind::Other(label) => What::Other { label },
    })
}

fn public_half(private: &[u8]) -> Option<Key> {
    let pair = rcgen::KeyPair::try_from(private).ok()?;
    let public = rcgen::PublicKeyData::subject_public_key_info(&pair);
    let (_, spki) = SubjectPublicKeyInfo::from_der(&public).ok()?;
    Some(key(&spki))
}

fn certificate(der: &[u8], now_seconds: i64) -> Result<Certificate, &'static str> {
    let (rest, parsed) =
        X509Certificate::from_der(der).map_err(|_| "the certificate does not parse")?;
    if !rest.is_empty() {
        return Err("something stands behind the certificate");
    }
    let validity = parsed.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let mut certificate = Certificate {
        subject: name(parsed.subject()),
        issuer: name(parsed.issuer()),
        serial: to_hex(parsed.raw_serial()),
        dns: Vec::new(),
        ip: Vec::new(),
        uri: Vec::new(),
        email: Vec::new(),
        other_names: 0,
        key: key(parsed.public_key()),
        sha256: sha256(der),
        key_usage: key_usage(&parsed)?,
        extended_key_usage: extended_key_usage(&parsed)?,
        ca: parsed.is_ca(),
        dates: Dates::new(from, Some(until), now_seconds),
    };
    let names =
        parsed.subject_alternative_name().map_err(|_| "its alternative names do not parse")?;
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::DNSName(dns) => certificate.dns.push((*dns).to_owned()),
            GeneralName::URI(uri) => certificate.uri.push((*uri).to_owned()),
            GeneralName::RFC822Name(email) => certificate.email.push((*email).to_owned()),
            GeneralName::IPAddress(bytes) => match ip(bytes) {
                Some(ip) => certificate.ip.push(ip),
                None => certificate.other_names += 1,
            },
            _ => certificate.other_names += 1,
        }
    }
    Ok(certificate)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// An empty one reads like nothing at all.
pub(super) fn name(name: &X509Name<'_>) -> String {
    let text = name.to_string();
    if text.is_empty() { "(empty)".to_owned() } else { text }
}

fn key_usage(parsed: &X509Certificate<'_>) -> Result<Option<Vec<&'static str>>, &'static str> {
    let usage = parsed.key_usage().map_err(|_| "its key usage does not parse")?;
    let Some(usage) = usage.map(|usage| usage.value) else { return Ok(None) };
    let names = [
        ("digitalSignature", usage.digital_signature()),
        ("nonRepudiation", usage.non_repudiation()),
        ("keyEncipherment", usage.key_encipherment()),
        ("dataEncipherment", usage.data_encipherment()),
        ("keyAgreement", usage.key_agreement()),
        ("keyCertSign", usage.key_cert_sign()),
        ("cRLSign", usage.crl_sign()),
        ("encipherOnly", usage.encipher_only()),
        ("decipherOnly", usage.decipher_only()),
    ];
    Ok(Some(names.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect()))
}

fn extended_key_usage(parsed: &X509Certificate<'_>) -> Result<Option<Vec<String>>, &'static str> {
    let usage = parsed.extended_key_usage().map_err(|_| "its extended key usage does not parse")?;
    let Some(usage) = usage.map(|usage| usage.value) else { return Ok(None) };
    let names = [
        ("serverAuth", usage.server_auth),
        ("clientAuth", usage.client_auth),
        ("anyExtendedKeyUsage", usage.any),
        ("codeSigning", usage.code_signing),
        ("emailProtection", usage.email_protection),
        ("timeStamping", usage.time_stamping),
        ("OCSPSigning", usage.ocsp_signing),
    ];
    let known = names.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name.to_owned());
    Ok(Some(known.chain(usage.other.iter().map(ToString::to_string)).collect()))
}

fn key(spki: &SubjectPublicKeyInfo<'_>) -> Key {
    let algorithm = &spki.algorithm.algorithm;
    let curve = || spki.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    let (algorithm, size_bits) = if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        match curve() {
            Some(curve) if curve == OID_EC_P256 => ("ECDSA P-256".to_owned(), 256),
            Some(curve) if curve == OID_NIST_EC_P384 => ("ECDSA P-384".to_owned(), 384),
            Some(curve) if curve == OID_NIST_EC_P521 => ("ECDSA P-521".to_owned(), 521),
            Some(curve) => (format!("ECDSA on the curve {curve}"), 0),
            None => ("ECDSA".to_owned(), 0),
        }
    } else if *algorithm == OID_PKCS1_RSAENCRYPTION {
        ("RSA".to_owned(), rsa_bits(spki))
    } else if *algorithm == OID_SIG_ED25519 {
        ("Ed25519".to_owned(), 256)
    } else if *algorithm == OID_SIG_ED448 {
        ("Ed448".to_owned(), 456)
    } else {
        (algorithm.to_string(), 0)
    };
    Key { algorithm, size_bits, spki_sha256: sha256(spki.raw) }
}

fn rsa_bits(spki: &SubjectPublicKeyInfo<'_>) -> usize {
    let Ok(PublicKey::RSA(key)) = spki.parsed() else { return 0 };
    let zeros = key.modulus.iter().take_while(|byte| **byte == 0).count();
    let first = key.modulus.get(zeros).map_or(0, |byte| byte.leading_zeros());
    8 * (key.modulus.len() - zeros) - usize::try_from(first).unwrap_or_default()
}

fn revocation_list(der: &[u8], now_seconds: i64) -> Result<RevocationList, &'static str> {
    let (rest, list) = CertificateRevocationList::from_der(der)
        .map_err(|_| "the revocation list does not parse")?;
    if !rest.is_empty() {
        return Err("something stands behind the revocation list");
    }
    let revoked = list.iter_revoked_certificates().map(|revoked| Revoked {
        serial: to_hex(revoked.raw_serial()),
        since: rfc3339(revoked.revocation_date.timestamp()),
        reason: revoked.reason_code().map(|(_, reason)| reason.to_string()),
    });
    let until = list.next_update().map(|time| time.timestamp());
    Ok(RevocationList {
        issuer: name(list.issuer()),
        number: list.crl_number().map(ToString::to_string),
        revoked: revoked.collect(),
        dates: Dates::new(list.last_update().timestamp(), until, now_seconds),
    })
}

fn sha256(bytes: &[u8]) -> String {
    to_hex(digest::digest(&digest::SHA256, bytes).as_ref())
}
