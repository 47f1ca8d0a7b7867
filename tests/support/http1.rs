//! HTTP/1.1 byte by byte: a client that can say anything, and a stand-in for etcd's HTTP side that
//! keeps what reached it and answers what it is told to.

use std::sync::{Arc, Mutex};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{PATIENCE, Pki};

/// A connection that negotiated HTTP/1.1.
pub struct Http1 {
    stream: TlsStream<TcpStream>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// `name: value`, in lower case but for the value, without `date`.
    pub headers: Vec<String>,
    pub body: Vec<u8>,
}

impl Http1 {
    pub async fn connect(pki: &Pki, name: &str, port: u16) -> Self {
        let connector = TlsConnector::from(pki.client_config(Some(name), &["http/1.1"]));
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let host = ServerName::try_from("localhost").unwrap();
        Self { stream: connector.connect(host, stream).await.unwrap() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    pub async fn get(&mut self, target: &str) -> Answer {
        self.send(format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
        self.answer().await
    }

    /// The next answer.
    pub async fn answer(&mut self) -> Answer {
        let reading = read_answer(&mut self.stream);
        tokio::time::timeout(PATIENCE, reading).await.expect("an answer in time")
    }

    /// Reads until these bytes came.
    pub async fn read_until(&mut self, end: &[u8]) {
        let mut read = Vec::new();
        let reading = async {
            while !read.ends_with(end) {
                read.push(self.stream.read_u8().await.unwrap());
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("the bytes in time");
    }

    /// Everything until the connection ends.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let reading = self.stream.read_to_end(&mut rest);
        // One that is cut ends with an error instead.
        drop(tokio::time::timeout(PATIENCE, reading).await.expect("the end in time"));
        rest
    }
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> Answer {
    let head = read_head(stream).await;
    let (first, headers) = head.split_once("\r\n").expect("a head");
    let status = first.split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers: Vec<String> = headers.trim_end().lines().map(str::to_owned).collect();
    headers.retain(|header| !header.starts_with("date: "));
    headers.sort();
    let length = headers.iter().find_map(|header| header.strip_prefix("content-length: "));
    let mut body = Vec::new();
    if let Some(length) = length {
        body.resize(length.parse().unwrap(), 0);
        stream.read_exact(&mut body).await.unwrap();
    } else if headers.iter().any(|header| header == "transfer-encoding: chunked") {
        loop {
            let mut size = Vec::new();
            while !size.ends_with(b"\r\n") {
                size.push(stream.read_u8().await.unwrap());
            }
            let size = std::str::from_utf8(&size).unwrap().trim();
            let size = usize::from_str_radix(size, 16).unwrap();
            let start = body.len();
            body.resize(start + size + 2, 0);
            stream.read_exact(&mut body[start..]).await.unwrap();
            body.truncate(start + size);
            if size == 0 {
                break;
            }
        }
    }
    Answer { status, headers, body }
}

/// What a stand-in does after its answer.
#[derive(Clone, Copy)]
pub enum Then {
    /// Closes the connection.
    End,
    /// Says no more, until the other side goes.
    Hang,
    /// Sends this again and again.
    Repeat(&'static [u8]),
}

pub struct HttpTap {
    pub endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl HttpTap {
    /// Answers every request with these bytes.
    pub async fn start(answer: impl Into<Vec<u8>>, then: Then) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        let answer: Arc<[u8]> = answer.into().into();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (kept, answer) = (Arc::clone(&kept), Arc::clone(&answer));
                tokio::spawn(async move {
                    let head = read_head(&mut stream).await;
                    kept.lock().unwrap().push(head);
                    let mut sent = stream.write_all(&answer).await;
                    match then {
                        Then::End => {}
                        Then::Hang => drop(stream.read_u8().await),
                        Then::Repeat(bytes) => {
                            while sent.is_ok() {
                                sent = stream.write_all(bytes).await;
                            }
                        }
                    }
                });
            }
        });
        Self { endpoint, requests }
    }

    /// What came since the last time.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

/// A head of an answer with these headers.
pub fn response_head(headers: &[&str]) -> String {
    format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", headers.join("\r\n"))
}
