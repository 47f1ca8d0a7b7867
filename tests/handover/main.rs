//! How ringfence is started, told, watched and replaced: by a service manager, by a socket that waits for it, and by a
//! newer ringfence that takes its place. What clients see of it is counted connection by connection.

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

mod activation;
mod knocking;
mod manager;
mod program;
mod under_load;
mod upgrade;
