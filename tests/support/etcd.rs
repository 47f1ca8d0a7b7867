//! A real etcd on loopback, with mutual TLS or in plain text.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::{Pki, free_port, http_get, repository, wait_for};

/// How often it is started on other ports.
const STARTS_MAX: usize = 5;

pub struct Etcd {
    child: Option<Child>,
    folder: tempfile::TempDir,
    binaries: PathBuf,
    port: u16,
    peer_port: u16,
    metrics_port: u16,
    /// Where it serves HTTP, when that is not where it serves gRPC.
    http_port: Option<u16>,
    tls: Option<[PathBuf; 3]>,
    more: Vec<String>,
    /// What it says; shown when a test fails.
    log: File,
}

/// The last bytes of what it says that are shown.
const LOG_BYTES_SHOWN: u64 = 4096;

impl Etcd {
    /// With mutual TLS.
    pub fn start(version: &str, pki: &Pki) -> Self {
        Self::start_with(version, pki, &[])
    }

    /// The same, with more flags.
    pub fn start_with(version: &str, pki: &Pki, more: &[&str]) -> Self {
        let files = ["etcd-server.crt", "etcd-server.key", "kubernetes-ca.crt"];
        Self::launch(version, Some(files.map(|file| pki.path(file))), false, more)
    }

    /// With mutual TLS, and a CA for clients that did not sign ringfence's certificate.
    pub fn start_refusing(version: &str, pki: &Pki) -> Self {
        let files = ["etcd-server.crt", "etcd-server.key", "foreign-ca.crt"];
        Self::launch(version, Some(files.map(|file| pki.path(file))), false, &[])
    }

    /// In plain text, for tests that need speed and not the second handshake.
    pub fn start_plain(version: &str) -> Self {
        Self::launch(version, None, false, &[])
    }

    /// With mutual TLS, gRPC on one port and HTTP on another.
    pub fn start_split(version: &str, pki: &Pki) -> Self {
        let files = ["etcd-server.crt", "etcd-server.key", "kubernetes-ca.crt"];
        let tls = files.map(|file| pki.path(file));
        Self::launch(version, Some(tls), true, &[])
    }

    fn launch(version: &str, tls: Option<[PathBuf; 3]>, split: bool, more: &[&str]) -> Self {
        let binaries = installed(version);
        // A port that was free a moment ago may be somebody else's by now.
        for _ in 0..STARTS_MAX {
            let mut etcd = Self {
                child: None,
                folder: tempfile::tempdir().unwrap(),
                binaries: binaries.clone(),
                port: free_port(),
                peer_port: free_port(),
                metrics_port: free_port(),
                http_port: split.then(free_port),
                tls: tls.clone(),
                more: more.iter().map(|&flag| flag.to_owned()).collect(),
                log: tempfile::tempfile().unwrap(),
            };
            if etcd.comes_up() {
                return etcd;
            }
        }
        panic!("etcd {version} ended at its start, {STARTS_MAX} times");
    }

    pub fn endpoint(&self) -> String {
        self.url(self.port)
    }

    /// Where it serves HTTP.
    pub fn http_endpoint(&self) -> String {
        self.url(self.http_port.unwrap_or(self.port))
    }

    fn url(&self, port: u16) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{port}")
    }

    /// `etcd` or `etcdctl` of the same release.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// The port that clients use, for those that go past ringfence.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The number that a metric of its own shows.
    pub fn metric(&self, name: &str) -> u64 {
        let (_, text) = http_get(self.metrics_port, "/metrics").unwrap();
        let line = text.lines().find(|line| line.split(' ').next() == Some(name)).unwrap();
        line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Ends it at once, as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it on the same ports and data.
    pub fn restart(&mut self) {
        assert!(self.comes_up(), "etcd ended at its start");
    }

    /// False when it ended before it was healthy.
    fn comes_up(&mut self) -> bool {
        self.kill();
        let client = self.endpoint();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let mut command = Command::new(self.binary("etcd"));
        command
            .args(["--log-level", "warn", "--name", "test"])
            .arg("--data-dir")
            .arg(self.folder.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}")])
            .args(["--listen-metrics-urls", &format!("http://127.0.0.1:{}", self.metrics_port)])
            .args(&self.more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log.try_clone().unwrap());
        if self.http_port.is_some() {
            command.args(["--listen-client-http-urls", &self.http_endpoint()]);
        }
        if let Some([certificate, key, ca]) = &self.tls {
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
            command.arg("--trusted-ca-file").arg(ca).arg("--client-cert-auth");
        }
        self.child = Some(command.spawn().unwrap());
        let port = self.metrics_port;
        let mut runs = true;
        wait_for("a healthy etcd", || {
            runs = self.child.as_mut().unwrap().try_wait().unwrap().is_none();
            !runs || http_get(port, "/health").is_some_and(|(status, _)| status == 200)
        });
        runs
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let length = self.log.metadata().unwrap().len();
            let shown = length.min(LOG_BYTES_SHOWN);
            let mut said = vec![0; usize::try_from(shown).unwrap()];
            self.log.read_exact_at(&mut said, length - shown).unwrap();
            let said = String::from_utf8_lossy(&said);
            let said = format!("etcd on port {} said last: {said}\n", self.port);
            std::io::stderr().write_all(said.as_bytes()).unwrap();
        }
        self.kill();
    }
}

/// Where that release lies; it is installed when it is not there.
fn installed(version: &str) -> PathBuf {
    let output = Command::new(repository().join("tests/etcd/install"))
        .arg(version)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "etcd {version} cannot be installed");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}
