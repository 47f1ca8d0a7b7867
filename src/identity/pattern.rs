//! What an identity asks of a certificate.

use std::fmt;

use ipnet::IpNet;

use super::certificate::CertificateFacts;

/// A text in which `*` stands for one or more characters other than the separator, and a closing
/// `**` for one or more of any.
#[derive(Clone, PartialEq, Eq)]
pub struct Glob {
    pattern: String,
    separator: Option<char>,
}

impl Glob {
    /// A pattern over values whose parts are parted by `separator`: `/` for URIs, `.` for DNS
    /// names, none for names of the subject.
    ///
    /// # Errors
    /// When `**` stands anywhere but as the last part, or three stars stand together.
    pub fn new(pattern: &str, separator: Option<char>) -> Result<Self, GlobError> {
        let body = pattern.strip_suffix("**").unwrap_or(pattern);
        if body.contains("**") {
            return Err(GlobError::DoubleStar);
        }
        let closes_a_part = body.is_empty() || separator.is_some_and(|part| body.ends_with(part));
        if body.len() < pattern.len() && (separator.is_none() || !closes_a_part) {
            return Err(GlobError::DoubleStar);
        }
        if pattern.is_empty() {
            return Err(GlobError::Empty);
        }
        Ok(Self { pattern: pattern.to_owned(), separator })
    }

