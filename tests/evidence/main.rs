//! An audit log as evidence: written by the real program, killed and started again, then tampered with in every
//! way; what `ringfence audit verify` says of each.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "a test fails by panicking; it uses a part of the common support"
)]

#[path = "../support/mod.rs"]
mod support;

mod files;
mod following;
mod reading;
mod schema;
mod tampering;
mod written;
