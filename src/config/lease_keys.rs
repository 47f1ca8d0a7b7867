//! The file of keys that lease IDs are tagged with: one key a line, 64 hex digits, the first makes new
//! IDs and all are believed. Made at the first start; replicas share it.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::policy::LeaseKeys;
use crate::policy::lease::LEASE_KEY_BYTES;

/// The most keys; each one that is kept makes a forged ID a little likelier to pass.
const KEYS_MAX: usize = 8;
const FILE_BYTES_MAX: u64 = 64 * 1024;
const HINT: &str = "one key a line, 64 hex digits; lines that begin with # do not count";

type Keys = Vec<[u8; LEASE_KEY_BYTES]>;

/// The keys of leases, or where to put them.
#[derive(Debug)]
pub enum LeaseKeyFile {
    /// No file is configured: leases cannot be made.
    None,
    /// There is no file yet; `serve` makes it.
    ToBeMade(PathBuf),
    /// As read.
    Read(LeaseKeys),
}

/// Why a key file cannot be used: what, with the line when there is one, and how to mend it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeyFileError {
    pub(super) what: String,
    pub(super) hint: &'static str,
}

impl LeaseKeyFile {
    pub(super) fn load(path: &Path) -> Result<Self, KeyFileError> {
        match read(path) {
            Ok(Some(keys)) => Ok(Self::Read(LeaseKeys::new(&keys))),
            Ok(None) => Ok(Self::ToBeMade(path.to_owned())),
            Err(error) => Err(error),
        }
    }

    /// The keys; makes the file if it is not there. `random` fills a new key.
    ///
    /// # Errors
    /// When the file cannot be made, or another process has just made one that cannot be used.
    pub fn open(self, random: impl FnOnce(&mut [u8]) -> bool) -> Result<LeaseKeys, String> {
        let path = match self {
            Self::None => return Ok(LeaseKeys::default()),
            Self::Read(keys) => return Ok(keys),
            Self::ToBeMade(path) => path,
        };
        let mut drawn = [0; LEASE_KEY_BYTES + 8];
        let filled = random(&mut drawn);
        let (key, suffix) = drawn.split_first_chunk().unwrap_or((&[0; LEASE_KEY_BYTES], &[]));
        if !filled {
            return Err("the operating system gives no randomness for a lease key".to_owned());
        }
        if make(&path, key, suffix)? {
            return Ok(LeaseKeys::new(&[*key]));
        }
        match read(&path) {
            Ok(Some(keys)) => Ok(LeaseKeys::new(&keys)),
            Ok(None) => Err(format!("`{}` came and went", path.display())),
            Err(error) => Err(error.what),
        }
    }
}

/// False when somebody else was faster. The file gets its name only when it is whole, so that a
/// replica that starts at the same moment never reads half of it. The draft's name is drawn, too: in
/// containers every process has the same ID, and one that was killed leaves its draft behind.
fn make(path: &Path, key: &[u8], suffix: &[u8]) -> Result<bool, String> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    let fault =
        |at: &Path, error: std::io::Error| format!("cannot make `{}`: {error}", at.display());
    fs::create_dir_all(folder).map_err(|error| fault(folder, error))?;
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}", hex(suffix)));
    let draft = Path::new(&draft);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(draft)
        .map_err(|error| fault(draft, error))?;
    let linked = writeln!(file, "# ringfence's lease keys: {HINT}.\n{}", hex(key))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(draft, path));
    let removed = fs::remove_file(draft);
    match linked {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(false),
        linked => linked.map_err(|error| fault(path, error))?,
    }
    removed.map_err(|error| format!("cannot remove `{}`: {error}", draft.display()))?;
    // Without this a power cut could take the key, and with it every lease its owner.
    let synced = fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| fault(folder, error))?;
    Ok(true)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `None` when there is no file.
