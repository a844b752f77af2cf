//! How a zone passes from one master to the next: it is read, believed as far as it goes together, and written on.
//!
//! Names, counters and health stay where they are. The processes that are in it belong to the earlier master, or to nobody
//! any more: they are [strangers](Stranger), whose slots are freed once they have ended.

#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use super::cell::{publish, store};
use super::error::{Damage, ZoneError};
use super::layout::{self, Kind, Layout, MINOR, cells, header, master, object, slot};
use super::ledger::{Found, Ledger};
use super::map::Map;
use super::{Book, NAME_BYTES_MAX, Role, Zone, server_key};
use crate::clock::{SECOND_NS, monotonic_ns};
use crate::ident::{ProcessId, Slot, boot_id};

/// How long a process whose pid was never noted, because its master died as it forked, may be silent before it is taken
/// to have ended.
const SILENCE_NS: u64 = 60 * SECOND_NS;

/// The highest incarnation and publication that are believed: there has to be room above.
const NUMBER_MAX: u64 = 1 << 62;

/// A process that another master put into the zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stranger {
    /// Its slot.
    pub slot: Slot,
    /// Who it is. Nothing may be done to a process because a zone names it: this is for knowing whether it lives.
    pub id: ProcessId,
}

impl Zone {
    /// Takes over the zone file `path` of another master, which writes to it no more. Says who is in it.
    ///
    /// # Errors
    /// When there is none, it is of another boot or of a version that cannot be shared, or the system refuses.
    pub fn adopt(path: &Path, holder: ProcessId) -> Result<(&'static Zone, Vec<Stranger>), ZoneError> {
        let failed = |doing| move |source| ZoneError::Io { doing, path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => ZoneError::Absent(path.to_owned()),
            _ => ZoneError::Io { doing: "open", path: path.to_owned(), source },
        })?;
        let (layout, minor) = Layout::read(&file).map_err(|damage| damage.of(path))?;
        let layout = layout.grown().map_err(|section| Damage::Narrow(section).of(path))?;
        let map = Map::of(file, layout.bytes).map_err(failed("map"))?;
        let zone: &'static Zone = Box::leak(Box::new(Zone { map, layout, book: Mutex::default() }));
        let boot = boot_id().map_err(failed("read the boot of"))?;
        let word = |word: u64| zone.map.word(word * 8).load(Ordering::Relaxed);
        if u128::from(word(header::BOOT_HIGH)) << 64 | u128::from(word(header::BOOT_LOW)) != boot {
            return Err(Damage::OtherBoot.of(path));
        }
        // From here on it is written to. Records end where the longer of both versions has them end.
        for (offset, value) in zone.layout.directory() {
            store(zone.map.word(offset), value);
        }
        store(zone.map.word(header::VERSION * 8), layout::version(minor.max(MINOR)));
        zone.hold(holder);
        let (strangers, reserved) = zone.take_back(&[]);
        reserved.map(|()| (zone, strangers))
    }

    /// Begins anew with what the zone says, after another master has held it: its book is not known here. `own` are the
    /// slots of processes that are still this master's; all others are said to be strangers. Also says whether the file
    /// system has room for what has to have blocks: these were there before, so that it should.
    pub fn take_back(&'static self, own: &[Slot]) -> (Vec<Stranger>, Result<(), ZoneError>) {
        let book = &mut *self.book();
        let claims = self.claims();
        let claimed: Vec<(Slot, Role)> = claims.iter().map(|(stranger, role)| (stranger.slot, *role)).collect();
        let incarnation = claims.iter().map(|(stranger, _)| stranger.id.incarnation).max().unwrap_or(0);
        let publication = self.master_word(master::PUBLICATION).load(Ordering::Acquire);
        let rows = self.rows();
        // Each object has had at most one block for each slot.
        let series = rows.iter().filter(|row| row.kind.has_histogram()).count() as u64;
        let mut ledger = Ledger::rebuilt(
            publication.min(NUMBER_MAX),
            incarnation.min(NUMBER_MAX).max(book.ledger.incarnation),
            self.layout.histograms().count.min(series * self.layout.slots().count),
            rows,
            &claimed,
        );
        ledger.remember(own, &book.ledger);
        *book = Book { ledger, ..Book::default() };
        let fixed = [self.layout.master(), self.layout.slots(), self.layout.processes()];
        let reserved =
            fixed.into_iter().try_for_each(|section| self.reserve(book, section, section.count, "processes"));
        let strangers =
            claims.into_iter().map(|(stranger, _)| stranger).filter(|stranger| !own.contains(&stranger.slot));
        (strangers.collect(), reserved)
    }

    /// Says who the master of this zone is. Master only.
    pub fn hold(&'static self, holder: ProcessId) {
        store(self.master_word(master::HOLDER_START), holder.start_time);
        publish(self.master_word(master::HOLDER_PID), u64::try_from(holder.pid).unwrap_or(0));
        store(self.master_word(master::RETIRED), 0);
    }

    /// Whether a stranger has ended, so that its slot may be released.
    #[must_use]
    pub fn has_ended(&'static self, stranger: &Stranger) -> bool {
        match stranger.id.pid {
            0 => monotonic_ns().saturating_sub(self.process(stranger.slot).heartbeat.get()) > SILENCE_NS,
            _ => !stranger.id.is_alive(),
        }
    }

    /// Who is in a slot, and what for. A role that this version does not know is one that holds no objects.
    fn claims(&'static self) -> Vec<(Stranger, Role)> {
        let slots = (0..u32::try_from(self.layout.slots().count).unwrap_or(u32::MAX)).map(Slot);
        let read = |slot: Slot, word| self.word(self.layout.slots(), slot.0.into(), word).load(Ordering::Acquire);
        let claim = |slot: Slot| {
            let incarnation = read(slot, slot::CLAIMED);
            let pid = i32::try_from(read(slot, slot::PID)).unwrap_or(0);
            let id = ProcessId { pid, start_time: read(slot, slot::START_TIME), incarnation };
            let role = Role::from_word(read(slot, slot::ROLE)).unwrap_or(Role::Control);
            (incarnation != 0).then_some((Stranger { slot, id }, role))
        };
        slots.filter_map(claim).collect()
    }

    /// Every object that was ever named, an upstream before its servers.
    fn rows(&'static self) -> Vec<Found> {
        let mut names: Vec<Option<String>> = Vec::new();
        let mut rows = Vec::new();
        for kind in Kind::ALL {
            let used = self.master_word(master::USED + kind as u64).load(Ordering::Relaxed);
            for index in 0..u32::try_from(used.min(self.layout.objects(kind).count)).unwrap_or(u32::MAX) {
                let (name, parent) = self.name(kind, index);
                if kind == Kind::Upstream {
                    names.push(name.clone());
                }
                let key = match (kind, name) {
                    (Kind::Server, Some(name)) => {
                        let upstream = usize::try_from(parent).ok().and_then(|parent| names.get(parent)?.as_ref());
                        upstream.map(|upstream| server_key(upstream, &name))
                    }
                    (_, name) => name,
                };
                let named = self.word(self.layout.objects(kind), index.into(), object::NAMED).load(Ordering::Acquire);
                let named = if key.is_some() { named } else { 0 };
                rows.push(Found { kind, index, named, key: key.unwrap_or_default(), blocks: self.blocks(kind, index) });
            }
        }
        rows
    }

    /// The name of an object and its parent; `None` for what is no name.
    fn name(&'static self, kind: Kind, index: u32) -> (Option<String>, u64) {
        let section = self.layout.objects(kind);
        let read = |word| self.word(section, index.into(), word).load(Ordering::Relaxed);
        let length = usize::try_from(read(object::NAME_LENGTH)).unwrap_or(usize::MAX);
        let words = (0..NAME_BYTES_MAX as u64 / 8).flat_map(|word| read(object::NAME + word).to_ne_bytes());
        let bytes: Vec<u8> = words.take(length).collect();
        let is_whole = bytes.len() == length && length > 0;
        (String::from_utf8(bytes).ok().filter(|_| is_whole), read(object::PARENT))
    }

    fn blocks(&'static self, kind: Kind, index: u32) -> Vec<(Slot, u64)> {
        if !kind.has_histogram() {
            return Vec::new();
        }
        let slots = (0..u32::try_from(self.layout.slots().count).unwrap_or(u32::MAX)).map(Slot);
        let block = |slot| self.map.word(self.cells_at(kind, index, slot) + cells::HISTOGRAM * 8);
        slots.filter_map(|slot| Some((slot, block(slot).load(Ordering::Relaxed).checked_sub(1)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::{Generation, Seat};
    use crate::stats::Snapshot;
    use crate::zone::{Catalog, Maxima};

    const SMALL: Maxima = Maxima { slots: 4, listeners: 1, routes: 4, upstreams: 2, servers: 4, flights: 2 };

    fn catalog(routes: &[&str], servers: &[&str]) -> Catalog {
        let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
        let routes = routes.iter().map(ToString::to_string).collect();
        Catalog {
            listeners: vec!["l".into()],
            routes,
            upstreams: vec![("a".into(), servers.clone()), ("b".into(), servers)],
        }
    }

    fn worker(zone: &'static Zone, generation: u64) -> Slot {
        zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(generation)).unwrap()
    }

    #[test]
    fn the_next_master_goes_on_where_the_last_one_stood() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zone");
        let me = ProcessId::current(0).unwrap();
        let first = Zone::create(&path, SMALL, ProcessId { pid: me.pid + 1, ..me }).unwrap();
        first.publish(&catalog(&["r", "s"], &["x", "y"])).unwrap();
        let old = worker(first, 1);
        first.enter_slot(old, me);
        first.route(old, "s").unwrap().requests.add(5);
        first.route(old, "s").unwrap().latency.record(1000);
        first.server(old, "b", "y").unwrap().requests.add(7);
        first.set_verdict(Generation(1), true, "fine");

        let (next, strangers) = Zone::adopt(&path, me).unwrap();
        let snapshot = Snapshot::read(&path).unwrap();
        assert_eq!((snapshot.master.pid, snapshot.is_supervised), (me.pid, true));
        assert_eq!(strangers.len(), 1);
        assert_eq!((strangers[0].slot, strangers[0].id.pid), (old, me.pid));
        assert!(!next.has_ended(&strangers[0]));
        // A name keeps its place, an old process its own, and a new one does not get that.
        next.publish(&catalog(&["s", "t"], &["y"])).unwrap();
        let new = worker(next, 2);
        assert_ne!(new, old);
        next.route(new, "s").unwrap().requests.add(2);
        next.server(new, "b", "y").unwrap().requests.add(1);
        next.route(new, "s").unwrap().latency.record(1000);
        let snapshot = Snapshot::read(&path).unwrap();
        let route = snapshot.routes.iter().find(|route| route.name == "s").unwrap();
        assert_eq!((route.totals.requests, route.totals.latency.count()), (7, 2));
        assert_eq!(snapshot.upstreams[1].servers[0].object.totals.requests, 8);
        // What the old process may hold is not given away before its slot is released.
        assert!(next.publish(&catalog(&["s", "t", "u", "v"], &["y"])).is_err());
        next.release_slot(old);
        assert!(next.incarnation(new) > strangers[0].id.incarnation);
        assert_eq!(worker(next, 2), old);
        assert_eq!(next.route(old, "s").unwrap().requests.get(), 5);
    }

    #[test]
    fn a_master_that_gets_its_zone_back_knows_its_own_processes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zone");
        let me = ProcessId::current(0).unwrap();
        let first = Zone::create(&path, SMALL, me).unwrap();
        first.publish(&catalog(&["r"], &["x"])).unwrap();
        first.publish(&catalog(&["s"], &["x"])).unwrap();
        let own = worker(first, 1);
        let (next, _) = Zone::adopt(&path, me).unwrap();
        next.publish(&catalog(&["s"], &["x"])).unwrap();
        let theirs = worker(next, 2);
        let strangers = first.take_back(&[own]).0;
        assert_eq!(strangers.iter().map(|stranger| stranger.slot).collect::<Vec<_>>(), [theirs]);
        assert!(first.route(own, "s").is_some() && first.route(own, "r").is_none());
        first.release_slot(theirs);
        // No incarnation is given twice, and "r" was not known to any process of this master.
        let again = worker(first, 3);
        assert!(again == theirs && first.incarnation(again) > strangers[0].id.incarnation);
        first.publish(&catalog(&["s", "t", "u"], &["x"])).unwrap();
    }

    #[test]
    fn what_contradicts_itself_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zone");
        let me = ProcessId::current(0).unwrap();
        let zone = Zone::create(&path, SMALL, me).unwrap();
        zone.publish(&catalog(&["r", "s"], &["x"])).unwrap();
        let slot = worker(zone, 1);
        let at = |kind: Kind, index: u32, word| zone.word(zone.layout.objects(kind), index.into(), word);
        // One name for two routes, a name without an end, an upstream that is not there, a block with two owners.
        store(at(Kind::Route, 2, object::NAME), u64::from_le_bytes(*b"r\0\0\0\0\0\0\0"));
        store(at(Kind::Route, 0, object::NAME_LENGTH), u64::MAX);
        store(at(Kind::Server, 1, object::PARENT), 77);
        store(zone.map.word(zone.cells_at(Kind::Server, 0, slot)), 1);
        store(zone.map.word(zone.cells_at(Kind::Upstream, 0, slot)), u64::MAX);
        store(zone.map.word(zone.cells_at(Kind::Upstream, 1, slot)), zone.layout.histograms().count);
        let (next, strangers) = Zone::adopt(&path, me).unwrap();
        assert_eq!(strangers.len(), 1);
        next.publish(&catalog(&["r", "s"], &["x"])).unwrap();
        // All that can ever be is there, whatever a word says of the pool.
        let full = catalog(&["r", "s", "t"], &["x", "y"]);
        next.publish(&full).unwrap();
        let slots: Vec<_> = (1..4).map(|_| worker(next, 2)).collect();
        let slot = slots[0];
        for name in ["r", "s", super::super::NO_ROUTE] {
            next.route(slot, name).unwrap().latency.record(1);
        }
        next.server(slot, "a", "x").unwrap().latency.record(1);
        Snapshot::read(&path).unwrap();
    }

    #[test]
    fn other_files_are_refused_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zone");
        let me = ProcessId::current(0).unwrap();
        let says = |what: &str| {
            let error = Zone::adopt(&path, me).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        says("no proxy has been started there");
        let zone = Zone::create(&path, SMALL, me).unwrap();
        let boot = zone.map.word(header::BOOT_LOW * 8);
        store(boot, boot.load(Ordering::Relaxed) ^ 1);
        says("of another boot");
        store(zone.map.word(header::VERSION * 8), 9 << 32);
        says("9");
    }
}
