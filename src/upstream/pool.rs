//! The upstream connections of one core: opened when needed, bounded in number and in calls, and
//! replaced when they end. While no member answers, calls fail at once instead of queueing.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::connection::{Connection, Uris, connect};
use super::{Config, Reachability};
use crate::metrics::Metrics;

/// After a failed round over all members, how long calls fail without another try.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// The connections of one core.
#[derive(Debug)]
pub struct Pool {
    connector: Rc<Connector>,
    /// Calls that end soon.
    brief: Rc<Lane>,
    /// Streams and calls that wait: however many stand still, brief calls have their connections.
    open_ended: Rc<Lane>,
}

/// What it takes to connect.
#[derive(Debug)]
struct Connector {
    config: Config,
    metrics: Arc<Metrics>,
    reachability: Arc<Reachability>,
}

/// Connections that share the same kind of calls.
#[derive(Debug, Default)]
struct Lane {
    connections: RefCell<Vec<Connection>>,
    /// A task connects, so that a burst of calls opens one connection and not one each.
    connecting: Cell<bool>,
    failed: Cell<Option<Instant>>,
    /// Wakes the calls that wait: the task has ended, or another call has.
    changed: Notify,
}

/// The right to make one call on one connection; giving it up makes room for the next.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) sender: SendRequest<Bytes>,
    pub(super) uris: Rc<Uris>,
    in_flight: Rc<Cell<u32>>,
    lane: Rc<Lane>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.in_flight.set(self.in_flight.get().saturating_sub(1));
        if self.lane.connecting.get() {
            self.lane.changed.notify_one();
        }
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
    /// A pool that connects at the first call; what it finds out about endpoints it shares.
    #[must_use]
    pub fn new(config: Config, metrics: Arc<Metrics>, reachability: Arc<Reachability>) -> Self {
        Self {
            connector: Rc::new(Connector { config, metrics, reachability }),
            brief: Rc::default(),
            open_ended: Rc::default(),
        }
    }

    /// Whether its connections are those of that way to etcd.
    #[must_use]
    pub fn is_of(&self, reachability: &Arc<Reachability>) -> bool {
        Arc::ptr_eq(&self.connector.reachability, reachability)
    }

    /// Whether a member can be reached: a live connection, or a new one.
    pub async fn is_reachable(&self) -> bool {
        !matches!(self.slot(false).await, Err(NoSlot::Unreachable))
    }

    /// Room for one call; `open_ended` when it may take as long as it likes. It may be dropped at any
    /// time: a call that has no time left does not end the connecting that others wait for.
    pub(super) async fn slot(&self, open_ended: bool) -> Result<Slot, NoSlot> {
        let lane = if open_ended { &self.open_ended } else { &self.brief };
        let config = &self.connector.config;
        loop {
            if let Some(slot) = lane.free_slot(config.calls_per_connection) {
                return Ok(slot);
            }
            if lane.connections.borrow().len() >= config.connections {
                return Err(NoSlot::Full);
            }
            if lane.failed.get().is_some_and(|failed| failed.elapsed() < RETRY_AFTER) {
                return Err(NoSlot::Unreachable);
            }
            if !lane.connecting.replace(true) {
                let connecting = Connecting(Rc::clone(lane));
                tokio::task::spawn_local(Rc::clone(&self.connector).connect(connecting));
            }
            lane.changed.notified().await;
        }
    }
}

impl Connector {
    /// Tries the members in order until one answers.
    async fn connect(self: Rc<Self>, connecting: Connecting) {
        let Connecting(lane) = &connecting;
        for (position, endpoint) in self.config.endpoints.iter().enumerate() {
            let connected = connect(&self.config, endpoint, &self.metrics).await;
            self.reachability.note(position, endpoint, connected.as_ref().err());
            match connected {
                Ok(connection) => {
                    lane.failed.set(None);
                    return lane.connections.borrow_mut().push(connection);
                }
                Err(_) => self.metrics.upstream_connect_failures.inc(),
            };
        }
        lane.failed.set(Some(Instant::now()));
    }
}

/// That a lane is being connected; dropped when that has ended, for whatever reason.
struct Connecting(Rc<Lane>);

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.connecting.set(false);
        self.0.changed.notify_waiters();
    }
}

