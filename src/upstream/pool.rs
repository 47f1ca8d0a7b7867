//! The upstream connections of one core: opened when needed, bounded in number and in calls, and
//! replaced when they end. While no member answers, calls fail at once instead of queueing.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::time::Instant;

use super::Config;
use super::connection::{Connection, Uris, connect};
use crate::metrics::Metrics;

/// After a failed round over all members, how long calls fail without another try.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// The connections of one core.
#[derive(Debug)]
pub struct Pool {
    config: Config,
    metrics: Arc<Metrics>,
    /// Calls that end soon.
    brief: Lane,
    /// Streams and calls that wait: however many stand still, brief calls have their connections.
    open_ended: Lane,
}

/// Connections that share the same kind of calls.
#[derive(Debug, Default)]
struct Lane {
    connections: RefCell<Vec<Connection>>,
    /// Held while connecting, so that a burst of calls opens one connection and not one each.
    connecting: tokio::sync::Mutex<()>,
    failed: Cell<Option<Instant>>,
}

/// The right to make one call on one connection; giving it up makes room for the next.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) sender: SendRequest<Bytes>,
    pub(super) uris: Rc<Uris>,
    in_flight: Rc<Cell<u32>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.in_flight.set(self.in_flight.get().saturating_sub(1));
    }
}

/// Why there is no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSlot {
    /// No member can be reached.
    Unreachable,
    /// Every connection is full.
    Full,
}

impl Pool {
    /// A pool that connects at the first call.
    #[must_use]
    pub fn new(config: Config, metrics: Arc<Metrics>) -> Self {
        Self { config, metrics, brief: Lane::default(), open_ended: Lane::default() }
    }

    /// Whether a member can be reached: a live connection, or a new one.
    pub async fn is_reachable(&self) -> bool {
        self.slot(false).await != Err(NoSlot::Unreachable)
    }

    /// Room for one call; `open_ended` when it may take as long as it likes.
    pub(super) async fn slot(&self, open_ended: bool) -> Result<Slot, NoSlot> {
        let lane = if open_ended { &self.open_ended } else { &self.brief };
        let calls_max = self.config.streams_per_connection;
        if let Some(slot) = lane.free_slot(calls_max) {
            return Ok(slot);
        }
        let _connecting = lane.connecting.lock().await;
        // Somebody else may have connected, or failed to, while we waited.
        if let Some(slot) = lane.free_slot(calls_max) {
            return Ok(slot);
        }
        if lane.connections.borrow().len() >= self.config.connections {
            return Err(NoSlot::Full);
        }
        if lane.failed.get().is_some_and(|failed| failed.elapsed() < RETRY_AFTER) {
            return Err(NoSlot::Unreachable);
        }
        for endpoint in &self.config.endpoints {
            match connect(&self.config, endpoint, &self.metrics).await {
                Ok(connection) => {
                    lane.failed.set(None);
                    lane.connections.borrow_mut().push(connection);
                    return lane.free_slot(calls_max).ok_or(NoSlot::Unreachable);
                }
                Err(error) => {
                    self.metrics.upstream_connect_failures.inc();
                    tracing::warn!(%endpoint, %error, "etcd cannot be reached");
                }
            }
        }
        lane.failed.set(Some(Instant::now()));
        Err(NoSlot::Unreachable)
    }
}

impl Lane {
    fn free_slot(&self, calls_max: u32) -> Option<Slot> {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| connection.alive.get());
        let least = connections.iter().min_by_key(|connection| connection.in_flight.get())?;
        let calls = least.in_flight.get();
        if calls >= calls_max {
            return None;
        }
        least.in_flight.set(calls + 1);
        Some(Slot {
            sender: least.sender.clone(),
            uris: Rc::clone(&least.uris),
            in_flight: Rc::clone(&least.in_flight),
        })
    }
}

impl PartialEq for Slot {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.in_flight, &other.in_flight)
    }
}
