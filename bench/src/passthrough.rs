//! The floor: h2 in, h2 out, mutual TLS on both hops, nothing read, nothing decided, nothing recorded.
//! Whatever another proxy costs above this is the price of what it does. Each worker keeps one upstream connection.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::{Outcome, tls, workers};

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 256 << 20;
const MAX_STREAMS_PER_CONNECTION: u32 = 250;

#[derive(clap::Args)]
pub struct Arguments {
    /// Address to listen on
    #[arg(long)]
    listen: String,
    /// Address of the server behind
    #[arg(long)]
    upstream: String,
    /// Folder made by `ringfence-bench pki`
    #[arg(long)]
    pki: PathBuf,
    /// Single-thread runtimes to run
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

pub fn run(arguments: &Arguments) -> Outcome<()> {
    let acceptor = TlsAcceptor::from(tls::server(&arguments.pki)?);
    let config = tls::client(&arguments.pki, Some("proxy"))?;
    let address = arguments.upstream.clone();
    let make = move || Upstream {
        address: address.clone(),
        config: Arc::clone(&config),
        pooled: RefCell::new(None),
    };
    workers::serve(&arguments.listen, arguments.threads, make, move |socket, upstream| {
        serve_connection(acceptor.clone(), socket, upstream)
    })
}

/// The upstream connection of one worker, made when first needed and again when it has ended.
struct Upstream {
    address: String,
    config: Arc<ClientConfig>,
    pooled: RefCell<Option<SendRequest<Bytes>>>,
}

impl Upstream {
    async fn ready(&self) -> Outcome<SendRequest<Bytes>> {
        let pooled = self.pooled.borrow().clone();
        if let Some(sender) = pooled
            && let Ok(sender) = sender.ready().await
        {
            return Ok(sender);
        }
        let sender = timeout(HANDSHAKE_LIMIT, self.connect())
            .await
            .map_err(|_| "upstream handshake took too long")??;
        self.pooled.replace(Some(sender.clone()));
        sender.ready().await.map_err(|error| format!("upstream: {error}"))
    }

    async fn connect(&self) -> Outcome<SendRequest<Bytes>> {
        let stream = tls::connect(&self.address, Arc::clone(&self.config)).await?;
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let (sender, connection) =
            builder.handshake(stream).await.map_err(|error| format!("upstream h2: {error}"))?;
        tokio::task::spawn_local(async move {
            // Its end shows in the next `ready`, which connects anew.
            let _ = connection.await;
        });
        Ok(sender)
    }
}

async fn serve_connection(
    acceptor: TlsAcceptor,
    socket: TcpStream,
    upstream: Rc<Upstream>,
) -> Outcome<()> {
    let handshake = async {
        let stream = acceptor.accept(socket).await.map_err(|error| format!("TLS: {error}"))?;
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION);
        builder.handshake(stream).await.map_err(|error| format!("h2: {error}"))
    };
    let mut connection =
        timeout(HANDSHAKE_LIMIT, handshake).await.map_err(|_| "handshake took too long")??;
    while let Some(accepted) = connection.accept().await {
        // A client that goes away is its own affair.
        let Ok((request, mut respond)) = accepted else {
            break;
        };
        let upstream = Rc::clone(&upstream);
        tokio::task::spawn_local(async move {
            if let Err(message) = forward(request, &mut respond, &upstream).await {
                eprintln!("ringfence-bench: stream: {message}");
                respond.send_reset(Reason::INTERNAL_ERROR);
            }
        });
    }
    Ok(())
}

async fn forward(
    request: Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
    upstream: &Upstream,
) -> Outcome<()> {
    let mut sender = upstream.ready().await?;
    let (head, body) = request.into_parts();
    let ended = body.is_end_stream();
    let request = Request::from_parts(head, ());
    let (response, request_body) =
        sender.send_request(request, ended).map_err(|error| format!("request: {error}"))?;
    let downward = async {
        let (head, body) =
            response.await.map_err(|error| format!("response: {error}"))?.into_parts();
        let ended = body.is_end_stream();
        let response = http::Response::from_parts(head, ());
        let sink =
            respond.send_response(response, ended).map_err(|error| format!("response: {error}"))?;
        if ended { Ok(()) } else { copy(body, sink).await }
    };
    if ended {
        return downward.await;
    }
    // Both ways at once, so that a streaming call would pass too.
    let (up, down) = tokio::join!(copy(body, request_body), downward);
    up.and(down)
}

/// Takes from the source no more than the sink has room for: the window is given back only after the bytes were sent.
async fn copy(mut source: RecvStream, mut sink: SendStream<Bytes>) -> Outcome<()> {
    while let Some(chunk) = source.data().await {
        let mut chunk = chunk.map_err(|error| format!("read: {error}"))?;
        let length = chunk.len();
        let ended = source.is_end_stream();
        if chunk.is_empty() && ended {
            return sink.send_data(chunk, true).map_err(|error| format!("write: {error}"));
        }
        while !chunk.is_empty() {
            let part = chunk.split_to(room(&mut sink, chunk.len()).await?);
            let last = ended && chunk.is_empty();
            sink.send_data(part, last).map_err(|error| format!("write: {error}"))?;
        }
        source.flow_control().release_capacity(length).map_err(|error| format!("read: {error}"))?;
        if ended {
            return Ok(());
        }
    }
    let trailers = source.trailers().await.map_err(|error| format!("trailers: {error}"))?;
    sink.send_trailers(trailers.unwrap_or_else(HeaderMap::new))
        .map_err(|error| format!("trailers: {error}"))
}

async fn room(sink: &mut SendStream<Bytes>, wanted: usize) -> Outcome<usize> {
    sink.reserve_capacity(wanted);
    while sink.capacity() == 0 {
        match std::future::poll_fn(|context| sink.poll_capacity(context)).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(format!("capacity: {error}")),
            None => return Err("capacity: the stream is closed".to_owned()),
        }
    }
    Ok(sink.capacity().min(wanted))
}
