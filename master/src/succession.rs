//! What follows the death of a child: a change that it was part of ends, and another one takes its place.
//!
//! When, and whether at all, is the rule of [`Supervisor`](crate::supervisor::Supervisor).

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use shared::ident::{Generation, Seat};
use shared::zone::LastWords;
use slog::{error, info, o, warn};

use crate::black_box;
use crate::children::{Child, Exit, Role};
use crate::cohort::Cohort;
use crate::cycle::Master;
use crate::quarantine::is_fault;
use crate::reload::Change;
use crate::supervisor::{Decision, Life};

impl Master {
    /// A cohort that is being started fails with the first of its workers.
    pub(crate) fn give_up_start(&mut self, generation: Generation, reason: String) {
        if matches!(&self.change, Some(Change::Starting { cohort, .. }) if cohort.generation == generation) {
            self.refuse(generation, reason);
        }
    }

    /// Takes the exits of children, and sees to their successors.
    pub(crate) fn reap(&mut self, now: Instant) {
        while let Some((mut child, exit)) = self.children.reap() {
            // Its last words came before its end.
            while child.hear().is_some() {}
            match child.role {
                Role::Proof => self.proved(exit, now),
                Role::Scribe => {}
                Role::Control if child.is_leaving() => {}
                Role::Control => {
                    warn!(self.log, "control ended: {}", exit; "control" => child.pid());
                    self.replace(None, &child, now);
                }
                Role::Successor => self.successor_ended(child.pid(), exit, now),
                Role::Worker { seat, slot, generation } => {
                    self.watchdog.forget(child.pid());
                    let last_words = self.zone.zip(slot).map(|(zone, slot)| {
                        let words = black_box::open(zone, slot, exit, child.is_leaving());
                        zone.release_slot(slot);
                        self.dir.remove_call(slot);
                        words
                    });
                    self.worker_ended(&child, seat, generation, exit, last_words.flatten(), now);
                }
            }
        }
    }

    fn worker_ended(
        &mut self,
        child: &Child,
        seat: Seat,
        generation: Generation,
        exit: Exit,
        last_words: Option<LastWords>,
        now: Instant,
    ) {
        self.swap_lost(child.pid(), generation, exit);
        let log = match child.is_adopted() {
            true => self.log.new(o!("worker" => child.pid())),
            false => self.log.new(o!("worker" => child.pid(), "seat" => seat.0, "generation" => generation.0)),
        };
        let serves = self.serving.as_ref().is_some_and(|cohort| cohort.generation == generation);
        match exit {
            _ if child.is_leaving() && last_words.is_none() => info!(log, "a worker has gone: {}", exit),
            Exit::Code(worker::exit::OK) => warn!(log, "a worker was told by a signal to stop, and has"),
            _ => error!(log, "a worker died: {}", exit),
        }
        if let Some(words) = last_words {
            black_box::tell(&words, &log);
            if let Some(request) = words.culprit().filter(|_| serves && is_fault(exit)) {
                self.suspect(request);
            }
        }
        if !child.is_leaving() {
            self.give_up_start(generation, format!("the worker of seat {seat} died before it was ready: {exit}"));
            if serves && !self.rests {
                self.replace(Some(seat), child, now);
            }
        }
    }

    /// Plans a successor for a child that died.
    fn replace(&mut self, seat: Option<Seat>, child: &Child, now: Instant) {
        if self.stopping.is_some() {
            return;
        }
        let life = Life { was_ready: child.is_ready, lived: now.saturating_duration_since(child.born) };
        match self.supervisors.entry(seat).or_default().on_exit(life) {
            Decision::Respawn(pause) => self.respawns.push((now + pause, seat)),
            Decision::GiveUp(starts) if seat.is_some() => {
                let reason =
                    format!("workers die as soon as they are started ({starts} times in a row): this is a crash loop");
                if !self.stay_with_successor(&reason, now) {
                    self.fail(reason, now);
                }
            }
            Decision::GiveUp(starts) => {
                error!(self.log, "control dies as soon as it is started; it stays away until the next reload"; "starts" => starts);
            }
        }
    }

    /// Starts the successors whose time has come.
    pub(crate) fn respawn(&mut self, now: Instant) {
        if self.zone.is_none() {
            return;
        }
        let due: Vec<_> = self.respawns.extract_if(.., |(at, _)| *at <= now).map(|(_, seat)| seat).collect();
        for seat in due {
            let Some(cohort) = self.serving.take() else { return };
            let started = match seat {
                None => self.start_control(&cohort.rights),
                Some(seat) => self.start_worker(&cohort, seat),
            };
            self.serving = Some(cohort);
            if let Err(reason) = started {
                error!(self.log, "{}", reason);
                // Descriptors, memory or processes have run out: they may come back.
                self.respawns.push((now + Duration::from_secs(1), seat));
            }
        }
    }

    /// Every seat of what is served is to have a worker: some may have died, or were told to finish.
    pub(crate) fn fill_seats(&mut self, now: Instant) {
        let Some(serving) = &self.serving else { return };
        self.rests = false;
        self.supervisors.clear();
        let taken: Vec<Seat> = self
            .children
            .iter()
            .filter(|child| child.is_of(serving.generation) && !child.is_leaving())
            .filter_map(Child::seat)
            .collect();
        let empty = (0..serving.seats).map(Seat).filter(|seat| !taken.contains(seat));
        for seat in empty {
            if !self.respawns.iter().any(|(_, known)| *known == Some(seat)) {
                self.respawns.push((now, Some(seat)));
            }
        }
    }

    /// Whether every seat of what is served has a worker that serves.
    pub(crate) fn all_serve(&self) -> bool {
        let Some(serving) = &self.serving else { return false };
        let at_work = |child: &&Child| child.is_of(serving.generation) && child.is_ready && !child.is_leaving();
        self.children.iter().filter(at_work).count() == serving.seats as usize
    }

    fn start_worker(&mut self, cohort: &Cohort, seat: Seat) -> Result<(), String> {
        let Some(zone) = self.zone else { return Ok(()) };
        let child = cohort.start_worker(zone, &self.dir, seat, self.lifeline(), false)?;
        info!(self.log, "a worker replaces the one that died"; "worker" => child.pid(), "seat" => seat.0);
        self.children.add(child);
        Ok(())
    }
}
