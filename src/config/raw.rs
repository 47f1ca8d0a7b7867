//! The file as it is written: texts and numbers with their places, nothing opened or resolved.

use crate::audit::Mode;
use crate::document::{Located, TableReader};

/// `ringfence.toml`
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) client: RawClient,
    pub(super) upstream: RawUpstream,
    pub(super) audit: RawAudit,
    pub(super) admin_listen: Option<Located<String>>,
    pub(super) policy_files: Vec<Located<String>>,
    pub(super) limits: RawLimits,
    pub(super) cores: u64,
}

#[derive(Debug, Default)]
pub(super) struct RawClient {
    pub(super) listen: Vec<Located<String>>,
    pub(super) certificate: Option<Located<String>>,
    pub(super) key: Option<Located<String>>,
    pub(super) authorities: Vec<RawAuthority>,
}

#[derive(Debug)]
pub(super) struct RawAuthority {
    pub(super) name: Option<Located<String>>,
    pub(super) roots: Option<Located<String>>,
}

#[derive(Debug, Default)]
pub(super) struct RawUpstream {
    pub(super) endpoints: Vec<Located<String>>,
    pub(super) ca: Option<Located<String>>,
    pub(super) certificate: Option<Located<String>>,
    pub(super) key: Option<Located<String>>,
    pub(super) connect_timeout_seconds: u64,
    pub(super) connections_per_core: u64,
    pub(super) calls_per_connection: u64,
}

#[derive(Debug)]
pub(super) struct RawAudit {
    pub(super) mode: Mode,
    pub(super) directory: Option<Located<String>>,
    pub(super) queue_bytes: u64,
    pub(super) wait_seconds: u64,
}

#[derive(Debug)]
pub(super) struct RawLimits {
    pub(super) connections: u64,
    pub(super) pending_handshakes: u64,
    pub(super) handshake_timeout_seconds: u64,
    pub(super) streams_per_connection: u64,
    pub(super) header_list_bytes: u64,
    pub(super) request_bytes: u64,
    pub(super) calls_per_principal: u64,
    pub(super) request_bytes_per_principal: u64,
    pub(super) call_timeout_seconds: u64,
    pub(super) drain_timeout_seconds: u64,
}

/// The only version of the format so far.
const VERSION: u64 = 1;
/// The default where metrics and health are.
pub(super) const ADMIN_LISTEN: &str = "127.0.0.1:9379";

pub(super) fn read(root: TableReader<'_>) -> Raw {
    read_version(&root);
    let client = root.required_table("client", "[client] says where etcd's clients connect");
    let upstream = root.required_table("upstream", "[upstream] says where etcd is");
    let audit = root.required_table("audit", "[audit] says where records are kept");
    let policy =
        root.required_table("policy", "[policy] says which files hold identities and roles");
    let raw = Raw {
        client: client.map(read_client).unwrap_or_default(),
        upstream: upstream.map(read_upstream).unwrap_or_default(),
        audit: audit.map_or_else(RawAudit::default, read_audit),
        admin_listen: root.table("admin").and_then(read_admin),
        policy_files: policy.map(read_policy).unwrap_or_default(),
        limits: root.table("limits").map_or_else(RawLimits::default, read_limits),
        cores: root.number("cores", 0..=1024, 0),
    };
    root.finish();
    raw
}

/// The version of the format; a file of a later one may mean something else by the same words.
fn read_version(root: &TableReader<'_>) {
    let version = root.number("version", 0..=u64::MAX, VERSION);
    if !root.has("version") {
        root.problems().error(root.location(), "`version` is missing", "version = 1");
    } else if version != VERSION {
        let what = format!("`version` is {version}; this ringfence reads version {VERSION}");
        root.problems().error(&root.location_of_key("version"), what, "version = 1");
    }
}

fn read_client(table: TableReader<'_>) -> RawClient {
    let authorities = table.tables("ca").into_iter().map(|ca| {
        let authority = RawAuthority {
            name: ca.required_text("name", "the name that identities refer to"),
            roots: ca.required_text("roots", "a file of CA certificates in PEM"),
        };
        ca.finish();
        authority
    });
    let authorities: Vec<RawAuthority> = authorities.collect();
    if authorities.is_empty() {
        let hint = "[[client.ca]] with `name` and `roots` says who may vouch for clients";
        table.problems().error(table.location(), "`client.ca` is missing", hint);
    }
    let client = RawClient {
        listen: table.required_texts("listen", "for example listen = [\"0.0.0.0:2379\"]"),
        certificate: table.required_text("certificate", "the certificate that clients see, in PEM"),
        key: table.required_text("key", "the key of that certificate, in PEM"),
        authorities,
    };
    table.finish();
    client
}

