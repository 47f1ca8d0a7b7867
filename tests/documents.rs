//! What the documents say is compared with the program and its source: samples, tables, links, names.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking; helpers of tests are no #[test] themselves"
)]

#[path = "support/tables.rs"]
mod tables;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use ringfence::document::Problems;
use ringfence::etcd::{KeyVerb, Page, StoreVerb};
use ringfence::metrics::{LoginResult, Metrics, OwnCertificate, ReloadUnit, RevocationList};
use ringfence::policy::{Policy, PolicySource};
use tables::rows;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(name)).unwrap()
}

fn ringfence(folder: &Path, arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_ringfence");
    Command::new(program).current_dir(folder).args(arguments).output().unwrap()
}

/// Every file of the repository with that ending, but for what is built or hidden.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() && !name.starts_with('.') && !["target", "run"].contains(&&*name) {
            found.extend(files(&path, ending));
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
    found
}

/// Each fenced block: its language and its text.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut parts = text.split("\n```");
    parts.next();
    let mut blocks = Vec::new();
    while let (Some(block), Some(_between)) = (parts.next(), parts.next()) {
        let (language, content) = block.split_once('\n').unwrap();
        blocks.push((language.to_owned(), format!("{content}\n")));
    }
    blocks
}

/// What stands between backticks.
fn code(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn first_column(text: &str, title: &str) -> BTreeSet<String> {
    let rows = rows(text, title);
    rows.iter().flat_map(|row| code(row[0])).map(str::to_owned).collect()
}

fn check_policy(file: &str, text: &str) {
    let problems = Problems::default();
    let mut source = PolicySource::default();
    source.read(file, text, &problems);
    drop(Policy::compile(source, &["kubernetes", "tenants"], &problems));
    let problems = problems.into_sorted();
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn every_toml_block_in_a_document_parses() {
    let mut policies = 0;
    for path in files(Path::new(ROOT), ".md") {
        for (language, text) in blocks(&fs::read_to_string(&path).unwrap()) {
            if language != "toml" {
                continue;
            }
            let table: toml::Table = text.parse().unwrap();
            if table.contains_key("identity") {
                check_policy(&path.display().to_string(), &text);
                policies += 1;
            }
        }
    }
    assert!(policies > 0, "docs/authorization.md shows a policy");
}

#[test]
fn every_sample_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    for path in files(&Path::new(ROOT).join("config"), ".toml") {
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let recipe = Path::new(ROOT).join("certs/demo.toml");
    let made = ringfence(folder.path(), &["cert", "make", recipe.to_str().unwrap(), "pki"]);
    assert!(made.status.success(), "{made:?}");
    for sample in ["minimal.toml", "full.toml"] {
        let checked = ringfence(folder.path(), &["check", "--config", sample]);
        let silent = checked.stderr.is_empty();
        assert!(checked.status.success() && silent, "{sample}: {checked:?}");
    }
    let mut policies = 0;
    for path in files(&Path::new(ROOT).join("config"), ".toml") {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with("policy-") {
            check_policy(&name, &fs::read_to_string(&path).unwrap());
            policies += 1;
        } else {
            assert!(["minimal.toml", "full.toml"].contains(&&*name), "{name} is not covered");
        }
    }
    // full.toml reads every policy there is.
    let checked = ringfence(folder.path(), &["check", "--config", "full.toml"]);
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(said.contains(&format!("{policies} identities")), "{said}");
}

#[test]
fn the_compose_cluster_has_a_recipe_and_a_config_that_are_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let pki = folder.path().join("pki");
    let recipe = Path::new(ROOT).join("docker/pki.toml");
    let arguments = ["cert", "make", recipe.to_str().unwrap(), pki.to_str().unwrap()];
    let made = ringfence(folder.path(), &arguments);
    assert!(made.status.success(), "{made:?}");
    let config = read("docker/ringfence.toml").replace("/pki/", "pki/");
    fs::write(folder.path().join("ringfence.toml"), config).unwrap();
    fs::create_dir(folder.path().join("policy.d")).unwrap();
    fs::write(folder.path().join("policy.d/tenants.toml"), read("config/policy-tenants.toml"))
        .unwrap();
    let checked = ringfence(folder.path(), &["check"]);
    assert!(checked.status.success() && checked.stderr.is_empty(), "{checked:?}");
}

#[test]
fn every_metric_is_described_and_none_is_invented() {
    let metrics = Metrics::default();
    metrics.count_refused_handshake("reason");
    metrics.count_ended_connection("reason");
    metrics.count_login(LoginResult::Ok);
    metrics.note_sink("sink", [1; 3], true);
    metrics.count_cut_watches("reason", 1);
    metrics.note_reload(ReloadUnit::Generation, 1, Duration::ZERO);
    let (setting, not_before_seconds, not_after_seconds) = ("a setting".to_owned(), 1, 2);
    let own = OwnCertificate { setting, not_before_seconds, not_after_seconds };
    metrics.certificates().note_own(&[own]);
    let (authority, issuer) = ("a CA".to_owned(), "an issuer".to_owned());
    let (this_update_seconds, next_update_seconds) = (1, 2);
    let list = RevocationList { authority, issuer, this_update_seconds, next_update_seconds };
    metrics.certificates().note_lists([list]);
    metrics.certificates().note_shown("identity", 2, Duration::ZERO);
    metrics.certificates().refresh(Duration::ZERO);
    let text = metrics.render();
    let mut exposed = BTreeSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let ending = if kind == "counter" { "_total" } else { "" };
        let sample = text.lines().find(|line| line.starts_with(&format!("{name}{ending}{{")));
        let labels = sample
            .filter(|_| kind != "histogram")
            .map_or("", |line| line.split(['{', '}']).nth(1).unwrap());
        let labels = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0));
        let labels: Vec<&str> = labels.collect();
        exposed.insert((format!("{name}{ending}"), kind.to_owned(), labels.join(" ")));
    }
    let operations = read("docs/operations.md");
    let described = rows(&operations, "metric").into_iter().map(|row| {
        assert!(!row[2].is_empty(), "{} has no unit", row[0]);
        (code(row[0])[0].to_owned(), row[1].to_owned(), code(row[3]).join(" "))
    });
    assert_eq!(described.collect::<BTreeSet<_>>(), exposed);
}

