//! Every reason for which a call ends here, and the one place that turns it into a gRPC status.

use super::ending::Ending;
use crate::etcd::Malformed;
use crate::grpc::metadata::MetadataError;
use crate::grpc::{Code, FrameError, Status};
use crate::upstream::ForwardError;

/// etcd's own text; its clients know the error by it and do not retry.
const PERMISSION_DENIED: &str = "etcdserver: permission denied";
const TOO_MANY_REQUESTS: &str = "etcdserver: too many requests";

/// Why a call is refused before policy is asked. Blame: the client, unless it says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The certificate is nobody.
    #[error("{0}")]
    NoPrincipal(String),
    /// No RPC has this path.
    #[error("unknown path")]
    UnknownPath,
    /// gRPC is POST.
    #[error("the method is not POST")]
    Method,
    /// Headers that cannot be read without doubt.
    #[error("{0}")]
    Metadata(#[from] MetadataError),
    /// DATA that is not one message.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// A message that can be read in two ways, or that etcd would not run.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// The client went away before its request was whole.
    #[error("the client went away before its request was whole")]
    Aborted,
    /// The request did not come in time.
    #[error("the request was not whole in time")]
    Slow,
    /// The principal uses all of its share.
    #[error("the principal uses all of its share")]
    Share,
    /// The principal makes too many requests in a second.
    #[error("the principal makes too many requests in a second")]
    Rate,
}

impl Refusal {
    /// The name in records: short, from a fixed set.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoPrincipal(_) => "no_principal",
            Self::UnknownPath => "unknown_path",
            Self::Method => "method",
            Self::Metadata(_) => "metadata",
            Self::Frame(_) => "frame",
            Self::Malformed(_) => "malformed",
            Self::Aborted => "aborted",
            Self::Slow => "slow",
            Self::Share => "share",
            Self::Rate => "rate",
        }
    }

    /// What the client hears; `None` when it is gone.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        Some(match self {
            Self::NoPrincipal(_) => permission_denied(),
            Self::UnknownPath => {
                Status::new(Code::Unimplemented, "ringfence: unknown service or method")
            }
            Self::Method => Status::new(Code::Internal, "ringfence: the method is not POST"),
            Self::Metadata(error) => {
                let code = match error {
                    MetadataError::ContentType | MetadataError::Encoding => Code::Unimplemented,
                    MetadataError::ApiVersion | MetadataError::Timeout => Code::InvalidArgument,
                };
                Status::new(code, error.to_string())
            }
            Self::Frame(error) => {
                let code = match error {
                    FrameError::TooLarge { .. } => Code::ResourceExhausted,
                    FrameError::Incomplete
                    | FrameError::MoreThanOne
                    | FrameError::Compressed
                    | FrameError::Flag => Code::Internal,
                };
                Status::new(code, error.to_string())
            }
            Self::Malformed(error) => Status::new(Code::InvalidArgument, error.to_string()),
            Self::Aborted => return None,
            Self::Slow => {
                Status::new(Code::DeadlineExceeded, "ringfence: the request was not whole in time")
            }
            Self::Share | Self::Rate => Status::new(Code::ResourceExhausted, TOO_MANY_REQUESTS),
        })
    }
}

/// What a request is told that needs more than is left of its principal's rate.
pub(super) fn too_many_requests() -> (Status, &'static str) {
    (Status::new(Code::ResourceExhausted, TOO_MANY_REQUESTS), "rate")
}

/// What a denied client hears: never which key or rule it was.
pub(super) fn permission_denied() -> Status {
    Status::new(Code::PermissionDenied, PERMISSION_DENIED)
}

/// What a client hears when its decision cannot be recorded. Blame: us.
pub(super) fn audit_unavailable() -> Status {
    Status::new(
        Code::Unavailable,
        "ringfence: the audit log takes no records, nothing was forwarded",
    )
}

/// What a client hears when etcd gave no answer, and the name in the record. Blame: upstream.
pub(super) fn forward_failed(error: &ForwardError) -> (Status, &'static str) {
    let unavailable = |text: &str| Status::new(Code::Unavailable, format!("ringfence: {text}"));
    match error {
        ForwardError::Unreachable => (unavailable("etcd cannot be reached"), "unreachable"),
        ForwardError::Full => {
            (Status::new(Code::ResourceExhausted, TOO_MANY_REQUESTS), "upstream_full")
        }
        ForwardError::Broken(_) => (unavailable("the connection to etcd broke"), "broken"),
        ForwardError::NotGrpc(_) => (unavailable("etcd's answer is not gRPC"), "not_grpc"),
        ForwardError::Unreadable => (unavailable("etcd's answer cannot be read"), "unreadable"),
        // Not Unavailable: etcd's clients would try again at once, and each time etcd's CPU pays.
        ForwardError::LoginRefused => (
            Status::new(
                Code::FailedPrecondition,
                "ringfence: etcd refuses the user as which this identity reaches it",
            ),
            "login_refused",
        ),
        ForwardError::NoPassword => (
            Status::new(
                Code::FailedPrecondition,
                "ringfence: no password is known for the user as which this identity reaches etcd",
            ),
            "no_password",
        ),
        ForwardError::TokenRefused => {
            (unavailable("etcd does not take the token"), "token_refused")
        }
        ForwardError::TimedOut => timed_out(),
        ForwardError::Mismatch => {
            (Status::new(Code::Internal, "ringfence: internal error"), "internal")
        }
    }
}

/// What a client hears when a reply that has to be looked into cannot be read. Blame: upstream.
pub(super) fn unreadable_reply() -> Status {
    forward_failed(&ForwardError::Unreadable).0
}

/// What a client of a stream hears when ringfence ends; etcd's clients open another elsewhere.
pub(super) fn shutting_down() -> Status {
    Status::new(Code::Unavailable, "ringfence: shutting down")
}

/// What a client hears whose right has ended while its call was open. One who is somebody else now may come again.
pub(super) fn right_ended(reason: &str) -> Status {
    if reason == Ending::IdentityChanged.name() {
        return Status::new(Code::Unavailable, "ringfence: this certificate is somebody else now");
    }
    permission_denied()
}

/// What a client hears when a reply is longer than it may have; etcd has done what was asked.
pub(super) fn reply_too_large() -> (Status, &'static str) {
    (Status::new(Code::ResourceExhausted, TOO_MANY_REQUESTS), "reply_too_large")
}

/// What a client hears when its time is over.
pub(super) fn timed_out() -> (Status, &'static str) {
    (Status::new(Code::DeadlineExceeded, "ringfence: the call took too long"), "timeout")
}
