//! Flights: what a worker says of each client's connection while it has it, and of the exchange on it.
//!
//! Every worker slot has a table of records of its own. The worker alone writes them, with plain stores. Words that
//! belong together are written while the sequence is odd; a reader that finds it odd, or changed, reads again.

#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::Zone;
use super::cell::{publish, store};
use crate::ident::Slot;

/// The most bytes of a request's path that are recorded.
pub const PATH_BYTES_MAX: usize = 64;
/// The most bytes of a method that are recorded.
pub const METHOD_BYTES_MAX: usize = 16;
/// Nothing ends it by itself.
pub const NO_DUE: u64 = u64::MAX;

/// Words of a record.
pub(crate) mod word {
    /// Zero while the record was never used; odd while words that belong together are written.
    pub(crate) const SEQUENCE: usize = 0;
    /// A [`Phase`](super::Phase), or zero while the record is free.
    pub(crate) const PHASE: usize = 1;
    /// From the lowest bit: address family (8 bits: 0, 4 or 6), protocol (8), port (16), the listener's index + 1 (32).
    pub(crate) const KIND: usize = 2;
    /// Two words: the address's bytes in order, an IPv4 one's in the first four.
    pub(crate) const ADDRESS: usize = 3;
    pub(crate) const SINCE: usize = 5;
    pub(crate) const BEGUN: usize = 6;
    pub(crate) const MOVED: usize = 7;
    pub(crate) const DUE: usize = 8;
    /// Bytes of the exchanges that have ended.
    pub(crate) const RECEIVED: usize = 9;
    pub(crate) const SENT: usize = 10;
    /// Bytes of the present exchange's bodies, as far as they have moved.
    pub(crate) const RECEIVED_NOW: usize = 11;
    pub(crate) const SENT_NOW: usize = 12;
    pub(crate) const REQUESTS: usize = 13;
    /// The index + 1.
    pub(crate) const ROUTE: usize = 14;
    /// The index + 1.
    pub(crate) const SERVER: usize = 15;
    /// Two words, filled up with zeros.
    pub(crate) const METHOD: usize = 16;
    /// Bytes of the whole path.
    pub(crate) const PATH_LENGTH: usize = 18;
    /// Of a longer path: a keyed hash of what is not recorded.
    pub(crate) const PATH_REST: usize = 19;
    pub(crate) const PATH: usize = 20;
    pub(crate) const END: usize = PATH + super::PATH_BYTES_MAX / 8;
}

/// Words of a record.
pub(crate) const WORDS: usize = word::END;
/// From one record to the next, in bytes.
pub(crate) const STRIDE_BYTES: u64 = 256;

/// HTTP/1.0 and HTTP/1.1, as the protocol of a record.
const HTTP_1: u64 = 1;

/// What a connection is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It waits for a request.
    Idle,
    /// A request's head is on its way in.
    Head,
    /// A request has come; what becomes of it is being decided.
    Decided,
    /// The request's body is on its way through.
    Body,
    /// A server's answer is waited for.
    Waiting,
    /// The answer is on its way to the client.
    Sending,
    /// It carries another protocol.
    Tunnel,
    /// All is said; what the client still sends is read past.
    Lingering,
}

impl Phase {
    const ALL: [Phase; 8] = [
        Phase::Idle,
        Phase::Head,
        Phase::Decided,
        Phase::Body,
        Phase::Waiting,
        Phase::Sending,
        Phase::Tunnel,
        Phase::Lingering,
    ];

    /// The phase written as `word`; `None` for a record that is free and for phases of a later version.
    #[must_use]
    pub fn from_word(word: u64) -> Option<Phase> {
        Phase::ALL.into_iter().find(|phase| phase.word() == word)
    }

    /// As it is shown.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Phase::Idle => "idle",
            Phase::Head => "reading request head",
            Phase::Decided => "routing",
            Phase::Body => "request body",
            Phase::Waiting => "waiting for upstream",
            Phase::Sending => "sending response",
            Phase::Tunnel => "tunnel",
            Phase::Lingering => "lingering",
        }
    }

    /// Whether an exchange is under way.
    #[must_use]
    pub fn is_exchange(self) -> bool {
        !matches!(self, Phase::Idle | Phase::Lingering)
    }

    pub(crate) const fn word(self) -> u64 {
        self as u64 + 1
    }
}

