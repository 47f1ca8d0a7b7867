//! The real etcdctl of three release lines, against an etcd of its own line: directly, and through
//! ringfence. What is allowed must look the same, what is not must say so in etcd's words.
//!
//! `make etcdctl` prints the table.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "a test fails by panicking; it uses a part of the common support"
)]

#[path = "../support/mod.rs"]
mod support;

mod cases;
mod mask;
mod side;

use std::fmt::Write as _;

use cases::{Case, Expected, POLICIES, Policy, cases};
use side::{Output, Side};
use support::{Etcd, Pki, Ringfence};

/// The words that etcd's clients know a denial by.
const PERMISSION_DENIED: &str = "etcdserver: permission denied";

#[test]
fn etcdctl_3_4_says_the_same_through_ringfence() {
    check("3.4");
}

#[test]
fn etcdctl_3_5_says_the_same_through_ringfence() {
    check("3.5");
}

#[test]
fn etcdctl_3_7_says_the_same_through_ringfence() {
    check("3.7");
}

/// Runs every case under both policies and prints a row for each.
fn check(line: &str) {
    let pki = Pki::make();
    let mut table = String::new();
    let mut failures = String::new();
    for policy in &POLICIES {
        check_policy(line, policy, &pki, &mut table, &mut failures);
    }
    println!("\n{table}");
    assert!(failures.is_empty(), "{failures}");
}

/// The same cases against two etcds that were both empty, so that revisions are the same too.
fn check_policy(line: &str, policy: &Policy, pki: &Pki, table: &mut String, failures: &mut String) {
    let (alone, behind) = (Etcd::start(line, pki), Etcd::start(line, pki));
    let mut ringfence = Ringfence::start_with_policy(pki, &behind.endpoint(), policy.text, "");
    let through = format!("https://127.0.0.1:{}", ringfence.port);
    // etcd itself trusts one certificate; whose it is makes no difference without its own auth.
    let mut direct = Side::new(&alone, alone.endpoint(), pki, "apiserver", policy);
    let mut through = Side::new(&behind, through, pki, policy.certificate, policy);
    for case in cases().iter().filter(|case| case.runs_with(line)) {
        let expected = (policy.expected)(case).for_line(line);
        let result = match expected {
            Expected::Same => same(case, direct.run(case), through.run(case)),
            // etcd must not see it, so the other etcd is not asked either.
            Expected::Denied => denied(through.run(case)),
        };
        let told = match &result {
            Ok(()) => "ok",
            Err(_) => "FAILED",
        };
        let (name, command) = (policy.name, case.shown(policy));
        writeln!(table, "{line}  {name:<10}  {command:<86}  {expected:<6}  {told}").unwrap();
        if let Err(reason) = result {
            writeln!(failures, "{line} {name} `{command}` ({expected}): {reason}").unwrap();
        }
    }
    if policy.name == "kubernetes" && !(direct.snapshot_is_whole() && through.snapshot_is_whole()) {
        writeln!(failures, "{line} {}: the snapshot is not whole", policy.name).unwrap();
    }
    let metrics = ringfence.metrics();
    assert_eq!(ringfence.stop().code(), Some(0));
    let records: String = ringfence.records().iter().map(ToString::to_string).collect();
    for (place, text) in [("log", ringfence.log()), ("metrics", metrics), ("records", records)] {
        assert!(!text.is_empty(), "no {place}");
        for canary in cases::CANARIES.iter().filter(|canary| text.contains(**canary)) {
            writeln!(failures, "{line} {}: `{canary}` in the {place}", policy.name).unwrap();
        }
    }
}

fn same(
    case: &Case,
    direct: Result<Output, String>,
    through: Result<Output, String>,
) -> Result<(), String> {
    let both = format!("\n  directly:  {direct:?}\n  ringfence: {through:?}");
    match (direct, through) {
        // A command that is wrong would fail alike everywhere.
        (Ok(direct), _) if !direct.complains_of(case.error) => {
            Err(format!("etcd itself was to answer otherwise:{both}"))
        }
        (Ok(direct), Ok(through)) if direct == through => Ok(()),
        _ => Err(both),
    }
}

fn denied(through: Result<Output, String>) -> Result<(), String> {
    let through = through?;
    let says_so = through.all.contains(PERMISSION_DENIED);
    if says_so && through.code != Some(0) && through.stdout.is_empty() {
        return Ok(());
    }
    Err(format!("not denied: {through:?}"))
}
