//! The file as it is written: texts and numbers with their places, nothing opened or resolved.

use super::fixed::Fixed;
use super::raw_audit::{RawLevels, RawSink, read_levels, read_sinks};
use super::raw_revocation::{RawLists, read_deny_files, read_lists};
use super::upgrade;
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
    pub(super) deny_files: Vec<Located<String>>,
    pub(super) lease_keys: Option<Located<String>>,
    pub(super) limits: RawLimits,
    pub(super) cores: u64,
    pub(super) reload: RawReload,
    pub(super) upgrade_socket: Option<Located<String>>,
    pub(super) fixed: Fixed,
}

#[derive(Debug, Default)]
pub(super) struct RawClient {
    pub(super) listen: Vec<Located<String>>,
    pub(super) certificate: Option<Located<String>>,
    pub(super) key: Option<Located<String>>,
    pub(super) authorities: Vec<RawAuthority>,
    /// A member's name and the URLs that it is said to have.
    pub(super) advertise: Vec<(Located<String>, Vec<Located<String>>)>,
}

#[derive(Debug)]
pub(super) struct RawAuthority {
    pub(super) name: Option<Located<String>>,
    pub(super) roots: Option<Located<String>>,
    pub(super) trust_domain: Option<Located<String>>,
    pub(super) lists: RawLists,
}

#[derive(Debug, Default)]
pub(super) struct RawUpstream {
    pub(super) endpoints: Vec<Located<String>>,
    /// Absent: the same as `endpoints`.
    pub(super) http_endpoints: Option<Vec<Located<String>>>,
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
    pub(super) checkpoint: Option<RawCheckpoint>,
    pub(super) rotate: RawRotate,
    pub(super) levels: RawLevels,
    pub(super) sinks: Vec<RawSink>,
}

#[derive(Debug)]
pub(super) struct RawCheckpoint {
    pub(super) key: Option<Located<String>>,
    pub(super) witness: Option<Located<String>>,
    pub(super) seconds: u64,
    pub(super) records: u64,
}

#[derive(Debug)]
pub(super) struct RawRotate {
    pub(super) bytes: u64,
    pub(super) seconds: u64,
    pub(super) compress: bool,
    pub(super) keep_files: u64,
    pub(super) keep_seconds: u64,
    pub(super) keep_bytes: u64,
}

impl Default for RawRotate {
    fn default() -> Self {
        Self {
            bytes: 256 << 20,
            seconds: 0,
            compress: true,
            keep_files: 0,
            keep_seconds: 0,
            keep_bytes: 0,
        }
    }
}

#[derive(Debug)]
pub(super) struct RawReload {
    pub(super) watch_files: bool,
    pub(super) every_seconds: u64,
    pub(super) pair_wait_seconds: u64,
}

impl Default for RawReload {
    fn default() -> Self {
        Self { watch_files: true, every_seconds: 0, pair_wait_seconds: 5 }
    }
}

#[derive(Debug)]
pub(super) struct RawLimits {
    pub(super) connections: u64,
    pub(super) connections_per_source: u64,
    pub(super) pending_handshakes: u64,
    pub(super) handshake_timeout_seconds: u64,
    pub(super) first_request_timeout_seconds: u64,
    pub(super) header_timeout_seconds: u64,
    pub(super) idle_timeout_seconds: u64,
    pub(super) lifetime_seconds: u64,
    pub(super) control_frames_per_second: u64,
    pub(super) resets_per_second: u64,
    pub(super) streams_per_connection: u64,
    pub(super) header_list_bytes: u64,
    pub(super) request_bytes: u64,
    pub(super) calls_per_principal: u64,
    pub(super) streams_per_principal: u64,
    pub(super) watches_per_principal: u64,
    pub(super) requests_per_second_per_principal: u64,
    pub(super) bytes_per_second_per_principal: u64,
    pub(super) reply_bytes: u64,
    pub(super) request_bytes_per_principal: u64,
    pub(super) call_timeout_seconds: u64,
    pub(super) drain_timeout_seconds: u64,
}

/// The only version of the format so far.
const VERSION: u64 = 1;
/// What stands before a message on the wire.
const FRAME_HEAD_BYTES: u64 = 5;
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
        deny_files: root.table("revocation").map(read_deny_files).unwrap_or_default(),
        lease_keys: root.table("leases").and_then(read_leases),
        limits: root.table("limits").map_or_else(RawLimits::default, read_limits),
        cores: root.number("cores", 0..=1024, 0),
        reload: root.table("reload").map_or_else(RawReload::default, read_reload),
        upgrade_socket: root.table("upgrade").and_then(upgrade::read),
        fixed: Fixed::read(&root),
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
            trust_domain: ca.text("trust_domain"),
            lists: read_lists(&ca),
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
        advertise: table.table("advertise").map(|table| table.lists_by_key()).unwrap_or_default(),
    };
    table.finish();
    client
}

