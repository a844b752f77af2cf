//! Takes connections from another worker: see [`handover`](shared::handover) for whose they are when, and LIFECYCLE.md.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;

use mio::Interest;
use mio::unix::SourceFd;
use shared::handover::{Answer, Client, Handover, Record, Refusal};
use slog::{info, warn};

use super::Downstream;
use super::accept::Door;
use super::conn::Connection;
use crate::pipeline::Suspended;
use crate::relay::tunnel::Tunnel;
use crate::runtime::net::{self, Stream};
use crate::runtime::reactor::{self, Registration};
use crate::runtime::sync::first;
use crate::runtime::{clock, executor};

/// How many offers are answered before others have their turn.
const OFFERS_PER_TURN_MAX: usize = 16;

/// One handover, on the side that takes.
struct Taker<D> {
    downstream: Rc<Downstream>,
    line: Handover,
    ready: Registration,
    /// The door of the listener with this address.
    door: D,
    taken: u64,
    refused: u64,
}

impl<D> Drop for Taker<D> {
    fn drop(&mut self) {
        reactor::forget(self.line.as_fd());
    }
}

impl Downstream {
    /// Takes what another worker offers, until that is gone or this one drains. `door` finds a listener by its address.
    ///
    /// # Errors
    /// When the descriptor can't be watched.
    pub(crate) fn take_over(
        self: &Rc<Downstream>,
        from: OwnedFd,
        door: impl Fn(&str) -> Option<Rc<Door>> + 'static,
    ) -> io::Result<()> {
        let ready = Registration::new(&mut SourceFd(&from.as_raw_fd()), Interest::READABLE)?;
        let (downstream, line) = (Rc::clone(self), Handover::from_fd(from));
        executor::spawn(Taker { downstream, line, ready, door, taken: 0, refused: 0 }.run());
        Ok(())
    }

    /// Whether there is room for so many streams of one client, as things are.
    fn has_place(&self, streams: usize) -> bool {
        self.connections() < self.site.borrow().connections_max && net::has_place(streams)
    }
}

impl<D: Fn(&str) -> Option<Rc<Door>>> Taker<D> {
    async fn run(mut self) {
        // One that drains takes nothing more: what it had would have to move on at once. By its end the other worker learns
        // that it keeps what was not answered.
        while !self.downstream.is_draining() {
            first(pin!(self.ready.readable()), pin!(self.downstream.orders.until(|| self.downstream.is_draining())))
                .await;
            match self.answer_some() {
                Ok(true) => executor::yield_now().await,
                Ok(false) => break,
                Err(error) => {
                    warn!(self.downstream.logger, "cannot take over connections"; "reason" => %error);
                    break;
                }
            }
        }
        if self.taken + self.refused > 0 {
            info!(self.downstream.logger, "taken over"; "connections" => self.taken, "refused" => self.refused);
        }
    }

    /// Answers some offers; false when no more will come.
    fn answer_some(&mut self) -> io::Result<bool> {
        for _ in 0..OFFERS_PER_TURN_MAX {
            if self.downstream.is_draining() {
                return Ok(false);
            }
            let offer = match self.line.next_offer() {
                Ok(Some(offer)) => offer,
                Ok(None) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ready.drained();
                    return Ok(true);
                }
                Err(error) => return Err(error),
            };
            let adopted = offer.content.and_then(|(record, descriptors)| self.adopt(record, descriptors));
            let (connection, waits_since) = match adopted {
                Ok(adopted) => adopted,
                Err(refusal) => {
                    self.refused += 1;
                    self.line.answer(offer.number, Answer::Refused(refusal))?;
                    continue;
                }
            };
            // Until this is in the other worker's queue the connection is not ours: if it fails, it is closed untouched.
            match self.line.answer(offer.number, Answer::Taken) {
                Ok(()) => self.begin(connection, waits_since),
                // It is gone, or has waited for too long.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Makes a connection of a record. Nothing is read, written or watched yet.
    fn adopt(&self, record: Record, descriptors: Vec<OwnedFd>) -> Result<(Box<Connection>, u64), Refusal> {
        let unreadable = |_| Refusal::Unreadable;
        let streams = if matches!(record, Record::Waiting(_)) { 1 } else { 2 };
        if !self.downstream.has_place(streams) {
            return Err(Refusal::Room);
        }
        let mut descriptors = descriptors.into_iter();
        let mut stream = || {
            let descriptor = descriptors.next().ok_or(Refusal::Unreadable)?;
            Stream::adopt(descriptor).map_err(unreadable)
        };
        let client_stream = stream()?;
        let (client, suspended) = match record {
            Record::Waiting(client) => (client, None),
            Record::Tunnel(client, record) => {
                let server = stream()?;
                let (tunnel, traffic) = Tunnel::adopt(&record, &mut descriptors).map_err(unreadable)?;
                let suspended = Suspended { server, tunnel: Box::new(tunnel), traffic, account: record.account };
                (client, Some(Box::new(suspended)))
            }
        };
        let door = self.door_of(&client).ok_or(Refusal::Listener)?;
        let number = self.downstream.next_number();
        let connection = Connection::adopt(client_stream, &client, suspended, number, &door);
        Ok((Box::new(connection), client.waits_since.min(clock::now())))
    }

    fn door_of(&self, client: &Client) -> Option<Rc<Door>> {
        (self.door)(&client.listener)
    }

    /// A connection is this worker's.
    fn begin(&mut self, connection: Box<Connection>, waits_since: u64) {
        self.taken += 1;
        self.downstream.process.taken_over.inc();
        match connection.suspended() {
            Some(_) => self.downstream.drivers.assign(&self.downstream, connection),
            None => {
                let waiting = connection.waiting();
                self.downstream.park(connection, waiting, waits_since);
            }
        }
    }
}
