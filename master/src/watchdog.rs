//! The rule by which a worker is given up whose loop stands still: it is asked where it is, has a moment to say so, and is
//! killed.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shared::clock::monotonic_ns;
use slog::{error, warn};

use crate::children::Child;
use crate::cycle::Master;

/// How often it is looked.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a worker that stands still may take to tell where.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// When it was last looked, and who was asked then.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    last: Option<Instant>,
    /// By pid, who was asked where it is, and until when it may answer.
    asked: BTreeMap<i32, Instant>,
}

impl Watchdog {
    /// When the time of the first that was asked is up.
    pub(crate) fn answer_deadline(&self) -> Option<Instant> {
        self.asked.values().copied().min()
    }

    /// When to look next.
    pub(crate) fn next_look(&self, now: Instant) -> Instant {
        self.last.map_or(now, |last| last + INTERVAL)
    }

    /// A worker stands still. Whether it is to be asked where: it was not yet.
    pub(crate) fn ask(&mut self, pid: i32, now: Instant) -> bool {
        let is_new = !self.asked.contains_key(&pid);
        self.asked.entry(pid).or_insert(now + ANSWER_TIMEOUT);
        is_new
    }

    /// A worker says where it is. Whether it is to be given up now: it was asked because it stands still.
    pub(crate) fn answered(&mut self, pid: i32) -> bool {
        self.asked.remove(&pid).is_some()
    }

    /// Those whose time to answer is up: they are to be given up without.
    pub(crate) fn silent(&mut self, now: Instant) -> Vec<i32> {
        self.asked.extract_if(.., |_, until| *until <= now).map(|(pid, _)| pid).collect()
    }

    /// A process has ended: its number may come to mean another one.
    pub(crate) fn forget(&mut self, pid: i32) {
        self.asked.remove(&pid);
    }

    /// Whether this look counts: who was late himself (stopped, suspended) may have been so together with the others, and
    /// does not judge them. `None` when it is not time yet.
    pub(crate) fn look(&mut self, now: Instant) -> Option<bool> {
        if self.next_look(now) > now {
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
        let look = self.zone.and(self.watch_limit()).map(|_| self.watchdog.next_look(Instant::now()));
        look.into_iter().chain(self.watchdog.answer_deadline()).min()
    }

    /// How long a loop may stand still, if workers are watched.
    fn watch_limit(&self) -> Option<Duration> {
        self.serving.as_ref().and_then(|cohort| cohort.config.watchdog)
    }

    /// Gives up workers whose loop stands still; their ends are followed by others.
    pub(crate) fn watch(&mut self, now: Instant) {
        for pid in self.watchdog.silent(now) {
            warn!(self.log, "the worker that stands still does not say where"; "worker" => pid);
            self.give_up(pid);
        }
        let (Some(limit), Some(zone)) = (self.watch_limit(), self.zone) else { return };
        if self.watchdog.look(now) != Some(true) {
            return;
        }
        for child in self.children.iter().filter(|child| child.is_ready) {
            let Some(slot) = child.slot() else { continue };
            let still = Duration::from_nanos(monotonic_ns().saturating_sub(zone.process(slot).heartbeat.get()));
            if still > limit && self.watchdog.ask(child.pid(), now) {
                error!(self.log, "a worker's loop has stood still for {} s: it is asked where, and killed", still.as_secs(); "worker" => child.pid());
                child.ask_where();
            }
        }
    }

    /// Kills a worker that stands still.
    pub(crate) fn give_up(&self, pid: i32) {
        self.children.iter().filter(|child| child.pid() == pid).for_each(Child::kill);
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

    #[test]
    fn who_is_asked_has_a_moment_and_is_asked_once() {
        let (mut watchdog, start) = (Watchdog::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        watchdog.look(start);
        assert!(watchdog.ask(7, start) && watchdog.ask(8, start) && watchdog.ask(9, at(100)));
        assert!(!watchdog.ask(7, at(400)));
        assert_eq!(watchdog.answer_deadline(), Some(at(500)));
        assert!(watchdog.silent(at(499)).is_empty());
        assert!(watchdog.answered(8) && !watchdog.answered(8), "it is given up once");
        assert_eq!(watchdog.silent(at(500)), [7]);
        assert_eq!(watchdog.answer_deadline(), Some(at(600)));
        watchdog.forget(9);
        assert!(watchdog.silent(at(600)).is_empty() && watchdog.answer_deadline().is_none());
        assert!(!watchdog.answered(1), "who was not asked is not given up");
    }
}
