//! Broken configs and policies, each with its exact error, as `ringfence check` prints it.
//! `snapshots/` holds the texts; INSTA_UPDATE=always writes them anew, to be read in the diff.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod audit;
mod upgrade;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
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

/// As `check`, for files that work and are probably not meant.
fn warn(name: &str, config: &str, policy: &str) {
    let folder = folder();
    fs::write(folder.path().join("ringfence.toml"), config).unwrap();
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    let (success, said) = ringfence(folder.path(), &["check"]);
    assert!(success, "{said}");
    assert!(said.contains("warning: "), "{said}");
    let date = said.split("moment was ").nth(1).and_then(|rest| rest.lines().next());
    insta::assert_snapshot!(name, said.replace(date.unwrap_or("no date"), "DATE"));
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
    let http = |endpoints: &str| format!("[upstream]\nhttp_endpoints = {endpoints}");
    for (name, endpoints) in [
        (
            "config_http_endpoint_not_loopback",
            "[\"https://127.0.0.1:1\", \"http://10.0.0.1:12378\"]",
        ),
        ("config_http_endpoint_scheme", "[\"127.0.0.1:12378\"]"),
        ("config_http_endpoint_with_a_path", "[\"https://127.0.0.1:12378/health\"]"),
        ("config_http_endpoints_empty", "[]"),
        ("config_http_endpoints_no_list", "\"https://127.0.0.1:12378\""),
    ] {
        check_config(name, "[upstream]", &http(endpoints));
    }
    check_config(
        "config_http_endpoint_without_ca",
        "endpoints = [\"https://127.0.0.1:12379\"]\nca = \"pki/kubernetes-ca.crt\"\n",
        "endpoints = [\"unix:///run/etcd.sock\"]\nhttp_endpoints = [\"https://127.0.0.1:12378\"]\n",
    );
    check_config("config_upstream_without_ca", "ca = \"pki/kubernetes-ca.crt\"\n", "");
    check_config("config_upstream_without_key", "key = \"pki/ringfence-client.key\"\n", "");
    check_config(
        "config_audit_mode",
        "directory = \"audit\"",
        "mode = \"sometimes\"\ndirectory = \"audit\"",
    );
    check_config("config_lease_keys", "[audit]", "[leases]\nkeys = \"policy.toml\"\n[audit]");
    let advertise = "[client.advertise]\ninfra0 = [\"https://127.0.0.1:12379\"]\n\
        infra1 = [\"infra1:2379\"]\ninfra2 = 7\n[upstream]";
    check_config("config_advertise", "[upstream]", advertise);
    check_config("config_policy_missing", "policy.toml", "policy.d/*.toml");
    check_config("config_version", "version = 1", "version = 2");
    check_config("config_table_not_closed", "[audit]", "[audit # where records are");
    check_config("config_quote_not_closed", "\"audit\"", "\"audit # where records are");
    let small = "[limits]\nrequest_bytes_per_principal = 4096\n\n[audit]";
    check_config("config_share_too_small", "[audit]", small);
    let twice = "[[client.ca]]\nname = \"tenants\"\nroots = \"gone.crt\"\n\n[[client.ca]]";
    check_config("config_ca_twice", "[[client.ca]]", twice);
    check_config("config_policy_pattern", "policy.toml", "a**b");
    check_config("config_key_missing", "ringfence-server.key", "gone.key");
    let twice = "[\"0.0.0.0:2379\", \"127.0.0.1:2379\", \"127.0.0.1:9379\"]";
    check_config("config_address_twice", "[\"127.0.0.1:2379\"]", twice);
    check_config("config_audit_no_folder", "\"audit\"", "\"policy.toml/audit\"");
    check_config("config_text_for_a_list", "[\"127.0.0.1:2379\"]", "\"127.0.0.1:2379\"");
    check_config("config_roots_are_a_key", "tenants-ca.crt", "tenants-ca.key");
    check_config("config_certificate_for_a_key", "ringfence-server.key", "ringfence-server.crt");
}

#[test]
fn every_file_is_opened_even_when_no_endpoint_is_https() {
    let unix =
        |rest: &str| format!("[upstream]\nendpoints = [\"unix:///run/etcd\"]\n{rest}[audit]");
    let (head, tail) = (CONFIG.split("[upstream]").next(), CONFIG.split("[audit]").nth(1));
    let whole = |rest| [head.unwrap(), &unix(rest), tail.unwrap()].concat();
    let missing = whole("ca = \"a\"\ncertificate = \"b\"\nkey = \"c\"\n");
    check_config("config_unused_files_missing", CONFIG, &missing);
    check_config("config_unused_certificate", CONFIG, &whole("certificate = \"b\"\n"));
}

