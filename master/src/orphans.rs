//! Workers that a killed master left behind. They go on serving until the next master is ready; then they drain.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use shared::stats::Snapshot;
use shared::zone::{Role, Zone, ZoneError};
use slog::{Logger, info, warn};

use crate::runtime_dir::RuntimeDir;

/// Living workers of a master that is not there any more.
#[derive(Debug)]
pub(crate) struct Orphans {
    /// What they share.
    zone: PathBuf,
}

impl Orphans {
    /// Looks for them in the zone of `dir`, whose lock the caller holds: no master runs there. Their pids decide only
    /// whether listening sockets are shared with them; nothing is done to the processes.
    pub(crate) fn find(dir: &RuntimeDir, log: &Logger) -> Option<Orphans> {
        let zone = dir.zone();
        let snapshot = match Snapshot::read(&zone) {
            Ok(snapshot) => snapshot,
            Err(ZoneError::Absent(_)) => return None,
            Err(error) => {
                warn!(log, "a zone was left behind that tells nothing: {}", error);
                return None;
            }
        };
        let is_orphan = |role: Option<Role>, is_alive: bool| is_alive && role == Some(Role::Worker);
        let pids: Vec<_> = snapshot
            .processes
            .iter()
            .filter(|process| is_orphan(process.role, process.is_alive))
            .map(|process| process.id.pid.to_string())
            .collect();
        if pids.is_empty() {
            info!(log, "a master ended here without cleaning up, and left no process behind"; "master" => snapshot.creator.pid);
            return None;
        }
        warn!(log, "a killed master left workers behind: they serve until this one is ready";
            "master" => snapshot.creator.pid, "workers" => pids.join(" "));
        Some(Orphans { zone })
    }

    /// Tells them that another master is there. Call it before the zone file is replaced.
    ///
    /// # Errors
    /// When the zone cannot be written; then they serve on beside the new workers.
    pub(crate) fn retire(&self) -> Result<(), ZoneError> {
        Zone::retire_file(&self.zone)
    }
}
