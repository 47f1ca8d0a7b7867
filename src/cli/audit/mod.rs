//! `ringfence audit`: the keys that seal and hash, what a log proves, and what it says.

mod blame;
mod hash;
mod keygen;
mod progress;
mod query;
mod question;
mod show;
mod tail;
mod top;
mod verify;

use std::process::ExitCode;

use clap::Subcommand;

use super::complain;
use crate::evidence::calls::{Reading, Unread};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key that seals an audit log (FILE for ringfence, FILE.pub for auditors), or one that hashes
    Keygen(keygen::Arguments),
    /// The keyed hash of a key or a value, to compare with a record
    Hash(hash::Arguments),
    /// Check that an audit log is whole and unchanged: exit code 0 for yes, 1 for no, 2 for cannot tell
    Verify(verify::Arguments),
    /// Which calls there were, and what became of them
    Query(query::Arguments),
    /// The last calls, and with -f those that come
    Tail(tail::Arguments),
    /// Who last wrote or deleted a key
    Blame(blame::Arguments),
    /// The busiest principals and keys, denials, the slowest calls
    Top(top::Arguments),
}

/// Exit code of what cannot be told.
const COULD_NOT: u8 = 2;
/// Lines that cannot be read and are named.
const UNREAD_SHOWN: usize = 20;

/// Names what could not be read; true when there was anything.
/// Says what is to be said of an answer; whether something could not be read.
fn complain_reading(reading: &Reading) -> bool {
    if reading.leaves_out {
        complain(
            "note: rules of `audit.level` left requests out of these logs (`levels` in a first record): \
             of those there is no record",
        );
    }
    complain_unread(&reading.unread)
}

fn complain_unread(unread: &[Unread]) -> bool {
    for Unread { path, offset, why } in unread.iter().take(UNREAD_SHOWN) {
        complain(&format!("error: {}: byte {offset}: {why}", path.display()));
    }
    if let Some(more) = unread.len().checked_sub(UNREAD_SHOWN + 1) {
        complain(&format!("error: and {} more", more + 1));
    }
    !unread.is_empty()
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match &arguments.command {
        Command::Keygen(arguments) => keygen::run(arguments),
        Command::Hash(arguments) => hash::run(arguments),
        Command::Verify(arguments) => verify::run(arguments),
        Command::Query(arguments) => query::run(arguments),
        Command::Tail(arguments) => tail::run(arguments),
        Command::Blame(arguments) => blame::run(arguments),
        Command::Top(arguments) => top::run(arguments),
    }
}
