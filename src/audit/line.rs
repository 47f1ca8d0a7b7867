//! One record, one JSON object, one line: docs/audit-format.md. Strings are escaped by serde_json;
//! the objects are written by hand, because this is done twice per request.

use std::fmt::Display;
use std::io::Write as _;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::event::{CallId, DecisionEvent, Event, Outcome, Path, Record, Verdict};
use crate::etcd::{RangeEnd, StoredKey, Touch};
use crate::identity::CertificateFacts;

/// The version of the format; it grows when a field changes its meaning or goes.
const FORMAT_VERSION: u32 = 1;

/// Writes lines; keeps the text of the last second, because a calendar is slow to work out and
/// thousands of records share one.
#[derive(Debug, Default)]
pub(super) struct LineWriter {
    second: u64,
    /// `2026-11-24T08:00:00`
    second_text: String,
}

impl LineWriter {
    /// Appends the record and a newline.
    pub(super) fn write(&mut self, sequence: u64, record: &Record, bytes: &mut Vec<u8>) {
        let seconds = record.time.as_secs();
        if self.second_text.is_empty() || self.second != seconds {
            self.second = seconds;
            let text = timestamp_of_seconds(i64::try_from(seconds).unwrap_or(i64::MAX));
            text.trim_end_matches('Z').clone_into(&mut self.second_text);
        }
        write(sequence, record, &self.second_text, bytes);
    }
}

fn write(sequence: u64, record: &Record, second: &str, bytes: &mut Vec<u8>) {
    let mut line = Line::open(bytes);
    line.number("v", FORMAT_VERSION);
    line.number("seq", sequence);
    line.number("time", format_args!("\"{second}.{:06}Z\"", record.time.subsec_micros()));
    match &record.event {
        Event::ProcessStart { version, identities, rules } => {
            line.text("type", "process.start");
            line.text("version", version);
            line.number("identities", identities);
            line.number("rules", rules);
        }
        Event::ProcessStop => line.text("type", "process.stop"),
        Event::ConnectionOpen { connection, source, tls, authority, facts, principal } => {
            line.text("type", "connection.open");
            line.number("connection", connection.0);
            line.text("source", &source.to_string());
            line.text("tls", tls);
            line.text("ca", authority);
            match principal {
                Ok(principal) => line.text("principal", principal),
                Err(refusal) => line.text("refusal", refusal),
            }
            if let Some(facts) = facts {
                certificate(&mut line, facts);
            }
        }
        Event::ConnectionRefused { source, reason, detail, count } => {
            line.text("type", "connection.refused");
            if let Some(source) = source {
                line.text("source", &source.to_string());
            }
            line.text("reason", reason);
            line.text("detail", detail);
            line.number("count", count);
        }
        Event::ConnectionClose { connection, calls } => {
            line.text("type", "connection.close");
            line.number("connection", connection.0);
            if let Some(calls) = calls {
                line.number("calls", calls);
            }
        }
        Event::Decision(event) => decision(&mut line, event),
        Event::Outcome { call, outcome } => self::outcome(&mut line, *call, outcome),
    }
    line.close();
    bytes.push(b'\n');
}

fn call_id(line: &mut Line<'_>, call: CallId) {
    line.number("connection", call.connection.0);
    line.number("call", call.call);
}

fn decision(line: &mut Line<'_>, event: &DecisionEvent) {
    line.text("type", "decision");
    call_id(line, event.call);
    if let Some(principal) = &event.principal {
        line.text("principal", principal);
    }
    match &event.path {
        Path::Known(path) => line.text("rpc", path),
        Path::Unknown(path) => line.text("path", path),
    }
    match &event.verdict {
        Verdict::Allow(rules) => {
            line.text("verdict", "allow");
            line.name("rules");
            line.list(rules, |line, rule| line.string(rule));
        }
        Verdict::Deny { reason, rule, touch } => {
            line.text("verdict", "deny");
            line.text("reason", reason);
            if let Some(rule) = rule {
                line.text("rule", rule);
            }
            line.number("touch", touch);
        }
        Verdict::Refuse { reason, detail } => {
            line.text("verdict", "refuse");
            line.text("reason", reason);
            line.text("detail", detail);
        }
    }
    line.name("touches");
    line.list(&event.touches, touch);
    line.number("request_bytes", event.request_bytes);
}

fn touch(line: &mut Line<'_>, touch: &Touch) {
    line.begin_object();
    match touch {
        Touch::Key { verb, range } => {
            line.text("verb", verb.name());
            line.key("key", range.start());
            match range.end() {
                RangeEnd::Point => {}
                RangeEnd::Before(end) => line.key("range_end", end),
                RangeEnd::Infinity => line.flag("to_infinity", true),
            }
        }
        Touch::Store(verb) => line.text("verb", verb.name()),
        Touch::AttachLease(lease) => {
            line.text("verb", "lease");
            line.text("lease", &format!("{lease:x}"));
        }
    }
    line.close();
}

fn outcome(line: &mut Line<'_>, call: CallId, outcome: &Outcome) {
    line.text("type", "outcome");
    call_id(line, call);
    if let Some(status) = outcome.status {
        line.number("status", status);
    }
    if let Some(fault) = outcome.fault {
        line.text("fault", fault);
    }
    if let Some(revision) = outcome.facts.revision {
        line.number("revision", revision);
    }
    if let Some(count) = outcome.facts.count {
        line.number("count", count);
    }
    if let Some(succeeded) = outcome.facts.succeeded {
        line.flag("succeeded", succeeded);
    }
    line.number("response_bytes", outcome.response_bytes);
    line.number("latency_us", outcome.latency.as_micros());
}

