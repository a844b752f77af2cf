//! The master: one thread, one loop, one `if` a fact.
//!
//! Signal handlers only set flags; the loop reads them and acts. Its states and rules are in LIFECYCLE.md.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shared::channel::{Command, Report};
use shared::ident::{Generation, Seat};
use shared::zone::{Stranger, Zone};
use slog::{Logger, error, info};

use crate::children::{Child, Children, Role, Urgency};
use crate::cohort::Cohort;
use crate::committed::Committed;
use crate::control::launch::Control;
use crate::daemon::{Launch, Outcome};
use crate::inheritance::{Inheritance, Predecessor};
use crate::listeners::{Company, Listeners};
use crate::lock::{Lock, PidFile};
use crate::orphans::{Orphans, Summons};
use crate::quarantine::Quarantine;
use crate::recipe::Recipe;
use crate::reload::Change;
use crate::requests::Requests;
use crate::rights::Rights;
use crate::runtime_dir::RuntimeDir;
use crate::service::Service;
use crate::signals::Signals;
use crate::successor::StrangerWatch;
use crate::supervisor::Supervisor;
use crate::upgrade::Upgrade;
use crate::watchdog::Watchdog;

/// How many reports of one child are heard before others have their turn.
const REPORTS_PER_TURN_MAX: usize = 64;

/// The master process.
pub(crate) struct Master {
    pub(crate) log: Logger,
    pub(crate) recipe: Recipe,
    pub(crate) dir: RuntimeDir,
    pub(crate) children: Children,
    /// The committed configuration and its workers; none before the first commit.
    pub(crate) serving: Option<Cohort>,
    /// The next one, while it is on its way.
    pub(crate) change: Option<Change>,
    /// Earlier ones whose workers are about to be told.
    pub(crate) retiring: Vec<Retiring>,
    pub(crate) zone: Option<&'static Zone>,
    /// What was counted in a zone that cannot be shared, until it is in this one.
    pub(crate) counters: Option<String>,
    /// It was made here and has not got its name yet.
    pub(crate) has_new_zone: bool,
    pub(crate) orphans: Option<Orphans>,
    /// Sockets that were open already; until the first commit.
    pub(crate) inherited: Option<Listeners>,
    /// What may be found at the addresses of the first configuration.
    pub(crate) company: Company,
    /// Workers of other masters that were called, and have not answered yet.
    pub(crate) summoned: Vec<Summons>,
    /// Whether workers that another master of an upgrade leaves behind are in the zone of this one.
    pub(crate) shares_zone: bool,
    /// Processes in the zone that are no children.
    pub(crate) strangers: Vec<Stranger>,
    pub(crate) stranger_watch: StrangerWatch,
    /// The master that this one replaces, until that has gone.
    pub(crate) predecessor: Option<Predecessor>,
    /// Another binary that is to replace this one.
    pub(crate) upgrade: Option<Upgrade>,
    /// How often a worker of ours was to take over from one of another master's.
    pub(crate) taken_over: usize,
    /// What is in the runtime directory is another master's.
    pub(crate) is_superseded: bool,
    pub(crate) requests: Option<Requests>,
    pub(crate) pid_file: Option<PidFile>,
    pub(crate) committed: Option<Committed>,
    pub(crate) launch: Option<Launch>,
    pub(crate) generations: u64,
    /// By seat; `None` is `control`.
    pub(crate) supervisors: BTreeMap<Option<Seat>, Supervisor>,
    /// Who is to be started again, and when.
    pub(crate) respawns: Vec<(Instant, Option<Seat>)>,
    /// Workers were told to go by SIGWINCH: none is replaced.
    pub(crate) rests: bool,
    pub(crate) service: Service,
    pub(crate) watchdog: Watchdog,
    pub(crate) quarantine: Quarantine,
    pub(crate) control: Option<Control>,
    signals: Signals,
    /// None once another master goes on in this one's place.
    pub(crate) lock: Option<Lock>,
    pub(crate) is_daemon: bool,
    pub(crate) reload_asked: bool,
    pub(crate) reopen_asked: bool,
    pub(crate) stopping: Option<Urgency>,
    pub(crate) outcome: Outcome,
    greeting: Option<String>,
}

/// Workers that others have replaced.
pub(crate) struct Retiring {
    /// Of which configuration they are; 0 is that of workers which a killed master left.
    pub(crate) generation: Generation,
    /// The sockets that they accept from, which are closed here when they are told.
    pub(crate) listeners: Option<Listeners>,
    /// How long they may take.
    pub(crate) patience: Duration,
    /// When to tell them.
    pub(crate) at: Instant,
}

/// What a master starts with.
pub(crate) struct Start {
    /// Where its configuration comes from.
    pub(crate) recipe: Recipe,
    /// Its runtime directory, prepared.
    pub(crate) dir: RuntimeDir,
    /// The lock of that, taken.
    pub(crate) lock: Lock,
    /// Where it logs until it has a configuration that serves.
    pub(crate) log: Logger,
    /// The launching command, if it is a daemon.
    pub(crate) launch: Option<Launch>,
    /// What others have left or given.
    pub(crate) inheritance: Inheritance,
    /// What to print once it serves.
    pub(crate) greeting: Option<String>,
}