impl Lane {
    fn free_slot(self: &Rc<Self>, calls_max: u32) -> Option<Slot> {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| connection.alive.get());
        // The first with room, not the least loaded: calls that share a connection share its reads, writes and TLS
        // records. Spread over what a peak had opened, each call cost 2.5 times as much for ever after.
        let free = connections.iter().find(|connection| connection.in_flight.get() < calls_max)?;
        free.in_flight.set(free.in_flight.get() + 1);
        Some(Slot {
            sender: free.sender.clone(),
            uris: Rc::clone(&free.uris),
            in_flight: Rc::clone(&free.in_flight),
            lane: Rc::clone(self),
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    use super::*;
    use crate::upstream::Endpoint;

    /// Far more than anything here takes, and less than the connecting that must not be waited for.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A member that answers on its first connection, and on all others accepts and says nothing.
    async fn member_of_one_connection() -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::task::spawn_local(async move {
            let (first, _) = listener.accept().await.unwrap();
            tokio::task::spawn_local(async move {
                let mut connection = h2::server::handshake(first).await.unwrap();
                while connection.accept().await.is_some() {}
            });
            let mut silent = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                silent.push(stream);
            }
        });
        Endpoint::parse(&endpoint).unwrap()
    }

    /// A pool with one connection for one call; everything else hangs while it connects.
    async fn pool() -> (Pool, Slot) {
        let config = Config {
            http_endpoints: vec![],
            endpoints: vec![member_of_one_connection().await],
            connector: None,
            connect_timeout: PATIENCE * 10,
            connections: 2,
            calls_per_connection: 1,
        };
        let reachability = Arc::new(Reachability::new(&config));
        let pool = Pool::new(config, Arc::default(), reachability);
        let slot = tokio::time::timeout(PATIENCE, pool.slot(false)).await.unwrap().unwrap();
        (pool, slot)
    }

    async fn is_waiting(call: &mut (impl Future<Output = Result<Slot, NoSlot>> + Unpin)) -> bool {
        // Let the task that connects come as far as it can.
        tokio::time::timeout(Duration::from_millis(50), call).await.is_err()
    }

    #[tokio::test]
    async fn a_call_that_waits_for_a_connection_takes_one_that_falls_free() {
        let test = async {
            let (pool, taken) = pool().await;
            let mut waiting = std::pin::pin!(pool.slot(false));
            assert!(is_waiting(&mut waiting).await, "the second connection never answers");
            drop(taken);
            let slot = tokio::time::timeout(PATIENCE, waiting).await.unwrap();
            assert!(slot.is_ok(), "{slot:?}");
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn a_lane_that_cannot_connect_does_not_hold_up_the_other() {
        let test = async {
            let (pool, slot) = pool().await;
            drop(slot);
            let mut stream = std::pin::pin!(pool.slot(true));
            assert!(is_waiting(&mut stream).await, "the other lane's connection never answers");
            let brief = tokio::time::timeout(PATIENCE, pool.slot(false)).await.unwrap();
            assert!(brief.is_ok(), "{brief:?}");
        };
        LocalSet::new().run_until(test).await;
    }

    /// A member that answers on every connection.
    async fn member() -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while connection.accept().await.is_some() {}
                });
            }
        });
        Endpoint::parse(&endpoint).unwrap()
    }

    #[tokio::test]
    async fn after_a_peak_calls_share_a_connection_again() {
        let test = async {
            let config = Config {
                http_endpoints: vec![],
                endpoints: vec![member().await],
                connector: None,
                connect_timeout: PATIENCE,
                connections: 4,
                calls_per_connection: 3,
            };
            let reachability = Arc::new(Reachability::new(&config));
            let pool = Pool::new(config, Arc::default(), reachability);
            let mut peak = Vec::new();
            for _ in 0..12 {
                peak.push(pool.slot(false).await.unwrap());
            }
            let loads = || -> Vec<u32> {
                let connections = pool.brief.connections.borrow();
                connections.iter().map(|connection| connection.in_flight.get()).collect()
            };
            assert_eq!(loads(), [3, 3, 3, 3]);
            drop(peak);
            let first = pool.slot(false).await.unwrap();
            let second = pool.slot(false).await.unwrap();
            assert_eq!(loads(), [2, 0, 0, 0]);
            drop((first, second));
        };
        LocalSet::new().run_until(test).await;
    }
}