/// A record, for the worker that writes it. All times are monotonic nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Flight(&'static [AtomicU64; WORDS]);

/// What connections write on that found no free record. Nobody reads it.
static NOWHERE: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];

impl Flight {
    /// A record that nobody reads, for a connection that found none free.
    #[must_use]
    pub fn nowhere() -> Flight {
        Flight(&NOWHERE)
    }

    /// A client has come to the listener with this index, at `now`; one without an address by a unix socket.
    pub fn open(self, client: Option<SocketAddr>, listener: u32, now: u64) {
        self.together(|| {
            for word in word::DUE..word::PATH {
                self.set(word, 0);
            }
            self.set(word::KIND, HTTP_1 << 8 | (u64::from(listener) + 1) << 32);
            self.write_client(client);
            self.set(word::SINCE, now);
            self.set(word::BEGUN, 0);
            self.set(word::MOVED, now);
            self.set(word::DUE, NO_DUE);
            self.set(word::PHASE, Phase::Idle.word());
        });
    }

    /// It has carried `requests` already, elsewhere.
    pub fn go_on(self, requests: u64) {
        self.set(word::REQUESTS, requests);
    }

    /// The connection is another client's, as a PROXY protocol header says.
    pub fn announce(self, client: SocketAddr) {
        self.together(|| self.write_client(Some(client)));
    }

    /// The first byte of a request has come at `now`, the connection's `requests`th; its head is over by `due`.
    #[inline]
    pub fn begin(self, requests: u64, due: u64, now: u64) {
        self.together(|| {
            self.set(word::ROUTE, 0);
            self.set(word::SERVER, 0);
            self.set(word::METHOD, 0);
            self.set(word::PATH_LENGTH, 0);
            self.set(word::BEGUN, now);
            self.set(word::MOVED, now);
            self.set(word::DUE, due);
            self.set(word::REQUESTS, requests);
            self.set(word::PHASE, Phase::Head.word());
        });
    }

    /// What is asked for, and the index of the route that takes it. `rest` stands for what of the path is beyond
    /// [`PATH_BYTES_MAX`].
    #[inline]
    pub fn decide(self, route: Option<u32>, method: &[u8], path: &[u8], rest: u64) {
        self.together(|| {
            self.set(word::ROUTE, route.map_or(0, |route| u64::from(route) + 1));
            self.write(word::METHOD, METHOD_BYTES_MAX, method);
            if method.len() <= 8 {
                self.set(word::METHOD + 1, 0);
            }
            self.set(word::PATH_LENGTH, path.len() as u64);
            self.set(word::PATH_REST, rest);
            self.write(word::PATH, PATH_BYTES_MAX, path);
            self.set(word::PHASE, Phase::Decided.word());
        });
    }

    /// It is in another phase.
    #[inline]
    pub fn enter(self, phase: Phase, now: u64) {
        self.set(word::MOVED, now);
        self.set(word::PHASE, phase.word());
    }

    /// The server with this index is asked.
    #[inline]
    pub fn ask(self, server: u32, phase: Phase, now: u64) {
        self.set(word::SERVER, u64::from(server) + 1);
        self.enter(phase, now);
    }

    /// When it ends by itself, if nothing changes; [`NO_DUE`] for never.
    #[inline]
    pub fn expect_end(self, due: u64) {
        self.set(word::DUE, due);
    }

    /// Bytes of a body, or of another protocol, have come from the client.
    #[inline]
    pub fn received(self, bytes: u64, now: u64) {
        self.set(word::RECEIVED_NOW, self.get(word::RECEIVED_NOW).wrapping_add(bytes));
        self.set(word::MOVED, now);
    }

    /// The same, to the client.
    #[inline]
    pub fn sent(self, bytes: u64, now: u64) {
        self.set(word::SENT_NOW, self.get(word::SENT_NOW).wrapping_add(bytes));
        self.set(word::MOVED, now);
    }

    /// So much has moved so far of the present exchange.
    pub fn set_moved(self, received: u64, sent: u64) {
        self.set(word::RECEIVED_NOW, received);
        self.set(word::SENT_NOW, sent);
    }

