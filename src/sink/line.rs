//! What a sink has to know of a line: how grave it is, and how it is said shorter when it is too long or not taken.
//!
//! A tenant chooses keys. What is sent in a line's place holds nothing that it chose without bound, and tells by hash
//! which line of the file it stands for.

use std::borrow::Cow;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::chain::{head, to_hex};

/// How grave a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    /// Records are missing somewhere.
    Error,
    /// Something was denied or refused.
    Warning,
    /// Anything else.
    Informational,
}

impl Severity {
    pub(super) fn of(line: &[u8]) -> Self {
        let kind = head(line).map_or("", |head| head.kind);
        match kind {
            "audit.gap" => Self::Error,
            "connection.refused" => Self::Warning,
            "decision" if !is_allowed(line) => Self::Warning,
            _ => Self::Informational,
        }
    }
}

/// Quotes in what a client chose are escaped, so the field is ours.
fn is_allowed(line: &[u8]) -> bool {
    let allowed = b"\"verdict\":\"allow\"";
    line.windows(allowed.len()).any(|window| window == allowed)
}

/// The fields of a record that are short whatever was asked.
#[derive(Deserialize, Serialize)]
struct Brief<'l> {
    v: u64,
    seq: u64,
    #[serde(borrow)]
    time: Cow<'l, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'l, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<u64>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    principal: Option<Cow<'l, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    source: Option<Cow<'l, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    rpc: Option<Cow<'l, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    path: Option<Cow<'l, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    verdict: Option<Cow<'l, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    reason: Option<Cow<'l, str>>,
    /// How long the line is that it stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    line_bytes: Option<usize>,
    /// SHA-256 of that line.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    line_sha256: Option<Cow<'l, str>>,
}

/// The line, or who did what and with which verdict when it has more bytes than `most` and a client had a part in it:
/// a first record is long because of the rules and of the chains before, and a witness needs all of it.
pub(super) fn shortened(line: &[u8], most: usize) -> Cow<'_, [u8]> {
    if line.len() <= most || !is_of_clients(line) {
        return Cow::Borrowed(line);
    }
    let brief = serde_json::from_slice::<Brief<'_>>(line).ok();
    let stub = brief.map(|brief| text_of(&stands_for(line, brief)));
    Cow::Owned(stub.filter(|stub| stub.len() <= most).unwrap_or_else(|| bare(line)))
}

/// Whether clients have a part in what the line says.
pub(super) fn is_of_clients(line: &[u8]) -> bool {
    let kinds = ["decision", "connection.open", "connection.refused"];
    head(line).is_some_and(|head| kinds.contains(&head.kind))
}

/// Whose line it is; empty when it is nobody's. The name stands before all that a client chooses for a call.
pub(super) fn principal_of(line: &[u8]) -> &[u8] {
    let field = b"\"principal\":\"";
    let mut rest = line.get(..line.len().min(4096)).unwrap_or(line);
    while let Some((first, behind)) = rest.split_first() {
        if rest.starts_with(field) {
            let value = rest.get(field.len()..).unwrap_or_default();
            return value.split(|byte| *byte == b'"').next().unwrap_or_default();
        }
        let _ = first;
        rest = behind;
    }
    b""
}

/// Nothing of the line that a client had a part in. It may itself stand for another: then this does, too.
pub(super) fn bare(line: &[u8]) -> Vec<u8> {
    let (seq, time, kind) =
        head(line).map_or((0, "", "unknown"), |head| (head.sequence, head.time, head.kind));
    let known = serde_json::from_slice::<Brief<'_>>(line).ok();
    let stood_for = known.and_then(|brief| brief.line_bytes.zip(brief.line_sha256)).unzip();
    let brief = Brief {
        v: 1,
        seq,
        time: time.into(),
        kind: kind.into(),
        connection: None,
        call: None,
        message: None,
        step: None,
        principal: None,
        source: None,
        rpc: None,
        path: None,
        verdict: None,
        reason: None,
        line_bytes: stood_for.0,
        line_sha256: stood_for.1,
    };
    text_of(&if brief.line_sha256.is_some() { brief } else { stands_for(line, brief) })
}

fn stands_for<'l>(line: &[u8], brief: Brief<'l>) -> Brief<'l> {
    let sha256 = to_hex(digest(&SHA256, line).as_ref());
    Brief { line_bytes: Some(line.len()), line_sha256: Some(sha256.into()), ..brief }
}

fn text_of(brief: &Brief<'_>) -> Vec<u8> {
    serde_json::to_vec(brief).unwrap_or_default()
}

/// This machine's name; empty when it has none.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(more: &str) -> String {
        format!(
            "{{\"v\":1,\"seq\":7,\"time\":\"2027-01-15T08:00:00.000001Z\",\"type\":\"decision\",\
             \"connection\":3,\"call\":9,\"principal\":\"acme\",\"rpc\":\"/etcdserverpb.KV/Txn\",{more}\
             \"request_bytes\":12,\"prev\":\"00\"}}"
        )
    }

    #[test]
    fn a_line_is_as_grave_as_its_own_verdict() {
        let check =
            |more: &str, expected| assert_eq!(Severity::of(line(more).as_bytes()), expected);
        check("\"verdict\":\"allow\",", Severity::Informational);
        check("\"verdict\":\"deny\",", Severity::Warning);
        // The attack: a denied key that reads like a verdict.
        check("\"verdict\":\"deny\",\"key\":\"\\\"verdict\\\":\\\"allow\\\"\",", Severity::Warning);
    }

    /// The attack: a request whose record is so long that collectors drop it, or what stands beside it.
    #[test]
    fn a_line_that_is_too_long_is_said_in_a_few_words() {
        let long = line(&format!(
            "\"verdict\":\"deny\",\"touches\":[{{\"key\":\"{}\"}}],",
            "\\\"".repeat(5000)
        ));
        assert_eq!(shortened(long.as_bytes(), 100_000), long.as_bytes());
        let short = String::from_utf8(shortened(long.as_bytes(), 8192).into_owned()).unwrap();
        let sha256 = to_hex(digest(&SHA256, long.as_bytes()).as_ref());
        assert_eq!(
            short,
            format!(
                "{{\"v\":1,\"seq\":7,\"time\":\"2027-01-15T08:00:00.000001Z\",\"type\":\"decision\",\
                 \"connection\":3,\"call\":9,\"principal\":\"acme\",\"rpc\":\"/etcdserverpb.KV/Txn\",\
                 \"verdict\":\"deny\",\"line_bytes\":{},\"line_sha256\":\"{sha256}\"}}",
                long.len()
            )
        );
        assert_eq!(Severity::of(short.as_bytes()), Severity::Warning);
        let of_short = bare(short.as_bytes());
        let bare = String::from_utf8(bare(long.as_bytes())).unwrap();
        assert_eq!(
            of_short,
            bare.as_bytes(),
            "it stands for the line of the file, not for its stub"
        );
        assert!(!bare.contains("acme") && bare.contains(&sha256) && bare.contains("\"seq\":7"));
        assert_eq!(*shortened(long.as_bytes(), 200), *bare.as_bytes());
        // What no client had a part in stays as it is.
        let first = long.replace("\"decision\"", "\"process.start\"");
        assert_eq!(shortened(first.as_bytes(), 8192), first.as_bytes());
    }
}
