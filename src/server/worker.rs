//! The threads that serve, one per core, each with a runtime of its own.

use std::cell::RefCell;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::Instant;

use super::generation::{Generation, Way};
use super::life::Pulse;
use super::sources::SourceSlot;
use crate::audit::fold::RefusalFold;
use crate::audit::{ConnectionId, Recorder};
use crate::clock;
use crate::metrics::Metrics;
use crate::policy::LeaseKeys;
use crate::proxy::{self, Alarms, Core, Hub, OpenCalls, Rates, Shares};

/// Sockets that may wait for a core.
const SOCKETS_WAITING_MAX: usize = 256;
/// How often expired certificates are looked for.
const EXPIRY_LOOK: Duration = Duration::from_millis(250);
/// How long idle connections may take to close after GOAWAY.
const IDLE_GRACE: Duration = Duration::from_millis(500);
/// How long who was shaking hands when the end was asked for may take, to be told in good order.
const HANDSHAKE_GRACE: Duration = Duration::from_secs(2);

/// What every core gets a handle of.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    /// What is in force.
    pub(super) generations: watch::Receiver<Arc<Generation>>,
    pub(super) recorder: Recorder,
    pub(super) refusals: Arc<Mutex<RefusalFold>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) rates: Arc<Rates>,
    pub(super) leases: Arc<LeaseKeys>,
    pub(super) draining: watch::Receiver<bool>,
    /// Turns true when calls that are still open are to be cut.
    pub(super) cutting: watch::Receiver<bool>,
}

/// A socket on its way to a core, with the places it takes.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) stream: TcpStream,
    pub(super) source: SocketAddr,
    pub(super) connection: ConnectionId,
    pub(super) slots: Slots,
    pub(super) handshake_slot: HandshakeSlot,
}

/// The places that a connection takes until it ends.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) _source: SourceSlot,
    pub(super) _connection: OwnedSemaphorePermit,
}

/// What a socket takes until its handshake is over.
#[derive(Debug)]
pub(super) struct HandshakeSlot {
    pub(super) _source: SourceSlot,
    pub(super) _handshake: OwnedSemaphorePermit,
}

/// The way to one core.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    sockets: mpsc::Sender<Socket>,
    connections: Arc<AtomicUsize>,
}

impl Handle {
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Gives a socket to the core; without room there it is closed.
    pub(super) fn give(&self, socket: Socket) -> bool {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let given = self.sockets.try_send(socket).is_ok();
        if !given {
            self.connections.fetch_sub(1, Ordering::Relaxed);
        }
        given
    }
}

/// All cores.
#[derive(Debug)]
pub(super) struct Workers {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<bool>>,
}

impl Workers {
    pub(super) fn handles(&self) -> Vec<Handle> {
        self.handles.clone()
    }

