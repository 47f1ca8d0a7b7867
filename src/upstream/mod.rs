//! The only way to etcd's client port. It sends what a permit holds, to a path from a table,
//! and takes proof of the audit record with it.

mod connection;
pub mod endpoint;
pub mod forward;
pub mod http1;
pub mod login;
pub mod pool;
pub mod reachability;
pub mod stream;

pub use endpoint::Endpoint;
pub use forward::{ForwardError, Reply, forward, refuses_token};
pub use http1::{HttpBody, HttpClient, HttpForwardError, HttpReply, forward_http};
pub use login::{Login, LoginFailure, Logins, Secret, Token, Turn};
pub use pool::Pool;
pub use reachability::Reachability;
pub use stream::{Incoming, Next, Outgoing, open};

use std::time::Duration;

use crate::tls::Connector;

/// How etcd is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Members, tried in order.
    pub endpoints: Vec<Endpoint>,
    /// Where members serve plain HTTP, tried in order; the same, unless their listeners are split.
    pub http_endpoints: Vec<Endpoint>,
    /// For https endpoints.
    pub connector: Option<Connector>,
    /// How long a connection may take to come up.
    pub connect_timeout: Duration,
    /// The most connections per core.
    pub connections: usize,
    /// The most calls on one connection at a time.
    pub calls_per_connection: u32,
}
