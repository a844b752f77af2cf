//! Gives connections to another worker: see [`handover`](shared::handover) for whose they are when, and LIFECYCLE.md.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use mio::Interest;
use mio::unix::SourceFd;
use shared::handover::{Answer, Handover, Record, WINDOW_RECORDS};
use slog::{info, warn};

use super::Downstream;
use super::conn::Connection;
use crate::runtime::clock::{self, SECOND};
use crate::runtime::reactor::{self, Registration};
use crate::runtime::sync::first;
use crate::runtime::timer::Timer;

/// How long a worker may take to answer before it is given nothing more, in nanoseconds. What it has not answered goes on
/// here.
const ANSWER_PATIENCE: u64 = 5 * SECOND;

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
    /// When the last answer came, or was first waited for.
    heard: Cell<u64>,
    given: u64,
    refused: u64,
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
        reactor::forget(self.line.as_fd());
        self.downstream.departures.close();
    }
}

impl Downstream {
    /// Offers another worker what can be moved, as it comes, for as long as both live. To be followed by
    /// [`Downstream::drain`].
    ///
    /// # Errors
    /// When the descriptor can't be watched.
    pub(crate) fn hand_over(self: &Rc<Downstream>, to: OwnedFd) -> io::Result<impl Future<Output = ()> + 'static> {
        let ready = Registration::new(&mut SourceFd(&to.as_raw_fd()), Interest::READABLE.add(Interest::WRITABLE))?;
        self.departures.open();
        let giver = Giver {
            downstream: Rc::clone(self),
            line: Handover::from_fd(to),
            ready,
            offered: BTreeMap::new(),
            next: None,
            number: 0,
            heard: Cell::new(clock::now()),
            given: 0,
            refused: 0,
        };
        Ok(giver.run())
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
                false => self.heard.get().saturating_add(ANSWER_PATIENCE),
            };
            // A full window is not offered more whatever comes.
            let noted = if room == 0 { u64::MAX } else { noted };
            let departures = &self.downstream.departures;
            let has_news = pin!(async {
                match noted {
                    u64::MAX => std::future::pending().await,
                    noted => departures.noted_since(noted).await,
                }
            });
            if timer.until(due, first(pin!(self.stirs()), has_news)).await.is_err() {
                break End::Late;
            }
        };
        self.end(end);
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
        self.heard.set(clock::now());
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
        while self.offered.len() < WINDOW_RECORDS {
            let Some(next) = self.next.take().or_else(|| self.downstream.next_departing()) else { return Ok(()) };
            if self.offered.is_empty() {
                self.heard.set(clock::now());
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
                        // Too many descriptors are on their way: with the next answer they are fewer.
                        _ if !self.offered.is_empty() => Ok(()),
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

    /// Everything that was not taken goes on here, or to another worker.
    fn end(mut self, end: End) {
        let log = self.downstream.logger.clone();
        // From now on no answer comes; those that have still count.
        let _ = self.line.revoke();
        while let Ok(Some((number, answer))) = self.line.next_answer() {
            self.settle(number, answer);
        }
        let left: Vec<_> = std::mem::take(&mut self.offered).into_values().chain(self.next.take()).collect();
        let (given, refused, kept, downstream) = (self.given, self.refused, left.len(), Rc::clone(&self.downstream));
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
        // First the count of takers: what is kept then waits only as long as it may.
        drop(self);
        left.into_iter().for_each(|Departing { connection, waits_since }| downstream.keep(connection, waits_since));
        if !downstream.departures.are_open() {
            while let Some(connection) = downstream.departures.pop() {
                downstream.keep(connection, 0);
            }
        }
        downstream.hasten();
    }
}
