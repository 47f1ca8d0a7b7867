//! `ringfence cert renew`

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::client::printable_lines;
use crate::cli::{complain, say};
use crate::evidence::record::printable;
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
    /// Renew what the authority's list revokes, too
    #[arg(long)]
    even_though_revoked: bool,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let Arguments { folder, name, days, even_though_revoked } = arguments;
    let now = clock::since_epoch();
    let renewed = match pki::renew(folder, name, *days, *even_though_revoked, now) {
        Ok(renewed) => renewed,
        Err(fault) => {
            complain(&printable_lines(&format!("error: {fault}")));
            return ExitCode::FAILURE;
        }
    };
    for file in &renewed.files {
        say(&printable(&file.display().to_string()));
    }
    for file in &renewed.kept {
        say(&printable(&format!("{}: the old one", file.display())));
    }
    if let Some(file) = &renewed.further_key {
        let said = format!("{}: the key that was there, not the old certificate's", file.display());
        say(&printable(&said));
    }
    let until = rfc3339(renewed.not_after_seconds);
    say(&printable(&format!(
        "serial {}, signed by `{}`, valid until {until}",
        renewed.serial, renewed.authority
    )));
    if renewed.is_cut {
        complain(&printable(&format!(
            "note: the authority `{}` ends then, so the certificate does, too",
            renewed.authority
        )));
    }
    complain(&printable(&format!(
        "note: the old certificate is good until it expires; to end it: ringfence cert revoke {} --serial {}",
        folder.display(),
        renewed.old_serial
    )));
    ExitCode::SUCCESS
}
