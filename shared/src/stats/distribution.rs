//! How long things took, as read from a histogram.

#![forbid(unsafe_code)]

use crate::zone::histogram::{BUCKETS, upper_bound};

/// Values by bucket. Only buckets that hold something are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distribution {
    /// Bucket and count, by rising bucket.
    buckets: Vec<(usize, u64)>,
    sum: u64,
}

impl Distribution {
    /// From the words of a histogram's block: its buckets, then the sum.
    pub(crate) fn of(words: &[u64]) -> Distribution {
        let buckets = words.iter().take(BUCKETS).copied().enumerate().filter(|(_, count)| *count > 0);
        Distribution { buckets: buckets.collect(), sum: words.get(BUCKETS).copied().unwrap_or(0) }
    }

    /// How many values there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// The sum of all values, in nanoseconds.
    #[must_use]
    pub fn sum_ns(&self) -> u64 {
        self.sum
    }

    /// The upper bound, in nanoseconds, and the count of each bucket that holds something.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        self.buckets.iter().map(|(bucket, count)| (upper_bound(*bucket), *count))
    }

    /// A value, in nanoseconds, that `share` of all (0 to 1) do not exceed: at most 6.25 % too high. `None` when
    /// there are none.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    pub fn quantile_ns(&self, share: f64) -> Option<u64> {
        let rank = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0u64;
        let found = self.buckets.iter().find(|(_, count)| {
            seen = seen.saturating_add(*count);
            seen >= rank
        });
        found.or(self.buckets.last()).map(|(bucket, _)| upper_bound(*bucket))
    }

    /// How many values lie in buckets that end at `limit_ns` nanoseconds or before.
    #[must_use]
    pub fn at_most(&self, limit_ns: u64) -> u64 {
        let below = self.buckets.iter().take_while(|(bucket, _)| upper_bound(*bucket) <= limit_ns);
        below.fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Adds another's values.
    pub fn add(&mut self, other: &Distribution) {
        self.buckets = merge(&self.buckets, &other.buckets, u64::saturating_add);
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// The values that came after `earlier` was taken.
    #[must_use]
    pub fn since(&self, earlier: &Distribution) -> Distribution {
        let mut buckets = merge(&self.buckets, &earlier.buckets, u64::saturating_sub);
        buckets.retain(|(_, count)| *count > 0);
        Distribution { buckets, sum: self.sum.wrapping_sub(earlier.sum) }
    }
}

/// Both lists as one, with `combine(left, right)` for each bucket that either has.
fn merge(left: &[(usize, u64)], right: &[(usize, u64)], combine: fn(u64, u64) -> u64) -> Vec<(usize, u64)> {
    let mut merged = Vec::with_capacity(left.len().max(right.len()));
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    loop {
        let next = match (left.peek(), right.peek()) {
            (None, None) => return merged,
            (Some((bucket, _)), None) | (None, Some((bucket, _))) => *bucket,
            (Some((a, _)), Some((b, _))) => *a.min(b),
        };
        let of = |(_, count): &(usize, u64)| *count;
        let a = left.next_if(|(bucket, _)| *bucket == next).map_or(0, of);
        let b = right.next_if(|(bucket, _)| *bucket == next).map_or(0, of);
        merged.push((next, combine(a, b)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zone::histogram::bucket;

    fn of(values: &[u64]) -> Distribution {
        let mut words = vec![0; BUCKETS + 1];
        for value in values {
            words[bucket(*value)] += 1;
            words[BUCKETS] += value;
        }
        Distribution::of(&words)
    }

    #[test]
    fn quantiles() {
        let hundred = of(&(1..=100).map(|n| n * 1000).collect::<Vec<_>>());
        for (share, expected) in [(0.0, 1000), (0.5, 50_000), (0.99, 99_000), (1.0, 100_000)] {
            let read = hundred.quantile_ns(share).unwrap();
            assert!(read >= expected && read <= expected + expected / 16, "{share}: {read}");
        }
        assert_eq!(Distribution::default().quantile_ns(0.5), None);
        assert_eq!(of(&[7]).quantile_ns(0.99), Some(7));
    }

    #[test]
    fn sums_and_differences() {
        let (a, b) = (of(&[1, 5, 5]), of(&[5, 900]));
        let mut both = a.clone();
        both.add(&b);
        assert_eq!(both, of(&[1, 5, 5, 5, 900]));
        assert_eq!(both.since(&a), b);
        assert_eq!(both.since(&both), Distribution::default());
        assert_eq!((both.count(), both.sum_ns(), both.at_most(5)), (5, 916, 4));
    }
}
