//! Deny lists: plain files that end a key, a certificate or a serial number at once, without the CA. One wrong line makes
//! its file invalid: a line that is passed over may be the one that was meant to keep somebody out.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::X509Certificate;

use super::{
    Fault, GOES_ON, Named, Revocation, files, is_literal, is_named, location, report, shown, twin,
};
use crate::chain::from_hex;
use crate::document::{Location, Problems};
use crate::regular_file;

/// The most bytes of one file.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// The most entries of all files.
const ENTRIES_MAX: usize = 100_000;
/// The most wrong lines of one file that are told one by one.
const FAULTS_MAX: usize = 100;
/// The most bytes of a serial number (RFC 5280).
const SERIAL_BYTES_MAX: usize = 20;
const HASH_BYTES: usize = 32;

/// What the deny lists say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Denied {
    files: Vec<DenyFile>,
    entries: HashMap<Key, Location>,
    has_fingerprints: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct DenyFile {
    path: PathBuf,
    pattern: Arc<str>,
    /// With their lines.
    entries: Vec<(Key, usize)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// Of a public key.
    Spki([u8; HASH_BYTES]),
    /// Of a whole certificate.
    Fingerprint([u8; HASH_BYTES]),
    /// A number that this named CA, or an intermediate below it, has given. Without zeros in front.
    Serial(Arc<str>, Vec<u8>),
}

impl Denied {
    /// Reads the files. What was denied by one that is gone or invalid stays, as long as the config names it.
    #[must_use]
    pub fn load(
        authorities: &[Arc<str>],
        named: &[Named],
        previous: Option<&Revocation>,
        problems: &Problems,
    ) -> Self {
        let before = previous.map(|previous| previous.denied.files.as_slice()).unwrap_or_default();
        let mut loaded: Vec<DenyFile> = Vec::new();
        // What is gone and goes on counting takes room as well: files that come and go must not grow without end.
        let there: Vec<(&Named, &Path)> = files(named, problems);
        let is_gone = |file: &&DenyFile| {
            is_named(named, &file.path, &file.pattern)
                && !there.iter().any(|(_, path)| *path == file.path)
        };
        let gone: usize = before.iter().filter(is_gone).map(|file| file.entries.len()).sum();
        // As many may be gone as may be there: an old file must not keep a new denial out.
        let mut count = gone.saturating_sub(ENTRIES_MAX);
        for (named, path) in there.iter().copied() {
            let known = before.iter().find(|file| file.path == path);
            let room = ENTRIES_MAX.saturating_sub(count);
            let file = match read(path, authorities, room, known) {
                Ok(entries) => {
                    DenyFile { path: path.to_owned(), pattern: Arc::clone(&named.pattern), entries }
                }
                Err(faults) => {
                    report(problems, path, &faults, known.is_some());
                    let Some(known) = known else { continue };
                    known.clone()
                }
            };
            count = count.saturating_add(file.entries.len());
            loaded.push(file);
        }
        for gone in before {
            let is_there = loaded.iter().any(|file| file.path == gone.path);
            if is_there || !is_named(named, &gone.path, &gone.pattern) {
                continue;
            }
            let is_unknown =
                named.iter().any(|named| named.is_unknown && named.pattern == gone.pattern);
            if !is_unknown && !gone.entries.is_empty() {
                let what = format!("`{}` is gone; what it denied {GOES_ON}", gone.path.display());
                let hint = "put it back, empty but for a comment if need be; or name it no longer, or restart";
                problems.warning(&location(&gone.path, 0), what, hint);
            }
            loaded.push(gone.clone());
        }
        report_nothing(named, &loaded, problems);
        Self::of(loaded)
    }

