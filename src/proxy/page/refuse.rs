//! Every reason for which a request of plain HTTP ends here, and the one place that turns it into
//! an answer. Texts are short and ours; no answer has a CORS header.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};

use super::relay::PageBody;
use crate::etcd::InvalidQuery;
use crate::upstream::HttpForwardError;

/// Why a request is refused before policy is asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HttpRefusal {
    #[error("{0}")]
    NoPrincipal(String),
    #[error("no such page")]
    UnknownPath,
    #[error("a page is read with GET")]
    Method,
    #[error("HTTP/1.0 is not spoken here")]
    Version,
    #[error("there must be one Host header")]
    Host,
    #[error("an upgrade is asked for")]
    Upgrade,
    #[error("a page takes no body")]
    Body,
    #[error(transparent)]
    Query(#[from] InvalidQuery),
    #[error("the principal uses all of its share")]
    Share,
    #[error("the principal makes too many requests in a second")]
    Rate,
}

impl HttpRefusal {
    /// The name in records: short, from a fixed set.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::NoPrincipal(_) => "no_principal",
            Self::UnknownPath => "unknown_path",
            Self::Method => "method",
            Self::Version | Self::Host | Self::Upgrade => "http",
            Self::Body => "body",
            Self::Query(_) => "query",
            Self::Share => "share",
            Self::Rate => "rate",
        }
    }

    /// The answer.
    pub(super) fn response(&self) -> Response<PageBody> {
        let status = match self {
            Self::NoPrincipal(_) => return text(StatusCode::FORBIDDEN, "permission denied"),
            Self::UnknownPath => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Host | Self::Upgrade | Self::Body | Self::Query(_) => StatusCode::BAD_REQUEST,
            Self::Share | Self::Rate => StatusCode::TOO_MANY_REQUESTS,
        };
        let mut response = text(status, &self.to_string());
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        }
        response
    }
}

/// What a client hears when its decision cannot be recorded. Blame: us.
pub(super) fn audit_unavailable() -> Response<PageBody> {
    text(StatusCode::SERVICE_UNAVAILABLE, "the audit log takes no records")
}

/// What a client hears when etcd gave no answer, and the name in the record.
pub(super) const fn forward_failed(error: &HttpForwardError) -> (StatusCode, &'static str) {
    match error {
        HttpForwardError::Unreachable => (StatusCode::BAD_GATEWAY, "unreachable"),
        HttpForwardError::Full => (StatusCode::SERVICE_UNAVAILABLE, "upstream_full"),
        HttpForwardError::Broken(_) | HttpForwardError::Unexpected(_) => {
            (StatusCode::BAD_GATEWAY, "broken")
        }
        HttpForwardError::TooLarge => (StatusCode::BAD_GATEWAY, "too_large"),
        HttpForwardError::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    }
}

/// An answer of our own.
pub(super) fn text(status: StatusCode, text: &str) -> Response<PageBody> {
    let mut response = Response::new(PageBody::text(Bytes::from(format!("ringfence: {text}\n"))));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
