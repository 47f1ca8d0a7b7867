//! `ringfence audit query`

use std::process::ExitCode;

use super::question::{Asked, Naming, Which, files};
use super::show::{Form, Printer};
use super::{COULD_NOT, complain_unread};
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
    let mut printer = Printer::new(&arguments.form);
    // A reader that went away is no reason to fail.
    let mut tell = |call: Call| drop(printer.print(&arguments.naming.name(question.mark(call))));
    let unread = read(&segments, &|call| question.takes(call), &mut tell);
    drop(printer.flush());
    question.complain();
    if complain_unread(&unread) {
        ExitCode::from(COULD_NOT)
    } else if printer.printed == 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
