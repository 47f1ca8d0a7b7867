//! The client port: the journey of a call. Its phases have the same names everywhere: read, decide,
//! record, forward, relay.
//!
//! It never sends client bytes, client paths or client headers on.

mod acting;
mod alarm;
mod authorize;
mod call;
mod connection;
mod ending;
mod guard;
mod http1;
mod http2;
mod judge;
mod outbox;
mod page;
mod rate;
mod refuse;
mod relay;
mod reply;
mod respond;
mod share;
mod stream;

pub use alarm::Alarms;
pub use connection::serve;
pub use judge::Hub;
pub use rate::Rates;
pub use refuse::Refusal;
pub use share::Shares;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::CoreRecorder;
use crate::audit::fold::RefusalFold;
use crate::etcd::response::Header;
use crate::metrics::{CoreCounts, Metrics};
use crate::policy::{LeaseKeys, Policy};
use crate::tls::{Acceptor, Revocation};
use crate::upstream::{HttpClient, Logins, Pool};

/// The bounds of the client port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one source address at a time.
    pub connections_per_source: usize,
    /// Handshakes that may be under way, in all.
    pub pending_handshakes: usize,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// How long a connection may wait with its first request.
    pub first_request_timeout: Duration,
    /// How long a header block, or any frame but DATA, may be half-sent.
    pub header_timeout: Duration,
    /// How long a connection without open calls is kept; `None` is for ever.
    pub idle_timeout: Option<Duration>,
    /// How long any connection is kept; `None` is for ever.
    pub lifetime: Option<Duration>,
    /// Frames of a client that carry no request (see `grpc::flood`).
    pub control_frames_per_second: u32,
    /// Streams of a client that it gives up.
    pub resets_per_second: u32,
    /// Streams of one connection at a time; kube-apiserver multiplexes.
    pub streams_per_connection: u32,
    /// A request's headers, as HTTP/2 counts them.
    pub header_list_bytes: u32,
    /// A request's message (etcd takes 1.5 MiB and 512 KiB of overhead).
    pub request_bytes: usize,
    /// Calls of one principal that end soon, at a time, per core.
    pub calls_per_principal: u32,
    /// Streams of one principal to etcd at a time, per core, and calls that wait for others.
    pub streams_per_principal: u32,
    /// Watches of one principal at a time, per core; etcd keeps each in memory.
    pub watches_per_principal: u32,
    /// Requests of one principal, over all cores; 0 is no limit.
    pub requests_per_second_per_principal: u64,
    /// Bytes of one principal's requests and replies a second, over all cores; 0 is no limit.
    pub bytes_per_second_per_principal: u64,
    /// Bytes of one reply of a call of KV; 0 is no limit.
    pub reply_bytes: u64,
    /// Messages of one principal in memory at a time, per core.
    pub request_bytes_per_principal: usize,
    /// How long a call may take in all; a shorter `grpc-timeout` counts.
    pub call_timeout: Duration,
    /// How long open calls may go on after the end was asked for.
    pub drain_timeout: Duration,
}

/// What the connections of one core share: one generation of what may change while ringfence runs, and what lasts.
#[derive(Clone, Debug)]
pub struct Core {
    /// Identities and rules.
    pub policy: Arc<Policy>,
    /// The audit log.
    pub recorder: CoreRecorder,
    /// Refused connections, folded; shared by every core.
    pub refusals: Arc<std::sync::Mutex<RefusalFold>>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// What its calls count.
    pub counts: Arc<CoreCounts>,
    /// Handshakes.
    pub acceptor: Arc<Acceptor>,
    /// What of certificates counts no more.
    pub revocation: Arc<Revocation>,
    /// Connections to etcd.
    pub pool: Rc<Pool>,
    /// Those that identities have for themselves, each with a certificate of its own.
    pub certificate_pools: Vec<Rc<Pool>>,
    /// Users of etcd as which identities reach it; shared by every core.
    pub logins: Arc<Logins>,
    /// How many steps of ringfence's own there were.
    pub own_steps: Rc<Cell<u32>>,
    /// The way to etcd's pages.
    pub http: Rc<HttpClient>,
    /// What principals use of this core.
    pub shares: Rc<RefCell<Shares>>,
    /// How many requests principals make; shared by every core.
    pub rates: Arc<Rates>,
    /// When calls are cut off.
    pub alarms: Rc<Alarms>,
    /// When the process began; the time of `rates`.
    pub started: tokio::time::Instant,
    /// Bounds.
    pub limits: Limits,
    /// Calls that have not ended.
    pub open_calls: OpenCalls,
    /// Whose leases are whose.
    pub leases: Arc<LeaseKeys>,
    /// Where members are said to be.
    pub advertise: Arc<Advertise>,
    /// The header of the latest message of a stream, for answers of our own.
    pub last_header: Rc<Cell<Header>>,
}

/// Look-ups of leases have the numbers below.
const FIRST_OWN_STEP: u32 = 16;

impl Core {
    /// A number for a step of ringfence's own, among those of one call.
    fn next_step(&self) -> u32 {
        let number = self.own_steps.get();
        self.own_steps.set(number.wrapping_add(1));
        FIRST_OWN_STEP.saturating_add(number & (u32::MAX >> 1))
    }
}

/// The client URLs of each member that lead to a ringfence, by the member's name. A member that is
/// not named here is shown without any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advertise(pub BTreeMap<String, Vec<String>>);

impl Advertise {
    fn urls(&self, member: &str) -> Vec<String> {
        self.0.get(member).cloned().unwrap_or_default()
    }
}

/// How many calls of a core have not ended.
#[derive(Clone, Debug, Default)]
pub struct OpenCalls(Rc<Cell<usize>>);

/// One open call; dropped when it ends.
#[derive(Debug)]
struct OpenCall(OpenCalls);

impl OpenCalls {
    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.get()
    }

    fn open(&self) -> OpenCall {
        self.0.set(self.0.get() + 1);
        OpenCall(self.clone())
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get().saturating_sub(1));
    }
}
