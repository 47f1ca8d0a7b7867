//! Takes a PEM file apart: every section with its line, whatever it holds. Nothing is passed over: what cannot
//! be read is a fault with its line.

use std::path::Path;

use rustls::pki_types::pem::{self, PemObject as _, SectionKind};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

use super::fault::{FILE_BYTES_MAX, Fault};
use crate::regular_file;

const BEGIN: &[u8] = b"-----BEGIN ";
/// The most characters of a label, or of a line that is none, that are shown.
const SHOWN_CHARS_MAX: usize = 80;

/// One section of a file.
#[derive(Debug)]
pub(super) struct Section {
    /// Its first line, from 1.
    pub(super) line: usize,
    pub(super) kind: Kind,
    pub(super) der: Vec<u8>,
    /// As it stands in the file, with what is behind it.
    pub(super) text: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Certificate,
    RevocationList,
    /// With the form it is in.
    PrivateKey(&'static str),
    PublicKey,
    /// Whatever else; its label.
    Other(String),
}

/// Every section of a file, in its order, and what is wrong with those that cannot be read. A revocation list in DER
/// is one section: so most authorities publish it, and `serve` reads it.
pub(super) fn read(path: &Path) -> Result<(Vec<Section>, Vec<Fault>), Fault> {
    let bytes = bytes(path)?;
    let parts = parts(&bytes);
    if parts.is_empty() && CertificateRevocationList::from_der(&bytes).is_ok() {
        let (der, text) = (bytes.clone(), bytes);
        return Ok((vec![Section { line: 1, kind: Kind::RevocationList, der, text }], Vec::new()));
    }
    if parts.is_empty() {
        return Err(no_pem(path, &bytes));
    }
    let (mut sections, mut faults) = (Vec::new(), Vec::new());
    for (line, text) in parts {
        match section(line, text) {
            Ok(section) => sections.push(section),
            Err(why) => {
                let what = format!("`{}`, line {line}: {why}", path.display());
                faults.push(Fault::new(what, "copy the file anew from where it was made"));
            }
        }
    }
    Ok((sections, faults))
}

/// The file as it is.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, Fault> {
    regular_file::read(path, FILE_BYTES_MAX).map_err(|error| Fault::unread(path, &error))
}

/// Each section begins where the last one ends: one that was cut must not swallow the next.
fn parts(bytes: &[u8]) -> Vec<(usize, &[u8])> {
    let mut starts = Vec::new();
    let (mut at, mut line) = (0, 1);
    for text in bytes.split_inclusive(|byte| *byte == b'\n') {
        if text.starts_with(BEGIN) {
            starts.push((line, at));
        }
        at += text.len();
        line += 1;
    }
    let ends = starts.iter().skip(1).map(|(_, at)| *at).chain([bytes.len()]);
    let part =
        |((line, start), end): (&(usize, usize), usize)| Some((*line, bytes.get(*start..end)?));
    starts.iter().zip(ends).filter_map(part).collect()
}

fn section(line: usize, text: &[u8]) -> Result<Section, String> {
    let found = <(SectionKind, Vec<u8>)>::from_pem_slice(text);
    let (kind, der) = match found {
        Ok((SectionKind::Certificate, der)) => (Kind::Certificate, der),
        Ok((SectionKind::Crl, der)) => (Kind::RevocationList, der),
        Ok((SectionKind::PrivateKey, der)) => (Kind::PrivateKey("PKCS#8"), der),
        Ok((SectionKind::EcPrivateKey, der)) => (Kind::PrivateKey("SEC 1"), der),
        Ok((SectionKind::RsaPrivateKey, der)) => (Kind::PrivateKey("PKCS#1"), der),
        Ok((SectionKind::PublicKey, der)) => (Kind::PublicKey, der),
        Ok((_, der)) => (Kind::Other(label(text)), der),
        Err(pem::Error::NoItemsFound) => (Kind::Other(label(text)), Vec::new()),
        Err(error) => return Err(in_plain_words(&error)),
    };
    Ok(Section { line, kind, der, text: text.to_vec() })
}

fn label(text: &[u8]) -> String {
    let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let label = first.strip_prefix(BEGIN).unwrap_or(first);
    shown(label).trim().trim_end_matches('-').to_owned()
}

fn shown(bytes: &[u8]) -> String {
    let plain = |character: char| if character.is_control() { '?' } else { character };
    String::from_utf8_lossy(bytes).chars().take(SHOWN_CHARS_MAX).map(plain).collect()
}

fn in_plain_words(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            format!("the line `-----END {}-----` is missing", shown(end_marker))
        }
        pem::Error::IllegalSectionStart { line } => {
            format!("`{}` begins nothing", shown(line).trim())
        }
        pem::Error::Base64Decode(_) => "what stands in it is no base64".to_owned(),
        error => error.to_string(),
    }
}

