//! `ringfence can-i`: yes only to what `serve` would allow, no to whom it would refuse, and no answer to
//! what no request can ask.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

const POLICY: &str = r#"
[[identity]]
name = "apiserver"
match = { ca = "kubernetes", cn = "kube-apiserver-etcd-client" }
roles = ["reader"]

[[role]]
name = "reader"
rules = [
  { prefix = "/a/", allow = ["get", "put"] },
  { prefix = "/b/", allow = ["list"] },
  { prefix = "", allow = ["watch"] },
  { allow = ["compact"] },
]
"#;

fn ringfence(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let program = env!("CARGO_BIN_EXE_ringfence");
    let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let recipe = repository.join("certs/demo.toml");
    let made = ringfence(folder.path(), &["cert", "make", recipe.to_str().unwrap(), "pki"]);
    assert_eq!(made.0, Some(0), "{}", made.1);
    let config = fs::read_to_string(repository.join("config/full.toml")).unwrap();
    fs::write(folder.path().join("ringfence.toml"), config).unwrap();
    fs::write(folder.path().join("policy-a.toml"), POLICY).unwrap();
    folder
}

/// Asks, and compares the exit code and how the answer begins.
fn check(folder: &Path, certificate: &str, question: &[&str], code: i32, expected: &str) {
    let certificate = format!("pki/{certificate}");
    let arguments = [&["can-i", "--certificate", &certificate], question].concat();
    let (found, said) = ringfence(folder, &arguments);
    assert_eq!(found, Some(code), "{question:?}: {said}");
    assert!(said.starts_with(expected), "{question:?}: {said}");
}

#[test]
fn a_question_is_answered_as_serve_decides_it() {
    let folder = folder();
    let check = |question: &[&str], code, expected: &str| {
        check(folder.path(), "apiserver.crt", question, code, expected);
    };
    check(&["get", "/a/x"], 0, "yes: apiserver");
    check(&["get", "/b/x"], 1, "no: apiserver, no rule");
    check(&["list", "/b/", "--prefix"], 0, "yes: ");
    check(&["list", "/a/", "--prefix"], 1, "no: ");
    check(&["list", "", "--prefix"], 1, "no: ");
    check(&["watch", "", "--prefix"], 0, "yes: ");
    check(&["watch", "/c"], 0, "yes: ");
    check(&["delete", "/a/x", "/a/y"], 1, "no: ");
    check(&["compact"], 0, "yes: ");
    check(&["snapshot"], 1, "no: ");
}

#[test]
fn what_no_request_can_ask_gets_no_answer() {
    let folder = folder();
    let check = |question: &[&str], expected: &str| {
        check(folder.path(), "apiserver.crt", question, 2, expected);
    };
    check(&["get", "/a/", "--prefix"], "error: a range needs `list`");
    check(&["get", "/a/", "/a/x"], "error: a range needs `list`");
    check(&["put", "/a/", "--prefix"], "error: `put` is one key");
    check(&["list", "/b/x"], "error: `list` is a range");
    check(&["list"], "error: `list` needs a key");
    check(&["get", ""], "error: etcd has no empty key");
    check(&["list", "b", "a"], "error: the range end `a` is not after");
    check(&["compact", "--prefix"], "error: `compact` is about the whole store");
    check(&["compact", "/a"], "error: `compact` is about the whole store");
    let verbs = "error: `read` is no verb\n  hint: on keys: get, list, watch, put, delete; \
        on the store: lease, compact, ";
    check(&["read", "/a"], verbs);
}

#[test]
fn a_certificate_that_serve_would_refuse_is_a_no_in_plain_words() {
    let folder = folder();
    for (certificate, code, expected) in [
        ("expired.crt", 1, "no: `pki/expired.crt` is refused at the handshake: it has expired"),
        ("foreign.crt", 1, "no: `pki/foreign.crt` is refused at the handshake: no configured CA"),
        ("tenants-ca.crt", 1, "no: `pki/tenants-ca.crt` is refused at the handshake: it is a CA's"),
        ("etcd-server.crt", 1, "no: `pki/etcd-server.crt`: no identity matches"),
        (
            "ringfence-server.crt",
            1,
            "no: `pki/ringfence-server.crt` is refused at the handshake: its",
        ),
        (
            "acme.key",
            2,
            "error: `pki/acme.key` holds no certificate in PEM\n  hint: it holds a key",
        ),
        ("gone.crt", 2, "error: cannot read `pki/gone.crt`"),
    ] {
        check(folder.path(), certificate, &["get", "/a/x"], code, expected);
    }
}
