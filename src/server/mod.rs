//! Threads: one that accepts and looks after the process, and one per core that serves. A
//! connection lives and dies on its core, and so do its connections to etcd.

mod listen;
mod worker;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::admin::{self, Admin};
use crate::audit::fold::RefusalFold;
use crate::audit::{Event, Recorder};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::tls::Acceptor;
use crate::upstream::Pool;

/// How often counters that live elsewhere are copied and folded refusals are recorded.
const TICK: Duration = Duration::from_secs(1);

/// Why ringfence does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The audit log cannot be opened.
    #[error(transparent)]
    Audit(#[from] crate::audit::FileError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
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
    let acceptor =
        Acceptor::new(&config.certificate, &config.authorities, config.limits.handshake_timeout)?;
    let mut listeners = Vec::new();
    for address in &config.listen {
        listeners.push(bind(*address).await?);
    }
    let admin_listener = bind(config.admin_listen).await?;

    let (recorder, writer) = {
        let metrics = Arc::clone(&metrics);
        Recorder::start(&config.audit, move |took| metrics.observe_audit_sync(took))?
    };
    let (identities, rules) = config.policy.size();
    let version = env!("CARGO_PKG_VERSION");
    recorder.record_process(Event::ProcessStart { version, identities, rules });
    let refusals = Arc::new(Mutex::new(RefusalFold::default()));
    let (drain, draining) = watch::channel(false);
    let shared = worker::Shared {
        policy: Arc::new(config.policy),
        recorder: recorder.clone(),
        refusals: Arc::clone(&refusals),
        metrics: Arc::clone(&metrics),
        acceptor: Arc::new(acceptor),
        upstream: config.upstream.clone(),
        limits: config.limits.clone(),
        draining: draining.clone(),
    };
    let workers = worker::start(config.cores, &shared)?;
    let admin = Admin {
        metrics: Arc::clone(&metrics),
        recorder: recorder.clone(),
        pool: Pool::new(config.upstream, Arc::clone(&metrics)),
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
    until_told_to_end(|| tick(&recorder, &metrics, &refusals)).await?;
    tracing::info!("ending: no new connections, open calls may finish");
    accepting.abort();
    drain.send_replace(true);
    let clean = workers.join(config.limits.drain_timeout).await;
    admin.abort();
    tick(&recorder, &metrics, &refusals);
    recorder.record_process(Event::ProcessStop);
    writer.close()?;
    Ok(clean)
}

/// Waits for SIGTERM or SIGINT, and does what must be done now and then.
async fn until_told_to_end(now_and_then: impl Fn()) -> Result<(), ServeError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            () = tokio::time::sleep(TICK) => now_and_then(),
        }
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|error| ServeError::Listen { address, error })
}

fn tick(recorder: &Recorder, metrics: &Metrics, refusals: &Mutex<RefusalFold>) {
    metrics.audit_records.inner().store(recorder.written(), std::sync::atomic::Ordering::Relaxed);
    metrics.audit_refused.inner().store(recorder.refused(), std::sync::atomic::Ordering::Relaxed);
    recorder.flush_refusals(refusals);
}
