//! Publishing: objects get an index, memory and a name, in this order, so that whoever finds the name finds the rest.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::cell::{publish, store};
use super::layout::{Kind, Section, cells, master, object};
use super::ledger::{Ground, Placement};
use super::{Book, Catalog, Zone, ZoneError};
use crate::health;
use crate::ident::Slot;

/// Up to where each section, or a slot's share of one, has blocks in the file system, both by offset.
pub(super) type Reserved = BTreeMap<u64, u64>;

/// A histogram that has no block yet.
pub(super) type Missing = (Kind, u32, Slot);

impl Zone {
    /// Gives every object of `catalog` its place and its memory. Master only, before the processes that will use it
    /// are forked. What has kept its name keeps its counters.
    ///
    /// # Errors
    /// Over a maximum, without room, or for a bad name; then nothing has changed.
    pub fn publish(&'static self, catalog: &Catalog) -> Result<(), ZoneError> {
        let book = &mut *self.book();
        let maximum = |kind| u32::try_from(self.layout.objects(kind).count).unwrap_or(u32::MAX);
        let plan = book.ledger.plan(catalog.entries()?, maximum)?;
        self.reserve_objects(book, &plan)?;
        let workers = book.ledger.workers();
        let wanted =
            plan.iter().flat_map(|placed| workers.iter().map(move |slot| (placed.entry.kind, placed.index, *slot)));
        let missing = self.reserve_blocks(book, wanted)?;

        // From here on nothing fails.
        book.ledger.commit(&plan);
        for placed in &plan {
            self.write_object(book, placed);
        }
        self.hand_out_blocks(book, &missing);
        for kind in Kind::ALL {
            publish(self.master_word(master::USED + kind as u64), book.ledger.used(kind).into());
        }
        publish(self.master_word(master::PUBLICATION), book.ledger.publication);
        Ok(())
    }

    /// Reserves blocks for those of `wanted` that have none: what [`hand_out_blocks`](Zone::hand_out_blocks) is then owed.
    pub(super) fn reserve_blocks(
        &self,
        book: &mut Book,
        wanted: impl IntoIterator<Item = Missing>,
    ) -> Result<Vec<Missing>, ZoneError> {
        let has_none =
            |(kind, index, slot): &Missing| kind.has_histogram() && book.ledger.block(*kind, *index, *slot).is_none();
        let missing: Vec<Missing> = wanted.into_iter().filter(has_none).collect();
        let pool = self.layout.histograms();
        let blocks = book.ledger.blocks_with(missing.len());
        self.reserve(book, pool, blocks, "histograms")?;
        Ok(missing)
    }

    pub(super) fn hand_out_blocks(&'static self, book: &mut Book, missing: &[Missing]) {
        for (kind, index, slot) in missing {
            let block = book.ledger.take_block(*kind, *index, *slot);
            publish(self.map.word(self.cells_at(*kind, *index, *slot) + cells::HISTOGRAM * 8), block + 1);
        }
    }

    /// Gives the first `count` records of a section blocks of the file system.
    pub(super) fn reserve(
        &self,
        book: &mut Book,
        section: &Section,
        count: u64,
        what: &'static str,
    ) -> Result<(), ZoneError> {
        self.reserve_span(book, section.at(0), section.at(count), what)
    }

    /// Gives the connection records of a slot blocks of the file system.
    pub(super) fn reserve_flights(&self, book: &mut Book, slot: Slot) -> Result<(), ZoneError> {
        let (section, each) = (self.layout.flights(), u64::from(self.layout.flights_per_slot()));
        let (start, end) = (u64::from(slot.0) * each, (u64::from(slot.0) + 1) * each);
        self.reserve_span(book, section.at(start), section.at(end), "connection records")
    }

    /// Gives `[start, end)` blocks of the file system; a span is known by its start.
    fn reserve_span(&self, book: &mut Book, start: u64, end: u64, what: &'static str) -> Result<(), ZoneError> {
        let reserved = book.reserved.entry(start).or_insert(start);
        if end > *reserved {
            let bytes = end - *reserved;
            self.map.reserve(*reserved, end).map_err(|source| ZoneError::NoRoom { what, bytes, source })?;
            *reserved = end;
        }
        Ok(())
    }

    fn reserve_objects(&self, book: &mut Book, plan: &[Placement]) -> Result<(), ZoneError> {
        for kind in Kind::ALL {
            let indexes = plan.iter().filter(|placed| placed.entry.kind == kind).map(|placed| placed.index + 1);
            let count = u64::from(indexes.max().unwrap_or(0));
            self.reserve(book, self.layout.objects(kind), count, kind.plural())?;
            self.reserve(book, self.layout.cells(kind), count * self.layout.slots().count, kind.plural())?;
            if kind == Kind::Server {
                self.reserve(book, self.layout.health(), count, kind.plural())?;
            }
        }
        Ok(())
    }

    fn write_object(&'static self, book: &Book, placed: &Placement) {
        let (kind, index) = (placed.entry.kind, u64::from(placed.index));
        let section = self.layout.objects(kind);
        let named = self.word(section, index, object::NAMED);
        if placed.ground == Ground::Reused {
            publish(named, 0);
            self.clear_cells(book, kind, placed.index);
        }
        if placed.ground != Ground::Kept {
            let name = &placed.entry.name;
            store(self.word(section, index, object::PARENT), placed.parent.into());
            store(self.word(section, index, object::NAME_LENGTH), name.len() as u64);
            self.write_text(section.at(index) + object::NAME * 8, name);
        }
        publish(named, book.ledger.publication);
    }

    /// Makes an index as good as new; only its histogram blocks stay, emptied.
    fn clear_cells(&'static self, book: &Book, kind: Kind, index: u32) {
        for slot in (0u32..).take_while(|slot| u64::from(*slot) < self.layout.slots().count).map(Slot) {
            let record = self.layout.cells(kind).record;
            self.clear(self.cells_at(kind, index, slot), cells::HISTOGRAM + 1..record / 8);
            if let Some(block) = book.ledger.block(kind, index, slot) {
                self.clear(self.layout.histograms().at(block), 0..self.layout.histograms().record / 8);
            }
        }
        if kind == Kind::Server {
            store(self.word(self.layout.health(), index.into(), 0), health::INITIAL);
        }
    }
}
