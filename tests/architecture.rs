//! Keeps the arrows of ARCHITECTURE.md one way: which modules each module may name, what the pure
//! ones may not name at all, and where the values that carry the security are made.
//!
//! It reads tokens, not Rust: comments and strings are left out, macros are not expanded.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::string_slice, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};

/// Module, the `crate::` modules it may name, whether it is pure. ARCHITECTURE.md shows the same.
const MAP: [(&str, &str, bool); 21] = [
    (
        "cli",
        "server config evidence pki policy identity document etcd tls chain keyed_hash clock",
        false,
    ),
    ("server", "config document proxy admin upstream audit tls pki policy metrics clock", false),
    (
        "config",
        "proxy upstream audit sink tls policy identity document etcd keyed_hash regular_file",
        false,
    ),
    ("admin", "upstream audit metrics", false),
    ("proxy", "upstream audit tls policy identity grpc etcd metrics clock", false),
    ("upstream", "audit tls policy grpc etcd metrics", false),
    ("audit", "sink identity etcd chain keyed_hash regular_file clock", false),
    ("sink", "tls chain", false),
    ("evidence", "chain keyed_hash regular_file", false),
    ("tls", "document chain regular_file", false),
    ("pki", "document chain keyed_hash regular_file", false),
    ("metrics", "etcd", false),
    ("clock", "", false),
    ("chain", "", true),
    ("regular_file", "", false),
    ("keyed_hash", "chain", true),
    ("policy", "document identity etcd", true),
    ("identity", "", true),
    ("document", "", true),
    ("grpc", "", true),
    ("etcd", "", true),
];

/// What a pure module may not name: I/O, time, threads, and everything that waits.
const IMPURE: &str = "tokio tokio_rustls hyper hyper_util h2 http_body_util rustls socket2 tracing \
    prometheus_client rcgen SystemTime Instant OffsetDateTime UtcDateTime TcpStream TcpListener UdpSocket \
    UnixStream UnixListener UnixDatagram ToSocketAddrs async await";
const IMPURE_IN_STD: &str = "fs io os env process thread *";

/// Tokens that may stand in these files only (a folder ends with `/`).
const RESERVED: [(&str, &str); 15] = [
    ("Permit :: new (", "src/policy/decide/mod.rs"),
    ("Permit {", "src/policy/permit.rs src/policy/decide/mod.rs"),
    // Permits for steps of ringfence's own: which keys a lease holds, and the lease of a lock.
    ("permit_look_up", "src/policy/ src/proxy/authorize.rs"),
    ("permit_session_lease", "src/policy/ src/proxy/relay.rs"),
    // And for its log-ins as users of etcd.
    ("permit_log_in", "src/policy/ src/proxy/acting.rs"),
    ("permit_probe", "src/policy/ src/proxy/acting.rs"),
    // And for the end of a watch that is allowed no more.
    ("permit_cancel_watch", "src/policy/ src/proxy/stream/judge.rs"),
    ("HttpPermit {", "src/policy/http.rs"),
    ("Recorded {", "src/audit/recorded.rs src/audit/recorder.rs"),
    ("Recorded :: of (", "src/audit/recorder.rs"),
    ("Recorded :: left_out (", "src/audit/recorder.rs"),
    // What leaves a call out of the log.
    ("LeftOut ( ( ) )", "src/audit/level/mod.rs"),
    ("forward", "src/upstream/ src/proxy/"),
    ("forward_http", "src/upstream/ src/proxy/"),
    ("TcpStream :: connect", "src/upstream/connection.rs src/sink/ src/cli/demo src/cli/status.rs"),
];