/// The names of fields and the types that src/audit/line writes.
fn written_by_line() -> (BTreeSet<String>, BTreeSet<String>) {
    let source = read("src/audit/line/mod.rs");
    let source = source.split("#[cfg(test)]").next().unwrap();
    let source =
        &format!("{source}{}{}", read("src/audit/chain_line.rs"), read("src/audit/changes.rs"));
    let (mut fields, mut types) = (BTreeSet::new(), BTreeSet::new());
    let literal = |text: &str| text.split('"').next().unwrap().to_owned();
    for writer in [
        "text(\"",
        "number(\"",
        "flag(\"",
        "key(\"",
        "hex(\"",
        "name(\"",
        "displayed(\"",
        "time(\"",
    ] {
        fields.extend(source.split(&format!(".{writer}")).skip(1).map(literal));
    }
    types.extend(source.split("text(\"type\", \"").skip(1).map(literal));
    // The hash of the line before, which `chain` appends.
    fields.insert("prev".to_owned());
    // The names that `Line::key` gives to keys.
    let names = source.split("KeyNames {").skip(2).map(|text| text.split('}').next().unwrap());
    fields.extend(names.flat_map(|text| text.split('"').skip(1).step_by(2)).map(str::to_owned));
    (fields, types)
}

#[test]
fn every_field_of_a_record_is_described_and_none_is_invented() {
    let format = read("docs/audit-format.md");
    let (fields, types) = written_by_line();
    assert_eq!(first_column(&format, "field"), fields);
    assert_eq!(first_column(&format, "type"), types);
    for row in rows(&format, "field") {
        assert!(row.len() == 4 && !row[1].is_empty() && !row[3].is_empty(), "{row:?}");
    }
    let examples = blocks(&format).into_iter().filter(|(language, _)| language == "json");
    for line in examples.flat_map(|(_, text)| text.lines().map(str::to_owned).collect::<Vec<_>>()) {
        let record: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&line).unwrap();
        let unknown = record.keys().find(|field| !fields.contains(*field));
        assert_eq!(unknown, None, "{line}");
    }
}

