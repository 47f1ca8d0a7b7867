//! RESULTS.md, from what was measured. Pure: every figure in it is one of `results.json`.

use std::fmt::Write as _;

use super::section::{Aim, Claim, Section, Table};
use super::{Name, Results};

const HEAD: &str = "# What was measured

Written by `make bench`; [README.md](README.md) says how, and what is left out. Driver, proxy and server share the cores of one
machine, so compare figures of one section with each other, not with those of another machine. Each figure is a median over
the rounds; each ratio is taken within a round first, so what disturbs a round disturbs both sides of it.
";

pub fn whole(results: &Results) -> String {
    let mut text = HEAD.to_owned();
    let of_machine = |name: &str| match &results.machine[name] {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let (cores, processor, kernel) =
        (of_machine("cores"), of_machine("processor"), of_machine("kernel"));
    writeln!(text, "\nMachine: {cores} cores, {processor}, {kernel}.").unwrap();
    text.push_str("\n## What was aimed at, and missed\n\n");
    let sections = || Name::ALL.iter().filter_map(|name| results.sections.get(name.text()));
    let missed: Vec<&Claim> =
        sections().flat_map(|section| &section.claims).filter(|claim| !claim.met()).collect();
    let aimed = |claim: &&Claim| claim.aim != Aim::Shown;
    let all = sections().flat_map(|section| &section.claims).filter(aimed).count();
    writeln!(text, "{} of {all} aims are met; not met:\n", all - missed.len()).unwrap();
    for claim in missed {
        writeln!(text, "- {}", sentence(claim)).unwrap();
    }
    for section in sections() {
        text.push_str(&self::section(section));
    }
    text
}

pub fn section(section: &Section) -> String {
    let mut text = format!(
        "\n## {}\n\n{}\nMeasured {}.\n\n",
        section.title, section.about, section.measured_at
    );
    let versions =
        section.versions.iter().map(|(contestant, version)| format!("{contestant}: {version}"));
    writeln!(text, "With {}.\n", versions.collect::<Vec<_>>().join("; ")).unwrap();
    text.push_str(&table(&section.table));
    if !section.claims.is_empty() {
        text.push('\n');
    }
    for claim in &section.claims {
        let met = match (claim.aim, claim.met()) {
            (Aim::Shown, _) => "",
            (_, true) => " met",
            (_, false) => " **not met**",
        };
        writeln!(text, "- {}{met}", sentence(claim)).unwrap();
    }
    text
}

fn sentence(claim: &Claim) -> String {
    let bound = short(claim.bound);
    let aim = match claim.aim {
        Aim::AtMost => format!("; aim: at most {bound}"),
        Aim::AtLeast => format!("; aim: at least {bound}"),
        Aim::Shown => String::new(),
    };
    let found = claim.found;
    let (median, min, max) = (short(found.median), short(found.min), short(found.max));
    format!("{}: {median} (from {min} to {max}){aim}.", claim.what)
}

fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 10.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

fn table(table: &Table) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&table.head);
    text.push_str(&format!("|---|{}\n", "---:|".repeat(table.head.len().saturating_sub(1))));
    table.rows.iter().for_each(|row| text.push_str(&line(row)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Points;

    #[test]
    fn a_section_says_what_was_missed() {
        let mut table = Table::new(&["", "requests/s"]);
        table.rows.push(vec!["ringfence".to_owned(), "10".to_owned()]);
        let points = Points::new([(1, 0.8)]);
        let claim = Claim::at_most("cost, a / b", 0.7, &points).unwrap();
        let shown = Claim::shown("cost, a / c", &points).unwrap();
        let text = section(&Section {
            title: "T".to_owned(),
            about: "About.".to_owned(),
            measured_at: "then".to_owned(),
            table,
            claims: vec![claim, shown],
            versions: [("a".to_owned(), "a 1.0".to_owned())].into(),
            turns: serde_json::Value::Null,
        });
        let expected = "\n## T\n\nAbout.\nMeasured then.\n\nWith a: a 1.0.\n\n|  | requests/s |\n|---|---:|\n| ringfence | 10 |\n\n\
                        - cost, a / b: 0.80 (from 0.80 to 0.80); aim: at most 0.70. **not met**\n\
                        - cost, a / c: 0.80 (from 0.80 to 0.80).\n";
        assert_eq!(text, expected);
    }
}
