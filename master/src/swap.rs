//! A change that running workers take over: none of them is replaced, no connection is closed.
//!
//! First every worker makes the configuration ready beside the one that it serves, and says so; until then anything that
//! fails refuses the change. Then it is committed: a worker that does not follow in time is replaced.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use conf::diff::{self, Effect};
use conf::model::Config;
use shared::channel::{Command, Report, SOCKETS_MAX};
use shared::fd::seal;
use shared::ident::Generation;
use shared::zone::Zone;
use slog::{error, info};

use crate::children::{Child, Exit};
use crate::cohort::Cohort;
use crate::cycle::Master;
use crate::listeners::Company;
use crate::reload::Change;

/// How long workers may take until all have built the configuration.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long they may take, after the commit, until all serve it.
const SWAP_TIMEOUT: Duration = Duration::from_secs(5);

/// A change that running workers take over.
pub(crate) struct Swap {
    /// What they take over; none once it is committed, when it is what the master serves.
    pub(crate) cohort: Option<Cohort>,
    /// When they have taken too long.
    pub(crate) deadline: Instant,
    generation: Generation,
    /// By pid, who has not yet said what is waited for.
    waiting: BTreeSet<i32>,
    /// What is said of the change when it is done.
    summary: String,
}

impl Master {
    /// Whether the workers that run can make these changes: nothing in them takes other ones, and all are there.
    pub(crate) fn can_swap(&self, changes: &[diff::Change]) -> bool {
        let Some(serving) = &self.serving else { return false };
        let is_at_work = |child: &&Child| child.is_of(serving.generation) && child.is_ready && !child.is_leaving();
        changes.iter().all(|change| change.effect == Effect::Live)
            && self.respawns.is_empty()
            && !self.rests
            && self.children.iter().filter(is_at_work).count() == serving.seats as usize
    }

    /// Has every worker make the configuration ready.
    pub(crate) fn start_swap(
        &mut self,
        generation: Generation,
        config: Arc<Config>,
        text: String,
        changes: &[diff::Change],
        now: Instant,
    ) -> Result<(), String> {
        let (Some(serving), Some(zone)) = (&self.serving, self.zone) else { return Ok(()) };
        let cohort = Cohort::open(generation, config, text, Some(&serving.listeners), Company::Nobody)?;
        let mut swap = Swap {
            cohort: None,
            deadline: now + PREPARE_TIMEOUT,
            generation,
            waiting: BTreeSet::new(),
            summary: summary(changes),
        };
        let asked = ask_all(&cohort, serving, zone, self.children.iter(), &mut swap.waiting);
        swap.cohort = Some(cohort);
        // Even when not all could be asked, those that were must be told.
        self.change = Some(Change::Swapping(swap));
        asked
    }

    /// A worker says how far it is.
    pub(crate) fn swap_reported(&mut self, pid: i32, report: Report) {
        let Some(Change::Swapping(swap)) = &mut self.change else { return };
        let is_committed = swap.cohort.is_none();
        match report {
            Report::Prepared(generation) if generation == swap.generation && !is_committed => {
                swap.waiting.remove(&pid);
            }
            Report::Swapped(generation) if generation == swap.generation && is_committed => {
                swap.waiting.remove(&pid);
            }
            Report::Refused(generation, reason) if generation == swap.generation && !is_committed => {
                self.refuse(generation, format!("worker {pid} cannot serve it: {reason}"));
            }
            // Of an earlier change.
            _ => {}
        }
    }

    /// A worker has ended. Before the commit that ends the change, as its successor could not take it over; after it the
    /// successor is started with it.
    pub(crate) fn swap_lost(&mut self, pid: i32, served: Generation, exit: Exit) {
        let Some(Change::Swapping(swap)) = &mut self.change else { return };
        swap.waiting.remove(&pid);
        let was_asked = self.serving.as_ref().is_some_and(|serving| serving.generation == served);
        if swap.cohort.is_some() && was_asked {
            let generation = swap.generation;
            self.refuse(generation, format!("worker {pid} ended before all were ready for it: {exit}"));
        }
    }