#[test]
fn every_reason_and_fault_is_described_and_none_is_invented() {
    let source = |name: &str| read(name).split("#[cfg(test)]").next().unwrap().to_owned();
    let literals = |text: &str, before: &[&str]| {
        let cut = |start: &&str| {
            let found =
                text.split(*start).skip(1).map(|text| text.split('"').next().unwrap().to_owned());
            found.collect::<Vec<_>>()
        };
        before.iter().flat_map(cut).collect::<BTreeSet<String>>()
    };
    let refuse = source("src/proxy/refuse.rs");
    let reason = refuse.split("fn reason(").nth(1).unwrap().split("fn status(").next().unwrap();
    let authorize = source("src/proxy/authorize.rs");
    let ends = ["relay", "stream/mod", "stream/request", "stream/response", "respond"]
        .map(|name| source(&format!("src/proxy/{name}.rs")));
    let ends = ends.concat();
    let acceptor = source("src/tls/acceptor.rs").replace(['\n', ' '], "");
    let page = source("src/proxy/page/refuse.rs");
    let page_reason =
        page.split("fn reason(").nth(1).unwrap().split("fn response(").next().unwrap();
    let mut written = literals(reason, &["=> \""]);
    written.extend(literals(page_reason, &["=> \""]));
    let causes =
        ["NoRule => (\"", "DenyRule(rule) => (\"", "ForeignLease => (\"", "TooMany => (\""];
    written.extend(literals(&authorize, &causes));
    written.extend(literals(&authorize, &["Refuse { reason: \""]));
    let ending = source("src/proxy/ending.rs");
    let name = ending.split("fn name(").nth(1).unwrap().split("fn is_polite(").next().unwrap();
    written.extend(literals(name, &["=> \""]));
    written.extend(literals(&source("src/server/listen.rs"), &["refuse(source, \""]));
    written.extend(literals(&acceptor, &["refusal(\"", "=>\"", "is_err()=>\""]));
    written.retain(|name| !name.starts_with("TLSv"));
    let format = read("docs/audit-format.md");
    assert_eq!(first_column(&format, "reason"), written);

    let failed = refuse.split("fn forward_failed(").nth(1).unwrap();
    let page_failed = page.split("fn forward_failed(").nth(1).unwrap();
    let page_failed = page_failed.split("\n}\n").next().unwrap();
    let mut faults: BTreeSet<String> = failed
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| !text.contains(' '))
        .map(str::to_owned)
        .collect();
    faults.extend(page_failed.split('"').skip(1).step_by(2).map(str::to_owned));
    let named = ["Some(\"", "then_some(\"", "audit_unavailable(), \"", "shutting_down(), \""];
    faults.extend(literals(&ends, &named));
    faults.extend(literals(&ends, &["(status, \"", "NoLonger(\""]));
    // A call that ends with its connection's right has the connection's reason.
    let of_rights =
        |name: &String| name.starts_with("certificate_") || name.starts_with("identity_");
    faults.extend(literals(name, &["=> \""]).into_iter().filter(of_rights));
    let refused = ["permission_denied(), \"", "audit_unavailable(), \"", "(status, \""];
    faults.extend(literals(&authorize, &refused));
    faults.extend(literals(&source("src/audit/recorder.rs"), &["fault: Some(\""]));
    assert_eq!(first_column(&format, "fault"), faults);
}

