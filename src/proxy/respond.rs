//! What goes back to the client besides etcd's messages: heads and statuses.

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Response};

use crate::grpc::{Code, Status};

/// Answers without a body. A client that is gone hears nothing, and that is no fault of ours.
pub(super) fn answer(respond: &mut SendResponse<Bytes>, status: &Status) {
    let mut response = response_head();
    status.write(response.headers_mut());
    drop(respond.send_response(response, true));
}

pub(super) fn response_head() -> Response<()> {
    let mut response = Response::new(());
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", grpc);
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
    let status = from.get("grpc-status").and_then(|status| status.to_str().ok()?.parse().ok());
    let Some(status) = status else {
        Status::new(Code::Internal, "ringfence: etcd's reply has no status").write(to);
        return Told { status: Code::Internal as u16, fault: Some("no_status") };
    };
    to.insert("grpc-status", HeaderValue::from(status));
    for name in ["grpc-message", "grpc-status-details-bin"] {
        if let Some(value) = from.get(name) {
            to.insert(name, value.clone());
        }
    }
    Told { status, fault: None }
}
