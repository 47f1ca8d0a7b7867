//! gRPC over HTTP/2 without sockets: messages, headers, statuses.
//!
//! It knows neither etcd nor policy.

pub mod frame;
pub mod metadata;
pub mod status;

pub use frame::{FrameError, MessageReader, MessageSplitter};
pub use status::{Code, Status};
