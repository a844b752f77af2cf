//! The rule by which a worker that died is replaced: at once the first time, later and later while it keeps dying,
//! and not at all when it cannot even start.

#![forbid(unsafe_code)]

use std::time::Duration;

/// A worker that was ready and lived this long has proved itself: the next death is a first one again.
const STEADY_AFTER: Duration = Duration::from_secs(10);
/// The pause before the second replacement; it doubles with each one after that.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// This many deaths in a row before a worker was ready are a crash loop.
const FAILED_STARTS_MAX: u32 = 5;

/// The history of one seat, as far as the rule needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Supervisor {
    /// Deaths since a worker on this seat last proved itself.
    deaths: u32,
    /// Those at the end of `deaths` that came before the worker was ready.
    failed_starts: u32,
}

/// What is known of a worker when it has died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Life {
    /// Whether it ever served.
    pub(crate) was_ready: bool,
    /// From the fork to the exit.
    pub(crate) lived: Duration,
}

/// What is to be done about a worker's death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Start another after this pause, which may be zero.
    Respawn(Duration),
    /// It is a crash loop; starting more would not help. The number of failed starts in a row.
    GiveUp(u32),
}

impl Supervisor {
    /// Decides what follows a death that nobody asked for.
    pub(crate) fn on_exit(&mut self, life: Life) -> Decision {
        if life.was_ready && life.lived >= STEADY_AFTER {
            *self = Supervisor::default();
        }
        self.deaths = self.deaths.saturating_add(1);
        self.failed_starts = if life.was_ready { 0 } else { self.failed_starts + 1 };
        if self.failed_starts >= FAILED_STARTS_MAX {
            return Decision::GiveUp(self.failed_starts);
        }
        Decision::Respawn(pause(self.deaths))
    }
}

fn pause(deaths: u32) -> Duration {
    match deaths.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_PAUSE.saturating_mul(1 << doublings.min(16)).min(PAUSE_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STILLBORN: Life = Life { was_ready: false, lived: Duration::from_millis(3) };
    const BRIEF: Life = Life { was_ready: true, lived: Duration::from_millis(300) };
    const LONG: Life = Life { was_ready: true, lived: Duration::from_secs(3600) };

    fn respawn(milliseconds: u64) -> Decision {
        Decision::Respawn(Duration::from_millis(milliseconds))
    }

    #[test]
    fn decisions() {
        let table: &[(&str, &[Life], Decision)] = &[
            ("the first death", &[LONG], respawn(0)),
            ("the first death, though early", &[STILLBORN], respawn(0)),
            ("long lives do not add up", &[LONG, LONG, LONG], respawn(0)),
            ("a second death soon after", &[LONG, BRIEF], respawn(100)),
            ("a third", &[LONG, BRIEF, BRIEF], respawn(200)),
            ("brief lives never end it", &[BRIEF; 40], respawn(5000)),
            ("a long life forgives", &[BRIEF, BRIEF, BRIEF, LONG], respawn(0)),
            ("four failed starts", &[STILLBORN; 4], respawn(400)),
            ("five are a crash loop", &[STILLBORN; 5], Decision::GiveUp(5)),
            (
                "five are not, with a ready worker among them",
                &[STILLBORN, STILLBORN, BRIEF, STILLBORN, STILLBORN],
                respawn(800),
            ),
        ];
        for (name, lives, expected) in table {
            let mut supervisor = Supervisor::default();
            let last = lives.iter().map(|life| supervisor.on_exit(*life)).last();
            assert_eq!(last, Some(*expected), "{name}");
        }
    }
}
