//! As whom an identity reaches etcd: a user of etcd's own, or a certificate. Names only; the files are
//! opened elsewhere, and every password there is before the first client comes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::source::{Part, Template, read_template};
use crate::document::{Located, Location, Problems, TableReader};
use crate::identity::{Variable, is_plain};

/// The longest name of a user.
const USER_BYTES_MAX: usize = 256;

/// As whom a principal reaches etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ActsAs {
    /// As ringfence itself.
    #[default]
    Ringfence,
    /// As this user of etcd, if its password is among those of its identity: the certificate chooses the
    /// name, and another identity's users may have it too.
    User {
        /// The position of the identity's files among [`PolicySource::password_files`].
        ///
        /// [`PolicySource::password_files`]: super::PolicySource::password_files
        files: usize,
        /// The name.
        user: Arc<str>,
    },
    /// With the certificate of this position among [`PolicySource::upstream_certificates`].
    ///
    /// [`PolicySource::upstream_certificates`]: super::PolicySource::upstream_certificates
    Certificate(usize),
    /// As nobody: its calls fail.
    Nobody,
}

/// What an identity says of it.
#[derive(Clone, Debug)]
pub(super) enum UpstreamSource {
    User {
        user: Template,
        passwords: PasswordFiles,
    },
    Certificate {
        certificate: Located<String>,
        key: Located<String>,
    },
    /// What it says was reported as a mistake.
    Unreadable,
}

/// Where the passwords of one identity's users are. Paths are relative to the policy file's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PasswordFiles {
    /// One user.
    One {
        /// The name.
        user: String,
        /// The file.
        file: Located<String>,
    },
    /// One for each value of a variable: as many as there are files.
    Each {
        /// What stands before and behind the value in the user's name.
        user: [String; 2],
        /// The folder of the files.
        folder: Located<String>,
        /// What stands before and behind the value in a file's name.
        name: [String; 2],
    },
}

impl PasswordFiles {
    /// The user whose password is in a file of that name in the folder; `None` when it is nobody's.
    #[must_use]
    pub fn user_of(&self, file_name: &str) -> Option<String> {
        let Self::Each { user: [before, behind], name: [start, end], .. } = self else {
            return None;
        };
        let value = file_name.strip_prefix(start.as_str())?.strip_suffix(end.as_str())?;
        is_plain(value).then(|| format!("{before}{value}{behind}"))
    }

    /// Where it stands in the policy.
    #[must_use]
    pub const fn location(&self) -> &Location {
        match self {
            Self::One { file, .. } => &file.location,
            Self::Each { folder, .. } => &folder.location,
        }
    }
}

impl UpstreamSource {
    /// The variables that the user's name takes from the certificate.
    pub(super) fn variables(&self) -> Vec<Variable> {
        match self {
            Self::User { user, .. } => user.variables(),
            Self::Certificate { .. } | Self::Unreadable => Vec::new(),
        }
    }

    /// Its position among those of its kind; counts on.
    pub(super) fn number(&self, certificates: &mut usize, password_files: &mut usize) -> usize {
        let counter = match self {
            Self::User { .. } => password_files,
            Self::Certificate { .. } => certificates,
            Self::Unreadable => return 0,
        };
        let number = *counter;
        *counter += 1;
        number
    }

    /// As whom one principal reaches etcd; `number` is that of the files or the certificate, each kind counted
    /// for itself.
    pub(super) fn acts_as(&self, values: &BTreeMap<Variable, String>, number: usize) -> ActsAs {
        match self {
            Self::User { user, .. } => {
                let user = user.filled(values).and_then(|user| String::from_utf8(user).ok());
                let user = user.map(|user| Arc::from(user.as_str()));
                user.map_or(ActsAs::Nobody, |user| ActsAs::User { files: number, user })
            }
            Self::Certificate { .. } => ActsAs::Certificate(number),
            Self::Unreadable => ActsAs::Nobody,
        }
    }
}

pub(super) fn read_upstream(table: TableReader<'_>) -> Option<UpstreamSource> {
    let [user, password_file, certificate, key] =
        ["user", "password_file", "certificate", "key"].map(|name| table.text(name));
    let named = ["user", "password_file", "certificate", "key"].map(|name| table.has(name));
    let location = table.location().clone();
    let problems = table.problems();
    let both = match named {
        [true, true, false, false] => user.zip(password_file).map(Pair::Password),
        [false, false, true, true] => certificate.zip(key).map(Pair::Certificate),
        _ => {
            let what = "`upstream` needs `user` and `password_file`, or `certificate` and `key`";
            let hint = "for example upstream = { user = \"tenants\", password_file = \"tenants.password\" }";
            problems.error(&location, what, hint);
            None
        }
    };
    table.finish();
    match both? {
        Pair::Certificate((certificate, key)) => {
            Some(UpstreamSource::Certificate { certificate, key })
        }
        Pair::Password((user, file)) => read_user(problems, &user, file),
    }
}

enum Pair {
    Password((Located<String>, Located<String>)),
    Certificate((Located<String>, Located<String>)),
}

fn read_user(
    problems: &Problems,
    user: &Located<String>,
    file: Located<String>,
) -> Option<UpstreamSource> {
    if user.value.is_empty() || user.value.len() > USER_BYTES_MAX || file.value.is_empty() {
        let what = "`user` and `password_file` must not be empty, nor `user` longer than 256 bytes";
        problems.error(&user.location, what, "the name of a user of etcd, and a file");
        return None;
    }
    let template = read_template(user, false, problems)?;
    let named = read_template(&file, false, problems)?;
    let passwords = match (around(&template), around(&named)) {
        (Around::Nothing, Around::Nothing) => PasswordFiles::One { user: user.value.clone(), file },
        (Around::Variable(variable, user), Around::Variable(same, [path, behind]))
            if variable == same && !behind.contains('/') =>
        {
            // A value is one name of a file that was found, never a step to another folder.
            let (folder, before) =
                path.rsplit_once('/').map_or((".", path.as_str()), |(folder, name)| {
                    (if folder.is_empty() { "/" } else { folder }, name)
                });
            let name = [before.to_owned(), behind];
            let folder = Located { value: folder.to_owned(), location: file.location };
            PasswordFiles::Each { user, folder, name }
        }
        _ => {
            let what = "`user` and `password_file` must hold the same one variable, or none";
            let hint = "the file's own name may hold it, its folder may not: \
                user = \"tenant-${uri.path.2}\", password_file = \"passwords/${uri.path.2}\"";
            problems.error(&file.location, what, hint);
            return None;
        }
    };
    Some(UpstreamSource::User { user: template, passwords })
}

/// What stands around the one variable of a text.
enum Around {
    Nothing,
    Variable(Variable, [String; 2]),
    Several,
}

fn around(template: &Template) -> Around {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match template.0.as_slice() {
        [Part::Literal(_)] => Around::Nothing,
        [Part::Literal(before), Part::Variable(variable), Part::Literal(behind)] => {
            Around::Variable(*variable, [text(before), text(behind)])
        }
        _ => Around::Several,
    }
}
