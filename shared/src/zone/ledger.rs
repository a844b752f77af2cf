//! The master's own book of what is where in the zone.
//!
//! Workers can write to the zone, so the master believes none of it: names, indexes, blocks and claims are decided
//! here, in private memory, and only written out. A forked worker inherits the book as it stood, which is how it finds
//! its cells.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::catalog::Entry;
use super::error::ZoneError;
use super::layout::Kind;
use super::role::Role;
use crate::ident::{Generation, Slot};

#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// The last finished publication; the first is 1.
    pub(super) publication: u64,
    /// How many claims of slots there were.
    pub(super) incarnation: u64,
    /// How many blocks of the pool were ever in use.
    pub(super) blocks: u64,
    /// Those of them that nobody owns: only a book that was rebuilt knows of any.
    gaps: Vec<u64>,
    tables: [Table; 4],
    claims: BTreeMap<Slot, Claim>,
    /// The publication that was out when a generation got its first process.
    generations: BTreeMap<Generation, u64>,
}

/// The objects of one kind.
#[derive(Debug, Default)]
struct Table {
    rows: Vec<Row>,
    by_key: BTreeMap<String, u32>,
}

#[derive(Debug, Default)]
struct Row {
    key: String,
    /// The last publication that named it.
    named: u64,
    /// Its histogram blocks. They stay with the index when it changes hands.
    blocks: BTreeMap<Slot, u64>,
}

/// Who is in a slot.
#[derive(Debug, Clone, Copy)]
struct Claim {
    role: Role,
    /// The oldest publication whose objects it may hold.
    publication: u64,
}

/// A row as another master left it: input, as workers can write there.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) kind: Kind,
    pub(super) index: u32,
    /// The last publication that named it; zero for an index that is free.
    pub(super) named: u64,
    pub(super) key: String,
    pub(super) blocks: Vec<(Slot, u64)>,
}

/// Where an object goes.
#[derive(Debug)]
pub(super) struct Placement {
    pub(super) entry: Entry,
    pub(super) index: u32,
    /// The index of a server's upstream, zero for all else.
    pub(super) parent: u32,
    pub(super) ground: Ground,
}

/// Where a process finds an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bearing {
    pub(super) kind: Kind,
    pub(super) index: u32,
    /// The histogram's, if it has one.
    pub(super) block: Option<u64>,
    pub(super) key: String,
}

/// What an index held before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ground {
    /// This very object.
    Kept,
    /// Nothing, ever.
    Virgin,
    /// Another object, which no living process knows.
    Reused,
}

impl Ledger {
    /// The book of a master that takes over: `rows`, by rising index in each kind, and who is in which slot. What
    /// contradicts itself is not believed: an object whose name another one has is forgotten, and so is a block of the
    /// `blocks_max` that has an owner already. Of what a process may hold nothing is known: it may be all there is.
    pub(super) fn rebuilt(
        publication: u64,
        incarnation: u64,
        blocks_max: u64,
        rows: Vec<Found>,
        claims: &[(Slot, Role)],
    ) -> Ledger {
        let mut ledger = Ledger { publication, incarnation, ..Ledger::default() };
        let mut owned = BTreeSet::new();
        for Found { kind, index, named, key, blocks } in rows {
            let table = &mut ledger.tables[kind as usize];
            table.rows.resize_with(index as usize + 1, Row::default);
            let blocks = blocks.into_iter().filter(|(_, block)| *block < blocks_max && owned.insert(*block)).collect();
            let is_known = named != 0 && !table.by_key.contains_key(&key);
            if is_known {
                table.by_key.insert(key.clone(), index);
            }
            let (key, named) = if is_known { (key, named.min(publication)) } else { (String::new(), 0) };
            table.rows[index as usize] = Row { key, named, blocks };
        }
        ledger.blocks = owned.last().map_or(0, |last| last + 1);
        ledger.gaps = (0..ledger.blocks).filter(|block| !owned.contains(block)).collect();
        ledger.claims = claims.iter().map(|(slot, role)| (*slot, Claim { role: *role, publication: 1 })).collect();
        ledger
    }

