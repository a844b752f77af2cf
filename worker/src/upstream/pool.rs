//! Idle connections to one server, newest first: those that were used last are the warmest and the likeliest to live.

use std::cell::RefCell;
use std::collections::VecDeque;

use shared::stats::ServerCells;

use super::Keeping;
use crate::runtime::clock;
use crate::runtime::net::Stream;
use crate::runtime::reactor::Parked;

/// A connection to a server.
pub(crate) struct Connection {
    pub(crate) stream: Stream,
    /// When it was opened.
    pub(crate) born: u64,
    /// How many requests it has carried.
    pub(crate) requests: u64,
}

struct Idle {
    connection: Connection,
    number: u64,
    /// When it is closed unless it was used.
    until: u64,
}

/// Idle connections to one server.
pub(crate) struct Pool {
    /// The number by which the reactor names the server.
    server: u32,
    cells: ServerCells,
    /// Oldest first.
    idle: RefCell<VecDeque<Idle>>,
    given_out: std::cell::Cell<u64>,
}

impl Pool {
    pub(super) fn new(server: u32, cells: ServerCells) -> Pool {
        Pool { server, cells, idle: RefCell::default(), given_out: std::cell::Cell::new(0) }
    }

    /// The connection that was used last, unless none is left that may be used.
    pub(crate) fn take(&self) -> Option<Connection> {
        let now = clock::now();
        loop {
            let idle = self.idle.borrow_mut().pop_back()?;
            self.cells.idle.dec();
            idle.connection.stream.source().unpark();
            // Readable means closed, or speaking out of turn; the loop may not have come to it yet.
            if !idle.connection.stream.source().is_readable() && now < idle.until {
                return Some(idle.connection);
            }
        }
    }

    /// Keeps a connection for the next exchange, as far as `keeping` allows.
    pub(crate) fn put(&self, connection: Connection, keeping: &Keeping) {
        let now = clock::now();
        let used_up = connection.requests >= keeping.requests_max || now - connection.born >= keeping.age_max;
        // After a read of exactly what was wanted it is not known whether the socket is dry. It must be: nothing may follow
        // an answer, and at its end the connection is of no use.
        if used_up || keeping.idle_max == 0 || !matches!(connection.stream.try_read(&mut [0]), Ok(None)) {
            return;
        }
        let number = self.given_out.get();
        self.given_out.set(number + 1);
        connection.stream.source().park(Parked::Server(self.server, number));
        let until = now.saturating_add(keeping.idle_timeout).min(connection.born.saturating_add(keeping.age_max));
        let mut idle = self.idle.borrow_mut();
        idle.push_back(Idle { connection, number, until });
        self.cells.idle.inc();
        while idle.len() > keeping.idle_max {
            idle.pop_front();
            self.cells.idle.dec();
        }
    }

    pub(super) fn remove(&self, number: u64) {
        let mut idle = self.idle.borrow_mut();
        // Numbers grow towards the back.
        if let Ok(at) = idle.binary_search_by_key(&number, |idle| idle.number) {
            idle.remove(at);
            self.cells.idle.dec();
        }
    }

    /// Closes the oldest one; false when there is none.
    pub(super) fn evict(&self) -> bool {
        let oldest = self.idle.borrow_mut().pop_front();
        if oldest.is_some() {
            self.cells.idle.dec();
        }
        oldest.is_some()
    }

    pub(super) fn sweep(&self) {
        let now = clock::now();
        self.retain(|idle| now < idle.until);
    }

    pub(super) fn clear(&self) {
        self.retain(|_| false);
    }

    pub(super) fn len(&self) -> usize {
        self.idle.borrow().len()
    }

    fn retain(&self, keep: impl Fn(&Idle) -> bool) {
        let mut idle = self.idle.borrow_mut();
        idle.retain(keep);
        self.cells.idle.set(idle.len() as u64);
    }
}
