//! Quarantine: requests that are refused because others like them have killed workers.
//!
//! The master alone decides and writes. A worker asks with one load while there are none, which is always.

#![forbid(unsafe_code)]

use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Zone;
use super::cell::{publish, store};
use super::flight::{METHOD_BYTES_MAX, PATH_BYTES_MAX};
use super::layout::master;

/// The most requests that are in quarantine at once.
pub const BANS_MAX: usize = 16;

/// Words of a record; the master writes them.
pub(crate) mod word {
    /// The fingerprint, or zero while the record is free. Stored last, and as zero first.
    pub(crate) const FINGERPRINT: u64 = 0;
    pub(crate) const UNTIL: u64 = 1;
    /// The index + 1.
    pub(crate) const ROUTE: u64 = 2;
    /// Two words, filled up with zeros.
    pub(crate) const METHOD: u64 = 3;
    /// Bytes of the whole path.
    pub(crate) const PATH_LENGTH: u64 = 5;
    pub(crate) const PATH: u64 = 6;
}

/// Words of a record.
pub(crate) const WORDS: usize = 6 + PATH_BYTES_MAX / 8;

/// A request as far as quarantine tells one from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Index of the route that takes it.
    pub route: u32,
    /// At most [`METHOD_BYTES_MAX`] bytes of the method.
    pub method: Vec<u8>,
    /// At most [`PATH_BYTES_MAX`] bytes of the path.
    pub path: Vec<u8>,
    /// Bytes of the whole path.
    pub path_length: u64,
    /// What [`Quarantine::rest`] says of the rest of the path.
    pub path_rest: u64,
}

/// A request in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    /// A keyed hash of the request; not zero.
    pub fingerprint: u64,
    /// The request.
    pub request: Request,
    /// When it is taken again, monotonic nanoseconds.
    pub until_ns: u64,
}

/// The requests in quarantine, for a worker, which asks, and for the master, which tells.
#[derive(Debug, Clone, Copy)]
pub struct Quarantine {
    zone: &'static Zone,
    count: &'static AtomicU64,
    key: [u64; 2],
}

impl Quarantine {
    /// Whether a request is refused at `now`, monotonic nanoseconds.
    #[inline]
    #[must_use]
    pub fn refuses(&self, route: u32, method: &[u8], path: &[u8], now: u64) -> bool {
        self.count.load(Ordering::Acquire) != 0 && self.holds(route, method, path, now)
    }

    #[cold]
    fn holds(&self, route: u32, method: &[u8], path: &[u8], now: u64) -> bool {
        let (method, shown) = (cut(method, METHOD_BYTES_MAX), cut(path, PATH_BYTES_MAX));
        let print = self.hash(route, method, shown, path.len() as u64, self.rest(path));
        (0..BANS_MAX).any(|index| {
            self.word(index, word::FINGERPRINT).load(Ordering::Acquire) == print
                && now < self.word(index, word::UNTIL).load(Ordering::Relaxed)
        })
    }

    /// What stands for that of a path which is beyond [`PATH_BYTES_MAX`]; zero for nothing.
    #[inline]
    #[must_use]
    pub fn rest(&self, path: &[u8]) -> u64 {
        path.get(PATH_BYTES_MAX..).filter(|rest| !rest.is_empty()).map_or(0, |rest| {
            let mut hasher = self.hasher();
            hasher.write(rest);
            hasher.finish()
        })
    }

    /// The request's fingerprint.
    #[must_use]
    pub fn fingerprint(&self, request: &Request) -> u64 {
        let Request { route, method, path, path_length, path_rest } = request;
        self.hash(*route, method, path, *path_length, *path_rest)
    }

    /// Makes `bans`, at most [`BANS_MAX`] of them, what is refused from now on. Master only.
    pub fn set(&self, bans: &[Ban]) {
        for index in 0..BANS_MAX {
            publish(self.word(index, word::FINGERPRINT), 0);
            let Some(Ban { fingerprint, request, until_ns }) = bans.get(index) else { continue };
            store(self.word(index, word::UNTIL), *until_ns);
            store(self.word(index, word::ROUTE), u64::from(request.route) + 1);
            self.write(index, word::METHOD, METHOD_BYTES_MAX, &request.method);
            store(self.word(index, word::PATH_LENGTH), request.path_length);
            self.write(index, word::PATH, PATH_BYTES_MAX, &request.path);
            publish(self.word(index, word::FINGERPRINT), *fingerprint);
        }
        publish(self.count, bans.len().min(BANS_MAX) as u64);
    }