    /// Goes on with the change: all may have said what is waited for, or be late.
    pub(crate) fn advance_swap(&mut self, now: Instant) {
        let Some(Change::Swapping(swap)) = &mut self.change else { return };
        let (is_late, generation, left) = (swap.deadline <= now, swap.generation, swap.waiting.len());
        match (swap.cohort.is_some(), left) {
            (true, 0) => self.commit_swap(now),
            (true, _) if is_late => {
                self.refuse(generation, format!("{left} workers were not ready for it after {PREPARE_TIMEOUT:?}"));
            }
            (false, 0) => self.end_swap(),
            (false, _) if is_late => {
                for child in self.children.iter().filter(|child| swap.waiting.contains(&child.pid())) {
                    error!(self.log, "a worker does not take over the configuration and is replaced"; "worker" => child.pid());
                    child.kill();
                }
                self.end_swap();
            }
            _ => {}
        }
    }

    /// The configuration is what is served from now on, whatever happens.
    fn commit_swap(&mut self, now: Instant) {
        let Some(Change::Swapping(swap)) = &mut self.change else { return };
        let (Some(cohort), Some(zone)) = (swap.cohort.take(), self.zone) else { return };
        let generation = swap.generation;
        swap.deadline = now + SWAP_TIMEOUT;
        self.log = cohort.logs.logger();
        let previous = self.serving.replace(cohort);
        let Some(Cohort { generation: earlier, listeners, .. }) = previous else { return };
        listeners.unlink_all_but(self.serving.as_ref().map(|serving| &serving.listeners));
        // Our copies first: what a worker finds in the queue of an address that goes is then the last of it.
        drop(listeners);
        for child in self.children.iter_mut().filter(|child| child.is_of(earlier)) {
            child.slot().into_iter().for_each(|slot| zone.promote(slot, generation));
            child.promote(generation);
            child.tell(&Command::Commit(generation));
            swap.waiting.insert(child.pid());
        }
        self.note_committed();
        self.clear_quarantine();
    }

    fn end_swap(&mut self) {
        let Some(Change::Swapping(swap)) = self.change.take() else { return };
        if let Some(zone) = self.zone {
            zone.set_verdict(swap.generation, true, &swap.summary);
        }
        self.supervisors.clear();
        let Some(serving) = &self.serving else { return };
        self.service.ready(swap.generation, None, &self.log);
        info!(self.log, "reloaded: {}", swap.summary; "generation" => swap.generation.0, "workers" => serving.seats,
            "listeners" => serving.listeners.addresses().join(" "));
    }

    /// Nothing comes of the change.
    pub(crate) fn abandon_swap(&mut self, swap: Swap) {
        let (Some(serving), Some(cohort)) = (&self.serving, swap.cohort) else { return };
        self.children
            .iter()
            .filter(|child| child.is_of(serving.generation))
            .for_each(|child| child.tell(&Command::Abandon));
        cohort.listeners.unlink_all_but(Some(&serving.listeners));
    }
}

/// Publishes what `cohort` names and sends every worker of `serving` what it needs. `asked` are those that were sent it.
fn ask_all<'c>(
    cohort: &Cohort,
    serving: &Cohort,
    zone: &'static Zone,
    children: impl Iterator<Item = &'c Child>,
    asked: &mut BTreeSet<i32>,
) -> Result<(), String> {
    zone.publish(&cohort.catalog()).map_err(|error| error.to_string())?;
    for child in children.filter(|child| child.is_of(serving.generation)) {
        asked.insert(child.pid());
        ask(child, cohort, serving, zone)
            .map_err(|error| format!("cannot send worker {} the configuration: {error}", child.pid()))?;
    }
    Ok(())
}

fn ask(child: &Child, cohort: &Cohort, serving: &Cohort, zone: &'static Zone) -> io::Result<()> {
    let Some(slot) = child.slot() else { return Ok(()) };
    for (listener, mut sockets) in cohort.listeners.share_new(&serving.listeners)? {
        while !sockets.is_empty() {
            let rest = sockets.split_off(sockets.len().min(SOCKETS_MAX));
            child.ask(&Command::Sockets { listener, sockets: std::mem::replace(&mut sockets, rest) })?;
        }
    }
    let (access_log, _) = cohort.logs.share()?;
    child.ask(&Command::Prepare {
        generation: cohort.generation,
        text: seal("configuration", cohort.text.as_bytes())?,
        bearings: seal("bearings", &zone.bearings(slot))?,
        access_log: access_log.map(OwnedFd::from),
    })
}

/// What has changed, in a sentence.
fn summary(changes: &[diff::Change]) -> String {
    let count = changes.len();
    let shown: Vec<&str> = changes.iter().take(5).map(|change| change.path.as_str()).collect();
    let more = if count > shown.len() { ", ..." } else { "" };
    match count {
        0 => "nothing has changed".into(),
        _ => format!("changed while running: {}{more} ({count})", shown.join(", ")),
    }
}
