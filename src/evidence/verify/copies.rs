//! A file of a log that is there more than once: compressed as well, or in a backup. Copies must say the same, or whoever
//! reads another than the one that is verified is told something else.

use std::cmp::Ordering;
use std::io::BufRead;

use crate::evidence::Segment;
use crate::evidence::segments::{LineError, Lines};

/// How two copies differ.
pub(super) enum Difference {
    /// The record from 1, in order, that is not the same in both, or cannot be compared.
    At(u64),
    Unreadable(LineError),
}

/// Which of the two goes on behind the end of the other; where both have a line it is the same.
pub(super) fn compare(
    one: &Segment,
    other: &Segment,
    progress: &dyn Fn(u64),
) -> Result<Ordering, Difference> {
    let open = |file: &Segment| file.lines(progress).map_err(|error| unreadable(error.into()));
    let (mut one, mut other) = (open(one)?, open(other)?);
    for record in 1.. {
        let (left, right) = (next(&mut one)?, next(&mut other)?);
        match (left, right) {
            (None, None) => return Ok(Ordering::Equal),
            (Some(_), None) => return Ok(Ordering::Greater),
            (None, Some(_)) => return Ok(Ordering::Less),
            (Some(left), Some(right)) if left == right => {}
            (Some(_), Some(_)) => return Err(Difference::At(record)),
        }
    }
    Ok(Ordering::Equal)
}

const fn unreadable(error: LineError) -> Difference {
    Difference::Unreadable(error)
}

/// The next whole line.
fn next<R: BufRead>(lines: &mut Lines<R>) -> Result<Option<&[u8]>, Difference> {
    let line = lines.next_line().map_err(unreadable)?;
    Ok(line.filter(|line| line.is_whole).map(|line| line.bytes))
}
