//! Listening sockets, and the rule by which workers share them.
//!
//! A worker accepts from the sockets of its own seat, and from those of a seat that no living worker serves.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::rc::{Rc, Weak};

use conf::model;
use conf::value::Address;
use nix::sys::socket::{getsockopt, sockopt};
use shared::ident::Seat;
use shared::stats::{ListenerCells, ProcessCells};

use super::conn::Connection;
use super::{Downstream, Waiting};
use crate::observe::flight::Records;
use crate::runtime::clock::{self, MILLISECOND};
use crate::runtime::executor;
use crate::runtime::net::{self, Listener, Peer, Stream};
use crate::runtime::sync::first;
use crate::runtime::timer::Timer;

/// How many connections are taken from one socket at most before others have their turn.
const ACCEPTS_PER_TURN_MAX: u32 = 8;
/// In how many turns running somebody has to be found in a queue before one more is taken a turn: to find it empty costs
/// a system call.
const TURNS_PER_ACCEPT: u32 = 4;
/// One connection of a listener in so many is asked at once for its request even where they have been late with it.
const PROMPT_TRIAL: u64 = 16;
/// How long to wait after the kernel had no descriptor or memory for a connection, in nanoseconds.
const WANT_PAUSE: u64 = 100 * MILLISECOND;

/// An address that clients come to.
pub(crate) struct Door {
    address: Address,
    pub(super) cells: ListenerCells,
    pub(super) process: ProcessCells,
    pub(super) records: Rc<Records>,
    /// The address, if it is one and not all of the machine's.
    pub(super) local: Option<SocketAddr>,
    /// Whether connections open with a PROXY protocol header.
    pub(super) proxy_protocol: Cell<bool>,
    /// Whether the last connection that was asked at once for its request had brought it along.
    is_prompt: Cell<bool>,
    downstream: Weak<Downstream>,
}

impl Door {
    /// Where clients of this listener come in.
    pub(crate) fn of(downstream: &Rc<Downstream>, listener: &model::Listener, cells: ListenerCells) -> Rc<Door> {
        Rc::new(Door {
            address: listener.address.clone(),
            cells,
            process: downstream.process,
            records: Rc::clone(&downstream.records),
            local: listener.socket_addr().filter(|address| !address.ip().is_unspecified() && address.port() != 0),
            proxy_protocol: Cell::new(listener.proxy_protocol),
            is_prompt: Cell::new(true),
            downstream: Rc::downgrade(downstream),
        })
    }

    /// The address as a configuration has it: what it is known by.
    pub(crate) fn name(&self) -> String {
        self.address.to_string()
    }

    /// A new connection was asked for its request at once.
    pub(super) fn note_prompt(&self, is_prompt: bool) {
        self.is_prompt.set(is_prompt);
    }

    /// A connection that came through it was closed.
    pub(super) fn vacate(&self) {
        if let Some(downstream) = self.downstream.upgrade() {
            downstream.vacancy.raise();
        }
    }
}

/// One listening socket, open or shut for this worker.
pub(crate) struct Gate {
    socket: OwnedFd,
    /// Whose socket it is; all workers accept from one that is nobody's.
    seat: Option<Seat>,
    door: Rc<Door>,
    /// Of the last opening, what it is to do: each has its own, so that one which ends late ends nothing else.
    order: RefCell<Rc<Cell<Order>>>,
}

/// What an open gate is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Order {
    /// Let clients in.
    Accept,
    /// Let in who is in the queue, then shut: nobody will take what is left.
    Empty,
    /// Shut at once: the queue is another worker's.
    #[default]
    Shut,
}

/// An open gate; dropped, it is shut, however that comes.
struct Opening {
    downstream: Rc<Downstream>,
    order: Rc<Cell<Order>>,
}

impl Opening {
    fn new(downstream: &Rc<Downstream>, order: &Rc<Cell<Order>>) -> Opening {
        downstream.gates_open.set(downstream.gates_open.get() + 1);
        order.set(Order::Accept);
        Opening { downstream: Rc::clone(downstream), order: Rc::clone(order) }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.order.set(Order::Shut);
        self.downstream.gates_open.set(self.downstream.gates_open.get() - 1);
    }
}

impl Gate {
    /// The gates of one listener, all of them shut.
    pub(crate) fn of(
        downstream: &Rc<Downstream>,
        listener: &model::Listener,
        cells: ListenerCells,
        sockets: Vec<OwnedFd>,
    ) -> Vec<Gate> {
        let door = Door::of(downstream, listener, cells);
        // One that was passed to the proxy may be in no group: there is no other for the other seats.
        let is_grouped = |socket: &OwnedFd| getsockopt(socket, sockopt::ReusePort).unwrap_or(false);
        let is_shared = sockets.len() == 1 && !(listener.reuseport && is_grouped(&sockets[0]));
        let gate = |(seat, socket)| Gate {
            socket,
            seat: (!is_shared).then_some(Seat(seat)),
            door: Rc::clone(&door),
            order: RefCell::default(),
        };
        (0..).zip(sockets).map(gate).collect()
    }

