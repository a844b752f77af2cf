//! Which client's connection writes on which record of the zone, and whose exchange runs at this moment.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;

use shared::stats::Gauge;
use shared::zone::{Flight, Flights};

/// A worker's records.
pub(crate) struct Records {
    flights: Flights,
    /// Given back; the last one is the first to be used again, so that few lines of memory are in use.
    free: RefCell<Vec<u32>>,
    /// How many were ever used.
    used: Cell<u32>,
    polled: Gauge,
}

/// A record as its connection has it, until that is dropped. A connection that finds none free is not recorded.
pub(crate) struct Berth {
    records: Rc<Records>,
    flight: Flight,
    index: Option<u32>,
}

impl Records {
    /// The records `flights`; `polled` is the word that names one of them.
    pub(crate) fn new(flights: Flights, polled: Gauge) -> Rc<Records> {
        Rc::new(Records { flights, free: RefCell::default(), used: Cell::new(0), polled })
    }

    /// A free record.
    pub(crate) fn take(self: &Rc<Records>) -> Berth {
        let index = self.free.borrow_mut().pop().or_else(|| self.take_new());
        let flight = index.and_then(|index| self.flights.get(index)).unwrap_or_else(Flight::nowhere);
        Berth { records: Rc::clone(self), flight, index }
    }

    fn take_new(&self) -> Option<u32> {
        let index = self.used.get();
        (index < self.flights.count()).then(|| self.used.replace(index + 1))
    }
}

impl Berth {
    /// What is written on.
    pub(crate) fn flight(&self) -> Flight {
        self.flight
    }

    /// What tells [`attributed`] whose work it is.
    pub(crate) fn mark(&self) -> Mark {
        Mark { polled: self.records.polled, word: self.index.map_or(0, |index| u64::from(index) + 1) }
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        self.flight.close();
        self.records.free.borrow_mut().extend(self.index);
    }
}

/// A record's place, and where it is said that its exchange runs.
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    polled: Gauge,
    word: u64,
}

/// Is dropped when a poll ends, by a panic too.
struct Polled(Gauge);

impl Drop for Polled {
    fn drop(&mut self) {
        self.0.set(0);
    }
}

/// Runs `future`, and has the zone say whose it is whenever its code runs: should the process die there, it is known of
/// what.
pub(crate) async fn attributed<T>(mark: Mark, mut future: Pin<&mut impl Future<Output = T>>) -> T {
    poll_fn(|cx| {
        mark.polled.set(mark.word);
        let _polled = Polled(mark.polled);
        future.as_mut().poll(cx)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::pin::pin;
    use std::task::{Context, Waker};

    use shared::ident::{Generation, Seat};
    use shared::zone::{Maxima, Role, Zone};

    use super::*;

    fn records(count: u32) -> (Rc<Records>, Gauge) {
        let zone = Zone::anonymous(Maxima::for_workers(1).with_connections(count));
        let slot = zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).unwrap();
        let polled = zone.process(slot).polled;
        (Records::new(zone.flights(slot), polled), polled)
    }

    #[test]
    fn records_are_used_again_and_those_beyond_the_table_go_without() {
        let (records, _) = records(2);
        let (first, second) = (records.take(), records.take());
        assert_eq!((first.index, second.index, records.take().index), (Some(0), Some(1), None));
        drop(first);
        drop(records.take());
        let again = records.take();
        assert_eq!((again.index, records.take().index), (Some(0), None));
        assert_eq!(records.take().mark().word, 0);
    }

    #[test]
    fn an_exchange_is_named_while_its_code_runs_and_not_after_a_panic() {
        let (records, polled) = records(2);
        let (_first, second) = (records.take(), records.take());
        let mut cx = Context::from_waker(Waker::noop());
        let seen = pin!(async { polled.get() });
        let mut run = pin!(attributed(second.mark(), seen));
        assert_eq!(run.as_mut().poll(&mut cx), std::task::Poll::Ready(2));
        assert_eq!(polled.get(), 0);
        let fails = pin!(async { panic!("bad luck at {}", polled.get()) });
        let mut run = pin!(attributed::<()>(second.mark(), fails));
        assert!(catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(&mut cx).is_ready())).is_err());
        assert_eq!(polled.get(), 0);
    }
}