#[test]
fn what_will_not_work_is_warned_of() {
    let swapped = CONFIG
        .replace("ringfence-server", "swapped")
        .replace("ringfence-client", "expired")
        .replace("swapped", "ringfence-client");
    warn("warned_certificates", &swapped, POLICY);
    warn("warned_no_identity", CONFIG, "");
    let idle = "[[role]]\nname = \"idle\"\n\n[[role]]\nname = \"none\"\nrules = [\n  \
        { key = \"a\", allow = [] },\n  { key = \"a\", allow = [\"get\"], deny = [] },\n]\n\n[[role]]";
    warn("warned_rules", CONFIG, &POLICY.replace("[[role]]", idle));
}

/// Files that `ringfence` cannot use, each put in the place of another.
#[test]
fn a_file_of_another_kind_is_told_from_a_broken_one() {
    let folder = folder();
    fs::write(folder.path().join("policy.toml"), POLICY).unwrap();
    let pem = fs::read_to_string(folder.path().join("pki/tenants-ca.crt")).unwrap();
    let key = fs::read_to_string(folder.path().join("pki/acme.key")).unwrap();
    for (name, file, bytes) in [
        ("der.crt", "pki/tenants-ca.crt", b"\x30\x82\x01\xff\xfe".to_vec()),
        ("der.key", "pki/ringfence-server.key", b"\x30\x82\x01\xff\xfe".to_vec()),
        ("cut.crt", "pki/tenants-ca.crt", pem.split("-----END").next().unwrap().into()),
        (
            "encrypted.key",
            "pki/ringfence-server.key",
            key.replace("PRIVATE", "ENCRYPTED PRIVATE").into(),
        ),
        ("latin.toml", "policy.toml", b"# caf\xc3\xa9\n# caf\xe9\n".to_vec()),
    ] {
        fs::write(folder.path().join(name), bytes).unwrap();
        fs::write(folder.path().join("ringfence.toml"), CONFIG.replace(file, name)).unwrap();
        let (success, said) = ringfence(folder.path(), &["check"]);
        assert!(!success, "{said}");
        insta::assert_snapshot!(format!("kind_{name}"), said);
    }
}

#[test]
fn a_pipe_is_refused_instead_of_waited_for() {
    let folder = folder();
    for (name, config) in [
        ("ringfence.toml", ""),
        ("policy.toml", CONFIG),
        ("lease-keys", &format!("{CONFIG}\n[leases]\nkeys = \"lease-keys\"\n")),
        ("roots", &CONFIG.replace("pki/tenants-ca.crt", "roots")),
    ] {
        fs::write(folder.path().join("ringfence.toml"), config).unwrap();
        fs::write(folder.path().join("policy.toml"), POLICY).unwrap();
        let path = folder.path().join(name);
        drop(fs::remove_file(&path));
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let mut checking = Command::new(env!("CARGO_BIN_EXE_ringfence"))
            .arg("check")
            .current_dir(folder.path())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let ended = (0..3000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            checking.try_wait().unwrap().is_some()
        });
        if !ended {
            checking.kill().unwrap();
        }
        let output = checking.wait_with_output().unwrap();
        fs::remove_file(&path).unwrap();
        assert!(ended, "`{name}` was waited for");
        assert!(!output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        let told = said.contains(&format!("`{name}`")) && said.contains("is no regular file");
        assert!(told, "{said}");
    }
}

#[test]
fn a_port_that_is_taken_is_said_with_its_setting() {
    let folder = folder();
    fs::write(folder.path().join("policy.toml"), POLICY).unwrap();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let config = CONFIG.replace("127.0.0.1:2379", "127.0.0.1:0");
    for (setting, config) in [
        ("client.listen", CONFIG.replace("127.0.0.1:2379", &taken.to_string())),
        ("admin.listen", format!("{config}\n[admin]\nlisten = \"{taken}\"\n")),
    ] {
        fs::write(folder.path().join("ringfence.toml"), config).unwrap();
        let (success, said) = ringfence(folder.path(), &["serve"]);
        assert!(!success, "{said}");
        let expected = format!("error: cannot listen on {taken}, `{setting}`: Address");
        assert!(said.contains(&expected), "{said}");
    }
    drop(holder);
}

