//! What a worker that has died was doing, as its records tell it. For the master, before it frees the slot.
//!
//! A worker may have written anything there, so that all of it is input: only names come from the master's own book.

#![forbid(unsafe_code)]

use super::Zone;
use super::layout::Kind;
use super::ledger::Ledger;
use super::quarantine::Request;
use crate::ident::Slot;
use crate::stats::Connection;

/// What a worker was doing when it died.
#[derive(Debug, Clone)]
pub struct LastWords {
    /// The exchange, or at least the connection, that was running at that very moment.
    pub polled: Option<Connection>,
    /// All connections with an exchange under way, that one included.
    pub in_flight: Vec<Connection>,
}

impl LastWords {
    /// What tells the request that was running from others; `None` if none was, or no route had taken it yet.
    #[must_use]
    pub fn culprit(&self) -> Option<&Request> {
        self.polled.as_ref().filter(|connection| connection.is_exchange())?.request.as_ref()
    }
}

impl Zone {
    /// What the process in `slot` was doing. Master only, once its exit was reaped and before the slot is released.
    #[must_use]
    pub fn last_words(&'static self, slot: Slot) -> LastWords {
        let book = self.book();
        let name = |kind, index| name_of(&book.ledger, kind, index);
        let flights = self.flights(slot);
        let connection = |index| Connection::of(&flights.words(index)?, (slot, index), &name);
        let polled = self.process(slot).polled.get().checked_sub(1).and_then(|index| u32::try_from(index).ok());
        LastWords {
            polled: polled.and_then(connection),
            in_flight: (0..flights.count()).filter_map(connection).filter(Connection::is_exchange).collect(),
        }
    }

    /// The name of the route with this index, if there ever was one. Master only.
    #[must_use]
    pub fn route_name(&'static self, index: u32) -> Option<String> {
        self.book().ledger.key(Kind::Route, index).map(str::to_owned)
    }
}

/// The name of an object, and of its upstream if it is a server.
fn name_of(ledger: &Ledger, kind: Kind, index: u32) -> Option<(String, String)> {
    let key = ledger.key(kind, index)?;
    let (parent, name) = key.split_once('\0').unwrap_or(("", key));
    Some((parent.to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::{Generation, Seat};
    use crate::zone::flight::{Phase, WORDS};
    use crate::zone::{Catalog, Maxima, Role};

    fn worker() -> (&'static Zone, Slot) {
        let zone = Zone::anonymous(Maxima { slots: 3, listeners: 1, routes: 2, upstreams: 1, servers: 2, flights: 3 });
        let upstreams = vec![("app".to_owned(), vec!["10.0.0.1:80".to_owned()])];
        zone.publish(&Catalog { listeners: vec!["l".into()], routes: vec!["r".into()], upstreams }).unwrap();
        (zone, zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).unwrap())
    }

    #[test]
    fn the_running_exchange_is_told_with_its_names() {
        let (zone, slot) = worker();
        let [first, second] = [0, 1].map(|index| zone.flights(slot).get(index).unwrap());
        let client = "[::ffff:10.0.0.9]:5000".parse().unwrap();
        for flight in [first, second] {
            flight.open(Some(client), zone.listener(slot, "l").unwrap().index, 10);
        }
        assert!(zone.last_words(slot).in_flight.is_empty());
        first.begin(1, 99, 20);
        first.decide(Some(zone.route(slot, "r").unwrap().index), b"GET", b"/a\x1b\xff", 0);
        first.ask(zone.server(slot, "app", "10.0.0.1:80").unwrap().index, Phase::Waiting, 30);
        zone.process(slot).polled.set(1);
        let words = zone.last_words(slot);
        assert_eq!(words.in_flight.len(), 1);
        let polled = words.polled.as_ref().unwrap();
        assert_eq!(polled.client_text(), "10.0.0.9:5000");
        assert_eq!(polled.request_line(), "GET /a\u{fffd}\u{fffd}");
        assert_eq!((polled.listener.as_deref(), polled.route.as_deref()), (Some("l"), Some("r")));
        assert_eq!(polled.server, Some(("app".into(), "10.0.0.1:80".into())));
        assert_eq!((polled.phase, polled.since_ns, polled.begun_ns, polled.moved_ns), (Phase::Waiting, 10, 20, 30));
        assert_eq!(words.culprit().unwrap().path, b"/a\x1b\xff");
        // The next request's route is not known before its head is.
        first.end(1, 1, 40);
        first.begin(2, 99, 50);
        assert_eq!(zone.last_words(slot).culprit(), None);
        zone.release_slot(slot);
        let cleared = zone.last_words(slot);
        assert!(cleared.polled.is_none() && cleared.in_flight.is_empty());
    }

    #[test]
    fn words_that_lie_are_harmless() {
        let (zone, slot) = worker();
        let flight = zone.flights(slot).get(0).unwrap();
        for value in [1, 2, 255, u64::from(u32::MAX), u64::MAX] {
            for phase in [0, 1, 4, value] {
                (0..WORDS).for_each(|word| flight.set(word, value));
                flight.set(crate::zone::flight::word::PHASE, phase);
                zone.process(slot).polled.set(value);
                let words = zone.last_words(slot);
                assert!(words.in_flight.len() <= 1);
                assert!(words.culprit().is_none_or(|request| request.path.len() <= 64 && request.method.len() <= 16));
            }
        }
    }
}
