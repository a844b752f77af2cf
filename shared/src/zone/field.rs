//! The types a field of a record can have: how each is found by its writer, and read, summed and shown by others.

#![forbid(unsafe_code)]

use std::sync::atomic::AtomicU64;

use super::cell::{Counter, Gauge, Histogram, StateCell};
use super::map::Map;
use crate::stats::Distribution;

/// Where the cells of one record are.
pub(super) struct Place {
    pub(super) map: &'static Map,
    /// Offset of the record in bytes.
    pub(super) record: u64,
    /// Offset of its histogram, if it has one.
    pub(super) histogram: Option<u64>,
    /// Offset of its health word, if it has one.
    pub(super) health: Option<u64>,
    /// The index of the object, if it is one's.
    pub(super) index: u32,
}

/// What a reader has of one record. Words that an older version did not write are missing at its end, and read as zero.
#[derive(Debug)]
pub struct Image {
    pub(crate) words: Vec<u64>,
    pub(crate) latency: Distribution,
}

/// A record as its writer holds it.
pub(super) trait Record: Sized {
    /// The first word that survives its owner.
    const COUNTERS_AT: u64;
    /// Bytes used, from word 0 on.
    const BYTES: u64;

    fn find(place: &Place) -> Option<Self>;
}

/// A record as its reader holds it.
pub trait Totals: Clone + Default {
    /// Reads one record.
    #[doc(hidden)]
    fn of(image: &Image) -> Self;
    /// Adds what another worker says.
    fn add(&mut self, other: &Self);
    /// What has happened since `earlier`; gauges stay as they are now.
    #[must_use]
    fn since(&self, earlier: &Self) -> Self;
    /// Shows each field once.
    fn each(&self, visit: &mut dyn FnMut(Field<'_>));
}

/// A field on its way to a text format.
#[derive(Debug, Clone, Copy)]
pub struct Field<'t> {
    /// Its name, in `snake_case`.
    pub name: &'static str,
    /// One sentence about it.
    pub help: &'static str,
    /// What it holds.
    pub value: Value<'t>,
}

/// What a field holds.
#[derive(Debug, Clone, Copy)]
pub enum Value<'t> {
    /// How often something happened.
    Counter(u64),
    /// The same by class of status, 1xx to 5xx.
    Classes(&'t [u64; 5]),
    /// How much there is.
    Gauge(u64),
    /// How long something took.
    Latency(&'t Distribution),
}

/// A type of field, for its writer.
pub(super) trait Cell: Sized {
    /// The cell at `word` of the record; `None` where the record has no such thing.
    fn find(place: &Place, word: u64) -> Option<Self>;

    /// Adds what another zone has counted; what does not outlive its owner takes nothing.
    fn carry(&self, _: &[u64]) {}
}

/// A type of field, for its readers. Public only because the types of public fields are found through it.
pub trait Column {
    type Total: Clone + Default + PartialEq;

    fn read(image: &Image, word: usize) -> Self::Total;
    fn add(total: &mut Self::Total, other: &Self::Total);
    fn since(now: &Self::Total, earlier: &Self::Total) -> Self::Total;
    fn value(total: &Self::Total) -> Value<'_>;
}

impl Cell for Counter {
    fn find(place: &Place, word: u64) -> Option<Counter> {
        Some(Counter(place.map.word(place.record + word * 8)))
    }

    fn carry(&self, numbers: &[u64]) {
        numbers.iter().for_each(|number| self.add(*number));
    }
}

impl Column for Counter {
    type Total = u64;

    fn read(image: &Image, word: usize) -> u64 {
        image.words.get(word).copied().unwrap_or(0)
    }

    fn add(total: &mut u64, other: &u64) {
        *total = total.wrapping_add(*other);
    }

    fn since(now: &u64, earlier: &u64) -> u64 {
        now.saturating_sub(*earlier)
    }

    fn value(total: &u64) -> Value<'_> {
        Value::Counter(*total)
    }
}

impl Cell for [Counter; 5] {
    fn find(place: &Place, word: u64) -> Option<[Counter; 5]> {
        Some(place.map.words(place.record + word * 8).each_ref().map(Counter))
    }

    fn carry(&self, numbers: &[u64]) {
        self.iter().zip(numbers).for_each(|(counter, number)| counter.add(*number));
    }
}

impl Column for [Counter; 5] {
    type Total = [u64; 5];

    fn read(image: &Image, word: usize) -> [u64; 5] {
        std::array::from_fn(|class| Counter::read(image, word + class))
    }

    fn add(total: &mut [u64; 5], other: &[u64; 5]) {
        for (class, other) in total.iter_mut().zip(other) {
            <Counter as Column>::add(class, other);
        }
    }

    fn since(now: &[u64; 5], earlier: &[u64; 5]) -> [u64; 5] {
        std::array::from_fn(|class| Counter::since(&now[class], &earlier[class]))
    }

    fn value(total: &[u64; 5]) -> Value<'_> {
        Value::Classes(total)
    }
}

impl Cell for Gauge {
    fn find(place: &Place, word: u64) -> Option<Gauge> {
        Some(Gauge(place.map.word(place.record + word * 8)))
    }
}

impl Column for Gauge {
    type Total = u64;

    fn read(image: &Image, word: usize) -> u64 {
        Counter::read(image, word)
    }

    fn add(total: &mut u64, other: &u64) {
        *total = total.wrapping_add(*other);
    }

    fn since(now: &u64, _: &u64) -> u64 {
        *now
    }

    fn value(total: &u64) -> Value<'_> {
        Value::Gauge(*total)
    }
}

impl Cell for Histogram {
    fn find(place: &Place, _: u64) -> Option<Histogram> {
        place.histogram.map(|offset| Histogram(place.map.words(offset)))
    }

    fn carry(&self, numbers: &[u64]) {
        if let [sum, buckets @ ..] = numbers {
            self.carry_in(*sum, buckets.as_chunks().0);
        }
    }
}

impl Column for Histogram {
    type Total = Distribution;

    fn read(image: &Image, _: usize) -> Distribution {
        image.latency.clone()
    }

    fn add(total: &mut Distribution, other: &Distribution) {
        total.add(other);
    }

    fn since(now: &Distribution, earlier: &Distribution) -> Distribution {
        now.since(earlier)
    }

    fn value(total: &Distribution) -> Value<'_> {
        Value::Latency(total)
    }
}

impl Cell for StateCell {
    fn find(place: &Place, word: u64) -> Option<StateCell> {
        Some(StateCell(place.map.word(place.record + word * 8)))
    }
}

/// The index of the object, which is no word of the record.
impl Cell for u32 {
    fn find(place: &Place, _: u64) -> Option<u32> {
        Some(place.index)
    }
}

impl Cell for &'static AtomicU64 {
    fn find(place: &Place, _: u64) -> Option<&'static AtomicU64> {
        place.health.map(|offset| place.map.word(offset))
    }
}