#[test]
fn the_arrows_point_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = fs::read_to_string(root.join("src/lib.rs")).unwrap();
    assert!(MAP.iter().all(|row| library.contains(&format!("pub mod {};", row.0))));
    let mut faults = Vec::new();
    for path in sources(&root.join("src")) {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        faults.extend(check(&name, &fs::read_to_string(&path).unwrap()));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_document_shows_this_map() {
    let text = include_str!("../ARCHITECTURE.md");
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| `")?.split(" | ").collect();
        let [name, _, arrows, pure] = cells.as_slice() else { return None };
        let name = name.strip_suffix("/`").or_else(|| name.strip_suffix(".rs`"))?;
        Some((name.to_owned(), arrows.trim_matches('-').to_owned(), pure.starts_with("yes")))
    });
    let expected = MAP.map(|row| (row.0.to_owned(), row.1.replace(' ', ", "), row.2));
    assert_eq!(rows.collect::<Vec<_>>(), expected);
}

#[test]
fn a_fault_is_found() {
    let finds = |file: &str, source: &str, fault: &str| {
        let found = check(file, source).join("\n");
        assert!(found.contains(fault), "{source}: `{found}`");
    };
    let rule = "src/policy/rule.rs";
    finds(rule, "use tokio::sync::Semaphore;", "policy may not name tokio");
    finds(rule, "fn f() { std::time::Instant::now(); }", "may not name Instant");
    finds(rule, "use std :: /* x */ {collections::BTreeMap, fs};", "policy may not name fs");
    finds(rule, "use crate::{etcd, upstream::Pool};", "policy may not name upstream");
    finds(rule, "use super::super::tls::provider;", "policy may not name tls");
    finds("src/policy/mod.rs", "use super::{etcd, tls as t};", "policy may not name tls");
    finds(rule, "use crate as everything;", "policy may not name crate");
    finds(rule, "fn f(p: P) { Permit::new(p); }", "Permit :: new (");
    finds("src/proxy/page/mod.rs", "HttpPermit { request, rule }", "HttpPermit {");
    finds("src/proxy/call.rs", "let r = Recorded { call };", "Recorded {");
    finds("src/admin/mod.rs", "use crate::upstream::forward;", "forward");
    finds("src/admin/mod.rs", "use crate::upstream::forward_http;", "forward_http");
    finds("src/proxy/call.rs", "use crate::config::Config;", "proxy may not name config");
    finds("src/new/mod.rs", "", "not in the map");
    let harmless = "//! tokio::spawn\n/* rustls std::fs */ const A: &str = \"crate::tls \\\" tokio\"; \
        const B: &str = r#\"h2 \" \"#; fn f<'a>(x: &'a str) -> char { '\"' } const C: u8 = b'\\''; \
        use super::intervals::Intervals; use std::net::IpAddr; use crate::{etcd::{Touch, Rpc}};";
    assert_eq!(check(rule, harmless), [""; 0]);
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .collect()
}

/// What is wrong with one file; its name is relative to the repository.
fn check(file: &str, source: &str) -> Vec<String> {
    let parts: Vec<&str> = file.trim_end_matches(".rs").split('/').skip(1).collect();
    // How many `super::` lead from the file's module to the root of the crate.
    let depth = parts.len() - usize::from(parts.last() == Some(&"mod"));
    let (module, tokens) = (parts[0], tokens(source));
    let mut faults = Vec::new();
    for (reserved, files) in RESERVED {
        let wanted: Vec<&str> = reserved.split(' ').collect();
        let found = tokens.windows(wanted.len()).any(|window| window == wanted);
        if found && !files.split(' ').any(|allowed| file.starts_with(allowed)) {
            faults.push(format!("{file}: `{reserved}` belongs into {files}"));
        }
    }
    if ["main", "lib"].contains(&module) {
        return faults;
    }
    let Some((_, allowed, pure)) = MAP.iter().find(|row| row.0 == module) else {
        return vec![format!("{file}: {module} is not in the map")];
    };
    let right = |name: &str| name == module || listed(allowed, name);
    let mut supers = 0;
    for (at, token) in tokens.iter().enumerate() {
        supers = if token == "super" { supers + 1 } else { supers * usize::from(token == "::") };
        let mut named = heads(&tokens[at + 1..]);
        match token.as_str() {
            "crate" if tokens[at + 1] == "as" => named.push("crate"),
            "crate" => named.retain(|name| !right(name)),
            // Modules inside a file add levels, so only names from the map count here.
            "super" if supers >= depth => {
                named.retain(|name| !right(name) && MAP.iter().any(|row| row.0 == *name));
            }
            "std" if *pure => named.retain(|name| listed(IMPURE_IN_STD, name)),
            name if *pure && listed(IMPURE, name) => named = vec![name],
            _ => named.clear(),
        }
        faults.extend(named.iter().map(|name| format!("{file}: {module} may not name {name}")));
    }
    faults
}

fn listed(list: &str, name: &str) -> bool {
    list.split_whitespace().any(|other| other == name)
}

/// The first names behind `::`: one, or those of a group.
fn heads(tokens: &[String]) -> Vec<&str> {
    let (mut heads, mut depth) = (vec![], 0);
    for pair in tokens.windows(2) {
        depth += i32::from(pair[0] == "{") - i32::from(pair[0] == "}");
        let separators = if depth == 0 { "::" } else { "{ ," };
        if depth <= 1 && listed(separators, &pair[0]) && pair[1] != "{" {
            heads.push(pair[1].as_str());
        }
        if depth == 0 && pair[1] != "{" {
            break;
        }
    }
    heads
}

/// Names, `::` and single characters; comments, strings and character literals are left out.
fn tokens(source: &str) -> Vec<String> {
    let (mut tokens, mut rest) = (Vec::new(), &*source.replace(|c: char| !c.is_ascii(), "?"));
    while let Some(first) = rest.chars().next() {
        let plain = |c: char| c.is_alphanumeric() || c == '_';
        let name = rest.split(|c| !plain(c)).next().unwrap_or_default();
        let hashes = rest.trim_start_matches(['b', 'r']).split('"').next().unwrap_or_default();
        let raw = ["r", "br"].contains(&name) && hashes.bytes().all(|byte| byte == b'#');
        let character =
            first == '\'' && (rest[1..].starts_with('\\') || rest[1..].find('\'') == Some(1));
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |at| at + 2)
        } else if raw && rest[name.len() + hashes.len()..].starts_with('"') {
            let open = name.len() + hashes.len() + 1;
            let close = format!("\"{hashes}");
            rest[open..].find(&close).map_or(rest.len(), |at| open + at + close.len())
        } else if first == '"' || character {
            let mut at = 1;
            while !rest[at..].starts_with(first) {
                at += if rest[at..].starts_with('\\') { 2 } else { 1 };
            }
            at + 1
        } else {
            let length = if rest.starts_with("::") { 2 } else { name.len().max(first.len_utf8()) };
            tokens.extend((!first.is_whitespace()).then(|| rest[..length].to_owned()));
            length
        };
        rest = &rest[length..];
    }
    tokens.push("end".to_owned());
    tokens
}