fn read_upstream(table: TableReader<'_>) -> RawUpstream {
    let endpoints = "for example endpoints = [\"https://127.0.0.1:12379\"]";
    let http_endpoints = "leave it out when etcd serves HTTP at `upstream.endpoints`";
    let upstream = RawUpstream {
        endpoints: table.required_texts("endpoints", endpoints),
        http_endpoints: table
            .has("http_endpoints")
            .then(|| table.required_texts("http_endpoints", http_endpoints)),
        ca: table.text("ca"),
        certificate: table.text("certificate"),
        key: table.text("key"),
        connect_timeout_seconds: table.number("connect_timeout_seconds", 1..=60, 2),
        connections_per_core: table.number("connections_per_core", 1..=256, 64),
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
        checkpoint: table.table("checkpoint").map(read_checkpoint),
        rotate: table.table("rotate").map_or_else(RawRotate::default, read_rotate),
        levels: read_levels(&table),
        sinks: read_sinks(&table),
    };
    table.finish();
    audit
}

fn read_checkpoint(table: TableReader<'_>) -> RawCheckpoint {
    let checkpoint = RawCheckpoint {
        key: table.required_text("key", "a file that `ringfence audit keygen` made"),
        witness: table.text("witness"),
        seconds: table.number("seconds", 1..=86_400, 60),
        records: table.number("records", 2..=10_000_000, 10_000),
    };
    table.finish();
    checkpoint
}

fn read_rotate(table: TableReader<'_>) -> RawRotate {
    let usual = RawRotate::default();
    let year = 366 * 86_400;
    let compress = match table.text("compress") {
        None => usual.compress,
        Some(text) if text.value == "zstd" => true,
        Some(text) if text.value == "none" => false,
        Some(text) => {
            let what = format!("`audit.rotate.compress` is `{}`", text.value);
            table.problems().error(&text.location, what, "`zstd` (the default) or `none`");
            usual.compress
        }
    };
    let rotate = RawRotate {
        bytes: table.number("bytes", 0..=1 << 40, usual.bytes),
        seconds: table.number("seconds", 0..=year, usual.seconds),
        compress,
        keep_files: table.number("keep_files", 0..=1_000_000, usual.keep_files),
        keep_seconds: table.number("keep_seconds", 0..=20 * year, usual.keep_seconds),
        keep_bytes: table.number("keep_bytes", 0..=1 << 50, usual.keep_bytes),
    };
    table.finish();
    rotate
}

fn read_admin(table: TableReader<'_>) -> Option<Located<String>> {
    let listen = table.text("listen");
    table.finish();
    listen
}

fn read_leases(table: TableReader<'_>) -> Option<Located<String>> {
    let keys = table.required_text("keys", "a file for the keys of lease IDs; serve makes it");
    table.finish();
    keys
}

fn read_reload(table: TableReader<'_>) -> RawReload {
    let usual = RawReload::default();
    let day = 86_400;
    let reload = RawReload {
        watch_files: if table.has("watch_files") {
            table.flag("watch_files")
        } else {
            usual.watch_files
        },
        every_seconds: table.number("every_seconds", 0..=day, usual.every_seconds),
        pair_wait_seconds: table.number("pair_wait_seconds", 0..=300, usual.pair_wait_seconds),
    };
    table.finish();
    reload
}

fn read_policy(table: TableReader<'_>) -> Vec<Located<String>> {
    let files = table.required_texts("files", "for example files = [\"policy.d/*.toml\"]");
    table.finish();
    files
}

