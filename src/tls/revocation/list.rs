//! One file of revocation lists, and one list: parsed, bounded, and judged by the roots of its CA. Whether it revokes
//! something is asked of rustls at each handshake; what is found here is for people.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::{PemObject as _, SectionKind};
use rustls::pki_types::{CertificateRevocationListDer, TrustAnchor};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{CertRevocationListError, RootCertStore};
use x509_parser::asn1_rs::Any;
use x509_parser::oid_registry::OID_X509_EXT_ISSUER_DISTRIBUTION_POINT;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

use super::super::provider;
use super::{Fault, shown};
use crate::document::Location;
use crate::regular_file;

/// The most bytes of a file of revocation lists. Each handshake hashes the lists that cover its chain.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// How far a list's date may be ahead: two clocks are never the same.
const AHEAD_SECONDS_MAX: i64 = 60;
/// The most bytes of a list's number (RFC 5280).
const NUMBER_BYTES_MAX: usize = 20;
const BEGIN: &[u8] = b"-----BEGIN ";
const ANEW: &str = "have it signed anew, or copy it anew from where it was made";

/// A revocation list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// The named CA that it is configured for.
    pub authority: Arc<str>,
    /// Whose list it is.
    pub issuer: String,
    /// Its number, decimal.
    pub number: Option<String>,
    /// When it was signed, in seconds since 1970.
    pub this_update_seconds: i64,
    /// Until when a newer one is promised. A list that does not say so is not read.
    pub next_update_seconds: i64,
    /// How many certificates it revokes.
    pub entries: usize,
    /// Where it stands.
    pub location: Location,
    pub(super) path: PathBuf,
    pub(super) pattern: Arc<str>,
    pub(in crate::tls) der: CertificateRevocationListDer<'static>,
    pub(super) scope: Scope,
    order: Option<[u8; NUMBER_BYTES_MAX]>,
}

/// Of the lists with one scope the newest counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    issuer: Vec<u8>,
    /// The part of the issuer's certificates that it covers, as it says; `None` is all.
    part: Option<Vec<u8>>,
    pub(super) signer: Signer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Signer {
    /// The root with this key.
    Root(Vec<u8>),
    /// Somebody whose certificate only a client shows.
    Elsewhere,
}

/// Where a list is read from, and for which CA.
pub(super) struct Place<'a> {
    pub(super) authority: &'a Arc<str>,
    pub(super) roots: &'a RootCertStore,
    pub(super) path: &'a Path,
    pub(super) pattern: &'a Arc<str>,
}

impl List {
    /// Whether the promised time of a newer one is over. rustls draws the line in the same place.
    #[must_use]
    pub fn is_stale(&self, now: Duration) -> bool {
        seconds(now) >= self.next_update_seconds
    }

    /// Whether it has an entry for a certificate of its issuer.
    #[must_use]
    pub fn revokes(&self, certificate: &X509Certificate<'_>) -> bool {
        let Ok((_, list)) = CertificateRevocationList::from_der(&self.der) else { return false };
        list.issuer().as_raw() == certificate.issuer().as_raw()
            && list
                .iter_revoked_certificates()
                .any(|entry| entry.raw_serial() == certificate.raw_serial())
    }

    /// Whether another one of the same scope says something newer.
    pub(super) fn is_older_than(&self, other: &Self) -> bool {
        let has_lower_number =
            self.order.zip(other.order).is_some_and(|(own, others)| own < others);
        self.this_update_seconds < other.this_update_seconds || has_lower_number
    }

    /// The same list, judged by other roots; `None` when it is not of them.
    pub(super) fn under(self: &Arc<Self>, roots: &RootCertStore) -> Option<Arc<Self>> {
        let (_, list) = CertificateRevocationList::from_der(&self.der).ok()?;
        let signer = signer(&list, roots)?;
        if signer == self.scope.signer {
            return Some(Arc::clone(self));
        }
        let scope = Scope { signer, ..self.scope.clone() };
        Some(Arc::new(Self { scope, ..Self::clone(self) }))
    }
}