    fn of(files: Vec<DenyFile>) -> Self {
        let mut entries = HashMap::new();
        for file in &files {
            let name: Arc<str> = file.path.display().to_string().into();
            for (key, line) in &file.entries {
                let location = Location { file: Arc::clone(&name), line: *line };
                entries.entry(key.clone()).or_insert(location);
            }
        }
        let has_fingerprints = entries.keys().any(|key| matches!(key, Key::Fingerprint(_)));
        Self { files, entries, has_fingerprints }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is denied.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The line that denies a certificate in a chain for which this CA vouches, and by what.
    pub(in crate::tls) fn find(
        &self,
        authority: &str,
        der: &CertificateDer<'_>,
        certificate: &X509Certificate<'_>,
    ) -> Option<(&Location, &'static str)> {
        if self.is_empty() {
            return None;
        }
        let number = significant(certificate.raw_serial()).to_vec();
        let keys = [
            (Key::Spki(sha256(certificate.public_key().raw)?), "by its key"),
            (Key::Fingerprint(sha256(der)?), "by its fingerprint"),
            (Key::Serial(authority.into(), number), "by its serial number"),
        ];
        let found = keys.into_iter().find_map(|(key, how)| Some((self.entries.get(&key)?, how)));
        found.or_else(|| self.find_twin(der, certificate))
    }

    /// Whoever holds a certificate can give it another fingerprint.
    fn find_twin(
        &self,
        der: &CertificateDer<'_>,
        certificate: &X509Certificate<'_>,
    ) -> Option<(&Location, &'static str)> {
        if !self.has_fingerprints {
            return None;
        }
        let twins = twin::twins(der, certificate);
        let mut keys = twins.iter().filter_map(|twin| Some(Key::Fingerprint(sha256(twin)?)));
        let location = keys.find_map(|key| self.entries.get(&key))?;
        Some((location, "by its fingerprint, but for the form of its signature"))
    }
}

fn sha256(bytes: &[u8]) -> Option<[u8; HASH_BYTES]> {
    digest(&SHA256, bytes).as_ref().try_into().ok()
}

fn significant(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

fn report_nothing(named: &[Named], loaded: &[DenyFile], problems: &Problems) {
    for named in named.iter().filter(|named| named.paths.is_empty() && !named.is_unknown) {
        if loaded.iter().any(|file| file.pattern == named.pattern) {
            continue;
        }
        let what = format!("`{}` matches no file", named.pattern);
        if is_literal(&named.pattern) {
            let hint = "make it; it may be empty but for a comment, which begins with #";
            problems.error(&named.location, what, hint);
        } else {
            problems.warning(&named.location, what, "right when nothing is denied yet");
        }
    }
}

/// The entries of a file, or everything that is wrong with it.
fn read(
    path: &Path,
    authorities: &[Arc<str>],
    room: usize,
    known: Option<&DenyFile>,
) -> Result<Vec<(Key, usize)>, Vec<Fault>> {
    let bytes = regular_file::read(path, FILE_BYTES_MAX).map_err(|error| {
        vec![Fault::new(0, format!("cannot read `{}`: {error}", path.display()), "")]
    })?;
    let had_entries = known.is_some_and(|known| !known.entries.is_empty());
    if had_entries && bytes.iter().all(u8::is_ascii_whitespace) {
        let hint = "when that is meant, leave a line with a comment in it, such as # nothing";
        let what = format!("`{}` is empty all of a sudden", path.display());
        return Err(vec![Fault::new(0, what, hint)]);
    }
    parse(&bytes, authorities, room)
}

fn parse(
    bytes: &[u8],
    authorities: &[Arc<str>],
    room: usize,
) -> Result<Vec<(Key, usize)>, Vec<Fault>> {
    let (mut entries, mut faults, mut wrong) = (Vec::new(), Vec::new(), 0_usize);
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        match entry(line, authorities) {
            Ok(None) => {}
            Ok(Some(_)) if entries.len() >= room => {
                let what = format!("all deny lists together have more than {ENTRIES_MAX} entries");
                faults.push(Fault::new(
                    number + 1,
                    what,
                    "put the certificates on their CA's list",
                ));
                return Err(faults);
            }
            Ok(Some(key)) => entries.push((key, number + 1)),
            Err((what, hint)) => {
                wrong += 1;
                if wrong <= FAULTS_MAX {
                    faults.push(Fault::new(number + 1, what, hint));
                }
            }
        }
    }
    if wrong > FAULTS_MAX {
        let what = format!("{} more lines are wrong", wrong - FAULTS_MAX);
        faults.push(Fault::new(0, what, "is it the right file?"));
    }
    if faults.is_empty() { Ok(entries) } else { Err(faults) }
}

/// What a line denies; nothing when it is empty or a comment.
fn entry(line: &[u8], authorities: &[Arc<str>]) -> Result<Option<Key>, (String, &'static str)> {
    let Ok(line) = std::str::from_utf8(line) else {
        return Err(("the line is not UTF-8".to_owned(), "deny lists are plain text"));
    };
    let text = line.split('#').next().unwrap_or_default().trim();
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    match word {
        "" => Ok(None),
        "spki-sha256" => hash(word, rest).map(|hash| Some(Key::Spki(hash))),
        "fingerprint-sha256" => hash(word, rest).map(|hash| Some(Key::Fingerprint(hash))),
        "serial" => serial(rest, authorities).map(Some),
        word => Err((
            format!("`{}` begins no entry", shown(word)),
            "an entry begins with `spki-sha256`, `fingerprint-sha256` or `serial`",
        )),
    }
}

fn hash(word: &str, text: &str) -> Result<[u8; HASH_BYTES], (String, &'static str)> {
    let bytes = from_hex(&plain_hex(text)).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| {
        let what = format!("`{}` behind `{word}` is no SHA-256", shown(text));
        (what, "64 hex digits, as `ringfence cert inspect` shows them")
    })
}

/// The name of a CA may have spaces in it, the number has none.
fn serial(text: &str, authorities: &[Arc<str>]) -> Result<Key, (String, &'static str)> {
    let example =
        "serial CA HEX: the name of a `client.ca`, and the number as audit records have it";
    let Some((name, number)) = text.rsplit_once(char::is_whitespace) else {
        return Err((format!("`serial {}` lacks a CA or a number", shown(text)), example));
    };
    let name = name.trim_end();
    let Some(authority) = authorities.iter().find(|authority| &***authority == name) else {
        return Err((format!("`{}` is no CA of the config", shown(name)), example));
    };
    let plain = plain_hex(number);
    let even = if plain.len() % 2 == 1 { format!("0{plain}") } else { plain };
    let bytes = from_hex(&even).map(|bytes| significant(&bytes).to_vec());
    let bytes = bytes.filter(|bytes| (1..=SERIAL_BYTES_MAX).contains(&bytes.len()));
    let bytes = bytes.ok_or_else(|| {
        let what = format!("`{}` is no serial number", shown(number));
        (what, "1 to 40 hex digits, not all of them 0")
    })?;
    Ok(Key::Serial(Arc::clone(authority), bytes))
}

/// Hex as it is shown in many places: with colons, in capitals.
fn plain_hex(text: &str) -> String {
    text.replace(':', "").to_ascii_lowercase()
}
