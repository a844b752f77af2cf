//! The end of a master: what is told to whom, and what is left to another one.

#![forbid(unsafe_code)]

use std::time::Instant;

use shared::zone::Zone;
use slog::{crit, info, warn};

use crate::children::{Child, Role, Urgency};
use crate::committed::Committed;
use crate::cycle::Master;
use crate::daemon::Outcome;
use crate::lock::{Lock, PidFile};
use crate::reload::Change;
use crate::swap::Swap;
use crate::upgrade::Upgrade;

impl Master {
    /// Ends with an error, at once; if another master goes on, its workers may finish.
    pub(crate) fn fail(&mut self, reason: String, now: Instant) {
        self.outcome = Outcome { code: 1, text: reason.clone() };
        if !self.renounce(&reason) {
            crit!(self.log, "cannot go on: {}", reason);
            self.stop(Urgency::Stop, now);
        }
    }

    /// Ends all, as urgently as is asked; a second time more urgently.
    pub(crate) fn stop(&mut self, urgency: Urgency, now: Instant) {
        if self.stopping >= Some(urgency) {
            return;
        }
        if self.stopping.is_none() {
            self.stopping = Some(urgency);
            self.leave_upgrade(now);
            self.renounce("the other binary was stopped");
            if !self.is_superseded {
                self.service.stopping(&self.log);
            }
            info!(self.log, "stopping"; "how" => if urgency == Urgency::Drain { "when all is finished" } else { "at once" });
        }
        self.stopping = Some(urgency);
        self.respawns.clear();
        self.requests = None;
        self.summoned.clear();
        let patience = self.patience();
        // A start that failed leaves the workers of a killed master, and their sockets, to the next one.
        let leaves_orphans = self.pid_file.is_none() && self.outcome.code != 0;
        let survivor = self.inherited.as_ref().filter(|_| leaves_orphans);
        if let Some(Change::Starting { cohort, .. } | Change::Swapping(Swap { cohort: Some(cohort), .. })) =
            self.change.take()
        {
            cohort.listeners.unlink_all_but(survivor);
        }
        if let Some(cohort) = &mut self.serving {
            cohort.listeners.unlink_all_but(survivor);
            cohort.listeners.close();
        }
        match leaves_orphans {
            true => self.children.release_adopted(),
            false => self.inherited.iter().for_each(|inherited| inherited.unlink_all_but(None)),
        }
        // Closed before workers are told, so that the queues which they run dry are the last of it.
        self.retiring.clear();
        self.inherited = None;
        self.children.urge(Urgency::Kill, now, patience, |child| child.role == Role::Proof);
        self.children.urge(urgency, now, patience, Child::is_worker);
    }

    /// Leaves nothing behind that is this master's, and tells how it went.
    pub(crate) fn end(self) -> Outcome {
        // One that was stopped while it took over from a killed one has stopped that one's workers.
        let has_served = self.pid_file.is_some() || self.outcome.code == 0 && self.zone.is_some() && !self.has_new_zone;
        // These are told apart by the pid in them.
        self.pid_file.into_iter().for_each(PidFile::remove);
        self.upgrade.into_iter().for_each(Upgrade::end);
        if !self.is_superseded {
            if let Some(control) = self.control {
                control.unlink();
            }
            if has_served {
                // Who stood still, and is no child, finishes when it turns again.
                self.zone.into_iter().for_each(Zone::retire);
                // The zone of a master that never served lies under another name, and was nobody's.
                let _ = std::fs::remove_file(self.dir.zone());
                let _ = std::fs::remove_file(self.dir.master_socket());
                self.committed.into_iter().for_each(Committed::remove);
                // None of ours is left, and those of another master's trial that are end by themselves.
                self.dir.calls().into_iter().for_each(|slot| self.dir.remove_call(slot));
            }
            if self.has_new_zone {
                let _ = std::fs::remove_file(self.dir.zone().with_extension("new"));
            }
        }
        info!(self.log, "stopped"; "code" => self.outcome.code);
        if !self.is_superseded
            && let Some(Err(error)) = self.lock.map(Lock::give_back)
        {
            warn!(self.log, "cannot clear the lock file"; "reason" => %error);
        }
        if let Some(launch) = self.launch {
            let early = Outcome { code: 1, text: "it was stopped before it was ready".into() };
            launch.report(if self.outcome.code == 0 { &early } else { &self.outcome });
        }
        self.outcome
    }
}
