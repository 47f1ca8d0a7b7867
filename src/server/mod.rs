//! Threads: one that accepts and looks after the process, and one per core that serves. A
//! connection lives and dies on its core, and so do its connections to etcd.

mod doors;
mod ending;
mod expiry;
mod generation;
mod handover;
mod life;
mod listen;
mod manager;
mod reload;
mod sockets;
mod sources;
mod worker;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::admin::{self, Admin};
use crate::audit::fold::RefusalFold;
use crate::audit::recorder::Writer;
use crate::audit::{FileError, Recorder};
use crate::clock;
use crate::config::{Config, LeaseKeyFile, Named};
use crate::metrics::{Metrics, ReloadUnit};
use crate::policy::LeaseKeys;
use doors::Doors;
use ending::{Signals, Why};
use expiry::Expiry;
use generation::Generation;
pub use handover::HandoverError;
use life::{Lives, Pulse};
use manager::Manager;
use reload::{Files, Lists, Reloader};
pub use sockets::{PassedError, Passer};

/// How often counters that live elsewhere are copied and folded refusals are recorded.
const TICK: Duration = Duration::from_secs(1);
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why ringfence does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The audit log cannot be opened.
    #[error(transparent)]
    Audit(#[from] FileError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}, `{setting}`: {error}")]
    Listen {
        /// Where the config names it.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// What was passed to listen on is something else.
    #[error(transparent)]
    Passed(#[from] PassedError),
    /// One ringfence does not take the place of another.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// The file of lease keys cannot be made.
    #[error("{0}")]
    LeaseKeys(String),
    /// TLS material that does not work together.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The operating system refuses a thread, a signal handler or a file.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Serves what was read from that file, until SIGTERM or SIGINT, or until another takes over; true when every call had
/// ended by then. With `take_over` it takes the place of the one that runs.
///
/// # Errors
/// When serving cannot begin, or the last records cannot be written.
pub fn run(path: &Path, named: Named, config: Config, take_over: bool) -> Result<bool, ServeError> {
    let passed = sockets::from_manager()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    runtime.block_on(local.run_until(async {
        let doors = Doors::open(&config, passed, take_over).await?;
        run_on_this_thread(path, named, config, doors).await
    }))
}

async fn run_on_this_thread(
    path: &Path,
    named: Named,
    mut config: Config,
    Doors { sockets, next }: Doors,
) -> Result<bool, ServeError> {
    let metrics = Arc::new(Metrics::default());
    let leases = open_leases(&mut config)?;
    let (recorder, writer) = open_log(&config, &metrics)?;
    let (drain, draining) = watch::channel(false);
    let (cut, cutting) = watch::channel(false);
    let (listen, admin_listen) = (std::mem::take(&mut config.listen), config.admin_listen);
    let (manager, pulses) = watched(config.cores, &recorder)?;
    let (identities, rules) = config.policy.size();
    let reloader = begin(path, named, config, (&recorder, &metrics, &manager))?;
    let (in_force, state) = (reloader.generations.subscribe(), reloader.state.clone());
    let reload = reload::start(reloader)?;
    let mut signals = Signals::new(recorder.clone(), manager.clone(), reload)?;
    let refusals = Arc::new(Mutex::new(RefusalFold::default()));
    let shared = worker::Shared {
        generations: in_force.clone(),
        recorder: recorder.clone(),
        refusals: Arc::clone(&refusals),
        metrics: Arc::clone(&metrics),
        rates: Arc::default(),
        leases: Arc::new(leases),
        draining: draining.clone(),
        cutting,
    };
    let workers = worker::start(pulses, &shared)?;
    let admin = tokio::task::spawn_local(serve_admin(
        sockets.admin,
        (Arc::clone(&metrics), recorder.clone(), draining),
        (state.clone(), in_force.clone()),
    ));
    let handles = workers.handles();
    let accepting = tokio::task::spawn_local(listen::accept_all(sockets.clients, handles, shared));
    let chores = Chores { recorder, metrics, refusals, in_force, expiry: RefCell::default() };
    let serves = || {
        tracing::info!(
            ?listen,
            admin = %admin_listen,
            audit = %writer.path.display(),
            identities,
            rules,
            "serving"
        );
        manager.ready(&state.status(chores.in_force.borrow().number));
    };
    let why = chores.meanwhile(ending::wait(next, &mut signals, serves)).await;
    tracing::info!(why = why.name(), "ending: no new connections, open calls may finish");
    manager.stopping(&format!("ends: {}; open calls may finish", why.name()));
    if why.leaves_another() {
        // Who asks on the admin port is to hear the other one.
        admin.abort();
    }
    let drain_timeout = chores.in_force.borrow().limits.drain_timeout;
    drain.send_replace(true);
    accepting.abort();
    let clean = chores.meanwhile(ending::join(workers, drain_timeout, &mut signals, &cut)).await;
    admin.abort();
    chores.end();
    writer.close()?;
    tracing::info!(clean, "ended");
    if let Why::NoPlace(error) = why { Err(error) } else { Ok(clean) }
}

fn open_leases(config: &mut Config) -> Result<LeaseKeys, ServeError> {
    let random = |key: &mut [u8]| aws_lc_rs::rand::fill(key).is_ok();
    let keys = std::mem::replace(&mut config.lease_keys, LeaseKeyFile::None);
    keys.open(random).map_err(ServeError::LeaseKeys)
}

fn open_log(config: &Config, metrics: &Arc<Metrics>) -> Result<(Recorder, Writer), FileError> {
    let metrics = Arc::clone(metrics);
    Recorder::start(&config.audit, move |took| metrics.observe_audit_sync(took))
}

/// Puts the first generation in force, and what will read the next one.
fn begin(
    path: &Path,
    named: Named,
    mut config: Config,
    (recorder, metrics, manager): (&Recorder, &Arc<Metrics>, &Manager),
) -> Result<Reloader, ServeError> {
    let (when, fixed) = (config.reload, std::mem::take(&mut config.fixed));
    let (identities, rules) = config.policy.size();
    let first = Generation::new(config, None)?;
    recorder.record_start(VERSION, identities, rules);
    metrics.note_reload(ReloadUnit::Generation, first.number, clock::since_epoch());
    metrics.note_reload(ReloadUnit::Revocation, 1, clock::since_epoch());
    let lists = Lists::new(&first);
    Ok(Reloader {
        path: path.to_owned(),
        generations: watch::Sender::new(Arc::new(first)),
        metrics: Arc::clone(metrics),
        recorder: recorder.clone(),
        state: reload::State::default(),
        manager: manager.clone(),
        when,
        fixed,
        files: Files::new(named),
        lists,
    })
}

/// What has to be done now and then.
struct Chores {
    recorder: Recorder,
    metrics: Arc<Metrics>,
    refusals: Arc<Mutex<RefusalFold>>,
    in_force: watch::Receiver<Arc<Generation>>,
    expiry: RefCell<Expiry>,
}

impl Chores {
    /// Waits, and does them in between.
    async fn meanwhile<T>(&self, awaited: impl Future<Output = T>) -> T {
        let mut awaited = std::pin::pin!(awaited);
        loop {
            tokio::select! {
                done = &mut awaited => return done,
                () = tokio::time::sleep(TICK) => self.once(),
            }
        }
    }

    fn once(&self) {
        tick(&self.recorder, &self.metrics, &self.refusals);
        let now = clock::since_epoch();
        let generation = Arc::clone(&self.in_force.borrow());
        self.expiry.borrow_mut().look(&generation, now, &self.metrics, &self.recorder);
        self.metrics.certificates().refresh(now);
    }

    /// The last of them, and the last record.
    fn end(&self) {
        self.once();
        self.recorder.flush_all_refusals(&self.refusals);
        self.recorder.record_stop();
    }
}

/// The way to the service manager, with everybody whose life it watches: this thread, which beats already, the audit
/// writer, and each core.
fn watched(cores: usize, recorder: &Recorder) -> std::io::Result<(Manager, Vec<Pulse>)> {
    let mut lives = Lives::new(manager::watchdog());
    tokio::task::spawn_local(lives.pulse("accept".to_owned()).beat());
    let recorder = recorder.clone();
    lives.add("audit".to_owned(), move || recorder.turns());
    let pulses = (0..cores.max(1)).map(|core| lives.pulse(format!("core-{core}"))).collect();
    Ok((Manager::start(lives)?, pulses))
}

/// Serves the admin port; its way to etcd is that of the generation in force.
async fn serve_admin(
    listener: TcpListener,
    (metrics, recorder, draining): (Arc<Metrics>, Recorder, watch::Receiver<bool>),
    (state, mut generations): (reload::State, watch::Receiver<Arc<Generation>>),
) {
    let generation = Arc::clone(&generations.borrow_and_update());
    let notes = {
        let generations = generations.clone();
        move || state.notes(generations.borrow().number)
    };
    let pool = RefCell::new(generation.upstream.pool(&[], &metrics));
    let metrics_of_pools = Arc::clone(&metrics);
    let admin = Rc::new(Admin { metrics, recorder, pool, draining, notes: Box::new(notes) });
    let following = {
        let admin = Rc::clone(&admin);
        async move {
            while generations.changed().await.is_ok() {
                let generation = Arc::clone(&generations.borrow_and_update());
                let pool = generation.upstream.pool(&[&admin.pool()], &metrics_of_pools);
                admin.pool.replace(pool);
            }
        }
    };
    tokio::join!(admin::serve(listener, admin), following);
}

fn tick(recorder: &Recorder, metrics: &Metrics, refusals: &Mutex<RefusalFold>) {
    metrics.audit_records.inner().store(recorder.written(), std::sync::atomic::Ordering::Relaxed);
    metrics.audit_gaps.inner().store(recorder.gaps(), std::sync::atomic::Ordering::Relaxed);
    metrics.audit_left_out.inner().store(recorder.left_out(), std::sync::atomic::Ordering::Relaxed);
    metrics.audit_refused.inner().store(recorder.refused(), std::sync::atomic::Ordering::Relaxed);
    for sink in recorder.sinks() {
        metrics.note_sink(sink.name(), sink.counts(), sink.failure().is_none());
    }
    recorder.flush_refusals(refusals);
}
