//! The master's children: who they are, what they were told, how long they may take to obey.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use shared::channel::{Channel, Command, Report};
use shared::ident::{Generation, Seat, Slot};

use crate::spawn::Process;

/// How long a worker may take to obey [`Urgency::Stop`].
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What a child is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It serves.
    Worker {
        /// Which of the listening sockets are its own.
        seat: Seat,
        /// Its record in the zone; one that another master has forked may be in another zone.
        slot: Option<Slot>,
        /// The configuration that it was started with.
        generation: Generation,
    },
    /// The process beside the traffic.
    Control,
    /// It tries a configuration, and ends.
    Proof,
    /// The master of another binary, which is to replace this one.
    Successor,
    /// It names the places where a worker was, and ends.
    Scribe,
}

/// How a child is told to end; each is followed by the next when its time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// Finish what runs.
    Drain,
    /// End at once.
    Stop,
    /// It does not listen any more.
    Kill,
}

/// One child.
#[derive(Debug)]
pub(crate) struct Child {
    /// What it is for.
    pub(crate) role: Role,
    /// When it was forked.
    pub(crate) born: Instant,
    /// Whether it has said that it serves.
    pub(crate) is_ready: bool,
    /// What it was last told, and when that turns into the next.
    leaving: Option<(Urgency, Option<Instant>)>,
    process: Process,
    channel: Option<Channel>,
    /// Another master's, taken over from it: its end is seen, but not how it came.
    is_adopted: bool,
}

impl Child {
    /// A child that was just forked. A worker has a `channel`, and so has `control`.
    pub(crate) fn new(role: Role, process: Process, channel: Option<Channel>) -> Child {
        Child { role, born: Instant::now(), is_ready: false, leaving: None, process, channel, is_adopted: false }
    }

    /// A worker that another master has forked, and that serves.
    pub(crate) fn adopted(role: Role, process: Process, channel: Channel) -> Child {
        Child { is_ready: true, is_adopted: true, ..Child::new(role, process, Some(channel)) }
    }

    /// Its record is in a zone that this master has not.
    pub(crate) fn forget_slot(&mut self) {
        if let Role::Worker { slot, .. } = &mut self.role {
            *slot = None;
        }
    }

    /// Whether another master has forked it.
    pub(crate) fn is_adopted(&self) -> bool {
        self.is_adopted
    }

