//! The real etcd, by the listener that is reached, and its own grpc-proxy.

use super::{Setting, Started};
use crate::Outcome;
use crate::process::{Running, free_address, tied};

/// How etcd is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// gRPC and HTTP on one port with TLS: gRPC then goes through Go's net/http.
    Shared,
    /// gRPC alone on its port with TLS.
    Split,
    /// Without TLS.
    Plain,
}

pub fn start(setting: &Setting, listener: Listener) -> Outcome<Running> {
    let (peer, http) = (free_address()?, free_address()?);
    let scheme = match listener {
        Listener::Plain => "http",
        Listener::Shared | Listener::Split => "https",
    };
    let client = format!("{scheme}://{}", setting.upstream);
    let peer = format!("http://{peer}");
    let mut command = tied(&setting.programs.etcd);
    command.arg("--data-dir").arg(setting.directory.join("etcd"));
    command.args(["--log-level", "error", "--name", "bench", "--max-request-bytes", "2097152"]);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.arg("--initial-cluster").arg(format!("bench={peer}"));
    if listener != Listener::Shared {
        command.arg("--listen-client-http-urls").arg(format!("{scheme}://{http}"));
    }
    if listener != Listener::Plain {
        command.arg("--cert-file").arg(setting.pki.join("server.crt"));
        command.arg("--key-file").arg(setting.pki.join("server.key"));
        command.arg("--trusted-ca-file").arg(setting.pki.join("ca.crt")).arg("--client-cert-auth");
    }
    Running::start("etcd", &mut command, &setting.directory.join("etcd.log"))
}

pub fn start_grpc_proxy(setting: &Setting) -> Outcome<Started> {
    let address = free_address()?;
    let mut command = tied(&setting.programs.etcd);
    command.args(["grpc-proxy", "start", "--listen-addr", &address]);
    command.arg("--endpoints").arg(format!("https://{}", setting.upstream));
    for (option, file) in [
        ("--cert-file", "server.crt"),
        ("--key-file", "server.key"),
        ("--trusted-ca-file", "ca.crt"),
        ("--cert", "nameless.crt"),
        ("--key", "nameless.key"),
        ("--cacert", "ca.crt"),
    ] {
        command.arg(option).arg(setting.pki.join(file));
    }
    command.arg("--data-dir").arg(setting.directory.join("grpc-proxy"));
    let log = setting.directory.join("grpc-proxy.log");
    Ok(Started::proxy(address, Running::start("grpc-proxy", &mut command, &log)?))
}
