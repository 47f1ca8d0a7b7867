//! A relay between ringfence and a real etcd that keeps what went through: to show what reached etcd
//! while etcd itself answers.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Request;
use tokio::net::{TcpListener, TcpStream};

use crate::support::framed;

/// One request as etcd got it: path, headers, and the DATA so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wired {
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub data: Vec<u8>,
}

impl Wired {
    pub fn is(&self, path: &str, message: &[u8]) -> bool {
        self.path == path && self.data == framed(message)
    }
}

pub struct Wiretap {
    pub endpoint: String,
    requests: Requests,
}

/// Each goes on being filled while its stream lives, whether it was taken or not.
type Requests = Arc<Mutex<Vec<Arc<Mutex<Wired>>>>>;

impl Wiretap {
    /// Before an etcd in plain text.
    pub async fn start(etcd_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, etcd_port, Arc::clone(&kept)));
            }
        });
        Self { endpoint, requests }
    }

    /// What went through since the last time.
    pub fn take(&self) -> Vec<Wired> {
        let requests = std::mem::take(&mut *self.requests.lock().unwrap());
        requests.iter().map(|wired| wired.lock().unwrap().clone()).collect()
    }
}

async fn serve(stream: TcpStream, etcd_port: u16, kept: Requests) {
    let etcd = TcpStream::connect(("127.0.0.1", etcd_port)).await.unwrap();
    let (sender, connection) = h2::client::handshake(etcd).await.unwrap();
    tokio::spawn(connection);
    let Ok(mut server) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, respond))) = server.accept().await {
        tokio::spawn(relay(request, respond, sender.clone(), Arc::clone(&kept)));
    }
}

async fn relay(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    sender: h2::client::SendRequest<Bytes>,
    kept: Requests,
) {
    let (head, mut body) = request.into_parts();
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers =
        head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let path = head.uri.path_and_query().unwrap().to_string();
    let wired = Arc::new(Mutex::new(Wired { path, headers, data: Vec::new() }));
    kept.lock().unwrap().push(Arc::clone(&wired));
    let mut onward = Request::new(());
    *onward.method_mut() = head.method;
    *onward.uri_mut() = head.uri;
    *onward.headers_mut() = head.headers;
    let Ok(mut sender) = sender.ready().await else { return };
    let Ok((response, mut to_etcd)) = sender.send_request(onward, false) else { return };
    let sending = async move {
        while let Some(Ok(chunk)) = body.data().await {
            drop(body.flow_control().release_capacity(chunk.len()));
            wired.lock().unwrap().data.extend_from_slice(&chunk);
            drop(to_etcd.send_data(chunk, false));
        }
        drop(to_etcd.send_data(Bytes::new(), true));
    };
    let answering = async move {
        let Ok(response) = response.await else { return };
        let (head, mut body) = response.into_parts();
        let mut answer = http::Response::new(());
        *answer.status_mut() = head.status;
        *answer.headers_mut() = head.headers;
        let ends = body.is_end_stream();
        let Ok(mut to_client) = respond.send_response(answer, ends) else { return };
        if ends {
            return;
        }
        while let Some(Ok(chunk)) = body.data().await {
            drop(body.flow_control().release_capacity(chunk.len()));
            drop(to_client.send_data(chunk, false));
        }
        if let Ok(Some(trailers)) = body.trailers().await {
            drop(to_client.send_trailers(trailers));
        }
    };
    tokio::join!(sending, answering);
}
