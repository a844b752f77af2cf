//! Another binary takes over: the side of the master that is there.
//!
//! What follows from what is the rule of [`Old`]; `LIFECYCLE.md` draws it. From the start on the zone is the other's:
//! nothing is claimed, published or released here. Rolling back takes it back.

#![forbid(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use shared::estate::{Link, Message, Terms};
use shared::fd::seal;
use shared::ident::Generation;
use shared::stats::Snapshot;
use shared::zone::Zone;
use slog::{error, info, warn};

use crate::children::{Child, Exit, Role, STOP_TIMEOUT, Urgency};
use crate::cycle::Master;
use crate::inheritance::GENERATION_MAX;
use crate::listeners::Passed;
use crate::lock::PidFile;
use crate::passage::{Old, OldEvent, OldStep};
use crate::recipe::Recipe;
use crate::requests::{Answer, Client};
use crate::spawn::{exec_file, fork};

/// How long another binary may take to serve, beside the time that its first worker is watched.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long another master may take to do as it is told.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Another master on its way.
pub(crate) struct Upgrade {
    link: Link,
    pid: i32,
    /// The zone, which is the other's for now.
    zone: Option<&'static Zone>,
    /// Why it is killed: rolled back is when its exit is seen, and it writes to nothing any more.
    verdict: Option<String>,
    /// The other end of the link is gone; what became of the other master is heard by its exit.
    is_silent: bool,
    rule: Old,
    /// When what is waited for has taken too long.
    deadline: Option<Instant>,
    /// Who waits for the outcome.
    client: Option<Client>,
    old_pid_file: Option<PidFile>,
}

/// How an upgrade is to be gone about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watch {
    /// How long its first worker is watched; zero for not at all.
    pub(crate) time: Duration,
    /// How many requests that worker must have answered by then.
    pub(crate) requests_min: u64,
}

/// As SIGUSR2 has it: the operator watches.
const NO_WATCH: Watch = Watch { time: Duration::ZERO, requests_min: 0 };

impl Upgrade {
    /// What becomes readable when the other has something to say.
    pub(crate) fn source(&self) -> Option<BorrowedFd<'_>> {
        (!self.is_silent).then(|| self.link.as_fd())
    }

    /// This master ends, and the other goes on.
    pub(crate) fn end(self) {
        self.old_pid_file.into_iter().for_each(PidFile::remove);
    }

    /// When it has taken too long.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline.filter(|_| self.verdict.is_none())
    }
}

impl Master {
    /// SIGUSR2: the binary that is now at our path takes its place beside us; the operator decides what follows.
    pub(crate) fn upgrade_beside(&mut self, now: Instant) {
        let opened = binary_of(std::process::id()).and_then(std::fs::File::open).map(OwnedFd::from);
        let opened =
            opened.map_err(|error| format!("cannot open the binary that this master was started from: {error}"));
        match opened.and_then(|binary| self.launch(&binary, None, now)) {
            Ok(upgrade) => self.begin_upgrade(upgrade, NO_WATCH, now),
            Err(reason) => error!(self.log, "no upgrade: {}", reason),
        }
    }

    /// A command asks for a binary to take over from this one.
    pub(crate) fn upgrade_for(&mut self, binary: &OwnedFd, watch: Watch, client: Client, now: Instant) {
        match self.launch(binary, Some(watch.time), now) {
            Ok(upgrade) => self.begin_upgrade(Upgrade { client: Some(client), ..upgrade }, watch, now),
            Err(reason) => client.answer(&Answer::Refused(reason)),
        }
    }

    /// Why there can be none now.
    fn refuse_upgrade(&self) -> Result<(), String> {
        let reason = if std::process::id() == 1 {
            "this master is process 1 of its container, which ends with it: start a container of the new version instead"
        } else if self.upgrade.is_some() {
            "an upgrade is under way"
        } else if self.predecessor.is_some() {
            "the master that this one took over from has not gone yet"
        } else if self.stopping.is_some() || self.serving.is_none() || self.zone.is_none() {
            "this master does not serve"
        } else if self.change.is_some() || self.reload_asked {
            "a reload is under way"
        } else {
            return Ok(());
        };
        Err(reason.into())
    }

