//! ringfence in its several settings, and the policies it is given.

use std::fmt::Write as _;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::Command;

use super::{CONNECTIONS_MAX, Setting, Started};
use crate::process::{Running, free_address, tied};
use crate::{Outcome, pki};

const RULES_PER_ROLE: usize = 10;
const CONFIG: &str = "ringfence.toml";

/// How large a policy is. Identity 0 is the one that the load comes as and has [`ROLES_OF_LOAD`] roles; each other has
/// one role of its own.
#[derive(Clone, Copy)]
pub struct Size {
    pub identities: usize,
    /// Ten rules each.
    pub roles: usize,
}

pub const ROLES_OF_LOAD: usize = 100;
/// 1,000 rules in 100 roles, all given to the one identity.
const SMALL: Size = Size { identities: 1, roles: ROLES_OF_LOAD };
/// 100,000 rules in 10,000 roles.
pub const LARGE: Size = Size { identities: 10_000, roles: 10_000 };

/// What differs between one ringfence and another.
pub struct Plan {
    pub mode: &'static str,
    /// Tables below `[audit]`.
    pub more: String,
    pub size: Size,
    pub plain: bool,
    /// Lines of `[audit.rotate]`.
    pub rotate: &'static str,
}

impl Plan {
    pub const BUFFERED: Self = Self {
        mode: "buffered",
        more: String::new(),
        size: SMALL,
        plain: false,
        rotate: "bytes = 0",
    };
}

pub fn start_unrecorded(setting: &Setting) -> Outcome<Started> {
    let more = "[[audit.level]]\nlevel = \"none\"".to_owned();
    let mut started = start(setting, &Plan { more, ..Plan::BUFFERED })?;
    started.audit = None;
    Ok(started)
}

/// With a key made for it.
pub fn start_sealed(setting: &Setting) -> Outcome<Started> {
    let key = setting.directory.join("log-key");
    let program = setting.programs.ringfence()?;
    let made = Command::new(&program).args(["audit", "keygen"]).arg(&key).output();
    let made = made.map_err(|error| format!("{}: {error}", program.display()))?;
    if !made.status.success() {
        return Err(format!("audit keygen: {}", String::from_utf8_lossy(&made.stderr)));
    }
    let more = format!("[audit.checkpoint]\nkey = {key:?}\nseconds = 1");
    start(setting, &Plan { mode: "blocking", more, ..Plan::BUFFERED })
}

pub fn start(setting: &Setting, plan: &Plan) -> Outcome<Started> {
    let configured = configure(setting, plan)?;
    let mut command = tied(&setting.programs.ringfence()?);
    // Rules are recorded with the name of their file as it was given, so it is one of usual length.
    command.current_dir(&setting.directory).args(["serve", "--config", CONFIG]);
    let process =
        Running::start("ringfence", &mut command, &setting.directory.join("ringfence.log"))?;
    Ok(Started {
        address: configured.address,
        process: Some(process),
        audit: Some(configured.audit),
        admin: Some(configured.admin),
    })
}

/// The files of one ringfence, and where it will listen.
pub struct Configured {
    pub config: PathBuf,
    address: String,
    audit: PathBuf,
    admin: String,
}

pub fn configure(setting: &Setting, plan: &Plan) -> Outcome<Configured> {
    let (address, admin) = (free_address()?, free_address()?);
    let audit = setting.directory.join("audit");
    let created = DirBuilder::new().mode(0o700).create(&audit);
    created.map_err(|error| format!("{}: {error}", audit.display()))?;
    let policy = setting.directory.join("policy.toml");
    pki::write(&policy, &policy_text(plan.size), 0o600)?;
    let upstream = match plan.plain {
        true => format!("endpoints = [{:?}]", format!("http://{}", setting.upstream)),
        false => format!(
            "endpoints = [{:?}]\nca = {:?}\ncertificate = {:?}\nkey = {:?}",
            format!("https://{}", setting.upstream),
            setting.pki.join("ca.crt"),
            setting.pki.join("proxy.crt"),
            setting.pki.join("proxy.key"),
        ),
    };
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
{upstream}
[audit]
mode = {mode:?}
directory = {audit:?}
[audit.rotate]
{rotate}
{more}
[admin]
listen = {admin:?}
[policy]
files = [\"policy.toml\"]
[limits]
# All of the load is one principal from one address, and its streams are what is counted.
connections_per_source = {CONNECTIONS_MAX}
calls_per_principal = 16384
streams_per_principal = 16384
request_bytes_per_principal = 134217728
",
        cores = setting.threads,
        certificate = setting.pki.join("server.crt"),
        key = setting.pki.join("server.key"),
        ca = setting.pki.join("ca.crt"),
        mode = plan.mode,
        more = plan.more,
        rotate = plan.rotate,
    );
    let config = setting.directory.join(CONFIG);
    pki::write(&config, &text, 0o600)?;
    Ok(Configured { config, address, audit, admin })
}

/// Exactly one rule covers the load's keys, away from both ends of every list; every other is of the same shape.
pub fn policy_text(size: Size) -> String {
    let covering = ROLES_OF_LOAD * 57 / 100;
    let mut text = String::new();
    for identity in 0..size.identities {
        let name = identity_name(identity);
        let own = if identity == 0 { 0..ROLES_OF_LOAD } else { identity..identity + 1 };
        let roles: Vec<String> = own.map(|role| format!("\"role-{role}\"")).collect();
        writeln!(
            text,
            "[[identity]]\nname = \"{name}\"\nmatch = {{ ca = \"bench\", cn = \"{name}\" }}\nroles = [{}]\n",
            roles.join(", ")
        )
        .unwrap();
    }
    for role in 0..size.roles {
        writeln!(text, "[[role]]\nname = \"role-{role}\"\nrules = [").unwrap();
        for rule in 0..RULES_PER_ROLE {
            let prefix = match (role, rule) {
                (role, 5) if role == covering => "/bench/".to_owned(),
                _ => format!("/bench-role-{role}/{rule}/"),
            };
            writeln!(
                text,
                "  {{ prefix = \"{prefix}\", allow = [\"get\", \"list\", \"watch\", \"put\", \"delete\"] }},"
            )
            .unwrap();
        }
        text.push_str("]\n");
    }
    text
}

/// The common name that an identity's certificate has, too.
pub fn identity_name(identity: usize) -> String {
    match identity {
        0 => "bench-client".to_owned(),
        other => format!("tenant-{other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(size: Size, identities: usize, roles: usize) {
        let text = policy_text(size);
        assert_eq!(text.matches("[[identity]]").count(), identities);
        assert_eq!(text.matches("[[role]]").count(), roles);
        assert_eq!(text.matches("prefix = ").count(), roles * RULES_PER_ROLE);
        assert_eq!(text.matches("prefix = \"/bench/\"").count(), 1);
    }

    #[test]
    fn the_policies_have_the_sizes_they_are_said_to_have_and_one_rule_covers_the_load() {
        check(SMALL, 1, 100);
        check(LARGE, 10_000, 10_000);
    }
}
