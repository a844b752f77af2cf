//! The rule by which running workers take over a change together: all must be ready for it before any serves it, and once
//! it is committed nothing takes it back.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use shared::channel::Report;
use shared::ident::Generation;

/// How long workers may take until all have built the configuration.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long they may take, after the commit, until all serve it.
const SWAP_TIMEOUT: Duration = Duration::from_secs(5);

/// Who has yet to say what is waited for.
#[derive(Debug)]
pub(crate) struct Ballot {
    generation: Generation,
    is_committed: bool,
    /// By pid.
    waiting: BTreeSet<i32>,
    /// When they have taken too long.
    deadline: Instant,
}

/// What is to be done about a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Wait for workers.
    Wait,
    /// All are ready: it becomes what is served.
    Commit,
    /// It comes to nothing, and why.
    Refuse(String),
    /// It is done, but for these workers, which are to be replaced.
    End(Vec<i32>),
}

impl Ballot {
    /// A change to `generation`, which nobody was asked to prepare for yet.
    pub(crate) fn new(generation: Generation, now: Instant) -> Ballot {
        Ballot { generation, is_committed: false, waiting: BTreeSet::new(), deadline: now + PREPARE_TIMEOUT }
    }

    /// What it is about.
    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// When [`decide`](Ballot::decide) has something new to say at the latest.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// A worker was asked to prepare.
    pub(crate) fn ask(&mut self, pid: i32) {
        self.waiting.insert(pid);
    }

    /// A worker says something. What is of an earlier change, or comes too late to matter, changes nothing.
    pub(crate) fn hear(&mut self, pid: i32, report: &Report) -> Decision {
        match report {
            Report::Prepared(generation) if *generation == self.generation && !self.is_committed => {
                self.waiting.remove(&pid);
            }
            Report::Swapped(generation) if *generation == self.generation && self.is_committed => {
                self.waiting.remove(&pid);
            }
            Report::Refused(generation, reason) if *generation == self.generation && !self.is_committed => {
                return Decision::Refuse(format!("worker {pid} cannot serve it: {reason}"));
            }
            _ => {}
        }
        Decision::Wait
    }

    /// A worker has ended; `of_those_asked` when it was one that the change is for. Before the commit that ends the change,
    /// as its successor could not take it over; after it the successor is started with it.
    pub(crate) fn lose(&mut self, pid: i32, of_those_asked: bool, how: &str) -> Decision {
        self.waiting.remove(&pid);
        if of_those_asked && !self.is_committed {
            return Decision::Refuse(format!("worker {pid} ended before all were ready for it: {how}"));
        }
        Decision::Wait
    }

    /// What to do now: all may have said what is waited for, or be late.
    pub(crate) fn decide(&self, now: Instant) -> Decision {
        let is_late = self.deadline <= now;
        match (self.is_committed, self.waiting.len()) {
            (false, 0) => Decision::Commit,
            (true, 0) => Decision::End(Vec::new()),
            (false, left) if is_late => {
                Decision::Refuse(format!("{left} workers were not ready for it after {PREPARE_TIMEOUT:?}"))
            }
            (true, _) if is_late => Decision::End(self.waiting.iter().copied().collect()),
            _ => Decision::Wait,
        }
    }

    /// It is what is served from now on, whatever happens; these workers were told.
    pub(crate) fn commit(&mut self, told: impl IntoIterator<Item = i32>, now: Instant) {
        self.is_committed = true;
        self.waiting = told.into_iter().collect();
        self.deadline = now + SWAP_TIMEOUT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEVENTH: Generation = Generation(7);

    fn ballot(now: Instant) -> Ballot {
        let mut ballot = Ballot::new(SEVENTH, now);
        [1, 2].into_iter().for_each(|pid| ballot.ask(pid));
        ballot
    }

    #[test]
    fn all_must_be_ready_and_then_all_must_follow() {
        let now = Instant::now();
        let mut ballot = ballot(now);
        assert_eq!(ballot.hear(1, &Report::Prepared(SEVENTH)), Decision::Wait);
        assert_eq!(ballot.decide(now), Decision::Wait);
        ballot.hear(2, &Report::Prepared(Generation(6)));
        ballot.hear(2, &Report::Swapped(SEVENTH));
        assert_eq!(ballot.decide(now), Decision::Wait, "that was not what is waited for");
        ballot.hear(2, &Report::Prepared(SEVENTH));
        assert_eq!(ballot.decide(now), Decision::Commit);
        ballot.commit([1, 2, 3], now);
        ballot.hear(1, &Report::Prepared(SEVENTH));
        assert_eq!(ballot.decide(now), Decision::Wait);
        [1, 2].iter().for_each(|pid| drop(ballot.hear(*pid, &Report::Swapped(SEVENTH))));
        assert_eq!(ballot.decide(now + SWAP_TIMEOUT), Decision::End(vec![3]));
        assert_eq!(ballot.lose(3, true, "SIGKILL"), Decision::Wait, "its successor has it");
        assert_eq!(ballot.decide(now), Decision::End(vec![]));
    }

    #[test]
    fn before_the_commit_any_failure_refuses_and_after_it_none() {
        let now = Instant::now();
        let no = Report::Refused(SEVENTH, "no".into());
        let is_refused = |decision: Decision| matches!(decision, Decision::Refuse(_));
        assert!(is_refused(ballot(now).hear(2, &no)));
        assert!(is_refused(ballot(now).lose(2, true, "exit code 1")));
        assert!(is_refused(ballot(now).decide(now + PREPARE_TIMEOUT)));
        assert!(!is_refused(ballot(now).decide(now + PREPARE_TIMEOUT - Duration::from_nanos(1))));
        assert!(!is_refused(ballot(now).hear(2, &Report::Refused(Generation(6), "no".into()))), "an earlier one");
        assert!(!is_refused(ballot(now).lose(9, false, "SIGKILL")), "one that drains");
        let mut committed = ballot(now);
        committed.commit([1, 2], now);
        assert!(!is_refused(committed.hear(2, &no)));
        assert!(!is_refused(committed.lose(2, true, "SIGKILL")));
        assert!(!is_refused(committed.decide(now + PREPARE_TIMEOUT)));
    }
}
