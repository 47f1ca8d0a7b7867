//! One record, one JSON object, one line: docs/audit-format.md. Strings are escaped by serde_json;
//! the objects are written by hand, because this is done twice per request.

use std::fmt::Display;
use std::io::Write as _;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::chain_line;
use super::event::{
    CallId, DecisionEvent, Event, LevelsInForce, Outcome, Path, Record, RecordedEnd, RecordedKey,
    RecordedTouch, StreamEnd, Verdict,
};
use super::level::{Level, verb};
use crate::chain::{LineHash, push_hex};
use crate::etcd::Touch;
use crate::identity::CertificateFacts;

/// The version of the format; it grows when a field changes its meaning or goes.
const FORMAT_VERSION: u32 = 1;

/// The room for a body that is kept for the next one.
const SPARE_BYTES: usize = 16 << 10;

/// Writes lines; keeps the text of the last second, because a calendar is slow to work out and
/// thousands of records share one.
#[derive(Debug, Default)]
pub(super) struct LineWriter {
    second: u64,
    /// `2026-11-24T08:00:00`
    second_text: String,
    body: Vec<u8>,
}

impl LineWriter {
    pub(super) const fn new() -> Self {
        Self { second: 0, second_text: String::new(), body: Vec::new() }
    }

    /// A record as it will be written, but for its place in the chain: that stands before and behind it.
    pub(super) fn body_of(&mut self, record: &Record<'_>) -> &[u8] {
        self.note_second(record.time);
        self.body.clear();
        self.body.shrink_to(SPARE_BYTES);
        write(record, &self.second_text, &mut self.body);
        &self.body
    }

    /// Appends the record and a newline.
    ///
    /// `previous` is the hash of the line before; the hash of this one comes back.
    pub(super) fn write(
        &mut self,
        sequence: u64,
        previous: LineHash,
        record: &Record<'_>,
        bytes: &mut Vec<u8>,
    ) -> LineHash {
        write_line(sequence, previous, self.body_of(record), bytes)
    }

    /// A time as the line of a record of that time shows it.
    pub(super) fn time_text(&mut self, time: Duration) -> String {
        self.note_second(time);
        let mut text = Vec::new();
        push_time(&self.second_text, time.subsec_micros(), &mut text);
        String::from_utf8(text).unwrap_or_default()
    }

    fn note_second(&mut self, time: Duration) {
        let seconds = time.as_secs();
        if self.second_text.is_empty() || self.second != seconds {
            self.second = seconds;
            let text = timestamp_of_seconds(i64::try_from(seconds).unwrap_or(i64::MAX));
            text.trim_end_matches('Z').clone_into(&mut self.second_text);
        }
    }
}

/// Appends the line with that body and a newline; its hash comes back.
pub(super) fn write_line(
    sequence: u64,
    previous: LineHash,
    body: &[u8],
    bytes: &mut Vec<u8>,
) -> LineHash {
    let start = bytes.len();
    let mut line = Line::open(bytes);
    line.number("v", FORMAT_VERSION);
    line.number("seq", sequence);
    bytes.extend_from_slice(body);
    previous.close_line(bytes);
    let hash = LineHash::of(bytes.get(start..).unwrap_or_default());
    bytes.push(b'\n');
    hash
}

