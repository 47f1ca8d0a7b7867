//! Envoy: RBAC that lets the one client call the services of etcd, and an access log in JSON; what it does beyond that by
//! default (request IDs, headers of its own) is off, and connections are spread evenly over its workers.

use serde_json::{Value, json};

use super::{CONNECTIONS_MAX, STREAMS_MAX, Setting, Started};
use crate::process::{Running, free_address, tied};
use crate::{Outcome, pki};

pub fn start(setting: &Setting) -> Outcome<Started> {
    let address = free_address()?;
    let config = setting.directory.join("envoy.json");
    pki::write(&config, &configuration(setting, &address)?.to_string(), 0o600)?;
    let mut command = tied(&setting.programs.envoy);
    command.arg("-c").arg(&config).arg("--concurrency").arg(setting.threads.to_string());
    command.args(["--log-level", "error", "--disable-hot-restart"]);
    let process = Running::start("envoy", &mut command, &setting.directory.join("envoy.log"))?;
    Ok(Started::proxy(address, process))
}

fn configuration(setting: &Setting, address: &str) -> Outcome<Value> {
    let file = |name: &str| json!({ "filename": setting.pki.join(name) });
    let tls = |name: &str| {
        json!({
            "alpn_protocols": ["h2"],
            "tls_certificates": [{
                "certificate_chain": file(&format!("{name}.crt")),
                "private_key": file(&format!("{name}.key")),
            }],
            "validation_context": { "trusted_ca": file("ca.crt") },
        })
    };
    let downstream = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "disable_stateless_session_resumption": true,
            "common_tls_context": tls("server"),
        },
    });
    let upstream = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": "localhost",
            "common_tls_context": tls("proxy"),
        },
    });
    let listener = json!({
        "name": "client",
        "address": socket(address)?,
        "connection_balance_config": { "exact_balance": {} },
        "filter_chains": [{ "transport_socket": downstream, "filters": [connection_manager(setting)] }],
    });
    let limits = json!({ "max_connections": CONNECTIONS_MAX, "max_pending_requests": 100_000, "max_requests": 100_000 });
    let cluster = json!({
        "name": "etcd",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": { "thresholds": [limits] },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        },
        "load_assignment": {
            "cluster_name": "etcd",
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket(&setting.upstream)? } }] }],
        },
        "transport_socket": upstream,
    });
    Ok(json!({ "static_resources": { "listeners": [listener], "clusters": [cluster] } }))
}

fn connection_manager(setting: &Setting) -> Value {
    let allowed = json!({
        "rules": { "action": "ALLOW", "policies": { "client": {
            "permissions": [{ "url_path": { "path": { "prefix": "/etcdserverpb." } } }],
            "principals": [{ "authenticated": { "principal_name": { "exact": "CN=bench-client" } } }],
        } } },
    });
    let mut rbac = allowed;
    rbac["@type"] = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC".into();
    let format = json!({
        "start_time": "%START_TIME%", "path": "%REQ(:PATH)%", "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS%", "peer": "%DOWNSTREAM_PEER_SUBJECT%", "duration": "%DURATION%",
        "bytes": "%BYTES_SENT%", "source": "%DOWNSTREAM_REMOTE_ADDRESS%",
    });
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "client",
            "codec_type": "HTTP2",
            "http2_protocol_options": { "max_concurrent_streams": STREAMS_MAX },
            "stream_idle_timeout": "0s",
            "generate_request_id": false,
            "route_config": { "virtual_hosts": [{
                "name": "all", "domains": ["*"],
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "etcd", "timeout": "0s" } }],
            }] },
            "http_filters": [
                { "name": "envoy.filters.http.rbac", "typed_config": rbac },
                { "name": "envoy.filters.http.router", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                    "suppress_envoy_headers": true,
                } },
            ],
            "access_log": [{
                "name": "envoy.access_loggers.file",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                    "path": setting.directory.join("envoy-access.log"),
                    "log_format": { "json_format": format },
                },
            }],
        },
    })
}

fn socket(address: &str) -> Outcome<Value> {
    let (host, port) =
        address.rsplit_once(':').ok_or_else(|| format!("`{address}` has no port"))?;
    let port: u16 = port.parse().map_err(|error| format!("`{address}`: {error}"))?;
    Ok(json!({ "socket_address": { "address": host, "port_value": port } }))
}
