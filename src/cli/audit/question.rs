//! What the commands that read a log are asked, read from the command line.

use std::cell::Cell;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use crate::cli::complain;
use crate::clock;
use crate::etcd::touch_verbs;
use crate::evidence::calls::Call;
use crate::evidence::keys::AskedKey;
use crate::evidence::question::{Fits, Question};
use crate::evidence::{Segment, find};
use crate::keyed_hash::KeyedHash;

#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Folders or files of audit logs
    #[arg(required = true)]
    pub(super) paths: Vec<PathBuf>,
    /// Who: a pattern with * and ? over the principal or its identity
    #[arg(long, value_name = "PATTERN")]
    principal: Option<glob::Pattern>,
    /// Calls that touch this key, ranges that hold it too
    #[arg(long)]
    key: Option<String>,
    #[command(flatten)]
    pub(super) hashes: HashKey,
    /// Calls that touch a key with this prefix
    #[arg(long)]
    prefix: Option<String>,
    /// get, list, watch, put, delete, lease.grant, ...
    #[arg(long, value_parser = verb)]
    verb: Option<String>,
    /// What was decided
    #[arg(long, value_parser = ["allow", "deny", "refuse"])]
    verdict: Option<String>,
    /// A pattern over the RPC or its method
    #[arg(long, value_name = "PATTERN")]
    rpc: Option<glob::Pattern>,
    /// The client's address, without its port
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    source: Option<IpAddr>,
    /// From then on: 2027-01-15T08:00:00Z, or so long ago: 90s, 15m, 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<String>,
    /// Before then, likewise
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<String>,
    /// Behind this record of each chain
    #[arg(long, value_name = "SEQ")]
    after_seq: Option<u64>,
    /// ringfence's own steps as well
    #[arg(long)]
    own_steps: bool,
}

/// How keys are shown.
#[derive(Debug, clap::Args)]
pub(super) struct Naming {
    /// Show an API server's keys as resource, namespace and name; its prefix is /registry, or the one given
    #[arg(
        long,
        value_name = "PREFIX",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "/registry"
    )]
    kubernetes: Option<String>,
}

impl Naming {
    pub(super) fn name(&self, mut call: Call) -> Call {
        if let Some(prefix) = &self.kubernetes {
            call.name_objects(prefix);
        }
        call
    }
}

impl Which {
    /// # Errors
    /// When the hash key cannot be read, or no call could ever fit.
    pub(super) fn question(&self) -> Result<Question, String> {
        if let (Some(since), Some(until)) = (&self.since, &self.until)
            && since >= until
        {
            return Err(format!(
                "error: `--since` is {since}, and `--until` is not after it: {until}\n  hint: a span such as 2h \
                 counts back from now, so --since has the longer one"
            ));
        }
        let hash = self.hashes.read()?;
        let key = self.key.clone().map(|key| AskedKey::new(key.into_bytes(), hash.as_ref()));
        Ok(Question {
            principal: self.principal.clone(),
            key,
            prefix: self.prefix.clone().map(String::into_bytes),
            verb: self.verb.clone(),
            verdict: self.verdict.clone(),
            rpc: self.rpc.clone(),
            source: self.source,
            since: self.since.clone(),
            until: self.until.clone(),
            after_seq: self.after_seq,
            own_steps: self.own_steps,
        })
    }
}

/// What tells hashed keys.
#[derive(Debug, clap::Args)]
pub(super) struct HashKey {
    /// The file of `audit.hash_key`, where keys are hashed
    #[arg(long, value_name = "FILE", requires = "key")]
    hash_key: Option<PathBuf>,
}

impl HashKey {
    pub(super) fn read(&self) -> Result<Option<KeyedHash>, String> {
        self.hash_key.as_deref().map(read_hash_key).transpose()
    }
}

/// Reads a hash key; what is wrong otherwise, and how to mend it.
pub(super) fn read_hash_key(path: &Path) -> Result<KeyedHash, String> {
    let hint = "the file of `audit.hash_key`; `ringfence audit keygen --hash FILE` makes a new one, which tells \
        nothing of records that another has hashed";
    let text = crate::config::read_text(path).map_err(|error| error.what);
    let hash = text.and_then(|text| {
        KeyedHash::from_text(&text).map_err(|error| format!("`{}` {error}", path.display()))
    });
    hash.map_err(|what| format!("error: {what}\n  hint: {hint}"))
}

