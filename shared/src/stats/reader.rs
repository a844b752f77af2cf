//! From the words of a zone to a [`Snapshot`]. All checks of what the file says are here and in the layout.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::distribution::Distribution;
use super::snapshot::{Object, Process, Quarantined, Server, Snapshot, Upstream, Verdict};
use crate::clock::monotonic_ns;
use crate::ident::{Generation, ProcessId, Seat, Slot};
use crate::zone::histogram::WORDS as HISTOGRAM_WORDS;
use crate::zone::layout::{Kind, Layout, Section, cells, header, master, object, slot};
use crate::zone::quarantine::{self, word};
use crate::zone::source::Source;
use crate::zone::{
    Damage, Image, METHOD_BYTES_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, ProcessTotals, Role, State, Totals,
    VERDICT_BYTES_MAX,
};

/// How often a snapshot is taken anew because the master has published meanwhile.
const RETRIES_MAX: u32 = 3;

/// A snapshot, and the boot it is of.
pub(super) fn take(source: &dyn Source) -> Result<(Snapshot, u128), Damage> {
    let (layout, minor) = Layout::read(source)?;
    let mut retries = 0;
    let mut snapshot = loop {
        let reader = Reader { source, layout: &layout, blocks: RefCell::default() };
        let before = reader.publication()?;
        let snapshot = reader.snapshot(before)?;
        if reader.publication()? == before || retries == RETRIES_MAX {
            break snapshot;
        }
        retries += 1;
    };
    let mut head = [0; header::WORDS];
    source.words(0, &mut head)?;
    let [.., boot_high, boot_low, pid, start_time, created_ns] = head;
    snapshot.minor = minor;
    if snapshot.master.pid == 0 {
        snapshot.master = process_id(pid, start_time, 0);
    }
    snapshot.created_ns = created_ns;
    snapshot.taken_ns = monotonic_ns();
    Ok((snapshot, u128::from(boot_high) << 64 | u128::from(boot_low)))
}

struct Reader<'s> {
    source: &'s dyn Source,
    layout: &'s Layout,
    /// Histogram blocks read so far: each has one owner, so that no more is read than the file holds.
    blocks: RefCell<BTreeSet<u64>>,
}

