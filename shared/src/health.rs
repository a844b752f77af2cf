//! The health word: whether a server may be sent traffic, agreed by every process through one atomic.
//!
//! ```text
//!  63                32 31          16 15         1 0
//! +--------------------+--------------+------------+--+
//! | changes            | reserved (0) | streak     |D |
//! +--------------------+--------------+------------+--+
//! ```
//! - `D`, bit 0: the server is down. Zero, the word of a server just published, means up.
//! - `streak`, bits 1 to 15: probes in a row that contradict `D`; it stops at its maximum, and falls to zero when `D` flips or a probe agrees with it.
//! - `changes`, bits 32 to 63: how often `D` has flipped, wrapping, so that a reader sees two flips between two looks.
//!
//! Any process may step the word; a step is one compare-and-swap, so a writer killed at any point leaves a whole word and nobody has to repair it.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

const DOWN: u64 = 1;
const STREAK_SHIFT: u32 = 1;
const STREAK_MAX: u64 = 0x7fff;
const CHANGES_SHIFT: u32 = 32;

/// The word of a server nobody has said anything about: up.
pub const INITIAL: u64 = 0;

/// What was learnt about a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A probe passed; `rise` such in a row (at least 1) bring a server up.
    Passed {
        /// How many in a row are needed.
        rise: u16,
    },
    /// A probe failed; `fall` such in a row (at least 1) take a server down.
    Failed {
        /// How many in a row are needed.
        fall: u16,
    },
}

/// Whether the server may be sent traffic.
#[must_use]
pub fn is_up(word: u64) -> bool {
    word & DOWN == 0
}

/// How often the server has changed between up and down, modulo 2^32.
#[must_use]
pub fn changes(word: u64) -> u64 {
    word >> CHANGES_SHIFT
}

/// The word after `event`.
#[must_use]
pub fn step(word: u64, event: Event) -> u64 {
    let (contradicts, needed) = match event {
        Event::Passed { rise } => (!is_up(word), rise),
        Event::Failed { fall } => (is_up(word), fall),
    };
    let kept = word & (DOWN | u64::MAX << CHANGES_SHIFT);
    if !contradicts {
        return kept;
    }
    let streak = (word >> STREAK_SHIFT & STREAK_MAX).saturating_add(1).min(STREAK_MAX);
    if streak < u64::from(needed).min(STREAK_MAX) {
        return kept | streak << STREAK_SHIFT;
    }
    (kept ^ DOWN).wrapping_add(1 << CHANGES_SHIFT)
}

/// Steps the shared word; true when this very call changed the server between up and down.
pub fn apply(word: &AtomicU64, event: Event) -> bool {
    let mut seen = word.load(Ordering::Relaxed);
    loop {
        let next = step(seen, event);
        // The word guards no other memory, hence relaxed.
        match word.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return is_up(seen) != is_up(next),
            Err(now) => seen = now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASS: Event = Event::Passed { rise: 2 };
    const FAIL: Event = Event::Failed { fall: 3 };

    #[test]
    fn hysteresis() {
        // events, up afterwards, changes afterwards
        let table: &[(&[Event], bool, u64)] = &[
            (&[], true, 0),
            (&[FAIL, FAIL], true, 0),
            (&[FAIL, FAIL, PASS, FAIL, FAIL], true, 0),
            (&[FAIL, FAIL, FAIL], false, 1),
            (&[FAIL, FAIL, FAIL, PASS], false, 1),
            (&[FAIL, FAIL, FAIL, PASS, FAIL, PASS], false, 1),
            (&[FAIL, FAIL, FAIL, PASS, PASS], true, 2),
            (&[Event::Failed { fall: 0 }], false, 1),
        ];
        for (events, up, flips) in table {
            let word = events.iter().fold(INITIAL, |word, event| step(word, *event));
            assert_eq!((is_up(word), changes(word)), (*up, *flips), "{events:?}");
        }
    }

    #[test]
    fn a_streak_never_leaves_its_bits() {
        let word = (0..70_000).fold(INITIAL, |word, _| step(word, Event::Failed { fall: u16::MAX }));
        assert_eq!(word & 0xffff_0000, 0);
        assert_eq!(changes(u64::MAX << 32 | DOWN), 0xffff_ffff);
        assert_eq!(changes(step(u64::MAX << 32 | DOWN, Event::Passed { rise: 1 })), 0);
    }

    #[test]
    fn apply_tells_who_flipped_it() {
        let word = AtomicU64::new(INITIAL);
        assert!(!apply(&word, Event::Failed { fall: 2 }));
        assert!(apply(&word, Event::Failed { fall: 2 }));
        assert!(!apply(&word, Event::Failed { fall: 2 }));
    }
}
