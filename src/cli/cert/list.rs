//! `ringfence cert list`

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::{Output, now_seconds, say_json};
use crate::cli::client::printable_lines;
use crate::cli::{complain, complain_all, say};
use crate::config::{CertificateFile, certificate_files};
use crate::document::{Location, Severity};
use crate::evidence::record::printable;
use crate::pki::describe::{Dates, Item, What, describe};
use crate::pki::lifetime::State;

const DAY_SECONDS: i64 = 86_400;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The config file
    #[arg(long, value_name = "FILE", default_value = "ringfence.toml")]
    config: PathBuf,
    /// Only what expires within so many days, or is no good already; exit code 1 when there is any
    #[arg(long, value_name = "N")]
    within_days: Option<u32>,
    /// For people, or for programs
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// One certificate or revocation list.
#[derive(Debug, Serialize)]
struct Row {
    /// The settings that name its file.
    used_for: Vec<String>,
    #[serde(flatten)]
    item: Item,
}

impl Row {
    fn dates(&self) -> Option<&Dates> {
        self.item.what.dates()
    }

    fn ends(&self) -> i64 {
        self.dates().map_or(i64::MAX, |dates| dates.lifetime.until_seconds)
    }

    fn state(&self) -> State {
        self.dates().map_or(State::Valid, |dates| dates.state)
    }

    /// Programs are told of an empty subject by an empty text, not by words for people.
    fn tell_no_subject(&mut self) {
        if let What::Certificate(certificate) = &mut self.item.what
            && certificate.subject == "(empty)"
        {
            certificate.subject.clear();
        }
    }

    fn is_no_good(&self) -> bool {
        matches!(self.state(), State::Expired | State::NotYetValid)
    }

    fn ends_within(&self, days: u32, now: i64) -> bool {
        let until = now.saturating_add(i64::from(days).saturating_mul(DAY_SECONDS));
        self.is_no_good() || self.ends() <= until
    }
}

/// Exit code 0 when all is well, 1 when something has expired, 2 when a file could not be read.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let now = now_seconds();
    let (files, problems) = certificate_files(&arguments.config);
    complain_all(&problems);
    let mut told_all = problems.iter().all(|problem| problem.severity != Severity::Error);
    let (mut rows, faults) = read(files, now);
    for fault in &faults {
        complain(&printable_lines(fault));
    }
    told_all &= faults.is_empty();
    if let Some(days) = arguments.within_days {
        rows.retain(|row| row.ends_within(days, now));
    }
    match arguments.output {
        Output::Json => {
            rows.iter_mut().for_each(Row::tell_no_subject);
            say_json(&rows);
        }
        // What could not be read may be anything.
        Output::Text if rows.is_empty() && !told_all => {}
        Output::Text => show(&rows, arguments.within_days, now),
    }
    let fails = if arguments.within_days.is_some() {
        !rows.is_empty()
    } else {
        rows.iter().any(Row::is_no_good)
    };
    match (told_all, fails) {
        (false, _) => ExitCode::from(2),
        (true, true) => ExitCode::FAILURE,
        (true, false) => ExitCode::SUCCESS,
    }
}

/// Everything that has dates, what ends first on top; and what is wrong. A file is read once, however many
/// settings name it.
fn read(files: Vec<CertificateFile>, now: i64) -> (Vec<Row>, Vec<String>) {
    let mut uses: BTreeMap<PathBuf, (Location, Vec<String>)> = BTreeMap::new();
    for file in files {
        let entry = uses.entry(file.path).or_insert_with(|| (file.location, Vec::new()));
        entry.1.push(file.setting);
    }
    let (mut rows, mut faults) = (Vec::new(), Vec::new());
    for (path, (location, settings)) in uses {
        let mut fault = |text: String| faults.push(format!("error: {location}: {text}"));
        let (items, unread) = match describe(&path, now) {
            Ok(found) => found,
            Err(error) => {
                fault(error.to_string());
                continue;
            }
        };
        let of_use: Vec<Item> =
            items.into_iter().filter(|item| item.what.dates().is_some()).collect();
        unread.iter().for_each(|unread| fault(unread.to_string()));
        if of_use.is_empty() && unread.is_empty() {
            let hint = "hint: `ringfence cert inspect` says what it holds";
            fault(format!("`{}` holds no certificate that can be read\n  {hint}", path.display()));
        }
        rows.extend(of_use.into_iter().map(|item| Row { used_for: settings.clone(), item }));
    }
    rows.sort_by_key(Row::ends);
    (rows, faults)
}

fn show(rows: &[Row], within_days: Option<u32>, now: i64) {
    if rows.is_empty() {
        return say(&match within_days {
            Some(days) => format!("nothing expires within {days} days"),
            None => "the config names no file with a certificate".to_owned(),
        });
    }
    say(&format!("{:<20} {:<8} {:<38} {}", "EXPIRES", "STATE", "LEFT", "WHAT"));
    for row in rows {
        let state = match row.state() {
            State::Expired => "EXPIRED",
            State::NotYetValid => "NOT YET",
            State::Ending => "WARNING",
            State::Valid => "ok",
        };
        let dates = row.dates();
        let ends = dates.and_then(|dates| dates.not_after.as_deref()).unwrap_or("never");
        let left = dates.map(|dates| dates.in_words(now)).unwrap_or_default();
        // The column before says that.
        let left = ["EXPIRED ", "NOT YET VALID: "]
            .iter()
            .find_map(|state| left.strip_prefix(state))
            .unwrap_or(&left);
        let what = match &row.item.what {
            What::RevocationList(list) => format!("revocation list of {}", list.issuer),
            What::Certificate(certificate) => certificate.subject.clone(),
            What::PrivateKey { .. } | What::PublicKey { .. } | What::Other { .. } => String::new(),
        };
        let file = format!("{}:{}", row.item.file, row.item.line);
        let what = format!("{}: {file}, {what}", row.used_for.join(", "));
        say(&format!("{ends:<20} {state:<8} {left:<38} {}", printable(&what)));
    }
}