    /// The pattern as it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.pattern
    }

    /// Whether it has a star, so that a match takes something from the certificate.
    #[must_use]
    pub fn has_star(&self) -> bool {
        self.pattern.contains('*')
    }

    /// The one value that fits, where there is no star.
    #[must_use]
    pub fn literal(&self) -> Option<&str> {
        (!self.has_star()).then_some(&self.pattern)
    }

    /// Whether the whole value fits, case and all.
    #[must_use]
    pub fn matches(&self, value: &str) -> bool {
        if let Some(literal) = self.literal() {
            return literal == value;
        }
        if let Some(body) = self.pattern.strip_suffix("**") {
            let Some((head, rest)) = self.split_where_body_ends(body, value) else { return false };
            return !rest.is_empty() && self.fits(body, head);
        }
        self.fits(&self.pattern, value)
    }

    /// A body ends with a separator, and its stars take none, so there is one place in the value where it
    /// can end. To try every place took a URI of 60 KB, all separators, through two thousand million
    /// characters.
    fn split_where_body_ends<'v>(&self, body: &str, value: &'v str) -> Option<(&'v str, &'v str)> {
        let separator = self.separator?;
        let Some(last) = body.matches(separator).count().checked_sub(1) else {
            return Some(("", value));
        };
        let (start, separator) = value.match_indices(separator).nth(last)?;
        value.split_at_checked(start + separator.len())
    }

    /// Greedy match with one point to go back to: linear in practice, never exponential.
    fn fits(&self, pattern: &str, value: &str) -> bool {
        let pattern: Vec<char> = pattern.chars().collect();
        let value: Vec<char> = value.chars().collect();
        let (mut p, mut v) = (0, 0);
        // After a star: (position behind the star, first position of the value it may give back to)
        let mut back: Option<(usize, usize)> = None;
        while v < value.len() {
            let star_takes = |at: usize| value.get(at).copied() != self.separator;
            match pattern.get(p) {
                Some('*') if star_takes(v) => {
                    v += 1;
                    p += 1;
                    back = Some((p, v));
                }
                Some(wanted) if *wanted != '*' && Some(wanted) == value.get(v) => {
                    p += 1;
                    v += 1;
                }
                _ => match back {
                    Some((after_star, taken)) if star_takes(taken) => {
                        p = after_star;
                        v = taken + 1;
                        back = Some((after_star, taken + 1));
                    }
                    _ => return false,
                },
            }
        }
        p == pattern.len()
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}`", self.pattern)
    }
}

/// Why a text is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// `**` in a place where it has no meaning.
    #[error("`**` may only be the last part of a uri or dns pattern")]
    DoubleStar,
    /// Nothing to match.
    #[error("a pattern must not be empty")]
    Empty,
}

/// What an identity asks: the CA that vouches, and at least one fact of the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificatePattern {
    /// The name of the `[[client.ca]]` under which the chain verified.
    pub ca: String,
    /// The one CN.
    pub common_name: Option<Glob>,
    /// One of the O.
    pub organization: Option<Glob>,
    /// One of the OU.
    pub organizational_unit: Option<Glob>,
    /// One of the DNS names.
    pub dns: Option<Glob>,
    /// The one URI (SPIFFE allows one).
    pub uri: Option<Glob>,
    /// One of the IP addresses lies in this network.
    pub ip: Option<IpNet>,
    /// SHA-256 of the public key (SubjectPublicKeyInfo), lower-case hex.
    pub spki_sha256: Option<String>,
}

impl CertificatePattern {
    /// Whether a certificate that verified under `ca` is meant.
    #[must_use]
    pub fn matches(&self, ca: &str, facts: &CertificateFacts) -> bool {
        let ip = |net: &IpNet| facts.ips.iter().any(|ip| net.contains(ip));
        self.ca == ca
            && fits_single(self.common_name.as_ref(), &facts.common_names)
            && fits_any(self.organization.as_ref(), &facts.organizations)
            && fits_any(self.organizational_unit.as_ref(), &facts.organizational_units)
            && fits_any(self.dns.as_ref(), &facts.dns)
            && fits_single(self.uri.as_ref(), &facts.uris)
            && self.ip.as_ref().is_none_or(ip)
            && self.spki_sha256.as_ref().is_none_or(|hash| *hash == facts.spki_sha256)
    }
}

/// A field that has one value or none that counts: with two, which one is meant is in doubt.
fn fits_single(glob: Option<&Glob>, values: &[String]) -> bool {
    match (glob, values) {
        (None, _) => true,
        (Some(glob), [value]) => glob.matches(value),
        (Some(_), _) => false,
    }
}

fn fits_any(glob: Option<&Glob>, values: &[String]) -> bool {
    glob.is_none_or(|glob| values.iter().any(|value| glob.matches(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, separator: Option<char>, value: &str, expected: bool) {
        let glob = Glob::new(pattern, separator).unwrap();
        assert_eq!(glob.matches(value), expected, "{pattern} on {value}");
    }

    #[test]
    fn a_star_stays_within_its_part() {
        let uri = Some('/');
        check("spiffe://example.org/tenant/*", uri, "spiffe://example.org/tenant/acme", true);
        check("spiffe://example.org/tenant/*", uri, "spiffe://example.org/tenant/acme/x", false);
        check("spiffe://example.org/tenant/*", uri, "spiffe://example.org/tenant/", false);
        check("spiffe://example.org/*/a", uri, "spiffe://example.org/x/a", true);
        check("spiffe://example.org/*/a", uri, "spiffe://example.org/x/y/a", false);
        check("spiffe://example.org/**", uri, "spiffe://example.org/x/y/a", true);
        check("spiffe://example.org/**", uri, "spiffe://example.org/", false);
        check("spiffe://example.org/**", uri, "spiffe://example.org.evil/x", false);
        check("*.example.org", Some('.'), "a.example.org", true);
        check("*.example.org", Some('.'), "a.b.example.org", false);
        check("*.example.org", Some('.'), ".example.org", false);
    }

    /// The attack: a certificate with a URI of nothing but separators, matched by a pattern that ends in
    /// `**`: each place of the value was tried, each time from the start.
    #[test]
    fn a_long_value_is_looked_at_once_for_each_star() {
        let long = format!("spiffe://example.org/{}", "/".repeat(1 << 20));
        check("spiffe://example.org/**", Some('/'), &long, true);
        check("spiffe://example.com/**", Some('/'), &long, false);
        check("spiffe://*/**", Some('/'), &long, true);
        check("**", Some('/'), &long, true);
        check("**", Some('/'), "", false);
        check("*.**", Some('.'), "a.b.c", true);
        check("*.**", Some('.'), "a.", false);
    }

    #[test]
    fn a_pattern_without_a_star_is_the_value_itself() {
        check("kube-apiserver", None, "kube-apiserver", true);
        for other in
            ["Kube-apiserver", "kube-apiserver ", "kube-apiserver\0", "", "kube-apiserver2"]
        {
            check("kube-apiserver", None, other, false);
        }
        check("a*c", None, "abbc", true);
        check("a*c", None, "ac", false);
        check("a*c*", None, "abcbcd", true);
        check("*a", None, "baba", true);
        check("*", None, "anything at all", true);
        check("*", None, "", false);
    }

    #[test]
    fn two_stars_only_close_a_pattern_with_parts() {
        for (pattern, separator) in
            [("a**", Some('/')), ("**/a", Some('/')), ("a/***", Some('/')), ("a/**", None)]
        {
            assert_eq!(Glob::new(pattern, separator), Err(GlobError::DoubleStar), "{pattern}");
        }
        assert_eq!(Glob::new("", None), Err(GlobError::Empty));
    }
}
