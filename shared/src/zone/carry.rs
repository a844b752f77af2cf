//! Counters on their way from one zone to another of a different layout: a text, in which everything goes by its name. What a
//! version does not know by name is passed over.
//!
//! A line is kind, upstream (of a server), name, field and numbers, with tabs between them and spaces between the numbers. A
//! histogram is its sum, then the upper bound of each bucket in nanoseconds and its count.

#![forbid(unsafe_code)]

use std::fmt::Write;

use super::field::{Field, Totals, Value};
use super::{Role, Zone, ZoneError};
use crate::ident::Generation;
use crate::stats::{Object, Snapshot};

/// The most bytes of such a text.
pub const CARRIED_BYTES_MAX: usize = 256 << 20;

impl Snapshot {
    /// What was counted, for [`Zone::carry_in`]. What there is at the moment, and who is healthy, does not go over.
    #[must_use]
    pub fn counters(&self) -> String {
        let mut text = String::new();
        put(&mut text, "process", "", "", &self.totals);
        self.listeners.iter().for_each(|object| put_object(&mut text, "listener", "", object));
        self.routes.iter().for_each(|object| put_object(&mut text, "route", "", object));
        for upstream in &self.upstreams {
            put_object(&mut text, "upstream", "", &upstream.object);
            let servers = upstream.servers.iter();
            servers.for_each(|server| put_object(&mut text, "server", &upstream.object.name, &server.object));
        }
        text
    }
}

impl Zone {
    /// Adds what another zone has counted, as its [`Snapshot::counters`] tells it, to the objects of `generation`, which are
    /// published. Master only, before its processes are forked.
    ///
    /// # Errors
    /// When there is no slot or no room for it; then nothing was added.
    pub fn carry_in(&'static self, text: &str, generation: Generation) -> Result<(), ZoneError> {
        // Like the counters of a worker that has gone: the next one in the slot goes on with them.
        let slot = self.claim_slot(Role::Worker, None, generation)?;
        for line in text.lines() {
            let mut parts = line.split('\t');
            let (Some(kind), Some(parent), Some(name), Some(field), Some(numbers)) =
                (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            let numbers: Vec<u64> = numbers.split(' ').map_while(|number| number.parse().ok()).collect();
            match kind {
                "process" => self.process(slot).carry(field, &numbers),
                "listener" => self.listener(slot, name).iter().for_each(|cells| cells.carry(field, &numbers)),
                "route" => self.route(slot, name).iter().for_each(|cells| cells.carry(field, &numbers)),
                "upstream" => self.upstream(slot, name).iter().for_each(|cells| cells.carry(field, &numbers)),
                "server" => self.server(slot, parent, name).iter().for_each(|cells| cells.carry(field, &numbers)),
                _ => {}
            }
        }
        self.release_slot(slot);
        Ok(())
    }
}

fn put_object<T: Totals>(text: &mut String, kind: &str, parent: &str, object: &Object<T>) {
    put(text, kind, parent, &object.name, &object.totals);
}

fn put(text: &mut String, kind: &str, parent: &str, name: &str, totals: &impl Totals) {
    totals.each(&mut |Field { name: field, value, .. }| {
        let numbers: Vec<u64> = match value {
            Value::Gauge(_) => return,
            Value::Counter(count) => vec![count],
            Value::Classes(counts) => counts.to_vec(),
            Value::Latency(latency) => {
                let buckets = latency.buckets().flat_map(|(bound, count)| [bound, count]);
                std::iter::once(latency.sum_ns()).chain(buckets).collect()
            }
        };
        if numbers.iter().any(|number| *number > 0) {
            let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
            // A String takes what it is given.
            let _ = writeln!(text, "{kind}\t{parent}\t{name}\t{field}\t{}", numbers.join(" "));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::{ProcessId, Seat};
    use crate::zone::{Catalog, Maxima};

    fn zone(path: &std::path::Path) -> &'static Zone {
        let maxima = Maxima { slots: 3, listeners: 2, routes: 3, upstreams: 2, servers: 3, flights: 1 };
        let zone = Zone::create(path, maxima, ProcessId::current(0).unwrap()).unwrap();
        let upstreams = ["a", "b"].map(|name| (name.to_owned(), vec!["s".to_owned()]));
        let catalog = Catalog { listeners: vec!["l".into()], routes: vec!["r".into()], upstreams: upstreams.to_vec() };
        zone.publish(&catalog).unwrap();
        zone
    }

    #[test]
    fn what_was_counted_is_counted_on() {
        let directory = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| directory.path().join(name));
        let before = zone(&old);
        let slot = before.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).unwrap();
        before.process(slot).requests.add(9);
        before.process(slot).connections_active.set(4);
        before.route(slot, "r").unwrap().status[1].add(7);
        [5, 100, 1_000_000].into_iter().for_each(|ns| before.route(slot, "r").unwrap().latency.record(ns));
        before.server(slot, "b", "s").unwrap().requests.add(3);
        before.listener(slot, "l").unwrap().bytes_in.add(u64::MAX / 2);
        let text = Snapshot::read(&old).unwrap().counters();

        let after = zone(&new);
        let lies = "route\t\tr\tnothing\t1\nplanet\t\tr\trequests\t1\nroute\t\tnobody\trequests\t1\nroute\t\tr\tlatency\t1 2\nroute\t\tr\tstatus\t\n\n";
        after.carry_in(&format!("{lies}{text}"), Generation(1)).unwrap();
        let snapshot = Snapshot::read(&new).unwrap();
        assert_eq!((snapshot.totals.requests, snapshot.totals.connections_active), (9, 0));
        let old = Snapshot::read(&old).unwrap();
        assert_eq!(snapshot.routes[1].totals.status, [0, 7, 0, 0, 0]);
        assert_eq!(snapshot.routes[1].totals.latency.count(), 3);
        assert_eq!(snapshot.routes[1].totals.latency.quantile_ns(1.0), old.routes[1].totals.latency.quantile_ns(1.0));
        assert_eq!(snapshot.upstreams[1].servers[0].object.totals.requests, 3);
        assert_eq!(snapshot.upstreams[0].servers[0].object.totals.requests, 0);
        assert_eq!(snapshot.listeners[0].totals.bytes_in, u64::MAX / 2);
        // The next process goes on with it.
        let slot = after.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).unwrap();
        after.process(slot).requests.inc();
        assert_eq!(Snapshot::read(&new).unwrap().totals.requests, 10);
        assert!(snapshot.processes.is_empty());
    }
}
