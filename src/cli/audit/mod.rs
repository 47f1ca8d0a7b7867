//! `ringfence audit`: the key that seals the log, and what a log proves.

mod keygen;
mod verify;

use std::process::ExitCode;

use clap::Subcommand;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key that seals an audit log: FILE for ringfence, FILE.pub for auditors
    Keygen(keygen::Arguments),
    /// Check that an audit log is whole and unchanged: exit code 0 for yes, 1 for no, 2 for cannot tell
    Verify(verify::Arguments),
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match &arguments.command {
        Command::Keygen(arguments) => keygen::run(arguments),
        Command::Verify(arguments) => verify::run(arguments),
    }
}
