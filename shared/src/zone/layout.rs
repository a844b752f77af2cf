//! Where things are in the file. `docs/zone.md` tells the same story for people.
//!
//! The file is an array of 64-bit words in the machine's order: a header, a directory of sections, the sections. A
//! section is `count` records, `stride` bytes apart. Within a major version fields are only appended to records, so a
//! reader takes of a record what both sides know.

#![forbid(unsafe_code)]

use super::error::{Damage, ZoneError};
use super::maxima::{FLIGHTS_MAX, Maxima, OBJECTS_MAX, SLOTS_MAX};
use super::source::Source;
use super::{flight, histogram, quarantine, record};

/// The first word: bytes `SLUICEZ` and a zero, on a little-endian machine.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"SLUICEZ\0");
/// Another major version means another layout.
const MAJOR: u32 = 1;
/// A higher minor version has fields or sections that a lower one lacks.
pub const MINOR: u32 = 1 + cfg!(feature = "misbehave") as u32;

/// Header and directory: the first page.
pub(crate) const HEADER_BYTES: u64 = 4096;
const DIRECTORY_AT: u64 = 128;
const ENTRY_BYTES: u64 = 64;
const SECTIONS_MAX: u64 = (HEADER_BYTES - DIRECTORY_AT) / ENTRY_BYTES;
const PAGE: u64 = 4096;

/// The most bytes from one record to the next that a reader believes.
const STRIDE_BYTES_MAX: u64 = 8192;

/// The most bytes of an object's name.
pub const NAME_BYTES_MAX: usize = 192;
/// The most bytes of a verdict's text.
pub const VERDICT_BYTES_MAX: usize = 1024;

/// The major version of this program. A build for tests may claim another one, as `SLUICE_ZONE_MAJOR` says.
#[must_use]
pub fn major() -> u32 {
    #[cfg(feature = "misbehave")]
    if let Some(claimed) = std::env::var("SLUICE_ZONE_MAJOR").ok().and_then(|text| text.parse().ok()) {
        return claimed;
    }
    MAJOR
}

/// The version word of a zone of this major and that minor version.
pub(crate) fn version(minor: u32) -> u64 {
    u64::from(major()) << 32 | u64::from(minor)
}

/// Words of the header.
pub(crate) mod header {
    pub(crate) const MAGIC: u64 = 0;
    /// Major version in the upper half, minor in the lower.
    pub(crate) const VERSION: u64 = 1;
    /// The file's length in bytes.
    pub(crate) const LENGTH: u64 = 2;
    /// How many entries the directory has.
    pub(crate) const SECTIONS: u64 = 3;
    pub(crate) const BOOT_HIGH: u64 = 4;
    pub(crate) const BOOT_LOW: u64 = 5;
    pub(crate) const CREATOR_PID: u64 = 6;
    pub(crate) const CREATOR_START: u64 = 7;
    /// When it was created, monotonic nanoseconds.
    pub(crate) const CREATED: u64 = 8;
    pub(crate) const WORDS: usize = 9;
}

/// Words of the one record of [`Layout::master`]; the master that holds the lease writes them.
pub(crate) mod master {
    /// Number of the last finished publication.
    pub(crate) const PUBLICATION: u64 = 0;
    /// The committed generation.
    pub(crate) const GENERATION: u64 = 1;
    /// Not zero once another master runs; that one writes it.
    pub(crate) const RETIRED: u64 = 2;
    pub(crate) const VERDICT_GENERATION: u64 = 3;
    pub(crate) const VERDICT_ACCEPTED: u64 = 4;
    pub(crate) const VERDICT_AT: u64 = 5;
    /// Bytes of text; stored last, and as zero first.
    pub(crate) const VERDICT_LENGTH: u64 = 6;
    /// How many requests are in quarantine; stored last.
    pub(crate) const QUARANTINED: u64 = 7;
    /// How many indexes of each kind were ever used: one word a kind.
    pub(crate) const USED: u64 = 8;
    /// Two words: what hashes of requests are keyed with.
    pub(crate) const KEY: u64 = 14;
    /// The master that holds the zone, if it is not the creator; zero in minor version 0. The start time is stored first.
    pub(crate) const HOLDER_PID: u64 = 12;
    pub(crate) const HOLDER_START: u64 = 13;
    pub(crate) const VERDICT_TEXT: u64 = 16;
    pub(crate) const WORDS: usize = 16 + super::VERDICT_BYTES_MAX / 8;
}

