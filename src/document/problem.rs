//! A mistake in a file: where, what, why, and how to mend it.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

/// A line of a file; lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// The file's name as the user gave it.
    pub file: Arc<str>,
    /// The line, from 1; 0 stands for the file as a whole.
    pub line: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => formatter.write_str(&self.file),
            line => write!(formatter, "{}:{line}", self.file),
        }
    }
}

/// Whether a problem stops the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing is loaded.
    Error,
    /// It loads, and probably does something else than meant.
    Warning,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it stands.
    pub location: Location,
    /// Whether it stops the program.
    pub severity: Severity,
    /// What is wrong and why: lower case, user input in backticks.
    pub what: String,
    /// How to mend it.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(formatter, "{severity}: {}: {}", self.location, self.what)?;
        match &self.hint {
            Some(hint) => write!(formatter, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Collects problems from many places of one run.
#[derive(Debug, Default)]
pub struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    /// Adds an error.
    pub fn error(&self, location: &Location, what: impl Into<String>, hint: impl Into<String>) {
        self.push(location, Severity::Error, what.into(), hint.into());
    }

    /// Adds a warning.
    pub fn warning(&self, location: &Location, what: impl Into<String>, hint: impl Into<String>) {
        self.push(location, Severity::Warning, what.into(), hint.into());
    }

    fn push(&self, location: &Location, severity: Severity, what: String, hint: String) {
        let hint = (!hint.is_empty()).then_some(hint);
        let problem = Problem { location: location.clone(), severity, what, hint };
        self.0.borrow_mut().push(problem);
    }

    /// Whether one of them is an error.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.0.borrow().iter().any(|problem| problem.severity == Severity::Error)
    }

    /// All of them, by file and line.
    #[must_use]
    pub fn into_sorted(self) -> Vec<Problem> {
        let mut problems = self.0.into_inner();
        problems.sort();
        problems.dedup();
        problems
    }
}
