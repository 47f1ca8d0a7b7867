//! `ringfence demo` as a person runs it: the built program, a real etcd, a folder of its own for
//! temporary files so that what is left behind shows.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

/// Installing etcd has a bound of its own, and is done once per machine.
const DEMO_LIMIT: Duration = Duration::from_secs(180);
const END_LIMIT: Duration = Duration::from_secs(60);

#[test]
fn every_expectation_is_met_and_nothing_is_left() {
    let temporary = tempfile::tempdir().unwrap();
    let demo = Demo::start(&mut command(temporary.path(), &[]));
    let (status, printed) = demo.finish();
    assert!(status.success(), "{status}\n{printed}");

    for (who, what, expected, answer) in [
        ("operator", "put /tenants/acme/quota 100 (at etcd itself)", "allowed", "OK"),
        ("apiserver", "txn: put /registry/pods/db if it is new", "allowed", "SUCCESS OK"),
        ("acme", "get /tenants/acme/colour", "allowed", "/tenants/acme/colour blue"),
        ("acme", "get /tenants/globex/plan", "denied", "permission denied"),
        ("acme", "get /tenants/acme/ /tenants/acme1 (too wide)", "denied", "permission denied"),
        ("acme", "put /tenants/acme/quota 1000 (protected)", "denied", "permission denied"),
        ("acme", "txn: own keys, else get /tenants/globex/plan", "denied", "permission denied"),
        ("acme", "Range /tenants/acme/colour as `root`", "allowed", "green"),
        ("acme", "Range /tenants/globex/plan as `root`", "denied", "permission denied"),
        ("stranger", "no certificate", "refused", "CertificateRequired"),
        ("stranger", "acme's name from a foreign CA", "refused", "UnknownCA"),
        ("stranger", "acme's certificate, expired", "refused", "CertificateExpired"),
        ("operator", "get --prefix /tenants/ --print-value-only", "allowed", "green 100 secret"),
    ] {
        let row = ["ok", who, what, expected, expected, answer].join(" ");
        let rows = printed.lines().map(single_spaced).filter(|line| *line == row);
        assert_eq!(rows.count(), 1, "`{row}` is not in\n{printed}");
    }
    assert!(!printed.contains("  FAIL  "), "{printed}");
    assert!(!printed.contains('\u{1b}'), "no colour outside a terminal: {printed}");
    assert!(printed.contains("\"verdict\":\"deny\""), "{printed}");
    assert!(printed.contains("ringfence_handshakes_refused_total{"), "{printed}");
    assert!(printed.contains(" records so far; "), "{printed}");
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "the folder is removed");
    assert_eq!(processes_of(temporary.path()), Vec::<String>::new());
}

#[test]
fn it_stays_until_it_is_interrupted() {
    // A path that a shell must not take apart.
    let temporary = tempfile::Builder::new().prefix("it's a demo ").tempdir().unwrap();
    let mut demo = Demo::start(&mut command(temporary.path(), &["--stay"]));
    demo.read_until("Ctrl-C ends it.");
    let commands: Vec<String> = demo.lines_with("etcdctl").map(str::to_owned).collect();
    assert_eq!(commands.len(), 7, "six commands, and where etcdctl is: {}", demo.printed);
    let own = commands.iter().find(|line| line.ends_with("get --prefix /tenants/acme/)")).unwrap();
    let others = commands.iter().find(|line| line.ends_with("get /tenants/globex/plan)")).unwrap();

    let allowed = shell(own);
    assert!(allowed.status.success(), "{allowed:?}");
    let values = String::from_utf8_lossy(&allowed.stdout);
    assert!(values.contains("/tenants/acme/colour\ngreen\n"), "{values}");
    let denied = shell(others);
    assert!(!denied.status.success(), "{denied:?}");
    let error = String::from_utf8_lossy(&denied.stderr);
    assert!(error.contains("Error: etcdserver: permission denied"), "{error}");

    demo.interrupt();
    let (status, printed) = demo.finish();
    assert!(status.success(), "{status}\n{printed}");
    assert!(printed.lines().any(|line| line.starts_with("Kept: ")), "{printed}");
    assert_eq!(processes_of(temporary.path()), Vec::<String>::new());
    let kept = fs::read_dir(temporary.path()).unwrap().next().unwrap().unwrap().path();
    let logs = fs::read_dir(kept.join("audit")).unwrap();
    let records = logs.map(|log| fs::read_to_string(log.unwrap().path()).unwrap());
    assert!(records.collect::<String>().contains("\"type\":\"process.stop\""));
}

