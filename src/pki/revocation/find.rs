//! What is to be revoked, and on whose list it belongs. Nothing is guessed: a revocation cannot be taken back.

use std::path::{Path, PathBuf};

use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::super::authority::{self, Authority};
use super::super::fault::Fault;
use super::super::renew::plain;
use super::{NUMBER_BYTES_MAX, Which};
use crate::chain::{from_hex, to_hex};

/// The only one, or of several names of one authority the only one with a key.
pub(super) fn the_one(what: &str, mut candidates: Vec<Authority>) -> Result<Authority, Fault> {
    let is_one =
        candidates.first().is_some_and(|first| candidates.iter().all(|other| other.is_same(first)));
    if is_one && candidates.iter().any(Authority::has_key) {
        candidates.retain(Authority::has_key);
    }
    match (candidates.pop(), candidates.is_empty()) {
        (Some(only), true) => Ok(only),
        (last, _) => {
            let names = listed(candidates.iter().chain(&last));
            Err(Fault::new(
                format!("{what} is not clear"),
                format!("--authority NAME, one of: {names}"),
            ))
        }
    }
}

fn listed<'a>(authorities: impl Iterator<Item = &'a Authority>) -> String {
    authorities.map(|one| format!("`{}`", one.name)).collect::<Vec<_>>().join(", ")
}

pub(super) fn named(folder: &Path, name: &str) -> Result<Authority, Fault> {
    let name = plain(name)?;
    let all = authority::all(folder)?;
    let names: Vec<String> = all.iter().map(|one| format!("`{}`", one.name)).collect();
    all.into_iter().find(|one| one.name == name).ok_or_else(|| {
        let what = format!("`{}` has no authority `{name}`", folder.display());
        Fault::new(what, format!("authorities in it: {}", names.join(", ")))
    })
}

/// Whose list, the serial number as it stands in the certificate, and whether a certificate of the folder has it.
pub(super) fn find(folder: &Path, which: &Which<'_>) -> Result<(Authority, Vec<u8>, bool), Fault> {
    match which {
        Which::Name(name, said) => {
            let (authority, serial) = find_name(folder, &plain(name)?, *said)?;
            Ok((authority, serial, true))
        }
        Which::Serial { text, authority, may_be_unknown } => {
            find_serial(folder, text, *authority, *may_be_unknown)
        }
    }
}

fn find_name(folder: &Path, name: &str, said: Option<&str>) -> Result<(Authority, Vec<u8>), Fault> {
    let path = folder.join(format!("{name}.crt"));
    let leaf = authority::chain(&path)?.into_iter().next();
    let der = leaf.map(|section| section.der).unwrap_or_default();
    let certificate = authority::parse(&path, &der)?;
    if certificate.is_ca() {
        return Err(own_certificate(&path));
    }
    let all = authority::all(folder)?;
    let signers: Vec<Authority> =
        all.iter().filter(|one| one.signed(&certificate)).cloned().collect();
    let said = said.map(|said| named(folder, said)).transpose()?;
    let file = path.display();
    let hint = || format!("authorities in the folder: {}", listed(all.iter()));
    if signers.is_empty() {
        let what = format!("no authority in `{}` has signed `{file}`", folder.display());
        return Err(Fault::new(what, hint()));
    }
    let authority = match said {
        Some(said) if said.signed(&certificate) => said,
        Some(said) => {
            let what = format!("the authority `{}` has not signed `{file}`", said.name);
            let hint = format!("it was: {}", listed(signers.iter()));
            return Err(Fault::new(what, hint));
        }
        None => the_one(&format!("whose list `{file}` belongs on"), signers)?,
    };
    Ok((authority, writable(certificate.raw_serial(), &path)?))
}

fn find_serial(
    folder: &Path,
    text: &str,
    said: Option<&str>,
    may_be_unknown: bool,
) -> Result<(Authority, Vec<u8>, bool), Fault> {
    let serial = read_serial(text)?;
    let all = authority::all(folder)?;
    let said = said.map(|said| named(folder, said)).transpose()?;
    let found = found(folder, &all, &serial)?;
    if let Some(own) = found.iter().find(|found| found.is_ca) {
        return Err(own_certificate(&own.path));
    }
    let signer = |one: &&Authority| found.iter().any(|found| found.signers.contains(&one.name));
    let signers: Vec<Authority> = all.iter().filter(signer).cloned().collect();
    let is_known = !signers.is_empty()
        && said.as_ref().is_none_or(|said| signers.iter().any(|one| one.is_same(said)));
    if !is_known && !may_be_unknown {
        return Err(match (&said, signers.is_empty()) {
            (Some(said), false) => Fault::new(
                format!(
                    "the serial number `{text}` is of {}, not of `{}`",
                    listed(signers.iter()),
                    said.name
                ),
                "name that authority, or say --unknown when this one has given the number as well",
            ),
            _ => Fault::new(
                format!("no certificate in `{}` has the serial number `{text}`", folder.display()),
                "a revocation cannot be taken back: when the number is right, say --unknown",
            ),
        });
    }
    let of = format!("which authority has given the serial number `{text}`");
    let authority = match said {
        Some(said) => said,
        None => the_one(&of, if is_known { signers } else { all })?,
    };
    for one in found.iter().filter(|one| one.signers.contains(&authority.name)) {
        writable(&one.serial, &one.path)?;
    }
    Ok((authority, positive(serial), is_known))
}

