//! Calls as lines of a table, or of CSV.

use crate::evidence::calls::Call;
use crate::evidence::record::printable;

/// Touches that a line of the table shows.
const TOUCHES_SHOWN: usize = 3;

pub(super) fn table_head() -> String {
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

pub(super) fn csv_head() -> &'static str {
    "time,verdict,principal,source,rpc,result,rules,touches,chain,seq,perhaps,one_in"
}

pub(super) fn csv_line(call: &Call) -> String {
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
