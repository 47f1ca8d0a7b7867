//! `ringfence audit query`

use std::io::{BufWriter, Write as _};
use std::process::ExitCode;

use super::question::{Asked, Naming, Which, files};
use super::show::{csv_head, csv_line, table_head, table_line};
use super::{COULD_NOT, complain_unread};
use crate::cli::complain;
use crate::evidence::calls::{Call, read};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    naming: Naming,
    /// One JSON object for each call
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Comma-separated, with a first line of names
    #[arg(long)]
    csv: bool,
}

/// Exit code 0 when there was a call, 1 when there was none, 2 when it could not be told.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let segments = match files(&arguments.which.paths) {
        Ok(segments) => segments,
        Err(faults) => {
            faults.iter().for_each(|fault| complain(fault));
            return ExitCode::from(COULD_NOT);
        }
    };
    let question = match arguments.which.question() {
        Ok(question) => Asked::new(question),
        Err(error) => {
            complain(&error);
            return ExitCode::from(COULD_NOT);
        }
    };
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut found = 0_u64;
    // A reader that went away is no reason to fail.
    let mut tell = |call: Call| {
        let call = arguments.naming.name(question.mark(call));
        let head = found == 0;
        found += 1;
        if arguments.json {
            if let Ok(line) = serde_json::to_string(&call) {
                drop(writeln!(out, "{line}"));
            }
        } else if arguments.csv {
            if head {
                drop(writeln!(out, "{}", csv_head()));
            }
            drop(writeln!(out, "{}", csv_line(&call)));
        } else {
            if head {
                drop(writeln!(out, "{}", table_head()));
            }
            drop(writeln!(out, "{}", table_line(&call)));
        }
    };
    let unread = read(&segments, &|call| question.takes(call), &mut tell);
    drop(out.flush());
    question.complain();
    if complain_unread(&unread) {
        ExitCode::from(COULD_NOT)
    } else if found == 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
