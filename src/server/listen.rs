//! Accepts sockets, keeps the caps that hold for the whole process, and gives each to the core with
//! the fewest connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::worker::{Handle, Shared, Socket};
use crate::audit::ConnectionId;

/// After a failed accept (out of file descriptors, say) the listener rests.
const REST: Duration = Duration::from_millis(50);

struct Gate {
    handles: Vec<Handle>,
    shared: Shared,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    next_connection: std::cell::Cell<u64>,
}

/// Accepts on every listener until its task is dropped.
pub(super) async fn accept_all(listeners: Vec<TcpListener>, handles: Vec<Handle>, shared: Shared) {
    let gate = std::rc::Rc::new(Gate {
        connections: Arc::new(Semaphore::new(shared.limits.connections)),
        handshakes: Arc::new(Semaphore::new(shared.limits.pending_handshakes)),
        next_connection: std::cell::Cell::new(1),
        handles,
        shared,
    });
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let gate = std::rc::Rc::clone(&gate);
        accepting.spawn_local(async move {
            loop {
                match listener.accept().await {
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
        let Ok(connection_slot) = Arc::clone(&self.connections).try_acquire_owned() else {
            return self.refuse(source, "connections_full");
        };
        let Ok(handshake_slot) = Arc::clone(&self.handshakes).try_acquire_owned() else {
            return self.refuse(source, "handshakes_full");
        };
        let number = self.next_connection.get();
        self.next_connection.set(number + 1);
        let ready = stream.set_nodelay(true).and_then(|()| stream.into_std());
        let Ok(stream) = ready else { return };
        let connection = ConnectionId(number);
        let socket = Socket { stream, source, connection, connection_slot, handshake_slot };
        let least = self.handles.iter().min_by_key(|handle| handle.connections());
        if !least.is_some_and(|handle| handle.give(socket)) {
            self.refuse(source, "core_full");
        }
    }

    fn refuse(&self, source: SocketAddr, reason: &'static str) {
        self.shared.metrics.count_refused_handshake(reason);
        let detail = "a limit of the process is reached";
        self.shared.recorder.record_refusal(&self.shared.refusals, source.ip(), reason, detail);
    }
}
