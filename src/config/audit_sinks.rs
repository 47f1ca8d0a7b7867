//! `[[audit.sink]]`: where else lines of the audit log go.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderValue;
use http::uri::{Authority, PathAndQuery};
use rustls::pki_types::ServerName;

use super::files;
use super::raw_audit::{RawSink, TO};
use super::resolve::Loader;
use crate::document::Located;
use crate::sink::{Config, Facility, Lines, OtlpConfig, SyslogAddress, SyslogConfig, To};
use crate::tls::material::Purpose;
use crate::tls::{Connector, material};

/// The longest path of a socket of Linux (unix(7): 108 bytes with the one that ends it).
const SOCKET_PATH_BYTES_MAX: usize = 107;
const NAME_BYTES_MAX: usize = 32;
/// The sink that `audit.checkpoint.witness` makes.
const WITNESS: &str = "witness";
/// How long a write to its file may take before it counts as failed.
const WITNESS_DEADLINE: Duration = Duration::from_secs(10);
/// Lines that may wait for it: thousands of checkpoints.
const WITNESS_QUEUE_BYTES: usize = 4 << 20;

/// First records and checkpoints in a file.
pub(super) fn witness(path: PathBuf) -> Config {
    Config {
        name: WITNESS.into(),
        required: false,
        deadline: WITNESS_DEADLINE,
        queue_bytes: WITNESS_QUEUE_BYTES,
        line_bytes: usize::MAX,
        lines: Lines::Checkpoints,
        to: To::File(path),
    }
}

/// What `to` says, before files are opened.
enum Target {
    Stdout,
    Unix(PathBuf),
    Tcp(Authority),
    Tls(Authority, ServerName<'static>),
    Otlp { authority: Authority, path: String, tls: Option<ServerName<'static>> },
}

impl Target {
    /// What is wrong otherwise. The text itself is not said: it may hold a password.
    fn parse(text: &str) -> Result<Self, &'static str> {
        if text == "stdout" {
            return Ok(Self::Stdout);
        }
        let (scheme, rest) = text.split_once("://").ok_or("it has no `://`")?;
        if scheme == "syslog+unix" {
            let path = PathBuf::from(rest);
            return if !path.is_absolute() {
                Err("its path is not absolute")
            } else if rest.len() > SOCKET_PATH_BYTES_MAX {
                Err("its path has more than the 107 bytes of a socket")
            } else {
                Ok(Self::Unix(path))
            };
        }
        if !["syslog+tcp", "syslog+tls", "otlp+https", "otlp+http"].contains(&scheme) {
            return Err("there is no such kind");
        }
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at_checked(slash).unwrap_or((rest, "")),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return Err("it holds a user or a password; `authorization` names a file");
        }
        let authority: Authority = authority.parse().map_err(|_| "it has no valid HOST:PORT")?;
        if authority.port_u16().is_none_or(|port| port == 0) {
            return Err("it has no valid port");
        }
        let name = ServerName::try_from(host(&authority).to_owned());
        let name = name.map_err(|_| "it has no valid host")?;
        match (scheme, path) {
            ("syslog+tcp", "") => Ok(Self::Tcp(authority)),
            ("syslog+tls", "") => Ok(Self::Tls(authority, name)),
            ("syslog+tcp" | "syslog+tls", _) => Err("there is no path in syslog"),
            ("otlp+https" | "otlp+http", "" | "/") => Err("its path is missing, usually /v1/logs"),
            ("otlp+https" | "otlp+http", path) => {
                let path: PathAndQuery = path.parse().map_err(|_| "its path is none")?;
                let tls = (scheme == "otlp+https").then_some(name);
                Ok(Self::Otlp { authority, path: path.to_string(), tls })
            }
            _ => Err("there is no such kind"),
        }
    }

    const fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(..) | Self::Otlp { tls: Some(_), .. })
    }

    /// Who can read along, and change what is said, if anybody.
    fn plain_text_to(&self) -> Option<&Authority> {
        let (Self::Tcp(authority) | Self::Otlp { authority, tls: None, .. }) = self else {
            return None;
        };
        let host = host(authority);
        let is_loopback = host == "localhost"
            || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        (!is_loopback).then_some(authority)
    }
}

fn host(authority: &Authority) -> &str {
    authority.host().trim_start_matches('[').trim_end_matches(']')
}

