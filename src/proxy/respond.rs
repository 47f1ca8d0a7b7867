//! What goes back to the client besides etcd's messages: heads and statuses.

use bytes::Bytes;
use h2::server::SendResponse;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response};

use crate::grpc::{Code, Status};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// Answers without a body. A client that is gone hears nothing, and that is no fault of ours.
pub(super) fn answer(respond: &mut SendResponse<Bytes>, status: &Status) {
    let mut response = response_head();
    status.write(response.headers_mut());
    drop(respond.send_response(response, true));
}

pub(super) fn response_head() -> Response<()> {
    let mut response = Response::new(());
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, grpc);
    response
}

/// The status that a client got with etcd's reply.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    pub(super) status: u16,
    /// Why it is not etcd's own: a name for the record.
    pub(super) fault: Option<&'static str>,
}

/// Copies etcd's status; a reply without one, or with one that is no number, is told to be an internal
/// error. Nothing else of etcd's trailers travels on.
pub(super) fn copy_status(from: &HeaderMap, to: &mut HeaderMap) -> Told {
    // There are few: going through them costs less than looking each up. Of one that comes twice the first counts.
    let (mut status, mut message, mut details) = (None, None, None);
    for (name, value) in from {
        match name.as_str() {
            "grpc-status" => drop(status.get_or_insert(value)),
            "grpc-message" => drop(message.get_or_insert(value)),
            "grpc-status-details-bin" => drop(details.get_or_insert(value)),
            _ => {}
        }
    }
    let status = status.and_then(|status| status.to_str().ok()?.parse().ok());
    let Some(status) = status else {
        Status::new(Code::Internal, "ringfence: etcd's reply has no status").write(to);
        return Told { status: Code::Internal as u16, fault: Some("no_status") };
    };
    let value = if status == 0 { HeaderValue::from_static("0") } else { HeaderValue::from(status) };
    to.insert(GRPC_STATUS, value);
    for (name, value) in [(GRPC_MESSAGE, message), (GRPC_DETAILS, details)] {
        if let Some(value) = value {
            to.insert(name, value.clone());
        }
    }
    Told { status, fault: None }
}
