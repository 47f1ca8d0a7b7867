//! `ringfence cert`: certificates made, looked at, renewed and revoked.

mod inspect;
mod list;
mod make;
mod renew;
mod revoke;
mod whoami;

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use serde::Serialize;

use super::say;
use crate::clock;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the authorities and certificates of a recipe; files that are there are never replaced
    Make(make::Arguments),
    /// Say what stands in PEM files: certificates, revocation lists, keys
    Inspect(inspect::Arguments),
    /// Say when the certificates and revocation lists of a config expire: exit code 1 when one has
    List(list::Arguments),
    /// Say who a client with this certificate is: exit code 0 for somebody, 1 for nobody
    Whoami(whoami::Arguments),
    /// Make a new certificate and key in the place of a pair; what it says stays the same
    Renew(renew::Arguments),
    /// Put a certificate on the revocation list of its authority
    Revoke(revoke::Arguments),
    /// Sign revocation lists anew, with a fresh date of the next update
    Crl(revoke::ListArguments),
}

/// For whom the answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// One JSON document
    Json,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match &arguments.command {
        Command::Make(arguments) => make::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::List(arguments) => list::run(arguments),
        Command::Whoami(arguments) => whoami::run(arguments),
        Command::Renew(arguments) => renew::run(arguments),
        Command::Revoke(arguments) => revoke::run(arguments),
        Command::Crl(arguments) => revoke::run_list(arguments),
    }
}

fn say_json(document: &impl Serialize) {
    match serde_json::to_string_pretty(document) {
        Ok(text) => say(&escaped(&text)),
        Err(error) => super::complain(&format!("error: {error}")),
    }
}

/// The same JSON in which nothing steers a terminal: such characters stand in texts only, where they can be escaped.
fn escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '\u{7f}'..='\u{9f}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            character => escaped.push(character),
        }
    }
    escaped
}

fn now_seconds() -> i64 {
    i64::try_from(clock::since_epoch().as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The attack: a subject with the one-character form of ESC [, or that turns the text behind it around.
    #[test]
    fn json_cannot_steer_a_terminal_and_says_the_same() {
        let text = "gr\u{fc}n \u{7f}\u{9b}2J\u{200e}\u{200f}\u{202a}\u{202e}\u{2066}\u{2069}";
        let shown = escaped(&serde_json::to_string(text).unwrap());
        assert_eq!(
            shown,
            "\"gr\u{fc}n \\u007f\\u009b2J\\u200e\\u200f\\u202a\\u202e\\u2066\\u2069\""
        );
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
    }
}