    /// Opens or shuts the gate as the rule asks: `is_served` tells whether a living worker has that seat.
    ///
    /// # Errors
    /// When the socket can't be watched.
    pub(crate) fn set(
        &self,
        downstream: &Rc<Downstream>,
        own: Seat,
        is_served: impl FnOnce(Seat) -> bool,
    ) -> std::io::Result<()> {
        let should_open = self.seat.is_none_or(|seat| seat == own || !is_served(seat));
        let is_open = self.order.borrow().get() == Order::Accept;
        if should_open && !is_open && !downstream.is_draining() {
            let listener = Listener::new(self.socket.as_fd().try_clone_to_owned()?, self.seat.is_none())?;
            let order = Rc::default();
            let opening = Opening::new(downstream, &order);
            self.order.replace(order);
            executor::spawn(Rc::clone(downstream).accept_from(listener, Rc::clone(&self.door), opening));
        } else if !should_open && is_open {
            self.order.borrow().set(Order::Shut);
            downstream.orders.raise();
        }
        Ok(())
    }

    /// Where its connections come in.
    pub(crate) fn door(&self) -> &Rc<Door> {
        &self.door
    }

    /// Whether it is of the listener on `address`.
    pub(crate) fn is_at(&self, address: &Address) -> bool {
        self.door.address == *address
    }

    /// The address of its listener.
    pub(crate) fn address(&self) -> &Address {
        &self.door.address
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes over what another configuration says of the listener.
    pub(crate) fn adapt(&self, listener: &model::Listener) {
        self.door.proxy_protocol.set(listener.proxy_protocol);
    }

    /// Shuts the gate for good, once its queue is empty. What comes back dies with the last connection that came through it.
    pub(crate) fn retire(self, downstream: &Downstream) -> Weak<Door> {
        let order = self.order.borrow();
        if order.get() == Order::Accept {
            order.set(Order::Empty);
            downstream.orders.raise();
        }
        Rc::downgrade(&self.door)
    }
}

impl Downstream {
    /// Takes connections until the gate is shut, or the worker drains and the queue is empty.
    async fn accept_from(self: Rc<Downstream>, mut listener: Listener, door: Rc<Door>, opening: Opening) {
        let timer = Timer::new();
        let empties = || self.is_draining.get() || opening.order.get() == Order::Empty;
        let has_orders = || self.is_draining.get() || opening.order.get() != Order::Accept;
        let (mut busy_turns, mut last_turn) = (0, 0);
        loop {
            first(pin!(listener.arrival()), pin!(self.orders.until(has_orders))).await;
            let turn = self.process.turns.get();
            if std::mem::replace(&mut last_turn, turn) + 1 != turn {
                busy_turns = 0;
            }
            let most = match empties() {
                true => ACCEPTS_PER_TURN_MAX,
                false => (1 + busy_turns / TURNS_PER_ACCEPT).min(ACCEPTS_PER_TURN_MAX),
            };
            let is_dry = self.take_some(most, &mut listener, &door, &timer).await;
            // A gate that another worker has taken over is shut at once: its queue is theirs.
            if opening.order.get() == Order::Shut || empties() && is_dry {
                break;
            }
            busy_turns = if is_dry { 0 } else { (busy_turns + 1).min(TURNS_PER_ACCEPT * ACCEPTS_PER_TURN_MAX) };
            if empties() {
                executor::yield_now().await;
            }
        }
        // The socket first: when the last gate is shut, none may be open.
        drop(listener);
    }

    /// Waits until someone leaves. Who was accepted waits here, those behind it in the queue, which the kernel bounds, or
    /// for another worker that has room.
    async fn wait_for_room(&self, listener: &mut Listener, timer: &Timer) {
        listener.pause();
        self.vacancy.until(|| self.has_room()).await;
        self.resume(listener, timer).await;
    }

    /// Watches the queue again. What the kernel lacks for that may come back.
    async fn resume(&self, listener: &mut Listener, timer: &Timer) {
        while let Err(error) = listener.resume() {
            slog::error!(self.logger, "cannot watch a listening socket"; "reason" => %error);
            timer.sleep(clock::now() + WANT_PAUSE).await;
        }
    }

    /// A connection has come in.
    pub(crate) fn admit(self: &Rc<Downstream>, stream: Stream, peer: Peer, door: &Rc<Door>) {
        let number = self.next_number();
        let mut connection = Box::new(Connection::new(stream, peer, number, door));
        if door.is_prompt.get() || door.cells.accepted.get().is_multiple_of(PROMPT_TRIAL) {
            // Its request has come with it, and is read while all of it is at hand.
            connection.put_on_trial();
            self.drivers.assign(self, connection);
        } else {
            self.park(connection, Waiting::First, clock::now());
        }
    }

    /// Takes a turn's worth of connections; says whether the queue is empty.
    async fn take_some(
        self: &Rc<Downstream>,
        most: u32,
        listener: &mut Listener,
        door: &Rc<Door>,
        timer: &Timer,
    ) -> bool {
        for _ in 0..most {
            match listener.try_accept() {
                Ok(Some((stream, peer))) => {
                    if !self.has_room() {
                        self.wait_for_room(listener, timer).await;
                    }
                    self.admit(stream, peer, door);
                }
                Ok(None) => return true,
                Err(error) => {
                    self.process.accept_failures.inc();
                    slog::error!(self.logger, "cannot accept a connection"; "reason" => %error);
                    if net::is_exhaustion(&error) {
                        self.evict();
                    }
                    listener.pause();
                    timer.sleep(clock::now() + WANT_PAUSE).await;
                    self.resume(listener, timer).await;
                    return false;
                }
            }
        }
        false
    }
}
