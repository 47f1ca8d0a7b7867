//! A stand-in for etcd that keeps what reached it, to show what is sent on. Decisions and data are
//! tested against a real etcd; this is for the bytes alone.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Response};
use tokio::net::TcpListener;

/// One request as it came out of ringfence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tapped {
    pub path: String,
    /// `name: value`, sorted.
    pub headers: Vec<String>,
    pub data: Vec<u8>,
}

/// How the tap ends its replies.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// One empty message, then this status, or none at all.
    Message(Option<&'static str>),
    /// No message, and no status either.
    Nothing,
}

pub struct Tap {
    pub endpoint: String,
    requests: Arc<Mutex<Vec<Tapped>>>,
}

impl Tap {
    pub async fn start() -> Self {
        Self::start_ending(End::Message(Some("0"))).await
    }

    pub async fn start_ending(end: End) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&kept), end));
            }
        });
        Self { endpoint, requests }
    }

    /// What came since the last time.
    pub fn take(&self) -> Vec<Tapped> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

async fn serve(stream: tokio::net::TcpStream, kept: Arc<Mutex<Vec<Tapped>>>, end: End) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let kept = Arc::clone(&kept);
        tokio::spawn(async move {
            let (head, mut body) = request.into_parts();
            let mut data = Vec::new();
            while let Some(Ok(chunk)) = body.data().await {
                body.flow_control().release_capacity(chunk.len()).unwrap();
                data.extend_from_slice(&chunk);
            }
            let text = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
                format!("{name}: {}", value.to_str().unwrap())
            };
            let mut headers: Vec<String> = head.headers.iter().map(text).collect();
            headers.sort();
            let path = head.uri.path_and_query().unwrap().to_string();
            kept.lock().unwrap().push(Tapped { path, headers, data });
            let mut response = Response::new(());
            response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            let End::Message(status) = end else {
                respond.send_response(response, true).unwrap();
                return;
            };
            let mut stream = respond.send_response(response, false).unwrap();
            stream.send_data(Bytes::from_static(&[0, 0, 0, 0, 0]), status.is_none()).unwrap();
            if let Some(status) = status {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", status.parse().unwrap());
                stream.send_trailers(trailers).unwrap();
            }
        });
    }
}