    /// Starts the other binary. One that is watched for some time, if only for none, is to replace this one.
    fn launch(&mut self, binary: &OwnedFd, watched: Option<Duration>, now: Instant) -> Result<Upgrade, String> {
        self.refuse_upgrade()?;
        let cannot = |error: io::Error| format!("cannot start the other binary: {error}");
        let (ours, theirs) = Link::pair().map_err(|error| cannot(error.into()))?;
        let arguments = self.arguments(theirs.as_raw_fd()).map_err(cannot)?;
        let keep = [theirs.as_raw_fd(), binary.as_raw_fd()];
        let process = fork(c"sluice-upgrade", &keep, || {
            let error = exec_file(binary.as_fd(), &arguments, &[theirs.as_fd()]);
            // If it can't be told, the exit code says that it failed.
            let hint = if error.kind() == io::ErrorKind::NotFound { " (a script, or for another system?)" } else { "" };
            let _ = theirs.send(&Message::Refused(format!("it cannot be run: {error}{hint}")));
            worker::exit::FAILED
        });
        let child = Child::new(Role::Successor, process.map_err(cannot)?, None);
        let pid = child.pid();
        self.children.add(child);
        let name = std::fs::read_link(format!("/proc/self/fd/{}", binary.as_raw_fd())).unwrap_or_default();
        info!(self.log, "an upgrade begins"; "master" => pid, "binary" => %name.display());
        Ok(Upgrade {
            link: ours,
            pid,
            zone: self.zone.take(),
            deadline: now.checked_add(START_TIMEOUT + watched.unwrap_or_default()),
            client: None,
            verdict: None,
            is_silent: false,
            rule: Old::new(watched.is_some()),
            old_pid_file: PidFile::write(&self.dir.old_pid_file()).ok(),
        })
    }

    fn begin_upgrade(&mut self, upgrade: Upgrade, watch: Watch, now: Instant) {
        self.upgrade = Some(upgrade);
        // One that has ended already is told apart by how it did.
        if let Err(error) = self.pass_on(watch)
            && !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
        {
            self.reject(&format!("cannot pass on what the other binary needs: {error}"), now);
        }
    }

    fn arguments(&self, link: i32) -> io::Result<Vec<CString>> {
        let mut arguments = vec![CString::new("sluice")?, CString::new("succeed")?, CString::new(link.to_string())?];
        if let Recipe::File { path, prefix } = &self.recipe {
            for (flag, value) in [("-c", Some(path)), ("-p", prefix.as_ref())] {
                if let Some(value) = value {
                    arguments.extend([CString::new(flag)?, CString::new(value.as_os_str().as_bytes())?]);
                }
            }
        }
        Ok(arguments)
    }

    /// Says all that another master needs.
    fn pass_on(&self, watch: Watch) -> io::Result<()> {
        let (Some(upgrade), Some(serving)) = (&self.upgrade, &self.serving) else { return Ok(()) };
        let link = &upgrade.link;
        link.send(&Message::Terms(Terms {
            generation: Generation(self.generations),
            watch_ms: u64::try_from(watch.time.as_millis()).unwrap_or(u64::MAX),
            requests_min: watch.requests_min,
            is_daemon: self.is_daemon,
            is_final: upgrade.rule.is_final(),
        }))?;
        link.send(&Message::Text(seal("configuration", serving.text.as_bytes())?))?;
        if let Some(lock) = &self.lock {
            link.send(&Message::Lock(lock.share()?))?;
        }
        for Passed { address, sockets, is_activated } in serving.listeners.share_named()? {
            link.send_sockets(&address, sockets, is_activated)?;
        }
        for (name, socket) in self.share_origins()? {
            link.send(&Message::Origin { name, socket })?;
        }
        // Without it the other one can go on only with this zone.
        if let Ok(snapshot) = Snapshot::read(&self.dir.zone()) {
            link.send(&Message::Counters(seal("counters", snapshot.counters().as_bytes())?))?;
        }
        link.send(&Message::Complete)
    }

    /// Hears what the other master says.
    pub(crate) fn hear_successor(&mut self, now: Instant) {
        while let Some(upgrade) = &mut self.upgrade {
            let received = upgrade.link.receive();
            if upgrade.verdict.is_some() && matches!(received, Ok(Some(_))) {
                // It is being killed: what it still says does not count.
                continue;
            }
            match received {
                Ok(Some(Message::Progress(text))) => {
                    info!(self.log, "upgrade: {}", text);
                    upgrade.client.iter().for_each(|client| client.answer(&Answer::Note(text.clone())));
                }
                Ok(Some(Message::Serving)) => self.pass(OldEvent::Serves, "", now),
                Ok(Some(Message::GivenBack)) => self.pass(OldEvent::GaveBack, "", now),
                Ok(Some(Message::Refused(reason))) => self.pass(OldEvent::Failed, &reason, now),
                Ok(Some(Message::Connections(from))) => self.take_over(from),
                Ok(Some(other)) => warn!(self.log, "the other master says what it should not: {:?}", other),
                Ok(None) => return upgrade.is_silent = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => self.reject(&format!("the other master cannot be understood: {error}"), now),
            }
        }
    }

