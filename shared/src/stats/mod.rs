//! What happened: the cells a worker writes and the snapshot a reader takes.

#![forbid(unsafe_code)]

mod distribution;
mod flight;
mod reader;
mod snapshot;

pub use distribution::Distribution;
pub use flight::Connection;
pub use snapshot::{Condition, Object, Process, Quarantined, Server, Snapshot, Upstream, Verdict};

pub use crate::zone::{
    Counter, Field, Gauge, Histogram, ListenerCells, ListenerTotals, ProcessCells, ProcessTotals, RouteCells,
    RouteTotals, ServerCells, ServerTotals, State, StateCell, Totals, UpstreamCells, UpstreamTotals, Value,
};