#[test]
fn an_interrupted_story_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let mut demo = Demo::start(&mut command(temporary.path(), &[]));
    demo.read_until("put /registry/pods/web running");
    demo.interrupt();
    let (status, printed) = demo.finish();
    assert_eq!(status.code(), Some(1), "{printed}");
    assert!(printed.contains("error: ended by a signal"), "{printed}");
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "the folder is removed");
    assert_eq!(processes_of(temporary.path()), Vec::<String>::new());
}

#[test]
fn an_expectation_that_is_not_met_fails_the_demonstration() {
    let (temporary, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let yes_man = elsewhere.path().join("etcdctl");
    fs::write(&yes_man, "#!/bin/sh\necho OK\n").unwrap();
    fs::set_permissions(&yes_man, fs::Permissions::from_mode(0o700)).unwrap();
    let (status, printed) =
        Demo::start(command(temporary.path(), &[]).env("ETCDCTL", yes_man)).finish();
    assert_eq!(status.code(), Some(1), "{printed}");
    let row = "FAIL acme get /tenants/globex/plan denied allowed OK";
    assert!(printed.lines().any(|line| single_spaced(line) == row), "{printed}");
    assert!(printed.contains(" of 31 expectations were not met"), "{printed}");
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "the folder is removed");
    assert_eq!(processes_of(temporary.path()), Vec::<String>::new());
}

#[test]
fn a_missing_etcd_is_said_with_a_hint() {
    let temporary = tempfile::tempdir().unwrap();
    let mut command = command(temporary.path(), &[]);
    command.env_remove("ETCD").env("PATH", "/nonexistent");
    let (status, printed) = Demo::start(&mut command).finish();
    assert_eq!(status.code(), Some(1), "{printed}");
    assert!(printed.contains("error: etcd is needed and is not on the PATH"), "{printed}");
    assert!(printed.contains("make demo"), "{printed}");
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
}

/// A running demonstration and what it printed so far.
struct Demo {
    child: Child,
    lines: Receiver<String>,
    printed: String,
    deadline: Instant,
}

impl Demo {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = sync_channel(4096);
        let twin = sender.clone();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        // They end when the program does; nobody takes lines after a test has failed.
        spawn(move || {
            BufReader::new(stdout).lines().try_for_each(|line| sender.send(line.unwrap()))
        });
        spawn(move || BufReader::new(stderr).lines().try_for_each(|line| twin.send(line.unwrap())));
        Self { child, lines, printed: String::new(), deadline: Instant::now() + DEMO_LIMIT }
    }

    fn next_line(&mut self) -> Option<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let line = self.lines.recv_timeout(left).ok()?;
        self.printed.push_str(&line);
        self.printed.push('\n');
        Some(())
    }

    fn read_until(&mut self, text: &str) {
        while !self.printed.contains(text) {
            assert!(self.next_line().is_some(), "no `{text}` came:\n{}", self.printed);
        }
    }

    fn lines_with<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a str> {
        self.printed.lines().filter(move |line| line.contains(text))
    }

    fn interrupt(&mut self) {
        let sent = shell(&format!("kill -INT {}", self.child.id()));
        assert!(sent.status.success(), "{sent:?}");
        self.deadline = Instant::now() + END_LIMIT;
    }

    fn finish(mut self) -> (ExitStatus, String) {
        while self.next_line().is_some() {}
        while Instant::now() < self.deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, std::mem::take(&mut self.printed));
            }
            sleep(Duration::from_millis(20));
        }
        panic!("it did not end in time:\n{}", self.printed);
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // After a failed test: the chance to end its own children, and then the end.
        if self.child.try_wait().unwrap().is_none() {
            shell(&format!("kill -TERM {}", self.child.id()));
            sleep(Duration::from_secs(2));
            drop(self.child.kill());
            self.child.wait().unwrap();
        }
    }
}

fn command(temporary: &Path, arguments: &[&str]) -> Command {
    let etcd = installed_etcd();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
    command.arg("demo").args(arguments).stdin(Stdio::null());
    command.env("TMPDIR", temporary);
    command.env("ETCD", etcd.join("etcd")).env("ETCDCTL", etcd.join("etcdctl"));
    command
}

fn installed_etcd() -> PathBuf {
    let install = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/etcd/install");
    let output = Command::new(install).arg("3.7").stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "etcd 3.7 could not be installed");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

fn shell(command: &str) -> Output {
    Command::new("/bin/sh").args(["-c", command]).output().unwrap()
}

fn single_spaced(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The command lines of processes that name the folder or work in it.
fn processes_of(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let process = entry.unwrap().path();
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let works_there =
            fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
        if works_there || line.contains(&*folder.to_string_lossy()) {
            found.push(line);
        }
    }
    found
}