impl Default for RawAudit {
    fn default() -> Self {
        Self {
            mode: Mode::Blocking,
            directory: None,
            queue_bytes: 0,
            wait_seconds: 0,
            checkpoint: None,
            rotate: RawRotate::default(),
            levels: RawLevels::default(),
            sinks: Vec::new(),
        }
    }
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_source: 2000,
            pending_handshakes: 512,
            handshake_timeout_seconds: 5,
            first_request_timeout_seconds: 300,
            header_timeout_seconds: 10,
            idle_timeout_seconds: 900,
            lifetime_seconds: 0,
            control_frames_per_second: 200,
            resets_per_second: 200,
            streams_per_connection: 1000,
            header_list_bytes: 16_384,
            request_bytes: 2 << 20,
            calls_per_principal: 512,
            streams_per_principal: 2048,
            watches_per_principal: 20_000,
            requests_per_second_per_principal: 0,
            bytes_per_second_per_principal: 0,
            reply_bytes: 0,
            request_bytes_per_principal: 32 << 20,
            call_timeout_seconds: 60,
            drain_timeout_seconds: 10,
        }
    }
}

fn read_limits(table: TableReader<'_>) -> RawLimits {
    let safe = RawLimits::default();
    let number = |key, range, safe| table.number(key, range, safe);
    let watches = safe.watches_per_principal;
    let limits = RawLimits {
        connections: number("connections", 1..=1_000_000, safe.connections),
        connections_per_source: number(
            "connections_per_source",
            1..=1_000_000,
            safe.connections_per_source,
        ),
        pending_handshakes: number("pending_handshakes", 1..=100_000, safe.pending_handshakes),
        handshake_timeout_seconds: number(
            "handshake_timeout_seconds",
            1..=60,
            safe.handshake_timeout_seconds,
        ),
        first_request_timeout_seconds: number(
            "first_request_timeout_seconds",
            1..=86_400,
            safe.first_request_timeout_seconds,
        ),
        header_timeout_seconds: number(
            "header_timeout_seconds",
            1..=3600,
            safe.header_timeout_seconds,
        ),
        idle_timeout_seconds: number("idle_timeout_seconds", 0..=86_400, safe.idle_timeout_seconds),
        lifetime_seconds: number("lifetime_seconds", 0..=31_536_000, safe.lifetime_seconds),
        control_frames_per_second: number(
            "control_frames_per_second",
            10..=1_000_000,
            safe.control_frames_per_second,
        ),
        resets_per_second: number("resets_per_second", 1..=1_000_000, safe.resets_per_second),
        streams_per_connection: number(
            "streams_per_connection",
            1..=100_000,
            safe.streams_per_connection,
        ),
        header_list_bytes: number("header_list_bytes", 1024..=1 << 20, safe.header_list_bytes),
        request_bytes: number("request_bytes", 1024..=1 << 30, safe.request_bytes),
        calls_per_principal: number("calls_per_principal", 1..=100_000, safe.calls_per_principal),
        streams_per_principal: number(
            "streams_per_principal",
            1..=100_000,
            safe.streams_per_principal,
        ),
        watches_per_principal: number("watches_per_principal", 1..=1_000_000, watches),
        request_bytes_per_principal: number(
            "request_bytes_per_principal",
            1024..=1 << 32,
            safe.request_bytes_per_principal,
        ),
        call_timeout_seconds: number("call_timeout_seconds", 1..=3600, safe.call_timeout_seconds),
        drain_timeout_seconds: number(
            "drain_timeout_seconds",
            0..=3600,
            safe.drain_timeout_seconds,
        ),
        ..read_rates(&table)
    };
    check_share(&table, &limits);
    table.finish();
    limits
}

/// What a principal may use in a second, and at once. The other limits are the defaults.
fn read_rates(table: &TableReader<'_>) -> RawLimits {
    let safe = RawLimits::default();
    let number = |key, range, safe| table.number(key, range, safe);
    RawLimits {
        bytes_per_second_per_principal: number(
            "bytes_per_second_per_principal",
            0..=1 << 40,
            safe.bytes_per_second_per_principal,
        ),
        reply_bytes: number("reply_bytes", 0..=1 << 40, safe.reply_bytes),
        requests_per_second_per_principal: number(
            "requests_per_second_per_principal",
            0..=1_000_000,
            safe.requests_per_second_per_principal,
        ),
        ..safe
    }
}

/// A share that one request could not fit into would refuse every large one.
fn check_share(table: &TableReader<'_>, limits: &RawLimits) {
    if limits.request_bytes_per_principal < limits.request_bytes + FRAME_HEAD_BYTES {
        let keys = ["request_bytes_per_principal", "request_bytes"];
        let set = keys.into_iter().find(|key| table.has(key)).unwrap_or("request_bytes");
        let what = "`limits.request_bytes_per_principal` is smaller than one request may be";
        let hint = "raise it, or lower `limits.request_bytes`";
        table.problems().error(&table.location_of_key(set), what, hint);
    }
}