    fn hash(&self, route: u32, method: &[u8], path: &[u8], path_length: u64, path_rest: u64) -> u64 {
        let mut hasher = self.hasher();
        hasher.write_u32(route);
        hasher.write_u8(u8::try_from(method.len()).unwrap_or(u8::MAX));
        hasher.write(method);
        hasher.write_u64(path_length);
        hasher.write_u64(path_rest);
        hasher.write(path);
        hasher.finish().max(1)
    }

    fn hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        self.key.into_iter().for_each(|half| hasher.write_u64(half));
        hasher
    }

    fn write(&self, index: usize, word: u64, most: usize, text: &[u8]) {
        let mut bytes = cut(text, most).to_vec();
        bytes.resize(most, 0);
        for (place, bytes) in (word..).zip(bytes.as_chunks::<8>().0) {
            store(self.word(index, place), u64::from_ne_bytes(*bytes));
        }
    }

    fn word(&self, index: usize, word: u64) -> &'static AtomicU64 {
        self.zone.word(self.zone.layout.quarantine(), index as u64, word)
    }
}

impl Zone {
    /// The requests in quarantine; `None` in a zone of a version without them.
    #[must_use]
    pub fn quarantine(&'static self) -> Option<Quarantine> {
        let section = self.layout.quarantine();
        let is_known = section.count >= BANS_MAX as u64 && section.record >= WORDS as u64 * 8;
        let key = [0, 1].map(|half| self.master_word(master::KEY + half).load(Ordering::Relaxed));
        is_known.then(|| Quarantine { zone: self, count: self.master_word(master::QUARANTINED), key })
    }
}

fn cut(text: &[u8], most: usize) -> &[u8] {
    &text[..text.len().min(most)]
}

#[cfg(test)]
mod tests {
    use super::super::Maxima;
    use super::*;

    fn ban(quarantine: &Quarantine, path: &[u8], until_ns: u64) -> Ban {
        let request = Request {
            route: 3,
            method: b"GET".to_vec(),
            path: cut(path, PATH_BYTES_MAX).to_vec(),
            path_length: path.len() as u64,
            path_rest: quarantine.rest(path),
        };
        Ban { fingerprint: quarantine.fingerprint(&request), request, until_ns }
    }

    #[test]
    fn what_was_banned_is_refused_until_its_time_and_nothing_else() {
        let zone = Zone::anonymous(Maxima { slots: 3, listeners: 1, routes: 2, upstreams: 1, servers: 2, flights: 1 });
        let quarantine = zone.quarantine().unwrap();
        let (short, long) = (&b"/a"[..], [b'x'; 100]);
        assert!(!quarantine.refuses(3, b"GET", short, 0));
        quarantine.set(&[ban(&quarantine, short, 10), ban(&quarantine, &long, 20)]);
        for (route, method, path, now, expected) in [
            (3, "GET", short, 9, true),
            (3, "GET", short, 10, false),
            (3, "GET", &long, 19, true),
            (3, "GET", &long[..99], 19, false),
            (3, "GET", &long[..64], 19, false),
            (2, "GET", short, 9, false),
            (3, "HEAD", short, 9, false),
            (3, "GET", b"/A", 9, false),
        ] {
            assert_eq!(quarantine.refuses(route, method.as_bytes(), path, now), expected, "{method} {path:?} {now}");
        }
        quarantine.set(&[]);
        assert!(!quarantine.refuses(3, b"GET", short, 9));
    }

    #[test]
    fn each_zone_has_a_key_of_its_own() {
        let maxima = Maxima { slots: 3, listeners: 1, routes: 2, upstreams: 1, servers: 2, flights: 1 };
        let prints = [(); 2].map(|()| {
            let quarantine = Zone::anonymous(maxima).quarantine().unwrap();
            ban(&quarantine, b"/a", 1).fingerprint
        });
        assert_ne!(prints[0], prints[1]);
    }
}