    fn has_ended(&self) -> bool {
        let mut end = [PollFd::new(self.process.end(), PollFlags::POLLIN)];
        poll(&mut end, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Its process number.
    pub(crate) fn pid(&self) -> i32 {
        self.process.pid.as_raw()
    }

    /// Whether it was told to end.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// Whether it was told to finish what runs, and nothing more urgent since.
    pub(crate) fn is_draining(&self) -> bool {
        matches!(self.leaving, Some((Urgency::Drain, _)))
    }

    /// Whether it is a worker started with `generation`.
    pub(crate) fn is_of(&self, generation: Generation) -> bool {
        matches!(self.role, Role::Worker { generation: its, .. } if its == generation)
    }

    /// A worker's record in the zone.
    pub(crate) fn slot(&self) -> Option<Slot> {
        match self.role {
            Role::Worker { slot, .. } => slot,
            Role::Control | Role::Proof | Role::Successor | Role::Scribe => None,
        }
    }

    /// A worker's seat.
    pub(crate) fn seat(&self) -> Option<Seat> {
        match self.role {
            Role::Worker { seat, .. } => Some(seat),
            Role::Control | Role::Proof | Role::Successor | Role::Scribe => None,
        }
    }

    /// A worker serves another configuration from now on.
    pub(crate) fn promote(&mut self, to: Generation) {
        if let Role::Worker { generation, .. } = &mut self.role {
            *generation = to;
        }
    }

    /// Asks a worker where its loop is; it answers by a [`Report::Stack`], if it is able to.
    pub(crate) fn ask_where(&self) {
        self.process.signal(worker::stack::ASK);
    }

    /// Ends it without further ado.
    pub(crate) fn kill(&self) {
        self.process.signal(Signal::SIGKILL);
    }

    /// Whether it is a worker.
    pub(crate) fn is_worker(&self) -> bool {
        matches!(self.role, Role::Worker { .. })
    }

    /// Tells a worker something; one that cannot be told is past listening, and is killed.
    pub(crate) fn tell(&self, command: &Command) {
        if self.ask(command).is_err() {
            self.kill();
        }
    }

    /// Tells a worker something that it may be too busy to hear.
    ///
    /// # Errors
    /// When it was not told.
    pub(crate) fn ask(&self, command: &Command) -> std::io::Result<()> {
        self.channel.as_ref().ok_or(std::io::ErrorKind::BrokenPipe)?.send_command(command)
    }

    /// The next thing it has to say.
    pub(crate) fn hear(&mut self) -> Option<Report> {
        match self.channel.as_ref()?.recv_report() {
            Ok(Some(report)) => {
                let says_again = self.is_ready && report == Report::Ready;
                self.is_ready |= report == Report::Ready;
                (!says_again).then_some(report)
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            // It has closed its end, or talks nonsense: its exit is what is heard next.
            Ok(None) | Err(_) => {
                self.channel = None;
                None
            }
        }
    }

    /// Tells it to end, unless it was already told as urgently. `patience` is how long it may drain.
    pub(crate) fn urge(&mut self, urgency: Urgency, now: Instant, patience: Duration) {
        if self.leaving.is_some_and(|(told, _)| told >= urgency) {
            return;
        }
        let deadline = match urgency {
            Urgency::Drain => now.checked_add(patience),
            Urgency::Stop => now.checked_add(STOP_TIMEOUT),
            Urgency::Kill => None,
        };
        self.leaving = Some((urgency, deadline));
        match (self.role, urgency) {
            (Role::Worker { .. }, Urgency::Drain) => self.tell(&Command::Drain),
            (Role::Worker { .. }, Urgency::Stop) => self.tell(&Command::Stop),
            (Role::Control, Urgency::Drain | Urgency::Stop) => self.process.signal(Signal::SIGTERM),
            (Role::Successor, Urgency::Drain) => self.process.signal(Signal::SIGQUIT),
            (Role::Successor, Urgency::Stop) => self.process.signal(Signal::SIGTERM),
            (Role::Proof | Role::Scribe, _) | (_, Urgency::Kill) => self.process.signal(Signal::SIGKILL),
        }
    }
}

/// All of them, by pid.
#[derive(Debug, Default)]
pub(crate) struct Children(BTreeMap<i32, Child>);

impl Children {
    /// One more.
    pub(crate) fn add(&mut self, child: Child) {
        self.0.insert(child.pid(), child);
    }

    /// Nothing more is asked of a child, and its end is nobody's business.
    pub(crate) fn forget(&mut self, pid: i32) {
        self.0.remove(&pid);
    }

    /// Those that another master has forked are left to the next one.
    pub(crate) fn release_adopted(&mut self) {
        self.0.retain(|_, child| !child.is_adopted);
    }

    /// A child that has ended. As process 1 this also takes the exits of strangers, of which nothing is said.
    pub(crate) fn reap(&mut self) -> Option<(Child, Exit)> {
        self.reap_own().or_else(|| {
            let pid = *self.0.iter().find(|(_, child)| child.is_adopted && child.has_ended())?.0;
            Some((self.0.remove(&pid)?, Exit::Unseen))
        })
    }

    fn reap_own(&mut self) -> Option<(Child, Exit)> {
        loop {
            let status = waitpid(None, Some(WaitPidFlag::WNOHANG)).ok()?;
            let child = self.0.remove(&status.pid()?.as_raw());
            match (status, child) {
                (WaitStatus::Exited(_, code), Some(child)) => return Some((child, Exit::Code(code))),
                (WaitStatus::Signaled(_, signal, _), Some(child)) => return Some((child, Exit::Signal(signal))),
                // Stops and continuations are not asked for, so this is a stranger.
                _ => {}
            }
        }
    }

    /// Tells those that `which` selects to end.
    pub(crate) fn urge(&mut self, urgency: Urgency, now: Instant, patience: Duration, which: impl Fn(&Child) -> bool) {
        self.0.values_mut().filter(|child| which(child)).for_each(|child| child.urge(urgency, now, patience));
    }

    /// Tells those more urgently whose time is up.
    pub(crate) fn press(&mut self, now: Instant) {
        for child in self.0.values_mut() {
            match child.leaving {
                Some((Urgency::Drain, Some(deadline))) if deadline <= now => {
                    child.urge(Urgency::Stop, now, STOP_TIMEOUT)
                }
                Some((Urgency::Stop, Some(deadline))) if deadline <= now => {
                    child.urge(Urgency::Kill, now, STOP_TIMEOUT)
                }
                _ => {}
            }
        }
    }

    /// When [`press`](Children::press) has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.0.values().filter_map(|child| child.leaving?.1).min()
    }

    /// What becomes readable when one of them has something to say, or has ended without a signal that tells.
    pub(crate) fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let channels = self.0.values().filter_map(|child| Some(child.channel.as_ref()?.as_fd()));
        channels.chain(self.adopted().map(|child| child.process.end()))
    }

    /// Those that another master has forked.
    pub(crate) fn adopted(&self) -> impl Iterator<Item = &Child> {
        self.0.values().filter(|child| child.is_adopted)
    }

    /// Each of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Child> {
        self.0.values()
    }

