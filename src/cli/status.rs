//! `ringfence status`: asks the one that runs with this config whether it is ready, and which generation is in force.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;

use super::{complain, complain_all, say};
use crate::config;

/// How long it may take to answer; readiness tries to reach etcd.
const PATIENCE: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Exit code 0 when it is ready, 1 when it is not, 2 when it cannot be asked.
pub(super) fn run(path: &Path) -> ExitCode {
    let address = match config::admin_address(path) {
        Ok(address) => reachable(address),
        Err(problems) => {
            complain_all(&problems);
            return ExitCode::from(2);
        }
    };
    match ask(address) {
        Ok((status, text)) => {
            text.lines().for_each(say);
            if status == StatusCode::OK { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            complain(&format!("error: cannot ask ringfence at {address}, `admin.listen`: {error}"));
            complain("  hint: it runs on this host, with this config?");
            ExitCode::from(2)
        }
    }
}

/// Who listens everywhere is asked on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn ask(address: SocketAddr) -> Result<(StatusCode, String), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let asking = tokio::time::timeout(PATIENCE, ask_in_time(address));
        asking.await.map_err(|_| format!("no answer within {} seconds", PATIENCE.as_secs()))?
    })
}

async fn ask_in_time(address: SocketAddr) -> Result<(StatusCode, String), String> {
    let stream =
        tokio::net::TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let handshake = hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|error| error.to_string())?;
    let request = Request::get("/readyz?verbose").header("host", "localhost").body(Empty::new());
    let request = request.map_err(|error| error.to_string())?;
    let asking = async {
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let bytes = body.map_err(|error| error.to_string())?.to_bytes();
        Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
    };
    tokio::select! {
        answer = asking => answer,
        Err(error) = connection => Err(error.to_string()),
    }
}
