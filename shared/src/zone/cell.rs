//! What a record is made of: single-writer words.
//!
//! A cell has one owner, who loads, adds and stores without a lock prefix; everybody else only reads. Every store to
//! the zone goes through [`store`] or [`publish`], so that a test can kill a writer between any two of them.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use super::histogram::{self, WORDS};

/// Something that happened, counted. It survives its owner: the next one goes on from where it stands.
#[derive(Debug, Clone, Copy)]
pub struct Counter(pub(super) &'static AtomicU64);

impl Counter {
    /// One more.
    #[inline]
    pub fn inc(self) {
        self.add(1);
    }

    /// `count` more.
    #[inline]
    pub fn add(self, count: u64) {
        store(self.0, self.get().wrapping_add(count));
    }

    /// The count so far.
    #[inline]
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How much there is now. Cleared by the master once its owner's exit was reaped.
#[derive(Debug, Clone, Copy)]
pub struct Gauge(pub(super) &'static AtomicU64);

impl Gauge {
    /// One more.
    #[inline]
    pub fn inc(self) {
        self.set(self.get().wrapping_add(1));
    }

    /// One less, not below zero.
    #[inline]
    pub fn dec(self) {
        self.set(self.get().saturating_sub(1));
    }

    /// Exactly `value`.
    #[inline]
    pub fn set(self, value: u64) {
        store(self.0, value);
    }

    /// What there is.
    #[inline]
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long things took, in nanoseconds, to within 6.25 %.
#[derive(Debug, Clone, Copy)]
pub struct Histogram(pub(super) &'static [AtomicU64; WORDS]);

impl Histogram {
    /// One more that took `nanoseconds`.
    #[inline]
    pub fn record(self, nanoseconds: u64) {
        Counter(&self.0[histogram::bucket(nanoseconds)]).inc();
        Counter(&self.0[histogram::SUM]).add(nanoseconds);
    }

    /// As many more as another histogram has, given by its sum and by the upper bound and the count of its buckets.
    pub(super) fn carry_in(self, sum: u64, buckets: &[[u64; 2]]) {
        for [bound, count] in buckets {
            Counter(&self.0[histogram::bucket(*bound)]).add(*count);
        }
        Counter(&self.0[histogram::SUM]).add(sum);
    }
}

/// What a process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Forked, not yet serving.
    Starting,
    /// Taking new work.
    Serving,
    /// Finishing what it has, taking nothing new.
    Draining,
    /// About to exit.
    Exiting,
}

impl State {
    const ALL: [State; 4] = [State::Starting, State::Serving, State::Draining, State::Exiting];

    /// The state written as `word`; `None` for a slot nobody is in and for states of a later version.
    #[must_use]
    pub fn from_word(word: u64) -> Option<State> {
        State::ALL.into_iter().find(|state| state.word() == word)
    }

    /// As it is shown.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Serving => "serving",
            State::Draining => "draining",
            State::Exiting => "exiting",
        }
    }

    pub(super) fn word(self) -> u64 {
        match self {
            State::Starting => 1,
            State::Serving => 2,
            State::Draining => 3,
            State::Exiting => 4,
        }
    }
}

/// The cell that says what a process is doing.
#[derive(Debug, Clone, Copy)]
pub struct StateCell(pub(super) &'static AtomicU64);

impl StateCell {
    /// From now on this.
    pub fn set(self, state: State) {
        store(self.0, state.word());
    }

    /// What was last said; `None` when nobody is in the slot.
    #[must_use]
    pub fn get(self) -> Option<State> {
        State::from_word(self.0.load(Ordering::Relaxed))
    }
}

/// A store that no other word depends on.
#[inline]
pub(super) fn store(word: &AtomicU64, value: u64) {
    #[cfg(test)]
    killpoint::pass();
    word.store(value, Ordering::Relaxed);
}

/// A store that says that all stores before it are done.
pub(super) fn publish(word: &AtomicU64, value: u64) {
    #[cfg(test)]
    killpoint::pass();
    word.store(value, Ordering::Release);
}

/// Where a test kills a writer.
#[cfg(test)]
pub(super) mod killpoint {
    use std::sync::atomic::{AtomicU64, Ordering};

    use nix::sys::signal::{Signal, raise};

    static STORES_LEFT: AtomicU64 = AtomicU64::new(u64::MAX);

    /// Kills this process before the store that follows the next `stores`.
    pub(in crate::zone) fn after(stores: u64) {
        STORES_LEFT.store(stores, Ordering::Relaxed);
    }

    pub(super) fn pass() {
        match STORES_LEFT.load(Ordering::Relaxed) {
            u64::MAX => {}
            0 => raise(Signal::SIGKILL).unwrap(),
            left => STORES_LEFT.store(left - 1, Ordering::Relaxed),
        }
    }
}