    /// Each of them.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Child> {
        self.0.values_mut()
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself.
    Code(i32),
    /// It was killed.
    Signal(Signal),
    /// It was not a child of ours.
    Unseen,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(worker::exit::PANICKED) => f.write_str("panicked"),
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => f.write_str(signal.as_str()),
            Exit::Unseen => f.write_str("it was another master's, and how it ended is not known"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::spawn::fork;

    fn worker() -> (Child, Channel) {
        let (ours, theirs) = Channel::pair().unwrap();
        let process = fork(c"sluice-test", &[], || {
            loop {
                nix::unistd::pause();
            }
        })
        .unwrap();
        let role = Role::Worker { seat: Seat(0), slot: Some(Slot(0)), generation: Generation(1) };
        (Child::new(role, process, Some(ours)), theirs)
    }

    #[test]
    fn urgency_only_grows_and_time_makes_it_grow() {
        let (child, theirs) = worker();
        let pid = child.process.pid;
        let mut children = Children::default();
        children.add(child);
        let (start, patience) = (Instant::now(), Duration::from_secs(30));
        let expect = |children: &mut Children, after: Duration, next: Option<Duration>| {
            children.press(start + after);
            assert_eq!(children.next_deadline(), next.map(|next| start + next));
            match theirs.recv_command() {
                Ok(Some(Command::Drain)) => "drain",
                Ok(Some(Command::Stop)) => "stop",
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => "",
                other => panic!("{other:?}"),
            }
        };
        children.urge(Urgency::Drain, start, patience, Child::is_worker);
        assert_eq!(expect(&mut children, Duration::ZERO, Some(patience)), "drain");
        children.urge(Urgency::Drain, start + patience, patience, Child::is_worker);
        assert_eq!(expect(&mut children, patience / 2, Some(patience)), "");
        assert_eq!(expect(&mut children, patience, Some(patience + STOP_TIMEOUT)), "stop");
        assert_eq!(expect(&mut children, patience + STOP_TIMEOUT, None), "");
        assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Signaled(pid, Signal::SIGKILL, false));
    }

    #[test]
    fn reports_are_heard_and_a_closed_channel_is_silence() {
        let (mut child, theirs) = worker();
        theirs.send_report(&Report::Ready).unwrap();
        assert_eq!(child.hear(), Some(Report::Ready));
        assert!(child.is_ready);
        assert_eq!(child.hear(), None);
        drop(theirs);
        // Children of other tests hold a copy until they have closed it.
        while child.channel.is_some() {
            assert_eq!(child.hear(), None);
        }
        child.urge(Urgency::Drain, Instant::now(), Duration::MAX);
        waitpid(child.process.pid, None).unwrap();
    }
}