fn write(record: &Record<'_>, second: &str, bytes: &mut Vec<u8>) {
    // Its first field begins with a comma: it is never the first of the line.
    let mut line = Line { bytes };
    line.time("time", second, record.time.subsec_micros());
    match &record.event {
        Event::ProcessStart { version, identities, rules, beginning, levels } => {
            line.text("type", "process.start");
            line.text("version", version);
            line.number("identities", identities);
            line.number("rules", rules);
            chain_line::beginning(&mut line, beginning);
            levels_in_force(&mut line, levels);
        }
        Event::ProcessStop { left_out } => {
            line.text("type", "process.stop");
            if *left_out > 0 {
                line.number("left_out", left_out);
            }
        }
        Event::ConnectionOpen {
            connection,
            source,
            tls,
            authority,
            facts,
            principal,
            repeated,
        } => {
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
            if *repeated {
                line.flag("repeated", true);
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
        Event::ConnectionClose { connection, calls, reason } => {
            line.text("type", "connection.close");
            line.number("connection", connection.0);
            if let Some(calls) = calls {
                line.number("calls", calls);
            }
            if let Some(reason) = reason {
                line.text("reason", reason);
            }
        }
        Event::GenerationStart { .. }
        | Event::RevocationStart { .. }
        | Event::CertificateEnds { .. } => super::changes::change(&mut line, record),
        Event::Decision(event) => decision(&mut line, event),
        Event::Outcome { call, outcome } => self::outcome(&mut line, *call, outcome),
        Event::StreamEnd { call, end } => stream_end(&mut line, *call, end),
        Event::Chain(event) => chain_line::chain_event(&mut line, event),
    }
}

fn levels_in_force(line: &mut Line<'_>, levels: &LevelsInForce) {
    if !levels.rules.is_empty() {
        line.name("levels");
        line.list(&levels.rules, |line, rule| line.string(rule));
    }
    if let Some(hash_key) = &levels.hash_key {
        line.text("hash_key", hash_key);
        line.flag("value_hashes", levels.value_hashes);
    }
}

fn call_id(line: &mut Line<'_>, call: CallId) {
    line.number("connection", call.connection.0);
    line.number("call", call.call);
    if call.message > 0 {
        line.number("message", call.message);
    }
    if call.step > 0 {
        line.number("step", call.step);
    }
}

fn decision(line: &mut Line<'_>, event: &DecisionEvent<'_>) {
    line.text("type", "decision");
    call_id(line, event.call);
    if let Some(principal) = &event.principal {
        line.text("principal", principal);
    }
    match &event.path {
        Path::Known(path) => line.text("rpc", path),
        Path::Page(path) | Path::Unknown(path) => line.text("path", path),
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
    if event.touches.level < Level::Request {
        line.text("level", event.touches.level.name());
    }
    if event.touches.one_in > NonZeroU32::MIN {
        line.number("one_in", event.touches.one_in);
    }
    line.name("touches");
    line.list(&event.touches.touches, touch);
    line.number("request_bytes", event.request_bytes);
}

fn touch(line: &mut Line<'_>, touch: &RecordedTouch<'_>) {
    line.begin_object();
    match touch {
        RecordedTouch::Key { verb, start, end, value } => {
            line.text("verb", verb.name());
            line.key(&KEY, start);
            match end {
                RecordedEnd::Point => {}
                RecordedEnd::Before(end) => line.key(&RANGE_END, end),
                RecordedEnd::Infinity => line.flag("to_infinity", true),
            }
            if let Some(value) = value {
                line.displayed("value_hmac", value);
            }
        }
        RecordedTouch::Other(touch) => other_touch(line, touch),
        RecordedTouch::Verb(verb) => line.text("verb", verb),
    }
    line.close();
}

fn other_touch(line: &mut Line<'_>, touch: &Touch) {
    line.text("verb", verb(touch));
    match touch {
        Touch::Lease { lease, .. } => line.text("lease", &format!("{lease:x}")),
        Touch::CancelWatch(watch) => line.number("watch", watch),
        // Keys are recorded as copies.
        Touch::Key { .. } | Touch::Store(_) | Touch::WatchProgress => {}
    }
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

fn stream_end(line: &mut Line<'_>, call: CallId, end: &StreamEnd) {
    line.text("type", "stream.end");
    call_id(line, call);
    if let Some(status) = end.status {
        line.number("status", status);
    }
    if let Some(fault) = end.fault {
        line.text("fault", fault);
    }
    line.number("requests", end.requests);
    line.number("responses", end.responses);
    line.number("response_bytes", end.response_bytes);
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

/// What a record shows and what a checkpoint signs are made by this.
fn push_time(second: &str, micros: u32, bytes: &mut Vec<u8>) {
    let mut digits = *b".000000Z";
    let mut rest = micros;
    for digit in digits.iter_mut().rev().skip(1).take(6) {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
    }
    bytes.extend_from_slice(second.as_bytes());
    bytes.extend_from_slice(&digits);
}

pub(super) fn timestamp_of_seconds(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| "unknown".to_owned())
}

/// The names under which a key is written: as text or as hex, and what it was when it was cut.
struct KeyNames {
    text: &'static str,
    hex: &'static str,
    bytes: &'static str,
    sha256: &'static str,
    parts: &'static str,
    hmac: &'static str,
}

const KEY: KeyNames = KeyNames {
    text: "key",
    hex: "key_hex",
    bytes: "key_bytes",
    sha256: "key_sha256",
    parts: "key_is_cut",
    hmac: "key_hmac",
};
const RANGE_END: KeyNames = KeyNames {
    text: "range_end",
    hex: "range_end_hex",
    bytes: "range_end_bytes",
    sha256: "range_end_sha256",
    parts: "range_end_is_cut",
    hmac: "range_end_hmac",
};

/// A JSON object in the making.
pub(super) struct Line<'a> {
    bytes: &'a mut Vec<u8>,
}

impl<'a> Line<'a> {
    fn open(bytes: &'a mut Vec<u8>) -> Self {
        bytes.push(b'{');
        Self { bytes }
    }

    pub(super) fn begin_object(&mut self) {
        self.bytes.push(b'{');
    }

    pub(super) fn close(&mut self) {
        self.bytes.push(b'}');
    }

    /// A comma unless the object or list has just begun.
    fn separate(&mut self) {
        if !matches!(self.bytes.last(), Some(b'{' | b'[')) {
            self.bytes.push(b',');
        }
    }

    /// INVARIANT: names are ours and need no escape.
    pub(super) fn name(&mut self, name: &'static str) {
        self.separate();
        // Room for all of it at once.
        self.bytes.reserve(name.len() + 3);
        self.bytes.push(b'"');
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.extend_from_slice(b"\":");
    }

    /// Nearly every text stands as it is, and is copied at once. Writing to a Vec cannot fail.
    fn string(&mut self, value: &str) {
        // All of it, without a way out in between: so it is looked at many bytes at a time.
        let stands = |all: bool, byte: u8| all & (byte >= b' ') & (byte != b'"') & (byte != b'\\');
        if value.bytes().fold(true, stands) {
            self.bytes.reserve(value.len() + 2);
            self.bytes.push(b'"');
            self.bytes.extend_from_slice(value.as_bytes());
            self.bytes.push(b'"');
        } else {
            drop(serde_json::to_writer(&mut *self.bytes, value));
        }
    }

    pub(super) fn text(&mut self, name: &'static str, value: &str) {
        self.name(name);
        self.string(value);
    }

    /// serde_json writes a number several times as fast as the formatter does.
    pub(super) fn number(&mut self, name: &'static str, value: impl Serialize) {
        self.name(name);
        drop(serde_json::to_writer(&mut *self.bytes, &value));
    }

    fn time(&mut self, name: &'static str, second: &str, micros: u32) {
        self.name(name);
        self.bytes.push(b'"');
        push_time(second, micros, self.bytes);
        self.bytes.push(b'"');
    }

    /// INVARIANT: what is displayed needs no escape.
    fn displayed(&mut self, name: &'static str, value: impl Display) {
        self.name(name);
        drop(write!(self.bytes, "\"{value}\""));
    }

    fn flag(&mut self, name: &'static str, value: bool) {
        self.number(name, value);
    }

    fn key(&mut self, names: &KeyNames, key: &RecordedKey<'_>) {
        match key {
            RecordedKey::Plain { bytes, whole } => {
                self.key_bytes(names, bytes);
                if let Some(whole) = whole {
                    self.number(names.bytes, whole.length);
                    self.hex(names.sha256, &whole.sha256);
                }
            }
            RecordedKey::Parts(bytes) => {
                self.key_bytes(names, bytes);
                self.flag(names.parts, true);
            }
            RecordedKey::Hashed { prefix, hash } => {
                self.key_bytes(names, prefix);
                self.flag(names.parts, true);
                self.displayed(names.hmac, hash);
            }
        }
    }

    /// A key is a text when it is UTF-8 without control characters; otherwise hex under another name,
    /// so that neither can be taken for the other, and a line is never six times as long as its key.
    fn key_bytes(&mut self, names: &KeyNames, key: &[u8]) {
        match std::str::from_utf8(key) {
            Ok(text) if !text.contains(|c: char| c.is_ascii_control()) => {
                self.text(names.text, text);
            }
            Ok(_) | Err(_) => self.hex(names.hex, key),
        }
    }

    fn hex(&mut self, name: &'static str, bytes: &[u8]) {
        self.name(name);
        self.bytes.push(b'"');
        push_hex(bytes, self.bytes);
        self.bytes.push(b'"');
    }

    pub(super) fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.bytes.push(b'[');
        for item in items {
            self.separate();
            write(self, item);
        }
        self.bytes.push(b']');
    }
}

#[cfg(test)]
mod tests;
