//! The list of one authority: read as it was signed last, and signed again with nothing lost.

use std::collections::BTreeSet;
use std::path::Path;

use rcgen::{
    CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevocationReason,
    RevokedCertParams, SerialNumber,
};
use x509_parser::oid_registry::{
    OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_CRL_NUMBER, OID_X509_EXT_INVALIDITY_DATE,
    OID_X509_EXT_REASON_CODE,
};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, RevokedCertificate};

use super::super::authority::{self, Authority};
use super::super::fault::Fault;
use super::super::replace::{self, Prepared};
use super::super::sections::{self, Kind};
use super::find::{is_writable, significant};
use super::{DAY_SECONDS, Issued, time};
use crate::chain::to_hex;

/// What a list says, apart from its dates.
pub(super) struct List {
    number: u128,
    last_update_seconds: i64,
    pub(super) revoked: Vec<RevokedCertParams>,
    /// The serial numbers of these, as they stand in the list that is there and in the certificate.
    pub(super) serials: BTreeSet<Vec<u8>>,
    is_first: bool,
}

impl List {
    /// The list that is there; an empty one when there is none.
    pub(super) fn read(authority: &Authority) -> Result<Self, Fault> {
        let path = authority.path("crl");
        no_other(authority)?;
        if std::fs::symlink_metadata(&path)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        {
            return Ok(Self {
                number: 0,
                last_update_seconds: 0,
                revoked: Vec::new(),
                serials: BTreeSet::new(),
                is_first: true,
            });
        }
        let odd = |why: &str| {
            let what = format!("the list `{}` cannot be carried on: {why}", path.display());
            Fault::new(what, "move it away only when you know what it revokes")
        };
        let hint = "put the list there that was signed last; move it away only when you know what it revokes";
        let broken = |fault: Fault| Fault::new(fault.what, hint);
        let (sections, faults) = sections::read(&path).map_err(broken)?;
        if let Some(fault) = faults.into_iter().next() {
            return Err(broken(fault));
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
                    "its entry `{}` is negative, has zeros in front, or says more than ringfence can write",
                    to_hex(entry.raw_serial())
                ))
            })
        });
        Ok(Self {
            number: number.map_err(|_| odd("its number is too large"))?,
            last_update_seconds: list.last_update().timestamp(),
            revoked: revoked.collect::<Result<_, _>>()?,
            serials: serials(&list),
            is_first: false,
        })
    }

    /// Signs and writes the next one.
    pub(super) fn issue(
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
        let (revoked, is_first) = (self.revoked.len(), self.is_first);
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
        let written = serials(&list);
        if let Some(lost) = self.serials.iter().find(|serial| !written.contains(*serial)) {
            return Err(cannot(format!("the serial number `{}` would be lost", to_hex(lost))));
        }
        let text = signed.pem().map_err(|error| cannot(error.to_string()))?;
        let file = Prepared::write(&file, text.as_bytes(), 0o644)?.place()?;
        replace::sync(&authority.folder)?;
        let authority = authority.name.clone();
        Ok(Issued { file, authority, number, revoked, next_update_seconds, is_first })
    }
}

/// The serial numbers of a list, as they stand in it.
fn serials(list: &CertificateRevocationList<'_>) -> BTreeSet<Vec<u8>> {
    list.iter_revoked_certificates().map(|entry| entry.raw_serial().to_vec()).collect()
}

/// Two lists of one authority contradict each other, and whoever is given the shorter one lets the revoked in.
fn no_other(authority: &Authority) -> Result<(), Fault> {
    let is_new = std::fs::symlink_metadata(authority.path("crl")).is_err();
    let all = authority::all(&authority.folder)?;
    let is_other_name =
        |name: &str| all.iter().any(|one| one.name == name && one.is_same(authority));
    let lists = |name: &str| name.strip_suffix(".crl").map(str::to_owned);
    for name in authority::names(&authority.folder, lists)? {
        let path = authority.folder.join(format!("{name}.crl"));
        let is_other = name != authority.name
            && (is_other_name(&name) || (is_new && has_signed(authority, &path)));
        if is_other {
            let what = format!(
                "`{}` is a list of the same authority as `{}`",
                path.display(),
                authority.name
            );
            let hint = "an authority has one list: bring it to the name that has the key";
            return Err(Fault::new(what, hint));
        }
    }
    Ok(())
}

fn has_signed(authority: &Authority, path: &Path) -> bool {
    let (Ok((sections, _)), Ok(own)) = (sections::read(path), authority.certificate()) else {
        return false;
    };
    sections.iter().any(|section| {
        CertificateRevocationList::from_der(&section.der).is_ok_and(|(_, list)| {
            list.issuer().as_raw() == own.subject().as_raw()
                && list.verify_signature(own.public_key()).is_ok()
        })
    })
}

/// An entry as it is to be written again; `None` when something of it would be lost.
fn again(entry: &RevokedCertificate<'_>) -> Option<RevokedCertParams> {
    let known = [OID_X509_EXT_REASON_CODE, OID_X509_EXT_INVALIDITY_DATE];
    let is_unknown = entry.extensions().iter().any(|extension| !known.contains(&extension.oid));
    if is_unknown || !is_writable(entry.raw_serial()) {
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
