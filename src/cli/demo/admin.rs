//! A GET on ringfence's admin listener.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(5);
const REPLY_BYTES_MAX: u64 = 1 << 20;

/// The body of a reply with status 200; any other is an error with the body's text.
pub(super) async fn get(admin: SocketAddr, path: &str) -> Result<String, String> {
    let reply = timeout(LIMIT, reply(admin, path)).await;
    let reply = match reply {
        Ok(reply) => reply.map_err(|error| format!("{admin}{path}: {error}"))?,
        Err(_) => return Err(format!("{admin}{path}: no reply in time")),
    };
    match reply.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
        Some((_, body)) => Err(body.to_owned()),
        None => Err(format!("{admin}{path}: no HTTP")),
    }
}

async fn reply(admin: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(admin).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.take(REPLY_BYTES_MAX).read_to_string(&mut text).await?;
    Ok(text)
}
