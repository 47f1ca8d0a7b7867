//! Clients that come new each time: a TCP connection, a handshake with both certificates, one Range, and the end. How
//! each fared is told apart by where it ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsConnector;

use crate::support::{PATIENCE, Pki, framed};

/// How one came out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fared {
    /// It has its answer.
    Served,
    /// It heard GOAWAY without an error before its request was taken, or Unavailable: every gRPC client comes again by
    /// itself, and so does this one.
    ToldToGo,
    /// Refused, reset, cut off, or left without an answer.
    Broken(String),
}

/// `/tenants/acme/x`, as tenant acme.
const RANGE: &[u8] = b"\x0a\x0f/tenants/acme/x";

fn broken(step: &str, error: &dyn std::fmt::Display) -> Fared {
    Fared::Broken(format!("{step}: {error}"))
}

pub async fn knock(config: &Arc<ClientConfig>, port: u16) -> Fared {
    match TcpStream::connect(("127.0.0.1", port)).await {
        Ok(stream) => go_on(config, stream).await,
        Err(error) => broken("connect", &error),
    }
}

/// The rest, for who is connected already.
pub async fn go_on(config: &Arc<ClientConfig>, stream: TcpStream) -> Fared {
    let knocking = async {
        stream.set_nodelay(true).unwrap();
        let host = ServerName::try_from("localhost").unwrap();
        let stream = match TlsConnector::from(Arc::clone(config)).connect(host, stream).await {
            Ok(stream) => stream,
            Err(error) => return broken("TLS", &error),
        };
        let (sender, connection) = match h2::client::handshake(stream).await {
            Ok(both) => both,
            Err(error) => return broken("HTTP/2", &error),
        };
        let driving = tokio::spawn(connection);
        let fared = match range(sender).await {
            Ok(Some(0)) => Fared::Served,
            Ok(Some(14)) => Fared::ToldToGo,
            Ok(status) => broken("status", &format!("{status:?}")),
            Err(error) if is_polite(&error) => Fared::ToldToGo,
            Err(error) => broken("Range", &error),
        };
        driving.abort();
        fared
    };
    let in_time = tokio::time::timeout(PATIENCE, knocking).await;
    in_time.unwrap_or_else(|_| broken("time", &"no answer"))
}

/// GOAWAY with NO_ERROR, or a stream that was not begun: nothing was done.
fn is_polite(error: &h2::Error) -> bool {
    let polite = [h2::Reason::NO_ERROR, h2::Reason::REFUSED_STREAM];
    error.is_remote() && error.reason().is_some_and(|reason| polite.contains(&reason))
}

async fn range(sender: h2::client::SendRequest<Bytes>) -> Result<Option<u16>, h2::Error> {
    let mut sender = sender.ready().await?;
    let request = Request::builder()
        .method(Method::POST)
        .uri("https://localhost/etcdserverpb.KV/Range")
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let (response, mut stream) = sender.send_request(request, false)?;
    stream.send_data(framed(RANGE), true)?;
    let (head, mut body) = response.await?.into_parts();
    while let Some(chunk) = body.data().await {
        body.flow_control().release_capacity(chunk?.len())?;
    }
    let trailers = body.trailers().await?.unwrap_or(head.headers);
    let status = trailers.get("grpc-status").and_then(|status| status.to_str().ok());
    Ok(status.and_then(|status| status.parse().ok()))
}

/// Many of them, so many each second, whatever becomes of them.
pub struct Crowd {
    stopping: Arc<AtomicBool>,
    knocking: JoinHandle<Counts>,
}

#[derive(Debug, Default)]
pub struct Counts {
    pub fared: BTreeMap<Fared, u64>,
    /// Who was told to go and came again, and how that fared.
    pub again: BTreeMap<Fared, u64>,
}

impl Crowd {
    pub fn come(pki: &Pki, port: u16, per_second: u32) -> Self {
        let config = pki.client_config(Some("acme"), &["h2"]);
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let knocking = tokio::spawn(async move {
            let mut turn = tokio::time::interval(Duration::from_secs(1) / per_second);
            let (mut under_way, mut counts) = (JoinSet::new(), Counts::default());
            while !stop.load(Ordering::Relaxed) {
                turn.tick().await;
                let config = Arc::clone(&config);
                under_way.spawn(async move {
                    let first = knock(&config, port).await;
                    let again = first == Fared::ToldToGo;
                    (first, if again { Some(knock(&config, port).await) } else { None })
                });
                while let Some(ended) = under_way.try_join_next() {
                    counts.take(ended.unwrap());
                }
            }
            while let Some(ended) = under_way.join_next().await {
                counts.take(ended.unwrap());
            }
            counts
        });
        Self { stopping, knocking }
    }

    pub async fn leave(self) -> Counts {
        self.stopping.store(true, Ordering::Relaxed);
        self.knocking.await.unwrap()
    }
}

impl Counts {
    fn take(&mut self, (first, again): (Fared, Option<Fared>)) {
        *self.fared.entry(first).or_default() += 1;
        if let Some(again) = again {
            *self.again.entry(again).or_default() += 1;
        }
    }

    pub fn served(&self) -> u64 {
        self.fared.get(&Fared::Served).copied().unwrap_or_default()
    }

    /// Nobody was refused or reset; who was told to go was served the next time, or told once more.
    pub fn all_went_well(&self) {
        let is_fine = |fared: &Fared| !matches!(fared, Fared::Broken(_));
        assert!(self.fared.keys().chain(self.again.keys()).all(is_fine), "{self:?}");
    }
}
