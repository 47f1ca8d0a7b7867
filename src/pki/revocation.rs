//! Revocation lists of the authorities of a folder: NAME.crl beside NAME.crt. A list only ever grows, its number
//! goes up, and its dates never go back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevocationReason,
    RevokedCertParams, SerialNumber,
};
use time::OffsetDateTime;
use x509_parser::oid_registry::{
    OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_CRL_NUMBER, OID_X509_EXT_INVALIDITY_DATE,
    OID_X509_EXT_REASON_CODE,
};
use x509_parser::prelude::{
    CertificateRevocationList, FromDer as _, RevokedCertificate, X509Certificate,
};

use super::authority::{self, Authority};
use super::fault::Fault;
use super::renew::{authority_of, plain};
use super::replace::{self, Prepared};
use super::sections::{self, Kind};
use crate::chain::{from_hex, to_hex};

const DAY_SECONDS: i64 = 86_400;
/// The most bytes of a serial number, and of a list's own (RFC 5280).
const NUMBER_BYTES_MAX: usize = 20;

/// What to revoke.
#[derive(Debug)]
pub enum Which<'a> {
    /// The certificate that is in NAME.crt now.
    Name(&'a str),
    /// A serial number, of the authority of that name if it is said.
    Serial(&'a str, Option<&'a str>),
}

/// A list that was signed.
#[derive(Debug)]
pub struct Issued {
    /// The file.
    pub file: PathBuf,
    /// Whose list.
    pub authority: String,
    /// Its number.
    pub number: u128,
    /// How many it revokes.
    pub revoked: usize,
    /// Until when it holds, in seconds since 1970.
    pub next_update_seconds: i64,
}

/// What came of a revocation.
#[derive(Debug)]
pub struct Revocation {
    /// The serial number, lower-case hex.
    pub serial: String,
    /// Whether a certificate in the folder has it.
    pub is_known: bool,
    /// The list; `None` when the one that is there revokes it already.
    pub issued: Option<Issued>,
}

/// Puts a certificate on the list of its authority.
///
/// # Errors
/// When it is not clear what to revoke, the authority's key is not there, the list that is there cannot be carried
/// on, or it cannot be written.
pub fn revoke(
    folder: &Path,
    which: &Which<'_>,
    reason: Option<RevocationReason>,
    days: u32,
    now: Duration,
) -> Result<Revocation, Fault> {
    let _lock = replace::lock(folder)?;
    let (authority, serial, is_known) = find(folder, which)?;
    let hex = to_hex(&serial);
    let now_seconds = seconds(now);
    let issuer = authority.issuer(now_seconds)?;
    let mut list = List::read(&authority)?;
    if list.revoked.iter().any(|revoked| significant(revoked.serial_number.as_ref()) == serial) {
        return Ok(Revocation { serial: hex, is_known, issued: None });
    }
    list.revoked.push(RevokedCertParams {
        serial_number: SerialNumber::from_slice(&serial),
        revocation_time: time(now_seconds)?,
        reason_code: reason,
        invalidity_date: None,
    });
    let issued = list.issue(&authority, &issuer, days, now_seconds)?;
    Ok(Revocation { serial: hex, is_known, issued: Some(issued) })
}

/// Signs the lists of a folder anew, those of all authorities whose keys are there unless one is named. One that has
/// none gets an empty one.
///
/// # Errors
/// What stands in the way of each list.
pub fn reissue(
    folder: &Path,
    authority: Option<&str>,
    days: u32,
    now: Duration,
) -> (Vec<Issued>, Vec<Fault>) {
    let (mut issued, mut faults) = (Vec::new(), Vec::new());
    let chosen = replace::lock(folder).and_then(|lock| Ok((lock, chosen(folder, authority)?)));
    let (_lock, chosen) = match chosen {
        Ok(chosen) => chosen,
        Err(fault) => return (issued, vec![fault]),
    };
    let now_seconds = seconds(now);
    for authority in chosen {
        let signed = authority.issuer(now_seconds).and_then(|issuer| {
            List::read(&authority)?.issue(&authority, &issuer, days, now_seconds)
        });
        match signed {
            Ok(list) => issued.push(list),
            Err(fault) => faults.push(fault),
        }
    }
    (issued, faults)
}

fn chosen(folder: &Path, name: Option<&str>) -> Result<Vec<Authority>, Fault> {
    if let Some(name) = name {
        return Ok(vec![named(folder, name)?]);
    }
    let with_key: Vec<Authority> =
        authority::all(folder)?.into_iter().filter(|one| one.path("key").exists()).collect();
    if with_key.is_empty() {
        let what = format!("`{}` has no authority with a key", folder.display());
        return Err(Fault::new(
            what,
            "the authority's NAME.crt and NAME.key belong into the folder",
        ));
    }
    Ok(with_key)
}

