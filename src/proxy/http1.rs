//! HTTP/1.1 on the client port: one request after the other, plain HTTP only, no upgrades.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future as _;
use std::pin::pin;
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::connection::Client;
use super::ending::Ending;
use super::judge::{Judgements, Member};
use super::page::{self, Cut, HttpRequest, PageBody};
use crate::audit::CallId;

/// What hyper may keep of requests to come, and the most of one's head.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long after its deadline an answer may still be on its way out.
const GRACE: Duration = Duration::from_secs(1);

/// Serves the connection until it ends; how many requests there were. Between two of them it may be
/// idle for as long as a handshake may take.
pub(super) async fn serve(member: &Member, stream: TlsStream<TcpStream>) -> (u64, Ending) {
    let first = member.client();
    let mut judgements = Judgements::after(&first);
    if let Some(ending) = first.ending {
        return (0, ending);
    }
    let limits = &first.core.limits;
    let (call_timeout, header_timeout) = (limits.call_timeout, limits.handshake_timeout);
    // A connection that stays must not keep the generation that it came under.
    drop(first);
    let calls = Cell::new(0_u64);
    let cut = Cut::new("client_gone");
    // hyper asks for a body only as the client takes it, so a client that takes nothing would
    // outlive the deadline of its call.
    let overdue = RefCell::new(Box::pin(tokio::time::sleep(call_timeout)));
    let service = service_fn(|request: Request<Incoming>| {
        calls.set(calls.get() + 1);
        let client = member.client();
        let call = CallId::new(client.connection, calls.get());
        let started = Instant::now();
        overdue.borrow_mut().as_mut().reset(started + call_timeout + GRACE);
        let cut = &cut;
        async move { Ok::<_, Infallible>(answer(&client, call, request, started, cut).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    // Dropped before `serving`, which holds the page that is cut.
    let _aborted = Aborted(&cut);
    loop {
        tokio::select! {
            biased;
            served = serving.as_mut() => {
                if let Err(error) = served {
                    tracing::debug!(%error, "an HTTP/1.1 connection ended");
                }
                cut.say("client_gone");
                return (calls.get(), Ending::Http1);
            }
            () = std::future::poll_fn(|context| overdue.borrow_mut().as_mut().poll(context)) => {
                cut.say("timeout");
                return (calls.get(), Ending::Http1);
            }
            client = judgements.next() => match client.ending {
                Some(ending) if ending.ends_a_right() => {
                    cut.say(ending.name());
                    return (calls.get(), ending);
                }
                Some(_) => serving.as_mut().graceful_shutdown(),
                None => {}
            }
        }
    }
}

async fn answer(
    client: &Client,
    call: CallId,
    request: Request<Incoming>,
    started: Instant,
    cut: &Cut,
) -> Response<PageBody> {
    let has_body = !request.body().is_end_stream();
    let (head, _unread) = request.into_parts();
    let request = HttpRequest { call, head: &head, has_body, started };
    let mut response = page::answer(client, request, cut).await;
    // Behind a refused request nothing is looked for: who knows where it ends.
    if response.body().is_ours() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Says of a page that is cut with its core, at the end of the drain time, that we did it.
struct Aborted<'a>(&'a Cut);

impl Drop for Aborted<'_> {
    fn drop(&mut self) {
        self.0.say("aborted");
    }
}
