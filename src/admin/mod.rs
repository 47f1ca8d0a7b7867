//! The admin listener: metrics, liveness, readiness. Plain HTTP/1.1, by default on loopback only.
//!
//! It never shows keys, values, rules or principals.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::audit::Recorder;
use crate::metrics::Metrics;
use crate::upstream::Pool;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 32;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// The content type of the OpenMetrics text format 1.0.0.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the admin listener shows.
pub struct Admin {
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// The audit log's state.
    pub recorder: Recorder,
    /// A connection of its own to etcd, for readiness.
    pub pool: RefCell<Rc<Pool>>,
    /// True once the end was asked for.
    pub draining: watch::Receiver<bool>,
    /// What else an operator wants to know, a line each; nothing of it makes ringfence less ready.
    pub notes: Box<dyn Fn() -> Vec<String>>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Admin").finish_non_exhaustive()
    }
}

/// Serves until its task is dropped. Runs within a `LocalSet`.
pub async fn serve(listener: TcpListener, admin: Rc<Admin>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the admin listener cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let admin = Rc::clone(&admin);
        tokio::task::spawn_local(async move {
            let service = service_fn(|request| {
                let admin = Rc::clone(&admin);
                async move { Ok::<_, Infallible>(admin.answer(&request).await) }
            });
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_TIMEOUT, serving).await {
                tracing::debug!(%error, "an admin connection ended");
            }
            drop(slot);
        });
    }
}

impl Admin {
    /// The way to etcd in force.
    #[must_use]
    pub fn pool(&self) -> Rc<Pool> {
        Rc::clone(&self.pool.borrow())
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n".to_owned());
        }
        match request.uri().path() {
            "/metrics" => {
                let mut response = plain(StatusCode::OK, self.metrics.render());
                let content_type = HeaderValue::from_static(OPEN_METRICS);
                response.headers_mut().insert("content-type", content_type);
                response
            }
            "/livez" => plain(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => self.readiness(request.uri().query() == Some("verbose")).await,
            _ => {
                let served = "served here: /metrics, /livez, /readyz, /readyz?verbose\n";
                plain(StatusCode::NOT_FOUND, served.to_owned())
            }
        }
    }

    async fn readiness(&self, verbose: bool) -> Response<Full<Bytes>> {
        let checks = [
            ("audit", self.recorder.failure()),
            ("upstream", fault(!self.pool().is_reachable().await, "etcd cannot be reached")),
            ("draining", fault(*self.draining.borrow(), "the process is ending")),
        ];
        let ready = checks.iter().all(|(_, fault)| fault.is_none());
        let mut text = String::new();
        for (name, fault) in checks {
            match fault {
                None if verbose => text.push_str(&format!("[+] {name}: ok\n")),
                None => {}
                Some(reason) => text.push_str(&format!("[-] {name}: {reason}\n")),
            }
        }
        for note in verbose.then(|| (self.notes)()).into_iter().flatten() {
            text.push_str(&format!("{note}\n"));
        }
        text.push_str(if ready { "ok\n" } else { "not ready\n" });
        plain(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
    }
}

fn fault(holds: bool, reason: &str) -> Option<String> {
    holds.then(|| reason.to_owned())
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert("content-type", content_type);
    response
}
