//! The client port, with the real program and a real etcd behind it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unreachable_pub,
    dead_code,
    reason = "a test fails by panicking; helpers of tests are no #[test] themselves"
)]

#[path = "../support/mod.rs"]
mod support;

mod audit;
mod audit_flood;
mod audit_levels;
mod audit_sinks;
mod endings;
mod every_rpc;
mod followers;
mod http;
mod http_outage;
mod key_value;
mod lease;
mod limits;
mod malformed;
mod outage;
mod rates;
mod second_wall;
mod session;
mod snapshot;
mod stopped;
mod transport;
mod watch;
mod watch_load;
