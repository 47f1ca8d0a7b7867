//! Threads: one that accepts and looks after the process, and one per core that serves. A
//! connection lives and dies on its core, and so do its connections to etcd.

mod listen;
mod sources;
mod worker;

use std::net::SocketAddr;
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
use crate::config::Config;
use crate::metrics::Metrics;
use crate::tls::{Acceptor, Connector};
use crate::upstream::{self, Pool, Reachability};

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

/// Serves until SIGTERM or SIGINT; true when every call had ended by then.
///
/// # Errors
/// When serving cannot begin, or the last records cannot be written.
pub fn run(config: Config) -> Result<bool, ServeError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    runtime.block_on(local.run_until(run_on_this_thread(config)))
}

async fn run_on_this_thread(config: Config) -> Result<bool, ServeError> {
    let metrics = Arc::new(Metrics::default());
    let as_identities = with_reachability(&config);
    let acceptor =
        Acceptor::new(&config.certificate, &config.authorities, config.limits.handshake_timeout)?;
    let listeners = bind_all(&config.listen).await?;
    let admin_listener = bind("admin.listen", config.admin_listen).await?;

    let random = |key: &mut [u8]| aws_lc_rs::rand::fill(key).is_ok();
    let leases = config.lease_keys.open(random).map_err(ServeError::LeaseKeys)?;
    let (recorder, writer) = {
        let metrics = Arc::clone(&metrics);
        Recorder::start(&config.audit, move |took| metrics.observe_audit_sync(took))?
    };
    let (identities, rules) = config.policy.size();
    recorder.record_start(VERSION, identities, rules);
    let refusals = Arc::new(Mutex::new(RefusalFold::default()));
    let (drain, draining) = watch::channel(false);
    let (cut, cutting) = watch::channel(false);
    let mut signals = Signals::new()?;
    let reachability = Arc::new(Reachability::new(&config.upstream));
    let shared = worker::Shared {
        policy: Arc::new(config.policy),
        recorder: recorder.clone(),
        refusals: Arc::clone(&refusals),
        metrics: Arc::clone(&metrics),
        acceptor: Arc::new(acceptor),
        as_identities,
        logins: Arc::new(config.logins),
        upstream: config.upstream.clone(),
        reachability: Arc::clone(&reachability),
        rates: Arc::default(),
        limits: config.limits.clone(),
        leases: Arc::new(leases),
        advertise: Arc::new(config.advertise),
        draining: draining.clone(),
        cutting,
    };
    let workers = worker::start(config.cores, &shared)?;
    let admin = Admin {
        metrics: Arc::clone(&metrics),
        recorder: recorder.clone(),
        pool: Pool::new(config.upstream, Arc::clone(&metrics), reachability),
        draining,
    };
    let admin = tokio::task::spawn_local(admin::serve(admin_listener, Rc::new(admin)));
    let accepting =
        tokio::task::spawn_local(listen::accept_all(listeners, workers.handles(), shared));
    tracing::info!(
        listen = ?config.listen,
        admin = %config.admin_listen,
        audit = %writer.path.display(),
        identities,
        rules,
        "serving"
    );
    let now_and_then = || tick(&recorder, &metrics, &refusals);
    let signal = meanwhile(now_and_then, signals.next(&recorder)).await;
    tracing::info!(signal, "ending: no new connections, open calls may finish");
    accepting.abort();
    drain.send_replace(true);
    let joining = join(workers, config.limits.drain_timeout, (&mut signals, &recorder), &cut);
    let clean = meanwhile(now_and_then, joining).await;
    admin.abort();
    now_and_then();
    recorder.flush_all_refusals(&refusals);
    recorder.record_stop();
    writer.close()?;
    tracing::info!(clean, "ended");
    Ok(clean)
}

/// The ways to etcd that identities have for themselves.
fn with_reachability(config: &Config) -> Vec<(upstream::Config, Arc<Reachability>)> {
    let with = |connector: &Connector| {
        let upstream =
            upstream::Config { connector: Some(connector.clone()), ..config.upstream.clone() };
        let reachability = Arc::new(Reachability::new(&upstream));
        (upstream, reachability)
    };
    config.identity_connectors.iter().map(with).collect()
}

/// Waits until every call has ended; a second signal cuts those that are open.
async fn join(
    workers: worker::Workers,
    drain_timeout: Duration,
    (signals, recorder): (&mut Signals, &Recorder),
    cut: &watch::Sender<bool>,
) -> bool {
    let mut joining = std::pin::pin!(workers.join(drain_timeout));
    tokio::select! {
        clean = &mut joining => return clean,
        signal = signals.next(recorder) => {
            tracing::warn!(signal, "ending at once: told a second time");
            cut.send_replace(true);
        }
    }
    joining.await
}

/// The signals that end the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { terminate, interrupt, hangup: signal(SignalKind::hangup())? })
    }

    /// The name of the next one that ends the process. SIGHUP has the audit log go on in a new file.
    async fn next(&mut self, recorder: &Recorder) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => {
                    tracing::info!("SIGHUP: the audit log goes on in a new file");
                    recorder.rotate();
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
