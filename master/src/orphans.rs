//! Workers that a killed master left behind. They go on serving until the next master is ready; then they drain.
//!
//! The next master finds them by their sockets in the runtime directory. They give it the listening sockets, so that no
//! queue is lost, and obey it from then on; it goes on with the zone that they share.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt};
use shared::channel::Channel;
use shared::estate::{Link, Message};
use shared::ident::{Generation, ProcessId, Seat, Slot};
use shared::stats::Snapshot;
use shared::zone::{Zone, ZoneError};
use slog::{Logger, info, warn};

use crate::children::{Child, Role};
use crate::listeners::{Listeners, Passed};
use crate::runtime_dir::RuntimeDir;
use crate::spawn::Process;

/// How long the workers may take, all of them together, to give a master that starts the sockets that it waits for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// The most messages that a worker is heard for: one for each of its addresses and 64 of its sockets.
const MESSAGES_MAX: usize = 1024;

/// Living workers of a master that is not there any more.
#[derive(Debug)]
pub(crate) struct Orphans {
    /// What they share.
    zone: PathBuf,
    /// The master that was killed.
    pub(crate) master: ProcessId,
    /// Whether they were told to finish already.
    pub(crate) are_retired: bool,
    /// They. What a zone says of pids is for people, and for waiting: nothing is done to the processes.
    pub(crate) workers: Vec<ProcessId>,
}

/// What those of them that answered have given.
#[derive(Debug, Default)]
pub(crate) struct Adopted {
    /// They, obeying now.
    pub(crate) children: Vec<Child>,
    /// The sockets that they accept from.
    pub(crate) listeners: Option<Listeners>,
    /// Those that have not answered yet.
    pub(crate) summoned: Vec<Summons>,
}

/// A worker that was called, and has not said all yet.
#[derive(Debug)]
pub(crate) struct Summons {
    /// Its slot.
    pub(crate) slot: Slot,
    process: Process,
    link: Link,
    found: Vec<Passed>,
    messages: usize,
    /// Whether its sockets are of use: others may have given them already.
    wants_sockets: bool,
    /// Its slot is in a zone that this master has not.
    is_foreign: bool,
}

impl Orphans {
    /// Looks for them in the zone of `dir`, where no master runs. There may be none left: then `workers` is empty.
    ///
    /// # Errors
    /// When there is no zone, or one that tells nothing.
    pub(crate) fn look(dir: &RuntimeDir) -> Result<Orphans, ZoneError> {
        let zone = dir.zone();
        let snapshot = Snapshot::read(&zone)?;
        let workers = snapshot.workers().filter(|process| process.is_alive).map(|process| process.id).collect();
        Ok(Orphans { zone, master: snapshot.master, are_retired: snapshot.is_retired, workers })
    }

    /// Looks for them on behalf of a new master, and logs what was found.
    pub(crate) fn find(dir: &RuntimeDir, log: &Logger) -> Option<Orphans> {
        let orphans = match Orphans::look(dir) {
            Ok(orphans) => orphans,
            Err(ZoneError::Absent(_)) => return None,
            Err(error) => {
                warn!(log, "a zone was left behind that tells nothing: {}", error);
                return None;
            }
        };
        if orphans.workers.is_empty() {
            info!(log, "a master ended here without cleaning up, and left no process behind"; "master" => orphans.master.pid);
            return None;
        }
        warn!(log, "a killed master left workers behind: they serve until this one is ready";
            "master" => orphans.master.pid, "workers" => orphans.pids());
        Some(orphans)
    }

    /// Their pids, for people.
    pub(crate) fn pids(&self) -> String {
        self.workers.iter().map(|worker| worker.pid.to_string()).collect::<Vec<_>>().join(" ")
    }

    /// Whether one of them still runs.
    pub(crate) fn are_alive(&self) -> bool {
        self.workers.iter().any(|worker| worker.is_alive())
    }

    /// Has them finish, as when another master is there. Call it before the zone file is replaced.
    ///
    /// # Errors
    /// When the zone cannot be written; then they serve on beside the new workers.
    pub(crate) fn retire(&self) -> Result<(), ZoneError> {
        Zone::retire_file(&self.zone, self.master)
    }
}