/// Words of a process slot; the master writes them.
pub(crate) mod slot {
    /// The incarnation, or zero while the slot is free. Stored last.
    pub(crate) const CLAIMED: u64 = 0;
    pub(crate) const PID: u64 = 1;
    pub(crate) const START_TIME: u64 = 2;
    pub(crate) const ROLE: u64 = 3;
    /// The seat plus one, or zero.
    pub(crate) const SEAT: u64 = 4;
    pub(crate) const GENERATION: u64 = 5;
    /// What a build for tests has in addition, as a later minor version would: the generation once more.
    #[cfg(feature = "misbehave")]
    pub(crate) const LATER: u64 = 6;
    pub(crate) const WORDS: usize = 6 + cfg!(feature = "misbehave") as usize;
}

/// Words of an object's name record; the master writes them.
pub(crate) mod object {
    /// The last publication that named it, or zero while the index is free. Stored last.
    pub(crate) const NAMED: u64 = 0;
    /// A server's upstream.
    pub(crate) const PARENT: u64 = 1;
    pub(crate) const NAME_LENGTH: u64 = 2;
    pub(crate) const NAME: u64 = 8;
    pub(crate) const WORDS: usize = 8 + super::NAME_BYTES_MAX / 8;
}

/// Words of an object's cells that are not the worker's.
pub(crate) mod cells {
    /// The number of the histogram's block in the pool, plus one; the master writes it.
    pub(crate) const HISTOGRAM: u64 = 0;
}

/// What has a name and cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Listener,
    Route,
    Upstream,
    Server,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Listener, Kind::Route, Kind::Upstream, Kind::Server];

    /// As messages call many of it.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Kind::Listener => "listeners",
            Kind::Route => "routes",
            Kind::Upstream => "upstreams",
            Kind::Server => "servers",
        }
    }

    /// Whether its cells have a histogram, a block of the pool for each worker.
    pub(crate) fn has_histogram(self) -> bool {
        self != Kind::Listener
    }
}

/// Records of one shape.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Section {
    /// Offset of the first record in the file, in bytes.
    offset: u64,
    /// From one record to the next, in bytes.
    stride: u64,
    /// How many records.
    pub(crate) count: u64,
    /// What is used of a record, in bytes.
    pub(crate) record: u64,
}

impl Section {
    /// The offset of record `index`, which must be at most `count`.
    pub(crate) fn at(&self, index: u64) -> u64 {
        debug_assert!(index <= self.count);
        self.offset + index * self.stride
    }
}

/// How many sections this version knows; the id of a section is its place in the file, counted from 1.
const SECTIONS: usize = 15;
/// The version of every section's records. A section of another version is as good as absent.
const SECTION_VERSION: u64 = 1;

/// All sections this version knows. One that a file lacks has no records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Length of the file in bytes.
    pub(crate) bytes: u64,
    sections: [Section; SECTIONS],
}

impl Layout {
    /// What concerns the zone as a whole.
    pub(crate) fn master(&self) -> &Section {
        &self.sections[0]
    }

    /// Who is in a slot.
    pub(crate) fn slots(&self) -> &Section {
        &self.sections[1]
    }

    /// The cells of the process in a slot.
    pub(crate) fn processes(&self) -> &Section {
        &self.sections[2]
    }

    /// The health word of a server.
    pub(crate) fn health(&self) -> &Section {
        &self.sections[3]
    }

    /// The name of an object.
    pub(crate) fn objects(&self, kind: Kind) -> &Section {
        &self.sections[4 + kind as usize]
    }

    /// The cells of object `o` in slot `s` are record `o * slots + s`.
    pub(crate) fn cells(&self, kind: Kind) -> &Section {
        &self.sections[8 + kind as usize]
    }

    /// The pool of histogram blocks, by far the largest.
    pub(crate) fn histograms(&self) -> &Section {
        &self.sections[12]
    }

    /// Record `i` of slot `s` is `s * flights_per_slot + i`.
    pub(crate) fn flights(&self) -> &Section {
        &self.sections[13]
    }

    /// How many connections of one worker have a record.
    pub(crate) fn flights_per_slot(&self) -> u32 {
        let each = self.flights().count.checked_div(self.slots().count).unwrap_or(0);
        let is_known = self.flights().record >= flight::WORDS as u64 * 8;
        if is_known { u32::try_from(each).unwrap_or(0) } else { 0 }
    }

    /// The requests that are refused because of what they did.
    pub(crate) fn quarantine(&self) -> &Section {
        &self.sections[14]
    }