    /// Goes on with an upgrade: it may be late, or our workers may be back.
    pub(crate) fn advance_upgrade(&mut self, now: Instant) {
        let Some(upgrade) = &self.upgrade else { return };
        let is_late = upgrade.deadline().is_some_and(|deadline| deadline <= now);
        match upgrade.rule.is_returning() && !upgrade.rule.is_ending() {
            true if self.all_serve() => self.pass(OldEvent::AllServe, "", now),
            true if is_late => self.pass(OldEvent::Stuck, "our workers do not come back in time", now),
            false if is_late => self.reject("the other master does not do in time what it is to do", now),
            _ => {}
        }
    }

    /// Our workers do not come back from the other binary, which goes on then; says whether they were to.
    pub(crate) fn stay_with_successor(&mut self, reason: &str, now: Instant) -> bool {
        let is_returning =
            self.upgrade.as_ref().is_some_and(|upgrade| upgrade.rule.is_returning() && !upgrade.rule.is_ending());
        self.pass(OldEvent::Stuck, reason, now);
        is_returning
    }

    /// Ends a master with which nothing can be arranged.
    fn reject(&mut self, reason: &str, now: Instant) {
        let Some(upgrade) = &mut self.upgrade else { return };
        upgrade.verdict.get_or_insert_with(|| reason.to_owned());
        let pid = upgrade.pid;
        self.children.urge(Urgency::Kill, now, Duration::ZERO, |child| child.pid() == pid);
    }

    /// The other master has ended.
    pub(crate) fn successor_ended(&mut self, pid: i32, exit: Exit, now: Instant) {
        self.hear_successor(now);
        if let Some(upgrade) = self.upgrade.as_mut().filter(|upgrade| upgrade.pid == pid) {
            let reason = upgrade.verdict.take().unwrap_or_else(|| format!("the other master ended: {exit}"));
            self.pass(OldEvent::Failed, &reason, now);
        }
        // Those that it had forked, if it was killed.
        self.adopt_left_behind(now);
    }

    /// The operator wants this master to serve alone again; says whether there was another one to send away.
    pub(crate) fn return_asked(&mut self, now: Instant) -> bool {
        let is_upgrading = self.upgrade.is_some();
        self.pass(OldEvent::Return, "", now);
        is_upgrading
    }

    /// The end of this master has begun: another one may go on in its place, or has to end as well.
    pub(crate) fn leave_upgrade(&mut self, now: Instant) {
        let is_replaced = self.pid_file.as_ref().is_some_and(PidFile::is_anothers);
        self.pass(OldEvent::Quit { is_replaced }, "the proxy is stopped", now);
    }

    /// Does what follows from an event.
    fn pass(&mut self, event: OldEvent, reason: &str, now: Instant) {
        let Some(upgrade) = &mut self.upgrade else { return };
        let event = match (&upgrade.verdict, event) {
            // It is being killed, and goes on in no one's place.
            (Some(_), OldEvent::Failed | OldEvent::Quit { .. }) => OldEvent::Failed,
            (Some(_), _) => return,
            (None, event) => event,
        };
        match upgrade.rule.on(event) {
            OldStep::Wait => {}
            OldStep::Announce => {
                upgrade.deadline = None;
                info!(self.log, "both masters serve: QUIT ends this one, HUP goes back to it"; "master" => upgrade.pid);
            }
            OldStep::Leave => self.leave(now),
            OldStep::AskBack => {
                info!(self.log, "going back from the other binary"; "master" => upgrade.pid);
                upgrade.deadline = now.checked_add(ANSWER_TIMEOUT);
                if let Err(error) = upgrade.link.send(&Message::GiveBack) {
                    warn!(self.log, "the other master cannot be told"; "reason" => %error);
                }
            }
            OldStep::TakeZone => {
                let zone = upgrade.zone.take();
                upgrade.deadline = now.checked_add(START_TIMEOUT);
                self.take_zone_back(zone);
                self.fill_seats(now);
            }
            OldStep::GiveZone => {
                error!(self.log, "the other master goes on: {}", reason; "master" => upgrade.pid);
                upgrade.zone = self.zone.take();
                upgrade.deadline = None;
                self.strangers.clear();
                // One that cannot be told has ended, which is heard of.
                let _ = upgrade.link.send(&Message::Resume);
                self.rest(now);
            }
            OldStep::SendEnd => {
                upgrade.deadline = now.checked_add(ANSWER_TIMEOUT);
                // One that cannot be told has ended, which is heard of.
                let _ = upgrade.link.send(&Message::End);
            }
            OldStep::RollBack { takes_zone } => self.roll_back(takes_zone, reason, now),
            OldStep::Refuse => error!(self.log, "reload refused: an upgrade is under way"),
        }
    }

