//! The client's side: connections are accepted, kept while they are idle, and driven while they are not.
//!
//! ```text
//! accept -> idle -> drivers -> conn -> h1 -> pipeline
//!             ^                  |
//!             +------ kept ------+
//! ```
//!
//! A connection that waits has no task and no buffer: it lies in the idle table until it becomes readable. One of a few
//! drivers then takes it, runs exchanges on it for as long as requests come, and puts it back.

mod accept;
mod conn;
mod departures;
mod drivers;
mod give;
mod h1;
mod idle;
mod take;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use conf::model::AccessLogFormat;
use shared::stats::ProcessCells;

use crate::observe::access::AccessLog;
use crate::observe::flight::Records;
use crate::runtime::sync::Signal;
use crate::runtime::{clock, executor, net};
use crate::site::{self, Site};
use conn::Connection;
use departures::Departures;
use drivers::Drivers;
use idle::{IdleTable, Waiting};

pub(crate) use accept::{Door, Gate};

/// How long a connection on which nothing happens is kept once the worker drains: long enough for a request that is on
/// its way to arrive, and to be told that it is the last.
const DRAIN_GRACE: u64 = clock::SECOND;

/// Everything that a worker has of clients.
pub(crate) struct Downstream {
    site: site::Current,
    log: RefCell<Option<AccessLog>>,
    logger: slog::Logger,
    process: ProcessCells,
    records: Rc<Records>,
    idle: RefCell<IdleTable>,
    drivers: Drivers,
    departures: Departures,
    is_draining: Cell<bool>,
    /// How many sockets are accepted from.
    gates_open: Cell<usize>,
    /// The number of the connection that came last.
    number: Cell<u64>,
    /// A connection was closed, or may be.
    vacancy: Signal,
    /// A gate is to close.
    orders: Signal,
}

impl Downstream {
    pub(crate) fn new(
        site: Rc<Site>,
        records: Rc<Records>,
        log: Option<AccessLog>,
        logger: slog::Logger,
    ) -> Rc<Downstream> {
        Rc::new(Downstream {
            process: site.process,
            records,
            site: RefCell::new(site),
            log: RefCell::new(log),
            logger,
            idle: RefCell::default(),
            drivers: Drivers::default(),
            departures: Departures::default(),
            is_draining: Cell::new(false),
            gates_open: Cell::new(0),
            number: Cell::new(0),
            vacancy: Signal::default(),
            orders: Signal::default(),
        })
    }

    /// A connection in the idle table became readable.
    pub(crate) fn wake(self: &Rc<Downstream>, key: u32, uses: u32) {
        let connection = self.idle.borrow_mut().take(key, uses);
        if let Some(connection) = connection {
            self.drivers.assign(self, connection);
        }
    }

    /// Closes connections that have waited for too long, and has those looked at again that wait for room.
    pub(crate) fn sweep(self: &Rc<Downstream>) {
        let now = clock::now();
        // Dropped outside of the borrow: whoever waits for the vacancy may ask the table at once.
        while let Some(connection) = { self.idle.borrow_mut().take_due(now) } {
            // A request that has come just in time, and waits only for its driver, is served.
            if connection.stream().source().is_readable() {
                self.drivers.assign(self, connection);
            }
        }
        self.vacancy.raise();
    }

    /// Closes all connections on which nothing happens.
    pub(crate) fn close_idle(self: &Rc<Downstream>) {
        self.idle.borrow_mut().hasten(clock::now());
        self.sweep();
    }

    /// Closes the connection that has waited for the longest time between requests, or else for its first one; false
    /// when none waits.
    pub(crate) fn evict(&self) -> bool {
        let oldest = self.idle.borrow_mut().take_oldest();
        if oldest.is_some() {
            self.process.idle_evicted.inc();
        }
        oldest.is_some()
    }

    /// Takes what is in the listening sockets' queues, and no more after that; lets what runs come to its end.
    pub(crate) fn drain(&self) {
        if !self.is_draining.replace(true) {
            self.hasten();
            self.orders.raise();
        }
    }

    /// Cuts every wait short, once the worker drains and nobody takes those who wait.
    fn hasten(&self) {
        if self.is_draining.get() && !self.departures.are_open() {
            self.idle.borrow_mut().hasten(clock::now() + DRAIN_GRACE);
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.get()
    }

    /// Whether the worker drains and nothing is left to do.
    pub(crate) fn is_drained(&self) -> bool {
        self.is_draining.get() && self.gates_open.get() == 0 && self.connections() == 0
    }

    /// Ends every exchange where it is; says how many there were. They are counted and logged as abandoned.
    pub(crate) fn cut(&self) -> u64 {
        // What was about to leave is an exchange again, once its driver has begun.
        self.departures.cut();
        executor::run_queued();
        executor::run_queued();
        let active = self.process.requests_active.get();
        self.drivers.cut();
        active
    }

    /// Hands the lines logged so far to the helper.
    pub(crate) fn flush_log(&self) {
        self.log.borrow_mut().iter_mut().for_each(AccessLog::flush);
    }

    /// From now on exchanges begin with `site`; those under way keep theirs. All end in the log of this format, if there is
    /// one, which `begin` begins where there was none.
    pub(crate) fn swap(
        &self,
        site: Rc<Site>,
        format: Option<&AccessLogFormat>,
        begin: impl FnOnce() -> Option<AccessLog>,
    ) {
        self.site.replace(site);
        let mut log = self.log.borrow_mut();
        match (&mut *log, format) {
            (Some(log), Some(format)) => log.set_format(format),
            _ => *log = begin(),
        }
    }

    /// The present site.
    pub(crate) fn site(&self) -> Rc<Site> {
        Rc::clone(&self.site.borrow())
    }

    /// Clients' connections, waiting ones included.
    fn connections(&self) -> u64 {
        self.process.connections_active.get() + self.process.connections_idle.get()
    }

    /// Whether there is room for one more client; some other one has to go for it, if that is possible.
    fn has_room(&self) -> bool {
        let limit = self.site.borrow().connections_max;
        (self.connections() < limit || self.evict()) && net::has_room()
    }

    fn next_number(&self) -> u64 {
        self.number.set(self.number.get() + 1);
        self.number.get()
    }

    /// Puts a connection, which has waited since `since`, into the idle table.
    fn park(&self, connection: Box<Connection>, waiting: Waiting, since: u64) {
        let timeouts = self.site.borrow().timeouts;
        let mut due = match waiting {
            Waiting::First => connection.since().saturating_add(timeouts.client_head),
            Waiting::Next => since.saturating_add(timeouts.keep_alive),
        };
        if self.is_draining.get() && (connection.stays() || !self.departures.are_open()) {
            due = due.min(clock::now() + DRAIN_GRACE);
        }
        self.idle.borrow_mut().put(connection, waiting, since, due);
        // It can be closed for another now, or go to another worker.
        self.vacancy.raise();
        self.departures.note();
    }
}