    /// The layout of a new zone.
    pub(crate) fn plan(maxima: &Maxima) -> Result<Layout, ZoneError> {
        let over =
            |what, wanted: u32, maximum: u32| Err(ZoneError::OverMaximum { what, wanted: wanted as usize, maximum });
        if maxima.slots > SLOTS_MAX {
            return over("process slots (three a worker)", maxima.slots, SLOTS_MAX);
        }
        if maxima.flights > FLIGHTS_MAX {
            return over("recorded connections of a worker", maxima.flights, FLIGHTS_MAX);
        }
        if let Some(kind) = Kind::ALL.into_iter().find(|kind| maxima.of(*kind) > OBJECTS_MAX) {
            return over(kind.plural(), maxima.of(kind), OBJECTS_MAX);
        }
        let slots = u64::from(maxima.slots);
        let objects = Kind::ALL.map(|kind| u64::from(maxima.of(kind)));
        let series: u64 = objects[Kind::Route as usize..].iter().sum();
        // count, stride, record
        let mut shapes = vec![
            (1, 2048, master::WORDS as u64 * 8),
            (slots, 128, slot::WORDS as u64 * 8),
            (slots, 256, record::PROCESS_BYTES),
            (objects[Kind::Server as usize], 64, 8),
        ];
        shapes.extend(objects.map(|count| (count, 256, object::WORDS as u64 * 8)));
        shapes.extend(Kind::ALL.map(|kind| {
            let stride = if kind == Kind::Server { 256 } else { 128 };
            (objects[kind as usize] * slots, stride, record::bytes(kind))
        }));
        shapes.push((slots * series, 62 * 128, histogram::WORDS as u64 * 8));
        shapes.push((slots * u64::from(maxima.flights), flight::STRIDE_BYTES, flight::WORDS as u64 * 8));
        shapes.push((quarantine::BANS_MAX as u64, 128, quarantine::WORDS as u64 * 8));

        let mut layout = Layout { bytes: HEADER_BYTES, ..Layout::default() };
        for (place, (count, stride, record)) in layout.sections.iter_mut().zip(shapes) {
            *place = Section { offset: layout.bytes, stride, count, record };
            layout.bytes = place.at(count).next_multiple_of(PAGE);
        }
        Ok(layout)
    }

    /// This layout, written by another minor version, as this one uses it: records reach as far as both know, or as the
    /// room between them allows.
    ///
    /// # Errors
    /// The number of a section that this version needs and that has no room for its records.
    pub(crate) fn grown(&self) -> Result<Layout, u64> {
        let small = Maxima { slots: 1, listeners: 1, routes: 1, upstreams: 1, servers: 1, flights: 1 };
        let Ok(own) = Layout::plan(&small) else { return Err(0) };
        let mut grown = self.clone();
        for ((id, section), own) in (1u64..).zip(&mut grown.sections).zip(&own.sections) {
            if section.stride > 0 && own.record > section.stride {
                return Err(id);
            }
            section.record = section.record.max(own.record).min(section.stride);
        }
        Ok(grown)
    }

    /// The words of header and directory that follow from the layout: offset and value.
    pub(crate) fn words(&self) -> Vec<(u64, u64)> {
        let mut words = vec![
            (header::MAGIC * 8, MAGIC),
            (header::VERSION * 8, version(MINOR)),
            (header::LENGTH * 8, self.bytes),
            (header::SECTIONS * 8, SECTIONS as u64),
        ];
        words.extend(self.directory());
        words
    }

    /// The words of the directory, of sections that the file has: offset and value.
    pub(crate) fn directory(&self) -> Vec<(u64, u64)> {
        let mut words = Vec::new();
        for (index, section) in (0u64..).zip(&self.sections).filter(|(_, section)| section.stride > 0) {
            let entry = [index + 1, SECTION_VERSION, section.offset, section.stride, section.count, section.record];
            let at = DIRECTORY_AT + index * ENTRY_BYTES;
            words.extend((0u64..).zip(entry).map(|(word, value)| (at + word * 8, value)));
        }
        words
    }

