//! What is fuzzed, one function for each target: it takes any bytes, and panics when something that is
//! always true is not. `main.rs` runs them in the gate, `fuzz/` runs them for as long as one likes.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use ringfence::document::Problems;
use ringfence::etcd::response::{ResponseScan, StreamScan};
use ringfence::etcd::{CanonicalRequest, Page, PageRequest, Rpc, strict};
use ringfence::grpc::flood::{FrameFollower, FrameLimits};
use ringfence::grpc::frame::{FrameError, MessageReader, MessageSplitter, framed};
use ringfence::grpc::metadata::Metadata;
use ringfence::identity::{CertificateFacts, Glob};
use ringfence::policy::{
    Asker, Decision, FoundLeases, Identification, LeaseKeys, Policy, PolicySource, decide,
    decide_http,
};

/// One target.
pub(crate) type Entry = fn(&[u8]);

/// Every target by its name; `fuzz/fuzz_targets` has a file for each.
pub(crate) const ENTRIES: [(&str, Entry); 7] = [
    ("certificate", certificate),
    ("config", config),
    ("frame", frame),
    ("head", head),
    ("policy", policy),
    ("reply", reply),
    ("request", request),
];

/// The authorities that a policy under test may name.
const AUTHORITIES: [&str; 2] = ["tenants", "readers"];

/// Message frames and HTTP/2 frame heads. The first byte says how the others are cut: what is read must
/// not depend on it.
pub(crate) fn frame(data: &[u8]) {
    const MESSAGE_BYTES_MAX: usize = 300;
    let Some((first, data)) = data.split_first() else { return };
    let chunk_bytes = usize::from(*first).max(1);
    let read = |chunk_bytes: usize| {
        let mut reader = MessageReader::new(MESSAGE_BYTES_MAX);
        let mut chunks = data.chunks(chunk_bytes).map(Bytes::copy_from_slice);
        chunks.try_for_each(|chunk| reader.push(chunk)).and_then(|()| reader.finish())
    };
    let message = read(data.len().max(1));
    assert_eq!(message, read(chunk_bytes), "one message in chunks of {chunk_bytes}");
    if let Ok(message) = &message {
        assert_eq!(framed(message), data, "the frame of what was read");
    }
    let split = |chunk_bytes: usize| {
        let mut splitter = MessageSplitter::new(MESSAGE_BYTES_MAX);
        let mut messages = Vec::new();
        for chunk in data.chunks(chunk_bytes) {
            splitter.push(chunk);
            loop {
                match splitter.next_message() {
                    Ok(Some(message)) => messages.push(message),
                    Ok(None) => break,
                    Err(error) => return (messages, Err(error)),
                }
            }
        }
        (messages, Ok(splitter.buffered_bytes()))
    };
    let (messages, end) = split(data.len().max(1));
    assert_eq!((messages.clone(), end), split(chunk_bytes), "messages in chunks of {chunk_bytes}");
    let mut rest = data;
    for message in &messages {
        rest = rest.strip_prefix(&*framed(message)).expect("a message that was not sent");
    }
    if let Ok(buffered_bytes) = end {
        assert_eq!(buffered_bytes, rest.len(), "bytes that are neither read nor waiting");
    }
    let is_more_than_one = !messages.is_empty() && framed(&messages[0]).len() < data.len();
    assert_eq!(message == Err(FrameError::MoreThanOne), is_more_than_one);
    let follow = |chunk_bytes: usize| {
        let limits =
            FrameLimits { control_frames_per_second: 1, resets_per_second: 1, continuations: 2 };
        let mut follower = FrameFollower::new(limits);
        let now = Duration::from_secs(1);
        let followed = data.chunks(chunk_bytes).try_for_each(|chunk| follower.push(chunk, now));
        (followed, follower.has_seen_header_block(), follower.unfinished_since())
    };
    assert_eq!(
        follow(data.len().max(1)).0,
        follow(chunk_bytes).0,
        "frames in chunks of {chunk_bytes}"
    );
}

/// One request: the first byte picks the RPC. What is read is what is sent, and reading that again
/// changes nothing; what is permitted is what was read.
pub(crate) fn request(data: &[u8]) {
    let Some((first, body)) = data.split_first() else { return };
    let rpc = Rpc::ALL.iter().cycle().nth(usize::from(*first)).copied().unwrap_or(Rpc::Range);
    let body = Bytes::copy_from_slice(body);
    let Ok(request) = CanonicalRequest::read(rpc, &body, &mut || 0) else { return };
    let again = CanonicalRequest::read(rpc, request.body(), &mut || 0).expect("what is sent reads");
    assert_eq!(again, request, "{rpc:?}");
    let tenant = &*TENANT;
    let leases = LeaseKeys::new(&[[1; 32]]);
    let mut new_lease = || leases.new_lease(&tenant.principal, 7);
    let request = CanonicalRequest::read(rpc, &body, &mut new_lease).expect("it read before");
    let asker = Asker { identification: tenant, leases: &leases };
    match decide(asker, request.clone(), &FoundLeases::default()) {
        Decision::Allow(permit) => {
            assert_eq!(permit.body(), request.body(), "{rpc:?}");
            assert_eq!(permit.touches(), request.touches(), "{rpc:?}");
        }
        Decision::Deny(denial) => {
            let touches = request.touches().len();
            assert!(denial.touch < touches.max(1), "touch {} of {touches}", denial.touch);
        }
        Decision::LookUp(kept, wanted) => {
            assert_eq!(kept, request, "{rpc:?}");
            assert!(!wanted.is_empty());
        }
    }
}

