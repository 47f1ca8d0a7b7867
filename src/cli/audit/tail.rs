//! `ringfence audit tail`

use std::collections::VecDeque;
use std::process::ExitCode;
use std::time::Duration;

use super::question::{Asked, Naming, Which, complain_none, files};
use super::show::{Form, Printer};
use super::{COULD_NOT, complain_unread};
use crate::cli::complain;
use crate::evidence::FindError;
use crate::evidence::calls::{Call, Unread};
use crate::evidence::follow::Follow;

/// How often the files are looked at.
const TURN: Duration = Duration::from_millis(500);
/// The most calls that are held to find the last ones.
const LINES_MAX: i64 = 100_000;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    naming: Naming,
    #[command(flatten)]
    form: Form,
    /// How many calls at first, the last that fit
    #[arg(short = 'n', long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=LINES_MAX))]
    lines: u32,
    /// Go on with the calls that come, as they end, across rotation and restarts, until interrupted; one that stays open
    /// is shown within a second, and again at its end
    #[arg(short, long)]
    follow: bool,
}

/// What stands before the first turn that waits.
struct Start {
    follow: Follow,
    question: Asked,
    last: VecDeque<Call>,
    unread: Vec<Unread>,
}

/// Exit code 0 when there was a call, 1 when there was none, 2 when it could not be told.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let start = match start(arguments) {
        Ok(start) => start,
        Err(faults) => {
            faults.iter().for_each(|fault| complain(fault));
            return ExitCode::from(COULD_NOT);
        }
    };
    let Start { follow, question, last, unread } = start;
    let is_unread = complain_unread(&unread);
    let mut printer = Printer::new(&arguments.form);
    for call in last {
        drop(printer.print(&arguments.naming.name(question.mark(call))));
    }
    drop(printer.flush());
    question.complain();
    if arguments.follow {
        return go_on(follow, &question, arguments, printer);
    }
    complain_none(printer.printed);
    match (is_unread, printer.printed) {
        (true, _) => ExitCode::from(COULD_NOT),
        (false, 0) => ExitCode::FAILURE,
        (false, _) => ExitCode::SUCCESS,
    }
}

/// Reads the last file of each chain, more of them until there are enough calls that fit.
fn start(arguments: &Arguments) -> Result<Start, Vec<String>> {
    let paths = &arguments.which.paths;
    let all = files(paths)?.len();
    let mut count = 1;
    loop {
        let question = Asked::new(arguments.which.question().map_err(|error| vec![error])?);
        let mut follow = Follow::from_last(paths, count).map_err(shown)?;
        let mut last = VecDeque::new();
        let mut tell = |call| keep(&mut last, call, arguments.lines);
        let unread = follow.turn(&|call| question.takes(call), &mut tell).map_err(shown)?;
        follow.tell_all_open(&mut tell);
        let is_enough = last.len() >= arguments.lines as usize;
        // One chain alone may have enough, and another newer ones in a file before its last.
        let reaches = |first: &Call| follow.reaches_back_to(&first.time);
        if is_enough && last.front().is_none_or(reaches) || count >= all {
            return Ok(Start { follow, question, last, unread });
        }
        count = count.saturating_mul(2);
    }
}

/// In the order of time, over all chains.
fn keep(last: &mut VecDeque<Call>, call: Call, lines: u32) {
    let behind = last.partition_point(|known| known.time <= call.time);
    last.insert(behind, call);
    if last.len() > lines as usize {
        last.pop_front();
    }
}

/// Until nobody reads any more; the terminal's interrupt ends it, too.
fn go_on(
    mut follow: Follow,
    question: &Asked,
    arguments: &Arguments,
    mut printer: Printer<'_>,
) -> ExitCode {
    let mut was_told = Vec::new();
    let mut was_doubtful = question.is_doubtful();
    loop {
        std::thread::sleep(TURN);
        let mut written = Ok(());
        let mut tell = |call: Call| {
            if written.is_ok() {
                written = printer.print(&arguments.naming.name(question.mark(call)));
            }
        };
        // A folder that cannot be read may be there again at the next turn; it is told once.
        match follow.turn(&|call| question.takes(call), &mut tell) {
            Ok(unread) => {
                complain_unread(&unread);
                was_told.clear();
            }
            Err(faults) => {
                let faults = shown(faults);
                if faults != was_told {
                    faults.iter().for_each(|fault| complain(fault));
                }
                was_told = faults;
            }
        }
        if question.is_doubtful() && !std::mem::replace(&mut was_doubtful, true) {
            question.complain();
        }
        if written.and_then(|()| printer.flush()).is_err() {
            return ExitCode::SUCCESS;
        }
    }
}

fn shown(faults: Vec<FindError>) -> Vec<String> {
    faults.iter().map(|fault| format!("error: {fault}")).collect()
}
