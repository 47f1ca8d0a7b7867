//! gRPC over HTTP/2 without sockets: messages, headers, statuses, and what is a flood.
//!
//! It knows neither etcd nor policy.

pub mod flood;
pub mod frame;
pub mod metadata;
pub mod status;

pub use flood::{Flood, FrameFollower, FrameLimits};
pub use frame::{FrameError, MessageReader, MessageSplitter};
pub use status::{Code, Status};
