//! What a section of the bench came to: a table, what was aimed at and what was found. Pure; rendered by `document`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::figures::{Points, Spread};
use crate::report::Turn;

#[derive(Clone, Serialize, Deserialize)]
pub struct Section {
    pub title: String,
    /// What was done, in a sentence or two.
    pub about: String,
    /// When, as RFC 3339 in UTC.
    pub measured_at: String,
    pub table: Table,
    pub claims: Vec<Claim>,
    /// The first line that each program said of its version, by contestant.
    pub versions: BTreeMap<String, String>,
    /// Every turn with every figure.
    pub turns: Value,
}

#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Table {
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(|cell| (*cell).to_owned()).collect(), rows: Vec::new() }
    }
}

/// One ratio or figure, and what was aimed at.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claim {
    pub what: String,
    pub aim: Aim,
    pub bound: f64,
    pub found: Spread,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    AtMost,
    AtLeast,
    /// Nothing was; it is shown because the others would flatter without it.
    Shown,
}

impl Claim {
    /// None where nothing was measured.
    pub fn at_most(what: impl Into<String>, bound: f64, found: &Points) -> Option<Self> {
        Some(Self { what: what.into(), aim: Aim::AtMost, bound, found: found.spread()? })
    }

    pub fn at_least(what: impl Into<String>, bound: f64, found: &Points) -> Option<Self> {
        Some(Self { what: what.into(), aim: Aim::AtLeast, bound, found: found.spread()? })
    }

    pub fn shown(what: impl Into<String>, found: &Points) -> Option<Self> {
        Some(Self { what: what.into(), aim: Aim::Shown, bound: 0.0, found: found.spread()? })
    }

    /// By the median over the rounds.
    pub fn met(&self) -> bool {
        match self.aim {
            Aim::AtMost => self.found.median <= self.bound,
            Aim::AtLeast => self.found.median >= self.bound,
            Aim::Shown => true,
        }
    }
}

/// A figure of one contestant under one load, by round; a turn that lacks it has no point.
pub fn points(
    turns: &[Turn],
    contestant: &str,
    shape: &str,
    figure: impl Fn(&Turn) -> Option<f64>,
) -> Points {
    let mine = turns.iter().filter(|turn| turn.contestant == contestant && turn.shape == shape);
    Points::new(mine.filter_map(|turn| Some((turn.round, figure(turn)?))))
}

pub fn proxy_cost(turn: &Turn) -> Option<f64> {
    turn.proxy.as_ref().map(|proxy| proxy.cpu_microseconds_per_request)
}

pub fn throughput(turn: &Turn) -> Option<f64> {
    Some(turn.load.throughput_per_second)
}

pub fn p50(turn: &Turn) -> Option<f64> {
    Some(turn.load.p50_microseconds)
}

pub fn p99(turn: &Turn) -> Option<f64> {
    Some(turn.load.p99_microseconds)
}

/// A cell; a dash where there is nothing.
pub fn cell(value: Option<f64>, places: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.places$}"))
}

pub fn mebibytes(value: Option<f64>) -> String {
    cell(value.map(|bytes| bytes / 1_048_576.0), 1)
}

/// The columns that every table of unary calls has, medians over the rounds.
pub const CALL_COLUMNS: [&str; 8] = [
    "requests/s",
    "p50 us",
    "p99 us",
    "p99.9 us",
    "proxy CPU us/request",
    "behind CPU us/request",
    "proxy MiB",
    "audit records/request",
];

pub fn call_cells(turns: &[Turn], contestant: &str, shape: &str) -> Vec<String> {
    let median =
        |figure: &dyn Fn(&Turn) -> Option<f64>| points(turns, contestant, shape, figure).median();
    vec![
        cell(median(&throughput), 0),
        cell(median(&p50), 0),
        cell(median(&p99), 0),
        cell(median(&|turn| Some(turn.load.p999_microseconds)), 0),
        cell(median(&proxy_cost), 1),
        cell(median(&|turn| Some(turn.upstream.cpu_microseconds_per_request)), 1),
        mebibytes(median(&|turn| Some(turn.proxy.as_ref()?.resident_bytes as f64))),
        cell(
            median(&|turn| {
                let audit = turn.audit.as_ref()?;
                Some((audit.decisions + audit.outcomes) as f64 / audit.calls as f64)
            }),
            3,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_met_by_its_median() {
        let found = Points::new([(1, 0.5), (2, 0.7), (3, 0.9)]);
        assert!(Claim::at_most("x", 0.7, &found).unwrap().met());
        assert!(!Claim::at_most("x", 0.69, &found).unwrap().met());
        assert!(Claim::at_least("x", 0.7, &found).unwrap().met());
        assert!(!Claim::at_least("x", 0.71, &found).unwrap().met());
        assert!(Claim::at_least("x", 0.0, &Points::default()).is_none());
    }
}
