//! A verified leaf certificate becomes a principal: the name of the one identity that matches, and
//! the values its match and its roles take from the certificate.
//!
//! Pure: it reads bytes that `tls` has verified; it verifies nothing itself.

pub mod certificate;
pub mod difference;
pub mod pattern;
pub mod principal;
pub mod trust_domain;

pub use certificate::CertificateFacts;
pub use difference::Difference;
pub use pattern::{CertificatePattern, Glob};
pub use principal::{CaptureError, Principal, Variable, is_plain};
pub use trust_domain::TrustDomain;