fn own_certificate(path: &Path) -> Fault {
    let what = format!("`{}` is an authority's own certificate", path.display());
    Fault::new(what, "no list ends an authority: take it out of `client.ca`")
}

/// A certificate's serial number, when a list can name it: of any other form another number would be written.
fn writable(serial: &[u8], path: &Path) -> Result<Vec<u8>, Fault> {
    if is_writable(serial) {
        return Ok(serial.to_vec());
    }
    let what = format!(
        "the certificate in `{}` has the serial number `{}`, which is negative or has zeros in front: \
         ringfence cannot write it into a list",
        path.display(),
        to_hex(serial)
    );
    Err(Fault::new(what, "revoke it with the tool that has made it, or end the authority"))
}

/// Whether an integer is in the one form that DER has for a number, and not negative.
pub(super) fn is_writable(serial: &[u8]) -> bool {
    match serial {
        [0, second, ..] => *second >= 0x80,
        [first, ..] => *first < 0x80,
        [] => false,
    }
}

fn positive(significant: Vec<u8>) -> Vec<u8> {
    if is_writable(&significant) {
        return significant;
    }
    [0].into_iter().chain(significant).collect()
}

/// Hex as it is shown in many places: with colons, in capitals, with zeros in front.
fn read_serial(text: &str) -> Result<Vec<u8>, Fault> {
    let plain = text.strip_prefix("0x").unwrap_or(text).replace(':', "").to_ascii_lowercase();
    let even = if plain.len() % 2 == 1 { format!("0{plain}") } else { plain };
    let bytes = from_hex(&even).map(|bytes| significant(&bytes).to_vec());
    bytes.filter(|bytes| (1..=NUMBER_BYTES_MAX).contains(&bytes.len())).ok_or_else(|| {
        let what = format!("`{}` is no serial number", text.chars().take(80).collect::<String>());
        Fault::new(
            what,
            "1 to 40 hex digits, as `ringfence cert inspect` and audit records have them",
        )
    })
}

pub(super) fn significant(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

/// A certificate in the folder.
struct Found {
    path: PathBuf,
    serial: Vec<u8>,
    is_ca: bool,
    signers: Vec<String>,
}

/// The certificates in the folder, old ones among them, that have a serial number and are signed by one of its
/// authorities.
fn found(folder: &Path, all: &[Authority], serial: &[u8]) -> Result<Vec<Found>, Fault> {
    let is_certificate =
        |name: &str| (name.ends_with(".crt") || name.contains(".crt.")).then(|| name.to_owned());
    let mut found = Vec::new();
    for name in authority::names(folder, is_certificate)? {
        let path = folder.join(name);
        let Ok(chain) = authority::chain(&path) else { continue };
        for section in chain {
            let Ok((_, certificate)) = X509Certificate::from_der(&section.der) else { continue };
            if significant(certificate.raw_serial()) != serial {
                continue;
            }
            let signers = all.iter().filter(|authority| authority.signed(&certificate));
            let signers: Vec<String> = signers.map(|one| one.name.clone()).collect();
            if !signers.is_empty() {
                let (path, serial) = (path.clone(), certificate.raw_serial().to_vec());
                found.push(Found { path, serial, is_ca: certificate.is_ca(), signers });
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The attack: -255 was written as 65281, so the revoked one was let in again.
    #[test]
    fn a_serial_number_that_would_become_another_is_refused() {
        let check = |serial: &[u8], expected| {
            assert_eq!(writable(serial, Path::new("a.crt")).is_ok(), expected, "{serial:?}");
        };
        check(&[0x7f, 1], true);
        check(&[0, 0xff, 1], true);
        check(&[0xff, 1], false);
        check(&[0, 0x7f], false);
        check(&[0, 0, 0xff], false);
        check(&[], false);
        assert_eq!(positive(vec![0xff, 1]), [0, 0xff, 1]);
        assert_eq!(positive(vec![0x7f]), [0x7f]);
    }

    #[test]
    fn a_serial_number_is_read_as_it_is_shown_anywhere() {
        let check = |text: &str, expected: Option<&[u8]>| {
            assert_eq!(read_serial(text).ok().as_deref(), expected, "{text}");
        };
        check("0a", Some(&[10]));
        check("A", Some(&[10]));
        check("00:FF:01", Some(&[255, 1]));
        check("0xff01", Some(&[255, 1]));
        check(&"f".repeat(40), Some(&[255; 20]));
        for text in ["", "00", "xyz", "-1", "ä", &"f".repeat(41)] {
            check(text, None);
        }
    }
}
