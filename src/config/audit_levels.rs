//! `[[audit.level]]`: which requests are recorded, how much of them, and what hashes keys and values.

use std::cmp::Reverse;
use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use super::files;
use super::raw_audit::{RawLevel, RawLevels};
use super::resolve::Loader;
use crate::audit::level::{PARTS_MAX, Prefix, changes};
use crate::audit::{KeyForm, Level, LevelRule, Levels};
use crate::document::Located;
use crate::keyed_hash::KeyedHash;

/// The most prefixes of all rules: a transaction of thousands of operations is held against each.
const PREFIXES_MAX: usize = 256;
/// The longest prefix: as much of a key as a record keeps.
const PREFIX_BYTES_MAX: usize = crate::audit::event::KEY_BYTES_MAX;
const MAKE_HASH_KEY: &str = "`ringfence audit keygen --hash FILE` makes one";

impl Loader<'_> {
    /// `identities` are the names that the policy has; `log` is the folder of the log.
    pub(super) fn levels(
        &self,
        raw: &RawLevels,
        identities: &[&str],
        log: Option<&Path>,
    ) -> Arc<Levels> {
        let hash = raw.hash_key.as_ref().and_then(|path| self.hash_key(path, log));
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
        if let Some(values) = raw.values.as_ref().filter(|_| value_hashes && raw.hash_key.is_none())
        {
            self.problems.error(&values.location, "`audit.hash_key` is missing", MAKE_HASH_KEY);
        }
        let prefixes: usize = raw.rules.iter().map(|rule| rule.prefixes.len()).sum();
        if let Some(last) = raw.rules.last().filter(|_| prefixes > PREFIXES_MAX) {
            let what = format!(
                "all `audit.level` together have {prefixes} prefixes; at most {PREFIXES_MAX} can be"
            );
            self.problems.error(&last.location, what, "every call is held against all of them");
        }
        let has_hash_key = raw.hash_key.is_some();
        let rules: Vec<LevelRule> =
            raw.rules.iter().map(|rule| self.level(rule, has_hash_key, identities)).collect();
        self.warn_of_rules_for_nothing(raw, &rules);
        // A misspelt form is told as one; it may have meant to hash.
        let plain = |rule: &RawLevel| {
            rule.keys.as_ref().is_none_or(|keys| ["plain", "parts"].contains(&keys.value.as_str()))
        };
        if let Some(key) = &raw.hash_key
            && raw.values.is_none()
            && raw.rules.iter().all(plain)
        {
            let hint = "values = \"keyed-hash\", or keys = \"keyed-hash\" in an [[audit.level]]";
            self.problems.error(&key.location, "`audit.hash_key` hashes nothing", hint);
        }
        Arc::new(Levels { rules, hash, value_hashes })
    }

    /// A rule behind one that fits all that it fits never counts.
    fn warn_of_rules_for_nothing(&self, raw: &RawLevels, rules: &[LevelRule]) {
        for (position, (rule, at)) in rules.iter().zip(&raw.rules).enumerate() {
            let mut before = rules.iter().zip(&raw.rules).take(position);
            if let Some((_, first)) = before.find(|(earlier, _)| earlier.covers(rule)) {
                let what = "this rule never counts: an earlier one fits all that it fits";
                let hint = format!("put it before the one at {}", first.location);
                self.problems.warning(&at.location, what, hint);
            }
        }
    }

    fn hash_key(&self, path: &Located<String>, log: Option<&Path>) -> Option<KeyedHash> {
        let file = self.path_outside_log(path, log);
        let text = match files::read_text(&file) {
            Ok(text) => text,
            Err(error) => {
                let hint = if error.not_found { MAKE_HASH_KEY } else { "" };
                self.problems.error(&path.location, error.what, hint);
                return None;
            }
        };
        self.check_secrecy(path, &file);
        let read = KeyedHash::from_text(&text);
        if let Err(error) = &read {
            let what = format!("`{}` {error}", path.value);
            self.problems.error(&path.location, what, MAKE_HASH_KEY);
        }
        read.ok()
    }

    /// A secret is its owner's.
    pub(super) fn check_secrecy(&self, text: &Located<String>, file: &Path) {
        let mode = file.metadata().map_or(0, |metadata| metadata.permissions().mode());
        if mode & 0o077 != 0 {
            let what = format!("`{}` can be read or written by others than its owner", text.value);
            self.problems.error(&text.location, what, "chmod 600");
            return;
        }
        // Whoever may write the folder puts another file there; not where a sticky bit leaves each its own (/tmp).
        let folder = file.parent().and_then(|folder| folder.metadata().ok());
        let folder_mode = folder.map_or(0, |metadata| metadata.permissions().mode());
        if folder_mode & 0o002 != 0 && folder_mode & 0o1000 == 0 {
            let what = format!("`{}` lies in a folder that everybody may write", text.value);
            self.problems.error(&text.location, what, "chmod o-w FOLDER");
        }
    }

    fn level(&self, raw: &RawLevel, has_hash_key: bool, identities: &[&str]) -> LevelRule {
        let level = raw.level.as_ref().and_then(|text| {
            let level = Level::ALL.into_iter().find(|level| level.name() == text.value);
            if level.is_none() {
                let what = format!("`audit.level.level` is `{}`", text.value);
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
        for prefix in raw.prefixes.iter().filter(|prefix| prefix.value.len() > PREFIX_BYTES_MAX) {
            let what = format!("the prefix has {} bytes", prefix.value.len());
            self.problems.error(&prefix.location, what, format!("at most {PREFIX_BYTES_MAX}"));
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
            prefixes: raw.prefixes.iter().map(|text| Prefix::new(text.value.as_bytes())).collect(),
            one_in: u32::try_from(raw.one_in)
                .ok()
                .and_then(NonZeroU32::new)
                .unwrap_or(NonZeroU32::MIN),
            keys: self.key_form(raw, has_hash_key),
            text: text_of(raw),
        }
    }

    /// Verbs have to exist; and only what changes nothing may be sampled: who deletes a key must not have a
    /// chance of leaving no trace.
    fn check_verbs(&self, raw: &RawLevel) {
        for verb in &raw.verbs {
            let (what, hint) = match changes(&verb.value) {
                None if verb.value == "lease" => (
                    "no record has the verb `lease`".to_owned(),
                    "lease.grant, lease.attach, lease.keepalive, lease.revoke, lease.timetolive, lease.keys",
                ),
                None => (
                    format!("there is no verb `{}`", verb.value),
                    "for example get, list, watch, put, delete, health, status, lease.keepalive",
                ),
                Some(true) if raw.one_in > 1 => (
                    format!("`{}` changes something, so `one_in` cannot be", verb.value),
                    "give it a rule of its own, without `one_in`",
                ),
                Some(_) => continue,
            };
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
                let what = format!("`audit.level.keys` is `{other}`");
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