impl Reader<'_> {
    fn publication(&self) -> Result<u64, Damage> {
        Ok(self.record::<{ master::WORDS }>(self.layout.master(), 0)?[at(master::PUBLICATION)])
    }

    fn snapshot(&self, publication: u64) -> Result<Snapshot, Damage> {
        let words = self.record::<{ master::WORDS }>(self.layout.master(), 0)?;
        let mut snapshot = Snapshot {
            generation: Generation(words[at(master::GENERATION)]),
            master: process_id(words[at(master::HOLDER_PID)], words[at(master::HOLDER_START)], 0),
            is_retired: words[at(master::RETIRED)] != 0,
            verdict: verdict(&words)?,
            slots: self.layout.slots().count,
            ..Snapshot::default()
        };
        for index in 0..self.layout.quarantine().count {
            snapshot.quarantined.extend(self.quarantined(index)?);
        }
        for index in 0..self.layout.slots().count {
            let (totals, process) = self.process(index)?;
            snapshot.totals.add(&totals);
            snapshot.processes.extend(process);
        }
        let used = Kind::ALL.map(|kind| words[at(master::USED) + kind as usize]);
        let named = |kind: Kind| self.named(kind, used[kind as usize], publication);
        for (index, name, _) in named(Kind::Listener)? {
            snapshot.listeners.push(self.object(Kind::Listener, index, name)?);
        }
        for (index, name, _) in named(Kind::Route)? {
            snapshot.routes.push(self.object(Kind::Route, index, name)?);
        }
        let servers = named(Kind::Server)?;
        for (index, name, _) in named(Kind::Upstream)? {
            let object = self.object(Kind::Upstream, index, name)?;
            let own = servers.iter().filter(|(_, _, parent)| *parent == index);
            let servers = own.map(|(index, name, _)| self.server(*index, name.clone())).collect::<Result<_, _>>()?;
            snapshot.upstreams.push(Upstream { object, servers });
        }
        Ok(snapshot)
    }

    fn process(&self, index: u64) -> Result<(ProcessTotals, Option<Process>), Damage> {
        let image =
            Image { words: self.first_words(self.layout.processes(), index)?, latency: Distribution::default() };
        let totals = ProcessTotals::of(&image);
        let words = self.record::<{ slot::WORDS }>(self.layout.slots(), index)?;
        let incarnation = words[at(slot::CLAIMED)];
        if incarnation == 0 {
            return Ok((totals, None));
        }
        let process = Process {
            slot: slot_at(index),
            id: process_id(words[at(slot::PID)], words[at(slot::START_TIME)], incarnation),
            is_alive: false,
            role: Role::from_word(words[at(slot::ROLE)]),
            seat: words[at(slot::SEAT)].checked_sub(1).and_then(|seat| u32::try_from(seat).ok()).map(Seat),
            generation: Generation(words[at(slot::GENERATION)]),
            state: image.words.get(1).copied().and_then(State::from_word),
            heartbeat_ns: image.words.get(2).copied().unwrap_or(0),
            drain_due_ns: image.words.get(11).copied().filter(|due| *due != 0),
            totals: totals.clone(),
        };
        Ok((totals, Some(process)))
    }

    fn quarantined(&self, index: u64) -> Result<Option<Quarantined>, Damage> {
        let words = self.record::<{ quarantine::WORDS }>(self.layout.quarantine(), index)?;
        if words[at(word::FINGERPRINT)] == 0 {
            return Ok(None);
        }
        let objects = self.layout.objects(Kind::Route);
        let name = match words[at(word::ROUTE)].checked_sub(1) {
            Some(route) if route < objects.count => {
                let name = self.record::<{ object::WORDS }>(objects, route)?;
                text(&name[at(object::NAME)..], name[at(object::NAME_LENGTH)], NAME_BYTES_MAX)
            }
            _ => None,
        };
        let length = words[at(word::PATH_LENGTH)];
        let most = PATH_BYTES_MAX as u64;
        let method = text(&words[at(word::METHOD)..at(word::PATH_LENGTH)], METHOD_BYTES_MAX as u64, METHOD_BYTES_MAX);
        Ok(Some(Quarantined {
            fingerprint: words[at(word::FINGERPRINT)],
            route: name.unwrap_or_default(),
            method: method.unwrap_or_default().trim_end_matches(char::REPLACEMENT_CHARACTER).to_owned(),
            path: text(&words[at(word::PATH)..], length.min(most), PATH_BYTES_MAX).unwrap_or_default(),
            is_cut: length > most,
            until_ns: words[at(word::UNTIL)],
        }))
    }

    /// Index, name and parent of the objects that the current publication names.
    fn named(&self, kind: Kind, used: u64, publication: u64) -> Result<Vec<(u64, String, u64)>, Damage> {
        let mut found = Vec::new();
        for index in 0..used.min(self.layout.objects(kind).count) {
            let words = self.record::<{ object::WORDS }>(self.layout.objects(kind), index)?;
            let named = words[at(object::NAMED)];
            if named != 0 && named >= publication {
                let name = text(&words[at(object::NAME)..], words[at(object::NAME_LENGTH)], NAME_BYTES_MAX)
                    .ok_or_else(|| Damage::Corrupt(format!("a name of its {} is too long", kind.plural())))?;
                found.push((index, name, words[at(object::PARENT)]));
            }
        }
        Ok(found)
    }

    fn object<T: Totals>(&self, kind: Kind, index: u64, name: String) -> Result<Object<T>, Damage> {
        let mut object = Object { name, totals: T::default(), by_slot: Vec::new() };
        let (section, slots) = (self.layout.cells(kind), self.layout.slots().count);
        if section.record == 0 || slots == 0 {
            return Ok(object);
        }
        // One read for all slots: they are neighbours.
        let first = section.at(index * slots);
        let mut all = vec![0; at((section.at(index * slots + slots) - first) / 8)];
        self.source.words(first, &mut all)?;
        for (slot, record) in (0..).zip(all.chunks_exact(all.len() / at(slots))) {
            let words = record[..at(section.record / 8)].to_vec();
            if words.iter().skip(1).all(|word| *word == 0) {
                continue;
            }
            let latency = match words.get(at(cells::HISTOGRAM)) {
                Some(block @ 1..) if kind.has_histogram() => self.histogram(block - 1)?,
                _ => Distribution::default(),
            };
            let totals = T::of(&Image { words, latency });
            object.totals.add(&totals);
            object.by_slot.push((Slot(slot), totals));
        }
        Ok(object)
    }

    fn server(&self, index: u64, name: String) -> Result<Server, Damage> {
        let [health] = self.record(self.layout.health(), index)?;
        Ok(Server { object: self.object(Kind::Server, index, name)?, health })
    }

    fn histogram(&self, block: u64) -> Result<Distribution, Damage> {
        let pool = self.layout.histograms();
        if block >= pool.count || !self.blocks.borrow_mut().insert(block) {
            return Err(Damage::Corrupt(format!("histogram {block} is not there, or has two owners")));
        }
        Ok(Distribution::of(&self.record::<HISTOGRAM_WORDS>(pool, block)?))
    }

    /// The first `N` words of a record; what the file's version lacks is zero.
    fn record<const N: usize>(&self, section: &Section, index: u64) -> Result<[u64; N], Damage> {
        let mut words = [0; N];
        let known = N.min(at(section.record / 8));
        if index < section.count {
            self.source.words(section.at(index), &mut words[..known])?;
        }
        Ok(words)
    }

    /// All words of a record that the file's version has.
    fn first_words(&self, section: &Section, index: u64) -> Result<Vec<u64>, Damage> {
        let mut words = vec![0; at(section.record / 8)];
        if index < section.count {
            self.source.words(section.at(index), &mut words)?;
        }
        Ok(words)
    }
}

