//! Threads: one that accepts and looks after the process, and one per core that serves. A
//! connection lives and dies on its core, and so do its connections to etcd.

mod doors;
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
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::admin::{self, Admin};
use crate::audit::Recorder;
use crate::audit::fold::RefusalFold;
use crate::clock;
use crate::config::{Config, LeaseKeyFile, Named};
use crate::metrics::{Metrics, ReloadUnit};
use expiry::Expiry;
use generation::Generation;
pub use handover::HandoverError;
pub use sockets::{PassedError, Passer};
use reload::{Command, Files, Reloader};

/// How often counters that live elsewhere are copied and folded refusals are recorded.
const TICK: Duration = Duration::from_secs(1);
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why ringfence does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The audit log cannot be opened.
    #[error(transparent)]
    Audit(#[from] crate::audit::FileError),
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

/// Serves what was read from that file, until SIGTERM or SIGINT; true when every call had ended by then.
///
/// # Errors
/// When serving cannot begin, or the last records cannot be written.
pub fn run(path: &Path, named: Named, config: Config) -> Result<bool, ServeError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    runtime.block_on(local.run_until(run_on_this_thread(path, named, config)))
}

async fn run_on_this_thread(
    path: &Path,
    named: Named,
    mut config: Config,
) -> Result<bool, ServeError> {
    let metrics = Arc::new(Metrics::default());
    let listeners = bind_all(&config.listen).await?;
    let admin_listener = bind("admin.listen", config.admin_listen).await?;
    let random = |key: &mut [u8]| aws_lc_rs::rand::fill(key).is_ok();
    let lease_keys = std::mem::replace(&mut config.lease_keys, LeaseKeyFile::None);
    let leases = lease_keys.open(random).map_err(ServeError::LeaseKeys)?;
    let (recorder, writer) = {
        let metrics = Arc::clone(&metrics);
        Recorder::start(&config.audit, move |took| metrics.observe_audit_sync(took))?
    };
    let (drain, draining) = watch::channel(false);
    let (cut, cutting) = watch::channel(false);
    let (listen, admin_listen) = (std::mem::take(&mut config.listen), config.admin_listen);
    let cores = config.cores;
    let (identities, rules) = config.policy.size();
    let reloader = begin(path, named, config, (&recorder, &metrics))?;
    let (in_force, state) = (reloader.generations.subscribe(), reloader.state.clone());
    let drain_timeout = in_force.borrow().limits.drain_timeout;
    let mut signals = Signals::new(recorder.clone(), reload::start(reloader)?)?;
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
    let workers = worker::start(cores, &shared)?;
    let admin = tokio::task::spawn_local(serve_admin(
        admin_listener,
        (Arc::clone(&metrics), recorder.clone(), draining),
        (state, in_force.clone()),
    ));
    let accepting =
        tokio::task::spawn_local(listen::accept_all(listeners, workers.handles(), shared));
    tracing::info!(
        ?listen,
        admin = %admin_listen,
        audit = %writer.path.display(),
        identities,
        rules,
        "serving"
    );
    let expiry = RefCell::new(Expiry::default());
    let now_and_then = || {
        tick(&recorder, &metrics, &refusals);
        let now = clock::since_epoch();
        let generation = Arc::clone(&in_force.borrow());
        let own = (generation.number, generation.own_certificates.as_slice());
        expiry.borrow_mut().look(own, now, &metrics, &recorder);
        metrics.certificates().refresh(now);
    };
    let signal = meanwhile(now_and_then, signals.next()).await;
    tracing::info!(signal, "ending: no new connections, open calls may finish");
    drain.send_replace(true);
    accepting.abort();
    let clean = meanwhile(now_and_then, join(workers, drain_timeout, &mut signals, &cut)).await;
    admin.abort();
    now_and_then();
    recorder.flush_all_refusals(&refusals);
    recorder.record_stop();
    writer.close()?;
    tracing::info!(clean, "ended");
    Ok(clean)
}

/// Puts the first generation in force, and what will read the next one.
fn begin(
    path: &Path,
    named: Named,
    mut config: Config,
    (recorder, metrics): (&Recorder, &Arc<Metrics>),
) -> Result<Reloader, ServeError> {
    let (when, fixed) = (config.reload, std::mem::take(&mut config.fixed));
    let (identities, rules) = config.policy.size();
    let first = Generation::new(config, None)?;
    recorder.record_start(VERSION, identities, rules);
    metrics.note_reload(ReloadUnit::Generation, first.number, clock::since_epoch());
    Ok(Reloader {
        path: path.to_owned(),
        generations: watch::Sender::new(Arc::new(first)),
        metrics: Arc::clone(metrics),
        recorder: recorder.clone(),
        state: reload::State::default(),
        when,
        fixed,
        files: Files::new(named),
    })
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

/// Waits until every call has ended; a second signal cuts those that are open.
async fn join(
    workers: worker::Workers,
    drain_timeout: Duration,
    signals: &mut Signals,
    cut: &watch::Sender<bool>,
) -> bool {
    let mut joining = std::pin::pin!(workers.join(drain_timeout));
    tokio::select! {
        clean = &mut joining => return clean,
        signal = signals.next() => {
            tracing::warn!(signal, "ending at once: told a second time");
            cut.send_replace(true);
        }
    }
    joining.await
}

/// The signals that end the process, and the one that does not.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    recorder: Recorder,
    reload: std::sync::mpsc::Sender<Command>,
}

impl Signals {
    fn new(recorder: Recorder, reload: std::sync::mpsc::Sender<Command>) -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        let hangup = signal(SignalKind::hangup())?;
        Ok(Self { terminate, interrupt, hangup, recorder, reload })
    }

    /// The name of the next one that ends the process. SIGHUP has the config read again, and the audit log go on in a
    /// new file.
    async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => {
                    tracing::info!("SIGHUP: the config is read again, the audit log goes on in a new file");
                    self.recorder.rotate();
                    if self.reload.send(Command::Reload).is_err() {
                        tracing::error!("the thread that reads the config again has ended");
                    }
                }
            }
        }
    }
}

/// Waits, and does in between what must be done now and then.
async fn meanwhile<T>(now_and_then: impl Fn(), awaited: impl Future<Output = T>) -> T {
    let mut awaited = std::pin::pin!(awaited);
    loop {
        tokio::select! {
            done = &mut awaited => return done,
            () = tokio::time::sleep(TICK) => now_and_then(),
        }
    }
}

async fn bind_all(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, ServeError> {
    let mut listeners = Vec::new();
    for address in addresses {
        listeners.push(bind("client.listen", *address).await?);
    }
    Ok(listeners)
}

async fn bind(setting: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|error| ServeError::Listen { setting, address, error })
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
