//! Mistakes in `[audit]` and below it.

use super::{CONFIG, POLICY, check_config, warn};

fn check(name: &str, more: &str) {
    let audit = format!("directory = \"audit\"\n{more}");
    check_config(&format!("audit_{name}"), "directory = \"audit\"", &audit);
}

#[test]
fn every_mistake_of_the_audit_log_is_told() {
    check("no_key", "[audit.checkpoint]\nseconds = 0");
    check("key_missing", "[audit.checkpoint]\nkey = \"log-key\"");
    check("key_of_another_kind", "[audit.checkpoint]\nkey = \"pki/tenants-ca.key\"");
    check(
        "witness_odd",
        "[audit.checkpoint]\nkey = \"log-key\"\nwitness = \"pki\"\n[[audit.sink]]\nname = \"witness\"\nto = \"stdout\"",
    );
    // The attack, or the slip: what is written into the key is given away with it.
    for (name, witness) in [
        ("key", "pki/tenants-ca.key"),
        ("policy", "policy.toml"),
        ("no_folder", "no/such/folder/witness"),
        ("empty", ""),
        ("log", "audit"),
        ("folder", "records/"),
        ("long_name", &"w".repeat(300)),
    ] {
        let more = format!("[audit.checkpoint]\nkey = \"log-key\"\nwitness = {witness:?}");
        check(&format!("witness_{name}"), &more);
    }
    check("key_in_the_log", "[audit.checkpoint]\nkey = \"audit/key\"\nwitness = \"audit/w\"");
    check("rotate", "[audit.rotate]\ncompress = \"gzip\"\nbytes = -1\nkeep = 3");
}

/// The attack: who may write the folder puts another key there.
#[test]
fn a_key_in_a_folder_that_everybody_may_write_is_told() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = super::folder();
    let keys = folder.path().join("keys");
    std::fs::create_dir(&keys).unwrap();
    assert!(super::ringfence(folder.path(), &["audit", "keygen", "keys/log-key"]).0);
    let audit = "directory = \"audit\"\n[audit.checkpoint]\nkey = \"keys/log-key\"";
    let config = CONFIG.replace("directory = \"audit\"", audit);
    std::fs::write(folder.path().join("ringfence.toml"), config).unwrap();
    std::fs::write(folder.path().join("policy.toml"), POLICY).unwrap();
    for (mode, is_fine) in [(0o700, true), (0o1777, true), (0o777, false)] {
        std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(mode)).unwrap();
        let (success, said) = super::ringfence(folder.path(), &["check"]);
        assert_eq!(success, is_fine, "{mode:o}: {said}");
        assert_eq!(
            said.contains("`keys/log-key` lies in a folder that everybody may write"),
            !is_fine
        );
    }
}

/// The attack on the next start: records where it wants a policy, or keys.
#[test]
fn a_witness_that_is_not_there_yet_does_not_become_a_policy() {
    let audit = "[audit]\ndirectory = \"audit\"\n[audit.checkpoint]\nkey = \"log-key\"\nwitness = ";
    for (name, witness, more) in [
        ("policy_to_be", "policy-witness.toml", ""),
        ("policy_to_be_elsewhere", "pki/../policy-witness.toml", ""),
        ("keys_to_be", "no-keys-yet", "[leases]\nkeys = \"no-keys-yet\""),
    ] {
        let config = CONFIG.replace("\"policy.toml\"", "\".//pki/../policy*.toml\"");
        let config = config
            .replace("[audit]\ndirectory = \"audit\"", &format!("{audit}{witness:?}\n{more}"));
        check_config(&format!("audit_witness_{name}"), CONFIG, &config);
    }
}

