//! nginx: `grpc_pass` with idle upstream connections kept, and its access log through a buffer.

use std::fs;

use super::{CONNECTIONS_MAX, STREAMS_MAX, Setting, Started};
use crate::process::{Running, free_address, tied};
use crate::{Outcome, pki};

pub fn start(setting: &Setting) -> Outcome<Started> {
    let address = free_address()?;
    let folder = setting.directory.join("nginx");
    fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let text = format!(
        "daemon off;
worker_processes {threads};
pid {folder}/pid;
error_log {folder}/error.log error;
events {{ worker_connections {connections}; }}
http {{
    access_log {folder}/access.log combined buffer=64k flush=1s;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 2m;
    # nginx closes a connection after this many requests, and a gRPC client under load notices.
    keepalive_requests 1000000000;
    http2_max_concurrent_streams {STREAMS_MAX};
    upstream etcd {{ server {upstream}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen {address} ssl http2 backlog=4096;
        ssl_certificate {pki}/server.crt;
        ssl_certificate_key {pki}/server.key;
        ssl_client_certificate {pki}/ca.crt;
        ssl_verify_client on;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_tickets off;
        location / {{
            grpc_pass grpcs://etcd;
            grpc_ssl_certificate {pki}/proxy.crt;
            grpc_ssl_certificate_key {pki}/proxy.key;
            grpc_ssl_trusted_certificate {pki}/ca.crt;
            grpc_ssl_verify on;
            grpc_ssl_name localhost;
            grpc_ssl_protocols TLSv1.2 TLSv1.3;
            grpc_ssl_session_reuse off;
            grpc_read_timeout 1h;
            grpc_send_timeout 1h;
            grpc_socket_keepalive on;
        }}
    }}
}}
",
        threads = setting.threads,
        connections = CONNECTIONS_MAX * 2,
        folder = folder.display(),
        upstream = setting.upstream,
        pki = setting.pki.display(),
    );
    let config = setting.directory.join("nginx.conf");
    pki::write(&config, &text, 0o600)?;
    let mut command = tied(&setting.programs.nginx);
    command.arg("-c").arg(&config).arg("-p").arg(&folder).args(["-e", "stderr"]);
    let process = Running::start("nginx", &mut command, &setting.directory.join("nginx.log"))?;
    Ok(Started::proxy(address, process))
}
