//! `ringfence cert`: certificates made.

mod make;

use std::process::ExitCode;

use clap::Subcommand;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the authorities and certificates of a recipe; files that are there are never replaced
    Make(make::Arguments),
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match &arguments.command {
        Command::Make(arguments) => make::run(arguments),
    }
}
