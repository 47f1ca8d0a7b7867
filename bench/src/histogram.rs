//! Latencies in buckets whose width is under 1% of their value, in bounded memory.
//! Counts only; knows nothing of clocks or requests.

const SUB_BUCKET_BITS: u32 = 7;
const SUB_BUCKETS: u64 = 1 << SUB_BUCKET_BITS;
const OCTAVES: u64 = 30;

pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    pub fn new() -> Self {
        Self { counts: vec![0; (SUB_BUCKETS * OCTAVES) as usize], total: 0 }
    }

    /// Values beyond the last bucket (over a minute) count in the last one.
    pub fn record(&mut self, nanoseconds: u64) {
        let index = bucket(nanoseconds).min(self.counts.len() - 1);
        self.counts[index] += 1;
        self.total += 1;
    }

    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    /// The lower edge, in microseconds, of the bucket that holds the given share of all values; 0 when empty.
    pub fn quantile_microseconds(&self, share: f64) -> f64 {
        let wanted = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return lower_edge(index) as f64 / 1000.0;
            }
        }
        0.0
    }
}

/// The first 128 values have a bucket each; every doubling after that is cut into 128.
fn bucket(value: u64) -> usize {
    if value < SUB_BUCKETS {
        return value as usize;
    }
    let octave = value.ilog2() - SUB_BUCKET_BITS;
    ((u64::from(octave) + 1) * SUB_BUCKETS + (value >> octave) - SUB_BUCKETS) as usize
}

fn lower_edge(index: usize) -> u64 {
    let index = index as u64;
    if index < SUB_BUCKETS {
        return index;
    }
    let octave = index / SUB_BUCKETS - 1;
    (SUB_BUCKETS + index % SUB_BUCKETS) << octave
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_and_buckets_are_inverse() {
        for index in 0..(SUB_BUCKETS * OCTAVES) as usize {
            assert_eq!(bucket(lower_edge(index)), index);
        }
    }

    #[test]
    fn quantiles_of_a_thousand_even_values() {
        let mut histogram = Histogram::new();
        for microseconds in 1..=1000 {
            histogram.record(microseconds * 1000);
        }
        for (share, expected) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0)] {
            let found = histogram.quantile_microseconds(share);
            assert!((found - expected).abs() / expected < 0.01, "{share}: {found}");
        }
    }

    #[test]
    fn a_value_beyond_the_last_bucket_is_kept() {
        let mut histogram = Histogram::new();
        histogram.record(u64::MAX);
        assert_eq!(histogram.total(), 1);
        assert!(histogram.quantile_microseconds(1.0) > 60e6);
    }
}