fn named(folder: &Path, name: &str) -> Result<Authority, Fault> {
    let name = plain(name)?;
    let all = authority::all(folder)?;
    let names: Vec<String> = all.iter().map(|one| format!("`{}`", one.name)).collect();
    all.into_iter().find(|one| one.name == name).ok_or_else(|| {
        let what = format!("`{}` has no authority `{name}`", folder.display());
        Fault::new(what, format!("authorities in it: {}", names.join(", ")))
    })
}

/// Whose list, the serial number, and whether a certificate of the folder has it.
fn find(folder: &Path, which: &Which<'_>) -> Result<(Authority, Vec<u8>, bool), Fault> {
    let (text, authority) = match which {
        Which::Name(name) => {
            let path = folder.join(format!("{}.crt", plain(name)?));
            let leaf = authority::chain(&path)?.into_iter().next();
            let der = leaf.map(|section| section.der).unwrap_or_default();
            let certificate = authority::parse(&path, &der)?;
            if certificate.is_ca() {
                let what = format!("`{}` is an authority's own certificate", path.display());
                let hint = "no list ends an authority: take it out of `client.ca`";
                return Err(Fault::new(what, hint));
            }
            let authority = authority_of(folder, &path, &certificate)?;
            return Ok((authority, significant(certificate.raw_serial()).to_vec(), true));
        }
        Which::Serial(text, authority) => (text, authority),
    };
    let serial = read_serial(text)?;
    let signers = signers(folder, &serial)?;
    let is_known = !signers.is_empty();
    if let Some(name) = authority {
        return Ok((named(folder, name)?, serial, is_known));
    }
    let mut candidates = if is_known { signers } else { authority::all(folder)? };
    match (candidates.pop(), candidates.is_empty()) {
        (Some(only), true) => Ok((only, serial, is_known)),
        (last, _) => {
            let names: Vec<String> =
                candidates.iter().chain(&last).map(|one| format!("`{}`", one.name)).collect();
            let what = format!("which authority has given the serial number `{text}` is not clear");
            Err(Fault::new(what, format!("--authority NAME, one of: {}", names.join(", "))))
        }
    }
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

fn significant(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

/// The authorities of the certificates in the folder, old ones among them, that have a serial number.
fn signers(folder: &Path, serial: &[u8]) -> Result<Vec<Authority>, Fault> {
    let is_certificate =
        |name: &str| (name.ends_with(".crt") || name.contains(".crt.")).then(|| name.to_owned());
    let all = authority::all(folder)?;
    let mut found: Vec<Authority> = Vec::new();
    for name in authority::names(folder, is_certificate)? {
        let Ok(chain) = authority::chain(&folder.join(name)) else { continue };
        for section in chain {
            let Ok((_, certificate)) = X509Certificate::from_der(&section.der) else { continue };
            if significant(certificate.raw_serial()) != serial {
                continue;
            }
            let signers = all.iter().filter(|authority| authority.signed(&certificate));
            found.extend(signers.cloned());
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found.dedup_by(|one, other| one.name == other.name);
    Ok(found)
}

fn seconds(now: Duration) -> i64 {
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

fn time(seconds: i64) -> Result<OffsetDateTime, Fault> {
    OffsetDateTime::from_unix_timestamp(seconds)
        .map_err(|error| Fault::new(format!("the date cannot be written: {error}"), "fewer --days"))
}

/// What a list says, apart from its dates.
struct List {
    number: u128,
    last_update_seconds: i64,
    revoked: Vec<RevokedCertParams>,
}

impl List {
    /// The list that is there; an empty one when there is none.
    fn read(authority: &Authority) -> Result<Self, Fault> {
        let path = authority.path("crl");
        if std::fs::symlink_metadata(&path)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        {
            return Ok(Self { number: 0, last_update_seconds: 0, revoked: Vec::new() });
        }
        let odd = |why: &str| {
            let what = format!("the list `{}` cannot be carried on: {why}", path.display());
            Fault::new(what, "move it away only when you know what it revokes")
        };
        let (sections, faults) = sections::read(&path)?;
        if let Some(fault) = faults.into_iter().next() {
            return Err(fault);
        }
        let [section] = sections.as_slice() else { return Err(odd("it is not one section")) };
        if section.kind != Kind::RevocationList {
            return Err(odd("it is no revocation list"));
        }
        let parsed = CertificateRevocationList::from_der(&section.der);
        let (_, list) = parsed.map_err(|_| odd("it does not parse"))?;
        let own = authority.certificate()?;
        let is_own = list.issuer().as_raw() == own.subject().as_raw();
        if !is_own || list.verify_signature(own.public_key()).is_err() {
            return Err(odd(&format!("the authority `{}` has not signed it", authority.name)));
        }
        let known = [OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_CRL_NUMBER];
        if list.extensions().iter().any(|extension| !known.contains(&extension.oid)) {
            return Err(odd("it says more than ringfence can write"));
        }
        let number = list.crl_number().map_or(Ok(0), u128::try_from);
        let revoked = list.iter_revoked_certificates().map(|entry| {
            again(entry).ok_or_else(|| {
                odd(&format!(
                    "its entry `{}` says more than ringfence can write",
                    to_hex(entry.raw_serial())
                ))
            })
        });
        Ok(Self {
            number: number.map_err(|_| odd("its number is too large"))?,
            last_update_seconds: list.last_update().timestamp(),
            revoked: revoked.collect::<Result<_, _>>()?,
        })
    }

    /// Signs and writes the next one.
    fn issue(
        self,
        authority: &Authority,
        issuer: &Issuer<'static, KeyPair>,
        days: u32,
        now_seconds: i64,
    ) -> Result<Issued, Fault> {
        let file = authority.path("crl");
        let cannot = |why: String| {
            let what = format!("the list `{}` cannot be signed: {why}", file.display());
            Fault::new(what, "the authority needs the key usage cRLSign, and a key that can sign")
        };
        let number = self.number.saturating_add(1);
        let revoked = self.revoked.len();
        // Of two lists the later one counts, so a clock that went back must not make an earlier one.
        let this_update_seconds = now_seconds.max(self.last_update_seconds);
        let next_update_seconds =
            this_update_seconds.saturating_add(i64::from(days).saturating_mul(DAY_SECONDS));
        let params = CertificateRevocationListParams {
            this_update: time(this_update_seconds)?,
            next_update: time(next_update_seconds)?,
            crl_number: SerialNumber::from_slice(significant(&number.to_be_bytes())),
            issuing_distribution_point: None,
            revoked_certs: self.revoked,
            key_identifier_method: KeyIdMethod::PreSpecified(authority.key_identifier()?),
        };
        let signed = params.signed_by(issuer).map_err(|error| cannot(error.to_string()))?;
        let parsed = CertificateRevocationList::from_der(signed.der());
        let (_, list) = parsed.map_err(|error| cannot(error.to_string()))?;
        let own = authority.certificate()?;
        if list.issuer().as_raw() != own.subject().as_raw()
            || list.verify_signature(own.public_key()).is_err()
        {
            return Err(cannot("what comes of it does not verify".to_owned()));
        }
        let text = signed.pem().map_err(|error| cannot(error.to_string()))?;
        let file = Prepared::write(&file, text.as_bytes(), 0o644)?.place()?;
        replace::sync(&authority.folder)?;
        let authority = authority.name.clone();
        Ok(Issued { file, authority, number, revoked, next_update_seconds })
    }
}

/// An entry as it is to be written again; `None` when something of it would be lost.
fn again(entry: &RevokedCertificate<'_>) -> Option<RevokedCertParams> {
    let known = [OID_X509_EXT_REASON_CODE, OID_X509_EXT_INVALIDITY_DATE];
    if entry.extensions().iter().any(|extension| !known.contains(&extension.oid)) {
        return None;
    }
    let reason_code = match entry.reason_code() {
        None => None,
        Some((_, code)) => Some(reason(code.0)?),
    };
    let invalidity_date = entry.invalidity_date().map(|(_, date)| date.to_datetime());
    Some(RevokedCertParams {
        serial_number: SerialNumber::from_slice(entry.raw_serial()),
        revocation_time: entry.revocation_date.to_datetime(),
        reason_code,
        invalidity_date,
    })
}

const fn reason(code: u8) -> Option<RevocationReason> {
    Some(match code {
        0 => RevocationReason::Unspecified,
        1 => RevocationReason::KeyCompromise,
        2 => RevocationReason::CaCompromise,
        3 => RevocationReason::AffiliationChanged,
        4 => RevocationReason::Superseded,
        5 => RevocationReason::CessationOfOperation,
        6 => RevocationReason::CertificateHold,
        8 => RevocationReason::RemoveFromCrl,
        9 => RevocationReason::PrivilegeWithdrawn,
        10 => RevocationReason::AaCompromise,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
