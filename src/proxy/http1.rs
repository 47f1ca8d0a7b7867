//! HTTP/1.1 on the client port. Nothing is served there yet: every request is recorded and refused.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::connection::Client;
use super::{Core, Refusal, authorize};
use crate::audit::CallId;

/// Answers every request of the connection with 404 after recording it; how many there were.
pub(super) async fn refuse_all(
    core: &Rc<Core>,
    client: Rc<Client>,
    stream: TlsStream<TcpStream>,
) -> u64 {
    let calls = Rc::new(Cell::new(0_u64));
    let service = service_fn(|request: Request<Incoming>| {
        calls.set(calls.get() + 1);
        let call = CallId::new(client.connection, calls.get());
        let (core, client) = (Rc::clone(core), Rc::clone(&client));
        async move {
            let path = request.uri().path();
            let recorded =
                authorize::record_refusal(&core, &client, call, path, &Refusal::UnknownPath).await;
            let (status, text) = match recorded {
                Ok(()) => (
                    StatusCode::NOT_FOUND,
                    "ringfence serves gRPC here (HTTP/2) and nothing else\n",
                ),
                Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the audit log takes no records\n"),
            };
            let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
            *response.status_mut() = status;
            let plain = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert("content-type", plain);
            response.headers_mut().insert("connection", HeaderValue::from_static("close"));
            Ok::<_, Infallible>(response)
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(core.limits.handshake_timeout)
        .max_buf_size(64 * 1024)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let bounded = tokio::time::timeout(core.limits.call_timeout, serving).await;
    if let Ok(Err(error)) = bounded {
        tracing::debug!(%error, "an HTTP/1.1 connection ended");
    }
    calls.get()
}
