//! HAProxy: no log, no health checks, no body inspection, and idle upstream connections shared by all clients: its best case.

use std::fs;
use std::path::PathBuf;

use super::{CONNECTIONS_MAX, STREAMS_MAX, Setting, Started};
use crate::process::{Running, free_address, tied};
use crate::{Outcome, pki};

pub fn start(setting: &Setting) -> Outcome<Started> {
    let address = free_address()?;
    let server = bundle(setting, "server")?;
    let proxy = bundle(setting, "proxy")?;
    let ca = setting.pki.join("ca.crt");
    let text = format!(
        "global
    nbthread {threads}
    maxconn {CONNECTIONS_MAX}
    ssl-default-bind-options no-tls-tickets
    tune.h2.max-concurrent-streams {STREAMS_MAX}

defaults
    mode http
    no log
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout tunnel 1h
    http-reuse always

frontend client
    bind {address} ssl crt {server} ca-file {ca} verify required alpn h2
    default_backend etcd

backend etcd
    server upstream {upstream} ssl crt {proxy} ca-file {ca} verify required verifyhost localhost sni str(localhost) alpn h2
",
        threads = setting.threads,
        server = server.display(),
        proxy = proxy.display(),
        ca = ca.display(),
        upstream = setting.upstream,
    );
    let config = setting.directory.join("haproxy.cfg");
    pki::write(&config, &text, 0o600)?;
    let mut command = tied(&setting.programs.haproxy);
    command.args(["-db", "-f"]).arg(&config);
    let process = Running::start("haproxy", &mut command, &setting.directory.join("haproxy.log"))?;
    Ok(Started::proxy(address, process))
}

/// HAProxy reads a certificate and its key from one file.
fn bundle(setting: &Setting, name: &str) -> Outcome<PathBuf> {
    let read = |extension: &str| {
        let path = setting.pki.join(format!("{name}.{extension}"));
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let path = setting.directory.join(format!("{name}.pem"));
    pki::write(&path, &format!("{}{}", read("crt")?, read("key")?), 0o600)?;
    Ok(path)
}
