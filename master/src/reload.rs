//! A change of the configuration; the start is the first one.
//!
//! ```text
//!                                                     +-> swap: all prepared -> commit -> all swapped
//! load -> prove (a child without rights builds it) ---+
//!   |        |                                        +-> fork: all ready -> commit, the old cohort drains
//!   +--------+-----------------------------------------------------+--> refuse: nothing has changed
//! ```
//! Running workers swap their configuration (`swap.rs`) unless the change takes other ones. Up to the commit all serve as
//! before.

#![forbid(unsafe_code)]

use std::io::{PipeReader, Read, Write, pipe};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use conf::diff::{self, Effect};
use conf::model::Config;
use conf::{Problems, Severity};
use shared::channel::Command;
use shared::ident::{Generation, ProcessId, Seat};
use shared::zone::{Maxima, Zone};
use slog::{error, info, warn};

use crate::children::{Child, Exit, Role, Urgency};
use crate::cohort::{Cohort, seats};
use crate::cycle::{Master, Retiring};
use crate::daemon::Outcome;
use crate::listeners::{Company, Listeners};
use crate::machine;
use crate::passage::{New, NewEvent};
use crate::rights::{Rights, allowed_cores};
use crate::spawn::fork;
use crate::swap::Swap;

/// How long the proof of a configuration may take.
const PROOF_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a cohort may take until every worker is ready.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long connections half open may take to arrive in the queue of a socket that gets no new ones.
const STEER_TIME: Duration = Duration::from_millis(250);
/// The most bytes of a reason that the proof tells.
const REASON_BYTES_MAX: u64 = 4096;

/// How far a change has come.
pub(crate) enum Change {
    /// A child builds the configuration.
    Proving {
        /// Its number.
        generation: Generation,
        /// What would be served.
        config: Arc<Config>,
        /// The same as text, for workers that run already.
        text: String,
        /// In what it differs from what is served.
        changes: Vec<diff::Change>,
        /// Where the child says what is wrong.
        report: PipeReader,
        /// When it has taken too long.
        deadline: Instant,
    },
    /// Workers have been forked.
    Starting {
        /// They.
        cohort: Cohort,
        /// When they have taken too long.
        deadline: Instant,
    },
    /// The workers that run take it over.
    Swapping(Swap),
}

impl Change {
    /// The number of what would be served.
    pub(crate) fn generation(&self) -> Generation {
        match self {
            Change::Proving { generation, .. } => *generation,
            Change::Starting { cohort, .. } => cohort.generation,
            Change::Swapping(swap) => swap.ballot.generation(),
        }
    }

    /// When it has taken too long.
    pub(crate) fn deadline(&self) -> Instant {
        match self {
            Change::Proving { deadline, .. } | Change::Starting { deadline, .. } => *deadline,
            Change::Swapping(swap) => swap.ballot.deadline(),
        }
    }
}

impl Master {
    /// Begins a change to what the configuration says now.
    pub(crate) fn reload(&mut self, now: Instant) {
        let generation = self.next_generation();
        self.service.reloading(&self.log);
        info!(self.log, "reloading"; "configuration" => self.recipe.name(), "generation" => generation.0);
        let loaded = match self.recipe.load() {
            Ok(loaded) => loaded,
            Err(problems) => return self.refuse_text(generation, &problems),
        };
        for warning in &loaded.warnings {
            warn!(self.log, "{}", warning.message; "file" => &warning.file, "line" => warning.line, "path" => &warning.path);
        }
        let changes =
            self.serving.as_ref().map(|cohort| diff::changes(&cohort.config, &loaded.config)).unwrap_or_default();
        if let Some(change) = changes.iter().find(|change| change.effect == Effect::Restart) {
            let reason =
                format!("{} cannot change from {} to {} without a restart", change.path, change.from, change.to);
            return self.refuse(generation, reason);
        }
        let lacks = machine::problems(&loaded);
        if !lacks.0.is_empty() {
            return self.refuse_text(generation, &lacks);
        }
        self.prove(generation, loaded.config, loaded.text, changes, now);
    }