/// The lists of a file, or everything that is wrong with it.
pub(super) fn read(place: &Place<'_>, now: Duration) -> Result<Vec<List>, Vec<Fault>> {
    let bytes = regular_file::read(place.path, FILE_BYTES_MAX).map_err(|error| {
        let what = format!("cannot read `{}`: {error}", place.path.display());
        vec![Fault::new(0, what, "")]
    })?;
    let (mut lists, mut faults) = (Vec::new(), Vec::new());
    for (line, der) in sections(&bytes) {
        match der.and_then(|der| parse(der, line, place, seconds(now))) {
            Ok(list) => lists.push(list),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(lists) } else { Err(faults) }
}

fn seconds(now: Duration) -> i64 {
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// Each section of PEM with its line, or the file as DER. A section that was cut must not swallow the next.
fn sections(bytes: &[u8]) -> Vec<(usize, Result<Vec<u8>, Fault>)> {
    let mut starts = Vec::new();
    let mut at = 0;
    for (number, text) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        if text.starts_with(BEGIN) {
            starts.push((number + 1, at));
        }
        at += text.len();
    }
    if starts.is_empty() {
        return vec![(0, Ok(bytes.to_vec()))];
    }
    let ends = starts.iter().skip(1).map(|(_, at)| *at).chain([bytes.len()]);
    let one = |((line, start), end): (&(usize, usize), usize)| {
        (*line, section(*line, bytes.get(*start..end).unwrap_or_default()))
    };
    starts.iter().zip(ends).map(one).collect()
}

fn section(line: usize, text: &[u8]) -> Result<Vec<u8>, Fault> {
    match <(SectionKind, Vec<u8>)>::from_pem_slice(text) {
        Ok((SectionKind::Crl, der)) => Ok(der),
        Ok(_) => {
            let hint = "only sections that begin with -----BEGIN X509 CRL----- belong here";
            Err(Fault::new(line, "what begins here is no revocation list", hint))
        }
        Err(_) => Err(Fault::new(line, "the PEM that begins here is broken", ANEW)),
    }
}

/// Parses a list, and refuses what rustls would not take or what its CA has not signed.
fn parse(der: Vec<u8>, line: usize, place: &Place<'_>, now: i64) -> Result<List, Fault> {
    let fault = |what: String, hint| Fault::new(line, what, hint);
    let der = CertificateRevocationListDer::from(der);
    let (rest, list) = CertificateRevocationList::from_der(&der).map_err(|_| {
        let what = "it is no revocation list, neither in PEM nor in DER, or it is broken";
        fault(what.to_owned(), ANEW)
    })?;
    if !rest.is_empty() {
        return Err(fault("something stands behind the revocation list".to_owned(), ANEW));
    }
    let Some(next_update) = list.next_update() else {
        let hint = "have it signed with a next update, as RFC 5280 wants it";
        return Err(fault("the list does not say when the next one comes".to_owned(), hint));
    };
    acceptable(&der, place.roots).map_err(|what| {
        fault(what.to_owned(), "a whole list of the CA's own is read, of version 2")
    })?;
    let issuer = shown(&list.issuer().to_string());
    let this_update_seconds = list.last_update().timestamp();
    if this_update_seconds > now.saturating_add(AHEAD_SECONDS_MAX) {
        let what = format!("the list of `{issuer}` is from the future: {}", list.last_update());
        return Err(fault(what, "is the clock right, here and where it was signed?"));
    }
    let Some(signer) = signer(&list, place.roots) else {
        let what = format!(
            "the list names `{issuer}`, a root of the CA `{}`, whose key has not signed it",
            place.authority
        );
        return Err(fault(what, "somebody else has made it, or it is broken: fetch it anew"));
    };
    let part = list
        .extensions()
        .iter()
        .find(|extension| extension.oid == OID_X509_EXT_ISSUER_DISTRIBUTION_POINT);
    let scope = Scope {
        issuer: list.issuer().as_raw().to_vec(),
        part: part.map(|extension| extension.value.to_vec()),
        signer,
    };
    let parsed = List {
        authority: Arc::clone(place.authority),
        issuer,
        number: list.crl_number().map(ToString::to_string),
        this_update_seconds,
        next_update_seconds: next_update.timestamp(),
        entries: list.iter_revoked_certificates().count(),
        location: super::location(place.path, line),
        path: place.path.to_owned(),
        pattern: Arc::clone(place.pattern),
        scope,
        order: list.crl_number().and_then(|number| order(&number.to_bytes_be())),
        der: der.clone(),
    };
    Ok(parsed)
}

/// A number of a fixed length, so that numbers compare as bytes do.
fn order(number: &[u8]) -> Option<[u8; NUMBER_BYTES_MAX]> {
    let zeros = NUMBER_BYTES_MAX.checked_sub(number.len())?;
    let bytes = std::iter::repeat_n(0, zeros).chain(number.iter().copied());
    bytes.collect::<Vec<_>>().try_into().ok()
}

/// Whether rustls takes a list at all; what it does not know must not be used to judge anybody.
fn acceptable(
    der: &CertificateRevocationListDer<'static>,
    roots: &RootCertStore,
) -> Result<(), &'static str> {
    let roots = Arc::new(roots.clone());
    let built = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .with_crls([der.clone()])
        .build();
    match built {
        Ok(_) => Ok(()),
        Err(VerifierBuilderError::InvalidCrl(error)) => Err(in_plain_words(&error)),
        Err(_) => Err("its CA has no root"),
    }
}

