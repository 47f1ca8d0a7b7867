//! `ringfence can-i`: the decision that `serve` would make, without a server.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::client::{self, Client};
use super::{complain, complain_all, say};
use crate::clock;
use crate::config::{self, Config};
use crate::etcd::{KeyRange, KeyVerb, StoreVerb, StoredKey, Touch};
use crate::policy::{Cause, Identification, decide_touch};
use crate::tls::material;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The config file
    #[arg(long, value_name = "FILE", default_value = "ringfence.toml")]
    config: PathBuf,
    /// The client's certificate, with its chain, in PEM
    #[arg(long, value_name = "FILE")]
    certificate: PathBuf,
    /// get, list, watch, put, delete, or a verb of the whole store such as compact
    verb: String,
    /// The key, for the first five; '' with --prefix is every key
    key: Option<String>,
    /// The end of the range: the first key that is no longer in it
    #[arg(conflicts_with = "prefix")]
    range_end: Option<String>,
    /// Every key that begins with KEY
    #[arg(long)]
    prefix: bool,
}

/// Why there is no yes.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// `serve` would refuse whoever shows the certificate.
    No(String),
    /// It cannot be said.
    Unknown(String),
}

/// Exit code 0 for yes, 1 for no, 2 when it cannot be said.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let config = match config::load(&arguments.config, clock::since_epoch()) {
        Ok(config) => config,
        Err(problems) => {
            complain_all(&problems);
            return ExitCode::from(2);
        }
    };
    let asked = touch(arguments)
        .map_err(Refusal::Unknown)
        .and_then(|touch| Ok((identify(&config, &arguments.certificate)?, touch)));
    match asked {
        Ok((identification, touch)) => answer(&config, &identification, &touch),
        Err(Refusal::No(why)) => {
            say(&client::printable_lines(&format!("no: {why}")));
            ExitCode::FAILURE
        }
        Err(Refusal::Unknown(error)) => {
            complain(&client::printable_lines(&format!("error: {error}")));
            ExitCode::from(2)
        }
    }
}

/// What etcd's clients would ask for. A question that no request can ask is an error: its answer would
/// be about something else than what `serve` decides.
fn touch(arguments: &Arguments) -> Result<Touch, String> {
    let verb = arguments.verb.as_str();
    let wide = arguments.prefix || arguments.range_end.is_some();
    if let Some(verb) = StoreVerb::from_name(verb) {
        if arguments.key.is_some() || wide {
            return Err(format!("`{verb}` is about the whole store and takes no key, no --prefix"));
        }
        return Ok(Touch::Store(verb));
    }
    let verb = KeyVerb::from_name(verb).ok_or_else(|| unknown_verb(verb))?;
    let key = arguments.key.as_deref().ok_or_else(|| format!("`{verb}` needs a key"))?;
    match verb {
        KeyVerb::Get if wide => return Err("a range needs `list`; `get` is one key".to_owned()),
        KeyVerb::Put if wide => return Err("`put` is one key, not a range".to_owned()),
        KeyVerb::List if !wide => {
            return Err("`list` is a range: add its end, or --prefix; one key needs `get`".into());
        }
        KeyVerb::Get | KeyVerb::List | KeyVerb::Watch | KeyVerb::Put | KeyVerb::Delete => {}
    }
    if key.is_empty() && !arguments.prefix {
        return Err("etcd has no empty key; '' with --prefix is every key".to_owned());
    }
    let range = match &arguments.range_end {
        _ if arguments.prefix => KeyRange::prefix(key.as_bytes()),
        Some(end) => KeyRange::between(key.as_bytes(), Some(end.as_bytes()))
            .ok_or_else(|| format!("the range end `{end}` is not after the key `{key}`"))?,
        None => KeyRange::point(StoredKey::new(key.to_owned())),
    };
    Ok(Touch::Key { verb, range })
}

fn unknown_verb(name: &str) -> String {
    let keys: Vec<&str> = KeyVerb::ALL.iter().map(|verb| verb.name()).collect();
    let store: Vec<&str> = StoreVerb::ALL.iter().map(|verb| verb.name()).collect();
    let (keys, store) = (keys.join(", "), store.join(", "));
    format!("`{name}` is no verb\n  hint: on keys: {keys}; on the store: {store}")
}

fn identify(config: &Config, path: &Path) -> Result<Identification, Refusal> {
    let nobody = |why: String| Refusal::No(format!("`{}`: {why}", path.display()));
    match client::judge(config, path, clock::since_epoch()).map_err(Refusal::Unknown)? {
        Client::Refused { error, .. } => {
            let why = material::in_plain_words(&error);
            Err(Refusal::No(format!("`{}` is refused at the handshake: {why}", path.display())))
        }
        Client::Unreadable(error) => Err(nobody(error.to_string())),
        Client::Verified { identified, .. } => {
            let hint = "hint: `ringfence cert whoami` says why, for each identity";
            identified.map_err(|error| nobody(format!("{error}\n  {hint}")))
        }
    }
}

fn answer(config: &Config, identification: &Identification, touch: &Touch) -> ExitCode {
    let principal = &identification.principal;
    match decide_touch(&identification.rights, touch) {
        Ok(rule) => {
            say(&format!("yes: {principal}, by {}", config.policy.rule_name(rule)));
            ExitCode::SUCCESS
        }
        Err(cause) => {
            let why = match cause {
                Cause::NoRule => "no rule allows all of it".to_owned(),
                Cause::DenyRule(rule) => format!("denied by {}", config.policy.rule_name(rule)),
                Cause::ForeignLease | Cause::TooMany => "it depends on the lease".to_owned(),
            };
            say(&format!("no: {principal}, {why}"));
            ExitCode::FAILURE
        }
    }
}