/// What etcd answers: the facts do not depend on how it is cut. The first two bytes say how and to what.
pub(crate) fn reply(data: &[u8]) {
    let [first, second, data @ ..] = data else { return };
    let chunk_bytes = usize::from(*first).max(1);
    let rpc = Rpc::ALL.iter().cycle().nth(usize::from(*second)).copied().unwrap_or(Rpc::Range);
    let facts = |chunk_bytes: usize| {
        let (mut unary, mut stream, mut told) =
            (ResponseScan::new(rpc), StreamScan::default(), Vec::new());
        for chunk in data.chunks(chunk_bytes) {
            unary.push(chunk);
            stream.push(chunk, |facts| told.push(facts));
        }
        (unary.facts(), told, stream.is_between_messages())
    };
    assert_eq!(facts(data.len().max(1)), facts(chunk_bytes), "{rpc:?} in chunks of {chunk_bytes}");
    drop(strict::lease_keys(data));
}

/// A policy file. Every mistake has its line; what compiles names no rule that is not in it.
pub(crate) fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (mut source, problems) = (PolicySource::default(), Problems::default());
    source.read("policy.toml", text, &problems);
    let policy = Policy::compile(source, &AUTHORITIES, &problems);
    let is_sound = !problems.has_errors();
    check_problems(problems, text);
    if !is_sound {
        return;
    }
    for (ca, name) in [("tenants", "a"), ("readers", "b.c")] {
        let Ok(who) = policy.identify(ca, &facts(name)) else { continue };
        for page in Page::ALL {
            let request = PageRequest::read(*page, None).expect("no query is always right");
            drop(decide_http(&who.rights, request));
        }
        let leases = LeaseKeys::default();
        for (rpc, body) in SAMPLES {
            let asker = Asker { identification: &who, leases: &leases };
            let body = Bytes::from_static(body);
            let request = CanonicalRequest::read(rpc, &body, &mut || 0).expect("a good sample");
            if let Decision::Allow(permit) = decide(asker, request, &FoundLeases::default()) {
                for rule in permit.rules() {
                    assert_ne!(policy.rule_name(*rule), "unknown", "a rule that is nowhere");
                }
            }
        }
    }
}

/// A config file, in a folder of its own. Every mistake has its line.
pub(crate) fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A pattern may name half of the machine; none is needed to find mistakes in the rest.
    if text.contains(['*', '\\']) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder for the config");
    let path = folder.path().join("ringfence.toml");
    std::fs::write(&path, text).expect("a file for the config");
    let now = Duration::from_secs(1_800_000_000);
    let lines = text.split('\n').count();
    if let Err(problems) = ringfence::config::load(&path, now) {
        assert!(!problems.is_empty(), "refused without a reason");
        for problem in problems {
            assert!(problem.location.line <= lines, "{problem}");
        }
    }
}

/// A certificate in DER; or, behind a zero, a separator, a pattern and a value with zeros between.
pub(crate) fn certificate(data: &[u8]) {
    if let Some(text) = data.strip_prefix(b"\0") {
        return std::str::from_utf8(text).map_or((), check_glob);
    }
    let Ok(facts) = CertificateFacts::read(data) else { return };
    for ca in AUTHORITIES {
        if let Ok(who) = KNOWN.identify(ca, &facts) {
            assert!(who.principal.parts().next().is_some());
        }
    }
}

/// The head of a request: the target, then a header on each line.
pub(crate) fn head(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let target = lines.next().unwrap_or_default();
    if let Ok(uri) = Uri::try_from(target) {
        check_target(&uri);
    }
    let mut headers = HeaderMap::new();
    for line in lines.take(100) {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        let value = HeaderValue::from_bytes(value.strip_prefix(b":").unwrap_or_default());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), value) {
            headers.append(name, value);
        }
    }
    let Ok(metadata) = Metadata::read(&headers) else { return };
    let mut written = HeaderMap::new();
    metadata.write(&mut written);
    for (name, value) in &written {
        let text = value.to_str().expect("only ASCII travels on");
        match name.as_str() {
            "hasleader" => assert_eq!(text, "true"),
            "client-api-version" => assert!(text.starts_with("3.") && text.len() <= 4, "{text}"),
            other => panic!("`{other}` travels on"),
        }
    }
    written.insert("content-type", HeaderValue::from_static("application/grpc"));
    let again = Metadata::read(&written).expect("what travels on can be read");
    assert_eq!(Metadata { timeout: None, ..metadata }, again);
}

