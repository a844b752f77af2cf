//! How a process that runs already learns where new objects are: a forked one has the master's book, this one is sent a
//! page of it.

#![forbid(unsafe_code)]

use super::layout::{Kind, slot};
use super::ledger::Bearing;
use super::{Zone, cell::store};
use crate::ident::{Generation, Slot};

impl Zone {
    /// Where the process in `slot` finds the objects of the last publication: a text for [`Zone::learn`]. Master only.
    #[must_use]
    pub fn bearings(&'static self, slot: Slot) -> Vec<u8> {
        let book = self.book();
        let mut text = book.ledger.publication.to_ne_bytes().to_vec();
        for Bearing { kind, index, block, key } in book.ledger.bearings(slot) {
            text.push(kind as u8);
            text.extend(index.to_ne_bytes());
            text.extend(block.map_or(0, |block| block + 1).to_ne_bytes());
            text.extend(u32::try_from(key.len()).unwrap_or(u32::MAX).to_ne_bytes());
            text.extend(key.as_bytes());
        }
        text
    }

    /// Finds objects where `bearings`, made by the master for this very `slot`, says that they are. Whoever may call it
    /// has them from the master: a wrong one would have cells of others written to.
    ///
    /// # Errors
    /// When it is not such a text; then nothing has changed.
    pub fn learn(&'static self, slot: Slot, bearings: &[u8]) -> Result<(), &'static str> {
        let (publication, found) = parse(bearings).ok_or("the bearings of the zone are cut or malformed")?;
        let fits = |bearing: &Bearing| {
            let blocks = self.layout.histograms().count;
            u64::from(bearing.index) < self.layout.objects(bearing.kind).count
                && bearing.block.is_none_or(|block| block < blocks)
        };
        if !found.iter().all(fits) {
            return Err("the bearings of the zone lead out of it");
        }
        self.book().ledger.learn(slot, publication, found);
        Ok(())
    }

    /// The process in `slot` works for `generation` from now on. Master only, while that is what was published last.
    pub fn promote(&'static self, slot: Slot, generation: Generation) {
        self.book().ledger.promote(generation);
        store(self.word(self.layout.slots(), slot.0.into(), slot::GENERATION), generation.0);
    }

    /// The process in `slot` has let go of every object that `generation` does not name: their places may be given to
    /// others. Master only.
    pub fn settle(&'static self, slot: Slot, generation: Generation) {
        self.book().ledger.settle(slot, generation);
    }
}

fn parse(mut text: &[u8]) -> Option<(u64, Vec<Bearing>)> {
    let publication = u64::from_ne_bytes(*text.split_off(..8)?.as_array()?);
    let mut found = Vec::new();
    while let [kind, rest @ ..] = text {
        text = rest;
        let kind = Kind::ALL.into_iter().find(|known| *known as u8 == *kind)?;
        let index = u32::from_ne_bytes(*text.split_off(..4)?.as_array()?);
        let block = u64::from_ne_bytes(*text.split_off(..8)?.as_array()?).checked_sub(1);
        let length = u32::from_ne_bytes(*text.split_off(..4)?.as_array()?);
        let key = String::from_utf8(text.split_off(..length as usize)?.to_vec()).ok()?;
        found.push(Bearing { kind, index, block, key });
    }
    Some((publication, found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::Seat;
    use crate::zone::{Catalog, Maxima, Role};

    fn catalog(routes: &[&str]) -> Catalog {
        let servers = vec!["s".to_owned()];
        let routes = routes.iter().map(ToString::to_string).collect();
        Catalog { listeners: vec![], routes, upstreams: vec![("app".into(), servers)] }
    }

    #[test]
    fn a_running_process_finds_what_was_published_after_it_began() {
        let maxima = Maxima { slots: 3, listeners: 1, routes: 4, upstreams: 1, servers: 2, flights: 1 };
        let zone = Zone::anonymous(maxima);
        zone.publish(&catalog(&["a", "b"])).unwrap();
        let slot = zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).unwrap();
        zone.route(slot, "b").unwrap().requests.add(3);
        // The other process's copy of the book, as a fork would leave it.
        let copy = Zone::anonymous(maxima);
        copy.publish(&catalog(&["a", "b"])).unwrap();
        assert_eq!(copy.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).unwrap(), slot);
        zone.publish(&catalog(&["b", "c"])).unwrap();
        assert!(copy.route(slot, "c").is_none());
        copy.learn(slot, &zone.bearings(slot)).unwrap();
        zone.promote(slot, Generation(2));
        for name in ["b", "c"] {
            assert!(copy.route(slot, name).is_some(), "{name}");
        }
        assert_eq!(zone.route(slot, "b").unwrap().requests.get(), 3);
        // The place of what is gone is free only when the process has let go of it.
        assert!(zone.publish(&catalog(&["b", "c", "d"])).is_err());
        zone.settle(slot, Generation(2));
        zone.publish(&catalog(&["b", "c", "d"])).unwrap();
    }

    #[test]
    fn other_texts_are_refused() {
        let zone = Zone::anonymous(Maxima { slots: 3, listeners: 1, routes: 2, upstreams: 1, servers: 1, flights: 1 });
        zone.publish(&catalog(&["a"])).unwrap();
        let slot = zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).unwrap();
        let good = zone.bearings(slot);
        for length in 0..good.len() {
            let at_an_end = parse(&good[..length]).is_some();
            assert_eq!(zone.learn(slot, &good[..length]).is_ok(), at_an_end, "{length}");
        }
        let mut far = good.clone();
        far[9..13].fill(0x7f);
        assert!(zone.learn(slot, &far).is_err());
        let mut unknown = good;
        unknown[8] = 9;
        assert!(zone.learn(slot, &unknown).is_err());
    }
}
