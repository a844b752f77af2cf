//! Gives connections to another worker: see [`handover`](shared::handover) for whose they are when, and LIFECYCLE.md.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use mio::Interest;
use mio::unix::SourceFd;
use nix::libc::ETOOMANYREFS;
use shared::handover::{Answer, Handover, Record, WINDOW_RECORDS};
use slog::{info, warn};

use super::Downstream;
use super::conn::Connection;
use crate::runtime::clock::{self, MILLISECOND, SECOND};
use crate::runtime::reactor::{self, Registration};
use crate::runtime::sync::first;
use crate::runtime::timer::Timer;
use crate::runtime::{executor, net};

/// How long a worker may take to answer before it is given nothing more, in nanoseconds. What it has not answered goes on
/// here.
const ANSWER_PATIENCE: u64 = 5 * SECOND;
/// How long to wait when the kernel has no room for more descriptors on their way, in nanoseconds.
const WANT_PAUSE: u64 = 10 * MILLISECOND;

/// One handover, on the side that gives.
struct Giver {
    downstream: Rc<Downstream>,
    line: Handover,
    ready: Registration,
    /// What was offered and not answered, by number.
    offered: BTreeMap<u32, Departing>,
    /// What is to be offered next: the kernel did not take it yet.
    next: Option<Departing>,
    /// The number of the last offer.
    number: u32,
    /// The kernel has no room for more descriptors on their way.
    lacks: bool,
    /// When the last answer came, or was first waited for.
    heard: u64,
    given: u64,
    refused: u64,
    is_over: bool,
}

/// A connection that nobody here reads, and since when it has waited; 0 if it does not.
struct Departing {
    connection: Box<Connection>,
    waits_since: u64,
}

/// How a handover ends.
enum End {
    /// The other worker is gone, or drains itself.
    Gone,
    /// It does not answer.
    Late,
    /// Something lacks.
    Failed(io::Error),
}

impl Drop for Giver {
    fn drop(&mut self) {
        self.take_back();
        reactor::forget(self.line.as_fd());
    }
}

impl Downstream {
    /// Offers another worker what can be moved, as it comes, for as long as both live. To be followed by
    /// [`Downstream::drain`].
    ///
    /// # Errors
    /// When the descriptor can't be watched.
    pub(crate) fn hand_over(self: &Rc<Downstream>, to: OwnedFd) -> io::Result<()> {
        let ready = Registration::new(&mut SourceFd(&to.as_raw_fd()), Interest::READABLE.add(Interest::WRITABLE))?;
        self.departures.open();
        let giver = Giver {
            downstream: Rc::clone(self),
            line: Handover::from_fd(to),
            ready,
            offered: BTreeMap::new(),
            next: None,
            number: 0,
            lacks: false,
            heard: clock::now(),
            given: 0,
            refused: 0,
            is_over: false,
        };
        self.departures.hold(executor::start(giver.run()));
        Ok(())
    }

    /// A tunnel has stopped, to go on in another worker.
    pub(super) fn depart(self: &Rc<Downstream>, connection: Box<Connection>) {
        match self.departures.are_open() {
            true => self.departures.push(connection),
            false => self.keep(connection, 0),
        }
    }

    /// A connection that was to leave goes on here.
    fn keep(self: &Rc<Downstream>, connection: Box<Connection>, waits_since: u64) {
        connection.come_back();
        match connection.suspended() {
            Some(_) => self.drivers.assign(self, connection),
            None => {
                let waiting = connection.waiting();
                self.park(connection, waiting, waits_since);
            }
        }
    }

    /// Takes out what may leave next.
    fn next_departing(&self) -> Option<Departing> {
        if let Some(connection) = self.departures.pop() {
            return Some(Departing { connection, waits_since: 0 });
        }
        let (connection, waits_since) = self.idle.borrow_mut().take_movable()?;
        Some(Departing { connection, waits_since })
    }
}

impl Giver {
    async fn run(mut self) {
        let timer = Timer::new();
        let end = loop {
            let noted = self.downstream.departures.noted();
            if let Err(end) = self.hear().and_then(|()| self.offer_some()) {
                break end;
            }
            let room = WINDOW_RECORDS.saturating_sub(self.offered.len());
            self.downstream.departures.call_some(room);
            let due = match self.offered.is_empty() && self.next.is_none() {
                true => u64::MAX,
                false => self.heard.saturating_add(ANSWER_PATIENCE),
            };
            let wait = if self.lacks { due.min(clock::now() + WANT_PAUSE) } else { due };
            // A full window is not offered more whatever comes.
            let noted = if room == 0 { u64::MAX } else { noted };
            let departures = &self.downstream.departures;
            let has_news = pin!(async {
                match noted {
                    u64::MAX => std::future::pending().await,
                    noted => departures.noted_since(noted).await,
                }
            });
            if timer.until(wait, first(pin!(self.stirs()), has_news)).await.is_err() && clock::now() >= due {
                break End::Late;
            }
        };
        let kept = self.take_back();
        self.say(&end, kept);
    }

