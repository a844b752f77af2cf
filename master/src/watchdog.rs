//! The rule by which a worker is given up whose loop stands still.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

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
