//! Slots: which process is where, from the moment before its fork to the one after its exit was reaped.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use super::cell::{State, publish, store};
use super::field::Record;
use super::layout::{Kind, slot};
use super::record::{ProcessCells, gauges};
use super::{Role, Zone, ZoneError};
use crate::clock::{SECOND_NS, monotonic_ns};
use crate::ident::{Generation, ProcessId, Seat, Slot};

/// A worker whose loop has not turned for longer has stopped serving its seat.
pub const STALE_AFTER_NS: u64 = SECOND_NS;

impl Zone {
    /// A slot for a process about to be forked; a worker gets cells for all that is published. Master only.
    ///
    /// # Errors
    /// When all slots are taken, or there is no room for its histograms and connection records; then nothing has changed.
    pub fn claim_slot(
        &'static self,
        role: Role,
        seat: Option<Seat>,
        generation: Generation,
    ) -> Result<Slot, ZoneError> {
        let book = &mut *self.book();
        let slots = u32::try_from(self.layout.slots().count).unwrap_or(u32::MAX);
        let full = ZoneError::OverMaximum { what: "processes", wanted: slots as usize + 1, maximum: slots };
        let slot = book.ledger.free_slot(slots).ok_or(full)?;
        book.ledger.claim(slot, role, generation);
        let objects = if role == Role::Worker { book.ledger.objects(slot) } else { Vec::new() };
        let wanted = objects.into_iter().map(|(kind, index)| (kind, index, slot));
        let room = if role == Role::Worker { self.reserve_flights(book, slot) } else { Ok(()) };
        match room.and_then(|()| self.reserve_blocks(book, wanted)) {
            Ok(missing) => self.hand_out_blocks(book, &missing),
            Err(error) => {
                book.ledger.release(slot);
                return Err(error);
            }
        }
        book.ledger.incarnation += 1;
        store(self.slot_word(slot, slot::PID), 0);
        store(self.slot_word(slot, slot::START_TIME), 0);
        store(self.slot_word(slot, slot::ROLE), role.word());
        store(self.slot_word(slot, slot::SEAT), seat.map_or(0, |seat| u64::from(seat.0) + 1));
        store(self.slot_word(slot, slot::GENERATION), generation.0);
        #[cfg(feature = "misbehave")]
        store(self.slot_word(slot, slot::LATER), generation.0);
        let cells = self.process(slot);
        cells.heartbeat.set(monotonic_ns());
        cells.state.set(State::Starting);
        publish(self.slot_word(slot, slot::CLAIMED), book.ledger.incarnation);
        Ok(slot)
    }

    /// Which life of the slot this is: a number that no other claim in this zone has had.
    #[must_use]
    pub fn incarnation(&'static self, slot: Slot) -> u64 {
        self.slot_word(slot, slot::CLAIMED).load(Ordering::Acquire)
    }

    /// Says who is in a claimed slot; its incarnation is the claim's. Master only, once the fork has told the pid.
    pub fn enter_slot(&'static self, slot: Slot, id: ProcessId) {
        store(self.slot_word(slot, slot::START_TIME), id.start_time);
        publish(self.slot_word(slot, slot::PID), u64::try_from(id.pid).unwrap_or(0));
    }

    /// Frees a slot and clears the gauges and connection records of the process that was in it; counters stay. Master only, after the exit
    /// was reaped, or when the fork failed.
    pub fn release_slot(&'static self, slot: Slot) {
        let book = &mut *self.book();
        self.clear(self.layout.processes().at(slot.0.into()), 1..ProcessCells::COUNTERS_AT);
        for kind in Kind::ALL {
            for index in 0..book.ledger.used(kind) {
                self.clear(self.cells_at(kind, index, slot), gauges(kind));
            }
        }
        self.clear_flights(slot);
        publish(self.slot_word(slot, slot::CLAIMED), 0);
        book.ledger.release(slot);
    }

    /// Whether a worker of `seat` turns its loop and takes connections, `now` being monotonic nanoseconds. Any process
    /// may ask.
    #[must_use]
    pub fn seat_is_served(&'static self, seat: Seat, now: u64) -> bool {
        let slots = (0u32..).take_while(|slot| u64::from(*slot) < self.layout.slots().count).map(Slot);
        slots.into_iter().any(|slot| {
            let says = |word, value| self.slot_word(slot, word).load(Ordering::Relaxed) == value;
            says(slot::SEAT, u64::from(seat.0) + 1)
                && !says(slot::CLAIMED, 0)
                && says(slot::ROLE, Role::Worker.word())
                && self.process(slot).state.get() == Some(State::Serving)
                && now.saturating_sub(self.process(slot).heartbeat.get()) < STALE_AFTER_NS
        })
    }

    fn slot_word(&'static self, slot: Slot, word: u64) -> &'static AtomicU64 {
        self.word(self.layout.slots(), slot.0.into(), word)
    }
}
