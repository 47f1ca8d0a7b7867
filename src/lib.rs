//! ringfence: an access-control proxy for etcd.
//!
//! The journey of a call: `server` accepts a socket, `tls` verifies the client, `policy` says who
//! it is, `proxy` reads the request (`grpc`, `etcd`), asks `policy` for a decision, has `audit`
//! record it, and gives the permit and the proof of the record to `upstream`, which alone reaches
//! etcd. ARCHITECTURE.md has the map; `tests/architecture.rs` keeps the arrows one way.

pub mod admin;
pub mod audit;
pub mod chain;
pub mod cli;
pub mod clock;
pub mod config;
pub mod document;
pub mod etcd;
pub mod evidence;
pub mod grpc;
pub mod identity;
pub mod keyed_hash;
pub mod metrics;
pub mod pki;
pub mod policy;
pub mod proxy;
pub mod regular_file;
pub mod server;
pub mod sink;
pub mod tls;
pub mod upstream;
