//! A writer killed between every two of its stores.

#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::cell::killpoint;
use super::{Ban, Catalog, Flight, Maxima, Phase, Quarantine, Request, Role, State, Zone, ZoneError};
use crate::ident::{Generation, ProcessId, Seat, Slot};
use crate::stats::{Connection, Snapshot};

const MAXIMA: Maxima = Maxima { slots: 3, listeners: 2, routes: 3, upstreams: 2, servers: 2, flights: 2 };

/// Runs `script` in a child that is killed before the store after the next `stores`; whether it got to its end.
fn ends(stores: u64, script: impl FnOnce()) -> bool {
    // SAFETY: needed to have a writer that can be killed. Sound because the child runs only this crate's code and the
    // allocator, which is whole after a fork, and leaves by _exit, never through the test harness's frames.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            killpoint::after(stores);
            let code = i32::from(catch_unwind(AssertUnwindSafe(script)).is_err());
            // SAFETY: needed because exit handlers belong to the parent; _exit runs none.
            unsafe { nix::libc::_exit(code) }
        }
        ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
            WaitStatus::Exited(_, 0) => true,
            WaitStatus::Signaled(_, Signal::SIGKILL, _) => false,
            other => panic!("the writer ended with {other:?}"),
        },
    }
}

fn catalog(routes: &[&str]) -> Catalog {
    Catalog {
        listeners: vec!["127.0.0.1:80".into()],
        routes: routes.iter().map(ToString::to_string).collect(),
        upstreams: vec![("app".into(), vec!["10.0.0.1:3000".into()])],
    }
}

/// A master's life: a zone, a worker, a reload that gives up an index and one that takes it, the worker's end.
fn supervise(path: &Path) {
    let me = ProcessId::current(0).unwrap();
    let zone = Zone::create(path, MAXIMA, me).unwrap();
    zone.publish(&catalog(&["a-long-route", "b"])).unwrap();
    zone.set_verdict(Generation(1), true, "started");
    let slot = zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).unwrap();
    zone.enter_slot(slot, me);
    exchange(zone, slot, "b");
    let quarantine = zone.quarantine().unwrap();
    quarantine.set(&[ban(&quarantine, b"/a"), ban(&quarantine, b"/b")]);
    zone.publish(&catalog(&["a-long-route"])).unwrap();
    zone.release_slot(slot);
    quarantine.set(&[ban(&quarantine, b"/c")]);
    zone.publish(&catalog(&["a-long-route", "c"])).unwrap();
    zone.set_verdict(Generation(2), false, "no such certificate");
    zone.retire();
}

fn ban(quarantine: &Quarantine, path: &[u8]) -> Ban {
    let request = Request { route: 1, method: b"GET".to_vec(), path: path.to_vec(), path_length: 2, path_rest: 0 };
    Ban { fingerprint: quarantine.fingerprint(&request), request, until_ns: u64::MAX }
}

/// What a worker stores of a connection with two exchanges, in its order.
fn connect(zone: &'static Zone, slot: Slot, flight: Flight) {
    let (listener, route) = (zone.listener(slot, "127.0.0.1:80").unwrap(), zone.route(slot, "a").unwrap());
    let server = zone.server(slot, "app", "10.0.0.1:3000").unwrap();
    flight.open(Some("10.1.1.1:1111".parse().unwrap()), listener.index, 1);
    flight.announce("[2001:db8::1]:2222".parse().unwrap());
    for (number, path) in [(1, &b"/first-and-long"[..]), (2, b"/next")] {
        zone.process(slot).polled.set(1);
        flight.begin(number, 9, number);
        flight.decide(Some(route.index), b"PROPPATCH", path, 0);
        flight.ask(server.index, Phase::Waiting, number);
        flight.sent(5, number);
        flight.end(10, 20, number);
        zone.process(slot).polled.set(0);
    }
    flight.close();
}

/// What a worker stores for one exchange, in its order.
fn exchange(zone: &'static Zone, slot: Slot, route: &str) {
    let process = zone.process(slot);
    let route = zone.route(slot, route).unwrap();
    let server = zone.server(slot, "app", "10.0.0.1:3000").unwrap();
    process.requests_active.inc();
    server.in_flight.inc();
    server.requests.inc();
    server.status[1].inc();
    server.latency.record(1_000);
    server.in_flight.dec();
    process.requests_active.dec();
    process.requests.inc();
    route.requests.inc();
    route.status[1].inc();
    route.bytes_out.add(100);
    route.latency.record(2_000);
}

#[test]
fn a_master_killed_at_any_store_leaves_a_zone_that_reads() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zone");
    for stores in 0.. {
        let _ = std::fs::remove_file(&path);
        let ended = ends(stores, || supervise(&path));
        match Snapshot::read(&path) {
            Ok(snapshot) => {
                for route in &snapshot.routes {
                    assert!(["(none)", "a-long-route", "b", "c"].contains(&route.name.as_str()), "{}", route.name);
                    assert!(route.name != "c" || route.totals.requests == 0, "a new route has an old one's count");
                }
                if let Some(verdict) = snapshot.verdict {
                    assert!(
                        ["", "started", "no such certificate"].contains(&verdict.text.as_str()),
                        "{}",
                        verdict.text
                    );
                }
                assert!(snapshot.processes.iter().all(|process| process.role == Some(Role::Worker)));
                for banned in &snapshot.quarantined {
                    assert!(["/a", "/b", "/c"].contains(&banned.path.as_str()), "{}", banned.path);
                    assert_eq!((banned.method.as_str(), banned.until_ns), ("GET", u64::MAX));
                }
            }
            // Killed before the file had its name.
            Err(ZoneError::Absent(_)) => assert!(stores < 200),
            Err(error) => panic!("after {stores} stores: {error}"),
        }
        if ended {
            return;
        }
    }
}

