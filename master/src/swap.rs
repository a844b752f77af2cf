//! A change that running workers take over: none of them is replaced, no connection is closed.
//!
//! First every worker makes the configuration ready beside the one that it serves, and says so; until then anything that
//! fails refuses the change. Then it is committed: a worker that does not follow in time is replaced.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use conf::diff::{self, Effect};
use conf::model::Config;
use shared::channel::{Command, Report, SOCKETS_MAX};
use shared::fd::seal;
use shared::ident::Generation;
use shared::zone::Zone;
use slog::{error, info};

use crate::ballot::{Ballot, Decision};
use crate::children::{Child, Exit};
use crate::cohort::Cohort;
use crate::cycle::Master;
use crate::listeners::Company;
use crate::reload::Change;

/// A change that running workers take over.
pub(crate) struct Swap {
    /// What they take over; none once it is committed, when it is what the master serves.
    pub(crate) cohort: Option<Cohort>,
    /// How far the workers are.
    pub(crate) ballot: Ballot,
    /// What is said of the change when it is done.
    summary: String,
}

impl Master {
    /// Whether the workers that run can make these changes: nothing in them takes other ones, and all are there.
    pub(crate) fn can_swap(&self, changes: &[diff::Change]) -> bool {
        changes.iter().all(|change| change.effect == Effect::Live)
            && self.respawns.is_empty()
            && !self.rests
            && self.all_serve()
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
        let mut swap = Swap { cohort: None, ballot: Ballot::new(generation, now), summary: summary(changes) };
        let asked = ask_all(&cohort, serving, zone, self.children.iter(), &mut swap.ballot);
        swap.cohort = Some(cohort);
        // Even when not all could be asked, those that were must be told.
        self.change = Some(Change::Swapping(swap));
        asked
    }

    /// A worker says how far it is.
    pub(crate) fn swap_reported(&mut self, pid: i32, report: &Report) {
        let Some(Change::Swapping(swap)) = &mut self.change else { return };
        let (generation, decision) = (swap.ballot.generation(), swap.ballot.hear(pid, report));
        self.refuse_if(generation, decision);
    }

    /// A worker has ended that served `served`.
    pub(crate) fn swap_lost(&mut self, pid: i32, served: Generation, exit: Exit) {
        let Some(Change::Swapping(swap)) = &mut self.change else { return };
        let of_those_asked = self.serving.as_ref().is_some_and(|serving| serving.generation == served);
        let decision = swap.ballot.lose(pid, of_those_asked, &exit.to_string());
        let generation = swap.ballot.generation();
        self.refuse_if(generation, decision);
    }

    fn refuse_if(&mut self, generation: Generation, decision: Decision) {
        if let Decision::Refuse(reason) = decision {
            self.refuse(generation, reason);
        }
    }

    /// Goes on with the change.
    pub(crate) fn advance_swap(&mut self, now: Instant) {
        let Some(Change::Swapping(swap)) = &self.change else { return };
        match swap.ballot.decide(now) {
            Decision::Wait => {}
            Decision::Commit => self.commit_swap(now),
            Decision::Refuse(reason) => self.refuse(swap.ballot.generation(), reason),
            Decision::End(late) => {
                for child in self.children.iter().filter(|child| late.contains(&child.pid())) {
                    error!(self.log, "a worker does not take over the configuration and is replaced"; "worker" => child.pid());
                    child.kill();
                }
                self.end_swap();
            }
        }
    }

    /// The configuration is what is served from now on, whatever happens.
    fn commit_swap(&mut self, now: Instant) {
        let Some(Change::Swapping(swap)) = &mut self.change else { return };
        let (Some(cohort), Some(zone)) = (swap.cohort.take(), self.zone) else { return };
        let generation = swap.ballot.generation();
        self.log = cohort.logs.logger();
        let previous = self.serving.replace(cohort);
        let Some(Cohort { generation: earlier, listeners, .. }) = previous else { return };
        listeners.unlink_all_but(self.serving.as_ref().map(|serving| &serving.listeners));
        // Our copies first: what a worker finds in the queue of an address that goes is then the last of it.
        drop(listeners);
        let mut told = Vec::new();
        for child in self.children.iter_mut().filter(|child| child.is_of(earlier)) {
            child.slot().into_iter().for_each(|slot| zone.promote(slot, generation));
            child.promote(generation);
            child.tell(&Command::Commit(generation));
            told.push(child.pid());
        }
        swap.ballot.commit(told, now);
        self.note_committed();
        self.clear_quarantine();
    }

    fn end_swap(&mut self) {
        let Some(Change::Swapping(swap)) = self.change.take() else { return };
        if let Some(zone) = self.zone {
            zone.set_verdict(swap.ballot.generation(), true, &swap.summary);
        }
        self.supervisors.clear();
        let Some(serving) = &self.serving else { return };
        let generation = swap.ballot.generation();
        self.service.ready(generation, None, &self.log);
        info!(self.log, "reloaded: {}", swap.summary; "generation" => generation.0, "workers" => serving.seats,
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

/// Publishes what `cohort` names and sends every worker of `serving` what it needs.
fn ask_all<'c>(
    cohort: &Cohort,
    serving: &Cohort,
    zone: &'static Zone,
    children: impl Iterator<Item = &'c Child>,
    ballot: &mut Ballot,
) -> Result<(), String> {
    zone.publish(&cohort.catalog()).map_err(|error| error.to_string())?;
    for child in children.filter(|child| child.is_of(serving.generation)) {
        ballot.ask(child.pid());
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
