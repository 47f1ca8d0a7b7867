//! The alert rules of deploy/prometheus: promtool takes them and its tests of them pass, each alert is fired there and kept
//! quiet there, docs/operations.md says what to do about it, and no rule asks for what ringfence does not expose.
//!
//! Files of YAML are read line by line, and a line that is not understood is a failure.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking; helpers of tests are no #[test] themselves"
)]

#[path = "support/tables.rs"]
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tables::rows;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const FOLDER: &str = "deploy/prometheus";
const RULES: &str = "ringfence.rules.yml";
/// Metrics that Prometheus itself makes.
const OF_PROMETHEUS: [&str; 3] = ["up", "ALERTS", "ALERTS_FOR_STATE"];
/// Labels that Prometheus itself adds to whatever it scrapes.
const LABELS_OF_PROMETHEUS: [&str; 2] = ["job", "instance"];

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(name)).unwrap()
}

fn rules() -> String {
    read(&format!("{FOLDER}/{RULES}"))
}

/// The names of promtool's test files.
fn test_files() -> Vec<String> {
    let entries = fs::read_dir(Path::new(ROOT).join(FOLDER)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".test.yml")).collect();
    names.sort();
    assert!(!names.is_empty(), "there are tests");
    names
}

fn promtool(folder: &Path, arguments: &[&str], files: &[String]) -> Output {
    let install = Path::new(ROOT).join("tests/etcd/install-promtool");
    let installed = Command::new(install).stderr(Stdio::inherit()).output().unwrap();
    assert!(installed.status.success(), "there is no promtool, and none can be had");
    let program = PathBuf::from(String::from_utf8(installed.stdout).unwrap().trim());
    Command::new(program).current_dir(folder).args(arguments).args(files).output().unwrap()
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

/// A line of YAML: how far it stands in, and what it says without the dash of a list. `None` if it says nothing.
fn content(line: &str) -> Option<(usize, &str)> {
    let content = line.trim_start();
    let indent = line.len() - content.len();
    let says_nothing = content.is_empty() || content.starts_with('#');
    (!says_nothing).then(|| (indent, content.strip_prefix("- ").unwrap_or(content)))
}

#[derive(Default)]
struct Alert {
    name: String,
    expression: String,
    /// `for`, `severity` and the annotations.
    said: BTreeMap<String, String>,
}

fn alerts() -> Vec<Alert> {
    let mut alerts: Vec<Alert> = Vec::new();
    // How far the key of an expression over several lines stands in: its lines stand in farther.
    let mut block = None;
    for line in rules().lines() {
        let Some((indent, text)) = content(line) else { continue };
        if block.is_some_and(|key| indent > key) {
            alerts.last_mut().unwrap().expression += &format!("{text}\n");
            continue;
        }
        block = None;
        let (key, value) = text.split_once(':').unwrap_or_else(|| panic!("{RULES}: `{line}`?"));
        let value = value.trim();
        match key {
            "alert" => alerts.push(Alert { name: value.to_owned(), ..Alert::default() }),
            "expr" if value == "|" => block = Some(indent),
            "expr" if !value.is_empty() && !value.starts_with(['"', '\'', '>', '|']) => {
                value.clone_into(&mut alerts.last_mut().unwrap().expression);
            }
            "for" | "severity" | "summary" | "description" => {
                let said = &mut alerts.last_mut().unwrap().said;
                let before = said.insert(key.to_owned(), value.trim_matches('"').to_owned());
                assert_eq!(before, None, "{RULES}: `{line}` is there twice");
            }
            "groups" | "name" | "rules" | "labels" | "annotations" => {}
            _ => panic!("{RULES}: `{line}`?"),
        }
    }
    alerts
}

fn names() -> BTreeSet<String> {
    alerts().into_iter().map(|alert| alert.name).collect()
}

/// How often each alert must fire in promtool's tests, and how often it must not.
fn cases() -> BTreeMap<String, [u32; 2]> {
    let mut cases: BTreeMap<String, [u32; 2]> = BTreeMap::new();
    for file in test_files() {
        let text = read(&format!("{FOLDER}/{file}"));
        let mut lines = text.lines().filter_map(content).map(|(_, text)| text).peekable();
        let mut name = None;
        while let Some(line) = lines.next() {
            if let Some(value) = line.strip_prefix("alertname:") {
                assert_eq!(name, None, "{file}: a case has no `exp_alerts` after its `alertname`");
                name = Some(value.trim().to_owned());
            } else if let Some(value) = line.strip_prefix("exp_alerts:") {
                let Some(name) = name.take() else { panic!("{file}: `exp_alerts` of what?") };
                let fires = match value.trim() {
                    "[]" => false,
                    "" if lines.peek() == Some(&"exp_labels:") => true,
                    _ => panic!("{file}: `{line}` of {name}?"),
                };
                cases.entry(name).or_default()[usize::from(!fires)] += 1;
            }
        }
        assert_eq!(name, None, "{file}: the last case has no `exp_alerts`");
    }
    cases
}

/// What stands between backticks.
fn code(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// What docs/operations.md says of a metric; tests/documents.rs holds that against the program.
#[derive(Clone, Default)]
struct Metric {
    labels: Vec<String>,
    /// Whatever its description has between backticks, values of labels among it.
    words: Vec<String>,
}

fn metrics() -> BTreeMap<String, Metric> {
    let operations = read("docs/operations.md");
    let mut metrics = BTreeMap::new();
    for row in rows(&operations, "metric") {
        let name = code(row[0]).remove(0);
        let metric = Metric { labels: code(row[3]), words: code(row[4]) };
        if row[1] == "histogram" {
            for ending in ["bucket", "sum", "count"] {
                let mut metric = metric.clone();
                metric.labels.extend((ending == "bucket").then(|| "le".to_owned()));
                metrics.insert(format!("{name}_{ending}"), metric);
            }
        } else {
            metrics.insert(name, metric);
        }
    }
    assert!(metrics.len() > 20, "the table is found");
    for name in OF_PROMETHEUS {
        metrics.insert(name.to_owned(), Metric::default());
    }
    metrics
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    /// A name, a keyword, a number or a duration.
    Word(String),
    /// What stands between double quotes.
    Text(String),
    Mark(char),
}

fn tokens(expression: &str) -> Vec<Token> {
    assert!(!expression.contains(['\\', '\'', '`', '#']), "too much for this test: {expression}");
    let mut tokens = Vec::new();
    let mut rest = expression.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '"' {
            tokens.push(Token::Text(rest.by_ref().take_while(|c| *c != '"').collect()));
        } else if is_of_word(c) {
            let mut word = String::from(c);
            while let Some(c) = rest.next_if(|c| is_of_word(*c)) {
                word.push(c);
            }
            tokens.push(Token::Word(word));
        } else if !c.is_whitespace() {
            tokens.push(Token::Mark(c));
        }
    }
    tokens
}

fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || ['_', ':', '.'].contains(&c)
}

