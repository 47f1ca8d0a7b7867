//! Attacks on what is revoked: each is played against the verifier that serves. Here is what they share.

mod denied;
mod handshake;
mod lists;

use std::fs;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::UnixTime;
use rustls::{CertificateError, Error, RootCertStore};
use std::time::Duration;
use time::OffsetDateTime;

use super::super::material::Authority;
use super::super::provider;
use super::super::verifier::{Authorities, Doubt, doubt};
use super::*;
use crate::document::Problem;

const DAY: i64 = 86_400;
/// Noon of all tests.
const NOW: i64 = 1_800_000_000;

type Ca = CertifiedIssuer<'static, KeyPair>;
type Chain = Vec<CertificateDer<'static>>;

fn ca_params(name: &str, serial: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from(serial));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn root(name: &str) -> Ca {
    CertifiedIssuer::self_signed(ca_params(name, 1), KeyPair::generate().unwrap()).unwrap()
}

fn intermediate(name: &str, serial: u64, above: &Ca) -> Ca {
    let key = KeyPair::generate().unwrap();
    CertifiedIssuer::signed_by(ca_params(name, serial), key, above).unwrap()
}

fn leaf(serial: u64, issuer: &Ca) -> Chain {
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from(serial));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    vec![params.signed_by(&key, issuer).unwrap().der().clone()]
}

/// A list: its number, the days from now of this update and the next, and what it revokes.
fn params(number: u64, days: (i64, i64), serials: &[u64]) -> CertificateRevocationListParams {
    let day = |day: i64| OffsetDateTime::from_unix_timestamp(NOW + day * DAY).unwrap();
    let revoked = serials.iter().map(|serial| RevokedCertParams {
        serial_number: SerialNumber::from(*serial),
        revocation_time: day(-10),
        reason_code: None,
        invalidity_date: None,
    });
    CertificateRevocationListParams {
        this_update: day(days.0),
        next_update: day(days.1),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    }
}

fn list(ca: &Ca, number: u64, days: (i64, i64), serials: &[u64]) -> String {
    params(number, days, serials).signed_by(ca).unwrap().pem().unwrap()
}

/// A folder of files, and the CAs that read `NAME*.crl` in it; deny lists are `deny*.txt`.
struct World {
    folder: tempfile::TempDir,
    authorities: Vec<(Authority, Option<Mode>)>,
}

impl World {
    fn new(authorities: &[(&str, &[&Ca], Option<Mode>)]) -> Self {
        let authorities = authorities.iter().map(|(name, cas, mode)| {
            let mut roots = RootCertStore::empty();
            cas.iter().for_each(|ca| roots.add(ca.der().clone()).unwrap());
            (Authority { name: (*name).into(), roots: roots.into() }, *mode)
        });
        Self { folder: tempfile::tempdir().unwrap(), authorities: authorities.collect() }
    }

    fn write(&self, file: &str, text: impl AsRef<[u8]>) {
        fs::write(self.folder.path().join(file), text).unwrap();
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.folder.path().join(file)).unwrap();
    }

    fn named(&self, start: &str, end: &str) -> [Named; 1] {
        let entries = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let fits = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with(start) && name.ends_with(end)
        };
        let mut paths: Vec<_> = entries.filter(fits).collect();
        paths.sort();
        let location = Location { file: "config".into(), line: 1 };
        let pattern = format!("{start}*{end}").into();
        [Named { pattern, location, paths, is_unknown: false }]
    }

    /// What counts after a reading, and what is said about it.
    fn load(&self, previous: Option<&Revocation>) -> (Revocation, String) {
        let problems = Problems::default();
        let now = Duration::from_secs(u64::try_from(NOW).unwrap());
        let with_lists = self.authorities.iter().filter_map(|(one, mode)| Some((one, (*mode)?)));
        let lists = with_lists.map(|(one, mode)| {
            Lists::load((one, mode), &self.named(&one.name, ".crl"), previous, now, &problems)
        });
        let lists = lists.collect();
        let names: Vec<_> = self.authorities.iter().map(|(one, _)| Arc::clone(&one.name)).collect();
        let denied = Denied::load(&names, &self.named("deny", ".txt"), previous, &problems);
        let said: Vec<_> = problems.into_sorted().iter().map(Problem::to_string).collect();
        let folder = format!("{}/", self.folder.path().display());
        (Revocation::new(lists, denied), said.join("\n").replace(&folder, ""))
    }

    /// The same, of which only the deny lists' absence may be said.
    fn load_silently(&self) -> Revocation {
        let (revocation, said) = self.load(None);
        assert!(said.lines().all(|line| line.contains("deny") || line.contains("hint")), "{said}");
        revocation
    }

    fn verify(
        &self,
        revocation: &Revocation,
        chain: &[CertificateDer<'static>],
    ) -> Result<Arc<str>, Error> {
        let authorities: Vec<_> = self.authorities.iter().map(|(one, _)| one.clone()).collect();
        let authorities = Authorities::with_revocation(&authorities, revocation).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(NOW).unwrap()));
        authorities.verify(&chain[0], &chain[1..], now)
    }

    fn accepts(&self, revocation: &Revocation, chain: &[CertificateDer<'static>]) {
        let verdict = self.verify(revocation, chain);
        assert!(verdict.is_ok(), "{verdict:?}");
    }

    fn refuses(
        &self,
        revocation: &Revocation,
        chain: &[CertificateDer<'static>],
        as_what: &CertificateError,
    ) {
        match self.verify(revocation, chain) {
            Err(Error::InvalidCertificate(found)) => {
                let same = std::mem::discriminant(&found) == std::mem::discriminant(as_what);
                assert!(same, "{found:?} instead of {as_what:?}");
            }
            other => panic!("{other:?} instead of {as_what:?}"),
        }
    }
}

const REVOKED: CertificateError = CertificateError::Revoked;
const UNKNOWN: CertificateError = CertificateError::UnknownRevocationStatus;
const EXPIRED: CertificateError = CertificateError::ExpiredRevocationListContext {
    time: UnixTime::since_unix_epoch(Duration::ZERO),
    next_update: UnixTime::since_unix_epoch(Duration::ZERO),
};

#[test]
fn an_error_is_classified_by_what_it_means_for_an_open_connection() {
    let check = |error: CertificateError, expected| {
        assert_eq!(doubt(&Error::InvalidCertificate(error)), expected);
    };
    check(REVOKED, Doubt::Revoked);
    check(CertificateError::Expired, Doubt::Expired);
    for error in [UNKNOWN, EXPIRED, CertificateError::UnknownIssuer, CertificateError::NotValidYet]
    {
        check(error, Doubt::Other);
    }
}
