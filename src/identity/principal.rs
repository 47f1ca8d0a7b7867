//! Who is asking: the identity's name and the values taken from the certificate.

use std::fmt;

use super::certificate::CertificateFacts;

/// The longest value that is taken from a certificate.
const VALUE_BYTES_MAX: usize = 128;

/// A fact of the certificate that a rule may name as `${...}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variable {
    /// `${cn}`
    CommonName,
    /// `${org}`
    Organization,
    /// `${ou}`
    OrganizationalUnit,
    /// `${dns}`
    Dns,
    /// `${uri.host}`: the trust domain of a SPIFFE ID.
    UriHost,
    /// `${uri.path.N}`: the Nth segment of the URI's path, from 1.
    UriPath(u8),
}

/// Why a certificate has no value for a variable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaptureError {
    /// The field is absent, or there are several values and none is the one.
    #[error("the certificate has {count} values for `${{{variable}}}`, not one")]
    NotSingle {
        /// Which variable.
        variable: Variable,
        /// How many values there are.
        count: usize,
    },
    /// A value that could mean something else inside a key.
    #[error(
        "the certificate's value for `${{{0}}}` is not 1 to 128 of the characters A-Z a-z 0-9 . _ -"
    )]
    NotPlain(Variable),
}

impl Variable {
    /// Reads the name between `${` and `}`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "cn" => Self::CommonName,
            "org" => Self::Organization,
            "ou" => Self::OrganizationalUnit,
            "dns" => Self::Dns,
            "uri.host" => Self::UriHost,
            _ => {
                let position = name.strip_prefix("uri.path.")?;
                let number = position.parse::<u8>().ok().filter(|number| *number > 0)?;
                // `uri.path.01` and `uri.path.+1` are not names.
                (number.to_string() == position).then_some(Self::UriPath(number))?
            }
        })
    }

    /// The certificate's one value, if it is plain: it is put into keys, so it must not hold a
    /// separator or anything else that a rule's author did not expect.
    ///
    /// # Errors
    /// When there is no such single, plain value.
    pub fn value(self, facts: &CertificateFacts) -> Result<&str, CaptureError> {
        let single = match self {
            Self::CommonName => self.single(&facts.common_names)?,
            Self::Organization => self.single(&facts.organizations)?,
            Self::OrganizationalUnit => self.single(&facts.organizational_units)?,
            Self::Dns => self.single(&facts.dns)?,
            Self::UriHost => self.uri_part(&facts.uris, 0)?,
            Self::UriPath(position) => self.uri_part(&facts.uris, usize::from(position))?,
        };
        if is_plain(single) { Ok(single) } else { Err(CaptureError::NotPlain(self)) }
    }

    fn single(self, values: &[String]) -> Result<&str, CaptureError> {
        match values {
            [value] => Ok(value),
            values => Err(CaptureError::NotSingle { variable: self, count: values.len() }),
        }
    }

    /// Part 0 is the host, part N the Nth path segment.
    fn uri_part(self, uris: &[String], part: usize) -> Result<&str, CaptureError> {
        let uri = self.single(uris)?;
        let parts = uri.split_once("://").and_then(|(_, rest)| rest.split('/').nth(part));
        parts.ok_or(CaptureError::NotSingle { variable: self, count: 0 })
    }
}

/// Whether a text can be the value of a variable.
#[must_use]
pub fn is_plain(value: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=VALUE_BYTES_MAX).contains(&value.len()) && value.bytes().all(plain)
}

impl fmt::Display for Variable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommonName => formatter.write_str("cn"),
            Self::Organization => formatter.write_str("org"),
            Self::OrganizationalUnit => formatter.write_str("ou"),
            Self::Dns => formatter.write_str("dns"),
            Self::UriHost => formatter.write_str("uri.host"),
            Self::UriPath(position) => write!(formatter, "uri.path.{position}"),
        }
    }
}

/// Identity and captured values, never a serial number or a key: a renewed certificate is the same
/// principal, and two tenants under one identity are two.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Principal {
    identity: String,
    captures: Vec<(String, String)>,
}

impl Principal {
    /// The identity of that name with what was captured, in a fixed order.
    #[must_use]
    pub fn new(identity: &str, mut captures: Vec<(String, String)>) -> Self {
        captures.sort();
        captures.dedup();
        Self { identity: identity.to_owned(), captures }
    }

    /// The identity's name.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The identity's name, then the name and value of each capture, in a fixed order.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        let captures = self.captures.iter().flat_map(|(name, value)| [name.as_str(), value]);
        std::iter::once(self.identity.as_str()).chain(captures)
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.identity)?;
        if self.captures.is_empty() {
            return Ok(());
        }
        formatter.write_str("(")?;
        for (position, (name, value)) in self.captures.iter().enumerate() {
            let separator = if position == 0 { "" } else { "," };
            write!(formatter, "{separator}{name}={value}")?;
        }
        formatter.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(common_names: &[&str], uris: &[&str]) -> CertificateFacts {
        let owned = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        CertificateFacts {
            common_names: owned(common_names),
            uris: owned(uris),
            ..Default::default()
        }
    }

    fn check(name: &str, facts: &CertificateFacts, expected: Option<&str>) {
        let variable = Variable::from_name(name).unwrap();
        assert_eq!(variable.value(facts).ok(), expected, "{name} of {facts:?}");
        assert_eq!(variable.to_string(), name);
    }

    #[test]
    fn a_value_is_single_and_plain() {
        check("cn", &facts(&["acme-1.x_Y"], &[]), Some("acme-1.x_Y"));
        for names in [&[][..], &["a", "b"], &[""], &["a/b"], &["a\0"], &["a "], &["ä"]] {
            check("cn", &facts(names, &[]), None);
        }
        check("cn", &facts(&[&"a".repeat(128)], &[]), Some(&"a".repeat(128)));
        check("cn", &facts(&[&"a".repeat(129)], &[]), None);
    }

    #[test]
    fn parts_of_a_uri_count_from_one() {
        let spiffe = facts(&[], &["spiffe://example.org/tenant/acme"]);
        check("uri.host", &spiffe, Some("example.org"));
        check("uri.path.1", &spiffe, Some("tenant"));
        check("uri.path.2", &spiffe, Some("acme"));
        check("uri.path.3", &spiffe, None);
        check("uri.path.2", &facts(&[], &["spiffe://e/t/a", "spiffe://e/t/b"]), None);
        check("uri.path.2", &facts(&[], &["spiffe://e/t//x"]), None);
        for name in ["uri.path.0", "uri.path.01", "uri.path.", "uri", "serial", ""] {
            assert_eq!(Variable::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_principal_reads_as_its_identity_and_captures() {
        let captures = vec![("uri".to_owned(), "u".to_owned()), ("cn".to_owned(), "c".to_owned())];
        assert_eq!(Principal::new("tenant", captures).to_string(), "tenant(cn=c,uri=u)");
        assert_eq!(Principal::new("apiserver", vec![]).to_string(), "apiserver");
    }
}
