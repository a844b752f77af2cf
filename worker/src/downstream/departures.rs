//! Who may leave for another worker: tunnels that run, to be called when there is room for them on the way, and those that
//! were called and wait to be offered. Idle connections lie in their table.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use async_task::Task;

use super::conn::Connection;
use crate::runtime::sync::Signal;

/// The departures of a worker.
#[derive(Default)]
pub(super) struct Departures {
    /// How many workers take connections at present.
    takers: Cell<usize>,
    /// The handovers to them.
    tasks: RefCell<Vec<Task<()>>>,
    /// Running tunnels, by place.
    tunnels: RefCell<Vec<Option<Place>>>,
    free: RefCell<Vec<usize>>,
    /// How many of them were called and run still.
    called: Cell<usize>,
    /// Called and suspended: at most a window for each taker.
    suspended: RefCell<VecDeque<Box<Connection>>>,
    /// There may be something to offer.
    news: Signal,
    /// Counts `news`, for who was not listening.
    noted: Cell<u64>,
}

/// A running tunnel.
#[derive(Default)]
struct Place {
    is_called: bool,
    waker: Option<Waker>,
}

/// Holds a running tunnel's place.
struct Held<'a>(&'a Departures, usize);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let Held(departures, at) = *self;
        let place = departures.tunnels.borrow_mut()[at].take();
        if place.is_some_and(|place| place.is_called) {
            departures.called.set(departures.called.get() - 1);
        }
        departures.free.borrow_mut().push(at);
    }
}

impl Departures {
    /// Waits, on behalf of a running tunnel, until it is to leave.
    pub(super) async fn call(&self) {
        let at = self.free.borrow_mut().pop().unwrap_or_else(|| {
            self.tunnels.borrow_mut().push(None);
            self.tunnels.borrow().len() - 1
        });
        self.tunnels.borrow_mut()[at] = Some(Place::default());
        let held = Held(self, at);
        self.note();
        poll_fn(|cx| {
            let mut tunnels = self.tunnels.borrow_mut();
            let Some(place) = &mut tunnels[held.1] else { return Poll::Pending };
            if place.is_called {
                return Poll::Ready(());
            }
            if !place.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                place.waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// Calls as many tunnels as there is room for, those included that were called before.
    pub(super) fn call_some(&self, room: usize) {
        let mut missing = room.saturating_sub(self.called.get() + self.suspended.borrow().len());
        for place in self.tunnels.borrow_mut().iter_mut().flatten().filter(|place| !place.is_called) {
            if missing == 0 {
                return;
            }
            missing -= 1;
            place.is_called = true;
            self.called.set(self.called.get() + 1);
            place.waker.take().into_iter().for_each(Waker::wake);
        }
    }

    /// Keeps a suspended tunnel until it is offered.
    pub(super) fn push(&self, connection: Box<Connection>) {
        self.suspended.borrow_mut().push_back(connection);
        self.note();
    }

    /// The next one to offer.
    pub(super) fn pop(&self) -> Option<Box<Connection>> {
        self.suspended.borrow_mut().pop_front()
    }

    /// Another worker takes connections from now on.
    pub(super) fn open(&self) {
        self.takers.set(self.takers.get() + 1);
    }

    /// Keeps the task of a handover.
    pub(super) fn hold(&self, task: Task<()>) {
        let mut tasks = self.tasks.borrow_mut();
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    /// Ends all handovers: by the next turn nothing is on its way any more.
    pub(super) fn cut(&self) {
        self.tasks.take();
    }

    /// One does not any more.
    pub(super) fn close(&self) {
        self.takers.set(self.takers.get() - 1);
    }

    /// Whether anybody takes connections.
    pub(super) fn are_open(&self) -> bool {
        self.takers.get() > 0
    }

    /// There may be something to offer that there was not.
    pub(super) fn note(&self) {
        if self.are_open() {
            self.noted.set(self.noted.get() + 1);
            self.news.raise();
        }
    }

    /// How often [`Departures::note`] was called.
    pub(super) fn noted(&self) -> u64 {
        self.noted.get()
    }

    /// Waits until it is called once more than `noted`.
    pub(super) async fn noted_since(&self, noted: u64) {
        self.news.until(|| self.noted.get() != noted).await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::Context;

    use super::*;

    fn poll(future: Pin<&mut impl Future>) -> bool {
        future.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn as_many_are_called_as_there_is_room_for() {
        let departures = Departures::default();
        departures.open();
        let (mut one, mut other) = (Box::pin(departures.call()), Box::pin(departures.call()));
        let before = departures.noted();
        assert!(!poll(one.as_mut()) && !poll(other.as_mut()));
        assert_eq!(departures.noted(), before + 2);
        departures.call_some(1);
        departures.call_some(1);
        assert!(poll(one.as_mut()) && !poll(other.as_mut()));
        // One that ended before it left makes room for the next, whose place it was is given again.
        drop(one);
        departures.call_some(1);
        assert!(poll(other.as_mut()));
        drop(other);
        let third = pin!(departures.call());
        assert!(!poll(third));
        assert_eq!(departures.tunnels.borrow().len(), 2);
        assert_eq!(departures.called.get(), 0);
    }
}