/// Which calls fit, and how many of them are in doubt.
pub(super) struct Asked {
    question: Question,
    unnamed: Cell<u64>,
    perhaps: Cell<u64>,
}

impl Asked {
    pub(super) fn new(question: Question) -> Self {
        Self { question, unnamed: Cell::new(0), perhaps: Cell::new(0) }
    }

    /// Counts, so it is to be asked once of each call.
    pub(super) fn takes(&self, call: &Call) -> bool {
        let count = |counter: &Cell<u64>| counter.set(counter.get().saturating_add(1));
        match self.question.fits(call) {
            Fits::No => return false,
            Fits::Unnamed => {
                count(&self.unnamed);
                return false;
            }
            Fits::Perhaps => count(&self.perhaps),
            Fits::Yes => {}
        }
        true
    }

    /// A call that was taken, marked when it is in doubt.
    pub(super) fn mark(&self, mut call: Call) -> Call {
        call.perhaps = self.question.fits(&call) == Fits::Perhaps;
        call
    }

    /// Whether the answer leaves something open.
    pub(super) fn is_doubtful(&self) -> bool {
        self.unnamed.get() + self.perhaps.get() > 0
    }

    /// What the answer does not tell.
    pub(super) fn complain(&self) {
        complain_unnamed(self.unnamed.get());
        let perhaps = self.perhaps.get();
        if perhaps > 0 {
            complain(&format!(
                "note: {perhaps} of them only perhaps touch it; --hash-key FILE tells hashed keys"
            ));
        }
    }
}

/// Says that nothing was found, which an empty answer may also mean otherwise.
pub(super) fn complain_none(found: u64) {
    if found == 0 {
        complain("note: no call fits");
    }
}

/// Says that a question about keys left some calls out.
pub(super) fn complain_unnamed(unnamed: u64) {
    if unnamed > 0 {
        complain(&format!(
            "note: {unnamed} calls were recorded without all their keys (`audit.level`); whether they touch it is not told"
        ));
    }
}

/// The files, or every reason why there are none.
pub(super) fn files(paths: &[PathBuf]) -> Result<Vec<Segment>, Vec<String>> {
    let segments = find(paths).map_err(|faults| {
        faults.iter().map(|fault| format!("error: {fault}")).collect::<Vec<String>>()
    })?;
    if segments.is_empty() {
        let places: Vec<String> =
            paths.iter().map(|path| format!("`{}`", path.display())).collect();
        return Err(vec![format!(
            "error: no file of an audit log (audit-CHAIN-NUMBER.jsonl) in {}\n  hint: the folder of `audit.directory`",
            places.join(", ")
        )]);
    }
    Ok(segments)
}

/// A verb as records have it.
fn verb(text: &str) -> Result<String, String> {
    let known: Vec<&str> = touch_verbs().collect();
    if known.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(format!("one of {}", known.join(", ")))
    }
}

fn address(text: &str) -> Result<IpAddr, String> {
    let address = crate::evidence::question::address(text);
    address.ok_or_else(|| {
        "no IP address, such as 10.0.0.7 or fd00::7; the port is left out".to_owned()
    })
}

/// A time as records show it, so that times compare as texts.
fn time(text: &str) -> Result<String, String> {
    let moment = match ago(text) {
        Some(ago) => OffsetDateTime::UNIX_EPOCH + clock::since_epoch().saturating_sub(ago),
        None => OffsetDateTime::parse(text, &Rfc3339)
            .map_err(|_| "neither a time such as 2027-01-15T08:00:00Z nor a span such as 2h")?,
    };
    let moment = moment.to_offset(UtcOffset::UTC);
    let second = moment.replace_nanosecond(0).map_err(|error| error.to_string())?;
    let second = second.format(&Rfc3339).map_err(|error| error.to_string())?;
    Ok(format!("{}.{:06}Z", second.trim_end_matches('Z'), moment.microsecond()))
}

fn ago(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(seconds).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_as_records_show_it() {
        assert_eq!(time("2027-01-15T08:00:00Z").unwrap(), "2027-01-15T08:00:00.000000Z");
        assert_eq!(time("2027-01-15T09:00:00.5+01:00").unwrap(), "2027-01-15T08:00:00.500000Z");
        assert!(time("2h").unwrap() < time("1h").unwrap());
        for odd in ["", "h", "2w", "tomorrow", "2027-01-15", "-1h", "99999999999999999999h"] {
            assert!(time(odd).is_err(), "{odd}");
        }
    }
}
