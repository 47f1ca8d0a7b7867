//! HTTP/2 frames as bytes over TLS: what no honest client sends.

use std::io::Error;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{PATIENCE, Pki, framed};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 0x1;
pub const END_STREAM: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;

/// GOAWAY codes.
pub const NO_ERROR: u32 = 0;
pub const ENHANCE_YOUR_CALM: u32 = 11;

pub struct WireClient {
    stream: TlsStream<TcpStream>,
    /// What was read and is no whole frame yet.
    unread: Vec<u8>,
}

/// A frame from the server.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub payload: Vec<u8>,
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head, &stream.to_be_bytes()[..], payload].concat()
}

/// The header block of a gRPC request, without compression.
pub fn header_block(path: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let (path, host, grpc) = (text(path), text("localhost"), text("application/grpc"));
    // POST, https, and by their places in the static table: path, authority, content-type.
    [&b"\x83\x87\x04"[..], &path, b"\x01", &host, b"\x0f\x10", &grpc].concat()
}

/// A whole unary request on that stream.
pub fn request(stream: u32, path: &str, message: &[u8]) -> Vec<u8> {
    let head = frame(HEADERS, END_HEADERS, stream, &header_block(path));
    [head, frame(DATA, END_STREAM, stream, &framed(message))].concat()
}

impl WireClient {
    /// TLS and nothing more.
    pub async fn connect(pki: &Pki, name: &str, alpn: &str, port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let connector = TlsConnector::from(pki.client_config(Some(name), &[alpn]));
        let host = ServerName::try_from("localhost").unwrap();
        let stream = connector.connect(host, stream).await.unwrap();
        Self { stream, unread: Vec::new() }
    }

    /// With HTTP/2 greeted: preface, SETTINGS and the acknowledgement of the other side's.
    pub async fn greeted(pki: &Pki, name: &str, port: u16) -> Self {
        let mut client = Self::connect(pki, name, "h2", port).await;
        let settings = [frame(SETTINGS, 0, 0, b""), frame(SETTINGS, ACK, 0, b"")].concat();
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        client.send(&settings).await.unwrap();
        client
    }

    /// Sends; an error says that the other side has closed.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let sending = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        tokio::time::timeout(PATIENCE, sending).await.expect("the other side reads or closes")
    }

    /// The same, but for as long as the other side does not take it.
    pub async fn send_unless_stuck(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let patience = std::time::Duration::from_millis(200);
        let sending = tokio::time::timeout(patience, self.stream.write_all(bytes));
        sending.await.map_or(Ok(()), |sent| sent)
    }

    /// The next frame; `None` when the connection has ended.
    pub async fn read(&mut self) -> Option<Frame> {
        let reading = self.read_frame();
        tokio::time::timeout(PATIENCE, reading).await.expect("a frame or the end in time")
    }

    async fn read_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some((head, behind)) = self.unread.split_at_checked(9) {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                let length = usize::try_from(length).unwrap();
                if behind.len() >= length {
                    let (kind, flags) = (head[3], head[4]);
                    let payload = behind[..length].to_vec();
                    self.unread.drain(..9 + length);
                    return Some(Frame { kind, flags, payload });
                }
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.unread.extend_from_slice(&bytes[..count]),
            }
        }
    }

    /// Reads to the end; the codes of the GOAWAY frames that came.
    pub async fn read_to_end(&mut self) -> Vec<u32> {
        let mut codes = Vec::new();
        while let Some(frame) = self.read().await {
            if frame.kind == GOAWAY {
                codes.push(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()));
            }
            // The PING behind a polite GOAWAY; without an answer the end waits for it.
            if frame.kind == PING && frame.flags & ACK == 0 {
                drop(self.send(&self::frame(PING, ACK, 0, &frame.payload)).await);
            }
        }
        codes
    }

    /// Reads until that many streams have ended.
    pub async fn read_replies(&mut self, mut count: usize) {
        while count > 0 {
            let frame = self.read().await.expect("the connection goes on");
            assert_ne!(frame.kind, GOAWAY, "{frame:?}");
            count -= usize::from(frame.kind == HEADERS && frame.flags & END_STREAM != 0);
        }
    }
}
