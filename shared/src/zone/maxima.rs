//! Maxima: what a zone is laid out for.

#![forbid(unsafe_code)]

use super::layout::Kind;

/// The most process slots of any zone.
pub const SLOTS_MAX: u32 = 4096;
/// The most objects of one kind of any zone.
pub const OBJECTS_MAX: u32 = 1 << 20;
/// The most connections of one worker that have a record; those beyond it are served and not recorded.
pub const FLIGHTS_MAX: u32 = 8192;

/// How much a zone can hold. It is fixed for the zone's life; only what is used takes memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maxima {
    /// Processes alive at once; at most [`SLOTS_MAX`].
    pub slots: u32,
    /// Listeners.
    pub listeners: u32,
    /// Routes, the reserved `(none)` included.
    pub routes: u32,
    /// Upstreams.
    pub upstreams: u32,
    /// Servers of all upstreams.
    pub servers: u32,
    /// Connections of one worker that have a record; at most [`FLIGHTS_MAX`].
    pub flights: u32,
}

impl Maxima {
    /// For at most `workers` workers: three processes a seat, for a reload during a reload, one `control` and two masters.
    #[must_use]
    pub fn for_workers(workers: u32) -> Maxima {
        Maxima { slots: workers.saturating_mul(3).saturating_add(3), ..Maxima::default() }
    }

    /// The same with records for `connections` of each worker, or [`FLIGHTS_MAX`] if that is fewer.
    #[must_use]
    pub fn with_connections(self, connections: u32) -> Maxima {
        Maxima { flights: connections.min(FLIGHTS_MAX), ..self }
    }

    /// Of objects of one kind.
    pub(super) fn of(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Listener => self.listeners,
            Kind::Route => self.routes,
            Kind::Upstream => self.upstreams,
            Kind::Server => self.servers,
        }
    }
}

impl Default for Maxima {
    fn default() -> Maxima {
        Maxima { slots: 64 * 3 + 3, listeners: 64, routes: 4096, upstreams: 1024, servers: 8192, flights: 1024 }
    }
}
