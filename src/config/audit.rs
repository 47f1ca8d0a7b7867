//! The `[audit]` of a config: where records go, how they are sealed, when files end and go.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::numbers::unless_zero;
use super::raw::{Raw, RawAudit, RawCheckpoint};
use super::resolve::Loader;
use super::{audit_sinks, files};
use crate::audit::{Config, LongTermKey, Retention, RotateAt, SealConfig, SealEvery};
use crate::document::Located;
use crate::sink;

/// The longest name that a file of Linux can have (`NAME_MAX` of limits.h).
const NAME_BYTES_MAX: usize = 255;

impl Loader<'_> {
    /// `identities` are the names that the policy has.
    pub(super) fn audit(&self, raw: &RawAudit, identities: &[&str]) -> Option<Config> {
        let directory = raw.directory.as_ref().map(|text| self.audit_directory(text));
        let levels = self.levels(&raw.levels, identities, directory.as_deref());
        let seal = match &raw.checkpoint {
            None => Some(None),
            Some(checkpoint) => self.checkpoint(checkpoint, directory.as_deref()).map(Some),
        };
        let witness = raw.checkpoint.as_ref().and_then(|checkpoint| checkpoint.witness.as_ref());
        let mut sinks = self.sinks(&raw.sinks, raw.checkpoint.is_some(), witness);
        let witness = witness.map(|text| self.witness_path(text, directory.as_deref()));
        sinks.extend(witness.map(audit_sinks::witness));
        let rotate = &raw.rotate;
        Some(Config {
            directory: directory?,
            mode: raw.mode,
            queue_bytes: u32::try_from(raw.queue_bytes).unwrap_or(u32::MAX),
            wait: Duration::from_secs(raw.wait_seconds),
            seal: seal?,
            rotate: RotateAt { bytes: rotate.bytes, age: unless_zero(rotate.seconds) },
            retention: Retention {
                compress: rotate.compress,
                files: u32::try_from(rotate.keep_files).ok().filter(|files| *files > 0),
                age: unless_zero(rotate.keep_seconds),
                bytes: Some(rotate.keep_bytes).filter(|bytes| *bytes > 0),
            },
            levels,
            sinks,
        })
    }

    /// `serve` makes the folder; nothing is made here.
    fn audit_directory(&self, text: &Located<String>) -> PathBuf {
        let directory = self.folder.join(&text.value);
        let there = directory.ancestors().find_map(|path| Some((path, path.metadata().ok()?)));
        if let Some((path, metadata)) = there
            && !metadata.is_dir()
        {
            let what = format!("`{}` is no folder", path.display());
            self.problems.error(&text.location, what, "a folder for the audit log; serve makes it");
        }
        directory
    }

    /// A path of the config. Who may write the log, or is given a copy of it, must not find in its folder the key
    /// that seals it, the one that hashes, nor the place that shows what was cut off.
    pub(super) fn path_outside_log(&self, text: &Located<String>, log: Option<&Path>) -> PathBuf {
        let path = self.folder.join(&text.value);
        // Neither the file nor a link to it: who can write there would lead it elsewhere.
        let beside = path.parent().map_or_else(PathBuf::new, resolved);
        let beside = beside.join(path.file_name().unwrap_or_default());
        let lies_in = |log: &Path| {
            let log = resolved(log);
            beside.starts_with(&log) || resolved(&path).starts_with(&log)
        };
        if log.is_some_and(lies_in) {
            let what = format!("`{}` lies in the folder of the log", text.value);
            let hint = "whoever has the log would have it, too: another folder";
            self.problems.error(&text.location, what, hint);
        }
        path
    }

    /// Where lines can be appended, and nothing else can stand: a key that is named by mistake would be written into,
    /// and given away with what is written.
    fn witness_path(&self, text: &Located<String>, log: Option<&Path>) -> PathBuf {
        let path = self.path_outside_log(text, log);
        let is_there = path.symlink_metadata().is_ok();
        let name_bytes = path.file_name().unwrap_or_default().len();
        let wrong = match path.metadata() {
            _ if text.value.is_empty()
                || text.value.ends_with('/')
                || text.value.contains('\0') =>
            {
                Some(("names no file", "a file of its own"))
            }
            _ if name_bytes > NAME_BYTES_MAX => Some(("has too long a name", "at most 255 bytes")),
            Ok(data) if !data.is_file() => {
                Some(("is no regular file", "a file: `verify --witness` reads it again and again"))
            }
            Ok(_) if !sink::may_take_records(&path) => Some((
                "holds something else than records",
                "a file of its own, which need not be there",
            )),
            Ok(_) => None,
            Err(_) if is_there => {
                Some(("is a link to nothing", "a file of its own, in a folder that is there"))
            }
            Err(_) => {
                let folder = path
                    .parent()
                    .is_some_and(|folder| folder.as_os_str().is_empty() || folder.is_dir());
                let hint = "make the folder first; `serve` makes the file";
                (!folder).then_some(("lies in a folder that is not there", hint))
            }
        };
        if let Some((why, hint)) = wrong {
            let what = format!("`audit.checkpoint.witness`: `{}` {why}", text.value);
            self.problems.error(&text.location, what, hint);
        }
        path
    }

    /// A file that is not there yet must not become another one of ringfence's: the next start would find records
    /// where it wants a policy or keys.
    pub(super) fn witness_apart(&self, raw: &Raw) {
        let checkpoint = raw.audit.checkpoint.as_ref();
        let Some(text) = checkpoint.and_then(|checkpoint| checkpoint.witness.as_ref()) else {
            return;
        };
        let path = resolved(&self.folder.join(&text.value));
        // That has been said already.
        if path.exists() && !sink::may_take_records(&path) {
            return;
        }
        let is_keys = |keys: &Located<String>| resolved(&self.folder.join(&keys.value)) == path;
        let folder = resolved(self.folder);
        let is_policy =
            |pattern: &&Located<String>| files::names(&folder, &pattern.value, &path, resolved);
        let why = if raw.lease_keys.as_ref().is_some_and(is_keys) {
            "is the file of `leases.keys`".to_owned()
        } else if let Some(pattern) = raw.policy_files.iter().find(is_policy) {
            format!("would be read as policy: `{}` names it", pattern.value)
        } else {
            return;
        };
        let what = format!("`audit.checkpoint.witness`: `{}` {why}", text.value);
        self.problems.error(&text.location, what, "a file of its own, in another folder");
    }

    fn checkpoint(&self, raw: &RawCheckpoint, log: Option<&Path>) -> Option<SealConfig> {
        let key = raw.key.as_ref()?;
        let path = self.path_outside_log(key, log);
        self.check_secrecy(key, &path);
        match LongTermKey::read(&path) {
            Ok(long_term) => Some(SealConfig {
                key: Arc::new(long_term),
                every: SealEvery { time: Duration::from_secs(raw.seconds), records: raw.records },
            }),
            Err(what) => {
                let hint = "`ringfence audit keygen FILE` makes one";
                self.problems.error(&key.location, what, hint);
                None
            }
        }
    }
}

/// With every link resolved as far as the path is there.
fn resolved(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    for ancestor in path.ancestors() {
        let there = if ancestor.as_os_str().is_empty() { Path::new(".") } else { ancestor };
        if let Ok(real) = there.canonicalize() {
            return missing.iter().rev().fold(real, |real, name| real.join(name));
        }
        missing.extend(ancestor.file_name());
    }
    path.to_owned()
}
