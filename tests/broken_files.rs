//! Broken configs and policies, each with its exact error, as `ringfence check` prints it.
//! `tests/snapshots/` holds the texts; INSTA_UPDATE=always writes them anew, to be read in the diff.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

const CONFIG: &str = r#"version = 1

[client]
listen = ["127.0.0.1:2379"]
certificate = "pki/ringfence-server.crt"
key = "pki/ringfence-server.key"

[[client.ca]]
name = "tenants"
roots = "pki/tenants-ca.crt"

[upstream]
endpoints = ["https://127.0.0.1:12379"]
ca = "pki/kubernetes-ca.crt"
certificate = "pki/ringfence-client.crt"
key = "pki/ringfence-client.key"

[audit]
directory = "audit"

[policy]
files = ["policy.toml"]
"#;

const POLICY: &str = r#"[[identity]]
name = "tenant"
match = { ca = "tenants", cn = "*" }
roles = ["tenant"]

[[role]]
name = "tenant"
rules = [
  { prefix = "/tenants/${cn}/", allow = ["get", "list", "put"] },
  { allow = ["compact"] },
]
"#;

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("certs/demo.toml");
    let made = ringfence(folder.path(), &["cert", "make", recipe.to_str().unwrap(), "pki"]);
    assert!(made.0, "{}", made.1);
    folder
}

fn ringfence(folder: &Path, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ringfence"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

/// Puts the two files in place, each with one text replaced, and compares what `check` says.
fn check(name: &str, config: (&str, &str), policy: (&str, &str)) {
    let folder = folder();
    let replaced = |text: &str, (old, new): (&str, &str)| {
        assert!(text.contains(old), "`{old}` is not in the file");
        text.replacen(old, new, 1)
    };
    fs::write(folder.path().join("ringfence.toml"), replaced(CONFIG, config)).unwrap();
    fs::write(folder.path().join("policy.toml"), replaced(POLICY, policy)).unwrap();
    let (success, said) = ringfence(folder.path(), &["check"]);
    assert!(!success, "{said}");
    insta::assert_snapshot!(name, said);
}

fn check_config(name: &str, old: &str, new: &str) {
    check(name, (old, new), ("", ""));
}

fn check_policy(name: &str, old: &str, new: &str) {
    check(name, ("", ""), (old, new));
}

#[test]
fn the_unbroken_files_are_fine() {
    let folder = folder();
    fs::write(folder.path().join("ringfence.toml"), CONFIG).unwrap();
    fs::write(folder.path().join("policy.toml"), POLICY).unwrap();
    let (success, said) = ringfence(folder.path(), &["check"]);
    assert!(success, "{said}");
    insta::assert_snapshot!("unbroken", said);
}

#[test]
fn every_mistake_of_a_config_is_told() {
    check_config("config_not_toml", "listen = [", "listen = 1 [");
    check_config("config_empty", CONFIG, "");
    check_config("config_unknown_key", "listen =", "lisen =");
    check_config("config_unknown_table", "[audit]", "[audits]");
    check_config("config_wrong_type", "[\"127.0.0.1:2379\"]", "2379");
    check_config(
        "config_number_out_of_bounds",
        "directory = \"audit\"",
        "directory = \"audit\"\nqueue_bytes = 1",
    );
    check_config("config_address", "127.0.0.1:2379", "localhost:2379");
    check_config("config_certificate_missing", "ringfence-server.crt", "gone.crt");
    check_config("config_key_of_another", "pki/ringfence-server.key", "pki/acme.key");
    check_config("config_roots_not_pem", "pki/tenants-ca.crt", "policy.toml");
    check_config("config_endpoint_not_loopback", "https://127.0.0.1", "http://10.0.0.1");
    check_config("config_endpoint_scheme", "https://127.0.0.1:12379", "127.0.0.1:12379");
    check_config("config_upstream_without_ca", "ca = \"pki/kubernetes-ca.crt\"\n", "");
    check_config("config_upstream_without_key", "key = \"pki/ringfence-client.key\"\n", "");
    check_config(
        "config_audit_mode",
        "directory = \"audit\"",
        "mode = \"sometimes\"\ndirectory = \"audit\"",
    );
    check_config("config_policy_missing", "policy.toml", "policy.d/*.toml");
    check_config("config_version", "version = 1", "version = 2");
}

#[test]
fn every_mistake_of_a_policy_is_told() {
    check_policy("policy_unknown_verb", "\"get\"", "\"read\"");
    check_policy("policy_verb_without_keys", "\"compact\"", "\"get\"");
    check_policy("policy_verb_with_keys", "\"get\"", "\"compact\"");
    check_policy("policy_unknown_role", "roles = [\"tenant\"]", "roles = [\"tenants\"]");
    check_policy("policy_unknown_ca", "ca = \"tenants\"", "ca = \"kubernetes\"");
    check_policy(
        "policy_identity_twice",
        "[[role]]",
        "[[identity]]\nname = \"tenant\"\nmatch = { ca = \"tenants\", cn = \"x\" }\nroles = [\"tenant\"]\n\n[[role]]",
    );
    check_policy(
        "policy_role_twice",
        "[[role]]",
        "[[role]]\nname = \"tenant\"\nrules = []\n\n[[role]]",
    );
    check_policy("policy_matches_everybody", ", cn = \"*\"", "");
    check_policy("policy_template", "${cn}", "${serial}");
    check_policy("policy_template_open", "${cn}", "${cn");
    check_policy("policy_key_and_prefix", "prefix =", "key = \"k\", prefix =");
    check_policy(
        "policy_range_inverted",
        "prefix = \"/tenants/${cn}/\"",
        "range = { from = \"b\", to = \"a\" }",
    );
    check_policy("policy_glob", "cn = \"*\"", "cn = \"a**\"");
    check_policy("policy_ip_and_spki", "cn = \"*\"", "ip = \"10.0.0\", spki = \"abc\"");
    check_policy("policy_hex", "prefix =", "encoding = \"hex\", prefix =");
    check_policy("policy_rule_without_verbs", ", allow = [\"get\", \"list\", \"put\"]", "");
    check_policy("policy_empty_key", "prefix = \"/tenants/${cn}/\"", "key = \"\"");
}

#[test]
fn several_mistakes_in_several_files_are_told_in_one_run() {
    check(
        "several_mistakes",
        (
            CONFIG,
            &CONFIG
                .replace("listen =", "lisen =")
                .replace("audit", "audits")
                .replace("https", "ftp"),
        ),
        (POLICY, &POLICY.replace("\"get\"", "\"read\"").replace("[\"tenant\"]", "[\"nobody\"]")),
    );
}
