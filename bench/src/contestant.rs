//! What is compared: how each contestant is configured and started, all on the same terms.
//! Same certificates, mutual TLS on both hops, as many threads as the machine has cores. Measures nothing itself.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::Command;

use crate::process::{Running, free_address, tied};
use crate::{Outcome, pki};

const ROLES: usize = 100;
const RULES_PER_ROLE: usize = 10;
/// The one rule that covers the load's keys, away from both ends of every list.
const COVERING_ROLE: usize = 57;
const COVERING_RULE: usize = 5;

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Contestant {
    /// The load goes straight to the upstream: what driver and upstream can do with nothing in between
    Direct,
    Passthrough,
    Haproxy,
    /// Audit `buffered`
    Ringfence,
    /// Its audit level is `none`: no request is recorded
    RingfenceUnrecorded,
    /// Audit `blocking`
    RingfenceBlocking,
    /// Audit `blocking`, with a signed checkpoint every second or ten thousand records
    RingfenceSealed,
}

/// What every contestant is given.
pub struct Setting {
    /// Folder of this turn, empty at its start.
    pub directory: PathBuf,
    pub pki: PathBuf,
    pub upstream: String,
    pub threads: usize,
    pub haproxy: PathBuf,
    pub ringfence: PathBuf,
}

/// A contestant that was started; it may not listen yet. `process` is None for `direct`.
pub struct Started {
    pub address: String,
    pub process: Option<Running>,
    pub audit: Option<PathBuf>,
    /// Where its metrics are.
    pub admin: Option<String>,
}

impl Contestant {
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Passthrough => "passthrough",
            Self::Haproxy => "haproxy",
            Self::Ringfence => "ringfence",
            Self::RingfenceUnrecorded => "ringfence-unrecorded",
            Self::RingfenceBlocking => "ringfence-blocking",
            Self::RingfenceSealed => "ringfence-sealed",
        }
    }

    /// The first line the program says of its version, so that a figure can be traced to what it was taken of.
    pub fn version(self, setting: &Setting) -> Outcome<String> {
        let (program, argument) = match self {
            Self::Direct | Self::Passthrough => return Ok(env!("CARGO_PKG_VERSION").to_owned()),
            Self::Haproxy => (&setting.haproxy, "-v"),
            Self::Ringfence
            | Self::RingfenceUnrecorded
            | Self::RingfenceBlocking
            | Self::RingfenceSealed => (&setting.ringfence, "version"),
        };
        let hint = "build or fetch it first; bench/first-figure does both";
        let output = Command::new(program).arg(argument).output();
        let output = output.map_err(|error| format!("{}: {error}; {hint}", program.display()))?;
        if !output.status.success() {
            return Err(format!(
                "`{} {argument}` failed ({}); {hint}",
                program.display(),
                output.status
            ));
        }
        Ok(String::from_utf8_lossy(&output.stdout)
            .lines()
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned())
    }

    pub fn start(self, setting: &Setting) -> Outcome<Started> {
        match self {
            Self::Direct => Ok(Started {
                address: setting.upstream.clone(),
                process: None,
                audit: None,
                admin: None,
            }),
            Self::Passthrough => start_passthrough(setting),
            Self::Haproxy => start_haproxy(setting),
            Self::Ringfence => start_ringfence(setting, "mode = \"buffered\"", ""),
            Self::RingfenceUnrecorded => {
                let none = "[[audit.level]]\nlevel = \"none\"";
                let mut started = start_ringfence(setting, "mode = \"buffered\"", none)?;
                started.audit = None;
                Ok(started)
            }
            Self::RingfenceBlocking => start_ringfence(setting, "mode = \"blocking\"", ""),
            Self::RingfenceSealed => {
                let key = keygen(setting)?;
                let checkpoint = format!("[audit.checkpoint]\nkey = {key:?}\nseconds = 1");
                start_ringfence(setting, "mode = \"blocking\"", &checkpoint)
            }
        }
    }
}

/// A key that seals an audit log.
fn keygen(setting: &Setting) -> Outcome<PathBuf> {
    let key = setting.directory.join("log-key");
    let made = Command::new(&setting.ringfence).args(["audit", "keygen"]).arg(&key).output();
    let made = made.map_err(|error| format!("{}: {error}", setting.ringfence.display()))?;
    if made.status.success() {
        Ok(key)
    } else {
        Err(format!("audit keygen: {}", String::from_utf8_lossy(&made.stderr)))
    }
}

pub fn start_upstream(setting: &Setting) -> Outcome<Running> {
    let mut command = own_program()?;
    command.args(["upstream", "--listen", &setting.upstream]).arg("--pki").arg(&setting.pki);
    command.arg("--threads").arg(setting.threads.to_string());
    Running::start("upstream", &mut command, &setting.directory.join("upstream.log"))
}