fn read(path: &Path) -> Result<Option<Keys>, KeyFileError> {
    let name = path.display();
    let fault = |what: String| KeyFileError { what, hint: HINT };
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| fault(format!("cannot read `{name}`: {error}")))?,
    };
    // To open a pipe waits for a writer, for ever if need be.
    if !metadata.is_file() {
        return Err(fault(format!("`{name}` is no regular file")));
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(fault(format!("`{name}` is larger than {FILE_BYTES_MAX} bytes")));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        let what = format!("`{name}` can be read or written by others than its owner");
        return Err(KeyFileError {
            what,
            hint: "chmod 600: who has a key can make leases of anybody",
        });
    }
    let text = fs::read_to_string(path);
    let text = text.map_err(|error| fault(format!("cannot read `{name}`: {error}")))?;
    let mut keys = Keys::new();
    for (position, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // The line itself is a secret, and stays out of the message.
        let key = key(line).ok_or_else(|| fault(format!("`{name}`:{}: no key", position + 1)))?;
        if keys.contains(&key) {
            return Err(fault(format!("`{name}`:{}: the same key again", position + 1)));
        }
        keys.push(key);
    }
    if keys.is_empty() || keys.len() > KEYS_MAX {
        return Err(fault(format!("`{name}` holds {} keys, not 1 to {KEYS_MAX}", keys.len())));
    }
    Ok(Some(keys))
}

fn key(line: &str) -> Option<[u8; LEASE_KEY_BYTES]> {
    let digits: Option<Vec<u8>> = line
        .chars()
        .map(|digit| digit.to_digit(16).and_then(|digit| digit.try_into().ok()))
        .collect();
    let pairs: Vec<u8> = digits?
        .chunks(2)
        .filter_map(|pair| match pair {
            [high, low] => Some(high << 4 | low),
            _ => None,
        })
        .collect();
    if line.len() != 2 * LEASE_KEY_BYTES { None } else { pairs.try_into().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lease-keys");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    fn check(text: &str, mode: u32, expected: &str) {
        let (_folder, path) = written(text, mode);
        let error = read(&path).unwrap_err().what;
        assert_eq!(error.replace(&path.display().to_string(), "FILE"), expected, "{text:?}");
    }

    #[test]
    fn a_key_file_that_is_not_right_is_refused_without_showing_a_key() {
        let key = "0f".repeat(32);
        check("", 0o600, "`FILE` holds 0 keys, not 1 to 8");
        check("# nothing\n", 0o600, "`FILE` holds 0 keys, not 1 to 8");
        check(&format!("{key}\nsecret\n"), 0o600, "`FILE`:2: no key");
        check(&format!("{key}0f"), 0o600, "`FILE`:1: no key");
        check(&format!("{key}\n{key}\n"), 0o600, "`FILE`:2: the same key again");
        check(&key, 0o640, "`FILE` can be read or written by others than its owner");
        let many: String = (0..9).map(|byte| format!("{byte:02x}").repeat(32) + "\n").collect();
        check(&many, 0o600, "`FILE` holds 9 keys, not 1 to 8");
    }

    #[test]
    fn the_first_start_makes_a_file_that_only_its_owner_reads_and_the_second_uses_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/lease-keys");
        let fill = |byte: u8| {
            move |key: &mut [u8]| {
                key.fill(byte);
                true
            }
        };
        LeaseKeyFile::load(&path).unwrap().open(fill(7)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        LeaseKeyFile::load(&path).unwrap().open(fill(8)).unwrap();
        // Another replica has made it in the meantime.
        LeaseKeyFile::ToBeMade(path.clone()).open(fill(9)).unwrap();
        assert_eq!(read(&path).unwrap(), Some(vec![[7; LEASE_KEY_BYTES]]));
        assert_eq!(fs::read_dir(folder.path().join("state")).unwrap().count(), 1);
    }
    /// A process that was killed at its start leaves its draft, and in containers the next one has the
    /// same process ID.
    #[test]
    fn a_draft_that_was_left_behind_stops_no_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lease-keys");
        let left = format!("{}.{}", path.display(), std::process::id());
        fs::write(&left, "half").unwrap();
        let random = |bytes: &mut [u8]| {
            bytes.fill(7);
            true
        };
        LeaseKeyFile::load(&path).unwrap().open(random).unwrap();
        assert_eq!(fs::read_to_string(left).unwrap(), "half");
    }
}
