//! A client that can say anything: any path, any header, any bytes.

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request};
use prost::Message;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{PATIENCE, Pki};

#[derive(Clone)]
pub struct RawClient {
    sender: SendRequest<Bytes>,
}

/// What came back.
#[derive(Debug, Default)]
pub struct Reply {
    pub http_status: u16,
    pub headers: HeaderMap,
    /// The stream was reset.
    pub broken: bool,
    pub grpc_status: Option<u16>,
    pub grpc_message: String,
    /// The DATA as it came, frames and all.
    pub data: Vec<u8>,
}

impl Reply {
    /// The one message of a good answer.
    pub fn message<M: Message + Default>(&self) -> M {
        assert_eq!(self.grpc_status, Some(0), "{self:?}");
        M::decode(&self.data[5..]).unwrap()
    }
}

/// A message with the prefix that gRPC puts before it.
pub fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], message].concat().into()
}

impl RawClient {
    pub async fn connect(pki: &Pki, name: &str, port: u16) -> Self {
        let builder = h2::client::Builder::new();
        Self::connect_with(pki, name, port, builder).await
    }

    pub async fn connect_with(
        pki: &Pki,
        name: &str,
        port: u16,
        builder: h2::client::Builder,
    ) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let connector = TlsConnector::from(pki.client_config(Some(name), &["h2"]));
        let host = ServerName::try_from("localhost").unwrap();
        let stream = connector.connect(host, stream).await.unwrap();
        let (sender, connection) = builder.handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Self { sender }
    }

    /// To an etcd without TLS, past ringfence.
    pub async fn connect_plain(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Self { sender }
    }

    /// A unary call as any client makes it.
    pub async fn unary(&self, path: &str, message: &impl Message) -> Reply {
        self.call(path, &[], framed(&message.encode_to_vec())).await
    }

    /// The same; `None` when ringfence is gone.
    pub async fn try_unary(&self, path: &str, message: &impl Message) -> Option<Reply> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(uri(path))
            .header("content-type", "application/grpc");
        let data = framed(&message.encode_to_vec());
        let exchange = self.try_exchange(request.body(()).unwrap(), data);
        tokio::time::timeout(PATIENCE, exchange).await.expect("an answer in time")
    }

    /// The same with a message of any bytes.
    pub async fn unary_bytes(&self, path: &str, message: &[u8]) -> Reply {
        self.call(path, &[], framed(message)).await
    }

    /// Any path, more headers, any DATA. `content-type` is gRPC's unless it is among the headers.
    pub async fn call(&self, path: &str, headers: &[(&str, &str)], data: Bytes) -> Reply {
        let mut request = Request::builder().method(Method::POST).uri(uri(path));
        let own = headers.iter().any(|(name, _)| *name == "content-type");
        if !own {
            request = request.header("content-type", "application/grpc");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(()).unwrap(), data).await
    }

    /// Plain HTTP, as curl speaks it.
    pub async fn get(&self, path: &str) -> Reply {
        self.http(Method::GET, path, &[], Bytes::new()).await
    }

    /// Plain HTTP with any method, headers and DATA.
    pub async fn http(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        data: Bytes,
    ) -> Reply {
        let mut request = Request::builder().method(method).uri(uri(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(()).unwrap(), data).await
    }

    /// Asks for a page and does not read it; what is returned holds the stream open.
    pub async fn get_and_stop_reading(&self, path: &str) -> http::Response<h2::RecvStream> {
        let request = Request::builder().uri(uri(path)).body(()).unwrap();
        let mut sender = self.sender.clone().ready().await.unwrap();
        sender.send_request(request, true).unwrap().0.await.unwrap()
    }

    /// Any request, any DATA.
    pub async fn send(&self, request: Request<()>, data: Bytes) -> Reply {
        let asked = format!("{} {} with {} bytes", request.method(), request.uri(), data.len());
        let exchange = self.exchange(request, data);
        let answered = tokio::time::timeout(PATIENCE, exchange).await;
        answered.unwrap_or_else(|_| panic!("no answer within {PATIENCE:?}: {asked}"))
    }

    async fn exchange(&self, request: Request<()>, data: Bytes) -> Reply {
        self.try_exchange(request, data).await.expect("a connection")
    }

    async fn try_exchange(&self, request: Request<()>, data: Bytes) -> Option<Reply> {
        let mut sender = self.sender.clone().ready().await.ok()?;
        let (response, mut stream) = sender.send_request(request, data.is_empty()).ok()?;
        if !data.is_empty() {
            // A refusal may come before all of it was taken.
            drop(stream.send_data(data, true));
        }
        let (head, mut body) = match response.await {
            Ok(response) => response.into_parts(),
            Err(_) => return Some(Reply::default()),
        };
        let mut reply = Reply::default();
        reply.read_status(&head.headers);
        reply.http_status = head.status.as_u16();
        reply.headers = head.headers;
        while let Some(chunk) = body.data().await {
            let Ok(chunk) = chunk else {
                reply.broken = true;
                break;
            };
            body.flow_control().release_capacity(chunk.len()).unwrap();
            reply.data.extend_from_slice(&chunk);
        }
        if let Ok(Some(trailers)) = body.trailers().await {
            reply.read_status(&trailers);
        }
        Some(reply)
    }

    /// Sends one message, which may be the last, and takes what comes up to the first whole message
    /// or the end. Then the stream is reset.
    pub async fn first_message(&self, path: &str, message: &[u8], is_last: bool) -> Reply {
        self.first_message_with(path, &[], message, is_last).await
    }

    /// The same, with more headers.
    pub async fn first_message_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        message: &[u8],
        is_last: bool,
    ) -> Reply {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(uri(path))
            .header("content-type", "application/grpc");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        let exchange = async {
            let mut sender = self.sender.clone().ready().await.unwrap();
            let (response, mut stream) = sender.send_request(request, false).unwrap();
            stream.send_data(framed(message), is_last).unwrap();
            let (head, mut body) = response.await.unwrap().into_parts();
            let mut reply = Reply::default();
            reply.read_status(&head.headers);
            while !reply.has_whole_message() {
                let Some(chunk) = body.data().await.transpose().unwrap() else {
                    if let Some(trailers) = body.trailers().await.unwrap() {
                        reply.read_status(&trailers);
                    }
                    break;
                };
                body.flow_control().release_capacity(chunk.len()).unwrap();
                reply.data.extend_from_slice(&chunk);
            }
            stream.send_reset(h2::Reason::CANCEL);
            reply
        };
        tokio::time::timeout(PATIENCE, exchange).await.expect("an answer in time")
    }

    /// Opens a stream of messages, both ways or from the server.
    pub async fn stream(&self, path: &str) -> super::RawStream {
        let request = Request::builder()
            .method(Method::POST)
            .uri(uri(path))
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let mut sender = self.sender.clone().ready().await.unwrap();
        let (response, stream) = sender.send_request(request, false).unwrap();
        super::RawStream::new(stream, response)
    }

    /// Sends a request and never reads what comes back.
    pub async fn send_and_stop_reading(
        &self,
        path: &str,
        message: &impl Message,
    ) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
        let request = Request::builder()
            .method(Method::POST)
            .uri(uri(path))
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let mut sender = self.sender.clone().ready().await.unwrap();
        let (response, mut stream) = sender.send_request(request, false).unwrap();
        stream.send_data(framed(&message.encode_to_vec()), true).unwrap();
        (response, stream)
    }
}

fn uri(path: &str) -> http::Uri {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    http::Uri::builder()
        .scheme("https")
        .authority("localhost")
        .path_and_query(path)
        .build()
        .unwrap()
}

impl Reply {
    fn has_whole_message(&self) -> bool {
        self.data.first_chunk::<5>().is_some_and(|[_, length @ ..]| {
            self.data.len() - 5 >= u32::from_be_bytes(*length) as usize
        })
    }

    pub(super) fn read_status(&mut self, headers: &HeaderMap) {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        if let Some(status) = text("grpc-status") {
            self.grpc_status = Some(status.parse().unwrap());
        }
        if let Some(message) = text("grpc-message") {
            self.grpc_message = message;
        }
    }
}
