//! Which identities a certificate may be at all, so that not every pattern is tried. It narrows and never
//! decides: whoever comes out still has to match.

use std::collections::HashMap;

use crate::identity::{CertificateFacts, CertificatePattern, Glob};

/// Identities by position. With ten thousand of them, whoever knocks would otherwise keep a core from its
/// neighbours for a millisecond and more.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    by_common_name: HashMap<String, Vec<usize>>,
    /// Those that ask for no certain common name.
    others: Vec<usize>,
}

impl Candidates {
    /// The patterns of all identities, in their order.
    pub(super) fn of<'a>(patterns: impl Iterator<Item = &'a CertificatePattern>) -> Self {
        let mut candidates = Self::default();
        for (position, pattern) in patterns.enumerate() {
            match pattern.common_name.as_ref().and_then(Glob::literal) {
                Some(name) => {
                    candidates.by_common_name.entry(name.to_owned()).or_default().push(position);
                }
                None => candidates.others.push(position),
            }
        }
        candidates
    }

    /// In no order that matters: more than one that matches is refused. A certificate with one common name twice has
    /// its candidates twice, and matches none of them: a pattern wants exactly one.
    pub(super) fn positions(&self, facts: &CertificateFacts) -> impl Iterator<Item = usize> {
        let named = facts.common_names.iter().filter_map(|name| self.by_common_name.get(name));
        named.flatten().chain(&self.others).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(common_name: Option<&str>, organization: Option<&str>) -> CertificatePattern {
        let glob = |text: &str| Glob::new(text, None).unwrap();
        CertificatePattern {
            ca: "ca".to_owned(),
            common_name: common_name.map(glob),
            organization: organization.map(glob),
            organizational_unit: None,
            dns: None,
            uri: None,
            ip: None,
            spki_sha256: None,
        }
    }

    #[test]
    fn whoever_matches_is_a_candidate() {
        let patterns = [
            pattern(Some("a"), None),
            pattern(Some("b"), Some("x")),
            pattern(Some("b"), Some("*")),
            pattern(Some("tenant-*"), None),
            pattern(None, Some("y")),
            pattern(Some("*"), Some("z")),
        ];
        let candidates = Candidates::of(patterns.iter());
        let mut matched = std::collections::BTreeSet::new();
        let subjects: [&[&str]; 7] =
            [&["a"], &["b"], &["tenant-1"], &["nobody"], &["*"], &["a", "a"], &[]];
        for common_names in subjects {
            for organization in ["x", "y", "z"] {
                let facts = CertificateFacts {
                    common_names: common_names.iter().map(|name| (*name).to_owned()).collect(),
                    organizations: vec![organization.to_owned()],
                    ..CertificateFacts::default()
                };
                let fits = |position: &usize| patterns[*position].matches("ca", &facts);
                let expected: Vec<usize> = (0..patterns.len()).filter(fits).collect();
                let mut found: Vec<usize> = candidates.positions(&facts).filter(fits).collect();
                found.sort_unstable();
                assert_eq!(found, expected, "{facts:?}");
                matched.extend(expected);
            }
        }
        assert_eq!(matched.len(), patterns.len());
    }
}
