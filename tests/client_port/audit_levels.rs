//! What rules leave out of the audit log, and what they cannot.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use prost::Message as _;
use ringfence::etcd::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};

use crate::support::{Etcd, Pki, RawClient, Ringfence, Settings, framed};

const HASH_KEY: &str = "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b";

fn put(key: &str, value: &str) -> Vec<u8> {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
        .encode_to_vec()
}

fn range(key: &str, end: &str) -> Vec<u8> {
    let (key, range_end) = (key.to_owned().into(), end.to_owned().into());
    RangeRequest { key, range_end, ..Default::default() }.encode_to_vec()
}

/// Verdict, level, and the touches of a record, as text.
fn shown(record: &serde_json::Value) -> String {
    let level = record["level"].as_str().unwrap_or("request");
    format!("{} {level} {}", record["verdict"].as_str().unwrap(), record["touches"])
}

#[tokio::test]
async fn what_rules_leave_out_is_forwarded_and_counted_and_what_is_denied_is_recorded() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let folder = tempfile::tempdir().unwrap();
    let hash_key = folder.path().join("hash-key");
    write_hash_key(&hash_key);
    let audit = format!(
        "hash_key = '{}'\nvalues = \"keyed-hash\"\n\
         [[audit.level]]\nlevel = \"none\"\nverbs = [\"get\", \"list\"]\nprefixes = [\"/tenants/acme/quiet/\"]\n\
         [[audit.level]]\nlevel = \"metadata\"\nverbs = [\"delete\"]\n\
         [[audit.level]]\nlevel = \"request\"\nprefixes = [\"/tenants/acme/secret/\", \"/tenants/globex/\"]\n\
         keys = \"keyed-hash\"\n",
        hash_key.display()
    );
    let settings = Settings { audit: &audit, ..Settings::default() };
    let mut ringfence = Ringfence::start_as(&pki, &etcd.endpoint(), &settings);
    let client = RawClient::connect(&pki, "acme", ringfence.port).await;
    let delete = DeleteRangeRequest { key: "/tenants/acme/quiet/x".into(), ..Default::default() };
    for (method, request, status) in [
        ("Range", range("/tenants/acme/quiet/x", ""), 0),
        ("Range", range("/tenants/acme/quiet/", "/tenants/acme/quiet0"), 0),
        // Wider than what is left out. Its ends lie in no prefix that is hashed.
        ("Range", range("/tenants/acme/", "/tenants/acme0"), 0),
        ("Put", put("/tenants/acme/quiet/x", "v"), 0),
        ("DeleteRange", delete.encode_to_vec(), 0),
        ("Put", put("/tenants/acme/secret/x", "hunter2"), 0),
        // Another tenant's: denied, and so recorded, although the rules for reads would leave it out.
        ("Range", range("/tenants/globex/quiet/x", ""), 7),
    ] {
        let path = format!("/etcdserverpb.KV/{method}");
        let reply = client.call(&path, &[], framed(&request)).await;
        assert_eq!(reply.grpc_status, Some(status), "{method} {reply:?}");
    }
    assert_eq!(ringfence.stop().code(), Some(0));

    let hash = ringfence::keyed_hash::KeyedHash::from_text(HASH_KEY).unwrap();
    let key = |key: &str| hash.of_key(key.as_bytes());
    let value = |value: &str| hash.of_value(value.as_bytes());
    let records = ringfence.records();
    let decisions: Vec<String> =
        records.iter().filter(|record| record["type"] == "decision").map(shown).collect();
    let expected = [
        r#"allow request [{"key":"/tenants/acme/","range_end":"/tenants/acme0","verb":"list"}]"#
            .to_owned(),
        format!(
            r#"allow request [{{"key":"/tenants/acme/quiet/x","value_hmac":"{}","verb":"put"}}]"#,
            value("v")
        ),
        r#"allow metadata [{"verb":"delete"}]"#.to_owned(),
        format!(
            r#"allow request [{{"key":"/tenants/acme/secret/","key_hmac":"{}","key_is_cut":true,"value_hmac":"{}","verb":"put"}}]"#,
            key("/tenants/acme/secret/x"),
            value("hunter2")
        ),
        format!(
            r#"deny request [{{"key":"/tenants/globex/","key_hmac":"{}","key_is_cut":true,"verb":"get"}}]"#,
            key("/tenants/globex/quiet/x")
        ),
    ];
    assert_eq!(decisions, expected);
    let outcomes = records.iter().filter(|record| record["type"] == "outcome").count();
    assert_eq!(outcomes, 4, "one for each that was allowed and recorded");
    let start = &records[0];
    assert_eq!(start["levels"].as_array().unwrap().len(), 3);
    assert_eq!(start["hash_key"].as_str().unwrap(), hash.name());
    assert_eq!(records.last().unwrap()["left_out"], 2);
    auditors_find_what_is_hidden(ringfence.audit_folder(), &hash_key);
}

