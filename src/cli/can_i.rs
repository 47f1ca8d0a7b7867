//! `ringfence can-i`: the decision that `serve` would make, without a server.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::{complain, complain_all, say};
use crate::clock;
use crate::config::{self, Config};
use crate::etcd::{KeyRange, KeyVerb, StoreVerb, StoredKey, Touch};
use crate::identity::CertificateFacts;
use crate::policy::{Cause, Identification, decide_touch};
use crate::tls::verifier::Authorities;

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
    /// The key, for the first five
    key: Option<String>,
    /// The end of the range: the first key that is no longer in it
    #[arg(conflicts_with = "prefix")]
    range_end: Option<String>,
    /// Every key that begins with KEY
    #[arg(long)]
    prefix: bool,
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
    let asked =
        touch(arguments).and_then(|touch| Ok((identify(&config, &arguments.certificate)?, touch)));
    match asked {
        Ok((identification, touch)) => answer(&config, &identification, &touch),
        Err(error) => {
            complain(&format!("error: {error}"));
            ExitCode::from(2)
        }
    }
}

fn touch(arguments: &Arguments) -> Result<Touch, String> {
    let verb = arguments.verb.as_str();
    if let Some(verb) = StoreVerb::from_name(verb) {
        return match arguments.key {
            None => Ok(Touch::Store(verb)),
            Some(_) => Err(format!("`{verb}` is about the whole store and takes no key")),
        };
    }
    let verb = KeyVerb::from_name(verb).ok_or_else(|| format!("`{verb}` is no verb"))?;
    let key = arguments.key.as_deref().filter(|key| !key.is_empty());
    let key = key.ok_or_else(|| format!("`{verb}` needs a key"))?;
    let range = match &arguments.range_end {
        _ if arguments.prefix => KeyRange::prefix(key.as_bytes()),
        Some(end) => KeyRange::between(key.as_bytes(), Some(end.as_bytes()))
            .ok_or_else(|| format!("the range end `{end}` is not after the key `{key}`"))?,
        None => KeyRange::point(StoredKey::new(key.to_owned())),
    };
    Ok(Touch::Key { verb, range })
}

fn identify(config: &Config, path: &Path) -> Result<Identification, String> {
    let file = path.display();
    let pem = std::fs::read(path).map_err(|error| format!("cannot read `{file}`: {error}"))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|error| format!("`{file}` is not PEM: {error}"))?;
    let (leaf, intermediates) =
        chain.split_first().ok_or_else(|| format!("`{file}` holds no certificate"))?;
    let authorities = Authorities::new(&config.authorities).map_err(|error| error.to_string())?;
    let now = UnixTime::since_unix_epoch(clock::since_epoch());
    let authority = authorities
        .verify(leaf, intermediates, now)
        .map_err(|error| format!("`{file}` is refused at the handshake: {error}"))?;
    let facts = CertificateFacts::read(leaf).map_err(|error| format!("`{file}`: {error}"))?;
    config.policy.identify(&authority, &facts).map_err(|error| format!("`{file}`: {error}"))
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
