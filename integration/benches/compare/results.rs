//! The figures of a run, and the median of those that were measured several times.

use crate::peer::Peer;
use crate::scenario::Scenario;

/// A kind of figure, with its unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Measure {
    /// CPU time of the whole process tree, in microseconds a request.
    CpuMicros,
    /// The part of it spent in the process's own code.
    UserMicros,
    /// Requests answered in a second.
    RequestsPerSecond,
    /// The latency that half of the requests stay under, in milliseconds.
    P50Millis,
    /// The latency that 99 % of the requests stay under, in milliseconds.
    P99Millis,
    /// How much of its core the proxy used, in percent. Much less than 100: the load was the limit.
    BusyPercent,
    /// How much of the proxy's core others took, in percent: processes, and the hypervisor.
    ForeignPercent,
    /// Private memory an idle connection, in KiB.
    IdleKib,
}

/// The figures of one run of one peer.
pub(crate) type Sample = Vec<(Measure, f64)>;

/// Above this a figure says more about the machine than about the proxy.
pub(crate) const NOISE_PERCENT: f64 = 5.0;

/// All samples, in the order they were taken.
#[derive(Default)]
pub(crate) struct Results {
    rows: Vec<(Scenario, Peer, Sample)>,
}

impl Results {
    /// Takes in one more run.
    pub(crate) fn add(&mut self, scenario: Scenario, peer: Peer, sample: Sample) {
        self.rows.push((scenario, peer, sample));
    }

    /// The median over the rounds; `None` when nothing of the kind was measured.
    pub(crate) fn median(&self, scenario: Scenario, peer: Peer, measure: Measure) -> Option<f64> {
        let values = self.sorted(scenario, peer, measure);
        let upper = *values.get(values.len() / 2)?;
        if values.len() % 2 == 1 { Some(upper) } else { Some((values[values.len() / 2 - 1] + upper) / 2.0) }
    }

    /// The least and the greatest over the rounds.
    pub(crate) fn range(&self, scenario: Scenario, peer: Peer, measure: Measure) -> Option<(f64, f64)> {
        let values = self.sorted(scenario, peer, measure);
        Some((*values.first()?, *values.last()?))
    }

    /// Whether any run of the scenario shared its core with something else.
    pub(crate) fn is_noisy(&self, scenario: Scenario, peer: Peer) -> bool {
        self.range(scenario, peer, Measure::ForeignPercent).is_some_and(|(_, most)| most > NOISE_PERCENT)
    }

    fn sorted(&self, scenario: Scenario, peer: Peer, measure: Measure) -> Vec<f64> {
        let rows = self.rows.iter().filter(|row| row.0 == scenario && row.1 == peer);
        let figures = rows.flat_map(|row| &row.2).filter(|figure| figure.0 == measure);
        let mut values: Vec<f64> = figures.map(|figure| figure.1).collect();
        values.sort_by(f64::total_cmp);
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ranges() {
        let table = [
            (&[] as &[f64], None, None),
            (&[3.0], Some(3.0), Some((3.0, 3.0))),
            (&[9.0, 1.0, 2.0], Some(2.0), Some((1.0, 9.0))),
            (&[4.0, 1.0, 2.0, 9.0], Some(3.0), Some((1.0, 9.0))),
        ];
        for (values, median, range) in table {
            let mut results = Results::default();
            results.add(Scenario::K512, Peer::Nginx, vec![(Measure::CpuMicros, 77.0)]);
            for value in values {
                results.add(Scenario::K64, Peer::Nginx, vec![(Measure::P50Millis, 5.0), (Measure::CpuMicros, *value)]);
            }
            assert_eq!(results.median(Scenario::K64, Peer::Nginx, Measure::CpuMicros), median);
            assert_eq!(results.range(Scenario::K64, Peer::Nginx, Measure::CpuMicros), range);
        }
    }
}
