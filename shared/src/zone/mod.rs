//! The zone: one file that every process of a proxy maps and the command line reads.
//!
//! The master makes it, names in it what the configuration names, and gives each process a slot. A process writes its
//! own cells with plain stores and nobody else's. Whoever reads sums up. `docs/zone.md` is the layout for people.
//!
//! | word | writer | repaired by |
//! |---|---|---|
//! | header, directory | the creator, before the file has its name | nobody: it never changes |
//! | master record | the master; `retired` another master | its next store, or that of the master which takes over |
//! | slot record | the master | the master: claim and release store `claimed` last |
//! | process record, cells | the process in the slot | gauges and state: the master, once the exit was reaped |
//! | word 0 of cells | the master | its next publication |
//! | name record | the master | its next publication: `named` is stored last |
//! | connection record | the worker in the slot | a reader copes; freed by the master, once the exit was reaped |
//! | quarantine | the master | its next store: a hash is stored last, and as zero first |
//! | health | any process, one compare-and-swap | nobody has to |
//! | histogram block | the process in the slot | nobody: a kill loses one value at most |

#![deny(unsafe_code)]

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::clock::monotonic_ns;
use crate::ident::{Generation, ProcessId, Slot, boot_id};

mod adoption;
mod bearings;
mod carry;
mod catalog;
mod cell;
mod error;
mod field;
pub(crate) mod flight;
pub mod histogram;
#[cfg(test)]
mod kill;
mod last_words;
pub(crate) mod layout;
mod ledger;
mod map;
mod maxima;
mod publication;
pub(crate) mod quarantine;
pub(crate) mod record;
mod role;
mod slot;
pub(crate) mod source;

pub use adoption::Stranger;
pub use carry::CARRIED_BYTES_MAX;
pub use catalog::{Catalog, NO_ROUTE};
pub use cell::{Counter, Gauge, Histogram, State, StateCell};
pub use error::{Damage, ZoneError};
pub use field::{Field, Totals, Value};
pub use flight::{Flight, Flights, METHOD_BYTES_MAX, NO_DUE, PATH_BYTES_MAX, Phase};
pub use last_words::LastWords;
pub use layout::{MINOR, NAME_BYTES_MAX, VERDICT_BYTES_MAX, major};
pub use maxima::{FLIGHTS_MAX, Maxima, OBJECTS_MAX, SLOTS_MAX};
pub use quarantine::{BANS_MAX, Ban, Quarantine, Request};
pub use record::{ListenerCells, ProcessCells, RouteCells, ServerCells, UpstreamCells};
pub use record::{ListenerTotals, ProcessTotals, RouteTotals, ServerTotals, UpstreamTotals};
pub use role::Role;
pub use slot::STALE_AFTER_NS;

pub(crate) use field::Image;

use catalog::server_key;
use cell::{publish, store};
use field::{Place, Record};
use layout::{Kind, Layout, Section, header, master};
use ledger::Ledger;
use map::Map;
use publication::Reserved;
use source::Source;

/// The zone, for a process that writes to it.
#[derive(Debug)]
pub struct Zone {
    map: Map,
    layout: Layout,
    /// Locked for a moment by the master's one thread, and by a worker that builds a site.
    book: Mutex<Book>,
}

/// What the master knows and does not read back.
#[derive(Debug, Default)]
struct Book {
    ledger: Ledger,
    reserved: Reserved,
}

