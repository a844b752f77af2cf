//! A cohort: workers started together, from one configuration, with all that they are given.

#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use conf::model::{Config, Upstream, WorkerProcesses};
use nix::unistd::geteuid;
use shared::channel::{Channel, Report};
use shared::ident::{Generation, ProcessId, Seat};
use shared::zone::{Catalog, Role as ZoneRole, Zone};
use slog::o;

use crate::children::{Child, Role};
use crate::listeners::{Company, Listeners};
use crate::logs::Logs;
use crate::rights::{Rights, allowed_cores};
use crate::runtime_dir::RuntimeDir;
use crate::spawn::fork;

/// What the workers of one configuration have in common.
#[derive(Debug)]
pub(crate) struct Cohort {
    /// The number of the configuration.
    pub(crate) generation: Generation,
    /// The configuration.
    pub(crate) config: Arc<Config>,
    /// The same as text.
    pub(crate) text: String,
    /// How many workers there are.
    pub(crate) seats: u32,
    /// The sockets they accept from.
    pub(crate) listeners: Listeners,
    /// The files they write to.
    pub(crate) logs: Logs,
    /// What they may do.
    pub(crate) rights: Rights,
}

impl Cohort {
    /// Opens all that the workers of `config` need. Sockets that are in `previous` are shared with it.
    ///
    /// # Errors
    /// A sentence for the operator. What was opened is closed again.
    pub(crate) fn open(
        generation: Generation,
        config: Arc<Config>,
        text: String,
        previous: Option<&Listeners>,
        company: Company,
    ) -> Result<Cohort, String> {
        let seats = seats(&config)?;
        let logs = Logs::open(&config)?;
        let listeners = Listeners::open(&config, seats, previous, company)?;
        match Rights::of(&config, listeners.count()) {
            Ok(rights) => Ok(Cohort { generation, config, text, seats, listeners, logs, rights }),
            Err(lack) => {
                listeners.unlink_all_but(previous);
                Err(lack.into())
            }
        }
    }

    /// Starts the worker of one seat. `also` are descriptors that it holds without knowing; one that `is_on_trial` ends with
    /// its master.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(crate) fn start_worker(
        &self,
        zone: &'static Zone,
        dir: &RuntimeDir,
        seat: Seat,
        also: Option<BorrowedFd<'_>>,
        is_on_trial: bool,
    ) -> Result<Child, String> {
        let cannot = |error: &dyn std::fmt::Display| format!("cannot start the worker of seat {seat}: {error}");
        let (ours, theirs) = Channel::pair().map_err(|error| cannot(&error))?;
        let listeners = self.listeners.share().map_err(|error| cannot(&error))?;
        let (access_log, error_log) = self.logs.share().map_err(|error| cannot(&error))?;
        let slot = zone.claim_slot(ZoneRole::Worker, Some(seat), self.generation).map_err(|error| cannot(&error))?;
        let call = dir.open_call(slot).map_err(|error| {
            zone.release_slot(slot);
            cannot(&error)
        })?;

        let owner = geteuid().as_raw();
        let mut keep = vec![theirs.as_raw_fd(), error_log.as_raw_fd(), call.as_raw_fd()];
        keep.extend(access_log.as_ref().map(AsRawFd::as_raw_fd));
        keep.extend(listeners.iter().flatten().map(AsRawFd::as_raw_fd));
        keep.extend(also.as_ref().map(AsRawFd::as_raw_fd));

        let process = fork(c"sluice-worker", &keep, || {
            if let Err(reason) = self.rights.assume_worker(seat) {
                // The exit code says the rest if the master does not listen.
                let _ = theirs.send_report(&Report::Failed(reason));
                return worker::exit::FAILED;
            }
            let (error_log, log) = self.logs.child_logger(error_log, "worker");
            let log = log.new(o!("seat" => seat.0));
            let config = Arc::clone(&self.config);
            worker::run(worker::Start {
                config,
                generation: self.generation,
                seat,
                slot,
                zone,
                channel: theirs,
                call,
                owner,
                is_on_trial,
                listeners,
                access_log,
                log,
                error_log,
            })
        });
        let process = process.map_err(|error| {
            zone.release_slot(slot);
            cannot(&error)
        })?;
        let child =
            Child::new(Role::Worker { seat, slot: Some(slot), generation: self.generation }, process, Some(ours));
        // Its own /proc entry exists until it is reaped, so this fails only where /proc is not mounted.
        if let Ok(id) = ProcessId::of(child.pid(), 0) {
            zone.enter_slot(slot, id);
        }
        Ok(child)
    }

    /// The names of all that is counted.
    pub(crate) fn catalog(&self) -> Catalog {
        let config = &self.config;
        let servers = |upstream: &Upstream| upstream.servers.iter().map(|server| server.address.to_string()).collect();
        Catalog {
            listeners: self.listeners.addresses(),
            routes: config.routes.iter().map(|route| route.name.clone()).collect(),
            upstreams: config.upstreams.iter().map(|upstream| (upstream.name.clone(), servers(upstream))).collect(),
        }
    }
}

/// How many workers `config` wants.
///
/// # Errors
/// When the kernel does not tell how many cores there are.
pub(crate) fn seats(config: &Config) -> Result<u32, String> {
    match config.worker_processes {
        WorkerProcesses::Exactly(count) => Ok(count),
        WorkerProcesses::Auto => Ok(u32::try_from(allowed_cores()?.len()).unwrap_or(1).max(1)),
    }
}
