//! What a log says: calls with what became of them, who changed a key, who is busy.

use std::fs;

use ringfence::etcd::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};

use crate::support::{Etcd, Pki, RawClient, Ringfence, Settings};
use crate::written::ringfence;

const KEY: &str = "/tenants/acme/secret";

struct Story {
    _folder: tempfile::TempDir,
    log: String,
}

/// acme writes a key and deletes a range that holds it; globex tries to and is denied.
async fn story() -> Story {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit");
    let (pki, etcd) = (Pki::make(), Etcd::start_plain("3.7"));
    let settings = Settings { audit_folder: Some(&log), ..Settings::default() };
    let mut ringfence = Ringfence::start_as(&pki, &etcd.endpoint(), &settings);
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let globex = RawClient::connect(&pki, "globex", ringfence.port).await;
    let put = |key: &str| PutRequest { key: key.to_owned().into(), ..Default::default() };
    let path = "/etcdserverpb.KV/Put";
    assert_eq!(acme.unary(path, &put(KEY)).await.grpc_status, Some(0));
    assert_eq!(globex.unary(path, &put(KEY)).await.grpc_status, Some(7));
    let all = DeleteRangeRequest {
        key: "/tenants/acme/s".into(),
        range_end: "/tenants/acme/t".into(),
        ..Default::default()
    };
    assert_eq!(acme.unary("/etcdserverpb.KV/DeleteRange", &all).await.grpc_status, Some(0));
    let odd = "/tenants/acme/\u{202e}=cmd";
    assert_eq!(acme.unary(path, &put(odd)).await.grpc_status, Some(0));
    let range = RangeRequest { key: KEY.into(), ..Default::default() };
    assert_eq!(acme.unary("/etcdserverpb.KV/Range", &range).await.grpc_status, Some(0));
    drop((acme, globex));
    assert_eq!(ringfence.stop().code(), Some(0));
    Story { log: log.to_str().unwrap().to_owned(), _folder: folder }
}