impl Zone {
    /// Makes the zone file `path`, mode 0640, in place of any older one: whoever maps that keeps it. The mapping lives
    /// as long as this process.
    ///
    /// # Errors
    /// When the directory or its file system refuses, or a maximum is beyond reason.
    pub fn create(path: &Path, maxima: Maxima, creator: ProcessId) -> Result<&'static Zone, ZoneError> {
        let layout = Layout::plan(&maxima)?;
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}.new", process::id()));
        let beside = PathBuf::from(name);
        let failed = |doing| move |source| ZoneError::Io { doing, path: path.to_owned(), source };
        // Left over by a process of this pid, long dead.
        let _ = fs::remove_file(&beside);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o640).open(&beside);
        let made = file.map_err(failed("create")).and_then(|file| {
            file.set_permissions(Permissions::from_mode(0o640)).map_err(failed("set the mode of"))?;
            let map = Map::new(file, layout.bytes).map_err(failed("map"))?;
            let zone = Zone::begin(map, layout, creator)?;
            fs::rename(&beside, path).map_err(failed("create"))?;
            Ok(zone)
        });
        if made.is_err() {
            let _ = fs::remove_file(&beside);
        }
        made
    }

    /// A zone without a file, for tests of what writes to one.
    ///
    /// # Panics
    /// When memory is short.
    #[must_use]
    pub fn anonymous(maxima: Maxima) -> &'static Zone {
        let make = || {
            let layout = Layout::plan(&maxima)?;
            let failed = |source| ZoneError::Io { doing: "make", path: "an anonymous zone".into(), source };
            let file = memfd_create("zone", MFdFlags::MFD_CLOEXEC).map_err(|error| failed(error.into()))?;
            let map = Map::new(file.into(), layout.bytes).map_err(failed)?;
            Zone::begin(map, layout, ProcessId::current(0).map_err(failed)?)
        };
        make().unwrap_or_else(|error: ZoneError| panic!("{error}"))
    }

    /// Says to whoever still maps the zone file `path` that another master runs now, if its master is the one `whose`
    /// it is said to be. Another one's is left alone: it may have come meanwhile.
    ///
    /// # Errors
    /// When the file is no zone of this version, or may not be written.
    pub fn retire_file(path: &Path, whose: ProcessId) -> Result<(), ZoneError> {
        let failed = |source| ZoneError::Io { doing: "retire", path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
        let (layout, _) = Layout::read(&file).map_err(|damage| damage.of(path))?;
        let word = |word: u64| Source::word(&file, word * 8).map_err(failed);
        let section = layout.master();
        let of_master = |word: u64| match section.count == 1 && section.record > word * 8 {
            true => Source::word(&file, section.at(0) + word * 8).map_err(failed),
            false => Ok(0),
        };
        let (holder, creator) = (of_master(master::HOLDER_PID)?, word(header::CREATOR_PID)?);
        let (pid, start) = match holder {
            0 => (creator, word(header::CREATOR_START)?),
            holder => (holder, of_master(master::HOLDER_START)?),
        };
        let is_its = pid == u64::try_from(whose.pid).unwrap_or(0) && start == whose.start_time;
        if is_its && layout.master().count == 1 && layout.master().record > master::RETIRED * 8 {
            let at = layout.master().at(0) + master::RETIRED * 8;
            file.write_all_at(&1u64.to_ne_bytes(), at).map_err(failed)?;
        }
        Ok(())
    }

    /// Notes how the last attempt to load a configuration ended; an accepted one is the generation that counts from
    /// now on. Text beyond [`VERDICT_BYTES_MAX`] is cut. Master only.
    pub fn set_verdict(&'static self, generation: Generation, accepted: bool, text: &str) {
        let text = &text[..text.floor_char_boundary(VERDICT_BYTES_MAX)];
        publish(self.master_word(master::VERDICT_LENGTH), 0);
        self.write_text(self.layout.master().at(0) + master::VERDICT_TEXT * 8, text);
        store(self.master_word(master::VERDICT_GENERATION), generation.0);
        store(self.master_word(master::VERDICT_ACCEPTED), accepted.into());
        store(self.master_word(master::VERDICT_AT), monotonic_ns());
        publish(self.master_word(master::VERDICT_LENGTH), text.len() as u64);
        if accepted {
            self.set_generation(generation);
        }
    }

    /// Says which generation counts. Master only.
    pub fn set_generation(&'static self, generation: Generation) {
        publish(self.master_word(master::GENERATION), generation.0);
    }

    /// Says that another master runs now: who still works for this zone drains.
    pub fn retire(&'static self) {
        publish(self.master_word(master::RETIRED), 1);
    }

    /// Whether another master runs now. A worker asks at every heartbeat.
    #[must_use]
    pub fn is_retired(&'static self) -> bool {
        self.master_word(master::RETIRED).load(Ordering::Relaxed) != 0
    }

    /// The cells of the process in `slot`.
    ///
    /// # Panics
    /// For a slot that this zone never gave out.
    #[must_use]
    pub fn process(&'static self, slot: Slot) -> ProcessCells {
        let record = self.layout.processes().at(slot.0.into());
        let place = Place { map: &self.map, record, histogram: None, health: None, index: 0 };
        ProcessCells::find(&place).expect("a process record needs neither histogram nor health word")
    }

    /// The cells of a listener for the process in `slot`; `None` if it was not published for its generation.
    #[must_use]
    pub fn listener(&'static self, slot: Slot, name: &str) -> Option<ListenerCells> {
        self.cells(slot, Kind::Listener, name)
    }

    /// The cells of a route for the worker in `slot`; `None` if it was not published for its generation.
    #[must_use]
    pub fn route(&'static self, slot: Slot, name: &str) -> Option<RouteCells> {
        self.cells(slot, Kind::Route, name)
    }

    /// The cells of an upstream for the worker in `slot`; `None` if it was not published for its generation.
    #[must_use]
    pub fn upstream(&'static self, slot: Slot, name: &str) -> Option<UpstreamCells> {
        self.cells(slot, Kind::Upstream, name)
    }

    /// The cells of a server for the worker in `slot`; `None` if it was not published for its generation.
    #[must_use]
    pub fn server(&'static self, slot: Slot, upstream: &str, address: &str) -> Option<ServerCells> {
        self.cells(slot, Kind::Server, &server_key(upstream, address))
    }

    fn cells<R: Record>(&'static self, slot: Slot, kind: Kind, key: &str) -> Option<R> {
        let book = self.book();
        let index = book.ledger.find(slot, kind, key)?;
        let block = book.ledger.block(kind, index, slot);
        R::find(&Place {
            map: &self.map,
            record: self.cells_at(kind, index, slot),
            histogram: block.map(|block| self.layout.histograms().at(block)),
            health: (kind == Kind::Server).then(|| self.layout.health().at(index.into())),
            index,
        })
    }

    /// Writes what a zone begins with.
    fn begin(map: Map, layout: Layout, creator: ProcessId) -> Result<&'static Zone, ZoneError> {
        let boot = boot_id().map_err(|source| ZoneError::Io { doing: "read", path: "/proc".into(), source })?;
        let zone: &'static Zone = Box::leak(Box::new(Zone { map, layout, book: Mutex::default() }));
        let book = &mut *zone.book();
        for section in [zone.layout.master(), zone.layout.slots(), zone.layout.processes(), zone.layout.quarantine()] {
            zone.reserve(book, section, section.count, "processes")?;
        }
        zone.map.reserve(0, layout::HEADER_BYTES).map_err(|source| ZoneError::NoRoom {
            what: "its header",
            bytes: layout::HEADER_BYTES,
            source,
        })?;
        let head = [
            (header::BOOT_HIGH, u64::try_from(boot >> 64).unwrap_or(0)),
            (header::BOOT_LOW, u64::try_from(boot & u128::from(u64::MAX)).unwrap_or(0)),
            (header::CREATOR_PID, u64::try_from(creator.pid).unwrap_or(0)),
            (header::CREATOR_START, creator.start_time),
            (header::CREATED, monotonic_ns()),
        ];
        for (word, value) in head {
            store(zone.map.word(word * 8), value);
        }
        for (half, value) in (0u64..).zip(random_key()?) {
            store(zone.master_word(master::KEY + half), value);
        }
        for (offset, value) in zone.layout.words() {
            store(zone.map.word(offset), value);
        }
        Ok(zone)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The offset of the cells of object `index` in `slot`.
    fn cells_at(&self, kind: Kind, index: u32, slot: Slot) -> u64 {
        self.layout.cells(kind).at(u64::from(index) * self.layout.slots().count + u64::from(slot.0))
    }

    fn master_word(&'static self, word: u64) -> &'static AtomicU64 {
        self.word(self.layout.master(), 0, word)
    }

    fn word(&'static self, section: &Section, index: u64, word: u64) -> &'static AtomicU64 {
        self.map.word(section.at(index) + word * 8)
    }

    fn write_text(&'static self, offset: u64, text: &str) {
        for (word, bytes) in (0u64..).zip(text.as_bytes().chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            store(self.map.word(offset + word * 8), u64::from_ne_bytes(whole));
        }
    }

    /// Zeroes words of the record at `record`; most are zero already, and stay clean in every cache.
    fn clear(&'static self, record: u64, words: Range<u64>) {
        let words = words.map(|word| self.map.word(record + word * 8));
        for word in words.filter(|word| word.load(Ordering::Relaxed) != 0) {
            store(word, 0);
        }
    }
}

/// Two words that nobody can guess.
fn random_key() -> Result<[u64; 2], ZoneError> {
    const SOURCE: &str = "/dev/urandom";
    let failed = |source| ZoneError::Io { doing: "read", path: SOURCE.into(), source };
    let mut bytes = [0; 16];
    File::open(SOURCE).and_then(|mut source| source.read_exact(&mut bytes)).map_err(failed)?;
    let (halves, _) = bytes.as_chunks::<8>();
    Ok([0, 1].map(|half| u64::from_ne_bytes(halves[half])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SECOND_NS;
    use crate::health;
    use crate::ident::Seat;
    use crate::stats::Snapshot;

    const SMALL: Maxima = Maxima { slots: 3, listeners: 1, routes: 2, upstreams: 1, servers: 2, flights: 2 };

    fn catalog(route: &str, servers: &[&str]) -> Catalog {
        let servers = servers.iter().map(ToString::to_string).collect();
        Catalog { listeners: vec![], routes: vec![route.into()], upstreams: vec![("app".into(), servers)] }
    }

    #[test]
    fn a_name_keeps_its_numbers_and_its_health() {
        let zone = Zone::anonymous(SMALL);
        zone.publish(&catalog("a", &["s", "t"])).unwrap();
        let slot = zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).unwrap();
        zone.server(slot, "app", "t").unwrap().requests.add(7);
        health::apply(zone.server(slot, "app", "t").unwrap().health, health::Event::Failed { fall: 1 });
        zone.publish(&catalog("a", &["t", "s"])).unwrap();
        let later = zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(2)).unwrap();
        assert!(!health::is_up(zone.server(later, "app", "t").unwrap().health.load(Ordering::Relaxed)));
        assert!(health::is_up(zone.server(later, "app", "s").unwrap().health.load(Ordering::Relaxed)));
        // The next process in the slot goes on counting.
        zone.release_slot(slot);
        let slot = zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(2)).unwrap();
        assert_eq!(zone.server(slot, "app", "t").unwrap().requests.get(), 7);
    }

    #[test]
    fn what_is_not_published_has_no_cells() {
        let zone = Zone::anonymous(SMALL);
        zone.publish(&catalog("a", &["s"])).unwrap();
        let worker = zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).unwrap();
        assert!(zone.route(worker, NO_ROUTE).is_some() && zone.route(worker, "b").is_none());
        assert!(zone.server(worker, "other", "s").is_none() && zone.listener(worker, "a").is_none());
        // Only workers have histograms.
        let control = zone.claim_slot(Role::Control, None, Generation(1)).unwrap();
        assert!(zone.route(control, "a").is_none());
    }

    #[test]
    fn a_full_zone_refuses_and_stays_as_it_is() {
        let zone = Zone::anonymous(SMALL);
        zone.publish(&catalog("a", &["s"])).unwrap();
        assert!(matches!(
            zone.publish(&catalog("a", &["s", "t", "u"])),
            Err(ZoneError::OverMaximum { what: "servers", wanted: 3, maximum: 2 })
        ));
        for _ in 0..3 {
            zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).unwrap();
        }
        assert!(zone.claim_slot(Role::Worker, None, Generation(1)).is_err());
        assert!(zone.server(Slot(0), "app", "s").is_some());
    }

    #[test]
    fn a_seat_is_served_by_a_worker_that_serves_and_turns() {
        let zone = Zone::anonymous(SMALL);
        let slot = zone.claim_slot(Role::Worker, Some(Seat(1)), Generation(1)).unwrap();
        let (cells, now) = (zone.process(slot), 50 * SECOND_NS);
        let served = |at| (zone.seat_is_served(Seat(0), at), zone.seat_is_served(Seat(1), at));
        cells.heartbeat.set(now);
        assert_eq!(served(now), (false, false));
        cells.state.set(State::Serving);
        assert_eq!(served(now + STALE_AFTER_NS - 1), (false, true));
        assert_eq!(served(now + STALE_AFTER_NS), (false, false));
        cells.state.set(State::Draining);
        assert_eq!(served(now), (false, false));
        cells.state.set(State::Serving);
        zone.release_slot(slot);
        assert_eq!(served(now), (false, false));
    }

    #[test]
    fn the_file_is_private_and_a_new_one_leaves_the_old_to_its_users() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zone");
        let me = ProcessId::current(0).unwrap();
        let old = Zone::create(&path, SMALL, me).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        Zone::retire_file(&path, ProcessId { pid: me.pid + 1, ..me }).unwrap();
        assert!(!old.is_retired(), "it is another one's");
        Zone::retire_file(&path, me).unwrap();
        assert!(old.is_retired());
        let new = Zone::create(&path, SMALL, me).unwrap();
        assert!(!new.is_retired());
        old.set_verdict(Generation(1), true, "old");
        new.set_verdict(Generation(2), true, &"é".repeat(600));
        let snapshot = Snapshot::read(&path).unwrap();
        assert_eq!((snapshot.generation, snapshot.is_supervised), (Generation(2), true));
        assert_eq!(snapshot.verdict.unwrap().text, "é".repeat(512));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn errors_say_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zone");
        let says = |error: ZoneError, what: &str| assert!(error.to_string().contains(what), "{error}");
        says(Snapshot::read(&path).unwrap_err(), "no proxy has been started there");
        says(Zone::retire_file(&path, ProcessId::default()).unwrap_err(), "cannot retire");
        fs::write(&path, "hello, world").unwrap();
        says(Snapshot::read(&path).unwrap_err(), "is not a zone");
        let me = ProcessId::current(0).unwrap();
        says(Zone::create(&path.join("zone"), SMALL, me).unwrap_err(), "cannot create");
    }
}
