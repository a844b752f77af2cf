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

use std::collections::VecDeque;
use std::io;

/// How many parked sources are handed over a turn. Under load those that wait are many, and what is under way had better
/// end before more is begun: it then needs fewer connections to servers and less memory, and both stay warm.
const STARTS_PER_TURN: usize = 16;

/// Runs the loop until `stop` says so. `idle_ready` is called, between poll and tasks, for each parked source that became
/// ready, in their order.
///
/// # Errors
/// When the poll fails, which the kernel does only for a bug of ours or for want of memory.
pub(crate) fn run(mut idle_ready: impl FnMut(reactor::Parked), mut stop: impl FnMut() -> bool) -> io::Result<()> {
    let mut ready = VecDeque::new();
    clock::sample();
    loop {
        executor::run_queued();
        if stop() {
            return Ok(());
        }
        let now = clock::now();
        let wait = if executor::has_queued() || !ready.is_empty() {
            Some(0)
        } else {
            let due = [timer::next_due(), reactor::next_due()].into_iter().flatten().min();
            due.map(|due| due.saturating_sub(now))
        };
        reactor::turn(wait.map(std::time::Duration::from_nanos), &mut ready)?;
        clock::sample();
        timer::fire(clock::now());
        reactor::watch_late(clock::now());
        for parked in ready.drain(..ready.len().min(STARTS_PER_TURN)) {
            idle_ready(parked);
        }
    }
}
