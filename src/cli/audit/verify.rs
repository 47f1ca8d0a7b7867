//! `ringfence audit verify`

use std::path::PathBuf;
use std::process::ExitCode;

use super::progress::Progress;
use super::question::files;
use crate::cli::{complain, say};
use crate::evidence::verify::{Knowledge, PublicKey, Report, verify};

/// Cannot be told.
const UNKNOWN: u8 = 2;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Folders or files of audit logs, of any number of processes
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// The public key that `ringfence audit keygen` made; without it nobody vouches for the first record
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The file of `audit.checkpoint.witness`; it shows what was cut off
    #[arg(long, value_name = "FILE")]
    witness: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let key = match arguments.key.as_deref().map(PublicKey::read).transpose() {
        Ok(key) => key,
        Err(error) => {
            complain(&format!("error: {error}"));
            return ExitCode::from(UNKNOWN);
        }
    };
    let segments = match files(&arguments.paths) {
        Ok(segments) => segments,
        Err(faults) => {
            faults.iter().for_each(|fault| complain(fault));
            return ExitCode::from(UNKNOWN);
        }
    };
    let knowledge = Knowledge { key, witness: arguments.witness.clone() };
    let progress = Progress::new(&segments);
    let report = verify(&segments, &knowledge, &|bytes| progress.add(bytes));
    progress.end();
    tell(&report)
}

fn tell(report: &Report) -> ExitCode {
    for fault in &report.faults {
        complain(&format!("fault: {fault}"));
    }
    for note in &report.notes {
        complain(&format!("note: {note}"));
    }
    let Report { records, chains, sealed, bytes, .. } = report;
    let sealed_text = format!("{sealed} of them sealed");
    let followed = format!("{records} records in {chains} chains, {bytes} bytes, {sealed_text}");
    if report.faults.is_empty() {
        say(&format!("whole and in order: {followed}"));
        ExitCode::SUCCESS
    } else {
        say(&format!(
            "NOT as it was written: {} faults; followed: {followed}",
            report.faults.len()
        ));
        ExitCode::FAILURE
    }
}
