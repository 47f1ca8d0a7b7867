//! A stand-in for etcd: mutual TLS, h2, canned answers to Range and Put, Unimplemented to the rest.
//! As cheap as it can be made, so that what is measured is the proxy before it. It stores nothing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::grpc::Answer;
use crate::{Outcome, grpc, tls, workers};

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

#[derive(clap::Args)]
pub struct Arguments {
    /// Address to listen on
    #[arg(long)]
    listen: String,
    /// Folder made by `ringfence-bench pki`
    #[arg(long)]
    pki: PathBuf,
    /// Single-thread runtimes to run
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// The canned answers of one worker; cloning `Bytes` copies no byte. A Range says which it wants.
struct Canned {
    ranges: RefCell<HashMap<Answer, Bytes>>,
    put: Bytes,
}

impl Canned {
    fn range(&self, answer: Answer) -> Bytes {
        self.ranges
            .borrow_mut()
            .entry(answer)
            .or_insert_with(|| grpc::range_response(answer))
            .clone()
    }
}

pub fn run(arguments: &Arguments) -> Outcome<()> {
    let acceptor = TlsAcceptor::from(tls::server(&arguments.pki)?);
    let make = || Canned { ranges: RefCell::default(), put: grpc::put_response() };
    workers::serve(&arguments.listen, arguments.threads, make, move |socket, canned| {
        serve_connection(acceptor.clone(), socket, canned)
    })
}

async fn serve_connection(
    acceptor: TlsAcceptor,
    socket: TcpStream,
    canned: Rc<Canned>,
) -> Outcome<()> {
    let handshake = async {
        let stream = acceptor.accept(socket).await.map_err(|error| format!("TLS: {error}"))?;
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        builder.handshake(stream).await.map_err(|error| format!("h2: {error}"))
    };
    let mut connection =
        timeout(HANDSHAKE_LIMIT, handshake).await.map_err(|_| "handshake took too long")??;
    while let Some(accepted) = connection.accept().await {
        // A client that goes away is no fault of the stand-in.
        let Ok((request, respond)) = accepted else {
            break;
        };
        let canned = Rc::clone(&canned);
        tokio::task::spawn_local(async move {
            // A reset stream concerns nobody but its client, who sees it.
            let _ = answer(request, respond, &canned).await;
        });
    }
    Ok(())
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    canned: &Canned,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let is_range = match head.uri.path() {
        grpc::RANGE_PATH => true,
        grpc::PUT_PATH => false,
        _ => return refuse(&mut respond),
    };
    let mut wanted = Answer::DEFAULT;
    let mut first = true;
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        // A Range is small and comes whole.
        if is_range && first {
            wanted = Answer::wanted(&chunk);
        }
        first = false;
    }
    let body_answer = if is_range { canned.range(wanted) } else { canned.put.clone() };
    let mut stream = respond.send_response(head_of_answer(), false)?;
    if stream.send_data(body_answer, false).is_err() {
        stream.send_reset(Reason::INTERNAL_ERROR);
        return Ok(());
    }
    stream.send_trailers(status("0"))
}

fn refuse(respond: &mut SendResponse<Bytes>) -> Result<(), h2::Error> {
    let mut head = head_of_answer();
    head.headers_mut().insert("grpc-status", HeaderValue::from_static("12"));
    respond.send_response(head, true).map(drop)
}

fn head_of_answer() -> Response<()> {
    let mut head = Response::new(());
    head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    head
}

fn status(code: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert("grpc-status", HeaderValue::from_static(code));
    trailers.insert("grpc-message", HeaderValue::from_static(""));
    trailers
}