impl Master {
    /// Takes over the process's signals.
    ///
    /// # Errors
    /// When descriptors run out.
    pub(crate) fn new(start: Start) -> std::io::Result<Master> {
        let Inheritance {
            zone,
            counters,
            generation,
            listeners,
            has_sockets,
            origins,
            children: found,
            summoned,
            strangers,
            orphans,
            predecessor,
        } = start.inheritance;
        // The workers of a master with another layout are in another zone.
        let shares_zone = zone.is_some() || predecessor.is_none();
        let company = if orphans.is_some() && !has_sockets { Company::Orphans } else { Company::Nobody };
        let control = start.recipe.needs_origins().then(|| Control::open(&start.dir, origins)).transpose()?;
        let mut children = Children::default();
        found.into_iter().for_each(|child| children.add(child));
        Ok(Master {
            log: start.log,
            recipe: start.recipe,
            dir: start.dir,
            children,
            serving: None,
            change: None,
            retiring: Vec::new(),
            zone,
            counters,
            has_new_zone: false,
            orphans,
            inherited: listeners,
            company,
            summoned,
            shares_zone,
            strangers,
            stranger_watch: StrangerWatch::default(),
            is_daemon: start.launch.is_some() || predecessor.as_ref().is_some_and(|earlier| earlier.terms.is_daemon),
            predecessor,
            upgrade: None,
            taken_over: 0,
            is_superseded: false,
            requests: None,
            pid_file: None,
            committed: None,
            launch: start.launch,
            generations: generation,
            supervisors: BTreeMap::new(),
            respawns: Vec::new(),
            rests: false,
            service: Service::new(Instant::now()),
            watchdog: Watchdog::default(),
            quarantine: Quarantine::default(),
            control,
            signals: Signals::register()?,
            lock: Some(start.lock),
            reload_asked: false,
            reopen_asked: false,
            stopping: None,
            outcome: Outcome { code: 0, text: String::new() },
            greeting: start.greeting,
        })
    }

    /// Serves until told to stop.
    pub(crate) fn run(mut self, first: conf::Loaded) -> Outcome {
        self.generations += 1;
        self.prove(Generation(self.generations), first.config, first.text, Vec::new(), Instant::now());
        while !(self.stopping.is_some() && self.children.iter().next().is_none()) {
            self.wait();
            let facts = self.signals.take();
            let now = Instant::now();
            self.hear();
            if facts.child || self.children.adopted().next().is_some() {
                self.reap(now);
            }
            self.hear_predecessor(now);
            self.hear_successor(now);
            self.hear_summoned(now);
            self.release_strangers(now);
            if facts.stop {
                let urgency = if self.stopping >= Some(Urgency::Stop) { Urgency::Kill } else { Urgency::Stop };
                self.stop(urgency, now);
            }
            if facts.quit {
                self.stop(Urgency::Drain, now);
            }
            self.reopen_asked |= facts.reopen;
            // What a change has opened already would be an old file.
            if self.reopen_asked && self.change.is_none() {
                self.reopen_asked = false;
                self.reopen();
            }
            if facts.retire_workers && self.is_daemon {
                self.rest(now);
            }
            self.reload_asked |= facts.reload && !self.return_asked(now);
            if facts.upgrade {
                self.upgrade_beside(now);
            }
            self.heed(now);
            if self.reload_asked && self.may_reload() {
                self.reload_asked = false;
                self.reload(now);
            }
            self.advance(now);
            self.advance_upgrade(now);
            self.tell_retired(now);
            self.respawn(now);
            self.children.press(now);
            self.service.beat(now, &self.log);
            self.watch(now);
            self.lift_quarantine();
            if self.stopping.is_some() && !self.children.iter().any(Child::is_worker) {
                // It went last, as workers needed it to drain.
                self.children.urge(Urgency::Stop, now, Duration::ZERO, |_| true);
            }
        }
        self.end()
    }

    /// How long workers may drain.
    pub(crate) fn patience(&self) -> Duration {
        let coming = match &self.change {
            Some(Change::Starting { cohort, .. }) => Some(cohort),
            _ => None,
        };
        self.serving.as_ref().or(coming).map_or(Duration::ZERO, |cohort| cohort.config.shutdown_timeout)
    }

