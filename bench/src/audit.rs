//! Whether ringfence's audit files hold what they must: for each call one decision, then one outcome.
//! Reads the files after the run; a figure taken without the records would be of something else.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Outcome;

const DECIDED: u8 = 1;
const ENDED: u8 = 2;

/// What the files of one turn hold. The calls include those before and after the measured window.
#[derive(Clone, Copy, Serialize)]
pub struct Audit {
    pub calls: u64,
    pub decisions: u64,
    pub outcomes: u64,
    pub other_records: u64,
    pub bytes: u64,
}

/// The fields of a record that matter here; which of them it has depends on its type.
#[derive(Deserialize)]
struct Line<'a> {
    seq: u64,
    #[serde(rename = "type")]
    kind: &'a str,
    connection: Option<u64>,
    call: Option<u64>,
    verdict: Option<&'a str>,
    status: Option<u16>,
}

/// How far each call got, by connection; ringfence counts calls from 1 without gaps.
struct Ledger {
    calls: HashMap<u64, Vec<u8>>,
    /// A call number beyond this is wrong, and must not take memory.
    calls_max: u64,
    records: u64,
    audit: Audit,
}

/// Reads every file of the folder; an error unless all `calls` were allowed, forwarded and answered with
/// status 0, and recorded exactly so.
pub fn check(directory: &Path, calls: u64) -> Outcome<Audit> {
    let failed = |error: std::io::Error| format!("{}: {error}", directory.display());
    let mut ledger = Ledger {
        calls: HashMap::new(),
        calls_max: calls,
        records: 0,
        audit: Audit { calls, decisions: 0, outcomes: 0, other_records: 0, bytes: 0 },
    };
    let entries = fs::read_dir(directory).map_err(failed)?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    let mut paths = paths.map_err(failed)?;
    // Their names end with their numbers.
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let open = || File::open(&path).map_err(failed);
        match name.strip_suffix(".zst").unwrap_or(&name).ends_with(".jsonl") {
            false => continue,
            true if name.ends_with(".zst") => {
                let lines = zstd::Decoder::new(open()?).map_err(failed)?;
                ledger.read(BufReader::with_capacity(1 << 18, lines))?;
            }
            true => ledger.read(BufReader::with_capacity(1 << 18, open()?))?,
        }
    }
    ledger.conclude()
}

impl Ledger {
    fn read(&mut self, mut lines: impl BufRead) -> Outcome<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            let bytes = lines.read_until(b'\n', &mut line);
            if bytes.map_err(|error| format!("audit file: {error}"))? == 0 {
                return Ok(());
            }
            self.audit.bytes += line.len() as u64;
            // The numbers go on from file to file.
            self.records += 1;
            let sequence = self.records;
            let noted = self.note(sequence, &line);
            noted.map_err(|what| {
                let line = String::from_utf8_lossy(&line);
                format!("audit record {sequence} is wrong: {what}: {}", line.trim_end())
            })?;
        }
    }

    fn note(&mut self, sequence: u64, line: &[u8]) -> Outcome<()> {
        let record: Line<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        if record.seq != sequence {
            return Err(format!("its sequence number is not {sequence}"));
        }
        match (record.kind, record.verdict, record.status) {
            ("decision", Some("allow"), None) => {
                self.audit.decisions += 1;
                self.advance(&record, 0, DECIDED)
            }
            ("outcome", None, Some(0)) => {
                self.audit.outcomes += 1;
                self.advance(&record, DECIDED, ENDED)
            }
            ("decision" | "outcome", _, _) => Err("neither allowed nor well ended".to_owned()),
            _ => {
                self.audit.other_records += 1;
                Ok(())
            }
        }
    }

    fn advance(&mut self, record: &Line<'_>, from: u8, to: u8) -> Outcome<()> {
        let (Some(connection), Some(call)) = (record.connection, record.call) else {
            return Err("it names no call".to_owned());
        };
        if !(1..=self.calls_max).contains(&call) {
            return Err("no such call was made".to_owned());
        }
        let calls = self.calls.entry(connection).or_default();
        let index = (call - 1) as usize;
        if calls.len() <= index {
            calls.resize(index + 1, 0);
        }
        if calls[index] != from {
            return Err("out of order, or twice".to_owned());
        }
        calls[index] = to;
        Ok(())
    }

    /// No record came twice, so equal counts mean that none is missing.
    fn conclude(self) -> Outcome<Audit> {
        let audit = self.audit;
        if (audit.decisions, audit.outcomes) == (audit.calls, audit.calls) {
            return Ok(audit);
        }
        Err(format!(
            "ringfence recorded {} decisions and {} outcomes of {} calls",
            audit.decisions, audit.outcomes, audit.calls
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: &str = r#""type":"connection.open","connection":4,"source":"127.0.0.1:1"}"#;
    const DECISION: &str =
        r#""type":"decision","connection":4,"call":1,"verdict":"allow","rules":["r"]}"#;
    const OUTCOME: &str = r#""type":"outcome","connection":4,"call":1,"status":0}"#;

    fn checked(records: &[&str], calls: u64) -> Outcome<Audit> {
        let numbered = records.iter().enumerate();
        let text: String =
            numbered.map(|(index, rest)| format!("{{\"seq\":{},{rest}\n", index + 1)).collect();
        let mut ledger = Ledger {
            calls: HashMap::new(),
            calls_max: calls,
            records: 0,
            audit: Audit { calls, decisions: 0, outcomes: 0, other_records: 0, bytes: 0 },
        };
        ledger.read(text.as_bytes())?;
        ledger.conclude()
    }

    #[test]
    fn a_decision_then_an_outcome_is_right_and_all_else_wrong() {
        let audit = checked(&[OPEN, DECISION, OUTCOME], 1).unwrap();
        assert_eq!((audit.decisions, audit.outcomes), (1, 1));
        let denied = DECISION.replace("allow", "deny");
        let failed = OUTCOME.replace("\"status\":0", "\"status\":14");
        let wrong: [(&[&str], u64); 7] = [
            (&[OPEN, OUTCOME, DECISION], 1),
            (&[OPEN, DECISION, DECISION, OUTCOME], 1),
            (&[OPEN, DECISION, OUTCOME, OUTCOME], 1),
            (&[OPEN, DECISION], 1),
            (&[OPEN, DECISION, OUTCOME], 2),
            (&[OPEN, &denied, OUTCOME], 1),
            (&[OPEN, DECISION, &failed], 1),
        ];
        for (records, calls) in wrong {
            assert!(checked(records, calls).is_err(), "{records:?}");
        }
    }
}
