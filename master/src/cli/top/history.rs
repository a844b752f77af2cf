//! Requests a second, as they were.

#![forbid(unsafe_code)]

use std::collections::VecDeque;

/// More than any terminal has columns.
const POINTS_MAX: usize = 512;

/// The last rates, oldest first.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<u64>);

impl History {
    /// Notes that `requests` ended within `seconds`.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(super) fn add(&mut self, requests: u64, seconds: f64) {
        if self.0.len() == POINTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((requests as f64 / seconds.max(f64::MIN_POSITIVE)).round() as u64);
    }

    /// The last `count` rates, zeroes before the first.
    pub(super) fn last(&self, count: usize) -> Vec<u64> {
        let missing = count.saturating_sub(self.0.len());
        let known = self.0.iter().skip(self.0.len().saturating_sub(count)).copied();
        std::iter::repeat_n(0, missing).chain(known).collect()
    }

    /// The highest rate of all.
    pub(super) fn peak(&self) -> u64 {
        self.0.iter().copied().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_last_and_the_oldest_goes() {
        let mut history = History::default();
        assert_eq!(history.last(2), [0, 0]);
        history.add(3, 2.0);
        history.add(10, 1.0);
        assert_eq!((history.last(3), history.last(1), history.peak()), (vec![0, 2, 10], vec![10], 10));
        (0..600).for_each(|_| history.add(1, 1.0));
        assert_eq!((history.last(600).len(), history.peak()), (600, 1));
    }
}