#[test]
fn a_worker_killed_at_any_store_costs_one_record_and_its_gauges_are_repaired() {
    const EXCHANGES: u64 = 3;
    let directory = tempfile::tempdir().unwrap();
    for stores in 0.. {
        let path = directory.path().join("zone");
        let zone = Zone::create(&path, MAXIMA, ProcessId::current(0).unwrap()).unwrap();
        zone.publish(&catalog(&["a"])).unwrap();
        let slot = zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).unwrap();
        let ended = ends(stores, || {
            zone.process(slot).state.set(State::Serving);
            (0..EXCHANGES).for_each(|_| exchange(zone, slot, "a"));
        });

        let read = || Snapshot::read(&path).unwrap();
        let snapshot = read();
        let (route, server) = (&snapshot.routes[1].totals, &snapshot.upstreams[0].servers[0].object.totals);
        let done = snapshot.totals.requests;
        let counts = [
            route.requests,
            route.status[1],
            route.bytes_out / 100,
            route.latency.count(),
            server.requests,
            server.status[1],
            server.latency.count(),
        ];
        for count in counts {
            assert!(count.abs_diff(done) <= 1 && count <= EXCHANGES, "after {stores} stores: {counts:?}, {done} done");
        }

        zone.release_slot(slot);
        let repaired = read();
        assert!(repaired.processes.is_empty());
        assert_eq!(repaired.totals.requests_active, 0);
        assert_eq!(repaired.upstreams[0].servers[0].object.totals.in_flight, 0);
        assert_eq!(repaired.totals.requests, done);
        assert_eq!(repaired.routes[1].totals.requests, route.requests);
        if ended {
            assert_eq!(counts, [EXCHANGES; 7]);
            return;
        }
    }
}

#[test]
fn a_worker_killed_at_any_store_leaves_a_record_that_is_whole_or_says_that_it_is_not() {
    let directory = tempfile::tempdir().unwrap();
    for stores in 0.. {
        let path = directory.path().join("zone");
        let zone = Zone::create(&path, MAXIMA, ProcessId::current(0).unwrap()).unwrap();
        zone.publish(&catalog(&["a"])).unwrap();
        let slot = zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).unwrap();
        let ended = ends(stores, || connect(zone, slot, zone.flights(slot).get(0).unwrap()));

        let told = zone.last_words(slot);
        let seen = Connection::read_all(&path).unwrap();
        assert!(seen.len() <= 1 && told.in_flight.len() <= seen.len());
        for connection in seen.iter().filter(|connection| !connection.is_torn) {
            assert!(
                ["10.1.1.1:1111", "[2001:db8::1]:2222"].contains(&connection.client_text().as_str()),
                "after {stores} stores: {connection:?}"
            );
            assert!(
                ["-", "PROPPATCH /first-and-long", "PROPPATCH /next"].contains(&connection.request_line().as_str()),
                "after {stores} stores: {connection:?}"
            );
            let (received, sent) = (connection.received, connection.sent);
            assert!(received <= 20 && received % 10 == 0 && sent <= 45 && sent % 5 == 0, "{received} {sent}");
        }
        if let Some(request) = told.culprit() {
            assert!(request.path_length <= 15 && told.in_flight.len() == 1, "after {stores} stores: {request:?}");
        }

        zone.release_slot(slot);
        assert!(Connection::read_all(&path).unwrap().is_empty());
        let told = zone.last_words(slot);
        assert!(told.polled.is_none() && told.in_flight.is_empty());
        // The next worker in the slot begins with an empty table.
        let slot = zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).unwrap();
        connect(zone, slot, zone.flights(slot).get(0).unwrap());
        if ended {
            return;
        }
    }
}

/// What a reader takes for whole was not mixed from two requests.
#[test]
fn a_reader_beside_a_writer_sees_what_belongs_together() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zone");
    let zone = Zone::create(&path, MAXIMA, ProcessId::current(0).unwrap()).unwrap();
    zone.publish(&catalog(&["a"])).unwrap();
    let slot = zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).unwrap();
    let flight = zone.flights(slot).get(0).unwrap();
    let route = zone.route(slot, "a").unwrap().index;
    flight.open(None, 0, 1);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for _ in 0..2_000 {
                for connection in Connection::read_all(&path).unwrap().iter().filter(|connection| !connection.is_torn) {
                    let mut letters: Vec<char> = connection.path.chars().collect();
                    letters.dedup();
                    assert!(letters.len() <= 1, "{connection:?}");
                }
            }
        });
        while !reader.is_finished() {
            for letter in [b'a', b'b', b'c'] {
                flight.begin(1, 2, 3);
                flight.decide(Some(route), b"GET", &[letter; 64], 0);
            }
        }
    });
}
