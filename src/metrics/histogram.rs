//! How a quantity is distributed: fixed buckets, four to each power of two.
//!
//! ```text
//! value    0 1 2 3 │ 4 5 6 7 │ 8  10  12  14 │ 16  20  24  28 │ ... │ 2^40 ·1.75 and above
//! bucket   0 1 2 3   4 5 6 7   8   9  10  11   12  13  14  15         159
//! ```
//! A bucket is a quarter of its power of two wide, and stands for its middle, so a percentile is wrong by an eighth at most ([`Distribution::ERROR`]).
//! Values below 8 are exact, as is the greatest. 2^41 nanoseconds are 36 minutes: what takes longer counts as that, but for the greatest and the sum.
//! Recording never allocates and takes no lock; 160 buckets are 1.3 KiB.

use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets of a histogram.
const BUCKETS: usize = 160;

/// A quantity that is being recorded, by any number of threads.
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
    max: AtomicU64,
}

impl Histogram {
    pub(crate) const fn new() -> Histogram {
        Histogram { buckets: [const { AtomicU64::new(0) }; BUCKETS], sum: AtomicU64::new(0), max: AtomicU64::new(0) }
    }

    /// Record one value.
    pub(crate) fn record(&self, value: u64) {
        if let Some(bucket) = self.buckets.get(bucket_of(value)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(value, Ordering::Relaxed);
        self.max.fetch_max(value, Ordering::Relaxed);
    }

    /// As [`record`](Histogram::record), for a caller who holds a lock that keeps all others from recording.
    pub(crate) fn record_alone(&self, value: u64) {
        let add = |to: &AtomicU64, n: u64| to.store(to.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        if let Some(bucket) = self.buckets.get(bucket_of(value)) {
            add(bucket, 1);
        }
        add(&self.sum, value);
        if value > self.max.load(Ordering::Relaxed) {
            self.max.store(value, Ordering::Relaxed);
        }
    }

    /// What was recorded so far.
    pub(crate) fn distribution(&self) -> Distribution {
        let mut buckets: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        while buckets.pop_if(|count| *count == 0).is_some() {}
        let (sum, max) = (self.sum.load(Ordering::Relaxed), self.max.load(Ordering::Relaxed));
        Distribution { buckets, sum, max }
    }
}

/// The bucket that a value is counted in.
fn bucket_of(value: u64) -> usize {
    if value < 4 {
        return value as usize;
    }
    let exponent = value.ilog2() as usize;
    // The two bits behind the highest: which quarter of the power of two.
    let quarter = (value >> (exponent - 2)) as usize & 3;
    (4 * (exponent - 1) + quarter).min(BUCKETS - 1)
}

/// The least value of a bucket.
fn least_of(bucket: usize) -> u64 {
    match bucket {
        0..4 => bucket as u64,
        _ => (4 + bucket as u64 % 4) << (bucket / 4 - 1),
    }
}

/// How a quantity was distributed, as of a [snapshot](crate::metrics::Metrics).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Distribution {
    /// Counts by bucket, up to the last that is not empty.
    buckets: Vec<u64>,
    sum: u64,
    max: u64,
}

impl Distribution {
    /// A percentile is at most this part of itself too high or too low.
    pub const ERROR: f64 = 0.125;

    /// How many values were recorded.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The sum of all values: exact.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The greatest value: exact since the store was opened; between two snapshots, the end of the highest bucket that was
    /// counted in, if the exact one is of an earlier time.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean, exact; 0 if nothing was recorded.
    pub fn mean(&self) -> f64 {
        match self.count() {
            0 => 0.0,
            count => self.sum as f64 / count as f64,
        }
    }

    /// The value that `percent` of all values do not exceed (50.0 is the median), [to an eighth](Distribution::ERROR); 0 if nothing was
    /// recorded.
    pub fn percentile(&self, percent: f64) -> u64 {
        let count = self.count();
        // The rank of the value among all, from 1 on.
        let rank = ((percent.clamp(0.0, 100.0) / 100.0 * count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, in_bucket) in self.buckets.iter().enumerate() {
            seen += in_bucket;
            if seen >= rank {
                let least = least_of(bucket);
                let width = least_of(bucket + 1) - least;
                // The last bucket has no end of its own once something lies beyond its regular one.
                let is_endless = bucket + 1 == BUCKETS && self.max >= least_of(BUCKETS);
                return if is_endless { self.max } else { (least + width / 2).min(self.max) };
            }
        }
        self.max
    }

    /// What was recorded since `earlier`, which is of the same store and opening.
    pub(super) fn since(&self, earlier: &Distribution) -> Distribution {
        let before = |bucket: usize| earlier.buckets.get(bucket).copied().unwrap_or(0);
        let counts = self.buckets.iter().enumerate().map(|(i, count)| count.saturating_sub(before(i)));
        let mut buckets: Vec<u64> = counts.collect();
        while buckets.pop_if(|count| *count == 0).is_some() {}
        let max = match buckets.len() {
            0 => 0,
            _ if self.max > earlier.max => self.max,
            BUCKETS => self.max,
            used => self.max.min(least_of(used) - 1),
        };
        Distribution { buckets, sum: self.sum.wrapping_sub(earlier.sum), max }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gap_or_overlap() {
        // A value that two buckets, or none, account for would shift every percentile.
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_of(least_of(bucket)), bucket);
            if bucket + 1 < BUCKETS {
                assert_eq!(bucket_of(least_of(bucket + 1) - 1), bucket);
            }
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_difference_has_only_what_came_since() {
        // Old stalls in the figures of the last minute would send people looking for nothing.
        let histogram = Histogram::new();
        histogram.record(1_000_000);
        let earlier = histogram.distribution();
        histogram.record(100);
        histogram.record_alone(7);
        let since = histogram.distribution().since(&earlier);
        assert_eq!((since.count(), since.sum()), (2, 107));
        assert!((100..=111).contains(&since.max()), "{}", since.max());
        assert_eq!(earlier.since(&earlier), Distribution { sum: 0, ..Distribution::default() });
    }

    #[test]
    fn nothing_recorded_is_zero_everywhere() {
        let empty = Distribution::default();
        assert_eq!((empty.count(), empty.max(), empty.percentile(99.0), empty.mean()), (0, 0, 0, 0.0));
    }

    proptest! {
        #[test]
        fn a_percentile_is_within_its_stated_error(
            values in prop::collection::vec(prop_oneof![0u64..100, 0u64..1 << 20, 0u64..1 << 41], 1..200),
            percent in 0.0f64..=100.0,
        ) {
            // Whoever sets an alarm at a percentile relies on the bound that is documented.
            let histogram = Histogram::new();
            values.iter().for_each(|value| histogram.record(*value));
            let found = histogram.distribution();
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let rank = ((percent / 100.0 * sorted.len() as f64).ceil() as usize).max(1);
            let exact = sorted[rank - 1];
            let shown = found.percentile(percent);
            prop_assert!(exact.abs_diff(shown) as f64 <= exact as f64 * Distribution::ERROR, "{exact} shown as {shown}");
            prop_assert_eq!(found.count(), values.len() as u64);
            prop_assert_eq!(found.max(), *sorted.last().unwrap());
            prop_assert_eq!(found.sum(), values.iter().sum::<u64>());
        }
    }
}
