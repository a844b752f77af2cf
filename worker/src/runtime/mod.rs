//! The ground a worker stands on: one thread, one poll, futures that never leave it.
//!
//! A turn is: one clock sample, the tasks that were queued when it began, then one poll. Everything here is
//! thread-local; nothing is `Send`, so nothing needs a lock. What lies above sees sockets ([`net`]), deadlines
//! ([`timer`]), the clock ([`clock`]) and pooled memory ([`buffer`]).

pub(crate) mod buffer;
pub(crate) mod clock;
pub(crate) mod executor;
pub(crate) mod net;
pub(crate) mod reactor;
pub(crate) mod sync;
pub(crate) mod timer;

use std::io;

/// Runs the loop until `stop` says so. `idle_ready` is called, between tasks and poll, for each parked source that
/// became ready.
///
/// # Errors
/// When the poll fails, which the kernel does only for a bug of ours or for want of memory.
pub(crate) fn run(mut idle_ready: impl FnMut(reactor::Parked), mut stop: impl FnMut() -> bool) -> io::Result<()> {
    let mut ready = Vec::new();
    loop {
        clock::sample();
        executor::run_queued();
        if stop() {
            return Ok(());
        }
        let now = clock::now();
        let wait = if executor::has_queued() { Some(0) } else { timer::next_due().map(|due| due.saturating_sub(now)) };
        reactor::turn(wait.map(std::time::Duration::from_nanos), &mut ready)?;
        clock::sample();
        timer::fire(clock::now());
        for parked in ready.drain(..) {
            idle_ready(parked);
        }
    }
}
