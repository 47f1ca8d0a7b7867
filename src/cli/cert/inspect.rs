//! `ringfence cert inspect`

use std::path::PathBuf;
use std::process::ExitCode;

use super::{Output, now_seconds, say_json};
use crate::cli::{complain, say};
use crate::evidence::record::printable;
use crate::pki::describe::{Certificate, Item, Key, RevocationList, What, describe};

/// Names of one kind, and entries of a revocation list, that the text shows; JSON has all.
const SHOWN_MAX: usize = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// PEM files
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// For people, or for programs
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Exit code 0 when everything could be read.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let now = now_seconds();
    let (mut items, mut faults) = (Vec::new(), Vec::new());
    for file in &arguments.files {
        match describe(file, now) {
            Ok((found, unread)) => {
                items.extend(found);
                faults.extend(unread);
            }
            Err(fault) => faults.push(fault),
        }
    }
    match arguments.output {
        Output::Json => say_json(&items),
        Output::Text => items.iter().for_each(|item| say(&text(item, now))),
    }
    for fault in &faults {
        complain(&format!("error: {}", printable_lines(&fault.to_string())));
    }
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The hint is a line of its own.
fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

fn text(item: &Item, now: i64) -> String {
    let place = format!("{}:{}", printable(&item.file), item.line);
    let (title, rows) = match &item.what {
        What::Certificate(certificate) => {
            ("certificate".to_owned(), certificate_rows(certificate, now))
        }
        What::RevocationList(list) => ("revocation list".to_owned(), list_rows(list, now)),
        What::PrivateKey { form, public } => {
            let rows = public.as_ref().map_or_else(Vec::new, key_rows);
            (format!("private key, {form}: whoever reads it is its owner"), rows)
        }
        What::PublicKey { public } => ("public key".to_owned(), key_rows(public)),
        What::Other { label } if label.contains("ENCRYPTED") => {
            (format!("{}: ringfence asks for no passphrase", printable(label)), Vec::new())
        }
        What::Other { label } => {
            (format!("{}: ringfence has no use for it", printable(label)), Vec::new())
        }
    };
    let rows = rows.iter().map(|(name, value)| format!("\n  {name:<14} {}", printable(value)));
    format!("{place}: {title}{}", rows.collect::<String>())
}

fn certificate_rows(certificate: &Certificate, now: i64) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        ("subject", certificate.subject.clone()),
        ("issuer", certificate.issuer.clone()),
        ("serial", certificate.serial.clone()),
    ];
    let ips: Vec<String> = certificate.ip.iter().map(ToString::to_string).collect();
    for (kind, names) in [
        ("DNS names", &certificate.dns),
        ("IP addresses", &ips),
        ("URIs", &certificate.uri),
        ("e-mail", &certificate.email),
    ] {
        if !names.is_empty() {
            rows.push((kind, listed(names)));
        }
    }
    if certificate.other_names > 0 {
        rows.push(("other names", certificate.other_names.to_string()));
    }
    rows.extend(key_rows(&certificate.key));
    rows.push(("sha256", certificate.sha256.clone()));
    let any = "any: there is no such extension";
    let usage = certificate.key_usage.as_ref();
    rows.push(("key usage", usage.map_or_else(|| any.to_owned(), |names| names.join(", "))));
    let usage = certificate.extended_key_usage.as_ref();
    rows.push(("extended", usage.map_or_else(|| any.to_owned(), |names| listed(names))));
    rows.push(("CA", if certificate.ca { "yes" } else { "no" }.to_owned()));
    rows.push(("not before", certificate.dates.not_before.clone()));
    rows.push(("not after", certificate.dates.not_after.clone().unwrap_or_default()));
    rows.push(("state", certificate.dates.in_words(now)));
    rows
}

fn key_rows(key: &Key) -> Vec<(&'static str, String)> {
    let size = match key.size_bits {
        0 => String::new(),
        bits => format!(", {bits} bits"),
    };
    vec![("key", format!("{}{size}", key.algorithm)), ("spki sha256", key.spki_sha256.clone())]
}

fn list_rows(list: &RevocationList, now: i64) -> Vec<(&'static str, String)> {
    let none = || "none".to_owned();
    let mut rows = vec![
        ("issuer", list.issuer.clone()),
        ("number", list.number.clone().unwrap_or_else(none)),
        ("this update", list.dates.not_before.clone()),
        ("next update", list.dates.not_after.clone().unwrap_or_else(none)),
        ("state", list.dates.in_words(now)),
        ("revoked", list.revoked.len().to_string()),
    ];
    for revoked in list.revoked.iter().take(SHOWN_MAX) {
        let reason = revoked.reason.as_deref().unwrap_or("no reason given");
        rows.push(("", format!("{} since {}, {reason}", revoked.serial, revoked.since)));
    }
    if let Some(more) = list.revoked.len().checked_sub(SHOWN_MAX).filter(|more| *more > 0) {
        rows.push(("", format!("and {more} more: --output json has all")));
    }
    rows
}

fn listed(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN_MAX).cloned().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(SHOWN_MAX) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more: --output json has all"),
    }
}
