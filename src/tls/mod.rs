//! TLS on both sides: certificates and keys are read all or nothing, clients must present a
//! certificate, and which CA vouched for it is known, and whether it was revoked.
//!
//! It verifies; it does not know what an identity is.

pub mod acceptor;
pub mod connector;
pub mod material;
pub mod revocation;
pub mod verifier;

pub use acceptor::{Accepted, Acceptor, HandshakeRefusal, Protocol};
pub use connector::Connector;
pub use material::{Authority, KeyPair};
pub use revocation::Revocation;
pub use verifier::Authorities;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// The one crypto provider: aws-lc-rs.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
