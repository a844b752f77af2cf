//! Connection records as a reader has them: one of a zone's file, or one that the master looks at.
//!
//! Their words are input. What is too long is cut, what names nothing has no name, and text comes out printable.

#![forbid(unsafe_code)]

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::reader::printable;
use crate::ident::Slot;
use crate::zone::flight::{WORDS, word};
use crate::zone::layout::{Kind, Layout, master, object, slot};
use crate::zone::source::Source;
use crate::zone::{Damage, METHOD_BYTES_MAX, NAME_BYTES_MAX, NO_DUE, PATH_BYTES_MAX, Phase, Request, ZoneError};

/// How often a record is read again that was being written.
const RETRIES_MAX: u32 = 3;
/// How many records are read at once.
const BATCH: u32 = 256;

/// What a worker says of a client's connection. Times are monotonic nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Whose it is.
    pub slot: Slot,
    /// Its record's index in the slot's table.
    pub index: u32,
    /// Who is connected; no address came by a unix socket.
    pub client: Option<SocketAddr>,
    /// The listener's address.
    pub listener: Option<String>,
    /// As it is shown.
    pub protocol: &'static str,
    /// What it is in.
    pub phase: Phase,
    /// When it was accepted.
    pub since_ns: u64,
    /// When the first byte of its last request came; zero before the first.
    pub begun_ns: u64,
    /// When something last happened.
    pub moved_ns: u64,
    /// When it ends by itself, if nothing changes.
    pub due_ns: Option<u64>,
    /// Bytes from the client.
    pub received: u64,
    /// Bytes to the client.
    pub sent: u64,
    /// How many requests it has carried.
    pub requests: u64,
    /// The name of the last request's route.
    pub route: Option<String>,
    /// Upstream and address of the server that was asked last.
    pub server: Option<(String, String)>,
    /// The last request's method; empty until its head was read.
    pub method: String,
    /// Its path, without query, cut at [`PATH_BYTES_MAX`].
    pub path: String,
    /// Whether the path is longer than that.
    pub is_cut: bool,
    /// Whether it was being written: parts of it may be of different moments.
    pub is_torn: bool,
    /// What quarantine tells it by, if a route took it.
    pub(crate) request: Option<Request>,
}

impl Connection {
    /// Reads the words of a record; `None` if it is free. `name` tells the name of an object, and of its upstream.
    pub(crate) fn of(
        words: &[u64; WORDS],
        (slot, index): (Slot, u32),
        name: &dyn Fn(Kind, u32) -> Option<(String, String)>,
    ) -> Option<Connection> {
        let phase = Phase::from_word(words[word::PHASE])?;
        let kind = words[word::KIND];
        let named = |kind, word: u64| name(kind, u32::try_from(word.checked_sub(1)?).ok()?);
        let length = words[word::PATH_LENGTH];
        let path = bytes(&words[word::PATH..word::END], length, PATH_BYTES_MAX);
        let method = bytes(&words[word::METHOD..word::PATH_LENGTH], u64::MAX, METHOD_BYTES_MAX);
        let method: Vec<u8> = method.into_iter().take_while(|byte| *byte != 0).collect();
        Some(Connection {
            slot,
            index,
            client: client(words),
            listener: named(Kind::Listener, kind >> 32).map(|(_, name)| name),
            protocol: if kind >> 8 & 0xff == 1 { "http/1" } else { "unknown" },
            phase,
            since_ns: words[word::SINCE],
            begun_ns: words[word::BEGUN],
            moved_ns: words[word::MOVED],
            due_ns: Some(words[word::DUE]).filter(|due| *due != NO_DUE),
            received: words[word::RECEIVED].saturating_add(words[word::RECEIVED_NOW]),
            sent: words[word::SENT].saturating_add(words[word::SENT_NOW]),
            requests: words[word::REQUESTS],
            route: named(Kind::Route, words[word::ROUTE]).map(|(_, name)| name),
            server: named(Kind::Server, words[word::SERVER]),
            method: shown(&method),
            path: shown(&path),
            is_cut: length > PATH_BYTES_MAX as u64,
            is_torn: !words[word::SEQUENCE].is_multiple_of(2),
            request: words[word::ROUTE]
                .checked_sub(1)
                .and_then(|route| u32::try_from(route).ok())
                .map(|route| Request { route, method, path, path_length: length, path_rest: words[word::PATH_REST] }),
        })
    }

    /// Whether an exchange is under way on it.
    #[must_use]
    pub fn is_exchange(&self) -> bool {
        self.phase.is_exchange()
    }