    /// Waits until every call has ended, at most that long; true when all had.
    pub(super) async fn join(self, drain_timeout: Duration) -> bool {
        drop(self.handles);
        let waiting = async {
            while self.threads.iter().any(|thread| !thread.is_finished()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // The cores stop by themselves at the drain timeout; a little more lets them say so.
        let bounded = tokio::time::timeout(drain_timeout + Duration::from_secs(2), waiting).await;
        let clean = self.threads.into_iter().filter(JoinHandle::is_finished);
        bounded.is_ok() && clean.map(JoinHandle::join).all(|joined| matches!(joined, Ok(true)))
    }
}

/// Starts a core for each pulse, which shows that it lives.
pub(super) fn start(pulses: Vec<Pulse>, shared: &Shared) -> std::io::Result<Workers> {
    let started = Instant::now();
    let mut workers = Workers { handles: Vec::new(), threads: Vec::new() };
    for (core, pulse) in pulses.into_iter().enumerate() {
        let (sockets, arriving) = mpsc::channel(SOCKETS_WAITING_MAX);
        let connections = Arc::new(AtomicUsize::new(0));
        workers.handles.push(Handle { sockets, connections: Arc::clone(&connections) });
        let shared = shared.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name(format!("core-{core}")).spawn(move || {
            let local = LocalSet::new();
            local.spawn_local(pulse.beat());
            runtime.block_on(local.run_until(serve(shared, arriving, connections, started)))
        })?;
        workers.threads.push(thread);
    }
    Ok(workers)
}

fn core(shared: &Shared, generation: &Generation, started: Instant) -> Core {
    let pool = |way: &Way| way.pool(&[], &shared.metrics);
    Core {
        policy: Arc::clone(&generation.policy),
        recorder: shared.recorder.on_this_core(),
        refusals: Arc::clone(&shared.refusals),
        http: generation.upstream.http(&shared.metrics),
        certificate_pools: generation.as_identities.iter().map(pool).collect(),
        logins: Arc::clone(&generation.logins),
        own_steps: Rc::default(),
        pool: pool(&generation.upstream),
        counts: shared.metrics.new_core(),
        metrics: Arc::clone(&shared.metrics),
        acceptor: Arc::clone(&generation.acceptor),
        revocation: Arc::clone(&generation.revocation),
        shares: Rc::new(RefCell::new(Shares::default())),
        rates: Arc::clone(&shared.rates),
        alarms: Rc::new(Alarms::default()),
        started,
        limits: generation.limits.clone(),
        open_calls: OpenCalls::default(),
        leases: Arc::clone(&shared.leases),
        advertise: Arc::clone(&generation.advertise),
        last_header: Rc::default(),
    }
}

/// Has each later generation hold for all connections of the core.
async fn follow(hub: Rc<Hub>, mut generations: watch::Receiver<Arc<Generation>>) {
    while generations.changed().await.is_ok() {
        let generation = Arc::clone(&generations.borrow_and_update());
        let core = generation.core(&hub.core());
        hub.adopt(core, clock::since_epoch).await;
    }
}

/// Looks for certificates that expire.
async fn expire(hub: Rc<Hub>) {
    loop {
        tokio::time::sleep(EXPIRY_LOOK).await;
        hub.expire(clock::since_epoch());
    }
}

/// Serves until the end is asked for; true when every call had ended within the drain time.
async fn serve(
    shared: Shared,
    mut arriving: mpsc::Receiver<Socket>,
    connections: Arc<AtomicUsize>,
    started: Instant,
) -> bool {
    let (mut draining, mut generations) = (shared.draining.clone(), shared.generations.clone());
    let first = Arc::clone(&generations.borrow_and_update());
    let hub = Rc::new(Hub::new(core(&shared, &first, started)));
    tokio::task::spawn_local(follow(Rc::clone(&hub), generations));
    tokio::task::spawn_local(expire(Rc::clone(&hub)));
    let mut serving = JoinSet::new();
    let handshakes = Handshakes::default();
    let begin = |serving: &mut JoinSet<()>, socket| {
        let (hub, connections) = (Rc::clone(&hub), Arc::clone(&connections));
        let handshake = handshakes.clone();
        serving.spawn_local(async move {
            serve_socket(hub, socket, handshake).await;
            connections.fetch_sub(1, Ordering::Relaxed);
        });
    };
    loop {
        tokio::select! {
            socket = arriving.recv() => match socket {
                Some(socket) => begin(&mut serving, socket),
                None => break,
            },
            Some(_) = serving.join_next() => {}
            _ = draining.wait_for(|draining| *draining) => break,
        }
    }
    // Nothing is accepted any more; what was is served, and told that ringfence ends.
    while let Ok(socket) = arriving.try_recv() {
        begin(&mut serving, socket);
    }
    drain(&hub, &mut serving, &handshakes, shared.cutting).await
}

/// Those under way: one for each clone but the first.
#[derive(Clone, Debug, Default)]
struct Handshakes(Rc<()>);

impl Handshakes {
    fn any(&self) -> bool {
        Rc::strong_count(&self.0) > 1
    }
}

/// Lets open calls finish, at most for the drain time and until `cutting` turns true; true when none
/// was cut. A client that holds an idle connection and does not answer our GOAWAY holds up nobody for
/// longer than the grace, and one that does not go on with its handshake for little longer.
async fn drain(
    hub: &Hub,
    serving: &mut JoinSet<()>,
    handshakes: &Handshakes,
    cutting: watch::Receiver<bool>,
) -> bool {
    let core = hub.core();
    let deadline = Instant::now() + core.limits.drain_timeout;
    let idle_grace = IDLE_GRACE.min(core.limits.drain_timeout);
    let shaken = Instant::now() + HANDSHAKE_GRACE.min(core.limits.drain_timeout);
    let mut grace = Instant::now() + idle_grace;
    loop {
        // Whoever has shaken hands meanwhile is told, too.
        hub.drain();
        tokio::select! {
            next = serving.join_next() => {
                if next.is_none() {
                    return true;
                }
            }
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
        if handshakes.any() && Instant::now() < shaken {
            grace = Instant::now() + idle_grace;
        }
        let open = core.open_calls.count();
        let cut = *cutting.borrow();
        if open == 0 && (cut || Instant::now() >= grace) {
            return true;
        }
        if cut || Instant::now() >= deadline {
            let why = if cut { "told to end at once" } else { "the drain time is over" };
            tracing::warn!(open, why, "calls were still open; they are cut");
            return false;
        }
    }
}

async fn serve_socket(hub: Rc<Hub>, socket: Socket, handshake: Handshakes) {
    let Socket { stream, source, connection, slots, handshake_slot } = socket;
    match tokio::net::TcpStream::from_std(stream) {
        Ok(stream) => {
            proxy::serve(hub, stream, source, connection, (handshake_slot, handshake)).await;
        }
        Err(error) => tracing::warn!(%error, "a socket cannot be served"),
    }
    drop(slots);
}
