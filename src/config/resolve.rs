//! Raw -> resolved: files are opened, names are looked up, and every mistake is reported. Paths in
//! a config are relative to the folder it lies in.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::raw::{ADMIN_LISTEN, Raw, RawClient, RawLimits, RawUpstream};
use super::{Config, raw};
use crate::document::{Document, Located, Problem, Problems, Severity};
use crate::policy::{Policy, PolicySource};
use crate::proxy::Limits;
use crate::tls::{Authority, Connector, KeyPair, material};
use crate::upstream::Endpoint;
use crate::{audit, upstream};

/// The most bytes of a config or policy file that are read.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Reads the config, its policies, certificates and keys.
///
/// # Errors
/// Every mistake that was found, by file and line.
pub fn load(path: &Path) -> Result<Config, Vec<Problem>> {
    let problems = Problems::default();
    let loaded =
        Loader { folder: path.parent().unwrap_or_else(|| Path::new("")), problems: &problems };
    let config = loaded.load(path);
    match config {
        Some(mut config) if !problems.has_errors() => {
            config.warnings = problems.into_sorted();
            Ok(config)
        }
        Some(_) | None => {
            let mut problems = problems.into_sorted();
            problems.sort_by_key(|problem| problem.severity != Severity::Error);
            Err(problems)
        }
    }
}

struct Loader<'a> {
    folder: &'a Path,
    problems: &'a Problems,
}