struct Selector {
    metric: String,
    matchers: Vec<Matcher>,
}

struct Matcher {
    label: String,
    is_pattern: bool,
    value: String,
}

/// The selectors of an expression, and the labels that it groups or matches by.
fn asked(expression: &str) -> (Vec<Selector>, Vec<String>) {
    let (mut selectors, mut labels) = (Vec::new(), Vec::new());
    let tokens = tokens(expression);
    let mut rest = tokens.iter().peekable();
    while let Some(token) = rest.next() {
        let Token::Word(word) = token else { continue };
        let next = rest.peek().copied();
        let takes_labels = ["by", "without", "on", "ignoring", "group_left", "group_right"];
        let operators = ["and", "or", "unless", "offset", "bool"];
        if takes_labels.contains(&&**word) {
            for token in rest.by_ref().take_while(|token| **token != Token::Mark(')')) {
                labels.extend(word_of(token));
            }
        } else if word.starts_with(|c: char| c.is_ascii_digit())
            || operators.contains(&&**word)
            || next == Some(&Token::Mark('('))
            || next.and_then(word_of).is_some_and(|word| ["by", "without"].contains(&&*word))
        {
            // A number, an operator, a function or an aggregation.
        } else {
            let has_matchers = next == Some(&Token::Mark('{'));
            let inside: Vec<&Token> = if has_matchers {
                rest.by_ref().take_while(|token| **token != Token::Mark('}')).skip(1).collect()
            } else {
                Vec::new()
            };
            let matchers = inside.split(|token| **token == Token::Mark(',')).filter_map(matcher);
            selectors.push(Selector { metric: word.clone(), matchers: matchers.collect() });
        }
    }
    (selectors, labels)
}

fn word_of(token: &Token) -> Option<String> {
    if let Token::Word(word) = token { Some(word.clone()) } else { None }
}

fn matcher(tokens: &[&Token]) -> Option<Matcher> {
    let (first, others) = tokens.split_first()?;
    let (Some(label), Some((Token::Text(value), operator))) =
        (word_of(first), others.split_last().map(|(last, operator)| (*last, operator)))
    else {
        panic!("what is {tokens:?}?")
    };
    let is_pattern = operator.contains(&&Token::Mark('~'));
    Some(Matcher { label, is_pattern, value: value.clone() })
}

/// Whether a pattern, or a plain value, fits one of the names; of patterns those that the rules need: alternatives, and `.*` in
/// front of one.
fn fits(value: &str, is_pattern: bool, names: &BTreeSet<String>) -> bool {
    if !is_pattern {
        return names.contains(value);
    }
    value.split('|').all(|alternative| match alternative.strip_prefix(".*") {
        Some(ending) => names.iter().any(|name| name.ends_with(ending)),
        None => names.contains(alternative),
    })
}

