//! The buckets of a histogram: log-linear, sixteen to each doubling, over all of `u64`.
//!
//! A value below 32 has a bucket of its own; above, a bucket is as wide as a sixteenth of its octave, so what is read
//! back is at most 6.25 % above what was recorded.

#![forbid(unsafe_code)]

/// How many buckets there are.
pub const BUCKETS: usize = 976;
/// The word after the buckets: the sum of all recorded values, wrapping.
pub(crate) const SUM: usize = BUCKETS;
/// The words of one block.
pub(crate) const WORDS: usize = BUCKETS + 1;

const SUBS: u64 = 16;

/// The bucket that counts `value`; below [`BUCKETS`].
#[inline]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "at most 59 * 16 + 31")]
pub fn bucket(value: u64) -> usize {
    let shift = (value | SUBS).ilog2() - SUBS.ilog2();
    (u64::from(shift) * SUBS + (value >> shift)) as usize
}

/// The greatest value that `bucket` counts.
#[must_use]
pub fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket.min(BUCKETS - 1) as u64;
    let shift = (bucket / SUBS).saturating_sub(1);
    ((bucket - shift * SUBS) << shift) | ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_meet_without_gap_or_overlap() {
        for at in 0..BUCKETS {
            assert_eq!(bucket(upper_bound(at)), at);
            assert_eq!(upper_bound(at).checked_add(1).map(bucket), Some(at + 1).filter(|next| *next < BUCKETS));
        }
    }

    #[test]
    fn read_back_is_within_a_sixteenth() {
        for value in
            (0..64).flat_map(|bit| [1u64 << bit, (1 << bit) - 1, (1 << bit) + (1 << bit) / 3]).chain([u64::MAX])
        {
            let read = upper_bound(bucket(value));
            assert!(read >= value && read - value <= value / 16, "{value} {read}");
        }
    }
}
