//! Deadlines: a hierarchical wheel of six levels of 64 slots with a tick of a millisecond.
//!
//! Most deadlines are set and never come. So setting one is a store: the entry stays linked where it was, and only
//! when it comes up too early is it linked anew. Entries are indexes into arrays; nothing is allocated once the
//! arrays have grown to the number of timers alive.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::clock::{self, MILLISECOND};

const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 6;
/// How many of a tick's bits all levels together tell apart.
const WHEEL_BITS: u32 = SLOT_BITS * 6;
const NONE: u32 = u32::MAX;
/// The furthest tick from the wheel's present that it can hold: about two years. A later one is linked there.
const HORIZON: u64 = (1 << WHEEL_BITS) - (1 << (WHEEL_BITS - SLOT_BITS));

/// The time limit of an operation has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Elapsed;

/// A place in the wheel, kept by a task for as long as it lives and used for one wait at a time.
pub(crate) struct Timer {
    entry: u32,
}

impl Timer {
    /// Takes a place in this thread's wheel.
    pub(crate) fn new() -> Timer {
        Timer { entry: WHEEL.with_borrow_mut(Wheel::take_entry) }
    }

    /// Awaits `future` until the clock reaches `due` (nanoseconds; `u64::MAX` waits for ever).
    ///
    /// # Errors
    /// [`Elapsed`] when the time came first; the future is dropped.
    pub(crate) async fn until<F: Future>(&self, due: u64, future: F) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll_due(due, cx).map(|()| Err(Elapsed)),
        })
        .await
    }

    /// Ready once the clock has reached `due`.
    pub(crate) fn poll_due(&self, due: u64, cx: &Context<'_>) -> Poll<()> {
        if clock::now() >= due {
            return Poll::Ready(());
        }
        WHEEL.with_borrow_mut(|wheel| wheel.set(self.entry, due, cx.waker()));
        Poll::Pending
    }

    /// Waits until the clock reaches `due`.
    pub(crate) async fn sleep(&self, due: u64) {
        std::future::poll_fn(|cx| self.poll_due(due, cx)).await;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let entry = self.entry;
        let _ = WHEEL.try_with(|wheel| wheel.borrow_mut().give_back(entry));
    }
}

/// Wakes the tasks whose time has come.
pub(crate) fn fire(now: u64) {
    // Woken outside the borrow: a waker may drop a task, and with it a timer.
    let mut due = WHEEL.with_borrow_mut(|wheel| {
        wheel.advance(now);
        std::mem::take(&mut wheel.due)
    });
    for waker in due.drain(..) {
        waker.wake();
    }
    WHEEL.with_borrow_mut(|wheel| {
        if wheel.due.is_empty() {
            wheel.due = due;
        }
    });
}

/// No deadline comes before this time.
pub(crate) fn next_due() -> Option<u64> {
    WHEEL.with_borrow(Wheel::next_due)
}

thread_local! {
    static WHEEL: RefCell<Wheel> = RefCell::new(Wheel::default());
}

