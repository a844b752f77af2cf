//! Workers that a killed master left behind. They go on serving until the next master is ready; then they drain.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use shared::ident::ProcessId;
use shared::stats::Snapshot;
use shared::zone::{Zone, ZoneError};
use slog::{Logger, info, warn};

use crate::runtime_dir::RuntimeDir;

/// Living workers of a master that is not there any more.
#[derive(Debug)]
pub(crate) struct Orphans {
    /// What they share.
    zone: PathBuf,
    /// The master that was killed.
    pub(crate) master: ProcessId,
    /// Whether they were told to finish already.
    pub(crate) are_retired: bool,
    /// They. What a zone says of pids is for people, and for waiting: nothing is done to the processes.
    pub(crate) workers: Vec<ProcessId>,
}

impl Orphans {
    /// Looks for them in the zone of `dir`, where no master runs. There may be none left: then `workers` is empty.
    ///
    /// # Errors
    /// When there is no zone, or one that tells nothing.
    pub(crate) fn look(dir: &RuntimeDir) -> Result<Orphans, ZoneError> {
        let zone = dir.zone();
        let snapshot = Snapshot::read(&zone)?;
        let workers = snapshot.workers().filter(|process| process.is_alive).map(|process| process.id).collect();
        Ok(Orphans { zone, master: snapshot.master, are_retired: snapshot.is_retired, workers })
    }

    /// Looks for them on behalf of a new master, and logs what was found.
    pub(crate) fn find(dir: &RuntimeDir, log: &Logger) -> Option<Orphans> {
        let orphans = match Orphans::look(dir) {
            Ok(orphans) => orphans,
            Err(ZoneError::Absent(_)) => return None,
            Err(error) => {
                warn!(log, "a zone was left behind that tells nothing: {}", error);
                return None;
            }
        };
        if orphans.workers.is_empty() {
            info!(log, "a master ended here without cleaning up, and left no process behind"; "master" => orphans.master.pid);
            return None;
        }
        warn!(log, "a killed master left workers behind: they serve until this one is ready";
            "master" => orphans.master.pid, "workers" => orphans.pids());
        Some(orphans)
    }

    /// Their pids, for people.
    pub(crate) fn pids(&self) -> String {
        self.workers.iter().map(|worker| worker.pid.to_string()).collect::<Vec<_>>().join(" ")
    }

    /// Whether one of them still runs.
    pub(crate) fn are_alive(&self) -> bool {
        self.workers.iter().any(|worker| worker.is_alive())
    }

    /// Has them finish, as when another master is there. Call it before the zone file is replaced.
    ///
    /// # Errors
    /// When the zone cannot be written; then they serve on beside the new workers.
    pub(crate) fn retire(&self) -> Result<(), ZoneError> {
        Zone::retire_file(&self.zone, self.master)
    }
}