impl Story {
    fn check(&self, arguments: &[&str], code: i32, lines: usize, expected: &[&str]) {
        let arguments = [&["audit"], arguments, &[self.log.as_str()]].concat();
        let (ended, said) = ringfence(&arguments);
        assert_eq!(ended, code, "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), lines, "{arguments:?}: {said}");
        for text in expected {
            assert!(said.contains(text), "{arguments:?}: no `{text}` in {said}");
        }
        assert!(!said.contains('\u{202e}'), "a key steers the terminal: {said}");
    }
}

#[tokio::test]
async fn a_log_answers_who_did_what_to_which_key() {
    let story = story().await;
    let head = 1;
    story.check(&["query", "--verb", "put"], 0, head + 3, &["allow", "deny", "ok, revision 2"]);
    story.check(
        &["query", "--key", KEY],
        0,
        head + 4,
        &["DeleteRange", "get /tenants/acme/secret"],
    );
    story.check(&["query", "--key", KEY, "--verb", "delete"], 0, head + 1, &["DeleteRange"]);
    story.check(&["query", "--prefix", "/tenants/acme/s"], 0, head + 4, &["127.0.0.1:"]);
    story.check(&["query", "--verdict", "deny"], 0, head + 1, &["globex", "no_rule"]);
    story.check(&["query", "--rpc", "Put", "--principal", "*globex*"], 0, head + 1, &["deny"]);
    story.check(&["query", "--principal", "tenant"], 0, head + 5, &["Range"]);
    story.check(&["query", "--source", "127.0.0.1"], 0, head + 5, &[]);
    story.check(&["query", "--source", "::ffff:127.0.0.1"], 0, head + 5, &[]);
    story.check(&["query", "--source", "fe80::1%2"], 1, 1, &["no call fits"]);
    story.check(&["query", "--until", "1970-01-01T00:00:00Z"], 1, 1, &["no call fits"]);
    // What can never fit is a slip, and no answer.
    story.check(&["query", "--since", "1h", "--until", "2h"], 2, 2, &["`--until` is not after it"]);
    for (option, wrong) in [("--verb", "gett"), ("--verb", "lease"), ("--source", "127.0.0.1:2379")]
    {
        let (code, said) = ringfence(&["audit", "query", option, wrong, &story.log]);
        assert!(code == 2 && said.contains("invalid value"), "{said}");
    }
    story.check(&["query", "--verdict", "deny", "--json"], 0, 1, &["\"reason\":\"no_rule\""]);
    story.check(&["query", "--csv", "--verb", "put"], 0, head + 3, &["time,verdict", "\\u{202e}"]);
    story.check(&["blame", "/tenants/acme/second"], 0, 10, &["after that perhaps", "DeleteRange"]);
    story.check(&["blame", "/inbox/x"], 1, 1, &["no change that etcd confirmed"]);
    // Whether the range that was deleted still held it, no record says.
    let blamed = ["KV/Put", "revision 2", "perhaps", "DeleteRange", "1 tries were denied"];
    story.check(&["blame", KEY], 0, 19, &blamed);
    // A file that is there compressed as well counts once.
    let file = &crate::support::audit_files(std::path::Path::new(&story.log))[0];
    let packed = zstd::encode_all(&fs::read(file).unwrap()[..], 1).unwrap();
    fs::write(file.with_extension("jsonl.zst"), packed).unwrap();
    story.check(&["query", "--verb", "put"], 0, head + 3, &[]);
    // The attack: half a copy beside the whole, so that what the half lacks is not shown.
    let whole = fs::read(file).unwrap();
    let half: Vec<u8> =
        whole.split_inclusive(|byte| *byte == b'\n').take(2).flatten().copied().collect();
    fs::write(file, half).unwrap();
    story.check(&["query", "--verb", "put"], 0, head + 3, &[]);
    // And a half that says, where no line ends, that all is known; or nothing at all.
    let first = whole.split_inclusive(|byte| *byte == b'\n').next().unwrap();
    let known = b"{\"v\":1,\"seq\":4611686018427387903,\"time\":\"2027-01-15T08:00:00.000000Z\",\"type\":\"x\"";
    for half in [[first, known].concat(), Vec::new()] {
        fs::write(file, half).unwrap();
        story.check(&["query", "--verb", "put"], 0, head + 3, &[]);
    }
    // An invented call that no line ends is on its way at best.
    let invented = String::from_utf8(first.to_vec()).unwrap();
    let invented = invented.replacen("process.start", "decision", 1).replacen(
        "\"version\"",
        "\"verdict\":\"deny\",\"version\"",
        1,
    );
    fs::write(file, [&whole[..], invented.trim_end().as_bytes()].concat()).unwrap();
    story.check(&["query"], 0, head + 5, &[]);
    fs::write(file, whole).unwrap();
    let (code, said) = ringfence(&["audit", "top", "-n", "1", &story.log]);
    assert_eq!(code, 0, "{said}");
    for expected in ["calls by principal:", "uri.path.2=acme", "denied and refused:", "no_rule"] {
        assert!(said.contains(expected), "{said}");
    }
}

/// The attack: whoever can write the folder has every check wait for ever.
#[test]
fn a_pipe_that_is_named_like_a_file_of_the_log_is_waited_for_by_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let name = "audit-1790000000123-9f86d081884c7d65-000001.jsonl";
    let pipe = folder.path().join(name);
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let log = folder.path().to_str().unwrap();
    for arguments in [
        &["verify"][..],
        &["query"],
        &["blame", "/a"],
        &["top"],
        &["tail", "-n", "1"],
        &["verify", "--key", pipe.to_str().unwrap()],
        &["verify", "--witness", pipe.to_str().unwrap()],
    ] {
        let (code, said) = ringfence(&[&["audit"], arguments, &[log]].concat());
        assert!(code > 0 && said.contains("it is no regular file"), "{arguments:?} {code}: {said}");
    }
}

