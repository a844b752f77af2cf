//! `sluice stats`: what the zone says, once or again and again.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::path::Path;

use clap::Args;
use nix::poll::{PollTimeout, poll};
use shared::clock::SECOND_NS;
use shared::stats::Snapshot;
use shared::zone::ZoneError;

use super::exit;
use super::interval::Interval;

mod json;
mod openmetrics;
pub(super) mod quantity;
pub(super) mod table;

/// What `sluice stats` is asked for.
#[derive(Debug, Clone, Args)]
pub(crate) struct StatsArgs {
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// Print OpenMetrics text
    #[arg(long, conflicts_with_all = ["json", "interval"])]
    openmetrics: bool,
    /// Show each worker's share
    #[arg(long)]
    by_worker: bool,
    /// Look again after this long, and show rates
    #[arg(long, value_name = "TIME")]
    interval: Option<Interval>,
    /// Stop after so many intervals
    #[arg(long, value_name = "N", requires = "interval", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// What is shown: the zone now, and what has happened in the last interval.
struct View {
    now: Snapshot,
    recent: Option<Recent>,
    by_worker: bool,
}

struct Recent {
    change: Snapshot,
    seconds: f64,
}

/// Prints what the proxy with runtime directory `dir` counts.
pub(crate) fn run(args: StatsArgs, dir: &Path) -> i32 {
    match show(&args, &dir.join("zone")) {
        // Whoever reads us has seen enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => exit::DONE.into(),
        Err(Failure::Output(error)) => failed(&error, exit::FAILED),
        Err(Failure::Zone(error @ ZoneError::Absent(_))) => failed(&error, exit::ABSENT),
        Err(Failure::Zone(error)) => failed(&error, exit::FAILED),
        Ok(()) => exit::DONE.into(),
    }
}

enum Failure {
    Zone(ZoneError),
    Output(io::Error),
}

impl From<ZoneError> for Failure {
    fn from(error: ZoneError) -> Failure {
        Failure::Zone(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}

fn failed(error: &dyn std::fmt::Display, code: u8) -> i32 {
    eprintln!("sluice: {error}");
    code.into()
}

fn show(args: &StatsArgs, zone: &Path) -> Result<(), Failure> {
    let mut earlier = Snapshot::read(zone)?;
    let Some(Interval(interval)) = args.interval else {
        return print(args, &View { now: earlier, recent: None, by_worker: args.by_worker });
    };
    let wait = PollTimeout::try_from(interval).unwrap_or(PollTimeout::MAX);
    let mut left = args.count;
    while left != Some(0) {
        // Nothing to wait for but time.
        let _ = poll(&mut [], wait);
        let now = Snapshot::read(zone)?;
        let recent = Recent { change: now.since(&earlier), seconds: seconds(now.taken_ns - earlier.taken_ns) };
        earlier = now.clone();
        print(args, &View { now, recent: Some(recent), by_worker: args.by_worker })?;
        left = left.map(|left| left - 1);
    }
    Ok(())
}

fn print(args: &StatsArgs, view: &View) -> Result<(), Failure> {
    let text = match args {
        StatsArgs { json: true, .. } => json::render(view),
        StatsArgs { openmetrics: true, .. } => openmetrics::render(view),
        _ => table::render(view),
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

#[expect(clippy::cast_precision_loss)]
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / SECOND_NS as f64
}
