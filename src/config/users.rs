//! Opens what policies name for the way to etcd: files of passwords, one for each user. All are read at
//! the start; what a certificate says can only choose among those that were found then for its identity.

use std::collections::HashMap;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::resolve::Loader;
use crate::document::{Location, Problems};
use crate::policy::{PasswordFiles, PolicySource};
use crate::regular_file;
use crate::upstream::{Logins, Secret};

/// The most bytes of a password; with its user it has to fit into a request.
const PASSWORD_BYTES_MAX: usize = 1024;
/// The most users.
const USERS_MAX: usize = 10_000;
/// Permission bits that a secret does without: a group may read it, as in a mounted Secret of Kubernetes.
const OTHERS: u32 = 0o027;

/// Reads the passwords of all users, those of each identity apart.
pub(super) fn load(source: &PolicySource, loader: &Loader<'_>) -> Logins {
    let problems = loader.problems;
    let mut users = Users { by_identity: Vec::new(), problems, loader };
    for files in source.password_files() {
        users.by_identity.push(HashMap::new());
        match files {
            PasswordFiles::One { user, file } => {
                users.add(user.clone(), &beside(&file.location, &file.value), &file.location);
            }
            PasswordFiles::Each { folder, .. } => {
                users.add_each(files, &beside(&folder.location, &folder.value));
            }
        }
    }
    if users.count() > USERS_MAX
        && let Some(first) = source.password_files().next()
    {
        let what = format!("more than {USERS_MAX} users of etcd have a password here");
        problems.error(first.location(), what, "let several tenants share one user");
    }
    Logins::new(users.by_identity)
}

/// A path as a policy means it: relative to the folder that the policy lies in.
pub(super) fn beside(location: &Location, path: &str) -> PathBuf {
    Path::new(&*location.file).parent().unwrap_or_else(|| Path::new("")).join(path)
}

struct Users<'a> {
    /// In the order of the policy.
    by_identity: Vec<HashMap<String, Secret>>,
    problems: &'a Problems,
    loader: &'a Loader<'a>,
}

impl Users<'_> {
    fn count(&self) -> usize {
        self.by_identity.iter().map(HashMap::len).sum()
    }

    fn add(&mut self, user: String, path: &Path, location: &Location) {
        self.loader.note(path);
        let password = match read(path) {
            Ok(password) => password,
            Err(what) => {
                let hint = "one line with the password of the user of etcd, mode 0600";
                return self.problems.error(location, what, hint);
            }
        };
        let mode = std::fs::metadata(path).map(|metadata| metadata.permissions().mode());
        if mode.is_ok_and(|mode| mode & OTHERS != 0) {
            let what = format!(
                "the password file `{}` can be read by everybody, or written by others",
                path.display()
            );
            self.problems.warning(location, what, "chmod g-w,o-rwx");
        }
        let mut known = self.by_identity.iter().filter_map(|users| users.get(&user));
        if known.any(|known| *known != password) {
            let what = format!("the user `{user}` of etcd has two passwords");
            self.problems.error(location, what, "name the same file wherever it is named");
        }
        if let Some(users) = self.by_identity.last_mut() {
            users.insert(user, password);
        }
    }

    /// As many users as there are files whose names fit.
    fn add_each(&mut self, files: &PasswordFiles, folder: &Path) {
        let at = files.location();
        self.loader.note(folder);
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => {
                let what = format!("cannot look into `{}`: {error}", folder.display());
                return self.problems.error(at, what, "the folder of the password files");
            }
        };
        let mut found = false;
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry.file_name(),
                Err(error) => {
                    let what = format!("cannot look into `{}`: {error}", folder.display());
                    return self.problems.error(at, what, "");
                }
            };
            // A mounted Secret has `..data` and the like, an editor leaves `.name.swp`.
            let shown = entry.to_str().filter(|entry| !entry.starts_with('.'));
            let user = shown.and_then(|entry| files.user_of(entry));
            let Some(user) = user.filter(|_| !folder.join(&entry).is_dir()) else { continue };
            if self.count() > USERS_MAX {
                return;
            }
            found = true;
            self.add(user, &folder.join(&entry), at);
        }
        if !found {
            let what = format!("no password file in `{}` fits", folder.display());
            let hint = "calls of this identity fail until one is there";
            self.problems.warning(at, what, hint);
        }
    }
}

fn read(path: &Path) -> Result<Secret, String> {
    let name = path.display();
    let cannot = |error: std::io::Error| format!("cannot read the password file `{name}`: {error}");
    let file = regular_file::open(path).map_err(cannot)?;
    // With room for all of it, so that no copy is left behind by growth.
    let mut bytes = Zeroizing::new(Vec::with_capacity(PASSWORD_BYTES_MAX + 3));
    file.take(PASSWORD_BYTES_MAX as u64 + 2).read_to_end(&mut bytes).map_err(cannot)?;
    let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    if line.len() > PASSWORD_BYTES_MAX {
        return Err(format!(
            "the password file `{name}` is longer than {PASSWORD_BYTES_MAX} bytes"
        ));
    }
    let Ok(text) = std::str::from_utf8(line) else {
        return Err(format!("the password file `{name}` is not UTF-8"));
    };
    if text.is_empty() {
        Err(format!("the password file `{name}` is empty"))
    } else if text.ends_with('\r') {
        Err(format!(
            "the password file `{name}` ends its line with a carriage return, as on Windows"
        ))
    } else if text.contains('\n') {
        Err(format!("the password file `{name}` has more than one line"))
    } else if text.contains(char::is_control) {
        Err(format!("the password file `{name}` has a control character"))
    } else {
        Ok(Secret::new(Zeroizing::new(text.to_owned())))
    }
}
