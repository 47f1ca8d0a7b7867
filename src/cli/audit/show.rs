//! Calls as lines of a table, of CSV or of JSON.

use std::io::{self, BufWriter, StdoutLock, Write as _};

use crate::evidence::calls::Call;
use crate::evidence::record::printable;

/// Touches that a line of the table shows.
const TOUCHES_SHOWN: usize = 3;

/// In which form calls are shown; a table unless told.
#[derive(Debug, clap::Args)]
pub(super) struct Form {
    /// One JSON object for each call
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Comma-separated, with a first line of names
    #[arg(long)]
    csv: bool,
}

/// Writes calls to standard output.
pub(super) struct Printer<'a> {
    form: &'a Form,
    out: BufWriter<StdoutLock<'static>>,
    pub(super) printed: u64,
}

impl<'a> Printer<'a> {
    pub(super) fn new(form: &'a Form) -> Self {
        Self { form, out: BufWriter::new(io::stdout().lock()), printed: 0 }
    }

    pub(super) fn print(&mut self, call: &Call) -> io::Result<()> {
        let head = (self.printed == 0).then(|| match (self.form.json, self.form.csv) {
            (true, _) => String::new(),
            (_, true) => format!("{}\n", csv_head()),
            _ => format!("{}\n", table_head()),
        });
        self.printed += 1;
        let line = match (self.form.json, self.form.csv) {
            (true, _) => serde_json::to_string(call)?,
            (_, true) => csv_line(call),
            _ => table_line(call),
        };
        writeln!(self.out, "{}{line}", head.unwrap_or_default())
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn table_head() -> String {
    format!(
        "{:<27} {:<6} {:<28} {:<21} {:<12} {:<24} {}",
        "TIME", "WHAT", "PRINCIPAL", "SOURCE", "RPC", "RESULT", "TOUCHES"
    )
}

pub(super) fn table_line(call: &Call) -> String {
    let method = call.rpc.rsplit('/').next().unwrap_or_default();
    let mut touches = call.touches.iter().take(TOUCHES_SHOWN).cloned().collect::<Vec<_>>();
    if call.perhaps {
        touches.iter_mut().take(1).for_each(|touch| touch.insert_str(0, "(perhaps) "));
    }
    if call.touches.len() > TOUCHES_SHOWN {
        touches.push(format!("and {} more", call.touches.len() - TOUCHES_SHOWN));
    }
    format!(
        "{:<27} {:<6} {:<28} {:<21} {:<12} {:<24} {}",
        printable(&call.time),
        printable(&call.verdict),
        printable(call.principal.as_deref().unwrap_or("(nobody)")),
        printable(call.source.as_deref().unwrap_or("?")),
        printable(method),
        call.result(),
        touches.join("; ")
    )
}

fn csv_head() -> &'static str {
    "time,verdict,principal,source,rpc,result,rules,touches,chain,seq,perhaps,one_in"
}

fn csv_line(call: &Call) -> String {
    let cells = [
        call.time.clone(),
        call.verdict.clone(),
        call.principal.clone().unwrap_or_default(),
        call.source.clone().unwrap_or_default(),
        call.rpc.clone(),
        call.result(),
        call.rules.join("; "),
        call.touches.join("; "),
        call.chain.clone(),
        call.seq.to_string(),
        if call.perhaps { "perhaps".to_owned() } else { String::new() },
        call.one_in.map(|one_in| one_in.to_string()).unwrap_or_default(),
    ];
    cells.map(|cell| csv_cell(&cell)).join(",")
}

/// Quoted, and defused: a spreadsheet would run a cell that begins like a formula, and tenants choose keys
/// (OWASP, CSV injection).
fn csv_cell(text: &str) -> String {
    let shown = printable(text);
    let defused = if shown.starts_with(['=', '+', '-', '@']) { "'" } else { "" };
    format!("\"{defused}{}\"", shown.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_no_formula_and_breaks_out_of_no_quotes() {
        for (text, expected) in [
            ("plain", "\"plain\""),
            ("=cmd|' /C calc'!A0", "\"'=cmd|' /C calc'!A0\""),
            ("@x", "\"'@x\""),
            ("a\"b", "\"a\"\"b\""),
            ("a\nb\t", "\"a\\u{a}b\\u{9}\""),
        ] {
            assert_eq!(csv_cell(text), expected);
        }
    }
}