    /// What this book knows better than one that was rebuilt: since when the processes in `slots`, and those of each
    /// generation, know their objects.
    pub(super) fn remember(&mut self, slots: &[Slot], earlier: &Ledger) {
        for slot in slots {
            if let (Some(claim), Some(known)) = (self.claims.get_mut(slot), earlier.claims.get(slot)) {
                *claim = *known;
            }
        }
        self.generations.clone_from(&earlier.generations);
    }

    /// Where every entry goes. Decides, and changes nothing.
    ///
    /// # Errors
    /// When a table is full.
    pub(super) fn plan(&self, entries: Vec<Entry>, maximum: impl Fn(Kind) -> u32) -> Result<Vec<Placement>, ZoneError> {
        let wanted = Kind::ALL.map(|kind| entries.iter().filter(|entry| entry.kind == kind).count());
        let mut kept = Kind::ALL.map(|kind| vec![false; self.tables[kind as usize].rows.len()]);
        for entry in &entries {
            if let Some(index) = self.index(entry.kind, &entry.key) {
                kept[entry.kind as usize][index as usize] = true;
            }
        }
        let mut free = Kind::ALL.map(|kind| self.free(kind, &kept[kind as usize]).into_iter());
        let mut next = Kind::ALL.map(|kind| self.used(kind));
        let mut upstream = 0;
        let mut plan = Vec::with_capacity(entries.len());
        for entry in entries {
            let kind = entry.kind;
            let (index, ground) = if let Some(index) = self.index(kind, &entry.key) {
                (index, Ground::Kept)
            } else if let Some(index) = free[kind as usize].next() {
                (index, Ground::Reused)
            } else {
                next[kind as usize] += 1;
                (next[kind as usize] - 1, Ground::Virgin)
            };
            if index >= maximum(kind) {
                let (what, wanted) = (kind.plural(), wanted[kind as usize]);
                return Err(ZoneError::OverMaximum { what, wanted, maximum: maximum(kind) });
            }
            if kind == Kind::Upstream {
                upstream = index;
            }
            let parent = if kind == Kind::Server { upstream } else { 0 };
            plan.push(Placement { entry, index, parent, ground });
        }
        Ok(plan)
    }

    /// Makes `plan` the next publication.
    pub(super) fn commit(&mut self, plan: &[Placement]) {
        self.publication += 1;
        for placed in plan {
            let table = &mut self.tables[placed.entry.kind as usize];
            let index = placed.index as usize;
            if table.rows.len() <= index {
                table.rows.resize_with(index + 1, Row::default);
            }
            let row = &mut table.rows[index];
            if placed.ground != Ground::Kept {
                table.by_key.remove(&row.key);
                row.key.clone_from(&placed.entry.key);
                table.by_key.insert(row.key.clone(), placed.index);
            }
            row.named = self.publication;
        }
    }

    /// The index of an object that the process in `slot` may use.
    pub(super) fn find(&self, slot: Slot, kind: Kind, key: &str) -> Option<u32> {
        let publication = self.claims.get(&slot)?.publication;
        let index = self.index(kind, key)?;
        (self.tables[kind as usize].rows[index as usize].named >= publication).then_some(index)
    }

    /// How many indexes of `kind` were ever used.
    pub(super) fn used(&self, kind: Kind) -> u32 {
        u32::try_from(self.tables[kind as usize].rows.len()).unwrap_or(u32::MAX)
    }

    /// The lowest free slot below `slots`.
    pub(super) fn free_slot(&self, slots: u32) -> Option<Slot> {
        (0..slots).map(Slot).find(|slot| !self.claims.contains_key(slot))
    }

