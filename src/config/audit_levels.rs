//! `[[audit.level]]`: which requests are recorded, how much of them, and what hashes keys and values.

use std::cmp::Reverse;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::files;
use super::raw_audit::{RawLevel, RawLevels};
use super::resolve::Loader;
use crate::audit::level::{PARTS_MAX, changes};
use crate::audit::{KeyForm, Level, LevelRule, Levels};
use crate::document::Located;
use crate::keyed_hash::KeyedHash;

const MAKE_HASH_KEY: &str = "`ringfence audit keygen --hash FILE` makes one";

impl Loader<'_> {
    /// `identities` are the names that the policy has.
    pub(super) fn levels(&self, raw: &RawLevels, identities: &[&str]) -> Arc<Levels> {
        let hash = raw.hash_key.as_ref().and_then(|path| self.hash_key(path));
        let value_hashes = match &raw.values {
            None => false,
            Some(values) if values.value == "keyed-hash" => true,
            Some(values) => {
                let what = format!("`audit.values` is `{}`", values.value);
                let hint = "values = \"keyed-hash\"; left out, nothing of a value is recorded";
                self.problems.error(&values.location, what, hint);
                false
            }
        };
        if value_hashes && raw.hash_key.is_none() {
            let location = raw.values.as_ref().map(|values| &values.location);
            if let Some(location) = location {
                self.problems.error(location, "`audit.hash_key` is missing", MAKE_HASH_KEY);
            }
        }
        let rules: Vec<LevelRule> = raw
            .rules
            .iter()
            .map(|rule| self.level(rule, raw.hash_key.is_some(), identities))
            .collect();
        let hashes = value_hashes || rules.iter().any(|rule| rule.keys == KeyForm::Hashed);
        if let Some(key) = raw.hash_key.as_ref().filter(|_| !hashes) {
            let hint = "values = \"keyed-hash\", or keys = \"keyed-hash\" in an [[audit.level]]";
            self.problems.error(&key.location, "`audit.hash_key` hashes nothing", hint);
        }
        Arc::new(Levels { rules, hash, value_hashes })
    }

    fn hash_key(&self, path: &Located<String>) -> Option<KeyedHash> {
        let file = self.folder.join(&path.value);
        let text = match files::read_text(&file) {
            Ok(text) => text,
            Err(error) => {
                let hint = if error.not_found { MAKE_HASH_KEY } else { "" };
                self.problems.error(&path.location, error.what, hint);
                return None;
            }
        };
        let mode = file.metadata().map_or(0, |metadata| metadata.permissions().mode());
        if mode & 0o077 != 0 {
            let what = format!(
                "`{}` can be read or written by others (mode {:o})",
                path.value,
                mode & 0o777
            );
            let hint = "chmod 600: who has it can try out what a hashed key or value is";
            self.problems.error(&path.location, what, hint);
        }
        let read = KeyedHash::from_text(&text);
        if let Err(error) = &read {
            let what = format!("`{}` {error}", path.value);
            self.problems.error(&path.location, what, MAKE_HASH_KEY);
        }
        read.ok()
    }

    fn level(&self, raw: &RawLevel, has_hash_key: bool, identities: &[&str]) -> LevelRule {
        let level = raw.level.as_ref().and_then(|text| {
            let level = Level::ALL.into_iter().find(|level| level.name() == text.value);
            if level.is_none() {
                let what = format!("`level` is `{}`", text.value);
                self.problems.error(&text.location, what, "`none`, `metadata` or `request`");
            }
            level
        });
        for name in &raw.identities {
            if !identities.is_empty() && !identities.contains(&name.value.as_str()) {
                let what = format!("there is no identity `{}`", name.value);
                self.problems.error(
                    &name.location,
                    what,
                    "the name of an [[identity]] of the policy",
                );
            }
        }
        for prefix in raw.prefixes.iter().filter(|prefix| prefix.value.is_empty()) {
            let hint = "leave `prefixes` out to mean all keys, and what has no key";
            self.problems.error(&prefix.location, "the prefix is empty", hint);
        }
        self.check_verbs(raw);
        self.warn_of_unrecorded_changes(raw, level);
        let texts = |texts: &[Located<String>]| -> Vec<String> {
            texts.iter().map(|text| text.value.clone()).collect()
        };
        LevelRule {
            level: level.unwrap_or_default(),
            identities: texts(&raw.identities),
            verbs: texts(&raw.verbs),
            prefixes: texts(&raw.prefixes).into_iter().map(String::into_bytes).collect(),
            one_in: u32::try_from(raw.one_in).unwrap_or(1),
            keys: self.key_form(raw, has_hash_key),
            text: text_of(raw),
            seen: AtomicU64::new(0),
        }
    }

    /// Verbs have to exist; and only what changes nothing may be sampled: who deletes a key must not have a
    /// chance of leaving no trace.
    fn check_verbs(&self, raw: &RawLevel) {
        for verb in &raw.verbs {
            let what = match changes(&verb.value) {
                None => format!("there is no verb `{}`", verb.value),
                Some(true) if raw.one_in > 1 => {
                    format!("`{}` changes something, so `one_in` cannot be", verb.value)
                }
                Some(_) => continue,
            };
            let hint = "for example get, list, watch, put, delete, health, status, lease.keepalive";
            self.problems.error(&verb.location, what, hint);
        }
        if raw.one_in > 1 && raw.verbs.is_empty() {
            let hint = "verbs that change nothing, for example verbs = [\"health\", \"status\"]";
            self.problems.error(&raw.location, "`one_in` needs `verbs`", hint);
        }
        let nothing = raw.level.as_ref().is_some_and(|level| level.value == Level::None.name());
        if raw.one_in > 1 && nothing {
            let hint = "level = \"metadata\" records one in so many";
            self.problems.error(&raw.location, "`one_in` of `none` is none", hint);
        }
    }

    fn warn_of_unrecorded_changes(&self, raw: &RawLevel, level: Option<Level>) {
        let changing = |verb: &Located<String>| changes(&verb.value) == Some(true);
        let some = raw.verbs.is_empty() || raw.verbs.iter().any(changing);
        if level == Some(Level::None) && some {
            let what = "what this rule fits may change etcd and leave no record";
            let hint = "name verbs that change nothing, or level = \"metadata\"";
            self.problems.warning(&raw.location, what, hint);
        }
    }

    fn key_form(&self, raw: &RawLevel, has_hash_key: bool) -> KeyForm {
        let Some(keys) = &raw.keys else { return KeyForm::Plain };
        match keys.value.as_str() {
            "plain" => KeyForm::Plain,
            "parts" => KeyForm::Parts(Reverse(u8::try_from(raw.key_parts).unwrap_or(PARTS_MAX))),
            "keyed-hash" => {
                if !has_hash_key {
                    let what = "`audit.hash_key` is missing";
                    self.problems.error(&keys.location, what, MAKE_HASH_KEY);
                }
                KeyForm::Hashed
            }
            other => {
                let what = format!("`keys` is `{other}`");
                self.problems.error(&keys.location, what, "`plain`, `parts` or `keyed-hash`");
                KeyForm::Plain
            }
        }
    }
}

/// As the first record of a chain shows it: which rule, where it stands, and what it says.
fn text_of(raw: &RawLevel) -> String {
    let mut text = raw.level.as_ref().map(|level| level.value.clone()).unwrap_or_default();
    for (name, list) in
        [("identities", &raw.identities), ("verbs", &raw.verbs), ("prefixes", &raw.prefixes)]
    {
        if !list.is_empty() {
            let list: Vec<&str> = list.iter().map(|one| one.value.as_str()).collect();
            text.push_str(&format!(" {name}={}", list.join(",")));
        }
    }
    if raw.one_in > 1 {
        text.push_str(&format!(" one_in={}", raw.one_in));
    }
    if let Some(keys) = &raw.keys {
        text.push_str(&format!(" keys={}", keys.value));
        if keys.value == "parts" {
            text.push_str(&format!(" key_parts={}", raw.key_parts));
        }
    }
    format!("{text} ({})", raw.location)
}
