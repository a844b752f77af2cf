//! Taking the place of another master: the side of the one that comes.
//!
//! Its first worker may be on trial; then the others follow, and once all are ready it is the proxy of the runtime directory,
//! which it says. From then on the earlier master only waits for its own workers, or asks for its place back.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use shared::estate::Message;
use shared::ident::Generation;
use shared::zone::Zone;
use slog::{error, info, o, warn};

use crate::black_box;
use crate::children::Child;
use crate::children::{Exit, Urgency};
use crate::cohort::Cohort;
use crate::cycle::{Master, Retiring};
use crate::orphans::Adopted;
use crate::passage::{New, NewEvent, NewStep};
use crate::reload::Change;
use crate::trial::Finding;

/// How often it is looked whether processes of other masters have ended.
const STRANGER_INTERVAL: Duration = Duration::from_secs(1);

/// When to look for strangers that have ended.
#[derive(Debug, Default)]
pub(crate) struct StrangerWatch(Option<Instant>);

impl Master {
    /// The seats whose workers are to be started first: one, if it is to be watched.
    pub(crate) fn first_seats(&self, cohort: &Cohort) -> u32 {
        let is_watched = self.predecessor.as_ref().is_some_and(|predecessor| predecessor.wants_trial());
        if is_watched { 1 } else { cohort.seats }
    }

    /// All workers that were started are ready. Says whether those are all there are to be, and looks at the first one
    /// while it is watched.
    ///
    /// # Errors
    /// Why nothing comes of it. A sentence.
    pub(crate) fn is_past_trial(&mut self, cohort: &Cohort, now: Instant) -> Result<bool, String> {
        let Some(predecessor) = self.predecessor.as_mut().filter(|predecessor| predecessor.wants_trial()) else {
            return self.start_rest(cohort);
        };
        let has_begun = predecessor.deadline().is_some();
        let named = self.dir.zone();
        let zone = if self.has_new_zone { named.with_extension("new") } else { named };
        let finding = predecessor.look(&zone, cohort.generation, now);
        match finding {
            Finding::Pending if !has_begun => {
                let watch = Duration::from_millis(predecessor.terms.watch_ms);
                self.tell_predecessor(Message::Progress(format!(
                    "its first worker serves, and is watched for {watch:?}"
                )));
                Ok(false)
            }
            Finding::Pending => Ok(false),
            Finding::Unfit(reason) => Err(reason),
            Finding::Sound(reason) => {
                predecessor.end_trial();
                self.tell_predecessor(Message::Progress(format!("its first worker does well: {reason}")));
                self.start_rest(cohort)
            }
        }
    }