    /// Method and path as they are shown; a dash before they are known.
    #[must_use]
    pub fn request_line(&self) -> String {
        match self.method.as_str() {
            "" => "-".to_owned(),
            method => format!("{method} {}{}", self.path, if self.is_cut { "..." } else { "" }),
        }
    }

    /// Who is connected, as it is shown.
    #[must_use]
    pub fn client_text(&self) -> String {
        self.client.map_or_else(|| "unix:".to_owned(), |client| client.to_string())
    }

    /// All connections that the workers of a zone file have a record of.
    ///
    /// # Errors
    /// When there is no such file, it may not be read, or is not a zone that this version can read.
    pub fn read_all(path: &Path) -> Result<Vec<Connection>, ZoneError> {
        let file = File::open(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => ZoneError::Absent(path.to_owned()),
            _ => ZoneError::Io { doing: "open", path: path.to_owned(), source },
        })?;
        connections(&file).map_err(|damage| damage.of(path))
    }
}

/// All connections that a zone has a record of.
pub(super) fn connections(source: &dyn Source) -> Result<Vec<Connection>, Damage> {
    let (layout, _) = Layout::read(source)?;
    let (section, each) = (layout.flights(), layout.flights_per_slot());
    let mut used = [0; 4];
    if layout.master().record >= (master::USED + 4) * 8 && layout.master().count == 1 {
        source.words(layout.master().at(0) + master::USED * 8, &mut used)?;
    }
    // Objects that are out of the catalog too: old workers go on with them.
    let name = |kind: Kind, index: u32| object_name(source, &layout, &used, kind, index);
    let stride = section.at(1.min(section.count)) - section.at(0);
    let mut batch = vec![0; usize::try_from(stride / 8).unwrap_or(0) * BATCH as usize];
    let mut found = Vec::new();
    let slots = (0u32..).take_while(|index| u64::from(*index) < layout.slots().count);
    for place in slots.map(Slot) {
        if each == 0 || source.word(layout.slots().at(place.0.into()) + slot::CLAIMED * 8)? == 0 {
            continue;
        }
        let first = u64::from(place.0) * u64::from(each);
        for start in (0..each).step_by(BATCH as usize) {
            let at = |index: u32| section.at(first + u64::from(index));
            let count = BATCH.min(each - start);
            let length = usize::try_from((at(start + count) - at(start)) / 8).unwrap_or(0);
            source.words(at(start), &mut batch[..length])?;
            for (index, words) in (start..).zip(batch[..length].chunks_exact(length / count as usize)) {
                if let Some(words) = words.first_chunk::<WORDS>().filter(|words| words[word::PHASE] != 0) {
                    let words = settled(source, at(index), *words)?;
                    found.extend(Connection::of(&words, (place, index), &name));
                }
            }
        }
    }
    Ok(found)
}

/// A record as it was at one moment, if its writer lets that be had; `words` are the first look at it.
fn settled(source: &dyn Source, at: u64, mut words: [u64; WORDS]) -> Result<[u64; WORDS], Damage> {
    for _ in 0..RETRIES_MAX {
        let sequence = words[word::SEQUENCE];
        if sequence.is_multiple_of(2) && source.word(at)? == sequence {
            return Ok(words);
        }
        source.words(at, &mut words)?;
    }
    // Its worker may have been stopped, or killed, in the middle of it.
    words[word::SEQUENCE] |= 1;
    Ok(words)
}

/// The name of an object, and its upstream's if it is a server.
fn object_name(
    source: &dyn Source,
    layout: &Layout,
    used: &[u64; 4],
    kind: Kind,
    index: u32,
) -> Option<(String, String)> {
    let section = layout.objects(kind);
    let known = usize::try_from(section.record / 8).ok()?.min(object::WORDS);
    if u64::from(index) >= used[kind as usize].min(section.count) {
        return None;
    }
    let mut words = [0; object::WORDS];
    source.words(section.at(index.into()), &mut words[..known]).ok()?;
    let length = words[at(object::NAME_LENGTH)];
    let name = shown(&bytes(&words[at(object::NAME)..], length, NAME_BYTES_MAX));
    let parent = match kind {
        Kind::Server => {
            object_name(source, layout, used, Kind::Upstream, u32::try_from(words[at(object::PARENT)]).ok()?)?.1
        }
        _ => String::new(),
    };
    Some((parent, name))
}

