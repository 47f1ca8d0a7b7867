//! `ringfence audit verify`

use std::path::PathBuf;
use std::process::ExitCode;

use super::COULD_NOT;
use super::progress::Progress;
use super::question::files;
use crate::cli::{complain, say};
use crate::evidence::verify::{Knowledge, PublicKey, Report, Witness, verify};

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

/// Exit code 0 when nothing is wrong, 1 when something is, 2 when nothing could be checked.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let key = arguments.key.as_deref().map(PublicKey::read).transpose();
    let key = key.map_err(|error| {
        vec![format!("error: {error}\n  hint: the `.pub` file that `ringfence audit keygen` made")]
    });
    let witness = arguments.witness.as_deref().map(Witness::read).transpose();
    let witness = witness.map_err(|error| {
        vec![format!(
            "error: {error}\n  hint: the file of `audit.checkpoint.witness`, or a copy of it"
        )]
    });
    let (key, witness, segments) = match (key, witness, files(&arguments.paths)) {
        (Ok(key), Ok(witness), Ok(segments)) => (key, witness, segments),
        (key, witness, segments) => {
            let faults = [key.err(), witness.err(), segments.err()].into_iter().flatten();
            faults.flatten().for_each(|fault| complain(&fault));
            return ExitCode::from(COULD_NOT);
        }
    };
    let knowledge = Knowledge { key, witness };
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
    if report.notes_left_out > 0 {
        complain(&format!("note: and {} more about single records", report.notes_left_out));
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
