//! SPIFFE trust domains: a CA that speaks for one signs for SPIFFE IDs of it, and for nothing else.

use std::fmt;

use super::CertificateFacts;

/// The most bytes of a name (SPIFFE-ID, section 2.1).
const NAME_BYTES_MAX: usize = 255;
const SCHEME: &str = "spiffe://";

/// The name of a trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustDomain(String);

/// Why a text is no name of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no trust domain: 1 to {NAME_BYTES_MAX} of a-z, 0-9, `.`, `-` and `_`")]
pub struct NoTrustDomain;

impl TrustDomain {
    /// Reads a name.
    ///
    /// # Errors
    /// When SPIFFE-ID, section 2.1, does not allow it.
    pub fn parse(name: &str) -> Result<Self, NoTrustDomain> {
        let fits =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        let is_name = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(fits);
        if is_name { Ok(Self(name.to_owned())) } else { Err(NoTrustDomain) }
    }

    /// Whether a certificate is of it: with exactly one URI, as X509-SVID, section 2, asks, and that one of this domain.
    #[must_use]
    pub fn has(&self, facts: &CertificateFacts) -> bool {
        let [uri] = facts.uris.as_slice() else { return false };
        let rest = uri.strip_prefix(SCHEME).and_then(|rest| rest.strip_prefix(self.0.as_str()));
        rest.is_some_and(|path| path.len() > 1 && path.starts_with('/'))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_uri_of_the_domain_is_of_it_and_nothing_else() {
        let domain = TrustDomain::parse("example.org").unwrap();
        let check = |uris: &[&str], expected| {
            let uris = uris.iter().map(|uri| (*uri).to_owned()).collect();
            let facts = CertificateFacts { uris, ..CertificateFacts::default() };
            assert_eq!(domain.has(&facts), expected, "{:?}", facts.uris);
        };
        check(&["spiffe://example.org/tenant/acme"], true);
        for other in [
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe://example.org.evil/tenant/acme",
            "spiffe://evil.example.org/tenant/acme",
            "spiffe://example.orgx/tenant/acme",
            "spiffe://example.org:1/tenant/acme",
            "spiffe://a@example.org/tenant/acme",
            "SPIFFE://example.org/tenant/acme",
            "https://example.org/tenant/acme",
        ] {
            check(&[other], false);
        }
        check(&[], false);
        check(&["spiffe://example.org/a", "spiffe://example.org/b"], false);
        check(&["spiffe://example.org/a", "https://example.org/"], false);
    }

    #[test]
    fn names_are_those_of_spiffe() {
        for name in ["a", "example.org", "my_domain-1"] {
            TrustDomain::parse(name).unwrap();
        }
        for name in ["", "Example.org", "spiffe://a", "a/b", "a:1", "ä", &"a".repeat(256)] {
            assert_eq!(TrustDomain::parse(name), Err(NoTrustDomain), "{name}");
        }
    }
}