/// A path is known only as itself, and a query is written anew from fixed words.
fn check_target(uri: &Uri) {
    let path = uri.path_and_query().map_or("", |path| path.as_str());
    if let Some(rpc) = Rpc::from_path(path) {
        assert_eq!(rpc.path(), path);
    }
    let Some(page) = Page::from_path(uri.path()) else { return };
    assert_eq!(page.path(), uri.path());
    let Ok(request) = PageRequest::read(page, uri.query()) else { return };
    let target = request.target();
    let query = target.split_once('?').map(|(_, query)| query);
    assert_eq!(PageRequest::read(page, query).as_ref(), Ok(&request), "{target}");
    let mut asked: Vec<&str> = uri.query().unwrap_or_default().split('&').collect();
    let mut sent: Vec<&str> = query.unwrap_or_default().split('&').collect();
    asked.sort_unstable();
    sent.sort_unstable();
    assert_eq!(asked, sent, "another order, and nothing else");
}

/// Requests that a policy is asked about.
const SAMPLES: [(Rpc, &[u8]); 4] = [
    (Rpc::Range, b"\x0a\x04/a/x"),
    (Rpc::Range, b"\x0a\x01/\x12\x010"),
    (Rpc::Txn, b""),
    (Rpc::MemberList, b""),
];

const POLICY: &str = r#"
[[identity]]
name = "tenant"
match = { ca = "tenants", cn = "*" }
roles = ["tenant"]

[[identity]]
name = "service"
match = { ca = "readers", uri = "spiffe://*/ns/**", ip = "10.0.0.0/8" }
roles = ["tenant"]

[[role]]
name = "tenant"
rules = [
  { prefix = "/${cn}/", allow = ["get", "list", "watch", "put", "delete"] },
  { prefix = "/${cn}/secret/", deny = ["get", "list", "watch"] },
  { allow = ["lease", "status", "member.list", "health"] },
]
"#;

fn facts(name: &str) -> CertificateFacts {
    CertificateFacts { common_names: vec![name.to_owned()], ..CertificateFacts::default() }
}

static KNOWN: LazyLock<Policy> = LazyLock::new(|| {
    let (mut source, problems) = (PolicySource::default(), Problems::default());
    source.read("policy.toml", POLICY, &problems);
    let policy = Policy::compile(source, &AUTHORITIES, &problems);
    assert!(!problems.has_errors(), "the policy of the fuzz targets is sound");
    policy
});

static TENANT: LazyLock<Identification> =
    LazyLock::new(|| KNOWN.identify("tenants", &facts("a")).expect("the policy knows the tenant"));

fn check_problems(problems: Problems, text: &str) {
    let lines = text.split('\n').count();
    for problem in problems.into_sorted() {
        assert!(problem.location.line <= lines, "{problem}");
    }
}

/// A pattern against a slow look at every way to match it.
fn check_glob(text: &str) {
    const TEXT_BYTES_MAX: usize = 400;
    if text.len() > TEXT_BYTES_MAX {
        return;
    }
    let mut parts = text.splitn(3, '\0');
    let (Some(separator), Some(pattern), Some(value)) = (parts.next(), parts.next(), parts.next())
    else {
        return;
    };
    // What parts a value is never the star itself.
    let separator = separator.chars().next().filter(|separator| *separator != '*');
    let Ok(glob) = Glob::new(pattern, separator) else { return };
    let expected = match pattern.strip_suffix("**") {
        None => reaches_end(pattern, separator, value),
        Some(body) => {
            let mut heads = value.char_indices().map(|(end, _)| value.split_at(end).0);
            heads.any(|head| reaches_end(body, separator, head))
        }
    };
    assert_eq!(glob.matches(value), expected, "`{pattern}` on `{value}`");
}

/// All positions of the pattern that the value so far can have led to, one character after the other.
fn reaches_end(pattern: &str, separator: Option<char>, value: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let mut reached = BTreeSet::from([0]);
    for character in value.chars() {
        let mut next = BTreeSet::new();
        for position in reached {
            match pattern.get(position) {
                Some('*') if Some(character) != separator => next.extend([position, position + 1]),
                Some(wanted) if *wanted != '*' && *wanted == character => {
                    next.insert(position + 1);
                }
                _ => {}
            }
        }
        reached = next;
    }
    reached.contains(&pattern.len())
}
