//! What a leaf certificate says: subject, alternative names, serial, validity, hashes.

use std::net::IpAddr;

use aws_lc_rs::digest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// The most values of one kind that are kept; a certificate with more is refused.
const VALUES_MAX: usize = 100;

/// The facts of one certificate. Texts are as they stand in it, not normalised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Every CN of the subject.
    pub common_names: Vec<String>,
    /// Every O of the subject.
    pub organizations: Vec<String>,
    /// Every OU of the subject.
    pub organizational_units: Vec<String>,
    /// DNS names among the subject alternative names.
    pub dns: Vec<String>,
    /// URIs among the subject alternative names.
    pub uris: Vec<String>,
    /// IP addresses among the subject alternative names.
    pub ips: Vec<IpAddr>,
    /// The subject, for people.
    pub subject: String,
    /// The issuer, for people.
    pub issuer: String,
    /// The serial number in lower-case hex.
    pub serial: String,
    /// Not valid before, in seconds since 1970.
    pub not_before_seconds: i64,
    /// Not valid after, in seconds since 1970.
    pub not_after_seconds: i64,
    /// SHA-256 of the certificate, lower-case hex.
    pub fingerprint_sha256: String,
    /// SHA-256 of the SubjectPublicKeyInfo, lower-case hex.
    pub spki_sha256: String,
}

/// Why a certificate cannot be an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not an X.509 certificate.
    #[error("the certificate does not parse")]
    Unparsable,
    /// A name whose encoding is not text.
    #[error("a name in the certificate is not text")]
    NotText,
    /// More names than are read.
    #[error("the certificate has more than {VALUES_MAX} names of one kind")]
    TooManyNames,
}

impl CertificateFacts {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// When it does not parse, or says something that cannot be read without doubt.
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| CertificateError::Unparsable)?;
        if !rest.is_empty() {
            return Err(CertificateError::Unparsable);
        }
        let subject = certificate.subject();
        let mut facts = Self {
            common_names: texts(subject.iter_common_name())?,
            organizations: texts(subject.iter_organization())?,
            organizational_units: texts(subject.iter_organizational_unit())?,
            subject: name_for_people(subject),
            issuer: name_for_people(certificate.issuer()),
            serial: hex(certificate.raw_serial()),
            not_before_seconds: certificate.validity().not_before.timestamp(),
            not_after_seconds: certificate.validity().not_after.timestamp(),
            fingerprint_sha256: sha256_hex(der),
            spki_sha256: sha256_hex(certificate.public_key().raw),
            ..Self::default()
        };
        facts.read_alternative_names(&certificate)?;
        Ok(facts)
    }

    fn read_alternative_names(
        &mut self,
        certificate: &X509Certificate<'_>,
    ) -> Result<(), CertificateError> {
        let extension =
            certificate.subject_alternative_name().map_err(|_| CertificateError::Unparsable)?;
        let Some(extension) = extension else {
            return Ok(());
        };
        if extension.value.general_names.len() > VALUES_MAX {
            return Err(CertificateError::TooManyNames);
        }
        for name in &extension.value.general_names {
            match name {
                GeneralName::DNSName(dns) => self.dns.push((*dns).to_owned()),
                GeneralName::URI(uri) => self.uris.push((*uri).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    let ip = ip_address(bytes).ok_or(CertificateError::Unparsable)?;
                    self.ips.push(ip);
                }
                // Names that no identity is matched by.
                _ => {}
            }
        }
        Ok(())
    }
}

fn texts<'a>(
    values: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>,
) -> Result<Vec<String>, CertificateError> {
    let mut texts = Vec::new();
    for value in values {
        if texts.len() >= VALUES_MAX {
            return Err(CertificateError::TooManyNames);
        }
        texts.push(value.as_str().map_err(|_| CertificateError::NotText)?.to_owned());
    }
    Ok(texts)
}

/// The most characters of a name that are written to logs and records.
const NAME_CHARS_MAX: usize = 128;

fn name_for_people(name: &X509Name<'_>) -> String {
    let text = name.to_string();
    text.chars().take(NAME_CHARS_MAX).collect()
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'?'));
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