fn read_upstream(table: TableReader<'_>) -> RawUpstream {
    let endpoints = "for example endpoints = [\"https://127.0.0.1:12379\"]";
    let upstream = RawUpstream {
        endpoints: table.required_texts("endpoints", endpoints),
        ca: table.text("ca"),
        certificate: table.text("certificate"),
        key: table.text("key"),
        connect_timeout_seconds: table.number("connect_timeout_seconds", 1..=60, 2),
        connections_per_core: table.number("connections_per_core", 1..=256, 16),
        calls_per_connection: table.number("calls_per_connection", 1..=1000, 128),
    };
    table.finish();
    upstream
}

fn read_audit(table: TableReader<'_>) -> RawAudit {
    let mode = table.text("mode");
    let mode = match mode.as_ref().map(|mode| (mode.value.as_str(), &mode.location)) {
        None | Some(("blocking", _)) => Mode::Blocking,
        Some(("buffered", _)) => Mode::Buffered,
        Some((other, location)) => {
            let what = format!("`audit.mode` is `{other}`, neither `blocking` nor `buffered`");
            table.problems().error(location, what, "mode = \"blocking\" waits for the disk");
            Mode::Blocking
        }
    };
    let audit = RawAudit {
        mode,
        directory: table.required_text("directory", "a folder for the audit log"),
        queue_bytes: table.number("queue_bytes", 65_536..=1 << 30, 16 << 20),
        wait_seconds: table.number("wait_seconds", 1..=60, 5),
    };
    table.finish();
    audit
}

fn read_admin(table: TableReader<'_>) -> Option<Located<String>> {
    let listen = table.text("listen");
    table.finish();
    listen
}

fn read_policy(table: TableReader<'_>) -> Vec<Located<String>> {
    let files = table.required_texts("files", "for example files = [\"policy.d/*.toml\"]");
    table.finish();
    files
}

impl Default for RawAudit {
    fn default() -> Self {
        Self { mode: Mode::Blocking, directory: None, queue_bytes: 0, wait_seconds: 0 }
    }
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            pending_handshakes: 512,
            handshake_timeout_seconds: 5,
            streams_per_connection: 1000,
            header_list_bytes: 16_384,
            request_bytes: 2 << 20,
            calls_per_principal: 512,
            request_bytes_per_principal: 32 << 20,
            call_timeout_seconds: 60,
            drain_timeout_seconds: 10,
        }
    }
}

fn read_limits(table: TableReader<'_>) -> RawLimits {
    let safe = RawLimits::default();
    let limits = RawLimits {
        connections: table.number("connections", 1..=1_000_000, safe.connections),
        pending_handshakes: table.number(
            "pending_handshakes",
            1..=100_000,
            safe.pending_handshakes,
        ),
        handshake_timeout_seconds: table.number(
            "handshake_timeout_seconds",
            1..=60,
            safe.handshake_timeout_seconds,
        ),
        streams_per_connection: table.number(
            "streams_per_connection",
            1..=100_000,
            safe.streams_per_connection,
        ),
        header_list_bytes: table.number(
            "header_list_bytes",
            1024..=1 << 20,
            safe.header_list_bytes,
        ),
        request_bytes: table.number("request_bytes", 1024..=1 << 30, safe.request_bytes),
        calls_per_principal: table.number(
            "calls_per_principal",
            1..=100_000,
            safe.calls_per_principal,
        ),
        request_bytes_per_principal: table.number(
            "request_bytes_per_principal",
            1024..=1 << 32,
            safe.request_bytes_per_principal,
        ),
        call_timeout_seconds: table.number(
            "call_timeout_seconds",
            1..=3600,
            safe.call_timeout_seconds,
        ),
        drain_timeout_seconds: table.number(
            "drain_timeout_seconds",
            0..=3600,
            safe.drain_timeout_seconds,
        ),
    };
    table.finish();
    limits
}