fn verdict(words: &[u64; master::WORDS]) -> Result<Option<Verdict>, Damage> {
    let generation = Generation(words[at(master::VERDICT_GENERATION)]);
    let text = text(&words[at(master::VERDICT_TEXT)..], words[at(master::VERDICT_LENGTH)], VERDICT_BYTES_MAX)
        .ok_or_else(|| Damage::Corrupt("the text of its verdict is too long".to_owned()))?;
    let is_accepted = words[at(master::VERDICT_ACCEPTED)] != 0;
    Ok((generation.0 != 0).then_some(Verdict { generation, is_accepted, at_ns: words[at(master::VERDICT_AT)], text }))
}

/// `length` bytes of text, or `None` when there can't be as many.
fn text(words: &[u64], length: u64, most: usize) -> Option<String> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).take(most).collect();
    let text = String::from_utf8_lossy(bytes.get(..usize::try_from(length).ok()?)?);
    Some(text.chars().map(printable).collect())
}

/// What a terminal shows without being steered by it.
pub(super) fn printable(character: char) -> char {
    match character {
        '\n' | '\t' => ' ',
        control if control.is_control() => char::REPLACEMENT_CHARACTER,
        other => other,
    }
}

fn process_id(pid: u64, start_time: u64, incarnation: u64) -> ProcessId {
    ProcessId { pid: i32::try_from(pid).unwrap_or(0), start_time, incarnation }
}

fn slot_at(index: u64) -> Slot {
    Slot(u32::try_from(index).unwrap_or(u32::MAX))
}