#[test]
fn every_page_is_described_with_what_it_needs_and_takes() {
    let text = read("docs/authorization.md");
    let described = rows(&text, "page").into_iter().flat_map(|row| {
        let (verb, takes) = (code(row[1])[0].to_owned(), code(row[2]).join(" "));
        let entry = move |page: &str| (page.to_owned(), verb.clone(), takes.clone());
        code(row[0]).into_iter().map(entry).collect::<Vec<_>>()
    });
    let expected = Page::ALL.iter().map(|page| {
        let parameters = page.parameters();
        let mut takes: Vec<String> =
            parameters.exclude.iter().map(|name| format!("exclude={name}")).collect();
        if parameters.serializable {
            takes.extend(["serializable=true".to_owned(), "serializable=false".to_owned()]);
        }
        takes.extend(parameters.verbose.then(|| "verbose".to_owned()));
        (page.path().to_owned(), page.verb().name().to_owned(), takes.join(" "))
    });
    assert_eq!(described.collect::<BTreeSet<_>>(), expected.collect());
}

#[test]
fn every_verb_is_named() {
    let text = read("docs/authorization.md");
    let said = |start: &str| {
        let list = text.split(start).nth(1).unwrap().split(". ").next().unwrap();
        let list = list.split(".\n").next().unwrap();
        code(list).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(said("Verbs on keys:"), KeyVerb::ALL.map(|verb| verb.name().to_owned()));
    let store: Vec<String> = StoreVerb::ALL.iter().map(|verb| verb.name().to_owned()).collect();
    assert_eq!(said("Verbs on the store:"), store);
}

#[test]
fn every_function_of_the_journey_is_where_the_map_says() {
    let text = read("ARCHITECTURE.md");
    let mut steps = rows(&text, "step");
    steps.extend(rows(&text, "phase").iter().map(|row| row[1..].to_vec()));
    assert!(steps.len() > 10, "the tables are found");
    for step in steps {
        let source: String = code(step[1]).into_iter().map(read).collect();
        for function in code(step[2]) {
            let defined = source.contains(&format!("fn {function}("))
                || source.contains(&format!("fn {function}<"));
            assert!(defined, "{} has no {function}", step[1]);
        }
    }
}

#[test]
fn every_relative_link_leads_somewhere() {
    let mut links = 0;
    for path in files(Path::new(ROOT), ".md") {
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link}", path.display());
            let anchors = |text: String| {
                let headings = text.lines().filter(|line| line.starts_with('#')).map(anchor_of);
                headings.collect::<Vec<_>>()
            };
            let found = anchor.is_empty()
                || anchors(fs::read_to_string(&target).unwrap()).contains(&anchor.to_owned());
            assert!(found, "{}: {link}", path.display());
            links += 1;
        }
    }
    assert!(links > 10, "links are found");
}

fn anchor_of(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
    let text: String = heading.trim_start_matches('#').trim().chars().filter(kept).collect();
    text.to_lowercase().replace(' ', "-")
}

#[test]
fn no_document_names_a_subcommand_that_does_not_exist() {
    let help = ringfence(Path::new(ROOT), &["--help"]);
    let help = String::from_utf8(help.stdout).unwrap();
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let commands: BTreeSet<&str> =
        commands.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    assert!(commands.contains("serve"), "{commands:?}");
    let mut named = 0;
    for path in files(Path::new(ROOT), ".md") {
        let text = fs::read_to_string(&path).unwrap();
        let indented = text.lines().filter_map(|line| line.strip_prefix("    ")).map(str::to_owned);
        let fenced = blocks(&text).into_iter().filter(|(language, _)| language != "toml");
        let fenced =
            fenced.flat_map(|(_, text)| text.lines().map(str::to_owned).collect::<Vec<_>>());
        let spans = text.lines().flat_map(code).map(str::to_owned);
        for line in indented.chain(fenced).chain(spans) {
            let mut words = line.split_whitespace().skip_while(|word| *word == "$");
            let is_program = words
                .next()
                .is_some_and(|word| word == "ringfence" || word.ends_with("/ringfence"));
            let Some(command) = words.next().filter(|_| is_program) else { continue };
            if command.starts_with(|c: char| c.is_ascii_lowercase()) {
                assert!(commands.contains(command), "{}: {line}", path.display());
                named += 1;
            }
        }
    }
    assert!(named > 5, "subcommands are found");
}
