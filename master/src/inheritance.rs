//! What a master finds when it starts: nothing; what the workers of a killed one have; or what another master gives that it
//! is to take the place of.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use conf::Loaded;
use conf::model::Config;
use shared::estate::{Link, Message, Terms};
use shared::fd::unseal;
use shared::ident::{Generation, ProcessId};
use shared::stats::Snapshot;
use shared::zone::{CARRIED_BYTES_MAX, Stranger, Zone, ZoneError};
use slog::{Logger, info, warn};

use crate::children::Child;
use crate::cohort::seats;
use crate::listeners::{Listeners, Passed};
use crate::lock::Lock;
use crate::orphans::{Adopted, Orphans, Summons, await_message};
use crate::passage::New;
use crate::recipe::Recipe;
use crate::runtime_dir::RuntimeDir;
use crate::trial::{Finding, Record, judge};

/// How long an earlier master may take to say all that there is to say.
const ESTATE_TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of a configuration's text.
const TEXT_BYTES_MAX: usize = 256 << 20;
/// The highest generation that is believed: workers can write to the zone, and there has to be room above.
pub(crate) const GENERATION_MAX: u64 = 1 << 62;
/// What is told before zones of two layouts are used side by side.
const APART: &str = "counters go over as they are now, and what the old workers still count is lost; until they have gone, \
                     old and new know apart which servers are healthy and which requests are refused";
/// How often a worker on trial is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What there is to go on with.
#[derive(Default)]
pub(crate) struct Inheritance {
    /// The zone, which others have used.
    pub(crate) zone: Option<&'static Zone>,
    /// What was counted in a zone that cannot be shared, for the one that is made in its place.
    pub(crate) counters: Option<String>,
    /// The last generation of the proxy.
    pub(crate) generation: u64,
    /// Sockets that are open.
    pub(crate) listeners: Option<Listeners>,
    /// Whether an earlier master's are among them.
    pub(crate) has_sockets: bool,
    /// Those of demo origins, by name.
    pub(crate) origins: Vec<(String, OwnedFd)>,
    /// Workers that a killed master left, and that obey now.
    pub(crate) children: Vec<Child>,
    /// Others that were called, and have not answered yet.
    pub(crate) summoned: Vec<Summons>,
    /// Processes in the zone that do not.
    pub(crate) strangers: Vec<Stranger>,
    /// Workers of a killed master, whether they obey or not.
    pub(crate) orphans: Option<Orphans>,
    /// The master whose place is to be taken.
    pub(crate) predecessor: Option<Predecessor>,
}

/// The master whose place is to be taken.
pub(crate) struct Predecessor {
    pub(crate) link: Link,
    /// How to go about it.
    pub(crate) terms: Terms,
    /// The first worker, while it is watched.
    trial: Option<Trial>,
    /// The zone, once it was given back.
    pub(crate) zone: Option<&'static Zone>,
    /// How far the place has passed.
    pub(crate) rule: New,
}

struct Trial {
    until: Instant,
    next: Instant,
    before: Snapshot,
}

/// All that an earlier master says.
pub(crate) struct Estate {
    /// The configuration that it serves.
    pub(crate) loaded: Loaded,
    /// The lock that it holds.
    pub(crate) lock: Lock,
    /// The rest.
    pub(crate) inheritance: Inheritance,
}

impl Inheritance {
    /// What the workers of a killed master have, if there are any in `dir`.
    pub(crate) fn of_orphans(dir: &RuntimeDir, config: &Config, log: &Logger) -> Inheritance {
        let orphans = Orphans::find(dir, log);
        // Also when there is no zone any more: a master may have ended beside workers that were not its.
        let mut adopted = Adopted::from_workers(dir, &[], true, log);
        let listeners = adopted.listeners.take();
        let mut inheritance =
            Inheritance { has_sockets: listeners.is_some(), listeners, orphans, ..Inheritance::default() };
        if inheritance.orphans.is_some() {
            inheritance.adopt_zone(dir, config, log);
        }
        if inheritance.zone.is_none() {
            adopted.forget_slots();
        }
        inheritance
            .strangers
            .retain(|stranger| adopted.children.iter().all(|child| child.slot() != Some(stranger.slot)));
        (inheritance.children, inheritance.summoned) = (adopted.children, adopted.summoned);
        inheritance
    }

