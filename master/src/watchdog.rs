//! The rule by which a worker is given up whose loop stands still.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use shared::clock::monotonic_ns;
use slog::error;

use crate::cycle::Master;

/// How often it is looked.
const INTERVAL: Duration = Duration::from_secs(1);

/// When it was last looked.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    last: Option<Instant>,
}

impl Watchdog {
    /// When to look next.
    pub(crate) fn deadline(&self, now: Instant) -> Instant {
        self.last.map_or(now, |last| last + INTERVAL)
    }

    /// Whether this look counts: who was late himself (stopped, suspended) may have been so together with the others, and
    /// does not judge them. `None` when it is not time yet.
    pub(crate) fn look(&mut self, now: Instant) -> Option<bool> {
        if self.deadline(now) > now {
            return None;
        }
        let was_on_time = self.last.is_some_and(|last| now - last < 2 * INTERVAL);
        self.last = Some(now);
        Some(was_on_time)
    }
}

impl Master {
    /// When [`watch`](Master::watch) has something to do.
    pub(crate) fn next_watch(&self) -> Option<Instant> {
        self.watch_limit().map(|_| self.watchdog.deadline(Instant::now()))
    }

    /// How long a loop may stand still, if workers are watched.
    fn watch_limit(&self) -> Option<Duration> {
        self.serving.as_ref().and_then(|cohort| cohort.config.watchdog)
    }

    /// Gives up workers whose loop stands still; their ends are followed by others.
    pub(crate) fn watch(&mut self, now: Instant) {
        let (Some(limit), Some(zone)) = (self.watch_limit(), self.zone) else { return };
        if self.watchdog.look(now) != Some(true) {
            return;
        }
        for child in self.children.iter().filter(|child| child.is_ready) {
            let Some(slot) = child.slot() else { continue };
            let still = Duration::from_nanos(monotonic_ns().saturating_sub(zone.process(slot).heartbeat.get()));
            if still > limit {
                error!(self.log, "a worker's loop has stood still for {} s: it is killed", still.as_secs(); "worker" => child.pid());
                child.kill();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_look_does_not_count() {
        let (mut watchdog, start) = (Watchdog::default(), Instant::now());
        for (millis, expected) in [
            (0, Some(false)),
            (999, None),
            (1000, Some(true)),
            (2100, Some(true)),
            (9000, Some(false)),
            (10_000, Some(true)),
        ] {
            assert_eq!(watchdog.look(start + Duration::from_millis(millis)), expected, "{millis}");
        }
    }
}