    /// Puts a process into a slot.
    pub(super) fn claim(&mut self, slot: Slot, role: Role, generation: Generation) {
        // A worker of an older generation, started again after a newer one was published, uses the older one's objects.
        let publication = *self.generations.entry(generation).or_insert(self.publication);
        self.claims.insert(slot, Claim { role, publication });
    }

    /// Takes it out.
    pub(super) fn release(&mut self, slot: Slot) {
        self.claims.remove(&slot);
    }

    /// The slots with a worker in them.
    pub(super) fn workers(&self) -> Vec<Slot> {
        self.claims.iter().filter(|(_, claim)| claim.role == Role::Worker).map(|(slot, _)| *slot).collect()
    }

    /// The objects that the process in `slot` may use.
    pub(super) fn objects(&self, slot: Slot) -> Vec<(Kind, u32)> {
        let publication = self.claims.get(&slot).map_or(u64::MAX, |claim| claim.publication);
        let of = |kind| (0..).zip(&self.tables[kind as usize].rows).map(move |(index, row)| (kind, index, row.named));
        Kind::ALL
            .into_iter()
            .flat_map(of)
            .filter(|(.., named)| *named >= publication)
            .map(|(kind, index, _)| (kind, index))
            .collect()
    }

    /// Every object of the last publication, as the process in `slot` finds it.
    pub(super) fn bearings(&self, slot: Slot) -> Vec<Bearing> {
        let of = |kind: Kind| {
            let rows = (0..).zip(&self.tables[kind as usize].rows).filter(|(_, row)| row.named == self.publication);
            rows.map(move |(index, row)| Bearing {
                kind,
                index,
                block: row.blocks.get(&slot).copied(),
                key: row.key.clone(),
            })
        };
        Kind::ALL.into_iter().flat_map(of).collect()
    }

    /// Takes over what another process's book says of a publication, for the process in `slot`.
    pub(super) fn learn(&mut self, slot: Slot, publication: u64, bearings: Vec<Bearing>) {
        self.publication = publication;
        for Bearing { kind, index, block, key } in bearings {
            let table = &mut self.tables[kind as usize];
            if table.rows.len() <= index as usize {
                table.rows.resize_with(index as usize + 1, Row::default);
            }
            let row = &mut table.rows[index as usize];
            if row.key != key {
                if table.by_key.get(&row.key) == Some(&index) {
                    table.by_key.remove(&row.key);
                }
                row.key.clone_from(&key);
                table.by_key.insert(key, index);
            }
            row.named = publication;
            if let Some(block) = block {
                row.blocks.insert(slot, block);
            }
        }
    }

    /// The objects of `generation` are those of the last publication.
    pub(super) fn promote(&mut self, generation: Generation) {
        self.generations.entry(generation).or_insert(self.publication);
    }

    /// The process in `slot` holds no object any more that `generation` does not name.
    pub(super) fn settle(&mut self, slot: Slot, generation: Generation) {
        if let (Some(claim), Some(publication)) = (self.claims.get_mut(&slot), self.generations.get(&generation)) {
            claim.publication = claim.publication.max(*publication);
        }
    }

    /// The block of a histogram.
    pub(super) fn block(&self, kind: Kind, index: u32, slot: Slot) -> Option<u64> {
        self.tables[kind as usize].rows.get(index as usize)?.blocks.get(&slot).copied()
    }

    /// How many blocks will have been in use once `more` are handed out.
    pub(super) fn blocks_with(&self, more: usize) -> u64 {
        self.blocks + more.saturating_sub(self.gaps.len()) as u64
    }

    /// Hands out the next block of the pool, for good.
    pub(super) fn take_block(&mut self, kind: Kind, index: u32, slot: Slot) -> u64 {
        let block = self.gaps.pop().unwrap_or(self.blocks);
        self.blocks = self.blocks.max(block + 1);
        self.tables[kind as usize].rows[index as usize].blocks.insert(slot, block);
        block
    }