pub fn own_program() -> Outcome<Command> {
    std::env::current_exe()
        .map(|path| tied(&path))
        .map_err(|error| format!("where this program is: {error}"))
}

fn start_passthrough(setting: &Setting) -> Outcome<Started> {
    let address = free_address()?;
    let mut command = own_program()?;
    command.args(["passthrough", "--listen", &address, "--upstream", &setting.upstream]);
    command.arg("--pki").arg(&setting.pki).arg("--threads").arg(setting.threads.to_string());
    let process =
        Running::start("passthrough", &mut command, &setting.directory.join("passthrough.log"))?;
    Ok(Started { address, process: Some(process), audit: None, admin: None })
}

/// No log, no health checks, no body inspection, and idle upstream connections shared by all clients: its best case.
fn start_haproxy(setting: &Setting) -> Outcome<Started> {
    let address = free_address()?;
    let server = bundle(setting, "server")?;
    let proxy = bundle(setting, "proxy")?;
    let ca = setting.pki.join("ca.crt");
    let text = format!(
        "global
    nbthread {threads}
    maxconn 1024

defaults
    mode http
    no log
    timeout connect 5s
    timeout client 60s
    timeout server 60s
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
    let mut command = tied(&setting.haproxy);
    command.args(["-db", "-f"]).arg(&config);
    let process = Running::start("haproxy", &mut command, &setting.directory.join("haproxy.log"))?;
    Ok(Started { address, process: Some(process), audit: None, admin: None })
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

/// `mode` is a line of `[audit]`, `more` are tables below it.
fn start_ringfence(setting: &Setting, mode: &str, more: &str) -> Outcome<Started> {
    let (address, admin) = (free_address()?, free_address()?);
    let audit = setting.directory.join("audit");
    let created = DirBuilder::new().mode(0o700).create(&audit);
    created.map_err(|error| format!("{}: {error}", audit.display()))?;
    let policy = setting.directory.join("policy.toml");
    pki::write(&policy, &policy_text(), 0o600)?;
    let text = format!(
        "version = 1
cores = {cores}
[client]
listen = [{address:?}]
certificate = {certificate:?}
key = {key:?}
[[client.ca]]
name = \"bench\"
roots = {ca:?}
[upstream]
endpoints = [{upstream:?}]
ca = {ca:?}
certificate = {upstream_certificate:?}
key = {upstream_key:?}
[audit]
{mode}
directory = {audit:?}
[audit.rotate]
bytes = 0
{more}
[admin]
listen = {admin:?}
[policy]
files = [{policy:?}]
",
        cores = setting.threads,
        certificate = setting.pki.join("server.crt"),
        key = setting.pki.join("server.key"),
        ca = setting.pki.join("ca.crt"),
        upstream = format!("https://{}", setting.upstream),
        upstream_certificate = setting.pki.join("proxy.crt"),
        upstream_key = setting.pki.join("proxy.key"),
    );
    let config = setting.directory.join("ringfence.toml");
    pki::write(&config, &text, 0o600)?;
    let mut command = tied(&setting.ringfence);
    command.args(["serve", "--config"]).arg(&config);
    let process =
        Running::start("ringfence", &mut command, &setting.directory.join("ringfence.log"))?;
    Ok(Started { address, process: Some(process), audit: Some(audit), admin: Some(admin) })
}

/// 1,000 rules in 100 roles, all given to the one identity the load comes as; exactly one covers its keys.
fn policy_text() -> String {
    let names: Vec<String> = (0..ROLES).map(|role| format!("\"role-{role}\"")).collect();
    let mut text = String::from(
        "[[identity]]\nname = \"bench\"\nmatch = { ca = \"bench\", cn = \"bench-client\" }\n",
    );
    writeln!(text, "roles = [{}]", names.join(", ")).unwrap();
    for role in 0..ROLES {
        writeln!(text, "\n[[role]]\nname = \"role-{role}\"\nrules = [").unwrap();
        for rule in 0..RULES_PER_ROLE {
            let prefix = match (role, rule) {
                (COVERING_ROLE, COVERING_RULE) => "/bench/".to_owned(),
                _ => format!("/bench-role-{role}/{rule}/"),
            };
            writeln!(
                text,
                "  {{ prefix = \"{prefix}\", allow = [\"get\", \"list\", \"put\", \"delete\"] }},"
            )
            .unwrap();
        }
        text.push_str("]\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_has_a_thousand_rules_and_one_covers_the_load() {
        let text = policy_text();
        assert_eq!(text.matches("prefix = ").count(), 1000);
        assert_eq!(text.matches("[[role]]").count(), 100);
        assert_eq!(text.matches("prefix = \"/bench/\"").count(), 1);
    }
}
