//! Every serial number that a list in force revokes. rustls asks one list of an issuer's, the first that it takes to be
//! in charge; a CA may have several, such as one for each part of its certificates, and whatever one of them revokes is
//! revoked.

use std::collections::{HashMap, HashSet};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

use super::List;

/// Serial numbers by the name, in DER, of who has given them.
#[derive(Debug, Default)]
pub(in crate::tls) struct Revoked(HashMap<Vec<u8>, HashSet<Vec<u8>>>);

impl Revoked {
    /// Those of lists that may be of the same roots.
    pub(in crate::tls) fn of<'a>(lists: impl IntoIterator<Item = &'a List>) -> Self {
        let mut revoked: HashMap<Vec<u8>, HashSet<Vec<u8>>> = HashMap::new();
        for list in lists {
            // It was read when it was taken in.
            let Ok((_, parsed)) = CertificateRevocationList::from_der(&list.der) else { continue };
            let issuer = parsed.issuer().as_raw().to_vec();
            let serials = revoked.entry(issuer).or_default();
            let entries = parsed.iter_revoked_certificates();
            serials.extend(entries.map(|entry| entry.raw_serial().to_vec()));
        }
        Self(revoked)
    }

    /// Whether a certificate of a chain is among them.
    pub(in crate::tls) fn has_any<'a, 'der: 'a>(
        &self,
        chain: impl IntoIterator<Item = &'a CertificateDer<'der>>,
    ) -> bool {
        if self.0.is_empty() {
            return false;
        }
        chain.into_iter().any(|der| {
            // What cannot be read may be what is revoked.
            X509Certificate::from_der(der).map_or(true, |(_, certificate)| {
                let serials = self.0.get(certificate.issuer().as_raw());
                serials.is_some_and(|serials| serials.contains(certificate.raw_serial()))
            })
        })
    }
}
