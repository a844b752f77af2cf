//! Connections that wait for a request: a slab, and two queues through it, longest wait first.

use super::conn::Connection;
use crate::runtime::clock;
use crate::runtime::reactor::Parked;

const NONE: u32 = u32::MAX;
/// How far to look for a connection that may be closed for another: those before it have just been spoken to.
const EVICTION_STEPS_MAX: usize = 64;

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// Its first bytes.
    First,
    /// The request after an exchange.
    Next,
}

/// The waiting connections of a worker, by key.
#[derive(Default)]
pub(super) struct IdleTable {
    places: Vec<Place>,
    free: Vec<u32>,
    /// By [`Waiting`].
    queues: [Queue; 2],
}

struct Place {
    /// How often it was used: a key of an earlier use finds nobody.
    uses: u32,
    connection: Option<Box<Connection>>,
    waiting: Waiting,
    /// When it was put there.
    since: u64,
    due: u64,
    next: u32,
    previous: u32,
}

struct Queue {
    head: u32,
    tail: u32,
}

impl Default for Queue {
    fn default() -> Queue {
        Queue { head: NONE, tail: NONE }
    }
}

impl IdleTable {
    /// Keeps a connection, which has waited since `since`, until it becomes readable or `due` comes. Those of one queue are due in the order in which they
    /// are put, or nearly so: a limit that a reload shortens takes effect as the longer waits end.
    pub(super) fn put(&mut self, mut connection: Box<Connection>, waiting: Waiting, since: u64, due: u64) {
        connection.set_idle(waiting == Waiting::Next);
        connection.expect_end(due);
        let key = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { uses: 0, connection: None, waiting, since: 0, due, next: NONE, previous: NONE });
            u32::try_from(self.places.len() - 1).expect("descriptors are fewer than 2^32")
        });
        let uses = self.places[key as usize].uses.wrapping_add(1);
        connection.stream().source().park(Parked::Client(key, uses));
        let queue = &mut self.queues[waiting as usize];
        let previous = std::mem::replace(&mut queue.tail, key);
        match previous {
            NONE => queue.head = key,
            previous => self.places[previous as usize].next = key,
        }
        let connection = Some(connection);
        self.places[key as usize] = Place { uses, connection, waiting, since, due, next: NONE, previous };
    }

    /// Takes out the connection that was put there by that use.
    pub(super) fn take(&mut self, key: u32, uses: u32) -> Option<Box<Connection>> {
        self.places.get(key as usize).filter(|place| place.uses == uses)?;
        self.take_from(key)
    }

    fn take_from(&mut self, key: u32) -> Option<Box<Connection>> {
        let place = self.places.get_mut(key as usize)?;
        let mut connection = place.connection.take()?;
        let Place { waiting, next, previous, .. } = *place;
        let queue = &mut self.queues[waiting as usize];
        match previous {
            NONE => queue.head = next,
            previous => self.places[previous as usize].next = next,
        }
        match next {
            NONE => queue.tail = previous,
            next => self.places[next as usize].previous = previous,
        }
        self.free.push(key);
        connection.stream().source().unpark();
        connection.set_idle(false);
        Some(connection)
    }

    /// Takes out a connection whose wait should have ended by now.
    pub(super) fn take_due(&mut self, now: u64) -> Option<Box<Connection>> {
        let heads = self.queues.each_ref().map(|queue| queue.head);
        let is_due = |key: &u32| self.places.get(*key as usize).is_some_and(|place| place.due <= now);
        let key = heads.into_iter().find(is_due)?;
        self.take_from(key)
    }

    /// Takes out the connection that has waited the longest: between requests, else for a first one. One that has been
    /// spoken to, and is only not driven yet, does not wait; of one that was put there in this very turn that is not known.
    pub(super) fn take_oldest(&mut self) -> Option<Box<Connection>> {
        let waits = |key: &u32| {
            let Place { connection, since, .. } = &self.places[*key as usize];
            let is_silent = connection.as_ref().is_some_and(|connection| !connection.stream().source().is_readable());
            is_silent && *since < clock::now()
        };
        let oldest = |waiting: Waiting| self.keys(waiting).take(EVICTION_STEPS_MAX).find(waits);
        let key = oldest(Waiting::Next).or_else(|| oldest(Waiting::First))?;
        self.take_from(key)
    }

    /// Takes out a connection that may go to another worker, whether or not something has come on it, and tells since when
    /// it has waited; of those that have waited for the next request first.
    pub(super) fn take_movable(&mut self) -> Option<(Box<Connection>, u64)> {
        let may_go = |key: &u32| {
            let connection = &self.places[*key as usize].connection;
            connection.as_ref().is_some_and(|connection| !connection.stays())
        };
        // Those that stay are put again, at the tail.
        let key = self.keys(Waiting::Next).find(may_go).or_else(|| self.keys(Waiting::First).find(may_go))?;
        let since = self.places[key as usize].since;
        Some((self.take_from(key)?, since))
    }

    /// The places of a queue, longest wait first.
    fn keys(&self, waiting: Waiting) -> impl Iterator<Item = u32> {
        let head = self.queues[waiting as usize].head;
        let next = |key: &u32| Some(self.places[*key as usize].next).filter(|next| *next != NONE);
        std::iter::successors(Some(head).filter(|head| *head != NONE), next)
    }

    /// No wait ends later than this.
    pub(super) fn hasten(&mut self, due: u64) {
        for place in &mut self.places {
            place.due = place.due.min(due);
            if let Some(connection) = &place.connection {
                connection.expect_end(place.due);
            }
        }
    }
}
