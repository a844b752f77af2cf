//! The black box: what a worker was doing when it died.
//!
//! It is read from the zone before the slot is freed, and is what the dead worker wrote there: it is told, and nothing is
//! done because of it but by the rule of [`quarantine`](crate::quarantine).

#![forbid(unsafe_code)]

use shared::clock::monotonic_ns;
use shared::ident::Slot;
use shared::stats::Connection;
use shared::zone::{LastWords, Zone};
use slog::{Logger, error, warn};

use crate::children::Exit;

/// How many of the exchanges that were cut beside the one that ran are told one by one.
const OTHERS_SHOWN_MAX: usize = 4;

/// What the worker in `slot` was doing when it ended, if that is worth telling. The slot must not have been released.
pub(crate) fn open(zone: &'static Zone, slot: Slot, exit: Exit, is_leaving: bool) -> Option<LastWords> {
    let words = is_opened(exit, is_leaving).then(|| zone.last_words(slot))?;
    // Who ends in order leaves nothing under way.
    (exit != Exit::Unseen || !words.in_flight.is_empty()).then_some(words)
}

/// Whether a death is one that the black box is opened for. `is_leaving` tells that the worker had been told to end: that
/// it was killed in the end is then the master's own doing.
fn is_opened(exit: Exit, is_leaving: bool) -> bool {
    match exit {
        Exit::Signal(nix::sys::signal::Signal::SIGKILL) => !is_leaving,
        Exit::Unseen | Exit::Signal(_) | Exit::Code(worker::exit::PANICKED) => true,
        Exit::Code(_) => false,
    }
}

/// Tells what it was.
pub(crate) fn tell(words: &LastWords, log: &Logger) {
    let now = monotonic_ns();
    match &words.polled {
        Some(polled) if polled.is_exchange() => {
            error!(log, "it was at work on {}", exchange(polled, now));
        }
        Some(polled) => error!(log, "it was at work on the connection of {}", polled.client_text()),
        None => error!(log, "it was at work on no exchange"),
    }
    let is_other = |other: &&Connection| words.polled.as_ref().is_none_or(|polled| polled.index != other.index);
    let others: Vec<&Connection> = words.in_flight.iter().filter(is_other).collect();
    if others.is_empty() {
        return;
    }
    warn!(log, "other exchanges were cut with it"; "exchanges" => others.len());
    for other in others.iter().take(OTHERS_SHOWN_MAX) {
        warn!(log, "cut with it: {}", exchange(other, now));
    }
}

/// An exchange in one line.
fn exchange(connection: &Connection, now: u64) -> String {
    let route = connection.route.as_ref().map_or(String::new(), |route| format!(" of route {route}"));
    let server =
        connection.server.as_ref().map_or(String::new(), |(upstream, address)| format!(" ({upstream} {address})"));
    let age = now.saturating_sub(connection.begun_ns) / 1_000_000;
    format!(
        "{}{route} for {}: {}{server}, begun {age} ms before{}",
        connection.request_line(),
        connection.client_text(),
        connection.phase.name(),
        if connection.is_torn { " (it was being written)" } else { "" },
    )
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;

    #[test]
    fn it_is_opened_for_deaths_that_nobody_ordered() {
        for (exit, is_leaving, expected) in [
            (Exit::Signal(Signal::SIGSEGV), false, true),
            (Exit::Signal(Signal::SIGSEGV), true, true),
            (Exit::Signal(Signal::SIGKILL), false, true),
            (Exit::Signal(Signal::SIGKILL), true, false),
            (Exit::Code(worker::exit::PANICKED), true, true),
            (Exit::Unseen, false, true),
            (Exit::Unseen, true, true),
            (Exit::Code(worker::exit::FAILED), false, false),
            (Exit::Code(worker::exit::OK), false, false),
        ] {
            assert_eq!(is_opened(exit, is_leaving), expected, "{exit} {is_leaving}");
        }
    }
}
