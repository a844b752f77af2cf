//! The data plane: one loop that moves bytes.
//!
//! A worker is forked with everything it needs (see [`Start`]), serves until it is told to stop, and returns a code to
//! exit with. The page to read first is [`pipeline`]; what it stands on is below it:
//!
//! ```text
//! downstream, command
//! pipeline
//! site
//! router  middleware  balance  upstream  relay      (strangers to one another)
//! proto  observe
//! runtime  message  helper  stack
//! ```

mod balance;
mod command;
mod downstream;
pub mod fuzz;
mod helper;
mod message;
mod middleware;
mod observe;
mod pipeline;
mod proto;
mod relay;
mod router;
mod runtime;
#[cfg(test)]
mod simulation;
mod site;
pub mod stack;
mod upstream;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use conf::model::Config;
use shared::channel::{Channel, Report};
use shared::ident::{Generation, Seat, Slot};
use shared::log::Target;
use shared::zone::Zone;
use slog::Logger;

/// Codes that a worker exits with.
pub mod exit {
    /// It did what it was told.
    pub const OK: i32 = 0;
    /// It could not start, or its loop failed.
    pub const FAILED: i32 = 1;
    /// A panic outside of any exchange.
    pub const PANICKED: i32 = 101;
}

/// Everything that a worker is given.
pub struct Start {
    /// What to serve.
    pub config: Arc<Config>,
    /// The number of the configuration.
    pub generation: Generation,
    /// Which of the listening sockets are its own.
    pub seat: Seat,
    /// Its record in the zone.
    pub slot: Slot,
    /// The zone, in which everything that `config` names was published.
    pub zone: &'static Zone,
    /// Its end of the channel to the master.
    pub channel: Channel,
    /// A unix socket of packets that is bound in the runtime directory: where another master finds it when this one is
    /// gone.
    pub call: OwnedFd,
    /// The user whose master may come there; root's may as well.
    pub owner: u32,
    /// Whether its master may yet give up its place: the worker then ends with it.
    pub is_on_trial: bool,
    /// For each listener of `config`, its sockets: one a seat, or one.
    pub listeners: Vec<Vec<OwnedFd>>,
    /// Where the access log goes, if there is one.
    pub access_log: Option<File>,
    /// Where errors go.
    pub log: Logger,
    /// What `log` writes to: it is replaced when log files are reopened.
    pub error_log: Target,
}

/// Serves until told to stop. Call it in a process of its own, on its only thread, after privileges were dropped.
///
/// Returns a code of [`exit`]. What went wrong before it served is reported to the master.
pub fn run(start: Start) -> i32 {
    let log = start.log.clone();
    if let Err(error) = stack::tell_by(&start.channel) {
        slog::warn!(log, "should the loop stand still, it cannot be told where"; "reason" => %error);
    }
    match command::Worker::start(start) {
        Ok(worker) => worker.run(),
        Err((channel, reason)) => {
            slog::crit!(log, "the worker cannot start: {}", reason);
            // The exit code says the rest if the master does not listen.
            let _ = channel.send_report(&Report::Failed(reason));
            exit::FAILED
        }
    }
}

/// Tries whether a worker could serve `config`, without touching anything.
///
/// # Errors
/// A sentence for the operator.
pub fn check(config: &Config) -> Result<(), String> {
    site::Blueprint::draw(Arc::new(config.clone()));
    Ok(())
}