    /// Goes on with the zone of `dir`, if that can be.
    fn adopt_zone(&mut self, dir: &RuntimeDir, config: &Config, log: &Logger) {
        // Its successors count on where it stood, unless it is too small, or not to be understood.
        match ProcessId::current(0).map_err(|source| ZoneError::Io { doing: "take over", path: dir.zone(), source }) {
            Ok(_) if is_too_small(dir, config) => {
                info!(log, "the configuration needs a larger zone: counters start at zero");
            }
            Ok(us) => match Zone::adopt(&dir.zone(), us) {
                Ok((zone, strangers)) => {
                    (self.zone, self.strangers) = (Some(zone), strangers);
                    self.generation = Snapshot::read(&dir.zone())
                        .map_or(0, |snapshot| snapshot.last_generation().min(GENERATION_MAX));
                }
                Err(error) => warn!(log, "the zone cannot be taken over, counters start at zero: {}", error),
            },
            Err(error) => warn!(log, "{}", error),
        }
    }
}

impl Inheritance {
    /// Adds what a service manager passed.
    pub(crate) fn add_listeners(&mut self, activated: Listeners) {
        self.listeners = Some(match self.listeners.take() {
            Some(known) => known.with(activated),
            None => activated,
        });
    }
}

impl Estate {
    /// Hears another master out.
    ///
    /// # Errors
    /// A sentence for the operator, which that master is told as well.
    pub(crate) fn receive(descriptor: OwnedFd, recipe: &Recipe) -> Result<Estate, String> {
        let link = Link::from_fd(descriptor).map_err(|error| error.to_string())?;
        Estate::hear(link, recipe).map_err(|(link, reason)| {
            // If it can't be told, it sees the end of this process.
            let _ = link.send(&Message::Refused(reason.clone()));
            reason
        })
    }

    fn hear(link: Link, recipe: &Recipe) -> Result<Estate, (Link, String)> {
        match Estate::read(&link, recipe) {
            Ok((mut estate, terms)) => {
                let predecessor = Predecessor { link, terms, trial: None, zone: None, rule: New::default() };
                estate.inheritance.predecessor = Some(predecessor);
                Ok(estate)
            }
            Err(reason) => Err((link, reason)),
        }
    }

