//! `sluice quarantine`: the requests that are refused because workers have died of them.

#![forbid(unsafe_code)]

use clap::Args;
use shared::stats::{Quarantined, Snapshot};
use shared::zone::ZoneError;

use super::stats::quantity::age;
use super::{complain, exit, order, print};
use crate::requests::Request;
use crate::runtime_dir::RuntimeDir;

/// What `sluice quarantine` is asked for.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct QuarantineArgs {
    /// Take all of them again
    #[arg(long)]
    clear: bool,
}

/// Tells what the proxy of `dir` refuses, or ends that.
pub(crate) fn run(args: QuarantineArgs, dir: &RuntimeDir) -> u8 {
    if args.clear {
        return order(dir, &Request::ClearQuarantine);
    }
    match Snapshot::read(&dir.zone()) {
        Ok(now) if now.quarantined.is_empty() => print("no request is in quarantine"),
        Ok(now) => {
            let lines: Vec<String> = now.quarantined.iter().map(|banned| line(banned, now.taken_ns)).collect();
            print(&lines.join("\n"))
        }
        Err(error @ ZoneError::Absent(_)) => {
            complain(&format!("no proxy runs in {}: {error}", dir.path().display()));
            exit::ABSENT
        }
        Err(error) => complain(&error.to_string()),
    }
}

/// A request in quarantine, `now` being monotonic nanoseconds.
pub(super) fn line(banned: &Quarantined, now: u64) -> String {
    let Quarantined { method, path, route, .. } = banned;
    let cut = if banned.is_cut { "..." } else { "" };
    let left = age(banned.until_ns.saturating_sub(now));
    format!(
        "quarantine: {method} {path}{cut} of route {route} is refused for another {left}, as workers have died of it"
    )
}
