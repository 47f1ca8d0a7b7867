//! `ringfence cert renew`

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::{complain, say};
use crate::pki::lifetime::rfc3339;
use crate::{clock, pki};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The folder with NAME.crt and NAME.key, and those of the authority that has signed it
    folder: PathBuf,
    /// The pair's name
    name: String,
    /// Valid for so many days
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let Arguments { folder, name, days } = arguments;
    let renewed = match pki::renew(folder, name, *days, clock::since_epoch()) {
        Ok(renewed) => renewed,
        Err(fault) => {
            complain(&format!("error: {fault}"));
            return ExitCode::FAILURE;
        }
    };
    for file in &renewed.files {
        say(&file.display().to_string());
    }
    for file in &renewed.kept {
        say(&format!("{}: the old one", file.display()));
    }
    let until = rfc3339(renewed.not_after_seconds);
    say(&format!(
        "serial {}, signed by `{}`, valid until {until}",
        renewed.serial, renewed.authority
    ));
    if renewed.is_cut {
        complain(&format!(
            "note: the authority `{}` ends then, so the certificate does, too",
            renewed.authority
        ));
    }
    complain(&format!(
        "note: the old certificate is good until it expires; to end it: ringfence cert revoke {} --serial {}",
        folder.display(),
        renewed.old_serial
    ));
    ExitCode::SUCCESS
}
