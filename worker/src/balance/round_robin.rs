//! Smooth weighted round robin, as nginx does it: in any run of as many picks as the weights add up to, each server
//! gets its share, spread out rather than in a row.

/// Turns of weighted servers.
#[derive(Debug)]
pub(crate) struct RoundRobin {
    turns: Vec<Turn>,
}

#[derive(Debug)]
struct Turn {
    weight: i64,
    /// How far the server is ahead of its share (negative) or behind.
    current: i64,
}

impl RoundRobin {
    /// Begins at a place that `seed` decides, so that workers do not walk in step.
    pub(crate) fn new(weights: impl Iterator<Item = u32>, seed: u64) -> RoundRobin {
        let turns = weights.map(|weight| Turn { weight: i64::from(weight), current: 0 }).collect();
        let mut rule = RoundRobin { turns };
        let total: u64 = rule.turns.iter().map(|turn| turn.weight.unsigned_abs()).sum();
        for _ in 0..seed % total.clamp(1, 1024) {
            rule.pick(|_| true);
        }
        rule
    }

    /// The next server among those that `is_eligible` admits; `None` when it admits none.
    pub(crate) fn pick(&mut self, is_eligible: impl Fn(usize) -> bool) -> Option<usize> {
        let (mut best, mut total) = (None::<(usize, i64)>, 0);
        for (index, turn) in self.turns.iter_mut().enumerate() {
            if is_eligible(index) {
                total += turn.weight;
                turn.current += turn.weight;
                if best.is_none_or(|(_, current)| turn.current > current) {
                    best = Some((index, turn.current));
                }
            }
        }
        let (index, _) = best?;
        self.turns[index].current -= total;
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact_and_spread() {
        let mut rule = RoundRobin::new([5, 1, 1].into_iter(), 0);
        let picks: Vec<_> = std::iter::from_fn(|| rule.pick(|_| true)).take(7).collect();
        assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn any_start_gives_the_same_shares() {
        for seed in 0..50 {
            let mut rule = RoundRobin::new([3, 2].into_iter(), seed);
            let firsts = (0..500).filter(|_| rule.pick(|_| true) == Some(0)).count();
            assert_eq!(firsts, 300, "seed {seed}");
        }
    }

    #[test]
    fn the_ineligible_are_passed_over() {
        let mut rule = RoundRobin::new([1, 1].into_iter(), 0);
        assert!((0..10).all(|_| rule.pick(|index| index == 1) == Some(1)));
        assert_eq!(rule.pick(|_| false), None);
    }
}