#[test]
fn promtool_takes_the_rules_and_its_tests_of_them_pass() {
    let folder = Path::new(ROOT).join(FOLDER);
    let checked = promtool(&folder, &["check", "rules"], &[RULES.to_owned()]);
    assert!(checked.status.success(), "{}", printed(&checked));
    // What this file reads line by line is what promtool reads.
    let found = format!("SUCCESS: {} rules found", alerts().len());
    assert!(printed(&checked).contains(&found), "{found}? {}", printed(&checked));
    let tested = promtool(&folder, &["test", "rules"], &test_files());
    assert!(tested.status.success(), "{}", printed(&tested));
}

#[test]
fn a_rule_that_cannot_fire_fails_its_case() {
    let mut broken = String::new();
    let mut block = None;
    for line in rules().lines() {
        let indent = line.len() - line.trim_start().len();
        if block.is_some_and(|key| indent > key) {
            continue;
        }
        block = line.trim_start().starts_with("expr:").then_some(indent);
        let line = if block.is_some() {
            format!("{}expr: vector(1) > 1", " ".repeat(indent))
        } else {
            line.to_owned()
        };
        broken += &format!("{line}\n");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(RULES), broken).unwrap();
    for file in test_files() {
        fs::write(folder.path().join(&file), read(&format!("{FOLDER}/{file}"))).unwrap();
    }
    let tested = promtool(folder.path(), &["test", "rules"], &test_files());
    assert!(!tested.status.success(), "{}", printed(&tested));
    let said = printed(&tested);
    let missed = names().into_iter().filter(|name| !said.contains(&format!("alertname: {name},")));
    assert_eq!(missed.collect::<Vec<_>>(), Vec::<String>::new(), "{said}");
}

#[test]
fn every_alert_has_a_case_that_fires_it_and_one_that_does_not() {
    let cases = cases();
    let tested: BTreeSet<String> = cases.keys().cloned().collect();
    assert_eq!(tested, names());
    for (name, [fires, does_not]) in cases {
        assert!(fires > 0, "no case fires {name}");
        assert!(does_not > 0, "no case keeps {name} quiet");
    }
}

#[test]
fn every_alert_says_for_how_long_how_bad_it_is_and_what_to_do() {
    let alerts = alerts();
    assert_eq!(alerts.len(), names().len(), "each alert has a name of its own");
    for alert in alerts {
        let keys: Vec<&str> = alert.said.keys().map(String::as_str).collect();
        assert_eq!(keys, ["description", "for", "severity", "summary"], "{}", alert.name);
        assert!(!alert.said.values().any(String::is_empty), "{}", alert.name);
        let severity = &*alert.said["severity"];
        assert!(["critical", "warning"].contains(&severity), "{}: {severity}", alert.name);
    }
}

#[test]
fn no_rule_asks_for_a_metric_a_label_or_a_value_that_there_is_not() {
    let metrics = metrics();
    let reasons: BTreeSet<String> =
        rows(&read("docs/audit-format.md"), "reason").iter().flat_map(|row| code(row[0])).collect();
    let is_label = |label: &String, of: &Metric| {
        of.labels.contains(label) || LABELS_OF_PROMETHEUS.contains(&&**label)
    };
    for Alert { name, expression, .. } in alerts() {
        let (selectors, labels) = asked(&expression);
        assert!(!selectors.is_empty(), "{name} asks for nothing");
        for Selector { metric, matchers } in selectors {
            let Some(described) = metrics.get(&metric) else {
                panic!("{name}: docs/operations.md has no metric `{metric}`")
            };
            for Matcher { label, is_pattern, value } in matchers {
                assert!(is_label(&label, described), "{name}: `{metric}` has no label `{label}`");
                let there_is = match &*label {
                    "job" | "setting" => true,
                    "reason" => fits(&value, is_pattern, &reasons),
                    _ => fits(&value, is_pattern, &described.words.iter().cloned().collect()),
                };
                assert!(there_is, "{name}: `{metric}` has no {label} like `{value}`");
            }
        }
        for label in labels {
            let there_is = metrics.values().any(|metric| is_label(&label, metric));
            assert!(there_is, "{name}: no metric has a label `{label}`");
        }
    }
}

/// In texts, and in the series of promtool's tests.
#[test]
fn no_file_beside_the_rules_names_a_metric_that_there_is_not() {
    let metrics = metrics();
    for file in test_files().into_iter().chain([RULES.to_owned()]) {
        let text = read(&format!("{FOLDER}/{file}"));
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with("ringfence_")) {
            assert!(metrics.contains_key(word), "{file}: docs/operations.md has no `{word}`");
        }
    }
}

#[test]
fn operations_says_what_to_do_about_exactly_these_alerts() {
    let operations = read("docs/operations.md");
    let rows = rows(&operations, "alert");
    let described: Vec<String> = rows.iter().flat_map(|row| code(row[0])).collect();
    assert_eq!(described.iter().cloned().collect::<BTreeSet<_>>(), names());
    assert_eq!(described.len(), names().len(), "each alert is there once");
    for row in rows {
        assert!(row.len() == 2 && !row[1].is_empty(), "{row:?}");
    }
}