/// One key that is written again and again is one row, whatever is written.
#[test]
fn the_busiest_key_is_one_row_although_values_are_hashed() {
    let folder = tempfile::tempdir().unwrap();
    let line = |number: u32| {
        format!(
            "{{\"v\":1,\"seq\":{number},\"time\":\"2027-01-15T08:00:00.000000Z\",\"type\":\"decision\",\
             \"verdict\":\"deny\",\"touches\":[{{\"verb\":\"put\",\"key\":\"/a\",\
             \"value_hmac\":\"64413d36d0c65a32:{number:064x}\"}}]}}\n"
        )
    };
    let name = "audit-1790000000123-9f86d081884c7d65-000001.jsonl";
    fs::write(folder.path().join(name), (1..=3).map(line).collect::<String>()).unwrap();
    let (code, said) = ringfence(&["audit", "top", folder.path().to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("3  put /a\n") && !said.contains("hmac"), "{said}");
}

/// A log of an API server's keys, one of a tenant's among them that looks like more than it is.
#[test]
fn keys_of_kubernetes_are_shown_as_resource_namespace_and_name() {
    let folder = tempfile::tempdir().unwrap();
    let touches = [
        ("put", "\"key\":\"/registry/secrets/kube-system/token\""),
        ("list", "\"key\":\"/registry/secrets/\",\"range_end\":\"/registry/secrets0\""),
        ("get", "\"key\":\"/registry/secrets/a name=b\""),
        ("get", "\"key\":\"/other/secrets/a/b\""),
    ];
    let mut text = String::new();
    for (number, (verb, keys)) in touches.iter().enumerate() {
        text += &format!(
            "{{\"v\":1,\"seq\":{},\"time\":\"2027-01-15T08:00:00.000000Z\",\"type\":\"decision\",\
             \"verdict\":\"deny\",\"touches\":[{{\"verb\":\"{verb}\",{keys}}}]}}\n",
            number + 1
        );
    }
    let name = "audit-1790000000123-9f86d081884c7d65-000001.jsonl";
    fs::write(folder.path().join(name), text).unwrap();
    let log = folder.path().to_str().unwrap();
    let check = |arguments: &[&str], expected: &[&str]| {
        let (code, said) = ringfence(&[arguments, &[log]].concat());
        assert_eq!(code, 0, "{arguments:?}: {said}");
        for text in expected {
            assert!(said.contains(text), "{arguments:?}: no `{text}` in {said}");
        }
    };
    let named = ["put secrets namespace=kube-system name=token", "list secrets\n"];
    let raw = ["get /registry/secrets/a name=b", "get /other/secrets/a/b"];
    check(&["audit", "query", "--kubernetes"], &[named, raw].concat());
    check(&["audit", "query", "--kubernetes=/other"], &["get secrets namespace=a name=b"]);
    check(&["audit", "top", "--kubernetes"], &["1  list secrets\n"]);
    let object = "\"kubernetes\":[{\"verb\":\"put\",\"resource\":\"secrets\",\
        \"namespace\":\"kube-system\",\"name\":\"token\"}]";
    check(&["audit", "query", "--kubernetes", "--json"], &[object]);
    check(&["audit", "query"], &["put /registry/secrets/kube-system/token"]);
}

/// The commands of docs/auditor.md, as they stand there.
#[tokio::test]
async fn the_walk_of_an_auditor_can_be_walked() {
    let written = crate::written::Written::new().await;
    let text = include_str!("../../docs/auditor.md");
    let commands: Vec<&str> =
        text.lines().filter_map(|line| line.trim_start().strip_prefix("ringfence ")).collect();
    assert_eq!(commands.len(), 5, "{commands:?}");
    for command in commands {
        let words = command.split(' ').map(|word| match word.trim_matches('\'') {
            "LOG" => written.log().display().to_string(),
            "KEY" => "/tenants/acme/x".to_owned(),
            "log-key.pub" => written.public().display().to_string(),
            "witness" => written.witness().display().to_string(),
            word => word.to_owned(),
        });
        let words: Vec<String> = words.collect();
        let (code, said) = ringfence(&words.iter().map(String::as_str).collect::<Vec<_>>());
        // Nobody changed this key, and nobody was denied.
        let nothing = words[1] == "blame" || words[1] == "top";
        assert_eq!(code, i32::from(nothing), "{command}: {said}");
    }
}

/// A file may hold anything.
#[test]
fn what_cannot_be_read_is_named_and_the_rest_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let name = "audit-1790000000123-9f86d081884c7d65-000001.jsonl";
    let good = "{\"v\":1,\"seq\":1,\"time\":\"2027-01-15T08:00:00.000000Z\",\"type\":\"decision\",\
        \"verdict\":\"deny\",\"touches\":[{\"verb\":\"put\",\"key\":\"/a\"}]}";
    let text = [b"\xff\0{]\n{}\n", good.as_bytes(), b"\n[[[[\n"].concat();
    fs::write(folder.path().join(name), text).unwrap();
    let folder = folder.path().to_str().unwrap();
    let (code, said) = ringfence(&["audit", "query", folder]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("byte 0: ") && said.contains("put /a"), "{said}");
    let (code, said) = ringfence(&["audit", "verify", folder]);
    assert!(code == 1 && said.contains("changed: this line is no record"), "{said}");
    let (code, said) = ringfence(&["audit", "query", "/nowhere"]);
    assert!(code == 2 && said.contains("cannot read `/nowhere`"), "{said}");
}
