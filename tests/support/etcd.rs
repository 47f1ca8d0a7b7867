//! A real etcd on loopback, with mutual TLS or in plain text.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::{Pki, free_port, http_get, repository, wait_for};

pub struct Etcd {
    child: Option<Child>,
    folder: tempfile::TempDir,
    binaries: PathBuf,
    port: u16,
    peer_port: u16,
    metrics_port: u16,
    tls: Option<[PathBuf; 3]>,
    more: Vec<String>,
}

impl Etcd {
    /// With mutual TLS.
    pub fn start(version: &str, pki: &Pki) -> Self {
        Self::start_with(version, pki, &[])
    }

    /// The same, with more flags.
    pub fn start_with(version: &str, pki: &Pki, more: &[&str]) -> Self {
        let files = ["etcd-server.crt", "etcd-server.key", "kubernetes-ca.crt"];
        Self::launch(version, Some(files.map(|file| pki.path(file))), more)
    }

    /// In plain text, for tests that need speed and not the second handshake.
    pub fn start_plain(version: &str) -> Self {
        Self::launch(version, None, &[])
    }

    fn launch(version: &str, tls: Option<[PathBuf; 3]>, more: &[&str]) -> Self {
        let mut etcd = Self {
            child: None,
            folder: tempfile::tempdir().unwrap(),
            binaries: installed(version),
            port: free_port(),
            peer_port: free_port(),
            metrics_port: free_port(),
            tls,
            more: more.iter().map(|&flag| flag.to_owned()).collect(),
        };
        etcd.restart();
        etcd
    }

    pub fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
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
        self.kill();
        let client = self.endpoint();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let mut command = Command::new(self.binaries.join("etcd"));
        command
            .args(["--log-level", "error", "--name", "test"])
            .arg("--data-dir")
            .arg(self.folder.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}")])
            .args(["--listen-metrics-urls", &format!("http://127.0.0.1:{}", self.metrics_port)])
            .args(&self.more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some([certificate, key, ca]) = &self.tls {
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
            command.arg("--trusted-ca-file").arg(ca).arg("--client-cert-auth");
        }
        self.child = Some(command.spawn().unwrap());
        let port = self.metrics_port;
        wait_for("a healthy etcd", || {
            http_get(port, "/health").is_some_and(|(status, _)| status == 200)
        });
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
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
