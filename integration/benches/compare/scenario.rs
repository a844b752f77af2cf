//! What is measured, and the bars that Sluice has set itself.

use clap::ValueEnum;

use crate::peer::Peer;
use crate::results::{Measure, Results};

/// One thing to measure, with every peer that it makes sense for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Scenario {
    /// 1 KiB, keep-alive, 64 connections.
    K64,
    /// 1 KiB, keep-alive, 512 connections.
    K512,
    /// 1 KiB, a new client connection each, 64 at a time.
    Close64,
    /// 1 MiB, keep-alive, 16 connections.
    B1m,
    /// `k64` by Sluice alone, with the access log off and on.
    Log,
    /// Memory of idle keep-alive connections, one request each.
    Idle,
}

/// The requests of a scenario that puts load on a peer.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// What is asked of the origin.
    pub(crate) path: &'static str,
    /// How long its body is.
    pub(crate) body_bytes: usize,
    /// How many clients ask at once.
    pub(crate) connections: u32,
    /// Whether a client keeps its connection for its next request.
    pub(crate) keep_alive: bool,
}

/// How many connections the memory of one is an average over.
pub(crate) const IDLE_CONNECTIONS: u32 = 4000;

impl Scenario {
    /// What the tables and the chart call it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Scenario::K64 => "1 KiB, keep-alive, 64 connections",
            Scenario::K512 => "1 KiB, keep-alive, 512 connections",
            Scenario::Close64 => "1 KiB, a new connection each, 64 at once",
            Scenario::B1m => "1 MiB, keep-alive, 16 connections",
            Scenario::Log => "1 KiB, keep-alive, 64 connections, access log off and on",
            Scenario::Idle => "memory of an idle keep-alive connection",
        }
    }

    /// Its requests, or the one that tells whether a peer answers.
    pub(crate) fn load(self) -> Load {
        let small = Load { path: "/1k", body_bytes: 1024, connections: 64, keep_alive: true };
        match self {
            Scenario::K64 | Scenario::Log => small,
            Scenario::K512 => Load { connections: 512, ..small },
            Scenario::Close64 => Load { keep_alive: false, ..small },
            Scenario::B1m => Load { path: "/1m", body_bytes: 1 << 20, connections: 16, ..small },
            Scenario::Idle => Load { connections: IDLE_CONNECTIONS, ..small },
        }
    }

    /// Whom it compares. The floor holds no state worth weighing, so it sits out the memory.
    pub(crate) fn peers(self) -> &'static [Peer] {
        match self {
            Scenario::K64 | Scenario::K512 | Scenario::Close64 | Scenario::B1m => {
                &[Peer::Floor, Peer::Nginx, Peer::Haproxy, Peer::Sluice]
            }
            Scenario::Log => &[Peer::Sluice, Peer::SluiceLog],
            Scenario::Idle => &[Peer::Nginx, Peer::Haproxy, Peer::Sluice],
        }
    }
}

/// A figure that must not be exceeded.
pub(crate) struct Bar {
    /// Where it is measured.
    pub(crate) scenario: Scenario,
    /// What is measured.
    pub(crate) measure: Measure,
    /// Whose figure it is.
    pub(crate) subject: Peer,
    /// Whose figure of the same run it is a multiple of; `None` for an absolute bar.
    pub(crate) yardstick: Option<Peer>,
    /// The highest figure, or multiple, that passes.
    pub(crate) most: f64,
}

const fn bar(scenario: Scenario, most: f64, yardstick: Peer) -> Bar {
    Bar { scenario, measure: Measure::CpuMicros, subject: Peer::Sluice, yardstick: Some(yardstick), most }
}

/// Every bar, in the order of the table.
pub(crate) const BARS: &[Bar] = &[
    bar(Scenario::K64, 1.12, Peer::Floor),
    bar(Scenario::K64, 0.92, Peer::Nginx),
    bar(Scenario::K64, 0.88, Peer::Haproxy),
    bar(Scenario::K512, 1.05, Peer::Floor),
    bar(Scenario::K512, 0.75, Peer::Nginx),
    bar(Scenario::Close64, 0.95, Peer::Nginx),
    bar(Scenario::Close64, 0.85, Peer::Haproxy),
    bar(Scenario::B1m, 0.95, Peer::Nginx),
    bar(Scenario::B1m, 0.95, Peer::Haproxy),
    Bar { subject: Peer::SluiceLog, ..bar(Scenario::Log, 1.06, Peer::Sluice) },
    Bar { measure: Measure::P99Millis, ..bar(Scenario::K64, 1.0, Peer::Nginx) },
    Bar { scenario: Scenario::Idle, measure: Measure::IdleKib, subject: Peer::Sluice, yardstick: None, most: 1.0 },
];

impl Bar {
    /// The figure or multiple that was measured; `None` when this run did not measure it.
    pub(crate) fn measured(&self, results: &Results) -> Option<f64> {
        let figure = results.median(self.scenario, self.subject, self.measure)?;
        match self.yardstick {
            None => Some(figure),
            Some(peer) => Some(figure / results.median(self.scenario, peer, self.measure)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_is_about_peers_that_its_scenario_runs() {
        for bar in BARS {
            let peers = bar.scenario.peers();
            assert!(peers.contains(&bar.subject), "{:?}", bar.scenario);
            assert!(bar.yardstick.is_none_or(|peer| peers.contains(&peer)), "{:?}", bar.scenario);
        }
    }

    #[test]
    fn a_bar_is_a_multiple_of_its_yardstick_or_the_figure_itself() {
        let mut results = Results::default();
        results.add(Scenario::K64, Peer::Sluice, vec![(Measure::CpuMicros, 11.0)]);
        results.add(Scenario::Idle, Peer::Sluice, vec![(Measure::IdleKib, 0.75)]);
        assert_eq!(BARS[0].measured(&results), None, "no floor in this run");
        results.add(Scenario::K64, Peer::Floor, vec![(Measure::CpuMicros, 10.0)]);
        assert_eq!(BARS[0].measured(&results), Some(1.1));
        assert_eq!(BARS[BARS.len() - 1].measured(&results), Some(0.75));
    }
}
