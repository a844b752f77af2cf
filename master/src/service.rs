//! What a service manager is told: when the proxy is ready, that it reloads, that it stops, and that its loop turns
//! (sd_notify(3)). Without one, or one that does not listen, nothing is lost.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use sd_notify::{NotifyState, notify, watchdog_enabled};
use shared::ident::Generation;
use slog::{Logger, warn};

/// The manager that started the master, if one did.
#[derive(Debug)]
pub(crate) struct Service {
    /// How often it wants to hear that the loop turns; half of what it allows.
    every: Option<Duration>,
    /// When it is told next.
    next: Option<Instant>,
}

impl Service {
    /// As the environment describes it.
    pub(crate) fn new(now: Instant) -> Service {
        let every = watchdog_enabled().map(|allowed| allowed / 2).filter(|every| !every.is_zero());
        Service { every, next: every.map(|_| now) }
    }

    /// `generation` is served; what was asked for is done, or was refused for this `reason`.
    pub(crate) fn ready(&self, generation: Generation, refused: Option<&str>, log: &Logger) {
        let status = match refused {
            None => format!("generation {generation} serves"),
            // A status is one line.
            Some(reason) => format!("generation {generation} serves; reload refused: {}", reason.replace('\n', " ")),
        };
        tell(&[NotifyState::Ready, NotifyState::MainPid(std::process::id()), NotifyState::Status(&status)], log);
    }

    /// A reload was asked for.
    pub(crate) fn reloading(&self, log: &Logger) {
        // The kernel always tells that time; without it the manager would wait for a second notice.
        if let Ok(since) = NotifyState::monotonic_usec_now() {
            tell(&[NotifyState::Reloading, since], log);
        }
    }

    /// The end has begun.
    pub(crate) fn stopping(&self, log: &Logger) {
        tell(&[NotifyState::Stopping], log);
    }

    /// The loop turns.
    pub(crate) fn beat(&mut self, now: Instant, log: &Logger) {
        if let Some(every) = self.every
            && self.next.is_some_and(|next| next <= now)
        {
            tell(&[NotifyState::Watchdog], log);
            self.next = now.checked_add(every);
        }
    }

    /// When [`beat`](Service::beat) has something to say.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.next
    }
}

fn tell(states: &[NotifyState<'_>], log: &Logger) {
    if let Err(error) = notify(states) {
        warn!(log, "the service manager cannot be told: {}", error);
    }
}
