//! Reads TOML by hand, so that one run reports every mistake with its file, line and a hint, and
//! an unknown key is an error. Used by config and policy files alike.
//!
//! Pure: it takes text, never a path to open.

mod problem;
mod reader;

pub use problem::{Location, Problem, Problems, Severity};
pub use reader::{Document, Located, TableReader};