    /// Refuses a configuration for what it says: each problem is a line of the log.
    fn refuse_text(&mut self, generation: Generation, problems: &Problems) {
        let errors: Vec<_> = problems.0.iter().filter(|problem| problem.severity == Severity::Error).collect();
        for problem in &errors {
            error!(self.log, "configuration problem: {}", problem.message;
                "file" => &problem.file, "line" => problem.line, "column" => problem.column, "path" => &problem.path,
                "hint" => problem.hint.as_deref());
        }
        let summary = errors.first().map(|first| match errors.len() {
            1 => format!("{}:{}:{}: {}", first.file, first.line, first.column, first.message),
            count => format!("{} has {count} problems; `sluice check` shows them", self.recipe.name()),
        });
        self.refuse(generation, summary.unwrap_or_default());
    }

    /// Lets a child try whether a worker could be built from `config`.
    pub(crate) fn prove(
        &mut self,
        generation: Generation,
        config: Config,
        text: String,
        changes: Vec<diff::Change>,
        now: Instant,
    ) {
        match start_proof(&config) {
            Ok((child, report)) => {
                self.children.add(child);
                let (deadline, config) = (now + PROOF_TIMEOUT, Arc::new(config));
                self.change = Some(Change::Proving { generation, config, text, changes, report, deadline });
            }
            Err(reason) => self.refuse(generation, reason),
        }
    }

    /// The proof has ended.
    pub(crate) fn proved(&mut self, exit: Exit, now: Instant) {
        // A proof whose change was given up is not asked any more.
        let Some(Change::Proving { generation, config, text, changes, report, .. }) = self.change.take() else {
            return;
        };
        let mut reason = String::new();
        // What cannot be read is not said; the exit code decides.
        let _ = report.take(REASON_BYTES_MAX).read_to_string(&mut reason);
        let outcome = match exit {
            Exit::Code(worker::exit::OK) if self.can_swap(&changes) => {
                self.start_swap(generation, config, text, &changes, now)
            }
            Exit::Code(worker::exit::OK) => self.start_cohort(generation, config, text, now),
            _ if reason.is_empty() => Err(format!("the trial of the configuration failed: {exit}")),
            _ => Err(reason),
        };
        if let Err(reason) = outcome {
            self.refuse(generation, reason);
        }
    }

    fn start_cohort(
        &mut self,
        generation: Generation,
        config: Arc<Config>,
        text: String,
        now: Instant,
    ) -> Result<(), String> {
        let known = self.serving.as_ref().map(|serving| &serving.listeners).or(self.inherited.as_ref());
        let company = std::mem::replace(&mut self.company, Company::Nobody);
        let cohort = Cohort::open(generation, config, text, known, company)?;
        for warning in cohort.rights.prepare() {
            warn!(self.log, "{}", warning);
        }
        let started = self.start_workers(&cohort);
        // Even when not all could be started, those that were must be told.
        self.change = Some(Change::Starting { cohort, deadline: now + START_TIMEOUT });
        started
    }

    fn start_workers(&mut self, cohort: &Cohort) -> Result<(), String> {
        let zone = self.zone_for(cohort)?;
        zone.publish(&cohort.catalog()).map_err(|error| error.to_string())?;
        if let Some(counters) = self.counters.take() {
            zone.carry_in(&counters, cohort.generation).map_err(|error| error.to_string())?;
        }
        self.start_control(&cohort.rights)?;
        self.start_seats(cohort, zone, 0..self.first_seats(cohort))
    }

    pub(crate) fn start_seats(
        &mut self,
        cohort: &Cohort,
        zone: &'static Zone,
        seats: Range<u32>,
    ) -> Result<(), String> {
        let is_on_trial = self.predecessor.as_ref().is_some_and(|predecessor| predecessor.rule == New::Trying);
        for seat in seats.map(Seat) {
            let child = cohort.start_worker(zone, &self.dir, seat, self.lifeline(), is_on_trial)?;
            self.children.add(child);
        }
        Ok(())
    }

