//! Reads audit logs, of this machine or another: which files there are, their lines, what they prove.
//!
//! It never writes; a file may be anything, and no line is held that is longer than a record can be.

pub mod calls;
pub mod follow;
mod joining;
pub mod keys;
pub mod kubernetes;
pub mod question;
pub mod record;
pub mod segments;
pub mod verify;

pub use segments::{FindError, Line, LineError, Lines, Segment, find};
