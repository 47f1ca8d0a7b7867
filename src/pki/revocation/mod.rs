//! Revocation lists of the authorities of a folder: NAME.crl beside NAME.crt. A list only ever grows, its number
//! goes up, and its dates never go back.

mod find;
mod list;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{RevocationReason, RevokedCertParams, SerialNumber};
use time::OffsetDateTime;

use self::find::{find, named, the_one};
use self::list::List;
use super::authority::{self, Authority};
use super::fault::Fault;
use super::replace;
use crate::chain::to_hex;

const DAY_SECONDS: i64 = 86_400;
/// The most bytes of a serial number, and of a list's own (RFC 5280).
const NUMBER_BYTES_MAX: usize = 20;

/// What to revoke.
#[derive(Debug)]
pub enum Which<'a> {
    /// The certificate that is in NAME.crt now, and its authority if it is said.
    Name(&'a str, Option<&'a str>),
    /// A serial number.
    Serial {
        /// In hex.
        text: &'a str,
        /// Whose it is, if it is said.
        authority: Option<&'a str>,
        /// Whether no certificate of the folder needs to have it.
        may_be_unknown: bool,
    },
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
    /// Whether there was none before.
    pub is_first: bool,
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
    if list.serials.contains(&serial) {
        return Ok(Revocation { serial: hex, is_known, issued: None });
    }
    list.revoked.push(RevokedCertParams {
        serial_number: SerialNumber::from_slice(&serial),
        revocation_time: time(now_seconds)?,
        reason_code: reason,
        invalidity_date: None,
    });
    list.serials.insert(serial);
    let issued = list.issue(&authority, &issuer, days, now_seconds)?;
    Ok(Revocation { serial: hex, is_known, issued: Some(issued) })
}

/// What came of signing lists anew.
#[derive(Debug, Default)]
pub struct Reissued {
    /// Those that were signed.
    pub issued: Vec<Issued>,
    /// The authorities without a key, and whether there is a list of them, which will end.
    pub without_key: Vec<(String, bool)>,
    /// What stands in the way of others.
    pub faults: Vec<Fault>,
}

/// Signs the lists of a folder anew, those of all authorities whose keys are there unless one is named. One that has
/// none gets an empty one.
pub fn reissue(folder: &Path, authority: Option<&str>, days: u32, now: Duration) -> Reissued {
    let mut reissued = Reissued::default();
    let locked = replace::lock(folder);
    let chosen = locked.and_then(|lock| Ok((lock, chosen(folder, authority, &mut reissued)?)));
    let (_lock, chosen) = match chosen {
        Ok(chosen) => chosen,
        Err(fault) => {
            reissued.faults.push(fault);
            return reissued;
        }
    };
    let now_seconds = seconds(now);
    for authority in chosen {
        let signed = authority.issuer(now_seconds).and_then(|issuer| {
            List::read(&authority)?.issue(&authority, &issuer, days, now_seconds)
        });
        match signed {
            Ok(list) => reissued.issued.push(list),
            Err(fault) => reissued.faults.push(fault),
        }
    }
    reissued
}

fn chosen(
    folder: &Path,
    name: Option<&str>,
    reissued: &mut Reissued,
) -> Result<Vec<Authority>, Fault> {
    if let Some(name) = name {
        return Ok(vec![named(folder, name)?]);
    }
    let all = authority::all(folder)?;
    let mut chosen = Vec::new();
    for authority in &all {
        let same = all.iter().filter(|other| other.has_key() && other.is_same(authority));
        let same: Vec<Authority> = same.cloned().collect();
        if same.is_empty() {
            let has_list = std::fs::symlink_metadata(authority.path("crl")).is_ok();
            reissued.without_key.push((authority.name.clone(), has_list));
        } else if same.first().is_some_and(|first| first.name == authority.name) {
            match the_one("whose list is to be signed", same) {
                Ok(one) => chosen.push(one),
                Err(fault) => reissued.faults.push(fault),
            }
        }
    }
    if chosen.is_empty() && reissued.faults.is_empty() {
        let what = format!("`{}` has no authority with a key", folder.display());
        return Err(Fault::new(
            what,
            "the authority's NAME.crt and NAME.key belong into the folder",
        ));
    }
    Ok(chosen)
}

fn seconds(now: Duration) -> i64 {
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

fn time(seconds: i64) -> Result<OffsetDateTime, Fault> {
    OffsetDateTime::from_unix_timestamp(seconds)
        .map_err(|error| Fault::new(format!("the date cannot be written: {error}"), "fewer --days"))
}