/// The program's answer on the log, notes included, and whether it found anything.
fn audit(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ringfence"));
    let output = command.arg("audit").args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

fn auditors_find_what_is_hidden(folder: &Path, hash_key: &Path) {
    let (folder, hash_key) = (folder.to_str().unwrap(), hash_key.to_str().unwrap());
    let secret = "/tenants/acme/secret/x";
    let (code, said) = audit(&["blame", secret, folder, "--hash-key", hash_key]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.starts_with(&format!("{secret}: last changed by\n")), "{said}");
    assert!(said.contains("note: 1 calls were recorded without all their keys"), "{said}");
    // Without the hash key it may be any other.
    let (code, said) = audit(&["blame", secret, folder]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("no change that etcd confirmed") && said.contains("perhaps"), "{said}");
    let query = |key: &str| {
        let of_puts = ["--verb", "put", "--json", "--hash-key", hash_key, folder];
        audit(&[&["query", "--key", key], &of_puts[..]].concat())
    };
    assert_eq!(query(secret).1.matches("\"verdict\"").count(), 1);
    assert_eq!(query("/tenants/acme/secret/y").0, Some(1));
    let (code, said) = audit(&["hash", hash_key, "--key", secret]);
    assert_eq!((code, said.trim().len()), (Some(0), 16 + 1 + 64));
    assert!(query(secret).1.contains(&format!("hmac:{}", said.trim())));
    // A row that may be another's says so.
    let (_, said) = audit(&["query", "--key", secret, "--verb", "put", folder]);
    assert!(said.contains("(perhaps) put /tenants/acme/secret/…"), "{said}");
    assert!(said.contains("note: 1 of them only perhaps touch it"), "{said}");
    let (code, said) = audit(&["hash", "no-such-file", "--key", secret]);
    assert_eq!(code, Some(2), "{said}");
}

/// As the config reads it: nobody else may.
fn write_hash_key(path: &Path) {
    std::fs::write(path, HASH_KEY).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// The rules of docs/audit-format.md, as they stand there.
#[tokio::test]
async fn probes_are_sampled_as_the_document_says() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let folder = tempfile::tempdir().unwrap();
    let hash_key = folder.path().join("hash-key");
    write_hash_key(&hash_key);
    let document = include_str!("../../docs/audit-format.md");
    let rules = document.lines().skip_while(|line| *line != "    [[audit.level]]");
    let rules = rules.take_while(|line| line.is_empty() || line.starts_with("    "));
    let rules: Vec<&str> = rules.map(str::trim).collect();
    assert_eq!(rules.iter().filter(|line| **line == "[[audit.level]]").count(), 3);
    let audit = format!("hash_key = '{}'\n{}\n", hash_key.display(), rules.join("\n"));
    let settings = Settings { audit: &audit, ..Settings::default() };
    let mut ringfence = Ringfence::start_as(&pki, &etcd.endpoint(), &settings);
    let client = RawClient::connect(&pki, "apiserver", ringfence.port).await;
    for _ in 0..2000 {
        let reply = client.call("/etcdserverpb.Maintenance/Status", &[], framed(&[])).await;
        assert_eq!(reply.grpc_status, Some(0), "{reply:?}");
    }
    assert_eq!(ringfence.stop().code(), Some(0));
    let records = ringfence.records();
    let decisions = records.iter().filter(|record| record["type"] == "decision");
    let found: Vec<_> = decisions.map(|it| (it["one_in"].as_u64(), shown(it))).collect();
    let status = (Some(100), r#"allow metadata [{"verb":"status"}]"#.to_owned());
    assert!(found.iter().all(|shown| *shown == status), "{found:?}");
    // Twenty are expected; none, or eighty, would be a chance of one in hundreds of millions.
    assert!((1..80).contains(&found.len()), "{}", found.len());
    assert_eq!(records.last().unwrap()["left_out"], 2000 - found.len());
}
