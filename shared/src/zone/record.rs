//! The records of the zone, field by field: what a worker writes, and what a reader makes of it.
//!
//! The number after a field is its word in the record. Numbers are for ever: a field may be added at a free word,
//! none is ever moved. Word 0 belongs to the master. Then come the gauges, which it clears when the owner was reaped;
//! from `counters at` on come the counters, which stay.

#![forbid(unsafe_code)]

use std::sync::atomic::AtomicU64;

use super::cell::{Counter, Gauge, Histogram, StateCell};
use super::field::{Cell, Column, Field, Image, Place, Record, Totals};
use super::layout::Kind;

macro_rules! record {
    (
        $(#[$about:meta])*
        $cells:ident => $totals:ident, counters at $counters:literal, words $words:literal
        $(, beside { $(#[$beside_about:meta] $beside:ident: $beside_type:ty = $beside_word:literal,)* })?
        { $(#[doc = $help:literal] $field:ident: $kind:ty = $word:literal,)* }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy)]
        pub struct $cells {
            $($(#[$beside_about] pub $beside: $beside_type,)*)?
            $(#[doc = $help] pub $field: $kind,)*
        }

        impl Record for $cells {
            const COUNTERS_AT: u64 = $counters;
            const BYTES: u64 = $words * 8;

            fn find(place: &Place) -> Option<$cells> {
                Some($cells {
                    $($($beside: Cell::find(place, $beside_word)?,)*)?
                    $($field: Cell::find(place, $word)?,)*
                })
            }
        }

        impl $cells {
            /// Adds what another zone counted in the field of this name, if there is one.
            pub(super) fn carry(&self, field: &str, numbers: &[u64]) {
                $(if field == stringify!($field) {
                    Cell::carry(&self.$field, numbers);
                })*
            }
        }

        #[cfg(test)]
        impl $cells {
            const FIELDS: &[(u64, &str)] =
                &[$($(($beside_word, stringify!($beside)),)*)? $(($word, stringify!($field)),)*];
        }

        #[doc = concat!("What [`", stringify!($cells), "`] say: of one worker, or summed.")]
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct $totals {
            $(#[doc = $help] pub $field: <$kind as Column>::Total,)*
        }

        impl Totals for $totals {
            fn of(image: &Image) -> $totals {
                $totals { $($field: <$kind as Column>::read(image, $word),)* }
            }

            fn add(&mut self, other: &$totals) {
                $(<$kind as Column>::add(&mut self.$field, &other.$field);)*
            }

            fn since(&self, earlier: &$totals) -> $totals {
                $totals { $($field: <$kind as Column>::since(&self.$field, &earlier.$field),)* }
            }

            fn each(&self, visit: &mut dyn FnMut(Field<'_>)) {
                $(visit(Field {
                    name: stringify!($field),
                    help: $help.trim_ascii(),
                    value: <$kind as Column>::value(&self.$field),
                });)*
            }
        }
    };
}

record! {
    /// What a process says of itself; it alone writes.
    ProcessCells => ProcessTotals, counters at 16, words 26,
    beside {
        /// What it is doing.
        state: StateCell = 1,
        /// When its loop last said that it turns, monotonic nanoseconds: a worker does four times a second.
        heartbeat: Gauge = 2,
        /// Which of its connection records is of the exchange that is running right now: the index + 1, or zero.
        polled: Gauge = 10,
        /// When it is stopped if it has not finished draining, monotonic nanoseconds; zero while it does not drain.
        drain_due: Gauge = 11,
    }
    {
        /// Downstream connections that carry an exchange or wait for their first.
        connections_active: Gauge = 3,
        /// Downstream connections kept alive between exchanges.
        connections_idle: Gauge = 4,
        /// Exchanges in flight.
        requests_active: Gauge = 5,
        /// Open file descriptors.
        descriptors: Gauge = 6,
        /// Upstream connections kept for reuse.
        upstream_idle: Gauge = 7,
        /// Upstream connections that carry an exchange.
        upstream_active: Gauge = 8,
        /// Bytes of all connection buffers.
        buffers_bytes: Gauge = 9,
        /// Downstream connections accepted.
        accepted: Counter = 16,
        /// Exchanges ended.
        requests: Counter = 17,
        /// Panics caught in tasks.
        panics: Counter = 18,
        /// Access log lines dropped because the log lagged.
        log_lines_dropped: Counter = 19,
        /// Downstream connections that could not be accepted, for want of descriptors or memory.
        accept_failures: Counter = 20,
        /// Idle downstream connections closed to make room.
        idle_evicted: Counter = 21,
        /// Turns of the event loop.
        turns: Counter = 22,
        /// Downstream connections handed over to another worker.
        handed_over: Counter = 23,
        /// Downstream connections taken over from another worker.
        taken_over: Counter = 24,
        /// Requests refused because others like them have killed workers.
        quarantined: Counter = 25,
    }
}

record! {
    /// A worker's share of a listener.
    ListenerCells => ListenerTotals, counters at 4, words 9,
    beside {
        /// The listener's index in the zone.
        index: u32 = 0,
    }
    {
        /// Connections open.
        active: Gauge = 1,
        /// Connections accepted.
        accepted: Counter = 4,
        /// Exchanges ended.
        requests: Counter = 5,
        /// Bytes received from clients.
        bytes_in: Counter = 6,
        /// Bytes sent to clients.
        bytes_out: Counter = 7,
        /// Requests refused as malformed.
        bad_requests: Counter = 8,
    }
}

record! {
    /// A worker's share of a route.
    RouteCells => RouteTotals, counters at 4, words 13,
    beside {
        /// The route's index in the zone.
        index: u32 = 0,
    }
    {
        /// Exchanges ended.
        requests: Counter = 4,
        /// Exchanges by class of their status.
        status: [Counter; 5] = 5,
        /// Bytes of requests, heads and framing included.
        bytes_in: Counter = 10,
        /// Bytes of responses, heads and framing included.
        bytes_out: Counter = 11,
        /// Exchanges whose client went away.
        aborted: Counter = 12,
        /// Time from the first byte of a request to the last of its response.
        latency: Histogram = 0,
    }
}

record! {
    /// A worker's share of an upstream.
    UpstreamCells => UpstreamTotals, counters at 4, words 7
    {
        /// Requests sent.
        requests: Counter = 4,
        /// Requests sent again after a failed attempt.
        retries: Counter = 5,
        /// Exchanges that failed on the upstream side.
        faults: Counter = 6,
        /// Time from the start of an attempt, connecting included, to the end of the response's head.
        latency: Histogram = 0,
    }
}

record! {
    /// A worker's share of a server.
    ServerCells => ServerTotals, counters at 8, words 20,
    beside {
        /// Its health word, shared by all processes: see [`health`](crate::health).
        health: &'static AtomicU64 = 0,
        /// The server's index in the zone.
        index: u32 = 0,
    }
    {
        /// Requests in flight.
        in_flight: Gauge = 1,
        /// Connections kept for reuse.
        idle: Gauge = 2,
        /// Requests sent.
        requests: Counter = 8,
        /// Connections made.
        connects: Counter = 9,
        /// Connections that could not be made.
        connect_failures: Counter = 10,
        /// Requests given up because the server was too slow.
        timeouts: Counter = 11,
        /// Requests that failed on the server's side, timeouts included.
        faults: Counter = 12,
        /// Responses by class of their status.
        status: [Counter; 5] = 13,
        /// Bytes received from the server.
        bytes_in: Counter = 18,
        /// Bytes sent to the server.
        bytes_out: Counter = 19,
        /// Time from the start of an attempt, connecting included, to the end of the response's head.
        latency: Histogram = 0,
    }
}

/// The bytes used of a process record.
pub(super) const PROCESS_BYTES: u64 = ProcessCells::BYTES;

/// The bytes used of the cells of an object.
pub(super) fn bytes(kind: Kind) -> u64 {
    match kind {
        Kind::Listener => ListenerCells::BYTES,
        Kind::Route => RouteCells::BYTES,
        Kind::Upstream => UpstreamCells::BYTES,
        Kind::Server => ServerCells::BYTES,
    }
}

/// The words of an object's cells that end with their owner.
pub(super) fn gauges(kind: Kind) -> std::ops::Range<u64> {
    1..match kind {
        Kind::Listener => ListenerCells::COUNTERS_AT,
        Kind::Route => RouteCells::COUNTERS_AT,
        Kind::Upstream => UpstreamCells::COUNTERS_AT,
        Kind::Server => ServerCells::COUNTERS_AT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_layout_is_this_one() {
        let page = include_str!("../../../docs/zone.md");
        for (title, record, fields) in [
            ("Processes (3)", ProcessCells::BYTES, ProcessCells::FIELDS),
            ("Cells of listeners (9)", ListenerCells::BYTES, ListenerCells::FIELDS),
            ("Cells of routes (10)", RouteCells::BYTES, RouteCells::FIELDS),
            ("Cells of upstreams (11)", UpstreamCells::BYTES, UpstreamCells::FIELDS),
            ("Cells of servers (12)", ServerCells::BYTES, ServerCells::FIELDS),
        ] {
            let section = page.split("### ").find(|section| section.starts_with(title)).expect(title);
            let rows = section.lines().filter(|line| line.contains('`'));
            let written: Vec<&str> =
                rows.map(|row| row.rsplit_once(" |").unwrap().0.rsplit_once(" |").unwrap().0).collect();
            let mut fields: Vec<_> = fields.iter().filter(|(_, name)| !["health", "index"].contains(name)).collect();
            fields.sort();
            let actual: Vec<String> = fields.iter().map(|(word, name)| format!("| {word} | `{name}`")).collect();
            assert_eq!(written, actual, "{title}");
            let (last, _) = fields[fields.len() - 1];
            assert!(record >= (last + 1) * 8, "{title}");
        }
    }
}