    /// The layout of an existing zone, and its minor version.
    ///
    /// # Errors
    /// When the file is none of ours, or cannot hold what it says it holds.
    pub(crate) fn read(source: &dyn Source) -> Result<(Layout, u32), Damage> {
        let length = source.length()?;
        if length < 8 || source.word(0)? != MAGIC {
            return Err(Damage::Foreign);
        }
        if length < HEADER_BYTES {
            return Err(Damage::Truncated { bytes: length, needed: HEADER_BYTES });
        }
        let version = source.word(header::VERSION * 8)?;
        if version >> 32 != u64::from(major()) {
            return Err(Damage::OtherMajor(version >> 32));
        }
        let bytes = source.word(header::LENGTH * 8)?;
        if bytes > length {
            return Err(Damage::Truncated { bytes: length, needed: bytes });
        }
        let sections = source.word(header::SECTIONS * 8)?;
        if sections > SECTIONS_MAX {
            return Err(Damage::Corrupt(format!("its directory claims {sections} sections")));
        }
        let mut layout = Layout { bytes, ..Layout::default() };
        for index in 0..sections {
            layout.read_entry(source, DIRECTORY_AT + index * ENTRY_BYTES)?;
        }
        for kind in Kind::ALL {
            let (objects, cells) = (layout.objects(kind).count, layout.cells(kind).count);
            if cells != objects * layout.slots().count {
                return Err(Damage::Corrupt(format!("{objects} {} do not go with {cells} cells", kind.plural())));
            }
        }
        Ok((layout, u32::try_from(version & u64::from(u32::MAX)).unwrap_or(u32::MAX)))
    }

    fn read_entry(&mut self, source: &dyn Source, at: u64) -> Result<(), Damage> {
        let mut entry = [0; 6];
        source.words(at, &mut entry)?;
        let [id, version, offset, stride, count, record] = entry;
        let index = usize::try_from(id.wrapping_sub(1)).unwrap_or(usize::MAX);
        if version != SECTION_VERSION || index >= SECTIONS {
            return Ok(());
        }
        let objects = u64::from(OBJECTS_MAX);
        let most = match index {
            0 => 1,
            1 | 2 => u64::from(SLOTS_MAX),
            3..8 => objects,
            8..=11 => objects * u64::from(SLOTS_MAX),
            12 => u64::MAX,
            13 => u64::from(FLIGHTS_MAX) * u64::from(SLOTS_MAX),
            _ => quarantine::BANS_MAX as u64,
        };
        let end = stride.checked_mul(count).and_then(|length| length.checked_add(offset));
        let aligned = (offset | stride | record) % 8 == 0;
        let shaped = aligned && record <= stride && stride <= STRIDE_BYTES_MAX && (stride > 0 || count == 0);
        if !shaped || count > most || end.is_none_or(|end| end > self.bytes) {
            return Err(Damage::Corrupt(format!("section {id} does not fit in the file")));
        }
        self.sections[index] = Section { offset, stride, count, record };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(layout: &Layout) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(layout.bytes).unwrap()];
        for (offset, value) in layout.words() {
            let at = usize::try_from(offset).unwrap();
            bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }

    const SMALL: Maxima = Maxima { slots: 3, listeners: 1, routes: 2, upstreams: 1, servers: 1, flights: 2 };

    #[test]
    fn what_was_planned_is_read_back() {
        let layout = Layout::plan(&SMALL).unwrap();
        assert_eq!(Layout::read(&&image(&layout)[..]).unwrap(), (layout, MINOR));
    }

    #[test]
    fn every_worker_has_its_own_cache_lines() {
        let layout = Layout::plan(&Maxima::default()).unwrap();
        let sections = Kind::ALL.map(|kind| *layout.cells(kind));
        let own = [layout.slots(), layout.processes(), layout.histograms(), layout.flights()];
        for section in sections.iter().chain(own) {
            assert_eq!((section.offset % 128, section.stride % 128), (0, 0));
            assert!(section.record <= section.stride);
        }
    }

    #[test]
    fn sizes_beyond_reason_are_refused() {
        let maxima = Maxima { slots: SLOTS_MAX + 1, ..Maxima::default() };
        assert!(matches!(Layout::plan(&maxima), Err(ZoneError::OverMaximum { maximum: SLOTS_MAX, .. })));
        assert!(Layout::plan(&Maxima { routes: u32::MAX, ..Maxima::default() }).is_err());
        assert!(Layout::plan(&Maxima { flights: FLIGHTS_MAX + 1, ..Maxima::default() }).is_err());
        assert!(Layout::plan(&Maxima::for_workers(1024).with_connections(u32::MAX)).is_ok());
    }

    #[test]
    fn a_word_of_the_head_that_lies_is_an_error_or_is_harmless() {
        let whole = image(&Layout::plan(&SMALL).unwrap());
        for at in (0..1024).step_by(8) {
            for value in [0, 1, 7, 8, 1 << 20, 1 << 32, 1 << 63, u64::MAX, u64::MAX - 7] {
                let mut bytes = whole.clone();
                bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
                if let Ok((layout, _)) = Layout::read(&&bytes[..]) {
                    for section in layout.sections {
                        assert!(section.at(section.count) <= bytes.len() as u64);
                    }
                }
            }
        }
    }
}
