//! Attack cases, each with its number, what it tries, and what must come of it: what the client hears,
//! what reached etcd, and exactly one decision in the audit log. Between ringfence and a real etcd
//! stands a relay that keeps what goes through.
//!
//! `make attacks` prints the table. A case that fails stops no other.

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

mod certificates;
mod ground;
mod keys;
mod later;
mod leases;
mod reloading;
mod rights;
mod store;
mod streams;
mod transport;
mod wiretap;

use ground::Report;

/// How many cases there are.
const CASES: u16 = 158;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_attack_is_met() {
    let mut report = Report::default();
    // One that panics takes no other's part of the table with it.
    let groups = [
        ("keys", tokio::spawn(keys::run())),
        ("store", tokio::spawn(store::run())),
        ("leases", tokio::spawn(leases::run())),
        ("streams", tokio::spawn(streams::run())),
        ("transport", tokio::spawn(transport::run())),
        ("certificates", tokio::spawn(certificates::run())),
        ("rights", tokio::spawn(rights::run())),
        ("reloading", tokio::spawn(reloading::run())),
    ];
    for (name, group) in groups {
        report.add_group(name, group.await);
    }
    later::run(&mut report);
    report.finish(CASES);
}
