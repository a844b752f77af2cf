//! `sluice upgrade`: another binary in the place of the running one, as one transaction.

#![forbid(unsafe_code)]

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::interval::Interval;
use super::{complain, exit, print};
use crate::lock::{Holder, holder};
use crate::requests::{Request, ask};
use crate::runtime_dir::RuntimeDir;
use crate::upgrade::binary_of;

/// How long the master may take beyond the watch.
const PATIENCE: Duration = Duration::from_secs(90);

/// What `sluice upgrade` takes.
#[derive(Debug, Clone, Args)]
pub(super) struct UpgradeArgs {
    /// The new binary; by default the file that now lies where the running one was started from
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// How long one new worker is compared with the old ones before the rest follow
    #[arg(long, value_name = "TIME", default_value = "30s")]
    watch: Interval,
    /// Have all follow as soon as they are ready
    #[arg(long, conflicts_with_all = ["watch", "min_requests"])]
    no_watch: bool,
    /// How many requests that worker must have answered by then; with fewer the upgrade is undecided, and rolled back
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    min_requests: u64,
}

/// Upgrades, and tells how that went.
pub(super) fn run(args: &UpgradeArgs, dir: &RuntimeDir, quiet: bool) -> u8 {
    let place = dir.path().display();
    let master = match holder(&dir.lock()) {
        Ok(Some(Holder { pid: Some(pid) })) => pid,
        Ok(Some(Holder { pid: None })) => return complain(&format!("the master in {place} is just starting")),
        Ok(None) => {
            complain(&format!("no proxy runs in {place}"));
            return exit::ABSENT;
        }
        Err(error) => return complain(&format!("cannot look for a proxy in {place}: {error}")),
    };
    let path = match args.binary.clone().map_or_else(|| binary_of(master.cast_unsigned()), Ok) {
        Ok(path) => path,
        Err(error) => return complain(&format!("cannot tell what the master ({master}) was started from: {error}")),
    };
    let binary = match File::open(&path) {
        Ok(file) => file.into(),
        Err(error) => return complain(&format!("cannot open {}: {error}", path.display())),
    };
    let watch = if args.no_watch { Duration::ZERO } else { args.watch.0 };
    let request = Request::Upgrade { binary, watch, requests_min: args.min_requests };
    let note = |text: &str| {
        if !quiet {
            print(text);
        }
    };
    match ask(&dir.master_socket(), &request, PATIENCE.saturating_add(watch), note) {
        Ok(_) if quiet => exit::DONE,
        Ok(text) => print(&format!("upgraded: {text}")),
        Err(reason) => complain(&format!("not upgraded: {reason}")),
    }
}