    /// A descriptor that tells `control` by its end that neither master nor workers are left.
    pub(crate) fn lifeline(&self) -> Option<BorrowedFd<'_>> {
        self.control.as_ref().map(Control::lifeline)
    }

    /// Starts `control`, if it has duties and does not run.
    pub(crate) fn start_control(&mut self, rights: &Rights) -> Result<(), String> {
        let runs = self.children.iter().any(|child| child.role == Role::Control && !child.is_leaving());
        if let Some(control) = &self.control
            && !runs
        {
            self.children.add(control.start(rights)?);
        }
        Ok(())
    }

    /// Whether a change can begin: none is under way, and the place of this master is its own.
    fn may_reload(&self) -> bool {
        self.change.is_none()
            && self.serving.is_some()
            && self.stopping.is_none()
            && self.upgrade.is_none()
            && self.zone.is_some()
    }

    /// No worker is started in the place of one that died.
    pub(crate) fn forget_respawns(&mut self) {
        self.respawns.retain(|(_, seat)| seat.is_none());
    }

    /// The listening sockets of the demo origins, for another master.
    pub(crate) fn share_origins(&self) -> std::io::Result<Vec<(String, OwnedFd)>> {
        self.control.as_ref().map_or(Ok(Vec::new()), Control::share)
    }

    /// Says once that all is well.
    pub(crate) fn announce(&mut self) {
        if let Some(greeting) = self.greeting.take() {
            println!("{greeting}");
        }
    }

    fn wait(&self) {
        let timeout = self.next_deadline().map_or(PollTimeout::NONE, |deadline| {
            // Rounded up, so that the deadline has passed when the poll ends.
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let links = self.predecessor.iter().map(|earlier| earlier.link.as_fd());
        let links = links.chain(self.upgrade.iter().filter_map(Upgrade::source));
        let links = links.chain(self.summoned.iter().map(Summons::source));
        let commands = self.requests.iter().flat_map(Requests::sources);
        let sources = self.children.sources().chain([self.signals.as_fd()]).chain(links).chain(commands);
        let mut sources: Vec<_> = sources.map(readable).collect();
        match poll(&mut sources, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                error!(self.log, "cannot wait for events"; "reason" => %error);
                // The kernel lacks memory; a pause, so that this is no loop at full speed.
                let _ = poll(&mut [], PollTimeout::from(100u16));
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let change = self.change.as_ref().map(Change::deadline);
        let retiring = self.retiring.iter().map(|retiring| retiring.at);
        let respawns = self.respawns.iter().filter(|_| self.zone.is_some()).map(|(at, _)| *at);
        let deadlines = self.children.next_deadline().into_iter().chain(change).chain(retiring).chain(respawns);
        let upgrade = self.upgrade.as_ref().and_then(Upgrade::deadline);
        let trial = self.predecessor.as_ref().and_then(Predecessor::deadline);
        let lift = self.next_lift(Instant::now());
        let watches = [self.service.deadline(), self.next_watch(), self.next_stranger_watch(), upgrade, trial, lift];
        deadlines.chain(watches.into_iter().flatten()).min()
    }

    fn hear(&mut self) {
        let mut heard = Vec::new();
        for child in self.children.iter_mut() {
            let said = std::iter::from_fn(|| child.hear()).take(REPORTS_PER_TURN_MAX).collect::<Vec<_>>();
            heard.extend(said.into_iter().map(|report| (child.pid(), child.role, report)));
        }
        for (pid, role, report) in heard {
            let Role::Worker { generation, slot, .. } = role else { continue };
            match report {
                Report::Failed(reason) => {
                    error!(self.log, "a worker cannot serve: {}", reason; "worker" => pid);
                    self.give_up_start(generation, reason);
                }
                Report::Settled(generation) => {
                    self.zone.into_iter().zip(slot).for_each(|(zone, slot)| zone.settle(slot, generation));
                }
                Report::Prepared(_) | Report::Refused(..) | Report::Swapped(_) => self.swap_reported(pid, &report),
                Report::Ready => self.hand_over_to(pid),
                Report::Stack(addresses) => self.told_where(pid, &addresses),
                Report::Reopened => {}
            }
        }
    }

    fn tell_retired(&mut self, now: Instant) {
        let due: Vec<_> = self.retiring.extract_if(.., |retiring| retiring.at <= now).collect();
        for retiring in due {
            // Our copies first: what a worker drains then is the last of it, as nobody else keeps the socket open.
            let Retiring { generation, listeners, patience, .. } = retiring;
            drop(listeners);
            // Those that drain already have given to this cohort so far.
            self.hand_over(|child| child.is_of(generation) || child.is_draining(), |_| true);
            self.children.urge(Urgency::Drain, now, patience, |child| child.is_of(generation));
        }
    }

    fn reopen(&mut self) {
        let Some(cohort) = &mut self.serving else { return };
        if let Err(reason) = cohort.logs.reopen(&cohort.config) {
            error!(self.log, "cannot reopen the logs: {}", reason);
            return;
        }
        for child in self.children.iter().filter(|child| child.is_worker()) {
            match cohort.logs.share() {
                Ok((access_log, error_log)) => child.tell(&Command::Reopen {
                    access_log: access_log.map(Into::into),
                    error_log: Some(error_log.into()),
                }),
                Err(error) => error!(self.log, "cannot pass the logs on"; "worker" => child.pid(), "reason" => %error),
            }
        }
        info!(self.log, "logs reopened");
    }

    pub(crate) fn rest(&mut self, now: Instant) {
        info!(self.log, "the workers are told to finish; a reload starts new ones");
        self.rests = true;
        self.forget_respawns();
        self.hand_over_to_successor();
        self.children.urge(Urgency::Drain, now, self.patience(), Child::is_worker);
    }
}

fn readable(descriptor: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(descriptor, PollFlags::POLLIN)
}
