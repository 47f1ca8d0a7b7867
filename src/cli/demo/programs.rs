//! Finds the programs that the demonstration starts.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Where they are.
pub(super) struct Programs {
    pub(super) ringfence: PathBuf,
    pub(super) etcd: PathBuf,
    pub(super) etcdctl: PathBuf,
}

impl Programs {
    pub(super) fn find() -> Result<Self, String> {
        let ringfence = std::env::current_exe()
            .map_err(|error| format!("cannot tell where ringfence itself is: {error}"))?;
        let search = std::env::var_os("PATH").unwrap_or_default();
        let find = |name, variable| find(name, variable, std::env::var_os(variable), &search);
        Ok(Self { ringfence, etcd: find("etcd", "ETCD")?, etcdctl: find("etcdctl", "ETCDCTL")? })
    }
}

/// The variable decides when it is set; a wrong one is an error, so that nobody tests another etcd
/// than they think.
fn find(
    name: &str,
    variable: &str,
    value: Option<impl AsRef<OsStr>>,
    search: &OsStr,
) -> Result<PathBuf, String> {
    let hint = format!("set {variable} to its path, or from the repository run: make demo");
    if let Some(value) = value.filter(|value| !value.as_ref().is_empty()) {
        let path = PathBuf::from(value.as_ref());
        if is_program(&path) {
            return absolute(&path);
        }
        let path = path.display();
        return Err(format!("{variable} is `{path}`, which is no program\n  hint: {hint}"));
    }
    let found =
        std::env::split_paths(search).map(|folder| folder.join(name)).find(|path| is_program(path));
    match found {
        Some(path) => absolute(&path),
        None => Err(format!("{name} is needed and is not on the PATH\n  hint: {hint}")),
    }
}

/// The commands of `--stay` must work from any folder.
fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path)
        .map_err(|error| format!("cannot tell where `{}` is: {error}", path.display()))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_wins_over_the_path() {
        let nothing = OsStr::new("/nonexistent");
        let bin = OsStr::new("/nonexistent:/bin");
        assert_eq!(find("x", "X", Some("/bin/sh"), nothing).unwrap(), Path::new("/bin/sh"));
        assert_eq!(find("sh", "X", None::<&str>, bin).unwrap(), Path::new("/bin/sh"));
        assert_eq!(find("sh", "X", Some(""), bin).unwrap(), Path::new("/bin/sh"));
        let wrong = find("sh", "X", Some("/nonexistent/sh"), bin).unwrap_err();
        assert!(wrong.starts_with("X is `/nonexistent/sh`, which is no program"), "{wrong}");
        let missing = find("sh", "X", None::<&str>, nothing).unwrap_err();
        assert!(missing.contains("make demo"), "{missing}");
    }
}
