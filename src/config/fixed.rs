//! What of a config holds until the process ends: sockets, threads, the audit log. A reload that would change it is
//! refused by name, because half of a new config in force is nobody's config.

use std::collections::BTreeMap;

use crate::document::{Location, Problem, Severity, TableReader};

/// Limits that count what is open when a reload comes.
const FIXED_LIMITS: [&str; 3] = ["connections", "connections_per_source", "pending_handshakes"];

/// The settings that hold until the process ends, as they are written.
#[derive(Clone, Debug, Default)]
pub struct Fixed(BTreeMap<String, (String, Location)>);

impl Fixed {
    pub(super) fn read(root: &TableReader<'_>) -> Self {
        let mut fixed = BTreeMap::new();
        let mut add = |table: Option<TableReader<'_>>, keys: &[&str]| {
            let Some(table) = table else { return };
            for (key, value) in table.written() {
                if keys.is_empty() || keys.contains(&key.as_str()) {
                    fixed.insert(table.path(&key), value);
                }
            }
        };
        add(root.peek("client"), &["listen"]);
        add(root.peek("admin"), &[]);
        add(root.peek("audit"), &[]);
        add(root.peek("leases"), &[]);
        add(root.peek("upgrade"), &[]);
        add(root.peek("limits"), &FIXED_LIMITS);
        fixed.extend(root.written().into_iter().filter(|(key, _)| key == "cores"));
        Self(fixed)
    }

    /// What differs in a later config, each with where it stands.
    #[must_use]
    pub fn changes(&self, later: &Self) -> Vec<Problem> {
        let mut changes = Vec::new();
        let names = self.0.keys().chain(later.0.keys().filter(|name| !self.0.contains_key(*name)));
        for name in names {
            let (before, after) = (self.0.get(name), later.0.get(name));
            if before.map(|(value, _)| value) == after.map(|(value, _)| value) {
                continue;
            }
            let Some((_, location)) = after.or(before) else { continue };
            let how = if after.is_some() { "is changed" } else { "is gone" };
            changes.push(Problem {
                location: location.clone(),
                severity: Severity::Error,
                what: format!("`{name}` {how}, and cannot be while ringfence runs"),
                hint: Some("restart ringfence, or take the change back".to_owned()),
            });
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{Document, Problems};

    fn fixed(text: &str) -> Fixed {
        let (problems, document) = (Problems::default(), Document::new("ringfence.toml", text));
        let table = document.parse(&problems).unwrap();
        Fixed::read(&document.root(&table, &problems))
    }

    #[test]
    fn what_holds_until_the_end_is_told_by_name_and_line() {
        let before = "cores = 2\n[client]\nlisten = [\"127.0.0.1:1\"]\ncertificate = \"a\"\n\
            [limits]\nconnections = 5\nreply_bytes = 7\n[audit]\ndirectory = \"a\"\nsink = [{ name = \"a\" }]\n";
        let check = |after: &str, expected: &[&str]| {
            let changes = fixed(before).changes(&fixed(after));
            let told: Vec<String> = changes.iter().map(ToString::to_string).collect();
            assert_eq!(told.len(), expected.len(), "{told:?}");
            for (told, expected) in told.iter().zip(expected) {
                assert!(told.starts_with(expected), "{told}");
            }
        };
        check(before, &[]);
        // Written otherwise, and what may change.
        let same = before
            .replace("cores = 2", "# cores\ncores = 0x2")
            .replace("certificate = \"a\"", "certificate = \"b\"")
            .replace("reply_bytes = 7", "reply_bytes = 8")
            .replace("sink = [{ name = \"a\" }]", "[[audit.sink]]\nname = 'a'");
        check(&same, &[]);
        check(
            &before.replace("name = \"a\"", "name = \"b\""),
            &["error: ringfence.toml:10: `audit.sink` is changed"],
        );
        check(&before.replace("cores = 2\n", ""), &["error: ringfence.toml:1: `cores` is gone"]);
        let more = before
            .replace("connections = 5", "connections = 6\npending_handshakes = 1")
            .replace("127.0.0.1:1", "127.0.0.1:2");
        check(
            &more,
            &[
                "error: ringfence.toml:3: `client.listen` is changed",
                "error: ringfence.toml:6: `limits.connections` is changed",
                "error: ringfence.toml:7: `limits.pending_handshakes` is changed",
            ],
        );
    }
}