#[test]
fn a_config_that_is_not_there_is_said_with_a_hint() {
    let folder = folder();
    let (success, said) = ringfence(folder.path(), &["check"]);
    assert!(!success, "{said}");
    insta::assert_snapshot!("config_missing", said);
}

#[test]
fn two_patterns_and_a_folder_with_brackets_name_a_file_once() {
    let folder = folder();
    let inner = folder.path().join("br[1]");
    fs::create_dir(&inner).unwrap();
    fs::rename(folder.path().join("pki"), inner.join("pki")).unwrap();
    fs::write(inner.join("policy.toml"), POLICY).unwrap();
    let files = "\"policy.toml\", \"p*.toml\", \"./policy.toml\", \"../br?1?/pol*.toml\"";
    let config = CONFIG.replace("\"policy.toml\"", files);
    fs::write(inner.join("ringfence.toml"), config).unwrap();
    let (success, said) = ringfence(folder.path(), &["check", "--config", "br[1]/ringfence.toml"]);
    assert!(success, "{said}");
    assert_eq!(said, "br[1]/ringfence.toml: ok: 1 CAs, 1 identities, 2 rules\n");
}

/// Whoever runs the test: nobody may look into the folder, so root lends its place to another user.
#[test]
fn a_folder_that_cannot_be_looked_into_is_an_error_and_not_empty() {
    let folder = folder();
    fs::write(folder.path().join("policy.toml"), POLICY).unwrap();
    let (team, closed) = (folder.path().join("teams/a"), folder.path().join("teams/closed"));
    for team in [&team, &closed] {
        fs::create_dir_all(team).unwrap();
        fs::write(team.join("more.toml"), "").unwrap();
    }
    let program = folder.path().join("program");
    // By another process: a file that this one had open could be open still in what other tests start.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_ringfence")).arg(&program).status();
    assert!(copied.unwrap().success());
    let open =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let pki = folder.path().join("pki");
    for entry in fs::read_dir(&pki).unwrap() {
        open(&entry.unwrap().path(), 0o644);
    }
    open(&pki, 0o755);
    open(folder.path(), 0o755);
    open(&closed, 0o000);
    let root = fs::read_dir(&closed).is_ok();
    for pattern in ["teams/*/*.toml", "teams/*/more.toml", "teams/**/more.toml"] {
        let files = format!("\"policy.toml\", \"{pattern}\"");
        let config = CONFIG.replace("\"policy.toml\"", &files);
        fs::write(folder.path().join("ringfence.toml"), config).unwrap();
        let mut command = Command::new(&program);
        command.arg("check").current_dir(folder.path());
        if root {
            command.uid(65_534).gid(65_534);
        }
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{pattern}: {said}");
        let expected =
            "error: ringfence.toml:22: cannot look into `teams/closed`: Permission denied";
        assert!(said.starts_with(expected), "{pattern}: {said}");
    }
    open(&closed, 0o700);
}

#[test]
fn every_mistake_of_a_policy_is_told() {
    check_policy("policy_unknown_verb", "\"get\"", "\"read\"");
    check_policy("policy_verb_needs_a_setting", "\"compact\"", "\"lease\", \"member.list\"");
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
    check_policy("policy_template_not_parted", "${cn}/", "${org}-${cn}/");
    check_policy("policy_prefix_ends_with_a_variable", "${cn}/", "${cn}");
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
    check_policy("policy_encoding", "prefix =", "encoding = \"utf8\", prefix =");
    let limits =
        "roles = [\"tenant\"]\nlimits = { calls = 0, watch = 1, requests_per_second = \"5\" }";
    check_policy("policy_identity_limits", "roles = [\"tenant\"]", limits);
    check_policy("policy_not_toml", "[[role]]", "[[role]");
    check_policy("policy_empty_key", "prefix = \"/tenants/${cn}/\"", "key = \"\"");
}

