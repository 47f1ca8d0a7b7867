//! Syslog by RFC 5424: over a unix datagram socket, over TCP with octet counting (RFC 6587, 3.4.1), and over TLS
//! (RFC 5425). Nobody acknowledges: what has been handed to the socket counts as taken.

use std::io::Write as _;
use std::path::PathBuf;

use http::uri::Authority;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixDatagram};

use super::line::{Severity, host_name};
use super::worker::Fault;
use crate::chain::head;
use crate::tls::Connector;

/// EMSGSIZE of Linux.
const MESSAGE_TOO_LONG: i32 = 90;
/// The longest host name in a message (RFC 5424, 6).
const HOST_BYTES_MAX: usize = 255;

/// Where a syslog daemon listens, and how messages look.
#[derive(Clone, Debug)]
pub struct SyslogConfig {
    /// Where.
    pub address: SyslogAddress,
    /// Of which facility messages are.
    pub facility: Facility,
}

/// Where a syslog daemon listens.
#[derive(Clone, Debug)]
pub enum SyslogAddress {
    /// A unix datagram socket, such as `/dev/log`.
    Unix(PathBuf),
    /// TCP, in plain text.
    Tcp(Authority),
    /// TLS; the server is verified by this name.
    Tls {
        /// Host and port.
        authority: Authority,
        /// The name.
        name: ServerName<'static>,
        /// What verifies it, and what we show.
        connector: Connector,
    },
}

/// A facility of syslog (RFC 5424, 6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facility(u8);

impl Facility {
    /// Private security messages.
    pub const AUTHPRIV: Self = Self(10);

    /// The facility of that name: `auth`, `authpriv`, `audit`, `local0` to `local7`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(Self(match name {
            "auth" => 4,
            "authpriv" => 10,
            "audit" => 13,
            _ => {
                let number: u8 = name.strip_prefix("local")?.parse().ok()?;
                16 + (number <= 7 && name.len() == 6).then_some(number)?
            }
        }))
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

enum Connection {
    Datagram(UnixDatagram),
    Stream(Box<dyn Stream>),
}

pub(super) struct Syslog {
    config: SyslogConfig,
    host: String,
    connection: Option<Connection>,
}

impl Syslog {
    pub(super) fn new(config: &SyslogConfig) -> Self {
        let name = host_name();
        let host = name.chars().filter(char::is_ascii_graphic).take(HOST_BYTES_MAX).collect();
        Self { config: config.clone(), host, connection: None }
    }

    /// The most bytes of a message before the line.
    pub(super) const fn head_bytes(&self) -> usize {
        const ALL_BUT_HOST: usize = 96;
        ALL_BUT_HOST + self.host.len()
    }

    pub(super) fn reset(&mut self) {
        self.connection = None;
    }

    pub(super) async fn send(&mut self, lines: &[&[u8]]) -> Result<(), Fault> {
        // A daemon that was restarted shows only when it is listened to; a write would vanish.
        if let Some(Connection::Stream(stream)) = &mut self.connection
            && has_ended(stream).await
        {
            self.connection = None;
        }
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        match &mut connection {
            Connection::Datagram(socket) => {
                for line in lines {
                    let sent = socket.send(&self.message(line)).await;
                    sent.map_err(|error| self.fault(&error))?;
                }
            }
            Connection::Stream(stream) => {
                let mut bytes = Vec::new();
                for line in lines {
                    let message = self.message(line);
                    drop(write!(bytes, "{} ", message.len()));
                    bytes.extend_from_slice(&message);
                }
                stream.write_all(&bytes).await.map_err(|error| self.fault(&error))?;
                stream.flush().await.map_err(|error| self.fault(&error))?;
            }
        }
        self.connection = Some(connection);
        Ok(())
    }

    async fn connect(&self) -> Result<Connection, Fault> {
        let connected = match &self.config.address {
            SyslogAddress::Unix(path) => UnixDatagram::unbound().and_then(|socket| {
                socket.connect(path)?;
                Ok(Connection::Datagram(socket))
            }),
            SyslogAddress::Tcp(authority) => TcpStream::connect(authority.as_str())
                .await
                .map(|stream| Connection::Stream(Box::new(stream))),
            SyslogAddress::Tls { authority, name, connector } => {
                match TcpStream::connect(authority.as_str()).await {
                    Ok(stream) => connector
                        .connect(name.clone(), stream)
                        .await
                        .map(|stream| Connection::Stream(Box::new(stream))),
                    Err(error) => Err(error),
                }
            }
        };
        connected.map_err(|error| self.fault(&error))
    }