    /// Workers that are about to drain hand over to those of another master that serves beside this one.
    pub(crate) fn hand_over_to_successor(&self) {
        if let Some(upgrade) = self.upgrade.as_ref().filter(|upgrade| upgrade.rule.both_serve()) {
            self.hand_over_across(&upgrade.link);
        }
    }

    /// The other master goes on; this one ends.
    fn leave(&mut self, now: Instant) {
        let Some(upgrade) = &mut self.upgrade else { return };
        if let Some(client) = upgrade.client.take() {
            client.answer(&Answer::Done(format!(
                "master {} serves; this one ({}) drains",
                upgrade.pid,
                std::process::id()
            )));
        }
        let pid = upgrade.pid;
        if let Some(upgrade) = &self.upgrade {
            self.hand_over_across(&upgrade.link);
            // One that cannot be told has ended: then nobody goes on, and the next start finds the workers.
            let _ = upgrade.link.send(&Message::Farewell);
        }
        self.children.forget(pid);
        self.is_superseded = true;
        // The other one's holds as long as it lives, and no longer.
        self.lock = None;
        self.serving.iter_mut().for_each(|cohort| cohort.listeners.lend(true));
        // Already, when it was the operator who ended this one.
        self.stop(Urgency::Drain, now);
    }

    /// This master serves alone, as before.
    fn roll_back(&mut self, takes_zone: bool, reason: &str, now: Instant) {
        let Some(upgrade) = self.upgrade.take() else { return };
        let Upgrade { link, pid, zone, rule, client, old_pid_file, .. } = upgrade;
        // It may be waiting for that, or gone.
        let _ = link.send(&Message::End);
        drop(link);
        // If the proxy ends, what was about to replace it must not come to do so any more.
        let urgency = if self.stopping.is_some() { Urgency::Kill } else { Urgency::Drain };
        let patience = self.patience() + 2 * STOP_TIMEOUT;
        self.children.urge(urgency, now, patience, |child| child.pid() == pid);
        if takes_zone {
            self.take_zone_back(zone);
        }
        self.fill_seats(now);
        old_pid_file.into_iter().for_each(PidFile::remove);
        // The other may have said already that the directory is its.
        if let Err(fault) = self.become_known() {
            error!(self.log, "this master serves again, but cannot be found: {}", fault);
        }
        // Log files may have been renamed while the other one was told of it.
        self.reopen_asked = true;
        self.note_committed();
        self.clear_quarantine();
        // The other one may have used numbers, too.
        let last =
            Snapshot::read(&self.dir.zone()).map_or(0, |snapshot| snapshot.last_generation().min(GENERATION_MAX));
        self.generations = self.generations.max(last) + 1;
        match rule.is_returning() && !takes_zone {
            true => info!(self.log, "this master serves alone again: {}", reason; "master" => pid),
            false => error!(self.log, "upgrade rolled back: {}", reason; "master" => pid),
        }
        if let (Some(zone), Some(serving)) = (self.zone, &self.serving) {
            zone.set_generation(serving.generation);
            zone.set_verdict(Generation(self.generations), false, &format!("upgrade rolled back: {reason}"));
            self.service.ready(serving.generation, Some(reason), &self.log);
        }
        if let Some(client) = client {
            client.answer(&Answer::Refused(format!("rolled back: {reason}")));
        }
    }
}

/// The path that a process was started from, at which another file may lie by now.
///
/// # Errors
/// When there is no such process, or it may not be looked at.
pub(crate) fn binary_of(pid: u32) -> io::Result<PathBuf> {
    /// What the kernel appends to the path of a file that was removed or replaced.
    const DELETED: &[u8] = b" (deleted)";
    let path = std::fs::read_link(format!("/proc/{pid}/exe"))?;
    let bytes = path.as_os_str().as_bytes();
    Ok(OsStr::from_bytes(bytes.strip_suffix(DELETED).unwrap_or(bytes)).into())
}