/// As whom an identity reaches etcd: what is said of it must be whole, and what it names must be there.
#[test]
fn every_mistake_of_the_way_to_etcd_is_told() {
    let check = |name: &str, upstream: &str| {
        let more = format!("roles = [\"tenant\"]\nupstream = {{ {upstream} }}");
        check_policy(&format!("policy_upstream_{name}"), "roles = [\"tenant\"]", &more);
    };
    check("empty", "");
    check("half", "user = \"u\", key = \"k\"");
    check("both", "user = \"u\", password_file = \"p\", certificate = \"c\", key = \"k\"");
    check("unknown_key", "user = \"u\", password_file = \"p\", password = \"secret\"");
    check("no_file", "user = \"u\", password_file = \"missing\"");
    check("many_lines", "user = \"u\", password_file = \"pki/acme.crt\"");
    check("no_password", "user = \"u\", password_file = \"/dev/null\"");
    check("no_user", "user = \"\", password_file = \"p\"");
    check("other_variable", "user = \"${cn}\", password_file = \"pki/${org}\"");
    check("variable_in_one", "user = \"${cn}\", password_file = \"pki/p\"");
    check("two_variables", "user = \"${cn}/${org}\", password_file = \"pki/${cn}\"");
    check("variable_in_folder", "user = \"${cn}\", password_file = \"${cn}/password\"");
    check("no_folder", "user = \"${cn}\", password_file = \"passwords/${cn}\"");
    check("no_certificate", "certificate = \"pki/none.crt\", key = \"pki/acme.key\"");
    check("other_key", "certificate = \"pki/acme.crt\", key = \"pki/globex.key\"");
}

/// Not wrong, but probably not meant: a password for everybody to read, and a folder without any.
#[test]
fn what_is_odd_about_password_files_is_warned_of() {
    let folder = folder();
    fs::write(folder.path().join("ringfence.toml"), CONFIG).unwrap();
    let passwords = folder.path().join("passwords");
    fs::create_dir(&passwords).unwrap();
    let two = r#"
[[identity]]
name = "one"
match = { ca = "tenants", org = "one" }
roles = ["tenant"]
upstream = { user = "one", password_file = "passwords/one" }
[[identity]]
name = "same"
match = { ca = "tenants", org = "same" }
roles = ["tenant"]
upstream = { user = "o${cn}", password_file = "passwords/o${cn}" }
"#;
    let with_upstream = |upstream: &str| {
        let roles = "roles = [\"tenant\"]";
        let policy = POLICY.replacen(roles, &format!("{roles}\nupstream = {{ {upstream} }}"), 1);
        fs::write(folder.path().join("policy.toml"), format!("{policy}{two}")).unwrap();
    };
    let write = |name: &str, text: &str, mode| {
        fs::write(passwords.join(name), text).unwrap();
        fs::set_permissions(passwords.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    write("one", "a secret\n", 0o644);
    // What a mounted Secret and an editor leave there is nobody's password.
    fs::create_dir(passwords.join("..data.password")).unwrap();
    fs::create_dir(passwords.join("archive.password")).unwrap();
    write(".old.password", "", 0o600);
    with_upstream("user = \"${cn}\", password_file = \"passwords/${cn}.password\"");
    let (success, said) = ringfence(folder.path(), &["check"]);
    assert!(success, "{said}");
    insta::assert_snapshot!("password_warnings", said);
    // Two files for one user: with two passwords it is in doubt which.
    write("two", "another secret\n", 0o600);
    with_upstream("user = \"one\", password_file = \"passwords/two\"");
    let (success, said) = ringfence(folder.path(), &["check"]);
    assert!(!success && !said.contains("secret"), "{said}");
    insta::assert_snapshot!("password_twice", said);
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

#[test]
fn a_recipe_is_followed_whole_or_not_at_all() {
    let folder = folder();
    let recipe = "[[authority]]\nname = \"ca\"\ncommon_name = \"ca\"\n\n[[certificate]]\n\
        name = \"leaf\"\nauthority = \"ca\"\nuse = [\"client\"]\ndns = [\"caf\u{e9}\"]\n";
    fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
    let make = || ringfence(folder.path(), &["cert", "make", "recipe.toml", "made"]);
    let (success, said) = make();
    assert!(!success && said.starts_with("error: certificate `leaf`: "), "{said}");
    assert!(!folder.path().join("made").exists(), "{said}");

    fs::write(folder.path().join("recipe.toml"), recipe.replace('\u{e9}', "e")).unwrap();
    assert!(make().0);
    let (success, said) = make();
    let expected = "error: cannot write `made/ca.crt`: File exists (os error 17)\n  \
        hint: nothing is replaced: give another name\n";
    assert!(!success, "{said}");
    assert_eq!(said, expected);
}