    fn read(link: &Link, recipe: &Recipe) -> Result<(Estate, Terms), String> {
        let unheard = |error: io::Error| format!("cannot hear the master that is to be replaced: {error}");
        let missing = |what: &str| format!("the master that is to be replaced did not pass on {what}");
        let deadline = Instant::now() + ESTATE_TIMEOUT;
        let (mut terms, mut text, mut lock, mut counters) = (None, None, None, None);
        let (mut listeners, mut origins) = (Vec::new(), Vec::new());
        loop {
            match await_message(link, deadline).map_err(unheard)? {
                Message::Terms(told) => terms = Some(told),
                Message::Text(file) => text = Some(file),
                Message::Lock(file) => lock = Some(file),
                Message::Listener { address, sockets, is_activated } => {
                    listeners.push(Passed { address, sockets, is_activated });
                }
                Message::Origin { name, socket } => origins.push((name, socket)),
                Message::Counters(file) => counters = Some(file),
                Message::Complete => break,
                other => return Err(format!("the master that is to be replaced says what it should not: {other:?}")),
            }
        }
        let terms = terms.ok_or_else(|| missing("its terms"))?;
        let lock = lock.ok_or_else(|| missing("its lock"))?;
        let text = unseal(text.ok_or_else(|| missing("its configuration"))?, TEXT_BYTES_MAX).map_err(unheard)?;
        let text = String::from_utf8(text).map_err(|_| missing("a configuration that is text"))?;
        let loaded = conf::parse(&text, "the configuration that is served")
            .map_err(|problems| format!("this binary cannot serve what is served:\n{problems}"))?;
        let loaded = recipe.anchored(loaded);
        let dir = RuntimeDir::of(&loaded.config);
        let lock = Lock::inherited(lock, &dir.lock()).map_err(|error| format!("cannot use the lock: {error}"))?;
        let us = ProcessId::current(0).map_err(|error| error.to_string())?;
        let listeners = Listeners::passed(listeners, true)?;
        let (zone, strangers, counters) = match (Zone::adopt(&dir.zone(), us), counters) {
            (Ok((zone, strangers)), _) => (Some(zone), strangers, None),
            (Err(error), Some(counters)) if error.is_of_layout() && terms.is_final => {
                let counters = unseal(counters, CARRIED_BYTES_MAX).map_err(unheard)?;
                let text = Message::Progress(format!("{error}; {APART}"));
                link.send(&text).map_err(unheard)?;
                (None, Vec::new(), Some(String::from_utf8_lossy(&counters).into_owned()))
            }
            (Err(error), _) if error.is_of_layout() => {
                return Err(format!("{error}; by signals it cannot be gone back from that: use `sluice upgrade`"));
            }
            (Err(error), _) => return Err(error.to_string()),
        };
        let inheritance = Inheritance {
            zone,
            counters,
            generation: terms.generation.0,
            listeners: Some(listeners),
            has_sockets: true,
            origins,
            strangers,
            ..Inheritance::default()
        };
        Ok((Estate { loaded, lock, inheritance }, terms))
    }
}

impl Predecessor {
    /// Whether the first worker is to be watched before the others follow.
    pub(crate) fn wants_trial(&self) -> bool {
        self.terms.watch_ms > 0 && self.rule == New::Trying
    }

    /// Looks in this `zone` at the first worker, which serves as `generation`.
    pub(crate) fn look(&mut self, zone: &Path, generation: Generation, now: Instant) -> Finding {
        let snapshot = match Snapshot::read(zone) {
            Ok(snapshot) => snapshot,
            Err(error) => return Finding::Unfit(format!("the zone tells nothing of it: {error}")),
        };
        let watch = Duration::from_millis(self.terms.watch_ms);
        let Some(trial) = &mut self.trial else {
            let until = now.checked_add(watch).unwrap_or(now);
            self.trial = Some(Trial { until, next: now + LOOK_INTERVAL, before: snapshot });
            return Finding::Pending;
        };
        if now < trial.next && now < trial.until {
            return Finding::Pending;
        }
        trial.next = now + LOOK_INTERVAL;
        let change = snapshot.since(&trial.before);
        let own: Vec<_> = snapshot.workers().filter(|worker| worker.generation == generation).map(|w| w.slot).collect();
        let (own, others) =
            (Record::of(&change, |slot| own.contains(&slot)), Record::of(&change, |slot| !own.contains(&slot)));
        judge(&own, &others, self.terms.requests_min, now >= trial.until)
    }

    /// When to look next.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.trial.as_ref().filter(|_| self.wants_trial()).map(|trial| trial.next.min(trial.until))
    }

    /// The watch is over.
    pub(crate) fn end_trial(&mut self) {
        self.trial = None;
        self.terms.watch_ms = 0;
    }
}

/// Whether the zone that is there has no slots for the workers of this configuration beside those that are in it, or not
/// for two cohorts of them.
fn is_too_small(dir: &RuntimeDir, config: &Config) -> bool {
    let workers = u64::from(seats(config).unwrap_or(0));
    Snapshot::read(&dir.zone()).is_ok_and(|snapshot| {
        let used = snapshot.processes.len() as u64;
        snapshot.slots < used.max(workers) + workers
    })
}