struct Entry {
    /// Nanoseconds; `u64::MAX` when it is off.
    due: u64,
    /// The tick that it is linked at, while `linked`.
    tick: u64,
    linked: bool,
    next: u32,
    previous: u32,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Wheel {
    entries: Vec<Entry>,
    free: Vec<u32>,
    levels: Box<[Level; LEVELS]>,
    /// Ticks before this one have been fired.
    present: u64,
    due: Vec<Waker>,
}

struct Level {
    /// Bit n is set when slot n holds an entry.
    occupied: u64,
    heads: [u32; SLOTS],
}

impl Default for Level {
    fn default() -> Level {
        Level { occupied: 0, heads: [NONE; SLOTS] }
    }
}

impl Wheel {
    fn take_entry(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry { due: u64::MAX, tick: 0, linked: false, next: NONE, previous: NONE, waker: None });
            u32::try_from(self.entries.len() - 1).expect("timers are fewer than 2^32")
        })
    }

    fn give_back(&mut self, index: u32) {
        self.unlink(index);
        let entry = &mut self.entries[index as usize];
        entry.due = u64::MAX;
        entry.waker = None;
        self.free.push(index);
    }

    fn set(&mut self, index: u32, due: u64, waker: &Waker) {
        let tick = tick_after(due);
        let entry = &mut self.entries[index as usize];
        entry.due = due;
        match &entry.waker {
            Some(known) if known.will_wake(waker) => {}
            _ => entry.waker = Some(waker.clone()),
        }
        if due != u64::MAX && (!entry.linked || tick < entry.tick) {
            self.unlink(index);
            self.link(index, tick);
        }
    }

    fn link(&mut self, index: u32, tick: u64) {
        let tick = tick.clamp(self.present, self.present + HORIZON);
        let (level, slot) = self.place(tick);
        let level = &mut self.levels[level];
        let head = std::mem::replace(&mut level.heads[slot], index);
        level.occupied |= 1 << slot;
        if head != NONE {
            self.entries[head as usize].previous = index;
        }
        let entry = &mut self.entries[index as usize];
        (entry.tick, entry.linked, entry.next, entry.previous) = (tick, true, head, NONE);
    }

    fn unlink(&mut self, index: u32) {
        let Entry { tick, linked, next, previous, .. } = self.entries[index as usize];
        if !linked {
            return;
        }
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
        } else {
            // It heads its slot. Which slot that is follows from its tick and the present.
            let (level, slot) = self.place(tick);
            let level = &mut self.levels[level];
            debug_assert_eq!(level.heads[slot], index);
            level.heads[slot] = next;
            if next == NONE {
                level.occupied &= !(1 << slot);
            }
        }
        self.entries[index as usize].linked = false;
    }

    /// The level is that of the highest group of six bits in which `tick` differs from the present; the slot is that
    /// group. It stays the same until [`Wheel::advance`] enters the slot, which empties it.
    fn place(&self, tick: u64) -> (usize, usize) {
        let differing = (tick ^ self.present) | 1;
        let level = (((63 - differing.leading_zeros()) / SLOT_BITS) as usize).min(LEVELS - 1);
        (level, slot_of(tick, level))
    }

    /// The first tick at which something has to be done, and the level at which it is.
    fn next_stop(&self) -> Option<(u64, usize)> {
        let mut first = None;
        for (number, level) in self.levels.iter().enumerate() {
            if level.occupied == 0 {
                continue;
            }
            let shift = shift_of(number);
            let here = u32::try_from(self.present >> shift & (SLOTS as u64 - 1)).expect("six bits");
            let distance = u64::from(level.occupied.rotate_right(here).trailing_zeros());
            // On a higher level the entries' tick is known only to the slot: the slot's first tick is the stop.
            let tick = ((self.present >> shift) + distance) << shift;
            let tick = tick.max(self.present);
            if first.is_none_or(|(earlier, _)| tick <= earlier) {
                first = Some((tick, number));
            }
        }
        first
    }

    /// A lower bound, in nanoseconds.
    fn next_due(&self) -> Option<u64> {
        self.next_stop().map(|(tick, _)| tick.saturating_mul(MILLISECOND))
    }

    fn advance(&mut self, now: u64) {
        let target = now / MILLISECOND;
        while let Some((tick, level)) = self.next_stop().filter(|&(tick, _)| tick <= target) {
            let slot = slot_of(tick, level);
            let mut index = std::mem::replace(&mut self.levels[level].heads[slot], NONE);
            self.levels[level].occupied &= !(1 << slot);
            self.present = tick;
            while index != NONE {
                let entry = &mut self.entries[index as usize];
                let next = entry.next;
                entry.linked = false;
                if entry.due <= now {
                    entry.due = u64::MAX;
                    self.due.extend(entry.waker.take());
                } else if entry.due != u64::MAX {
                    let due = tick_after(entry.due);
                    self.link(index, due);
                }
                index = next;
            }
        }
        self.present = self.present.max(target);
    }
}

/// The bit at which a level's slots begin to count.
fn shift_of(level: usize) -> u32 {
    u32::try_from(level).expect("there are six levels") * SLOT_BITS
}

/// The slot of a level that a tick falls into.
fn slot_of(tick: u64, level: usize) -> usize {
    usize::try_from(tick >> shift_of(level) & (SLOTS as u64 - 1)).expect("six bits")
}

/// The first tick that is not before `due`.
fn tick_after(due: u64) -> u64 {
    due.div_ceil(MILLISECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::task::Wake;

    struct Count(AtomicU64);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Every timer fires, none early, none later than a tick after it is due, whatever the order of sets and advances.
    #[test]
    fn fires_when_due_and_not_before() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let mut wheel = Wheel::default();
            let mut now = random.u64(0..1 << 50);
            wheel.advance(now);
            let mut expected: Vec<(u32, u64, Arc<Count>)> = Vec::new();
            for _ in 0..50 {
                let index = wheel.take_entry();
                let count = Arc::new(Count(AtomicU64::new(0)));
                let waker = Waker::from(Arc::clone(&count));
                for _ in 0..random.u32(1..4) {
                    let bits = random.u32(1..45);
                    let due = now + random.u64(0..1 << bits);
                    wheel.set(index, due, &waker);
                    expected.retain(|(known, ..)| *known != index);
                    expected.push((index, due, Arc::clone(&count)));
                }
            }
            while let Some(next) = wheel.next_due() {
                let bits = random.u32(1..40);
                now = now.max(next) + random.u64(0..3) * random.u64(0..1 << bits);
                wheel.advance(now);
                wheel.due.drain(..).for_each(Waker::wake);
                for (_, due, count) in &expected {
                    let fired = count.0.load(Ordering::Relaxed);
                    assert!(fired == 0 || *due <= now, "early");
                    assert!(fired == 1 || due.div_ceil(MILLISECOND) > now / MILLISECOND, "late or twice");
                }
            }
            assert!(expected.iter().all(|(_, _, count)| count.0.load(Ordering::Relaxed) == 1));
        }
    }
}
