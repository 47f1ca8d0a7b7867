//! `ringfence cert whoami`

use std::path::PathBuf;
use std::process::ExitCode;

use rustls::pki_types::CertificateDer;
use serde_json::json;

use super::{Output, say_json};
use crate::cli::client::{self, Client};
use crate::cli::{complain, complain_all, say};
use crate::config::Config;
use crate::evidence::record::printable;
use crate::identity::CertificateFacts;
use crate::policy::{ActsAs, Explained, Identification, NoPrincipal};
use crate::tls::acceptor::verdict_reason;
use crate::tls::material;
use crate::{clock, config};

/// Identities that are named.
const IDENTITIES_SHOWN: usize = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The config file
    #[arg(long, value_name = "FILE", default_value = "ringfence.toml")]
    config: PathBuf,
    /// The client's certificate, with its chain, in PEM
    certificate: PathBuf,
    /// For people, or for programs
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What is said, in both forms.
struct Answer {
    is_somebody: bool,
    lines: Vec<String>,
    json: serde_json::Value,
}

/// Exit code 0 when it is somebody, 1 when it is nobody, 2 when it cannot be said.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let now = clock::since_epoch();
    let config = match config::load(&arguments.config, now) {
        Ok(config) => config,
        Err(problems) => {
            complain_all(&problems);
            return ExitCode::from(2);
        }
    };
    let client = match client::judge(&config, &arguments.certificate, now) {
        Ok(client) => client,
        Err(error) => {
            complain(&client::printable_lines(&format!("error: {error}")));
            return ExitCode::from(2);
        }
    };
    let file = arguments.certificate.display().to_string();
    let answer = answer(&config, &file, client);
    match arguments.output {
        Output::Json => say_json(&answer.json),
        Output::Text => answer.lines.iter().for_each(|line| say(&printable(line))),
    }
    if answer.is_somebody { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn answer(config: &Config, file: &str, client: Client) -> Answer {
    match client {
        Client::Refused { error, leaf, causes } => refused(file, &error, &leaf, &causes),
        Client::Unreadable(error) => Answer {
            is_somebody: false,
            lines: vec![format!("{file}: nobody: {error}")],
            json: json!({ "file": file, "result": "nobody", "why": error.to_string() }),
        },
        Client::Verified { authority, facts, identified } => {
            let explained: Vec<Explained<'_>> = config.policy.explain(&authority, &facts).collect();
            match *identified {
                Ok(found) => somebody(file, &authority, &facts, &found, &explained),
                Err(why) => nobody(file, &authority, &facts, &why, explained),
            }
        }
    }
}

fn refused(
    file: &str,
    error: &rustls::Error,
    leaf: &CertificateDer<'_>,
    causes: &[String],
) -> Answer {
    let why = material::in_plain_words(error);
    let reason = verdict_reason(error);
    let subject = CertificateFacts::read(leaf).map(|facts| facts.subject).ok();
    let mut lines = vec![format!("{file}: refused at the handshake: {why}")];
    lines.extend(subject.iter().map(|subject| row("subject", subject)));
    lines.extend(causes.iter().map(|cause| row("revoked by", cause)));
    lines.push(row("recorded as", &format!("{reason}: {error}")));
    let json = json!({
        "file": file, "result": "refused", "subject": subject, "why": why,
        "revoked_by": causes, "reason": reason, "detail": error.to_string(),
    });
    Answer { is_somebody: false, lines, json }
}

fn somebody(
    file: &str,
    authority: &str,
    facts: &CertificateFacts,
    found: &Identification,
    explained: &[Explained<'_>],
) -> Answer {
    let principal = found.principal.to_string();
    let matching = explained.iter().find(|explained| explained.difference.is_none());
    let roles = matching.map(|explained| explained.roles).unwrap_or_default();
    let reaches_etcd_as = match &found.acts_as {
        ActsAs::Ringfence => "ringfence".to_owned(),
        ActsAs::User { user, .. } => format!("etcd's user `{user}`"),
        ActsAs::Certificate(_) => "the identity's own certificate".to_owned(),
        ActsAs::Nobody => "nobody: its calls fail".to_owned(),
    };
    let mut shown = roles.join(", ");
    if !found.rights.grants_anything() {
        let nothing = if shown.is_empty() { "none" } else { &shown };
        shown = format!("{nothing}: no rule allows anything");
    }
    let lines = vec![
        format!("{file}: {principal}"),
        row("subject", &facts.subject),
        row("CA", authority),
        row("identity", found.principal.identity()),
        row("roles", &shown),
        row("to etcd as", &reaches_etcd_as),
    ];
    let json = json!({
        "file": file, "result": "matched", "principal": principal, "subject": facts.subject,
        "ca": authority, "identity": found.principal.identity(), "roles": roles,
        "reaches_etcd_as": reaches_etcd_as,
    });
    Answer { is_somebody: true, lines, json }
}

fn nobody(
    file: &str,
    authority: &str,
    facts: &CertificateFacts,
    why: &NoPrincipal,
    mut explained: Vec<Explained<'_>>,
) -> Answer {
    let of_another = |explained: &Explained<'_>| {
        explained.difference.as_ref().is_some_and(crate::identity::Difference::is_of_the_ca)
    };
    // Those that come closest first.
    explained.sort_by_key(|explained| (explained.difference.is_some(), of_another(explained)));
    let mut lines = vec![
        format!("{file}: nobody: {why}"),
        row("subject", &facts.subject),
        row("CA", authority),
    ];
    let mut identities = Vec::new();
    for Explained { identity, difference, .. } in explained.iter().take(IDENTITIES_SHOWN) {
        let says = difference.as_ref().map_or_else(|| "matches".to_owned(), ToString::to_string);
        lines.push(format!("  identity `{identity}`: {says}"));
        identities
            .push(json!({ "identity": identity, "matches": difference.is_none(), "why": says }));
    }
    let more = explained.len().saturating_sub(IDENTITIES_SHOWN);
    if more > 0 {
        lines.push(format!("  and {more} more identities"));
    }
    let json = json!({
        "file": file, "result": "nobody", "subject": facts.subject, "ca": authority,
        "why": why.to_string(), "identities": identities, "more_identities": more,
    });
    Answer { is_somebody: false, lines, json }
}

fn row(name: &str, value: &str) -> String {
    format!("  {name:<11} {value}")
}