impl Adopted {
    /// Takes over from the workers of `dir` that are in none of the slots in `but`; they are waited for, a while, if it
    /// `waits`.
    pub(crate) fn from_workers(dir: &RuntimeDir, but: &[Slot], waits: bool, log: &Logger) -> Adopted {
        let mut adopted = Adopted::default();
        for slot in dir.calls().into_iter().filter(|slot| !but.contains(slot)) {
            match Summons::send(dir, slot, waits) {
                Ok(summons) => adopted.summoned.push(summons),
                // A file that a dead worker left.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => dir.remove_call(slot),
                Err(error) => {
                    warn!(log, "cannot take over from a worker of another master: {}", error; "slot" => slot.0);
                }
            }
        }
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            adopted.hear(log);
            let left = deadline.saturating_duration_since(Instant::now());
            if !waits || adopted.summoned.is_empty() || left.is_zero() {
                for late in &mut adopted.summoned {
                    late.wants_sockets = false;
                    late.found.clear();
                }
                return adopted;
            }
            let mut sources: Vec<_> =
                adopted.summoned.iter().map(|one| PollFd::new(one.source(), PollFlags::POLLIN)).collect();
            // Whatever it answers, it is looked again.
            let _ = poll(&mut sources, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        }
    }

    /// They are in a zone that this master has not.
    pub(crate) fn forget_slots(&mut self) {
        self.children.iter_mut().for_each(Child::forget_slot);
        self.summoned.iter_mut().for_each(|summons| summons.is_foreign = true);
    }

    /// Hears those that were called; those that have said all are children from then on.
    pub(crate) fn hear(&mut self, log: &Logger) {
        for mut summons in std::mem::take(&mut self.summoned) {
            match summons.hear() {
                Ok(false) => self.summoned.push(summons),
                Ok(true) => {
                    let (child, found) = summons.adopt();
                    info!(log, "took over from a worker"; "worker" => child.pid());
                    self.children.push(child);
                    if self.listeners.is_none() && !found.is_empty() {
                        match Listeners::passed(found, false) {
                            Ok(listeners) => self.listeners = Some(listeners),
                            Err(reason) => warn!(log, "{}", reason),
                        }
                    }
                }
                Err(error) => {
                    warn!(log, "cannot take over from a worker of another master: {}", error; "slot" => summons.slot.0);
                }
            }
        }
    }
}

impl Summons {
    fn send(dir: &RuntimeDir, slot: Slot, wants_sockets: bool) -> io::Result<Summons> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &UnixAddr::new(&dir.call(slot))?)?;
        // The worker listens itself: the kernel names it, and no word in the zone.
        let peer = getsockopt(&socket, sockopt::PeerCredentials)?;
        let process = Process::of_peer(peer.pid())?;
        Ok(Summons {
            slot,
            process,
            link: Link::from_fd(socket)?,
            found: Vec::new(),
            messages: 0,
            wants_sockets,
            is_foreign: false,
        })
    }

    /// What becomes readable when there is something to hear.
    pub(crate) fn source(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// Hears what has come; whether that is all.
    fn hear(&mut self) -> io::Result<bool> {
        loop {
            match self.link.receive() {
                Ok(Some(Message::Listener { address, sockets, is_activated })) if self.messages < MESSAGES_MAX => {
                    self.messages += 1;
                    if self.wants_sockets {
                        self.found.push(Passed { address, sockets, is_activated });
                    }
                }
                Ok(Some(Message::Complete)) => return Ok(true),
                Ok(Some(_)) => return Err(io::Error::new(io::ErrorKind::InvalidData, "it says what no worker says")),
                Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// The worker as a child that is adopted, and the sockets that it has.
    fn adopt(self) -> (Child, Vec<Passed>) {
        // It is of no configuration of this master's, and has no seat of one.
        let role = Role::Worker {
            seat: Seat(u32::MAX),
            slot: (!self.is_foreign).then_some(self.slot),
            generation: Generation(0),
        };
        (Child::adopted(role, self.process, Channel::from_fd(self.link.into_fd())), self.found)
    }
}

/// The next message; it is waited for.
///
/// # Errors
/// `TimedOut` at the deadline, `UnexpectedEof` when the other end has gone.
pub(crate) fn await_message(link: &Link, deadline: Instant) -> io::Result<Message> {
    loop {
        match link.receive() {
            Ok(Some(message)) => return Ok(message),
            Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(link.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