    /// Waits until the other end has answered or gone, or takes more, if it did not.
    async fn stirs(&self) {
        poll_fn(|cx| {
            if self.ready.is_readable() || self.next.is_some() && self.ready.is_writable() {
                return Poll::Ready(());
            }
            self.ready.wake_reader(cx);
            if self.next.is_some() {
                self.ready.wake_writer(cx);
            }
            Poll::Pending
        })
        .await;
    }

    /// Takes the answers that have come.
    fn hear(&mut self) -> Result<(), End> {
        loop {
            match self.line.next_answer() {
                Ok(Some((number, answer))) => self.settle(number, answer),
                Ok(None) => return Err(End::Gone),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ready.drained();
                    return Ok(());
                }
                Err(error) => return Err(End::Failed(error)),
            }
        }
    }

    fn settle(&mut self, number: u32, answer: Answer) {
        self.heard = clock::now();
        let Some(Departing { mut connection, waits_since }) = self.offered.remove(&number) else { return };
        match answer {
            Answer::Taken => {
                self.given += 1;
                self.downstream.process.handed_over.inc();
                drop(connection);
            }
            Answer::Refused(_) => {
                self.refused += 1;
                connection.set_stays();
                self.downstream.keep(connection, waits_since);
            }
        }
    }

    /// Offers what there is, as far as the window goes.
    fn offer_some(&mut self) -> Result<(), End> {
        self.lacks = false;
        while self.offered.len() < WINDOW_RECORDS {
            let is_new = self.next.is_none();
            let Some(next) = self.next.take().or_else(|| self.downstream.next_departing()) else { return Ok(()) };
            if is_new && self.offered.is_empty() {
                self.heard = clock::now();
            }
            match self.offer(&next.connection, next.waits_since) {
                Ok(()) => {
                    self.offered.insert(self.number, next);
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    let Departing { mut connection, waits_since } = next;
                    connection.set_stays();
                    self.refused += 1;
                    self.downstream.keep(connection, waits_since);
                }
                Err(error) => {
                    self.next = Some(next);
                    self.ready.filled();
                    return match error.kind() {
                        io::ErrorKind::WouldBlock => Ok(()),
                        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Err(End::Gone),
                        // Too many descriptors are on their way, perhaps from other workers: there will be fewer.
                        _ if error.raw_os_error() == Some(ETOOMANYREFS) || net::is_exhaustion(&error) => {
                            self.lacks = true;
                            Ok(())
                        }
                        _ => Err(End::Failed(error)),
                    };
                }
            }
        }
        Ok(())
    }

    /// From here on the connection is not touched, nor watched, unless it comes back.
    fn offer(&mut self, connection: &Connection, waits_since: u64) -> io::Result<()> {
        connection.leave();
        let client = connection.record(waits_since);
        let unmovable = || io::Error::from(io::ErrorKind::InvalidInput);
        let mut descriptors = vec![connection.stream().descriptor().ok_or_else(unmovable)?];
        let record = match connection.suspended() {
            None => Record::Waiting(client),
            Some(suspended) => {
                let (mut tunnel, pipes) = suspended.tunnel.record(&suspended.traffic);
                tunnel.account = suspended.account.clone();
                descriptors.push(suspended.server.descriptor().ok_or_else(unmovable)?);
                descriptors.extend(pipes);
                Record::Tunnel(client, Box::new(tunnel))
            }
        };
        self.number = self.number.wrapping_add(1);
        self.line.offer(self.number, &record, &descriptors)
    }

    /// Everything that was not taken goes on here, or to another worker; says how many connections that are.
    fn take_back(&mut self) -> usize {
        if std::mem::replace(&mut self.is_over, true) {
            return 0;
        }
        // From now on no answer comes; those that have still count.
        let _ = self.line.revoke();
        loop {
            match self.line.next_answer() {
                Ok(Some((number, answer))) => self.settle(number, answer),
                // What is no answer does not hide those behind it.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Ok(None) | Err(_) => break,
            }
        }
        let downstream = &self.downstream;
        // First the count of takers: what is kept then waits only as long as it may.
        downstream.departures.close();
        let left: Vec<_> = std::mem::take(&mut self.offered).into_values().chain(self.next.take()).collect();
        let kept = left.len();
        left.into_iter().for_each(|Departing { connection, waits_since }| downstream.keep(connection, waits_since));
        if !downstream.departures.are_open() {
            while let Some(connection) = downstream.departures.pop() {
                downstream.keep(connection, 0);
            }
            downstream.hasten();
        }
        kept
    }

    fn say(&self, end: &End, kept: usize) {
        let (log, given, refused) = (&self.downstream.logger, self.given, self.refused);
        match end {
            End::Gone if kept == 0 => info!(log, "handed over"; "connections" => given, "refused" => refused),
            End::Gone => {
                warn!(log, "the worker that takes connections is gone"; "taken" => given, "kept" => kept);
            }
            End::Late => {
                warn!(log, "the worker that takes connections does not answer"; "taken" => given, "kept" => kept);
            }
            End::Failed(error) => {
                warn!(log, "cannot hand over connections"; "reason" => %error, "taken" => given, "kept" => kept);
            }
        }
    }
}
