//! What an operator orders about workers, and is done at once.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use shared::channel::Command;

use crate::children::{Child, Urgency};
use crate::cycle::Master;
use crate::reload::Change;

impl Master {
    /// Whether a worker is on its way out, or another configuration than its own is served.
    fn is_old(&self, child: &Child) -> bool {
        let serves = self.serving.as_ref().is_some_and(|cohort| child.is_of(cohort.generation));
        let is_starting =
            matches!(&self.change, Some(Change::Starting { cohort, .. }) if child.is_of(cohort.generation));
        child.is_worker() && (child.is_leaving() || !serves && !is_starting)
    }

    /// Has old workers, or all, close the connections on which nothing happens; says how many were told.
    pub(crate) fn close_idle(&self, all: bool) -> usize {
        let are_told = |child: &&Child| child.is_worker() && (all || self.is_old(child));
        // One that is too busy to hear has nothing idle that matters.
        self.children.iter().filter(are_told).filter(|child| child.ask(&Command::CloseIdle).is_ok()).count()
    }

    /// Stops old workers; says how many there are.
    pub(crate) fn stop_old(&mut self, now: Instant) -> usize {
        let old: Vec<i32> = self.children.iter().filter(|child| self.is_old(child)).map(Child::pid).collect();
        self.children.urge(Urgency::Stop, now, Duration::ZERO, |child| old.contains(&child.pid()));
        old.len()
    }
}