    fn fault(&self, error: &std::io::Error) -> Fault {
        let text = match &self.config.address {
            SyslogAddress::Unix(path) => format!("unix://{}: {error}", path.display()),
            SyslogAddress::Tcp(authority) => format!("tcp://{authority}: {error}"),
            SyslogAddress::Tls { authority, .. } => format!("tls://{authority}: {error}"),
        };
        // A datagram that is too large would be so at every try.
        match error.raw_os_error() {
            Some(MESSAGE_TOO_LONG) => Fault::Refused(text),
            _ => Fault::Away(text),
        }
    }

    /// `<PRI>1 TIMESTAMP HOSTNAME APP-NAME PROCID MSGID STRUCTURED-DATA MSG`
    fn message(&self, line: &[u8]) -> Vec<u8> {
        let severity = match Severity::of(line) {
            Severity::Error => 3,
            Severity::Warning => 4,
            Severity::Informational => 6,
        };
        let (time, kind) = head(line).map_or(("-", "-"), |head| (head.time, head.kind));
        let host = if self.host.is_empty() { "-" } else { &self.host };
        let priority = u16::from(self.config.facility.0) * 8 + severity;
        let process = std::process::id();
        let mut message =
            format!("<{priority}>1 {time} {host} ringfence {process} {kind} - ").into_bytes();
        message.extend_from_slice(line);
        message
    }
}

/// Whether the other side has closed. What it says is thrown away: syslog has no answers.
async fn has_ended(stream: &mut Box<dyn Stream>) -> bool {
    let mut said = [0; 256];
    loop {
        let reading = tokio::time::timeout(std::time::Duration::ZERO, stream.read(&mut said));
        match reading.await {
            Err(_) => return false,
            Ok(Ok(0) | Err(_)) => return true,
            Ok(Ok(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syslog(facility: &str) -> Syslog {
        let address = SyslogAddress::Unix(PathBuf::from("/dev/log"));
        let facility = Facility::from_name(facility).unwrap();
        let mut syslog = Syslog::new(&SyslogConfig { address, facility });
        "etcd-0".clone_into(&mut syslog.host);
        syslog
    }

    fn check(facility: &str, line: &str, expected: &str) {
        let message = String::from_utf8(syslog(facility).message(line.as_bytes())).unwrap();
        let process = std::process::id().to_string();
        assert_eq!(message, format!("{}{line}", expected.replace("PROCESS", &process)));
        assert!(message.len() - line.len() <= syslog(facility).head_bytes());
    }

    #[test]
    fn a_message_is_of_rfc_5424() {
        let time = "2027-01-15T08:00:00.000001Z";
        let line = |kind: &str, more: &str| {
            format!(
                "{{\"v\":1,\"seq\":7,\"time\":\"{time}\",\"type\":\"{kind}\"{more},\"prev\":\"00\"}}"
            )
        };
        let head = |priority: u16, kind: &str| {
            format!("<{priority}>1 {time} etcd-0 ringfence PROCESS {kind} - ")
        };
        let allowed = line("decision", ",\"verdict\":\"allow\"");
        check("authpriv", &allowed, &head(86, "decision"));
        check("local7", &line("decision", ",\"verdict\":\"deny\""), &head(188, "decision"));
        check("audit", &line("audit.gap", ""), &head(107, "audit.gap"));
        // The attack: a denied key that reads like a verdict.
        let denied =
            line("decision", ",\"verdict\":\"deny\",\"key\":\"\\\"verdict\\\":\\\"allow\\\"\"");
        check("auth", &denied, &head(36, "decision"));
    }

    #[test]
    fn a_facility_has_a_name() {
        assert_eq!(Facility::from_name("local0"), Some(Facility(16)));
        for odd in ["", "local", "local8", "local07", "kern", "LOCAL0"] {
            assert_eq!(Facility::from_name(odd), None, "{odd}");
        }
    }
}
