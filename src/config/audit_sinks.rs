//! `[[audit.sink]]`: where else lines of the audit log go.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderValue;
use http::uri::{Authority, PathAndQuery};
use rustls::pki_types::ServerName;

use super::files;
use super::raw_audit::RawSink;
use super::resolve::Loader;
use crate::document::Located;
use crate::sink::{Config, Facility, Lines, OtlpConfig, SyslogAddress, SyslogConfig, To};
use crate::tls::material::Purpose;
use crate::tls::{Connector, material};

const FORMS: &str = "stdout, syslog+unix:///dev/log, syslog+tcp://HOST:PORT, \
    syslog+tls://HOST:PORT, otlp+https://HOST:PORT/v1/logs, otlp+http://LOOPBACK:PORT/v1/logs";
const NAME_BYTES_MAX: usize = 32;

/// What `to` says, before files are opened.
enum Target {
    Stdout,
    Unix(PathBuf),
    Tcp(Authority),
    Tls(Authority, ServerName<'static>),
    Otlp { authority: Authority, path: String, tls: Option<ServerName<'static>> },
}

impl Target {
    fn parse(text: &str) -> Option<Self> {
        if text == "stdout" {
            return Some(Self::Stdout);
        }
        let (scheme, rest) = text.split_once("://")?;
        if scheme == "syslog+unix" {
            return Some(PathBuf::from(rest)).filter(|path| path.is_absolute()).map(Self::Unix);
        }
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at_checked(slash)?,
            None => (rest, ""),
        };
        let authority: Authority = authority.parse().ok()?;
        if authority.port_u16().is_none() || authority.as_str().contains('@') {
            return None;
        }
        let name = ServerName::try_from(host(&authority).to_owned()).ok()?;
        match (scheme, path) {
            ("syslog+tcp", "") => Some(Self::Tcp(authority)),
            ("syslog+tls", "") => Some(Self::Tls(authority, name)),
            ("otlp+https" | "otlp+http", path) => {
                let path: PathAndQuery = path.parse().ok().filter(|_| !path.is_empty())?;
                let tls = (scheme == "otlp+https").then_some(name);
                Some(Self::Otlp { authority, path: path.to_string(), tls })
            }
            _ => None,
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
    pub(super) fn sinks(&self, raw: &[RawSink]) -> Vec<Config> {
        let mut names: Vec<&str> = Vec::new();
        for name in raw.iter().filter_map(|sink| sink.name.as_ref()) {
            let may_be =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            let plain = !name.value.is_empty() && name.value.bytes().all(may_be);
            if !plain || name.value.len() > NAME_BYTES_MAX {
                let what = format!("`{}` is no name of a sink", name.value);
                self.problems.error(&name.location, what, "1 to 32 of a-z 0-9 -");
            }
            if names.contains(&name.value.as_str()) {
                let what = format!("there are two sinks `{}`", name.value);
                self.problems.error(&name.location, what, "each has a name of its own");
            }
            names.push(&name.value);
        }
        if let Some(second) = raw.iter().filter(is_stdout).nth(1) {
            let what = "there are two sinks to standard output";
            self.problems.error(&second.location, what, "their lines would mix");
        }
        raw.iter().filter_map(|sink| self.sink(sink)).collect()
    }

    fn sink(&self, raw: &RawSink) -> Option<Config> {
        let required = self.one_of(raw.required.as_ref(), "required", ["no", "yes"]) == 1;
        let lines = self.one_of(raw.lines.as_ref(), "lines", ["all", "checkpoints"]);
        let lines = if lines == 1 { Lines::Checkpoints } else { Lines::All };
        let connector = self.sink_connector(raw);
        let authorization = raw.authorization.as_ref().and_then(|file| self.authorization(file));
        let facility = self.facility(raw.facility.as_ref());
        let to = raw.to.as_ref()?;
        let Some(target) = Target::parse(&to.value) else {
            self.problems.error(&to.location, format!("`{}` is no sink", to.value), FORMS);
            return None;
        };
        self.check_settings_of(raw, &target, required);
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
        Some(Config {
            name: raw.name.as_ref()?.value.as_str().into(),
            required,
            deadline: Duration::from_secs(raw.deadline_seconds),
            queue_bytes: usize::try_from(raw.queue_bytes).unwrap_or(usize::MAX),
            lines,
            to,
        })
    }

    /// Which of two words; the first when it is left out.
    fn one_of(&self, text: Option<&Located<String>>, key: &str, words: [&str; 2]) -> usize {
        let Some(text) = text else { return 0 };
        words.iter().position(|word| *word == text.value).unwrap_or_else(|| {
            let [first, second] = words;
            let what = format!("`audit.sink.{key}` is `{}`", text.value);
            self.problems.error(
                &text.location,
                what,
                format!("`{first}` (the default) or `{second}`"),
            );
            0
        })
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
    fn check_settings_of(&self, raw: &RawSink, target: &Target, required: bool) {
        let is_syslog = matches!(target, Target::Unix(_) | Target::Tcp(_) | Target::Tls(..));
        let is_otlp = matches!(target, Target::Otlp { .. });
        for (setting, key, means_something) in [
            (&raw.facility, "facility", is_syslog),
            (&raw.authorization, "authorization", is_otlp),
            (&raw.ca, "ca", target.is_tls()),
            (&raw.certificate, "certificate", target.is_tls()),
            (&raw.key, "key", target.is_tls()),
        ] {
            if let Some(setting) = setting.as_ref().filter(|_| !means_something) {
                let what = format!("`audit.sink.{key}` counts for nothing here");
                self.problems.error(&setting.location, what, "take it out, or change `to`");
            }
        }
        if target.is_tls() && raw.ca.is_none() {
            let what = "`audit.sink.ca` is missing";
            let hint = "ca = \"FILE\": without it nobody could tell the collector from an impostor";
            self.problems.error(&raw.location, what, hint);
        }
        if let (Target::Unix(_), true, Some(to)) = (target, required, &raw.to) {
            let what = "a unix datagram socket cannot be required";
            let hint =
                "a record that is too large for it would stop every call: syslog+tcp or syslog+tls";
            self.problems.error(&to.location, what, hint);
        }
        if let (Some(authority), Some(to)) = (target.plain_text_to(), &raw.to) {
            let what = format!("records go to `{authority}` in plain text");
            let hint = "whatever is on the way can read and change them: syslog+tls or otlp+https";
            self.problems.warning(&to.location, what, hint);
        }
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
        let text = match files::read_text(&self.folder.join(&file.value)) {
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
