//! `ringfence audit top`

use std::collections::HashMap;
use std::process::ExitCode;

use super::progress::Progress;
use super::question::{Asked, Naming, Which, complain_none, files};
use super::show::table_line;
use super::{COULD_NOT, complain_reading};
use crate::cli::{complain, say};
use crate::evidence::calls::{Call, read};
use crate::evidence::record::printable;

/// Names that are told apart in each table; beyond, they are counted together.
const NAMES_MAX: usize = 200_000;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    naming: Naming,
    /// Lines of each table
    #[arg(short = 'n', long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    lines: u16,
}

#[derive(Default)]
struct Counted {
    by_name: HashMap<String, u64>,
    others: u64,
}

impl Counted {
    fn count(&mut self, name: &str) {
        if let Some(count) = self.by_name.get_mut(name) {
            *count += 1;
        } else if self.by_name.len() < NAMES_MAX {
            self.by_name.insert(name.to_owned(), 1);
        } else {
            self.others += 1;
        }
    }

    fn tell(self, title: &str, lines: usize) {
        let mut counts: Vec<(String, u64)> = self.by_name.into_iter().collect();
        counts.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
        say(&format!("{title}:"));
        for (name, count) in counts.iter().take(lines) {
            say(&format!("{count:>10}  {}", printable(name)));
        }
        let rest: u64 = counts.iter().skip(lines).map(|(_, count)| count).sum();
        if rest + self.others > 0 {
            say(&format!("{:>10}  (all others)", rest + self.others));
        }
        say("");
    }
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
    let lines = usize::from(arguments.lines);
    let [mut principals, mut touched, mut denials] = std::array::from_fn(|_| Counted::default());
    let mut slowest: Vec<(u64, Call)> = Vec::new();
    let mut tell = |mut call: Call| {
        call.leave_out_values();
        let call = arguments.naming.name(question.mark(call));
        let principal = call.principal.as_deref().unwrap_or("(nobody)");
        principals.count(principal);
        call.touches.iter().for_each(|touch| touched.count(touch));
        if call.verdict != "allow" {
            denials.count(&format!("{principal}: {}", call.result()));
        }
        let latency = call.outcome.as_ref().and_then(|outcome| outcome.latency_us);
        if let Some(latency) = latency {
            let position = slowest.partition_point(|(known, _)| *known >= latency);
            if position < lines {
                slowest.insert(position, (latency, call));
                slowest.truncate(lines);
            }
        }
    };
    let takes = |call: &Call| question.takes(call);
    let reading = read(&segments, &takes, &mut tell, &|bytes| progress.add(bytes));
    progress.end();
    let found = !principals.by_name.is_empty();
    principals.tell("calls by principal", lines);
    touched.tell("touches", lines);
    denials.tell("denied and refused", lines);
    say("slowest, in microseconds (of a lock or a stream: how long it stood):");
    for (latency, call) in &slowest {
        say(&format!("{latency:>10}  {}", table_line(call)));
    }
    question.complain();
    complain_none(u64::from(found));
    if complain_reading(&reading) {
        ExitCode::from(COULD_NOT)
    } else if found {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