fn certificate(line: &mut Line<'_>, facts: &CertificateFacts) {
    line.text("subject", &facts.subject);
    line.text("issuer", &facts.issuer);
    line.text("serial", &facts.serial);
    line.name("dns");
    line.list(&facts.dns, |line, name| line.string(name));
    line.name("uris");
    line.list(&facts.uris, |line, uri| line.string(uri));
    line.name("ips");
    line.list(&facts.ips, |line, ip| line.string(&ip.to_string()));
    line.text("fingerprint_sha256", &facts.fingerprint_sha256);
    line.text("spki_sha256", &facts.spki_sha256);
    line.text("not_after", &timestamp_of_seconds(facts.not_after_seconds));
}

fn timestamp_of_seconds(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| "unknown".to_owned())
}

/// A JSON object in the making.
struct Line<'a> {
    bytes: &'a mut Vec<u8>,
}

impl<'a> Line<'a> {
    fn open(bytes: &'a mut Vec<u8>) -> Self {
        bytes.push(b'{');
        Self { bytes }
    }

    fn begin_object(&mut self) {
        self.bytes.push(b'{');
    }

    fn close(&mut self) {
        self.bytes.push(b'}');
    }

    /// A comma unless the object or list has just begun.
    fn separate(&mut self) {
        if !matches!(self.bytes.last(), Some(b'{' | b'[')) {
            self.bytes.push(b',');
        }
    }

    /// INVARIANT: names are ours and need no escape.
    fn name(&mut self, name: &'static str) {
        self.separate();
        self.bytes.push(b'"');
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.extend_from_slice(b"\":");
    }

    /// Writing to a Vec cannot fail.
    fn string(&mut self, value: &str) {
        drop(serde_json::to_writer(&mut *self.bytes, value));
    }

    fn text(&mut self, name: &'static str, value: &str) {
        self.name(name);
        self.string(value);
    }

    fn number(&mut self, name: &'static str, value: impl Display) {
        self.name(name);
        drop(write!(self.bytes, "{value}"));
    }

    fn flag(&mut self, name: &'static str, value: bool) {
        self.number(name, value);
    }

    /// A key is a text when it is UTF-8; otherwise hex under another name, so that neither can be
    /// taken for the other.
    fn key(&mut self, name: &'static str, key: &StoredKey) {
        if let Ok(text) = std::str::from_utf8(key.as_bytes()) {
            self.text(name, text);
        } else {
            self.name(if name == "key" { "key_hex" } else { "range_end_hex" });
            self.bytes.push(b'"');
            for byte in key.as_bytes() {
                drop(write!(self.bytes, "{byte:02x}"));
            }
            self.bytes.push(b'"');
        }
    }

    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.bytes.push(b'[');
        for item in items {
            self.separate();
            write(self, item);
        }
        self.bytes.push(b']');
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::event::ConnectionId;
    use super::*;
    use crate::etcd::{KeyRange, KeyVerb, StoredKey};

    fn check(event: Event, expected: &str) {
        let record = Record { time: Duration::new(1_800_000_000, 1_000), event };
        let mut bytes = Vec::new();
        LineWriter::default().write(7, &record, &mut bytes);
        let line = String::from_utf8(bytes).unwrap();
        let _: serde_json::Value = serde_json::from_str(&line).unwrap();
        let head = "{\"v\":1,\"seq\":7,\"time\":\"2027-01-15T08:00:00.000001Z\",";
        assert_eq!(line, format!("{head}{expected}}}\n"));
    }

    fn decision_of(verdict: Verdict, touches: &[Touch]) -> Event {
        Event::Decision(DecisionEvent {
            call: CallId { connection: ConnectionId(3), call: 9 },
            principal: Some(Arc::from("tenant(cn=acme)")),
            path: Path::Known("/etcdserverpb.KV/Range"),
            verdict,
            touches: touches.iter().cloned().collect(),
            request_bytes: 12,
        })
    }

    #[test]
    fn a_decision_is_one_object() {
        let touches = [
            Touch::Key { verb: KeyVerb::Get, range: KeyRange::point(StoredKey::new("/a\n\"x")) },
            Touch::Key { verb: KeyVerb::List, range: KeyRange::prefix(b"\xff\x01") },
            Touch::Key { verb: KeyVerb::Delete, range: KeyRange::between(b"a", None).unwrap() },
            Touch::AttachLease(0x7f),
        ];
        check(
            decision_of(Verdict::Allow(smallvec::smallvec![Arc::from("r/1 (p.toml:3)")]), &touches),
            "\"type\":\"decision\",\"connection\":3,\"call\":9,\"principal\":\"tenant(cn=acme)\",\
             \"rpc\":\"/etcdserverpb.KV/Range\",\"verdict\":\"allow\",\"rules\":[\"r/1 (p.toml:3)\"],\
             \"touches\":[{\"verb\":\"get\",\"key\":\"/a\\n\\\"x\"},\
             {\"verb\":\"list\",\"key_hex\":\"ff01\",\"range_end_hex\":\"ff02\"},\
             {\"verb\":\"delete\",\"key\":\"a\",\"to_infinity\":true},\
             {\"verb\":\"lease\",\"lease\":\"7f\"}],\"request_bytes\":12",
        );
        let refuse = Verdict::Refuse { reason: "malformed", detail: "twice".to_owned() };
        check(
            decision_of(refuse, &[]),
            "\"type\":\"decision\",\"connection\":3,\"call\":9,\"principal\":\"tenant(cn=acme)\",\
             \"rpc\":\"/etcdserverpb.KV/Range\",\"verdict\":\"refuse\",\"reason\":\"malformed\",\
             \"detail\":\"twice\",\"touches\":[],\"request_bytes\":12",
        );
    }
}
