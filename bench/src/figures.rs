//! Arithmetic over rounds: medians, and ratios that pair each round with itself. Pure; knows no contestant.

use serde::{Deserialize, Serialize};

/// One figure of one contestant, by round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Points(Vec<(u32, f64)>);

/// The least, the median and the largest over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Points {
    pub fn new(points: impl IntoIterator<Item = (u32, f64)>) -> Self {
        Self(points.into_iter().collect())
    }

    pub fn over(&self, other: &Self) -> Self {
        self.paired(other, |mine, theirs| mine / theirs)
    }

    pub fn less(&self, other: &Self) -> Self {
        self.paired(other, |mine, theirs| mine - theirs)
    }

    /// Rounds that only one of the two has do not count.
    fn paired(&self, other: &Self, pair: impl Fn(f64, f64) -> f64) -> Self {
        let theirs = |round: u32| other.0.iter().find(|(number, _)| *number == round);
        Self::new(self.0.iter().filter_map(|(round, mine)| {
            theirs(*round).map(|(_, theirs)| (*round, pair(*mine, *theirs)))
        }))
    }

    /// None without a round.
    pub fn spread(&self) -> Option<Spread> {
        let mut values: Vec<f64> = self.0.iter().map(|(_, value)| *value).collect();
        values.sort_by(f64::total_cmp);
        Some(Spread { min: *values.first()?, max: *values.last()?, median: median(values)? })
    }

    pub fn median(&self) -> Option<f64> {
        self.spread().map(|spread| spread.median)
    }
}

pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    match values.len().is_multiple_of(2) {
        true => Some((values[values.len() / 2 - 1] + upper) / 2.0),
        false => Some(upper),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_paired_before_the_median_is_taken() {
        let mine = Points::new([(1, 10.0), (2, 30.0), (3, 7.0)]);
        let theirs = Points::new([(1, 10.0), (2, 10.0)]);
        assert_eq!(mine.over(&theirs).spread(), Some(Spread { min: 1.0, median: 2.0, max: 3.0 }));
        assert_eq!(mine.less(&theirs), Points::new([(1, 0.0), (2, 20.0)]));
        assert_eq!(Points::default().spread(), None);
    }

    #[test]
    fn an_even_count_has_the_mean_of_the_middle_two() {
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }
}
