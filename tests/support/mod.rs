//! What every test of the real program needs: a PKI, a real etcd, ringfence itself, and a client
//! that can say anything. A missing etcd is a failure, never a skip.

mod etcd;
mod http1;
mod pki;
mod program;
mod raw;
mod schema;
mod stream;
mod tap;
pub mod wire;

pub use etcd::Etcd;
pub use http1::{Http1, HttpTap, Then, response_head};
pub use pki::Pki;
pub use program::{Ringfence, Settings, audit_files};
pub use raw::{RawClient, Reply, framed};
pub use schema::check_record;
pub use stream::RawStream;
pub use tap::{End, Tap};

use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything that must come may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The next port for [`free_port`], counted from where this process begins.
static NEXT_PORT: AtomicU32 = AtomicU32::new(0);

/// A loopback port that is free, below those that the system gives to outgoing connections (32768 and
/// up): such a one could be somebody else's before it is listened on. No two calls give the same.
pub fn free_port() -> u16 {
    loop {
        let step = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + (std::process::id().wrapping_mul(131).wrapping_add(step)) % 22_000;
        let port = u16::try_from(port).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A member that takes connections and never says a word, and its endpoint.
pub fn silent_member() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    (listener, endpoint)
}

/// A size from the environment, for runs that are larger than the gate's.
pub fn number_from_environment(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |number| number.parse().expect(name))
}

/// Polls until it holds.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "{what} did not come to pass in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The repository's folder.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A plain HTTP/1.1 GET on loopback: status and body.
pub fn http_get(port: u16, path: &str) -> Option<(u16, String)> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}