    /// The zone; made for the first cohort, under a name that nobody reads until that cohort serves.
    fn zone_for(&mut self, cohort: &Cohort) -> Result<&'static Zone, String> {
        if let Some(zone) = self.zone {
            return Ok(zone);
        }
        let workers = cohort.seats.max(u32::try_from(allowed_cores()?.len()).unwrap_or(u32::MAX));
        let path = self.dir.zone().with_extension("new");
        let cannot = |error: &dyn std::fmt::Display| format!("cannot make the zone {}: {error}", path.display());
        let us = ProcessId::current(0).map_err(|error| cannot(&error))?;
        let maxima = Maxima::for_workers(workers).with_connections(cohort.config.worker_connections);
        let zone = Zone::create(&path, maxima, us).map_err(|error| cannot(&error))?;
        (self.zone, self.has_new_zone) = (Some(zone), true);
        Ok(zone)
    }

    /// Goes on with a change: it may be complete, or late.
    pub(crate) fn advance(&mut self, now: Instant) {
        let generation = match &self.change {
            None => return,
            Some(Change::Proving { generation, deadline, .. }) if *deadline <= now => {
                let (generation, reason) = (*generation, format!("its trial took longer than {PROOF_TIMEOUT:?}"));
                return self.refuse(generation, reason);
            }
            Some(Change::Proving { .. }) => return,
            Some(Change::Swapping(_)) => return self.advance_swap(now),
            Some(Change::Starting { cohort, .. }) => cohort.generation,
        };
        let waiting = self.children.iter().filter(|child| child.is_of(generation) && !child.is_ready).count();
        if waiting == 0 {
            self.commit_or_watch(now);
        } else if self.change.as_ref().is_some_and(|change| change.deadline() <= now) {
            self.refuse(generation, format!("{waiting} of its workers were not ready after {START_TIMEOUT:?}"));
        }
    }

    /// All workers that were started are ready.
    fn commit_or_watch(&mut self, now: Instant) {
        let Some(Change::Starting { cohort, deadline }) = self.change.take() else { return };
        let generation = cohort.generation;
        match self.is_past_trial(&cohort, now) {
            Ok(true) => self.commit(cohort, now),
            Ok(false) => {
                let deadline = deadline.max(now + START_TIMEOUT);
                self.change = Some(Change::Starting { cohort, deadline });
            }
            Err(reason) => {
                self.change = Some(Change::Starting { cohort, deadline });
                self.refuse(generation, reason);
            }
        }
    }

    fn commit(&mut self, cohort: Cohort, now: Instant) {
        let generation = cohort.generation;
        self.log = cohort.logs.logger();
        if let Some(zone) = self.zone {
            zone.set_verdict(generation, true, "all workers are ready");
        }
        let previous = self.serving.replace(cohort);
        match previous {
            None => {
                if let Err(reason) = self.begin_to_serve(now) {
                    return self.fail(reason, now);
                }
            }
            Some(previous) => self.retire(previous, now),
        }
        self.note_committed();
        self.clear_quarantine();
        self.respawns.clear();
        self.supervisors.clear();
        self.rests = false;
        let Some(serving) = &self.serving else { return };
        self.service.ready(generation, None, &self.log);
        info!(self.log, "ready"; "generation" => generation.0, "workers" => serving.seats,
            "listeners" => serving.listeners.addresses().join(" "));
        self.announce();
    }

    /// The first cohort serves: from now on this is the proxy of its runtime directory.
    fn begin_to_serve(&mut self, now: Instant) -> Result<(), String> {
        // First what is likelier to fail: what is told to the workers of a killed master cannot be taken back.
        self.become_known()?;
        let zone = self.dir.zone();
        let is_new = std::mem::take(&mut self.has_new_zone);
        if self.predecessor.is_none() {
            // Of masters that were killed.
            let _ = std::fs::remove_file(self.dir.old_pid_file());
        }
        if let Some(serving) = &mut self.serving {
            serving.listeners.lend(false);
        }
        self.children.iter().filter(|child| child.is_worker()).for_each(|child| child.tell(&Command::Establish));
        if let Some(orphans) = self.orphans.take() {
            if is_new && let Err(error) = orphans.retire() {
                warn!(self.log, "the workers of the killed master cannot be told: {}", error);
            }
            info!(self.log, "the workers of the killed master drain now");
        }
        if is_new {
            std::fs::rename(zone.with_extension("new"), &zone)
                .map_err(|error| format!("cannot make the zone {}: {error}", zone.display()))?;
        }
        if let Some(launch) = self.launch.take() {
            launch.report(&Outcome { code: 0, text: String::new() });
        }
        let inherited = self.inherited.take();
        if let (Some(inherited), Some(serving)) = (&inherited, &self.serving) {
            for address in inherited.passed_for_nothing(&serving.listeners) {
                warn!(self.log, "a socket was passed that no listener is for: it is closed"; "address" => %address);
            }
        }
        match self.predecessor {
            Some(_) => self.proceed(NewEvent::Ready, "", now),
            None => self.retire_sockets(Generation(0), inherited, self.patience(), now),
        }
        Ok(())
    }

    fn retire(&mut self, previous: Cohort, now: Instant) {
        let Cohort { generation, listeners, config, .. } = previous;
        self.retire_sockets(generation, Some(listeners), config.shutdown_timeout, now);
    }

    /// The workers of `generation` are told to finish, once the queues of sockets that go with them have run dry.
    fn retire_sockets(
        &mut self,
        generation: Generation,
        listeners: Option<Listeners>,
        patience: Duration,
        now: Instant,
    ) {
        let Some(serving) = &self.serving else { return };
        let queues_run_dry = listeners.as_ref().is_some_and(|listeners| {
            listeners.unlink_all_but(Some(&serving.listeners));
            serving.listeners.steer(listeners)
        });
        let at = if queues_run_dry { now + STEER_TIME } else { now };
        self.retiring.push(Retiring { generation, listeners, patience, at });
    }

    /// Ends a change without an effect.
    pub(crate) fn refuse(&mut self, generation: Generation, reason: String) {
        let now = Instant::now();
        let patience = self.patience();
        match self.change.take() {
            None => {}
            Some(Change::Proving { .. }) => {
                self.children.urge(Urgency::Kill, now, patience, |child| child.role == Role::Proof);
            }
            Some(Change::Starting { cohort, .. }) => {
                let is_new = |child: &Child| child.is_of(generation);
                // Those that are ready may have accepted connections already, as their seats are shared.
                self.children.urge(Urgency::Kill, now, patience, |child| is_new(child) && !child.is_ready);
                self.hand_over(is_new, |_| true);
                self.children.urge(Urgency::Drain, now, patience, is_new);
                cohort.listeners.unlink_all_but(self.serving.as_ref().map(|serving| &serving.listeners));
            }
            Some(Change::Swapping(swap)) => self.abandon_swap(swap),
        }
        let Some(serving) = &self.serving else { return self.fail(reason, now) };
        self.service.ready(serving.generation, Some(&reason), &self.log);
        error!(self.log, "reload refused: {}", reason; "generation" => generation.0, "serving" => serving.generation.0);
        if let Some(zone) = self.zone {
            zone.set_verdict(generation, false, &reason);
            if let Err(error) = zone.publish(&serving.catalog()) {
                error!(self.log, "cannot take back the names of the refused configuration"; "reason" => %error);
            }
        }
    }

    fn next_generation(&mut self) -> Generation {
        self.generations += 1;
        Generation(self.generations)
    }
}

fn start_proof(config: &Config) -> Result<(Child, PipeReader), String> {
    let rights = Rights::of(config, 0)?;
    // Also what only the master can tell: how many workers that makes.
    seats(config)?;
    let (report, mut writer) = pipe().map_err(|error| format!("cannot try the configuration: {error}"))?;
    let process = fork(c"sluice-proof", &[writer.as_raw_fd()], || {
        match rights.assume_proof().and_then(|()| worker::check(config)) {
            Ok(()) => worker::exit::OK,
            Err(reason) => {
                // If it cannot be told, the exit code still says that there is one.
                let _ = writer.write_all(reason.as_bytes());
                worker::exit::FAILED
            }
        }
    });
    let process = process.map_err(|error| format!("cannot try the configuration: {error}"))?;
    Ok((Child::new(Role::Proof, process, None), report))
}