    /// The key of the object with this index: what a living process may still use, or what was there last.
    pub(super) fn key(&self, kind: Kind, index: u32) -> Option<&str> {
        Some(self.tables[kind as usize].rows.get(index as usize)?.key.as_str())
    }

    fn index(&self, kind: Kind, key: &str) -> Option<u32> {
        self.tables[kind as usize].by_key.get(key).copied()
    }

    /// Indexes whose object is out of the catalog, and was so already when the longest-lived worker began.
    fn free(&self, kind: Kind, kept: &[bool]) -> Vec<u32> {
        let workers = self.claims.values().filter(|claim| claim.role == Role::Worker);
        let oldest = workers.map(|claim| claim.publication).min().unwrap_or(self.publication);
        let rows = (0..).zip(&self.tables[kind as usize].rows).zip(kept);
        rows.filter(|((_, row), kept)| !**kept && row.named < oldest).map(|((index, _), _)| index).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalog::Catalog;
    use super::*;

    fn publish(ledger: &mut Ledger, routes: &[&str], maximum: u32) -> Result<Vec<(u32, Ground)>, ZoneError> {
        let routes = routes.iter().map(ToString::to_string).collect();
        let plan = ledger.plan(Catalog { routes, ..Catalog::default() }.entries()?, |_| maximum)?;
        ledger.commit(&plan);
        Ok(plan.into_iter().skip(1).map(|placed| (placed.index, placed.ground)).collect())
    }

    #[test]
    fn an_index_is_reused_only_when_nobody_alive_held_it() {
        use Ground::{Kept, Reused, Virgin};
        let mut ledger = Ledger::default();
        assert_eq!(publish(&mut ledger, &["a", "b"], 9).unwrap(), [(1, Virgin), (2, Virgin)]);
        ledger.claim(Slot(0), Role::Worker, Generation(1));
        assert_eq!(publish(&mut ledger, &["b", "c"], 9).unwrap(), [(2, Kept), (3, Virgin)]);
        ledger.claim(Slot(1), Role::Worker, Generation(2));
        assert_eq!(ledger.find(Slot(0), Kind::Route, "a"), Some(1));
        assert_eq!(ledger.find(Slot(1), Kind::Route, "a"), None);
        assert_eq!(publish(&mut ledger, &["b", "c", "d"], 9).unwrap()[2], (4, Virgin));
        ledger.release(Slot(0));
        assert_eq!(publish(&mut ledger, &["b", "e"], 9).unwrap(), [(2, Kept), (1, Reused)]);
        assert_eq!(ledger.find(Slot(1), Kind::Route, "c"), Some(3));
        // Back in time for its old index and its counters.
        assert_eq!(publish(&mut ledger, &["c"], 9).unwrap(), [(3, Kept)]);
    }

    #[test]
    fn a_full_table_changes_nothing() {
        let mut ledger = Ledger::default();
        publish(&mut ledger, &["a"], 2).unwrap();
        assert!(matches!(
            publish(&mut ledger, &["b", "c"], 2),
            Err(ZoneError::OverMaximum { what: "routes", wanted: 3, maximum: 2 })
        ));
        assert_eq!((ledger.publication, ledger.used(Kind::Route)), (1, 2));
    }

    #[test]
    fn a_worker_started_again_keeps_the_objects_of_its_generation() {
        let mut ledger = Ledger::default();
        publish(&mut ledger, &["a"], 9).unwrap();
        ledger.claim(Slot(0), Role::Worker, Generation(1));
        publish(&mut ledger, &["b"], 9).unwrap();
        ledger.release(Slot(0));
        ledger.claim(Slot(0), Role::Worker, Generation(1));
        assert_eq!(ledger.find(Slot(0), Kind::Route, "a"), Some(1));
        assert_eq!(ledger.objects(Slot(0)).len(), 3);
    }
}