impl Loader<'_> {
    /// `seals` says whether there are checkpoints; a witness makes a sink of its own.
    pub(super) fn sinks(
        &self,
        raw: &[RawSink],
        seals: bool,
        witness: Option<&Located<String>>,
    ) -> Vec<Config> {
        let mut names: Vec<&Located<String>> = Vec::new();
        for name in raw.iter().filter_map(|sink| sink.name.as_ref()) {
            let may_be =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            let plain = !name.value.is_empty() && name.value.bytes().all(may_be);
            if !plain || name.value.len() > NAME_BYTES_MAX {
                let what = format!("`{}` is no name of a sink", name.value);
                self.problems.error(&name.location, what, "1 to 32 of a-z 0-9 -");
            }
            if let Some(witness) = witness.filter(|_| name.value == WITNESS) {
                let what = format!("there are two sinks `{WITNESS}`");
                let hint = format!(
                    "`audit.checkpoint.witness` at {} makes one: this one needs another name",
                    witness.location
                );
                self.problems.error(&name.location, what, hint);
            }
            if let Some(first) = names.iter().find(|known| known.value == name.value) {
                let what = format!("there are two sinks `{}`", name.value);
                let hint =
                    format!("the other one is at {}; each has a name of its own", first.location);
                self.problems.error(&name.location, what, hint);
            }
            names.push(name);
        }
        if let Some(second) = raw.iter().filter(is_stdout).nth(1) {
            let what = "there are two sinks to standard output";
            self.problems.error(&second.location, what, "their lines would mix");
        }
        raw.iter().filter_map(|sink| self.sink(sink, seals)).collect()
    }

    fn sink(&self, raw: &RawSink, seals: bool) -> Option<Config> {
        let lines = self.lines(raw.lines.as_ref(), seals);
        let connector = self.sink_connector(raw);
        let authorization = raw.authorization.as_ref().and_then(|file| self.authorization(file));
        let facility = self.facility(raw.facility.as_ref());
        let to = raw.to.as_ref()?;
        let target = match Target::parse(&to.value) {
            Ok(target) => target,
            Err(why) => {
                let what = format!("`audit.sink.to` is no sink: {why}");
                self.problems.error(&to.location, what, TO);
                return None;
            }
        };
        self.check_settings_of(raw, &target);
        let to = match target {
            Target::Stdout => To::Stdout,
            Target::Unix(path) => syslog(SyslogAddress::Unix(path), facility),
            Target::Tcp(authority) => syslog(SyslogAddress::Tcp(authority), facility),
            Target::Tls(authority, name) => {
                syslog(SyslogAddress::Tls { authority, name, connector: connector? }, facility)
            }
            Target::Otlp { authority, path, tls } => {
                let tls = match tls {
                    None => None,
                    Some(name) => Some((name, connector?)),
                };
                To::Otlp(OtlpConfig { authority, path, tls, authorization })
            }
        };
        let size = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        Some(Config {
            name: raw.name.as_ref()?.value.as_str().into(),
            required: raw.required,
            deadline: Duration::from_secs(raw.deadline_seconds),
            queue_bytes: size(raw.queue_bytes),
            // Whoever reads a pipe gets what the file has, unless the config says otherwise.
            line_bytes: match to {
                To::Stdout if raw.line_bytes_at.is_none() => usize::MAX,
                To::Stdout | To::File(_) | To::Syslog(_) | To::Otlp(_) => size(raw.line_bytes),
            },
            lines,
            to,
        })
    }

    fn lines(&self, text: Option<&Located<String>>, seals: bool) -> Lines {
        match text.map(|text| (text.value.as_str(), &text.location)) {
            None | Some(("all", _)) => Lines::All,
            Some(("checkpoints", at)) => {
                if !seals {
                    let what = "there are no checkpoints: `audit.checkpoint` is missing";
                    self.problems.error(at, what, "[audit.checkpoint] with a `key`");
                }
                Lines::Checkpoints
            }
            Some((other, at)) => {
                let what = format!("`audit.sink.lines` is `{other}`");
                self.problems.error(at, what, "`all` (the default) or `checkpoints`");
                Lines::All
            }
        }
    }

    fn facility(&self, text: Option<&Located<String>>) -> Facility {
        let Some(text) = text else { return Facility::AUTHPRIV };
        Facility::from_name(&text.value).unwrap_or_else(|| {
            let what = format!("`{}` is no facility", text.value);
            let hint = "auth, authpriv (the default), audit, local0 to local7";
            self.problems.error(&text.location, what, hint);
            Facility::AUTHPRIV
        })
    }

    /// What is said to whom it means nothing, and what is missing where it is needed.
    fn check_settings_of(&self, raw: &RawSink, target: &Target) {
        let is_syslog = matches!(target, Target::Unix(_) | Target::Tcp(_) | Target::Tls(..));
        let is_otlp = matches!(target, Target::Otlp { .. });
        let at = |text: &Option<Located<String>>| text.as_ref().map(|text| text.location.clone());
        for (setting, key, means_something) in [
            (at(&raw.facility), "facility", is_syslog),
            (at(&raw.authorization), "authorization", is_otlp),
            (at(&raw.ca), "ca", target.is_tls()),
            (at(&raw.certificate), "certificate", target.is_tls()),
            (at(&raw.key), "key", target.is_tls()),
            (raw.queue_bytes_at.clone(), "queue_bytes", !raw.required),
        ] {
            if let Some(location) = setting.filter(|_| !means_something) {
                let what = format!("`audit.sink.{key}` counts for nothing here");
                let hint = "take it out: docs/audit-format.md says which sinks have it";
                self.problems.error(&location, what, hint);
            }
        }
        if target.is_tls() && raw.ca.is_none() {
            let what = "`audit.sink.ca` is missing";
            let hint = "ca = \"FILE\": without it nobody could tell the collector from an impostor";
            self.problems.error(&raw.location, what, hint);
        }
        let Some((authority, to)) = target.plain_text_to().zip(raw.to.as_ref()) else { return };
        if let Some(authorization) = &raw.authorization {
            let what = format!("the secret would go to `{authority}` in plain text");
            self.problems.error(&authorization.location, what, "otlp+https");
        }
        let what = format!("records go to `{authority}` in plain text");
        let hint = "whatever is on the way can read and change them: syslog+tls or otlp+https";
        self.problems.warning(&to.location, what, hint);
    }

    fn sink_connector(&self, raw: &RawSink) -> Option<Connector> {
        let pair = match (&raw.certificate, &raw.key) {
            (None, None) => Some(None),
            (Some(certificate), Some(key)) => {
                self.key_pair(Some(certificate), Some(key), Purpose::Client).map(Some)
            }
            (Some(one), None) | (None, Some(one)) => {
                let what = "`audit.sink.certificate` and `audit.sink.key` belong together";
                self.problems.error(&one.location, what, "give both, or neither");
                None
            }
        };
        let ca = raw.ca.as_ref()?;
        let roots = material::roots(&self.folder.join(&ca.value));
        let roots = roots
            .map_err(|error| self.problems.error(&ca.location, error.to_string(), error.hint()))
            .ok()?;
        let connector = Connector::new(roots, pair?.as_ref());
        let connector =
            connector.map_err(|error| self.problems.error(&ca.location, error.to_string(), ""));
        connector.ok().map(|connector| connector.without_protocols())
    }

    /// What a file says is shown to nobody but the collector.
    fn authorization(&self, file: &Located<String>) -> Option<HeaderValue> {
        let path = self.folder.join(&file.value);
        self.check_secrecy(file, &path);
        let text = match files::read_text(&path) {
            Ok(text) => text,
            Err(error) => {
                let hint = "a file with one line, such as `Bearer TOKEN`";
                self.problems.error(&file.location, error.what, hint);
                return None;
            }
        };
        let value = HeaderValue::from_str(text.trim()).ok().filter(|value| !value.is_empty());
        let Some(mut value) = value else {
            let what = format!("`{}` holds no value of a header", file.value);
            self.problems.error(&file.location, what, "one line, such as `Bearer TOKEN`");
            return None;
        };
        value.set_sensitive(true);
        Some(value)
    }
}

fn is_stdout(raw: &&RawSink) -> bool {
    raw.to.as_ref().is_some_and(|to| to.value == "stdout")
}

fn syslog(address: SyslogAddress, facility: Facility) -> To {
    To::Syslog(SyslogConfig { address, facility })
}
