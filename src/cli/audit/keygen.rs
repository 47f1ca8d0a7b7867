//! `ringfence audit keygen`

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::{complain, say};
use crate::pki;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The private key; the public one gets `.pub` behind it. A file that is there is never replaced.
    /// Not in the folder of the log: whoever can change the log must not find the key.
    file: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match pki::make_signing_key(&arguments.file) {
        Ok([private, public]) => {
            say(&format!("{}: for `audit.checkpoint.key`, and for nobody else", private.display()));
            say(&format!("{}: for `ringfence audit verify --key`", public.display()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}
