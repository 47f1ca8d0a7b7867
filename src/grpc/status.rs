//! gRPC status codes and how a status is written into headers.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderValue};

/// The canonical codes (grpc/doc statuscodes.md) that ringfence itself answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// 3
    InvalidArgument = 3,
    /// 4
    DeadlineExceeded = 4,
    /// 7
    PermissionDenied = 7,
    /// 8
    ResourceExhausted = 8,
    /// 9
    FailedPrecondition = 9,
    /// 12
    Unimplemented = 12,
    /// 13
    Internal = 13,
    /// 14
    Unavailable = 14,
}

/// A status of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The code.
    pub code: Code,
    /// The text; etcd's clients map errors by it, so etcd's texts are kept exactly.
    pub message: String,
}

impl Status {
    /// A status with that text.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Writes `grpc-status` and `grpc-message`.
    pub fn write(&self, headers: &mut HeaderMap) {
        headers.insert("grpc-status", HeaderValue::from(self.code as u16));
        if let Ok(message) = HeaderValue::from_str(&percent_encoded(&self.message)) {
            headers.insert("grpc-message", message);
        }
    }
}

/// grpc-message is percent-encoded: everything but printable ASCII, and `%` itself.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            // Writing to a String cannot fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_percent_encoded() {
        let mut headers = HeaderMap::new();
        Status::new(Code::PermissionDenied, "50% ä").write(&mut headers);
        assert_eq!(headers["grpc-status"], "7");
        assert_eq!(headers["grpc-message"], "50%25 %C3%A4");
    }
}
