//! `ringfence audit query`

use std::io::IsTerminal as _;
use std::process::ExitCode;

use super::progress::Progress;
use super::question::{Asked, Naming, Which, complain_none, files};
use super::show::{Form, Printer};
use super::{COULD_NOT, complain_reading};
use crate::cli::complain;
use crate::evidence::calls::{Call, read};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    naming: Naming,
    #[command(flatten)]
    form: Form,
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
    let progress = Progress::new(&segments);
    let on_terminal = std::io::stdout().is_terminal();
    let mut printer = Printer::new(&arguments.form);
    let mut tell = |call: Call| {
        if on_terminal {
            progress.end();
        }
        // A reader that went away is no reason to fail.
        drop(printer.print(&arguments.naming.name(question.mark(call))));
    };
    let takes = |call: &Call| question.takes(call);
    let reading = read(&segments, &takes, &mut tell, &|bytes| progress.add(bytes));
    progress.end();
    drop(printer.flush());
    question.complain();
    complain_none(printer.printed);
    if complain_reading(&reading) {
        ExitCode::from(COULD_NOT)
    } else if printer.printed == 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
