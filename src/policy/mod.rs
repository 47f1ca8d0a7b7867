//! May this principal do that? Source text -> compiled policy -> rights of a principal -> decision.
//!
//! Pure: no I/O, no clock, never awaits. Default deny; deny beats allow; only `decide` makes a
//! [`Permit`], and only `decide_http` an [`HttpPermit`].

#![deny(clippy::wildcard_enum_match_arm)]

mod candidates;
mod compile;
mod decide;
mod explain;
mod http;
mod intervals;
pub mod lease;
mod permit;
mod source;
mod upstream;

pub use compile::{Identification, NoPrincipal, Policy, Rights, RuleId};
pub use decide::{
    Asker, Cause, Decision, Denial, decide, decide_touch, permit_cancel_watch, permit_log_in,
    permit_look_up, permit_probe, permit_session_lease,
};
pub use explain::Explained;
pub use http::{HttpDecision, HttpDenial, HttpPermit, decide_http};
pub use lease::{FoundLeases, LeaseContent, LeaseKeys};
pub use permit::Permit;
pub use source::{IdentityLimits, PolicySource, RuleSource};
pub use upstream::{ActsAs, PasswordFiles};
