//! The keys that one verb may touch: sorted, disjoint, half-open intervals, each with the rule that
//! grants it. A request must lie inside the union of allows and outside every deny.

use std::collections::BTreeSet;

use super::compile::RuleId;
use crate::etcd::{KeyRange, RangeEnd};

/// `[start, end)` over byte strings; no end is "to infinity".
#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    start: Box<[u8]>,
    end: Option<Box<[u8]>>,
    /// The last segment of the unbroken run that this one belongs to.
    run_last: usize,
    rule: RuleId,
}

/// The allowed keys of one verb.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Intervals {
    segments: Vec<Segment>,
    /// Denied ranges, to say which rule denied; the segments already leave them out.
    denied: Vec<(KeyRange, RuleId)>,
}

/// A boundary of the sweep; infinity sorts last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Boundary {
    At(Box<[u8]>),
    Infinity,
}

impl Intervals {
    /// Union of `allowed` minus union of `denied`. O(n log n) in the number of rules.
    pub(super) fn build(allowed: &[(KeyRange, RuleId)], denied: &[(KeyRange, RuleId)]) -> Self {
        // (boundary, opens, is a deny, rule)
        let mut events: Vec<(Boundary, bool, bool, RuleId)> = Vec::new();
        for (is_deny, ranges) in [(false, allowed), (true, denied)] {
            for (range, rule) in ranges {
                let (start, end) = boundaries(range);
                events.push((start, true, is_deny, *rule));
                events.push((end, false, is_deny, *rule));
            }
        }
        events.sort();
        let mut segments: Vec<Segment> = Vec::new();
        let mut allowing: BTreeSet<(RuleId, usize)> = BTreeSet::new();
        let mut counts: std::collections::BTreeMap<RuleId, usize> =
            std::collections::BTreeMap::new();
        let mut denying = 0_usize;
        let mut from: Option<Boundary> = None;
        for (boundary, opens, is_deny, rule) in events {
            if let Some(Boundary::At(start)) = from.take()
                && !matches!(&boundary, Boundary::At(here) if *here == start)
                && denying == 0
                && let Some((granting, _)) = allowing.first()
            {
                extend(&mut segments, start, &boundary, *granting);
            }
            if is_deny {
                denying = if opens { denying + 1 } else { denying.saturating_sub(1) };
            } else {
                // One rule may hold several ranges that overlap; each counts on its own.
                let count = counts.entry(rule).or_default();
                if opens {
                    allowing.insert((rule, *count));
                    *count += 1;
                } else {
                    *count = count.saturating_sub(1);
                    allowing.remove(&(rule, *count));
                }
            }
            from = Some(boundary);
        }
        mark_runs(&mut segments);
        Self { segments, denied: denied.to_vec() }
    }

    /// The rule that grants the first key of `range`, when the whole range is granted.
    pub(super) fn granting(&self, range: &KeyRange) -> Option<RuleId> {
        let start = range.start().as_bytes();
        let behind = self.segments.partition_point(|segment| *segment.start <= *start);
        let segment = self.segments.get(behind.checked_sub(1)?)?;
        let inside = match range.end() {
            RangeEnd::Point => ends_after(segment.end.as_deref(), start),
            RangeEnd::Before(end) => {
                let run = self.segments.get(segment.run_last)?;
                ends_after(segment.end.as_deref(), start)
                    && run.end.as_deref().is_none_or(|run_end| end.as_bytes() <= run_end)
            }
            RangeEnd::Infinity => {
                let run = self.segments.get(segment.run_last)?;
                ends_after(segment.end.as_deref(), start) && run.end.is_none()
            }
        };
        inside.then_some(segment.rule)
    }

    /// The first deny rule that hits `range`; only asked after a refusal.
    pub(super) fn denying(&self, range: &KeyRange) -> Option<RuleId> {
        let hit = |denied: &&(KeyRange, RuleId)| overlap(&denied.0, range);
        self.denied.iter().find(hit).map(|(_, rule)| *rule)
    }
}

fn ends_after(end: Option<&[u8]>, key: &[u8]) -> bool {
    end.is_none_or(|end| key < end)
}

/// A point is `[key, key + "\0")`: nothing sorts between a key and the key with a zero behind it.
fn boundaries(range: &KeyRange) -> (Boundary, Boundary) {
    let start = range.start().as_bytes();
    let end = match range.end() {
        RangeEnd::Point => Boundary::At([start, b"\0"].concat().into()),
        RangeEnd::Before(end) => Boundary::At(end.as_bytes().into()),
        RangeEnd::Infinity => Boundary::Infinity,
    };
    (Boundary::At(start.into()), end)
}

fn overlap(one: &KeyRange, other: &KeyRange) -> bool {
    let (one_start, one_end) = boundaries(one);
    let (other_start, other_end) = boundaries(other);
    one_start < other_end && other_start < one_end
}

/// Adds `[start, end)`, or lengthens the last segment when it ends there under the same rule.
fn extend(segments: &mut Vec<Segment>, start: Box<[u8]>, end: &Boundary, rule: RuleId) {
    let end = match end {
        Boundary::At(end) => Some(end.clone()),
        Boundary::Infinity => None,
    };
    if let Some(last) = segments.last_mut()
        && last.rule == rule
        && last.end.as_deref() == Some(&*start)
    {
        last.end = end;
        return;
    }
    segments.push(Segment { start, end, run_last: 0, rule });
}

fn mark_runs(segments: &mut [Segment]) {
    let mut run_last = segments.len().saturating_sub(1);
    let mut next_start: Option<Box<[u8]>> = None;
    for (index, segment) in segments.iter_mut().enumerate().rev() {
        if segment.end.is_none() || segment.end != next_start {
            run_last = index;
        }
        segment.run_last = run_last;
        next_start = Some(segment.start.clone());
    }
}

#[cfg(test)]
mod tests;
