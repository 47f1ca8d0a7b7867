//! `[[audit.level]]`, what hashes, and `[[audit.sink]]`, as they are written: texts and numbers with their places.

use crate::document::{Located, Location, TableReader};

/// The most rules; each call may ask all of them.
const RULES_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct RawLevels {
    pub(super) rules: Vec<RawLevel>,
    pub(super) hash_key: Option<Located<String>>,
    /// `keyed-hash` or nothing.
    pub(super) values: Option<Located<String>>,
}

#[derive(Debug)]
pub(super) struct RawLevel {
    pub(super) location: Location,
    pub(super) level: Option<Located<String>>,
    pub(super) identities: Vec<Located<String>>,
    pub(super) verbs: Vec<Located<String>>,
    pub(super) prefixes: Vec<Located<String>>,
    pub(super) one_in: u64,
    pub(super) keys: Option<Located<String>>,
    pub(super) key_parts: u64,
}

pub(super) fn read_levels(audit: &TableReader<'_>) -> RawLevels {
    let tables = audit.tables("level");
    if tables.len() > RULES_MAX {
        let what = format!("there are {} `audit.level`; at most {RULES_MAX} can be", tables.len());
        let hint = "one rule may name several identities, verbs and prefixes";
        audit.problems().error(audit.location(), what, hint);
    }
    RawLevels {
        rules: tables.into_iter().map(read_level).collect(),
        hash_key: audit.text("hash_key"),
        values: audit.text("values"),
    }
}

fn read_level(table: TableReader<'_>) -> RawLevel {
    let named = |key| {
        if table.is_empty_list(key) {
            let hint = "leave it out to mean all of them";
            let what = format!("`{}` is empty", table.path(key));
            table.problems().error(&table.location_of_key(key), what, hint);
        }
        table.texts(key)
    };
    let level = RawLevel {
        location: table.location().clone(),
        level: table.required_text("level", "`none`, `metadata` or `request`"),
        identities: named("identities"),
        verbs: named("verbs"),
        prefixes: named("prefixes"),
        one_in: table.number("one_in", 1..=1_000_000, 1),
        keys: table.text("keys"),
        key_parts: table.number("key_parts", 1..=u64::from(crate::audit::level::PARTS_MAX), 2),
    };
    if table.has("key_parts") && level.keys.as_ref().is_none_or(|keys| keys.value != "parts") {
        let hint = "keys = \"parts\" cuts keys behind so many parts";
        let what = format!("`{}` counts for nothing", table.path("key_parts"));
        table.problems().error(&table.location_of_key("key_parts"), what, hint);
    }
    table.finish();
    level
}

/// The most sinks: each has a thread, and a label in metrics.
const SINKS_MAX: usize = 8;
/// What `to` can be.
pub(super) const TO: &str = "stdout, syslog+unix:///dev/log, syslog+tcp://HOST:PORT, \
    syslog+tls://HOST:PORT, otlp+https://HOST:PORT/v1/logs, otlp+http://HOST:PORT/v1/logs";

#[derive(Debug)]
pub(super) struct RawSink {
    pub(super) location: Location,
    pub(super) name: Option<Located<String>>,
    pub(super) to: Option<Located<String>>,
    pub(super) required: bool,
    pub(super) lines: Option<Located<String>>,
    pub(super) facility: Option<Located<String>>,
    pub(super) authorization: Option<Located<String>>,
    pub(super) ca: Option<Located<String>>,
    pub(super) certificate: Option<Located<String>>,
    pub(super) key: Option<Located<String>>,
    pub(super) deadline_seconds: u64,
    pub(super) queue_bytes: u64,
    pub(super) line_bytes: u64,
    /// Where settings stand that do not mean something to every sink.
    pub(super) queue_bytes_at: Option<Location>,
    pub(super) line_bytes_at: Option<Location>,
}

pub(super) fn read_sinks(audit: &TableReader<'_>) -> Vec<RawSink> {
    let tables = audit.tables("sink");
    if let Some(first_too_many) = tables.get(SINKS_MAX) {
        let what = format!("there are {} `audit.sink`; at most {SINKS_MAX} can be", tables.len());
        let hint = "leave some to a collector, which can pass records on";
        audit.problems().error(first_too_many.location(), what, hint);
    }
    tables.into_iter().map(read_sink).collect()
}

fn read_sink(table: TableReader<'_>) -> RawSink {
    let at = |key| table.has(key).then(|| table.location_of_key(key));
    let sink = RawSink {
        location: table.location().clone(),
        name: table.required_text("name", "a short name, for metrics and records"),
        to: table.required_text("to", TO),
        required: table.flag("required"),
        lines: table.text("lines"),
        facility: table.text("facility"),
        authorization: table.text("authorization"),
        ca: table.text("ca"),
        certificate: table.text("certificate"),
        key: table.text("key"),
        deadline_seconds: table.number("deadline_seconds", 1..=60, 5),
        queue_bytes: table.number("queue_bytes", 262_144..=1 << 30, 8 << 20),
        line_bytes: table.number("line_bytes", 1024..=1 << 20, 8000),
        queue_bytes_at: at("queue_bytes"),
        line_bytes_at: at("line_bytes"),
    };
    table.finish();
    sink
}