#[test]
fn every_mistake_of_what_is_recorded_is_told() {
    check("level_nothing", "[[audit.level]]");
    check(
        "level_odd",
        "hash_key = \"pki/tenants-ca.key\"\nvalues = \"plain\"\n[[audit.level]]\nlevel = \"all\"\n\
         identities = [\"tenants\"]\nverbs = [\"read\"]\nprefixes = [\"\"]\nkeys = \"hash\"\none_in = 0",
    );
    check(
        "level_sampled_changes",
        "[[audit.level]]\nlevel = \"metadata\"\nverbs = [\"get\", \"delete\"]\none_in = 10\n\
         [[audit.level]]\nlevel = \"none\"\none_in = 10\nverbs = []",
    );
    check(
        "level_no_hash_key",
        "values = \"keyed-hash\"\n[[audit.level]]\nlevel = \"request\"\nkeys = \"keyed-hash\"\nkey_parts = 3",
    );
    check("level_hash_key_for_nothing", "hash_key = \"audit/no-such-file\"");
    check("level_lease", "[[audit.level]]\nlevel = \"none\"\nverbs = [\"lease\"]");
}

#[test]
fn a_rule_that_never_counts_is_warned_of() {
    let rules = "directory = \"audit\"\n[[audit.level]]\nlevel = \"metadata\"\nverbs = [\"get\", \"list\"]\n\
        [[audit.level]]\nlevel = \"request\"\nverbs = [\"get\"]\nprefixes = [\"/tenants/\"]\n\
        [[audit.level]]\nlevel = \"request\"\nverbs = [\"get\", \"put\"]";
    let config = CONFIG.replace("directory = \"audit\"", rules);
    warn("audit_level_for_nothing", &config, &POLICY.replace("\"compact\"", "\"status\""));
}

#[test]
fn what_may_leave_no_record_is_warned_of() {
    let config = CONFIG.replace(
        "directory = \"audit\"",
        "directory = \"audit\"\n[[audit.level]]\nlevel = \"none\"\nprefixes = [\"/tenants/\"]",
    );
    warn("audit_level_none_of_changes", &config, &POLICY.replace("\"compact\"", "\"status\""));
}

#[test]
fn every_mistake_of_a_sink_is_told() {
    check("sink_nothing", "[[audit.sink]]");
    check(
        "sink_odd",
        "[[audit.sink]]\nname = \"SIEM\"\nto = \"kafka://x\"\nrequired = \"yes\"\nlines = \"some\"\n\
         facility = \"kern\"\nauthorization = \"no-such-file\"\nca = \"policy.toml\"\nkey = \"k\"\n\
         deadline_seconds = 0\nqueue_bytes = 1\nline_bytes = 1",
    );
    check(
        "sink_settings_of_others",
        "[[audit.sink]]\nname = \"a\"\nto = \"stdout\"\nfacility = \"auth\"\nca = \"pki/tenants-ca.crt\"\n\
         [[audit.sink]]\nname = \"a\"\nto = \"stdout\"\n\
         [[audit.sink]]\nname = \"b\"\nto = \"syslog+unix://dev/log\"\n\
         [[audit.sink]]\nname = \"c\"\nto = \"syslog+tls://siem:6514\"\n\
         [[audit.sink]]\nname = \"d\"\nto = \"syslog+tcp://siem\"\n\
         [[audit.sink]]\nname = \"e\"\nto = \"otlp+https://siem:4318\"\n\
         [[audit.sink]]\nname = \"f\"\nto = \"syslog+tls://user:hunter2@siem:6514\"\n\
         [[audit.sink]]\nname = \"g\"\nto = \"otlp+http://siem:4318/v1/logs\"\nlines = \"checkpoints\"\n\
         required = true\nqueue_bytes = 262144\nauthorization = \"policy.toml\"",
    );
}

#[test]
fn records_in_plain_text_across_a_network_are_warned_of() {
    let sink =
        "directory = \"audit\"\n[[audit.sink]]\nname = \"a\"\nto = \"syslog+tcp://siem:514\"";
    let config = CONFIG.replace("directory = \"audit\"", sink);
    warn("audit_sink_plain_text", &config, &POLICY.replace("\"compact\"", "\"status\""));
}
