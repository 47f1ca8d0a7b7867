//! Which request headers count, and which travel on: an allow-list. `token` and `authorization`
//! would override the certificate towards etcd, `grpcgateway-*` changes whom etcd sees; they and
//! everything else stay behind.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

/// What of a request's headers ringfence heeds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// `hasleader`: fail when the member has no leader.
    pub has_leader: bool,
    /// `client-api-version`, when it is one that etcd's clients have: etcd keeps a time series in its
    /// memory for each that it hears, so a tenant must not be able to invent more.
    pub client_api_version: Option<HeaderValue>,
    /// `grpc-timeout`.
    pub timeout: Option<Duration>,
}

/// Why headers are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// Not `application/grpc` or `application/grpc+proto`.
    #[error("ringfence: content-type is neither application/grpc nor application/grpc+proto")]
    ContentType,
    /// A compressed message would have to be expanded before it can be decided on.
    #[error("ringfence: grpc-encoding is not identity")]
    Encoding,
    /// `client-api-version` is not a version.
    #[error("ringfence: client-api-version is not 1 to 32 printable characters")]
    ApiVersion,
    /// `grpc-timeout` is not up to eight digits and a unit.
    #[error("ringfence: grpc-timeout is malformed")]
    Timeout,
}

const API_VERSION_BYTES_MAX: usize = 32;

impl Metadata {
    /// Reads the headers of a request. Of a header that comes twice the first counts.
    ///
    /// # Errors
    /// When a header that matters cannot be read without doubt.
    pub fn read(headers: &HeaderMap) -> Result<Self, MetadataError> {
        let Heeded { content_type, encoding, api_version, timeout, has_leader } =
            Heeded::of(headers);
        let content_type = content_type.map(HeaderValue::as_bytes);
        let media_type = content_type.and_then(|value| value.split(|byte| *byte == b';').next());
        match media_type.map(<[u8]>::trim_ascii) {
            Some(b"application/grpc" | b"application/grpc+proto") => {}
            _ => return Err(MetadataError::ContentType),
        }
        match encoding.map(HeaderValue::as_bytes) {
            None | Some(b"identity") => {}
            Some(_) => return Err(MetadataError::Encoding),
        }
        if let Some(version) = api_version {
            let printable = version.as_bytes().iter().all(u8::is_ascii_graphic);
            if !printable || !(1..=API_VERSION_BYTES_MAX).contains(&version.len()) {
                return Err(MetadataError::ApiVersion);
            }
        }
        let client_api_version = api_version.filter(|version| is_of_etcd(version)).cloned();
        let timeout = timeout.map(|value| parse_timeout(value.as_bytes())).transpose()?;
        let has_leader = has_leader.is_some_and(|value| value == "true");
        Ok(Self { has_leader, client_api_version, timeout })
    }

    /// Writes what travels on.
    pub fn write(&self, headers: &mut HeaderMap) {
        if self.has_leader {
            headers.insert(HeaderName::from_static("hasleader"), HeaderValue::from_static("true"));
        }
        if let Some(version) = &self.client_api_version {
            headers.insert(HeaderName::from_static("client-api-version"), version.clone());
        }
    }
}

/// The headers that are heeded, each as it comes first.
#[derive(Default)]
struct Heeded<'h> {
    content_type: Option<&'h HeaderValue>,
    encoding: Option<&'h HeaderValue>,
    api_version: Option<&'h HeaderValue>,
    timeout: Option<&'h HeaderValue>,
    has_leader: Option<&'h HeaderValue>,
}

impl<'h> Heeded<'h> {
    /// A request has few headers: going through them once costs less than five look-ups.
    fn of(headers: &'h HeaderMap) -> Self {
        let mut heeded = Self::default();
        for (name, value) in headers {
            let slot = match name.as_str() {
                "content-type" => &mut heeded.content_type,
                "grpc-encoding" => &mut heeded.encoding,
                "client-api-version" => &mut heeded.api_version,
                "grpc-timeout" => &mut heeded.timeout,
                "hasleader" => &mut heeded.has_leader,
                _ => continue,
            };
            slot.get_or_insert(value);
        }
        heeded
    }
}

/// `3.N`, N of one or two digits.
fn is_of_etcd(version: &HeaderValue) -> bool {
    let minor = version.as_bytes().strip_prefix(b"3.").unwrap_or_default();
    (1..=2).contains(&minor.len()) && minor.iter().all(u8::is_ascii_digit)
}

/// `1*8DIGIT unit` (PROTOCOL-HTTP2.md).
fn parse_timeout(value: &[u8]) -> Result<Duration, MetadataError> {
    let (unit, digits) = value.split_last().ok_or(MetadataError::Timeout)?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(MetadataError::Timeout);
    }
    let number = digits.iter().fold(0_u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Ok(Duration::from_secs(number * 3600)),
        b'M' => Ok(Duration::from_secs(number * 60)),
        b'S' => Ok(Duration::from_secs(number)),
        b'm' => Ok(Duration::from_millis(number)),
        b'u' => Ok(Duration::from_micros(number)),
        b'n' => Ok(Duration::from_nanos(number)),
        _ => Err(MetadataError::Timeout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static [u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    fn check(pairs: &[(&'static str, &'static [u8])], expected: Result<&[&str], MetadataError>) {
        let mut all = vec![("content-type", &b"application/grpc"[..])];
        all.extend(pairs);
        let written = Metadata::read(&headers(&all)).map(|metadata| {
            let mut written = HeaderMap::new();
            metadata.write(&mut written);
            written.keys().map(|name| name.as_str().to_owned()).collect::<Vec<_>>()
        });
        assert_eq!(
            written,
            expected.map(|names| names.iter().map(|name| (*name).to_owned()).collect())
        );
    }

    #[test]
    fn only_what_is_listed_travels_on() {
        // 125, 126, 127
        check(
            &[("token", b"t"), ("authorization", b"Bearer t"), ("grpcgateway-accept", b"x")],
            Ok(&[]),
        );
        check(&[("hasleader", b"true"), ("hasleader", b"false")], Ok(&["hasleader"])); // 128
        check(&[("client-api-version", b"3.5")], Ok(&["client-api-version"]));
        // Each would be a time series that etcd never forgets.
        for invented in [&b"3.100"[..], b"3.", b"4.0", b"3.7-x", b"3.5.1", b"x"] {
            check(&[("client-api-version", invented)], Ok(&[]));
        }
        check(&[("client-api-version", b"\xff")], Err(MetadataError::ApiVersion)); // 129
        check(&[("grpc-encoding", b"gzip")], Err(MetadataError::Encoding)); // 114
        check(&[("grpc-timeout", b"99999999H")], Ok(&[])); // 130
        check(&[("grpc-timeout", b"999999999H")], Err(MetadataError::Timeout));
        check(&[("grpc-timeout", b"1")], Err(MetadataError::Timeout));
    }

    #[test]
    fn a_content_type_is_grpc_or_refused() {
        for (value, fits) in [
            (&b"application/grpc"[..], true),
            (b"application/grpc+proto", true),
            (b"application/grpc; charset=utf-8", true),
            (b"application/grpc+json", false),
            (b"application/grpc-web", false),
            (b"application/grpcfoo", false),
            (b"Application/GRPC", false),
            (b"text/plain; application/grpc", false),
        ] {
            let read = Metadata::read(&headers(&[("content-type", value)]));
            assert_eq!(read.is_ok(), fits, "{value:?}");
        }
    }
}
