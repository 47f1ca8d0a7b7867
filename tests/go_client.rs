//! The official Go client, as programs use it, through ringfence with mutual TLS: tests/go-client.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a test fails by panicking; helpers of tests are no #[test] themselves"
)]

#[expect(dead_code, unused_imports, reason = "shared with tests that need more of it")]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Etcd, Pki, Ringfence, repository};

/// Builds the program; Go keeps what it has built, so only the first time takes long.
fn built(folder: &Path) -> PathBuf {
    let program = folder.join("go-client");
    let build = Command::new("go")
        .arg("-C")
        .arg(repository().join("tests/go-client"))
        .args(["build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-o"])
        .arg(&program)
        .arg(".")
        // A go.work above the repository, or the caller's GOFLAGS, must not change what is built.
        .envs([("GOFLAGS", ""), ("GOWORK", "off"), ("CGO_ENABLED", "0")])
        .output()
        .expect("Go is needed: CONTRIBUTING.md says which");
    assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    program
}

#[test]
fn the_go_client_works_through_ringfence_with_its_watches_leases_locks_and_elections() {
    let folder = tempfile::tempdir().unwrap();
    let program = built(folder.path());
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let ran = Command::new(program)
        .arg(format!("https://localhost:{}", ringfence.port))
        .args(["kubernetes-ca.crt", "acme.crt", "acme.key"].map(|file| pki.path(file)))
        .args(["/tenants/acme/", "/tenants/globex/x"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    println!("{said}");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(said.lines().count(), 8, "one line for each part");
    // All of it went through ringfence, and only what had to be denied was.
    let decisions = ringfence.decisions();
    let denied: Vec<_> = decisions
        .iter()
        .filter(|record| record["verdict"] != "allow")
        .map(|record| record["rpc"].as_str().unwrap())
        .collect();
    assert_eq!(denied, ["/etcdserverpb.KV/Txn", "/etcdserverpb.Watch/Watch"]);
    for rpc in ["Watch/Watch", "Lease/LeaseGrant", "Lease/LeaseKeepAlive", "Lease/LeaseRevoke"] {
        let path = format!("/etcdserverpb.{rpc}");
        assert!(decisions.iter().any(|record| record["rpc"] == path.as_str()), "no {rpc}");
    }
}
