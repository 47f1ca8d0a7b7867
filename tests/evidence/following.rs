//! `ringfence audit tail`: the last calls, and those that come.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use ringfence::etcd::pb::etcdserverpb::PutRequest;
use ringfence::etcd::pb::v3lockpb::LockRequest;
use serde_json::Value;

use crate::files::Bench;
use crate::support::{PATIENCE, RawClient, audit_files, wait_for};
use crate::written::ringfence;

/// A tail that follows, and what it says.
struct Tail {
    child: Child,
    lines: Receiver<Value>,
}

impl Tail {
    fn start(log: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
        command.args(["audit", "tail", "-f", "--json"]).args(arguments).arg(log);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines() {
                drop(send.send(serde_json::from_str(&line.unwrap()).unwrap()));
            }
        });
        Self { child, lines }
    }

    fn next(&self) -> Value {
        let call = self.lines.recv_timeout(PATIENCE).expect("a call that the tail shows");
        assert_ne!(call["source"], Value::Null, "{call}");
        call
    }

    fn expect(&self, key: &str) {
        // Its end may come late on a busy machine: then it is shown twice.
        let mut calls = std::iter::repeat_with(|| self.next()).take(2);
        let call = calls.find(|call| call["is_open"] != true).expect("its end");
        assert_eq!(call["touches"][0], format!("put {key}"), "{call}");
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Of the first file; they come a little after the answers.
fn outcomes(log: &Path) -> usize {
    let text = std::fs::read_to_string(&audit_files(log)[0]).unwrap();
    text.matches("\"type\":\"outcome\"").count()
}

async fn put(client: &RawClient, key: &str) {
    let put = PutRequest { key: key.to_owned().into(), ..Default::default() };
    assert_eq!(client.unary("/etcdserverpb.KV/Put", &put).await.grpc_status, Some(0));
}

/// Rotation compresses what is read, and another process begins another chain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_goes_on_across_rotation_and_restarts() {
    let bench = Bench::new();
    let log = bench.log();
    let mut ringfence = bench.start("");
    let acme = RawClient::connect(&bench.pki, "acme", ringfence.port).await;
    for key in ["/tenants/acme/1", "/tenants/acme/2", "/tenants/acme/3"] {
        put(&acme, key).await;
    }
    wait_for("the outcomes", || outcomes(&log) == 3);
    let tail = Tail::start(log.to_str().unwrap(), &["-n", "2", "--verb", "put"]);
    tail.expect("/tenants/acme/2");
    tail.expect("/tenants/acme/3");
    for turn in 0..3 {
        let key = format!("/tenants/acme/before-{turn}");
        put(&acme, &key).await;
        tail.expect(&key);
        ringfence.signal("HUP");
        wait_for("a new file", || audit_files(&log).len() == turn + 2);
        put(&acme, &format!("{key}-behind")).await;
        tail.expect(&format!("{key}-behind"));
    }
    assert_eq!(ringfence.stop().code(), Some(0));
    let ringfence = bench.start("");
    let acme = RawClient::connect(&bench.pki, "acme", ringfence.port).await;
    put(&acme, "/tenants/acme/anew").await;
    tail.expect("/tenants/acme/anew");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_stays_open_is_shown_before_it_ends_and_again_at_its_end() {
    let bench = Bench::new();
    let ringfence = bench.start("");
    let acme = RawClient::connect(&bench.pki, "acme", ringfence.port).await;
    let lock = LockRequest { name: "/tenants/acme/lock".into(), lease: 0 };
    let path = "/v3lockpb.Lock/Lock";
    assert_eq!(acme.unary(path, &lock).await.grpc_status, Some(0));
    let tail = Tail::start(bench.log().to_str().unwrap(), &["-n", "1", "--rpc", "Lock"]);
    let waits = tokio::spawn({
        let acme = acme.clone();
        async move { acme.unary(path, &lock).await }
    });
    // The end of the first lock may come late.
    let second =
        || std::iter::repeat_with(|| tail.next()).take(4).find(|call| call["call"] == "1/2");
    let open = second().expect("the second lock");
    assert_eq!((&open["is_open"], &open["outcome"]), (&Value::Bool(true), &Value::Null), "{open}");
    waits.abort();
    drop(waits.await);
    let ended = second().expect("its end");
    assert_eq!((&ended["is_open"], &ended["seq"]), (&Value::Null, &open["seq"]), "{ended}");
    assert_eq!(ended["outcome"]["fault"], "client_gone", "{ended}");
}

/// As many files as it takes, and no more: the first ones are not looked into.
#[tokio::test]
async fn the_last_calls_are_found_in_the_files_written_last() {
    let bench = Bench::new();
    let (log, mut ringfence_) = (bench.log(), bench.start("[audit.rotate]\ncompress = \"none\""));
    let acme = RawClient::connect(&bench.pki, "acme", ringfence_.port).await;
    for turn in 0..4 {
        put(&acme, &format!("/tenants/acme/{turn}")).await;
        ringfence_.signal("HUP");
        wait_for("a new file", || audit_files(&log).len() == turn + 2);
    }
    assert_eq!(ringfence_.stop().code(), Some(0));
    let first = audit_files(&log).into_iter().next().unwrap();
    let text = std::fs::read(&first).unwrap();
    std::fs::write(&first, [b"no record\n", &text[..]].concat()).unwrap();
    let check = |lines: &str, code, touches: &[&str]| {
        let arguments = ["audit", "tail", "-n", lines, "--verb", "put", log.to_str().unwrap()];
        let (ended, said) = ringfence(&arguments);
        assert_eq!(ended, code, "{said}");
        let found: Vec<&str> = said.lines().filter(|line| line.contains("put ")).collect();
        assert_eq!(found.len(), touches.len(), "{said}");
        for (line, touch) in found.iter().zip(touches) {
            assert!(line.ends_with(touch), "{line}: not {touch}");
        }
    };
    let all = ["/tenants/acme/0", "/tenants/acme/1", "/tenants/acme/2", "/tenants/acme/3"];
    check("1", 0, &all[3..]);
    check("2", 0, &all[2..]);
    check("10", 2, &all);
}

/// The newest calls of two processes, of which one has them in two files: the last file of each is not enough.
#[test]
fn the_last_calls_are_the_newest_of_all_chains() {
    let folder = tempfile::tempdir().unwrap();
    let line = |seq: u32, second: u32| {
        format!(
            "{{\"v\":1,\"seq\":{seq},\"time\":\"2027-01-15T08:00:{second:02}.000000Z\",\"type\":\"decision\",\
             \"verdict\":\"deny\",\"touches\":[{{\"verb\":\"put\",\"key\":\"/{second}\"}}]}}\n"
        )
    };
    let end =
        "{\"v\":1,\"seq\":3,\"time\":\"2027-01-15T08:00:05.000000Z\",\"type\":\"segment.end\"}\n";
    let chains = ["1790000000123-9f86d081884c7d65", "1790000000124-0123456789abcdef"];
    let write = |chain: &str, number: u32, text: String| {
        let name = format!("audit-{chain}-{number:06}.jsonl");
        std::fs::write(folder.path().join(name), text).unwrap();
    };
    write(chains[0], 1, line(1, 1) + &line(2, 2) + &line(3, 3));
    write(chains[1], 1, line(1, 4) + &line(2, 5) + end);
    write(chains[1], 2, line(4, 6));
    let log = folder.path().to_str().unwrap();
    let (code, said) = ringfence(&["audit", "tail", "-n", "3", "--csv", log]);
    let shown: Vec<&str> =
        said.lines().skip(1).map(|line| line.split(',').nth(7).unwrap()).collect();
    assert_eq!((code, shown), (0, vec!["\"put /4\"", "\"put /5\"", "\"put /6\""]), "{said}");
}
