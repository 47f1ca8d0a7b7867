//! What ringfence itself says about the story: its records and its counters, and whether they agree.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::admin;
use super::stage::Stage;
use crate::cli::say;

/// Counters and log are written by different threads, and some once a second.
const AGREE_LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(200);

/// The counters that are shown.
const SHOWN: [&str; 5] = [
    "ringfence_requests_total",
    "ringfence_handshakes_total",
    "ringfence_handshakes_refused_total",
    "ringfence_audit_records_total",
    "ringfence_audit_refused_total",
];

/// The first record of each kind is shown: pairs of a field and its value.
const KINDS: [&[(&str, &str)]; 7] = [
    &[("type", "connection.open"), ("ca", "tenants")],
    &[("type", "decision"), ("rpc", "/etcdserverpb.KV/Put"), ("verdict", "allow")],
    &[("type", "outcome")],
    &[("type", "decision"), ("verdict", "deny"), ("reason", "no_rule")],
    &[("type", "decision"), ("verdict", "deny"), ("reason", "deny_rule")],
    &[("type", "decision"), ("verdict", "deny"), ("rpc", "/etcdserverpb.KV/Txn")],
    &[("type", "connection.refused")],
];

/// The fields that are shown, in the order in which they are written.
const FIELDS: &str = "seq type source ca principal rpc verdict reason rules rule touches verb key \
                      range_end status revision detail count";

/// Shows some records and counters; an error when they do not agree.
pub(super) async fn show(stage: &Stage) -> Result<(), String> {
    let deadline = Instant::now() + AGREE_LIMIT;
    let (records, metrics, agreed) = loop {
        let metrics = admin::get(stage.addresses.admin, "/metrics").await?;
        let records = read(&stage.audit())?;
        let agreed = agreed(&records, &metrics);
        if agreed.is_ok() || Instant::now() >= deadline {
            break (records, metrics, agreed);
        }
        sleep(POLL).await;
    };
    let folder = format!("{}/", stage.folder.display());
    say("");
    say("Some of the audit records, shortened");
    for kind in KINDS {
        let matches =
            |record: &&Value| kind.iter().all(|(name, value)| field(record, name) == *value);
        if let Some(record) = records.iter().find(matches) {
            let shortened = shortened(record).replace(&folder, "");
            say(&format!("  {{{shortened},...}}"));
        }
    }
    say("");
    say("Counters, from /metrics");
    for name in SHOWN {
        let mut lines: Vec<&str> = counted(&metrics, name).collect();
        lines.sort_unstable();
        for line in lines {
            say(&format!("  {line}"));
        }
    }
    let decisions = agreed?;
    say("");
    say(&format!(
        "{} records so far; {decisions} of them are decisions, one for each of the {decisions} calls.",
        records.len()
    ));
    Ok(())
}

/// How many decisions were recorded, when that is as many as there were calls, and every record
/// that was counted is there.
fn agreed(records: &[Value], metrics: &str) -> Result<u64, String> {
    let decisions = records.iter().filter(|record| field(record, "type") == "decision").count();
    let decisions = u64::try_from(decisions).unwrap_or(u64::MAX);
    let calls = sum(metrics, "ringfence_requests_total");
    if decisions != calls || calls == 0 {
        return Err(format!("{calls} calls were counted, but {decisions} decisions recorded"));
    }
    let counted = sum(metrics, "ringfence_audit_records_total");
    if u64::try_from(records.len()) != Ok(counted) {
        let found = records.len();
        return Err(format!("{counted} records were counted, but {found} found"));
    }
    Ok(decisions)
}

/// The sum of a counter over its labels.
fn sum(metrics: &str, name: &str) -> u64 {
    lines_of(metrics, name).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Every RPC has its counters from the start; those that counted nothing say nothing.
fn counted<'a>(metrics: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    lines_of(metrics, name).filter(|line| !line.ends_with(" 0"))
}

fn lines_of<'a>(metrics: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    metrics.lines().filter(move |line| line.split(['{', ' ']).next() == Some(name))
}

fn read(directory: &Path) -> Result<Vec<Value>, String> {
    let fault = |error: std::io::Error| {
        format!("cannot read the records in `{}`: {error}", directory.display())
    };
    let mut records = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        if path.extension().is_none_or(|ending| ending != "jsonl") {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(fault)?;
        // A last line may be half written; it is read again soon.
        records.extend(text.lines().filter_map(|line| serde_json::from_str(line).ok()));
    }
    Ok(records)
}

fn field<'a>(record: &'a Value, name: &str) -> &'a str {
    record.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// The fields that are shown of a record.
fn shortened(record: &Value) -> String {
    let shown = FIELDS.split(' ').filter_map(|name| {
        let value = record.get(name)?;
        Some(format!("\"{name}\":{}", shortened_value(value)))
    });
    shown.collect::<Vec<_>>().join(",")
}

fn shortened_value(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(shortened_value).collect();
            format!("[{}]", items.join(","))
        }
        Value::Object(_) => format!("{{{}}}", shortened(value)),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_without_a_decision_is_noticed() {
        let records: Vec<Value> = [r#"{"type":"process.start"}"#, r#"{"type":"decision"}"#]
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let metrics = |calls: u64, written: u64| {
            format!(
                "# TYPE ringfence_requests counter\n\
                 ringfence_requests_total{{rpc=\"a b\"}} {calls}\n\
                 ringfence_requests_total{{rpc=\"c\"}} 0\n\
                 ringfence_audit_records_total {written}\n"
            )
        };
        assert_eq!(agreed(&records, &metrics(1, 2)), Ok(1));
        assert!(agreed(&records, &metrics(2, 2)).is_err());
        assert!(agreed(&records, &metrics(1, 3)).is_err());
        assert!(agreed(&[], "").is_err());
    }

    #[test]
    fn a_counter_that_counted_nothing_is_not_shown() {
        let metrics = "a_total{rpc=\"x\"} 0\na_total{rpc=\"y\"} 10\na_total_b 7\n";
        assert_eq!(counted(metrics, "a_total").collect::<Vec<_>>(), ["a_total{rpc=\"y\"} 10"]);
    }

    #[test]
    fn a_record_is_shortened_in_its_order() {
        let record = r#"{"v":1,"seq":3,"type":"decision","rules":["a/1"],
            "touches":[{"verb":"get","key":"/a","lease":"7"}],"status":0}"#;
        let expected = r#""seq":3,"type":"decision","rules":["a/1"],"touches":[{"verb":"get","key":"/a"}],"status":0"#;
        assert_eq!(shortened(&serde_json::from_str(record).unwrap()), expected);
    }
}