    /// Starts the workers that have waited for the first one; says whether there were none.
    fn start_rest(&mut self, cohort: &Cohort) -> Result<bool, String> {
        let started = self.children.iter().filter(|child| child.is_of(cohort.generation)).count();
        let started = u32::try_from(started).unwrap_or(u32::MAX);
        if let Some(zone) = self.zone
            && started < cohort.seats
        {
            self.start_seats(cohort, zone, started..cohort.seats)?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Nothing comes of taking the place, if that was under way; says whether it was.
    pub(crate) fn renounce(&mut self, reason: &str) -> bool {
        let was_under_way = self.predecessor.as_ref().is_some_and(|earlier| earlier.rule != New::Alone);
        self.proceed(NewEvent::Failed, reason, Instant::now());
        was_under_way
    }

    /// Hears what the earlier master says.
    pub(crate) fn hear_predecessor(&mut self, now: Instant) {
        while let Some(predecessor) = &self.predecessor {
            match predecessor.link.receive() {
                Ok(Some(Message::GiveBack)) => self.proceed(NewEvent::GiveBack, "", now),
                Ok(Some(Message::Resume)) => self.proceed(NewEvent::Resume, "", now),
                Ok(Some(Message::Farewell)) => self.proceed(NewEvent::Farewell, "", now),
                Ok(Some(Message::End)) => self.proceed(NewEvent::End, "the earlier master serves alone", now),
                Ok(Some(Message::Connections(from))) => self.take_over(from),
                Ok(Some(other)) => warn!(self.log, "the earlier master says what it should not: {:?}", other),
                Ok(None) => {
                    self.proceed(NewEvent::Gone, "", now);
                    self.go_on(now);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    error!(self.log, "the earlier master cannot be understood"; "reason" => %error);
                    self.proceed(NewEvent::Failed, "what it is told cannot be understood", now);
                }
            }
        }
    }

    /// Does what follows from an event.
    pub(crate) fn proceed(&mut self, event: NewEvent, reason: &str, now: Instant) {
        let Some(predecessor) = &mut self.predecessor else { return };
        match predecessor.rule.on(event) {
            NewStep::Wait => {}
            NewStep::Establish => self.tell_predecessor(Message::Serving),
            NewStep::StepBack => {
                info!(self.log, "the earlier master takes its place back");
                predecessor.zone = self.zone;
                self.step_back();
                self.forget_respawns();
                self.reload_asked = false;
                self.rests = true;
                self.tell_predecessor(Message::GivenBack);
            }
            NewStep::Renounce => {
                warn!(self.log, "the other master keeps its place: {}", reason);
                let Some(predecessor) = &self.predecessor else { return };
                self.hand_over_across(&predecessor.link);
                // Before the other one hears of it: from then on the zone is its.
                self.step_back();
                self.tell_predecessor(Message::Refused(reason.to_owned()));
                self.predecessor = None;
                self.stop(Urgency::Drain, now);
            }
            NewStep::GoOn => {}
            NewStep::Reclaim => {
                let zone = predecessor.zone.take();
                self.take_zone_back(zone);
                self.is_superseded = false;
                self.serving.iter_mut().for_each(|cohort| cohort.listeners.lend(false));
                if let Err(fault) = self.become_known() {
                    error!(self.log, "this master goes on alone, but cannot be found: {}", fault);
                }
                self.note_committed();
                self.fill_seats(now);
            }
        }
    }

    /// From now on the zone and all else in the runtime directory are another master's.
    fn step_back(&mut self) {
        if let Some(generation) = self.change.as_ref().map(Change::generation)
            && self.serving.is_some()
        {
            self.refuse(generation, "another master takes the place of this one".into());
        }
        self.zone = None;
        self.strangers.clear();
        self.is_superseded = true;
        self.serving.iter_mut().for_each(|cohort| cohort.listeners.lend(true));
    }

    /// The earlier master has gone.
    fn go_on(&mut self, now: Instant) {
        info!(self.log, "the earlier master has gone");
        self.predecessor = None;
        // One that was killed leaves it.
        let _ = std::fs::remove_file(self.dir.old_pid_file());
        self.adopt_left_behind(now);
    }

    /// A master that was killed before its workers had gone leaves them to us.
    pub(crate) fn adopt_left_behind(&mut self, now: Instant) {
        if self.stopping.is_some() || self.zone.is_none() {
            return;
        }
        let called = self.summoned.iter().map(|summons| summons.slot);
        let known: Vec<_> = self.children.iter().filter_map(Child::slot).chain(called).collect();
        let mut adopted = Adopted::from_workers(&self.dir, &known, false, &self.log);
        if !self.shares_zone {
            adopted.forget_slots();
        }
        self.summoned.append(&mut adopted.summoned);
        self.take_in(adopted, now);
    }

    /// Hears workers of other masters that were called.
    pub(crate) fn hear_summoned(&mut self, now: Instant) {
        if !self.summoned.is_empty() {
            let mut adopted = Adopted { summoned: std::mem::take(&mut self.summoned), ..Adopted::default() };
            adopted.hear(&self.log);
            self.summoned.append(&mut adopted.summoned);
            self.take_in(adopted, now);
        }
    }

    /// They are children from now on, and finish as soon as this master serves.
    fn take_in(&mut self, adopted: Adopted, now: Instant) {
        let Adopted { children, .. } = adopted;
        if children.is_empty() {
            return;
        }
        let slots: Vec<_> = children.iter().filter_map(Child::slot).collect();
        self.strangers.retain(|stranger| !slots.contains(&stranger.slot));
        children.into_iter().for_each(|child| self.children.add(child));
        if self.serving.is_some() {
            let (generation, patience) = (Generation(0), self.patience());
            self.retiring.push(Retiring { generation, listeners: None, patience, at: now });
        }
    }

    fn tell_predecessor(&self, message: Message) {
        if let Some(predecessor) = &self.predecessor
            && let Err(error) = predecessor.link.send(&message)
        {
            warn!(self.log, "the earlier master cannot be told: {:?}", message; "reason" => %error);
        }
    }

    /// When strangers are looked at next.
    pub(crate) fn next_stranger_watch(&self) -> Option<Instant> {
        self.zone.filter(|_| !self.strangers.is_empty()).and(self.stranger_watch.0.or_else(|| Some(Instant::now())))
    }

    /// Frees the slots of processes that other masters have left behind, and that have ended.
    pub(crate) fn release_strangers(&mut self, now: Instant) {
        let (Some(zone), false) = (self.zone, self.strangers.is_empty()) else { return };
        if self.stranger_watch.0.is_some_and(|at| at > now) {
            return;
        }
        self.stranger_watch.0 = now.checked_add(STRANGER_INTERVAL);
        let zone: &'static Zone = zone;
        for gone in self.strangers.extract_if(.., |stranger| zone.has_ended(stranger)) {
            if let Some(words) = black_box::open(zone, gone.slot, Exit::Unseen, true) {
                let log = self.log.new(o!("worker" => gone.id.pid));
                warn!(log, "a worker of another master has ended with exchanges under way");
                black_box::tell(&words, &log);
            }
            zone.release_slot(gone.slot);
            self.dir.remove_call(gone.slot);
        }
    }
}
