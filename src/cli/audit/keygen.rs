//! `ringfence audit keygen`

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::{complain, say};
use crate::pki;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The private key; the public one of a seal gets `.pub` behind it. A file that is there is never replaced.
    /// Not in the folder of the log: whoever can change the log must not find the key.
    file: PathBuf,
    /// A key for keyed hashes instead: one file, for `audit.hash_key` and for auditors
    #[arg(long)]
    hash: bool,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    if arguments.hash {
        return match pki::make_hash_key(&arguments.file) {
            Ok(file) => {
                let file = file.display();
                say(&format!(
                    "{file}: for `audit.hash_key`, `audit hash`, and nobody else: who has it can try keys and values out"
                ));
                ExitCode::SUCCESS
            }
            Err(error) => {
                complain(&format!("error: {error}"));
                ExitCode::FAILURE
            }
        };
    }
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