fn client(words: &[u64; WORDS]) -> Option<SocketAddr> {
    let octets: [u8; 16] = bytes(&words[word::ADDRESS..word::SINCE], 16, 16).try_into().ok()?;
    let address = match words[word::KIND] & 0xff {
        4 => IpAddr::V4(Ipv4Addr::from(*octets.first_chunk::<4>()?)),
        6 => IpAddr::V6(Ipv6Addr::from(octets)),
        _ => return None,
    };
    Some(SocketAddr::new(address, u16::try_from(words[word::KIND] >> 16 & 0xffff).ok()?))
}

/// The first `length` bytes of `words`, and `most` at most.
fn bytes(words: &[u64], length: u64, most: usize) -> Vec<u8> {
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(most);
    words.iter().flat_map(|word| word.to_ne_bytes()).take(length).collect()
}

/// Text that a terminal or a log shows without being steered by it.
fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().map(printable).collect()
}

fn at(word: u64) -> usize {
    usize::try_from(word).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::{Generation, ProcessId, Seat};
    use crate::stats::Snapshot;
    use crate::zone::{Ban, Catalog, Maxima, Role, Zone};

    /// The bytes of a zone with two connections and a request in quarantine.
    fn image(flights: u32) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zone");
        let maxima = Maxima { slots: 3, listeners: 1, routes: 3, upstreams: 2, servers: 2, flights };
        let zone = Zone::create(&path, maxima, ProcessId::current(0).unwrap()).unwrap();
        let upstreams = vec![("app".into(), vec!["10.0.0.1:1".into()])];
        zone.publish(&Catalog { listeners: vec!["l".into()], routes: vec!["api".into()], upstreams }).unwrap();
        let slot = zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).unwrap();
        for flight in (0..2).filter_map(|index| zone.flights(slot).get(index)) {
            flight.open(Some("10.0.0.9:7".parse().unwrap()), 0, 5);
            flight.begin(1, 9, 6);
            flight.decide(Some(1), b"GET", b"/a", 0);
            flight.ask(0, Phase::Waiting, 7);
        }
        let quarantine = zone.quarantine().unwrap();
        let request = Request { route: 1, method: b"GET".to_vec(), path: b"/a".to_vec(), path_length: 2, path_rest: 0 };
        quarantine.set(&[Ban { fingerprint: 7, request, until_ns: 11 }]);
        std::fs::read(path).unwrap()
    }

    fn with_word(bytes: &[u8], at: usize, value: u64) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_sound_record_reads_as_it_was_written() {
        let image = image(300);
        let found = connections(&&image[..]).unwrap();
        assert_eq!(found.iter().map(|connection| connection.index).collect::<Vec<_>>(), [0, 1]);
        let first = &found[0];
        assert_eq!((first.client_text().as_str(), first.request_line().as_str()), ("10.0.0.9:7", "GET /a"));
        assert_eq!((first.listener.as_deref(), first.route.as_deref()), (Some("l"), Some("api")));
        assert_eq!(first.server, Some(("app".into(), "10.0.0.1:1".into())));
        assert_eq!((first.phase, first.due_ns, first.is_torn, first.is_cut), (Phase::Waiting, Some(9), false, false));
        let banned = &Snapshot::parse(&image).unwrap().quarantined[0];
        assert_eq!((banned.route.as_str(), banned.method.as_str(), banned.path.as_str()), ("api", "GET", "/a"));
    }

    #[test]
    fn a_zone_without_records_has_none() {
        assert_eq!(connections(&&image(0)[..]).unwrap(), []);
        // Minor version 0 had thirteen sections.
        let earlier = with_word(&image(2), 24, 13);
        assert_eq!(connections(&&earlier[..]).unwrap(), []);
        assert_eq!(Snapshot::parse(&earlier).unwrap().quarantined, []);
    }

    #[test]
    fn no_word_that_lies_crashes_the_reader() {
        let good = image(2);
        let values = [0, 1, 8, 200, 1 << 31, 1 << 40, i64::MAX.cast_unsigned(), u64::MAX];
        let in_use = (0..good.len()).step_by(8).filter(|at| *at < 1200 || good[*at..at + 8] != [0; 8]);
        for (at, value) in in_use.flat_map(|at| values.map(|value| (at, value))) {
            match connections(&&with_word(&good, at, value)[..]) {
                Ok(found) => assert!(found.len() <= 6, "word {at} = {value}"),
                Err(damage) => assert!(!matches!(damage, Damage::Unreadable(_)), "word {at} = {value}: {damage}"),
            }
        }
    }
}
