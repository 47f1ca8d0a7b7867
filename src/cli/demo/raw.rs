//! A client that does what etcdctl cannot: it forges headers, and it tells why a handshake failed.
//!
//! It frames messages itself, so that a fault of ringfence's own framing cannot hide here.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use http::Request;
use prost::Message as _;
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::stage::Stage;
use crate::etcd::pb::etcdserverpb::{RangeRequest, RangeResponse};
use crate::tls::{Connector, material};

const LIMIT: Duration = Duration::from_secs(10);

/// What came back.
pub(super) enum Reply {
    /// The values of the keys.
    Values(Vec<String>),
    /// A status other than OK.
    Status(String),
}

/// The files of one client.
pub(super) struct RawClient {
    address: SocketAddr,
    authority: PathBuf,
    pair: Option<(PathBuf, PathBuf)>,
}

impl RawClient {
    pub(super) fn new(stage: &Stage, certificate: Option<&str>) -> Self {
        let file = |name, ending| stage.pki(&format!("{name}.{ending}"));
        Self {
            address: stage.addresses.ringfence,
            authority: stage.pki("kubernetes-ca.crt"),
            pair: certificate.map(|name| (file(name, "crt"), file(name, "key"))),
        }
    }

    /// Reads one key, with headers that claim to be root.
    pub(super) async fn forged_range(&self, key: &str) -> Result<Reply, String> {
        match timeout(LIMIT, self.range(key)).await {
            Ok(reply) => reply.map_err(|error| error.to_string()),
            Err(_) => Err("no reply in time".to_owned()),
        }
    }

    /// The alert that ends the handshake, or why there is none.
    pub(super) async fn refusal(&self) -> Result<String, String> {
        let ended = timeout(LIMIT, async {
            // In TLS 1.3 the server judges the client after the client thinks that all is well.
            self.connect().await?.read_u8().await
        });
        let error = match ended.await {
            Err(_) => return Err("no answer in time".to_owned()),
            Ok(Ok(_)) => return Err("the handshake succeeded".to_owned()),
            Ok(Err(error)) => error,
        };
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        match inner {
            Some(rustls::Error::AlertReceived(alert)) => Ok(format!("{alert:?}")),
            _ => Err(error.to_string()),
        }
    }

    async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let pair = self.pair.as_ref().map(|(chain, key)| material::key_pair(chain, key));
        let pair = pair.transpose().map_err(std::io::Error::other)?;
        let roots = material::roots(&self.authority).map_err(std::io::Error::other)?;
        let connector = Connector::new(roots, pair.as_ref()).map_err(std::io::Error::other)?;
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::IpAddress(self.address.ip().into());
        connector.connect(name, stream).await
    }

    async fn range(&self, key: &str) -> Result<Reply, Box<dyn std::error::Error>> {
        let (mut sender, connection) = h2::client::handshake(self.connect().await?).await?;
        let driver = tokio::spawn(connection);
        let request = Request::post(format!("https://{}/etcdserverpb.KV/Range", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("token", "root.1")
            .header("authorization", "root.1")
            .body(())?;
        let message = RangeRequest { key: key.as_bytes().to_vec().into(), ..Default::default() };
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.encoded_len())?);
        message.encode(&mut framed)?;
        let (response, mut body) = sender.send_request(request, false)?;
        body.send_data(framed.freeze(), true)?;
        let (head, mut body) = response.await?.into_parts();
        let mut framed = Vec::new();
        while let Some(chunk) = body.data().await.transpose()? {
            // The windows are those of a new connection and hold the one reply, whose flag and
            // length come before the message.
            framed.extend_from_slice(&chunk);
        }
        let trailers = body.trailers().await?.unwrap_or(head.headers);
        driver.abort();
        let text = |name| trailers.get(name).and_then(|value| value.to_str().ok());
        if text("grpc-status") != Some("0") {
            return Ok(Reply::Status(text("grpc-message").unwrap_or_default().to_owned()));
        }
        let response = RangeResponse::decode(framed.get(5..).unwrap_or_default())?;
        let values = response.kvs.iter();
        let values = values.map(|pair| String::from_utf8_lossy(&pair.value).into_owned());
        Ok(Reply::Values(values.collect()))
    }
}