/// What a file without a section is.
fn no_pem(path: &Path, bytes: &[u8]) -> Fault {
    let file = path.display();
    if bytes.iter().all(u8::is_ascii_whitespace) {
        let hint = "a certificate in PEM begins with -----BEGIN CERTIFICATE-----";
        return Fault::new(format!("`{file}` is empty"), hint);
    }
    let what = format!("`{file}` holds nothing in PEM");
    let hint = if X509Certificate::from_der(bytes).is_ok() {
        "it is a certificate in DER: openssl x509 -inform der -in FILE -out FILE.crt"
    } else if rcgen::KeyPair::try_from(bytes).is_ok() {
        "it is a private key in DER: openssl pkey -inform der -in FILE -out FILE.key"
    } else if bytes.first() == Some(&0x30) && std::str::from_utf8(bytes).is_err() {
        "it looks like DER: openssl asn1parse -inform der -in FILE tells what it is"
    } else {
        "a certificate in PEM begins with -----BEGIN CERTIFICATE-----"
    };
    Fault::new(what, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

    fn check(text: &str, expected_kinds: &[(usize, Kind)], expected_faults: &[&str]) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pem");
        std::fs::write(&path, text).unwrap();
        let (sections, faults) = read(&path).unwrap();
        let kinds: Vec<_> =
            sections.into_iter().map(|section| (section.line, section.kind)).collect();
        assert_eq!(kinds, expected_kinds, "{text}");
        let start = format!("`{}`, ", path.display());
        let faults: Vec<_> =
            faults.iter().map(|fault| fault.what.strip_prefix(&start).unwrap()).collect();
        assert_eq!(faults, expected_faults, "{text}");
    }

    #[test]
    fn every_section_is_told_and_none_is_passed_over() {
        let other = |label: &str| Kind::Other(label.to_owned());
        check(
            &format!("words\n{CERTIFICATE}{CERTIFICATE}"),
            &[(2, Kind::Certificate), (5, Kind::Certificate)],
            &[],
        );
        let renamed = |label: &str| CERTIFICATE.replace("CERTIFICATE", label);
        check(&renamed("X509 CRL"), &[(1, Kind::RevocationList)], &[]);
        check(&renamed("EC PRIVATE KEY"), &[(1, Kind::PrivateKey("SEC 1"))], &[]);
        check(&renamed("PUBLIC KEY"), &[(1, Kind::PublicKey)], &[]);
        check(&renamed("CERTIFICATE REQUEST"), &[(1, other("CERTIFICATE REQUEST"))], &[]);
        check(&renamed("ENCRYPTED PRIVATE KEY"), &[(1, other("ENCRYPTED PRIVATE KEY"))], &[]);
        check(&CERTIFICATE.replace('\n', "\r\n"), &[(1, Kind::Certificate)], &[]);
    }

    /// The mistake: a file that was cut in the middle, with another one behind it.
    #[test]
    fn a_section_that_was_cut_does_not_swallow_the_next() {
        let cut = "-----BEGIN CERTIFICATE-----\nMAA=\n";
        let missing = "line 1: the line `-----END CERTIFICATE-----` is missing";
        check(&format!("{cut}{CERTIFICATE}"), &[(3, Kind::Certificate)], &[missing]);
        check(
            &CERTIFICATE.replace("MAA=", "M?A="),
            &[],
            &["line 1: what stands in it is no base64"],
        );
        check(
            &format!("-----BEGIN CERTIFICATE\n{CERTIFICATE}"),
            &[(2, Kind::Certificate)],
            &["line 1: `-----BEGIN CERTIFICATE` begins nothing"],
        );
    }

    /// The attack: a label that steers the terminal of whoever is shown the fault.
    #[test]
    fn a_label_cannot_steer_a_terminal() {
        let evil = "-----BEGIN \u{1b}[2J-----\nMAA=\n";
        check(evil, &[], &["line 1: the line `-----END ?[2J-----` is missing"]);
    }

    #[test]
    fn a_file_without_pem_is_told_by_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        for (bytes, what, hint) in [
            (b"\n".to_vec(), "is empty", "a certificate in PEM begins"),
            (b"MAA=".to_vec(), "holds nothing in PEM", "a certificate in PEM begins"),
            (
                leaf.der().to_vec(),
                "holds nothing in PEM",
                "it is a certificate in DER: openssl x509",
            ),
            (
                key.serialize_der(),
                "holds nothing in PEM",
                "it is a private key in DER: openssl pkey",
            ),
            (b"\x30\x82\xff".to_vec(), "holds nothing in PEM", "it looks like DER"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let fault = read(&path).unwrap_err();
            assert_eq!(fault.what, format!("`{}` {what}", path.display()));
            assert!(fault.hint.starts_with(hint), "{fault}");
        }
    }
}
