//! Where a member listens: https, http on loopback only, or a unix socket.

use std::net::IpAddr;
use std::path::PathBuf;

use http::uri::Authority;
use rustls::pki_types::ServerName;

/// One member's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// TLS, the server verified by this name.
    Https {
        /// `host:port`.
        authority: Authority,
        /// What the server's certificate must be for.
        name: ServerName<'static>,
    },
    /// Plain text; only to this machine.
    Http {
        /// `host:port`.
        authority: Authority,
    },
    /// A unix socket.
    Unix {
        /// Its path.
        path: PathBuf,
    },
}

/// Why a text is no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Another scheme, or none.
    #[error("is neither https://HOST:PORT, http://LOOPBACK:PORT nor unix:///PATH")]
    Scheme,
    /// A host or port that cannot be.
    #[error("has no valid HOST:PORT")]
    Authority,
    /// Plain text across a network.
    #[error("is http to another machine; everything on the way could read and write all keys")]
    NotLoopback,
}

impl Endpoint {
    /// Reads an endpoint as it stands in a config.
    ///
    /// # Errors
    /// When it is not one that ringfence connects to.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        if let Some(path) = text.strip_prefix("unix://") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix { path })
            } else {
                Err(EndpointError::Scheme)
            };
        }
        let (scheme, authority) = text.split_once("://").ok_or(EndpointError::Scheme)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let authority: Authority = authority.parse().map_err(|_| EndpointError::Authority)?;
        if authority.port_u16().is_none() || authority.as_str().contains('@') {
            return Err(EndpointError::Authority);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        match scheme {
            "https" => {
                let name = ServerName::try_from(host.to_owned());
                let name = name.map_err(|_| EndpointError::Authority)?;
                Ok(Self::Https { authority, name })
            }
            "http" => {
                let loopback = host == "localhost"
                    || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
                if loopback {
                    Ok(Self::Http { authority })
                } else {
                    Err(EndpointError::NotLoopback)
                }
            }
            _ => Err(EndpointError::Scheme),
        }
    }

    /// What goes into `:authority`; etcd does not look at it.
    pub(super) fn authority(&self) -> &str {
        match self {
            Self::Https { authority, .. } | Self::Http { authority } => authority.as_str(),
            Self::Unix { .. } => "localhost",
        }
    }

    pub(super) const fn scheme(&self) -> &'static str {
        match self {
            Self::Https { .. } => "https",
            Self::Http { .. } | Self::Unix { .. } => "http",
        }
    }

    /// What to look at when it takes a connection and ends it.
    pub(super) const fn hint(&self) -> &'static str {
        match self {
            Self::Https { .. } => "does it accept `upstream.certificate`?",
            Self::Http { .. } | Self::Unix { .. } => "does it speak HTTP/2 without TLS?",
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Https { authority, .. } => write!(formatter, "https://{authority}"),
            Self::Http { authority } => write!(formatter, "http://{authority}"),
            Self::Unix { path } => write!(formatter, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&str, EndpointError>) {
        let endpoint = Endpoint::parse(text).map(|endpoint| endpoint.to_string());
        assert_eq!(endpoint, expected.map(str::to_owned), "{text}");
    }

    #[test]
    fn plain_text_stays_on_this_machine() {
        check("https://etcd.example:2379", Ok("https://etcd.example:2379"));
        check("https://10.0.0.1:2379/", Ok("https://10.0.0.1:2379"));
        check("https://[::1]:2379", Ok("https://[::1]:2379"));
        check("http://127.0.0.1:2379", Ok("http://127.0.0.1:2379"));
        check("http://[::1]:2379", Ok("http://[::1]:2379"));
        check("unix:///run/etcd.sock", Ok("unix:///run/etcd.sock"));
        check("http://10.0.0.1:2379", Err(EndpointError::NotLoopback));
        check("http://127.0.0.1.example:2379", Err(EndpointError::NotLoopback));
        check("https://etcd.example", Err(EndpointError::Authority));
        check("https://user@etcd.example:1", Err(EndpointError::Authority));
        check("unix://run/etcd.sock", Err(EndpointError::Scheme));
        check("etcd.example:2379", Err(EndpointError::Scheme));
        check("ftp://etcd.example:2379", Err(EndpointError::Scheme));
    }
}