    /// The exchange is over: so many bytes were received and sent, heads and framing included.
    #[inline]
    pub fn end(self, received: u64, sent: u64, now: u64) {
        self.set(word::RECEIVED_NOW, 0);
        self.set(word::SENT_NOW, 0);
        self.set(word::RECEIVED, self.get(word::RECEIVED).wrapping_add(received));
        self.set(word::SENT, self.get(word::SENT).wrapping_add(sent));
        self.enter(Phase::Idle, now);
    }

    /// The connection is closed: the record is free.
    pub fn close(self) {
        self.set(word::PHASE, 0);
    }

    #[inline]
    fn together(self, write: impl FnOnce()) {
        let sequence = self.get(word::SEQUENCE);
        // Odd already when the writer before was killed here.
        self.set(word::SEQUENCE, sequence | 1);
        fence(Ordering::Release);
        write();
        publish(&self.0[word::SEQUENCE], (sequence | 1).wrapping_add(1));
    }

    fn write_client(self, client: Option<SocketAddr>) {
        let kind = self.get(word::KIND) & !0xffff_00ff;
        let mut bytes = [0; 16];
        let family = match client.map(|client| client.ip().to_canonical()) {
            None => 0,
            Some(IpAddr::V4(address)) => {
                bytes[..4].copy_from_slice(&address.octets());
                4
            }
            Some(IpAddr::V6(address)) => {
                bytes = address.octets();
                6
            }
        };
        let port = client.map_or(0, |client| client.port());
        self.set(word::KIND, kind | family | u64::from(port) << 16);
        self.write(word::ADDRESS, 16, &bytes);
    }

    #[inline]
    fn write(self, word: usize, most: usize, text: &[u8]) {
        let text = &text[..text.len().min(most)];
        let (whole, rest) = text.as_chunks::<8>();
        for (place, bytes) in (word..).zip(whole) {
            self.set(place, u64::from_ne_bytes(*bytes));
        }
        if !rest.is_empty() {
            // So few bytes are not worth a call that copies them.
            let last = rest.iter().rev().fold(0u64, |last, byte| last << 8 | u64::from(*byte));
            self.set(word + whole.len(), u64::from_ne_bytes(last.to_le_bytes()));
        }
    }

    #[inline]
    fn get(self, word: usize) -> u64 {
        self.0[word].load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn set(self, word: usize, value: u64) {
        store(&self.0[word], value);
    }
}

/// The records of one worker.
#[derive(Debug, Clone, Copy)]
pub struct Flights {
    zone: &'static Zone,
    first: u64,
    count: u32,
}

impl Flights {
    /// How many records there are; none in a zone of a version without them.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The record with this index.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<Flight> {
        let at = |index: u32| self.zone.layout.flights().at(self.first + u64::from(index));
        (index < self.count).then(|| Flight(self.zone.map.words(at(index))))
    }

    /// The words of the record with this index, each whole, not all of one moment.
    pub(super) fn words(&self, index: u32) -> Option<[u64; WORDS]> {
        self.get(index).map(|flight| flight.0.each_ref().map(|word| word.load(Ordering::Acquire)))
    }
}

impl Zone {
    /// The records of the worker in `slot`, which have memory from its claim on.
    #[must_use]
    pub fn flights(&'static self, slot: Slot) -> Flights {
        let count = self.layout.flights_per_slot();
        Flights { zone: self, first: u64::from(slot.0) * u64::from(count), count }
    }

    /// Frees all records of a slot. The master's, once the exit was reaped.
    pub(super) fn clear_flights(&'static self, slot: Slot) {
        let flights = self.flights(slot);
        for flight in (0..flights.count).filter_map(|index| flights.get(index)) {
            if flight.get(word::SEQUENCE) != 0 {
                flight.close();
                (word::PHASE..WORDS).for_each(|word| flight.set(word, 0));
                publish(&flight.0[word::SEQUENCE], 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_numbered_for_ever() {
        for (word, phase) in (1..).zip(Phase::ALL) {
            assert_eq!((phase.word(), Phase::from_word(word)), (word, Some(phase)));
        }
        assert_eq!((Phase::from_word(0), Phase::from_word(9)), (None, None));
    }

    #[test]
    fn a_record_fits_its_stride() {
        assert!(WORDS as u64 * 8 <= STRIDE_BYTES);
    }
}