const fn in_plain_words(error: &CertRevocationListError) -> &'static str {
    match error {
        CertRevocationListError::UnsupportedDeltaCrl => {
            "the list is a delta: it tells only what has changed"
        }
        CertRevocationListError::UnsupportedIndirectCrl => {
            "the list is indirect: it revokes certificates of others"
        }
        CertRevocationListError::UnsupportedCriticalExtension => {
            "the list has a critical extension that ringfence does not know"
        }
        CertRevocationListError::UnsupportedCrlVersion => "the list is not of version 2",
        CertRevocationListError::UnsupportedRevocationReason => {
            "the list covers only some reasons, or has a reason that there is none of"
        }
        CertRevocationListError::InvalidCrlNumber => "the list's number is none",
        CertRevocationListError::InvalidRevokedCertSerialNumber => {
            "the list has a serial number that is none"
        }
        _ => "the list is not as RFC 5280 wants it",
    }
}

/// Who has signed a list; `None` when it has the name of a root whose key it was not.
fn signer(list: &CertificateRevocationList<'_>, roots: &RootCertStore) -> Option<Signer> {
    let (_, issuer) = Any::from_der(list.issuer().as_raw()).ok()?;
    let of_the_name = |root: &&TrustAnchor<'static>| root.subject.as_ref() == issuer.data;
    let mut named = roots.roots.iter().filter(of_the_name).peekable();
    if named.peek().is_none() {
        return Some(Signer::Elsewhere);
    }
    let signer = named.find(|root| is_signed_by(list, root).unwrap_or(false))?;
    Some(Signer::Root(signer.subject_public_key_info.to_vec()))
}

/// Whether a root's key has signed a list, by the same algorithms as in a handshake; `None` when that cannot be read.
fn is_signed_by(list: &CertificateRevocationList<'_>, root: &TrustAnchor<'_>) -> Option<bool> {
    let signed = list.tbs_cert_list.as_ref();
    let (_, outer) = Any::from_der(list.as_raw()).ok()?;
    let (_, signature_algorithm) = Any::from_der(outer.data.get(signed.len()..)?).ok()?;
    // An anchor holds what stands in the SEQUENCE: the algorithm, and the key as a BIT STRING of whole bytes.
    let (rest, key_algorithm) = Any::from_der(&root.subject_public_key_info).ok()?;
    let (_, key) = Any::from_der(rest).ok()?;
    let key = key.data.strip_prefix(&[0])?;
    let algorithms = provider().signature_verification_algorithms;
    Some(algorithms.all.iter().any(|algorithm| {
        algorithm.signature_alg_id().as_ref() == signature_algorithm.data
            && algorithm.public_key_alg_id().as_ref() == key_algorithm.data
            && algorithm.verify_signature(key, signed, &list.signature_value.data).is_ok()
    }))
}
