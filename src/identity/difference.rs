//! Why a certificate is not the one that an identity means: the first field that differs, in words.

use std::fmt;

use ipnet::IpNet;

use super::certificate::CertificateFacts;
use super::pattern::{CertificatePattern, Glob};

/// Values that are shown.
const VALUES_SHOWN: usize = 3;
/// Characters of a value that are shown.
const CHARS_SHOWN: usize = 128;

const CA: [&str; 2] = ["CA", "CAs"];

/// The first field that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The field's name, of one value and of several.
    field: [&'static str; 2],
    /// What the certificate has.
    found: Vec<String>,
    /// What the identity wants.
    wanted: String,
    /// Whether several values are one too many.
    is_single: bool,
}

impl CertificatePattern {
    /// Why a certificate that verified under `ca` is not meant; `None` when it is. It asks what
    /// [`matches`](Self::matches) asks, in the same order.
    #[must_use]
    pub fn difference(&self, ca: &str, facts: &CertificateFacts) -> Option<Difference> {
        if self.ca != ca {
            return Some(Difference::new(CA, &[ca.to_owned()], &self.ca, true));
        }
        let globs = [
            (["common name", "common names"], &self.common_name, &facts.common_names, true),
            (["organization", "organizations"], &self.organization, &facts.organizations, false),
            (
                ["organizational unit", "organizational units"],
                &self.organizational_unit,
                &facts.organizational_units,
                false,
            ),
            (["DNS name", "DNS names"], &self.dns, &facts.dns, false),
            (["URI", "URIs"], &self.uri, &facts.uris, true),
        ];
        for (field, glob, found, is_single) in globs {
            if let Some(glob) = glob
                && !fits(glob, found, is_single)
            {
                return Some(Difference::new(field, found, glob.as_str(), is_single));
            }
        }
        if let Some(network) = &self.ip
            && !facts.ips.iter().any(|ip| network.contains(ip))
        {
            let found: Vec<String> = facts.ips.iter().map(ToString::to_string).collect();
            return Some(Difference::new(
                ["IP address", "IP addresses"],
                &found,
                &shown(network),
                false,
            ));
        }
        match &self.spki_sha256 {
            Some(wanted) if *wanted != facts.spki_sha256 => {
                let found = [facts.spki_sha256.clone()];
                let field = ["SHA-256 of the public key", "SHA-256 of public keys"];
                Some(Difference::new(field, &found, wanted, true))
            }
            Some(_) | None => None,
        }
    }
}

fn fits(glob: &Glob, found: &[String], is_single: bool) -> bool {
    let may_be = !is_single || found.len() == 1;
    may_be && found.iter().any(|value| glob.matches(value))
}

/// A network of one address is that address.
fn shown(network: &IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() {
        network.addr().to_string()
    } else {
        network.to_string()
    }
}

impl Difference {
    fn new(field: [&'static str; 2], found: &[String], wanted: &str, is_single: bool) -> Self {
        Self { field, found: found.to_vec(), wanted: wanted.to_owned(), is_single }
    }

    /// Whether already the CA is another.
    #[must_use]
    pub fn is_of_the_ca(&self) -> bool {
        self.field == CA
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [one, several] = self.field;
        let cut =
            |value: &String| format!("`{}`", value.chars().take(CHARS_SHOWN).collect::<String>());
        let mut shown: Vec<String> = self.found.iter().take(VALUES_SHOWN).map(cut).collect();
        if let Some(more) = self.found.len().checked_sub(VALUES_SHOWN + 1) {
            shown.push(format!("{} more", more + 1));
        }
        let shown = shown.join(", ");
        match (self.found.len(), self.is_single) {
            (0, _) => write!(formatter, "the certificate has no {one}")?,
            (1, _) => write!(formatter, "the {one} is {shown}")?,
            (count, true) => {
                write!(formatter, "the certificate has {count} {several} ({shown}), not one")?;
            }
            (_, false) => write!(formatter, "the {several} are {shown}")?,
        }
        write!(formatter, ", it wants `{}`", self.wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    fn facts() -> CertificateFacts {
        CertificateFacts {
            common_names: owned(&["x"]),
            organizations: owned(&["a", "b", "c", "d", "e"]),
            dns: owned(&["a.example.org"]),
            uris: owned(&["spiffe://e/a", "spiffe://e/b"]),
            ips: vec!["10.0.0.1".parse().unwrap()],
            spki_sha256: "00ff".to_owned(),
            ..CertificateFacts::default()
        }
    }

    fn any() -> CertificatePattern {
        CertificatePattern {
            ca: "tenants".to_owned(),
            common_name: None,
            organization: None,
            organizational_unit: None,
            dns: None,
            uri: None,
            ip: None,
            spki_sha256: None,
        }
    }

    /// Also that the two ways to ask agree.
    fn check(pattern: &CertificatePattern, expected: Option<&str>) {
        let found =
            pattern.difference("tenants", &facts()).map(|difference| difference.to_string());
        assert_eq!(found.as_deref(), expected);
        assert_eq!(pattern.matches("tenants", &facts()), expected.is_none());
    }

    #[test]
    fn the_first_field_that_differs_is_named() {
        let glob = |pattern: &str| Some(Glob::new(pattern, None).unwrap());
        check(&any(), None);
        let other = CertificatePattern { ca: "kubernetes".to_owned(), ..any() };
        check(&other, Some("the CA is `tenants`, it wants `kubernetes`"));
        check(&CertificatePattern { common_name: glob("x"), ..any() }, None);
        let both = CertificatePattern { common_name: glob("y"), dns: glob("z"), ..any() };
        check(&both, Some("the common name is `x`, it wants `y`"));
        check(&CertificatePattern { organization: glob("e"), ..any() }, None);
        let organization = CertificatePattern { organization: glob("f*"), ..any() };
        check(&organization, Some("the organizations are `a`, `b`, `c`, 2 more, it wants `f*`"));
        let unit = CertificatePattern { organizational_unit: glob("u"), ..any() };
        check(&unit, Some("the certificate has no organizational unit, it wants `u`"));
        let uri = CertificatePattern { uri: glob("spiffe://e/a"), ..any() };
        check(
            &uri,
            Some(
                "the certificate has 2 URIs (`spiffe://e/a`, `spiffe://e/b`), not one, it wants `spiffe://e/a`",
            ),
        );
    }

    #[test]
    fn addresses_and_keys_differ_too() {
        let ip = |text: &str| Some(text.parse().unwrap());
        check(&CertificatePattern { ip: ip("10.0.0.0/8"), ..any() }, None);
        let far = CertificatePattern { ip: ip("192.168.0.0/16"), ..any() };
        check(&far, Some("the IP address is `10.0.0.1`, it wants `192.168.0.0/16`"));
        let far = CertificatePattern { ip: ip("192.168.0.1/32"), ..any() };
        check(&far, Some("the IP address is `10.0.0.1`, it wants `192.168.0.1`"));
        let key = CertificatePattern { spki_sha256: Some("00fe".to_owned()), ..any() };
        check(&key, Some("the SHA-256 of the public key is `00ff`, it wants `00fe`"));
    }
}
