//! What says that a runtime directory is this master's: lock, pid file, socket for commands, what is served, the zone's holder.

#![forbid(unsafe_code)]

use shared::ident::{ProcessId, Slot};
use shared::zone::Zone;
use slog::error;

use crate::children::Child;
use crate::committed::Committed;
use crate::cycle::Master;
use crate::lock::PidFile;
use crate::requests::Requests;

impl Master {
    /// Opens the socket for commands, and says in pid file and lock whose directory this is.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(crate) fn become_known(&mut self) -> Result<(), String> {
        if let Some(lock) = &mut self.lock {
            lock.claim().map_err(|error| format!("cannot write {}: {error}", self.dir.lock().display()))?;
        }
        self.requests = Some(Requests::open(&self.dir.master_socket())?);
        // Last: whoever sees it may act on it.
        self.pid_file = Some(PidFile::write(self.dir.pid_file())?);
        Ok(())
    }

    /// Writes down what is served.
    pub(crate) fn note_committed(&mut self) {
        let Some(serving) = &self.serving else { return };
        match Committed::write(&self.dir.committed(), &self.recipe.name(), &serving.text) {
            Ok(committed) => self.committed = Some(committed),
            Err(reason) => error!(self.log, "`sluice plan` and `sluice status` cannot tell what is served: {}", reason),
        }
    }

    /// Goes on with a zone that another master has held meanwhile.
    pub(crate) fn take_zone_back(&mut self, zone: Option<&'static Zone>) {
        let Some(zone) = zone else { return };
        let own: Vec<Slot> = self.children.iter().filter_map(Child::slot).collect();
        let (strangers, reserved) = zone.take_back(&own);
        self.strangers = strangers;
        if let Err(error) = reserved {
            error!(self.log, "cannot make sure of the zone's memory: {}", error);
        }
        if let Ok(us) = ProcessId::current(0) {
            zone.hold(us);
        }
        // What the other had published is taken back; names that both have kept their places.
        if let Some(Err(fault)) = self.serving.as_ref().map(|serving| zone.publish(&serving.catalog())) {
            error!(self.log, "cannot publish the configuration's names again: {}", fault);
        }
        self.zone = Some(zone);
    }
}
