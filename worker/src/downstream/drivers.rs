//! Drivers: the tasks that run exchanges. There are as many as exchanges at once, and a few that wait for the next.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use async_task::Task;

use super::conn::{Connection, Fate};
use super::h1::Codec;
use super::{Downstream, Waiting};
use crate::observe::flight::attributed;
use crate::pipeline::Desk;
use crate::runtime::{clock, executor};

/// How many drivers wait for work; more than that end when theirs is done.
const WAITING_DRIVERS_MAX: usize = 256;

/// The drivers that have nothing to do; the one that worked last is the first to get work.
#[derive(Default)]
pub(super) struct Drivers {
    waiting: RefCell<Vec<Rc<Inbox>>>,
    /// All of them, by number.
    tasks: RefCell<Vec<Option<Task<()>>>>,
    free: RefCell<Vec<usize>>,
    /// None runs any more, and none is started.
    is_cut: Cell<bool>,
}

/// A driver's number, for as long as it lives, however it ends.
struct Number(Rc<Downstream>, usize);

impl Drop for Number {
    fn drop(&mut self) {
        self.0.drivers.leave(self.1);
    }
}

/// Where a driver gets its work from.
#[derive(Default)]
struct Inbox {
    work: Cell<Option<Box<Connection>>>,
    waker: Cell<Option<Waker>>,
}

impl Drivers {
    /// Has a connection driven.
    pub(super) fn assign(&self, downstream: &Rc<Downstream>, connection: Box<Connection>) {
        if self.is_cut.get() {
            return;
        }
        let waiting = self.waiting.borrow_mut().pop();
        let is_new = waiting.is_none();
        let inbox = waiting.unwrap_or_default();
        inbox.work.set(Some(connection));
        if let Some(waker) = inbox.waker.take() {
            waker.wake();
        }
        if is_new {
            let number = self.free.borrow_mut().pop().unwrap_or_else(|| {
                self.tasks.borrow_mut().push(None);
                self.tasks.borrow().len() - 1
            });
            let task = executor::start(drive(Rc::clone(downstream), inbox, number));
            self.tasks.borrow_mut()[number] = Some(task);
        }
    }

    /// Ends them all, and with them the exchanges that they run.
    pub(super) fn cut(&self) {
        self.is_cut.set(true);
        self.waiting.take();
        // Dropped here, ended by their next turn.
        self.tasks.take();
        executor::run_queued();
    }

    /// A driver is about to end.
    fn leave(&self, number: usize) {
        if let Some(task) = self.tasks.borrow_mut().get_mut(number).and_then(Option::take) {
            task.detach();
            self.free.borrow_mut().push(number);
        }
    }

    /// A driver is free; false when there are enough of them.
    fn rest(&self, inbox: &Rc<Inbox>) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        let is_wanted = waiting.len() < WAITING_DRIVERS_MAX;
        if is_wanted {
            waiting.push(Rc::clone(inbox));
        }
        is_wanted
    }
}

impl Inbox {
    async fn next(&self) -> Box<Connection> {
        poll_fn(|cx| match self.work.take() {
            Some(connection) => Poll::Ready(connection),
            None => {
                self.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

async fn drive(downstream: Rc<Downstream>, inbox: Rc<Inbox>, number: usize) {
    let _number = Number(Rc::clone(&downstream), number);
    let (mut desk, mut codec) = (Desk::new(), Codec::new());
    loop {
        let mut connection = inbox.next().await;
        let mark = connection.mark();
        let fate = attributed(mark, pin!(connection.run(&downstream, &mut codec, &mut desk))).await;
        connection.end_trial(fate);
        match fate {
            Fate::Silent => downstream.park(connection, Waiting::First, clock::now()),
            Fate::Kept => downstream.park(connection, Waiting::Next, clock::now()),
            Fate::Over => drop(connection),
            Fate::Left => downstream.depart(connection),
        }
        codec.clear();
        if !downstream.drivers.rest(&inbox) {
            return;
        }
    }
}