/// A word's place in an array.
fn at(word: u64) -> usize {
    usize::try_from(word).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zone::{Catalog, Maxima, Zone};

    /// The bytes of a zone in which something has happened.
    fn image() -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zone");
        let maxima = Maxima { slots: 3, listeners: 1, routes: 3, upstreams: 2, servers: 2, flights: 2 };
        let zone = Zone::create(&path, maxima, ProcessId::current(0).unwrap()).unwrap();
        let catalog = Catalog {
            listeners: vec!["127.0.0.1:80".into()],
            routes: vec!["api".into()],
            upstreams: vec![("app".into(), vec!["10.0.0.1:1".into()])],
        };
        zone.publish(&catalog).unwrap();
        zone.set_verdict(Generation(1), true, "started");
        for seat in 0..2 {
            let slot = zone.claim_slot(Role::Worker, Some(Seat(seat)), Generation(1)).unwrap();
            zone.enter_slot(slot, ProcessId { pid: 1, start_time: 1, incarnation: 0 });
            let route = zone.route(slot, "api").unwrap();
            route.requests.inc();
            route.latency.record(1000);
            zone.server(slot, "app", "10.0.0.1:1").unwrap().in_flight.inc();
        }
        std::fs::read(path).unwrap()
    }

    fn with_word(bytes: &[u8], at: usize, value: u64) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_sound_zone_reads_as_it_was_written() {
        let snapshot = Snapshot::parse(&image()).unwrap();
        assert_eq!(snapshot.generation, Generation(1));
        assert_eq!(snapshot.verdict.unwrap().text, "started");
        assert_eq!(snapshot.processes.len(), 2);
        assert_eq!(snapshot.processes[1].seat, Some(Seat(1)));
        let names: Vec<_> = snapshot.routes.iter().map(|route| route.name.as_str()).collect();
        assert_eq!(names, ["(none)", "api"]);
        assert_eq!(snapshot.routes[1].totals.requests, 2);
        assert_eq!(snapshot.routes[1].totals.latency.count(), 2);
        assert_eq!(snapshot.routes[1].by_slot.len(), 2);
        assert_eq!(snapshot.upstreams[0].servers[0].object.totals.in_flight, 2);
    }

    #[test]
    fn what_is_no_zone_says_so() {
        let good = image();
        assert!(matches!(Snapshot::parse(b""), Err(Damage::Foreign)));
        assert!(matches!(Snapshot::parse(&[b'#'; 9000]), Err(Damage::Foreign)));
        assert!(matches!(Snapshot::parse(&good[..100]), Err(Damage::Truncated { bytes: 100, .. })));
        assert!(matches!(Snapshot::parse(&good[..good.len() - 1]), Err(Damage::Truncated { .. })));
        assert!(matches!(Snapshot::parse(&with_word(&good, 8, 2 << 32)), Err(Damage::OtherMajor(2))));
        assert!(matches!(Snapshot::parse(&with_word(&good, 24, 99)), Err(Damage::Corrupt(_))));
    }

    #[test]
    fn another_minor_version_is_read_as_far_as_it_goes() {
        let good = image();
        // A later one: a higher minor number, and a section that nobody here knows.
        let mut later = with_word(&good, 8, 1 << 32 | 7);
        later = with_word(&later, 24, 16);
        later = with_word(&later, 128 + 15 * 64, 999);
        assert_eq!(Snapshot::parse(&later).unwrap().routes[1].totals.requests, 2);
        assert_eq!(Snapshot::parse(&later).unwrap().minor, 7);
        // An earlier one: the cells of routes ended at their first counter.
        let entry = 128 + 9 * 64;
        assert_eq!(good[entry], 10);
        let earlier = Snapshot::parse(&with_word(&good, entry + 40, 40)).unwrap();
        assert_eq!((earlier.routes[1].totals.requests, earlier.routes[1].totals.bytes_out), (2, 0));
        assert_eq!(earlier.routes[1].totals.status, [0; 5]);
    }

    #[test]
    fn no_word_that_lies_crashes_the_reader() {
        let good = image();
        let values = [0, 1, 8, 200, 1 << 31, 1 << 40, i64::MAX.cast_unsigned(), u64::MAX];
        let in_use = (0..good.len()).step_by(8).filter(|at| *at < 1024 || good[*at..at + 8] != [0; 8]);
        for (at, value) in in_use.flat_map(|at| values.map(|value| (at, value))) {
            if let Err(damage) = Snapshot::parse(&with_word(&good, at, value)) {
                assert!(!matches!(damage, Damage::Unreadable(_)), "word {at} = {value}: {damage}");
            }
        }
    }

    #[test]
    fn names_cannot_steer_a_terminal() {
        let words = [u64::from_ne_bytes(*b"a\x1b[2J\n\xff\xc3")];
        assert_eq!(text(&words, 8, 8).unwrap(), "a\u{fffd}[2J \u{fffd}\u{fffd}");
        assert_eq!(text(&words, 9, 8), None);
        assert_eq!(text(&words, u64::MAX, 8), None);
    }
}