impl Loader<'_> {
    fn load(&self, path: &Path) -> Option<Config> {
        let file = path.display().to_string();
        let text = match read_text(path) {
            Ok(text) => text,
            Err(what) => {
                let location = Document::new(&file, "").location();
                self.problems.error(&location, what, "");
                return None;
            }
        };
        let document = Document::new(&file, &text);
        let table = document.parse(self.problems);
        let raw = raw::read(document.root(&table, self.problems));
        self.resolve(&raw)
    }

    /// Everything is tried before anything is given up, so that one run tells all.
    fn resolve(&self, raw: &Raw) -> Option<Config> {
        let listen: Vec<SocketAddr> =
            raw.client.listen.iter().filter_map(|text| self.address(text)).collect();
        let certificate = self.key_pair(raw.client.certificate.as_ref(), raw.client.key.as_ref());
        let authorities = self.authorities(&raw.client);
        let names: Vec<&str> = raw
            .client
            .authorities
            .iter()
            .filter_map(|ca| ca.name.as_ref().map(|name| name.value.as_str()))
            .collect();
        let policy = self.policy(&raw.policy_files, &names);
        let upstream = self.upstream(&raw.upstream);
        let admin_listen = match &raw.admin_listen {
            Some(text) => self.address(text),
            None => ADMIN_LISTEN.parse().ok(),
        };
        let directory = raw.audit.directory.as_ref().map(|text| self.folder.join(&text.value));
        let audit = directory.map(|directory| audit::Config {
            directory,
            mode: raw.audit.mode,
            queue_bytes: u32::try_from(raw.audit.queue_bytes).unwrap_or(u32::MAX),
            wait: Duration::from_secs(raw.audit.wait_seconds),
        });
        let limits = limits(&raw.limits);
        if limits.request_bytes_per_principal < limits.request_bytes + 5 {
            let what = "`limits.request_bytes_per_principal` is smaller than one request may be";
            let location = raw.client.listen.first().map(|text| text.location.clone())?;
            self.problems.error(&location, what, "raise it, or lower `limits.request_bytes`");
        }
        Some(Config {
            listen,
            certificate: certificate?,
            authorities,
            upstream: upstream?,
            audit: audit?,
            admin_listen: admin_listen?,
            policy,
            limits,
            cores: cores(raw.cores),
            warnings: Vec::new(),
        })
    }

    fn address(&self, text: &Located<String>) -> Option<SocketAddr> {
        let address = text.value.parse().ok();
        if address.is_none() {
            let what = format!("`{}` is no IP address with a port", text.value);
            self.problems.error(&text.location, what, "for example 0.0.0.0:2379 or [::]:2379");
        }
        address
    }

    fn key_pair(
        &self,
        certificate: Option<&Located<String>>,
        key: Option<&Located<String>>,
    ) -> Option<KeyPair> {
        let (certificate, key) = (certificate?, key?);
        let paths = (self.folder.join(&certificate.value), self.folder.join(&key.value));
        let pair = material::key_pair(&paths.0, &paths.1);
        pair.map_err(|error| self.problems.error(&certificate.location, error.to_string(), "")).ok()
    }

    fn authorities(&self, client: &RawClient) -> Vec<Authority> {
        let mut authorities: Vec<Authority> = Vec::new();
        for raw in &client.authorities {
            let (Some(name), Some(roots)) = (&raw.name, &raw.roots) else {
                continue;
            };
            if authorities.iter().any(|other| *other.name == name.value) {
                let what = format!("the CA `{}` is there twice", name.value);
                self.problems.error(
                    &name.location,
                    what,
                    "rename one, or put both roots into one file",
                );
            }
            match material::roots(&self.folder.join(&roots.value)) {
                Ok(roots) => {
                    authorities.push(Authority { name: name.value.as_str().into(), roots })
                }
                Err(error) => self.problems.error(&roots.location, error.to_string(), ""),
            }
        }
        authorities
    }

    fn upstream(&self, raw: &RawUpstream) -> Option<upstream::Config> {
        let mut endpoints = Vec::new();
        for text in &raw.endpoints {
            match Endpoint::parse(&text.value) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(error) => {
                    let what = format!("`{}` {error}", text.value);
                    self.problems.error(&text.location, what, "");
                }
            }
        }
        let https = endpoints.iter().any(|endpoint| matches!(endpoint, Endpoint::Https { .. }));
        let mut connector = None;
        if https {
            connector = self.connector(raw);
        }
        let usable = !endpoints.is_empty() && (!https || connector.is_some());
        usable.then(|| upstream::Config {
            endpoints,
            connector,
            connect_timeout: Duration::from_secs(raw.connect_timeout_seconds),
            connections: number(raw.connections_per_core),
            streams_per_connection: u32::try_from(raw.calls_per_connection).unwrap_or(u32::MAX),
        })
    }

    fn connector(&self, raw: &RawUpstream) -> Option<Connector> {
        let location = raw.endpoints.first().map(|endpoint| endpoint.location.clone())?;
        let Some(ca) = &raw.ca else {
            let hint = "ca = \"FILE\": without it nobody could tell etcd from an impostor";
            self.problems.error(
                &location,
                "`upstream.ca` is missing, and an endpoint is https",
                hint,
            );
            return None;
        };
        let roots = material::roots(&self.folder.join(&ca.value));
        let roots =
            roots.map_err(|error| self.problems.error(&ca.location, error.to_string(), "")).ok();
        let pair = match (&raw.certificate, &raw.key) {
            (None, None) => None,
            (Some(_), Some(_)) => Some(self.key_pair(raw.certificate.as_ref(), raw.key.as_ref())?),
            (Some(one), None) | (None, Some(one)) => {
                let what = "`upstream.certificate` and `upstream.key` belong together";
                self.problems.error(&one.location, what, "give both, or neither");
                return None;
            }
        };
        let connector = Connector::new(roots?, pair.as_ref());
        connector.map_err(|error| self.problems.error(&location, error.to_string(), "")).ok()
    }

    fn policy(&self, files: &[Located<String>], authorities: &[&str]) -> Policy {
        let mut source = PolicySource::default();
        for pattern in files {
            let mut found = self.matching(pattern);
            found.sort();
            if found.is_empty() {
                let what = format!("`{}` matches no file", pattern.value);
                self.problems.error(
                    &pattern.location,
                    what,
                    "a policy file, or a pattern such as policy.d/*.toml",
                );
            }
            for path in found {
                match read_text(&path) {
                    Ok(text) => source.read(&path.display().to_string(), &text, self.problems),
                    Err(what) => self.problems.error(&pattern.location, what, ""),
                }
            }
        }
        Policy::compile(source, authorities, self.problems)
    }

    fn matching(&self, pattern: &Located<String>) -> Vec<PathBuf> {
        let joined = self.folder.join(&pattern.value);
        match glob::glob(&joined.to_string_lossy()) {
            Ok(paths) => paths.filter_map(Result::ok).collect(),
            Err(error) => {
                let what = format!("`{}` is no file pattern: {error}", pattern.value);
                self.problems.error(&pattern.location, what, "");
                Vec::new()
            }
        }
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    let fault = |error: std::io::Error| format!("cannot read `{}`: {error}", path.display());
    if std::fs::metadata(path).map_err(fault)?.len() > FILE_BYTES_MAX {
        return Err(format!("`{}` is larger than {FILE_BYTES_MAX} bytes", path.display()));
    }
    std::fs::read_to_string(path).map_err(fault)
}

fn limits(raw: &RawLimits) -> Limits {
    let small = |value| u32::try_from(value).unwrap_or(u32::MAX);
    Limits {
        connections: number(raw.connections),
        pending_handshakes: number(raw.pending_handshakes),
        handshake_timeout: Duration::from_secs(raw.handshake_timeout_seconds),
        streams_per_connection: small(raw.streams_per_connection),
        header_list_bytes: small(raw.header_list_bytes),
        request_bytes: number(raw.request_bytes),
        calls_per_principal: small(raw.calls_per_principal),
        request_bytes_per_principal: number(raw.request_bytes_per_principal),
        call_timeout: Duration::from_secs(raw.call_timeout_seconds),
        drain_timeout: Duration::from_secs(raw.drain_timeout_seconds),
    }
}

fn number(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// 0 is one thread per core of the machine.
fn cores(asked: u64) -> usize {
    match asked {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        asked => number(asked),
    }
}
