//! Accepts sockets, keeps the caps that hold for the whole process, and gives each to the core with
//! the fewest connections.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::sources::Sources;
use super::worker::{Handle, HandshakeSlot, Shared, Slots, Socket};
use crate::audit::ConnectionId;

/// After a failed accept (out of file descriptors, say) the listener rests.
const REST: Duration = Duration::from_millis(50);

/// One source may have this part of all handshakes under way.
const HANDSHAKE_PARTS: usize = 4;

struct Gate {
    handles: Vec<Handle>,
    shared: Shared,
    sources: RefCell<Sources>,
    /// Sources with handshakes under way: one that says nothing holds a part of the places, not all.
    handshaking: RefCell<Sources>,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    next_connection: Cell<u64>,
}

/// Accepts on every listener until the end is asked for.
pub(super) async fn accept_all(listeners: Vec<TcpListener>, handles: Vec<Handle>, shared: Shared) {
    // These hold until the process ends: config::Fixed.
    let limits = shared.generations.borrow().limits.clone();
    let gate = std::rc::Rc::new(Gate {
        sources: RefCell::new(Sources::new(limits.connections_per_source)),
        handshaking: RefCell::new(Sources::new(
            (limits.pending_handshakes / HANDSHAKE_PARTS).max(1),
        )),
        connections: Arc::new(Semaphore::new(limits.connections)),
        handshakes: Arc::new(Semaphore::new(limits.pending_handshakes)),
        next_connection: Cell::new(1),
        handles,
        shared,
    });
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let gate = std::rc::Rc::clone(&gate);
        let mut draining = gate.shared.draining.clone();
        accepting.spawn_local(async move {
            loop {
                let accepted = tokio::select! {
                    // First: what is accepted when the cores have stopped taking sockets would be cut.
                    biased;
                    _ = draining.wait_for(|draining| *draining) => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, source)) => gate.admit(stream, source),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(REST).await;
                    }
                }
            }
        });
    }
    while accepting.join_next().await.is_some() {}
}

impl Gate {
    fn admit(&self, stream: TcpStream, source: SocketAddr) {
        // First, so that one source that has too many is seen as that, whatever else is full.
        let Some(source_slot) = self.sources.borrow_mut().take(source.ip()) else {
            return self.refuse(source, "source_full");
        };
        let Ok(connection_slot) = Arc::clone(&self.connections).try_acquire_owned() else {
            return self.refuse(source, "connections_full");
        };
        let handshaking = self.handshaking.borrow_mut().take(source.ip());
        let handshake = Arc::clone(&self.handshakes).try_acquire_owned();
        let (Some(handshaking), Ok(handshake)) = (handshaking, handshake) else {
            return self.refuse(source, "handshakes_full");
        };
        let handshake_slot = HandshakeSlot { _source: handshaking, _handshake: handshake };
        let number = self.next_connection.get();
        self.next_connection.set(number + 1);
        let ready = stream.set_nodelay(true).and_then(|()| stream.into_std());
        let Ok(stream) = ready else { return };
        let connection = ConnectionId(number);
        let slots = Slots { _source: source_slot, _connection: connection_slot };
        let socket = Socket { stream, source, connection, slots, handshake_slot };
        let least = self.handles.iter().min_by_key(|handle| handle.connections());
        if !least.is_some_and(|handle| handle.give(socket)) {
            self.refuse(source, "core_full");
        }
    }

    fn refuse(&self, source: SocketAddr, reason: &'static str) {
        self.shared.metrics.count_refused_handshake(reason);
        let detail = "a limit of the client port is reached";
        self.shared.recorder.record_refusal(&self.shared.refusals, source.ip(), reason, detail);
    }
}
