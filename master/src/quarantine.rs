//! The rule by which requests that kill workers are refused.
//!
//! A request is told from others by route, method and path. Only deaths count that are a fault of code, and only for the
//! exchange whose code ran then. It holds for the configuration that was served: a reload may have mended it.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use shared::clock::monotonic_ns;
use shared::zone::{BANS_MAX, Ban, Request};
use slog::{info, warn};

use crate::children::Exit;
use crate::cycle::Master;

/// How many workers have to die of a request, within [`DURATION_NS`], until it is refused.
const DEATHS: usize = 3;
/// For how long it is refused, in nanoseconds.
const DURATION_NS: u64 = 600 * shared::clock::SECOND_NS;
/// How many deaths are remembered; beyond that the oldest is forgotten.
const DEATHS_REMEMBERED_MAX: usize = 64;

/// Who died of what, and what is refused. Times are monotonic nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    /// Fingerprints and when a worker died of one, oldest first.
    deaths: VecDeque<(u64, u64)>,
    bans: Vec<Ban>,
}

impl Quarantine {
    /// A worker has died of a request at `now`; says whether that is refused from now on.
    pub(crate) fn on_death(&mut self, fingerprint: u64, request: &Request, now: u64) -> bool {
        self.deaths.retain(|(_, at)| now.saturating_sub(*at) < DURATION_NS);
        if self.deaths.len() == DEATHS_REMEMBERED_MAX {
            self.deaths.pop_front();
        }
        self.deaths.push_back((fingerprint, now));
        let is_known = self.bans.iter().any(|ban| ban.fingerprint == fingerprint);
        let deaths = self.deaths.iter().filter(|(of, _)| *of == fingerprint).count();
        if !is_known && deaths < DEATHS {
            return false;
        }
        self.deaths.retain(|(of, _)| *of != fingerprint);
        self.bans.retain(|ban| ban.fingerprint != fingerprint);
        if self.bans.len() == BANS_MAX {
            // They are in the order of their ends.
            self.bans.remove(0);
        }
        self.bans.push(Ban { fingerprint, request: request.clone(), until_ns: now.saturating_add(DURATION_NS) });
        true
    }

    /// Forgets what is refused no longer; says whether that was anything.
    pub(crate) fn expire(&mut self, now: u64) -> bool {
        let before = self.bans.len();
        self.bans.retain(|ban| ban.until_ns > now);
        self.bans.len() != before
    }

    /// When [`expire`](Quarantine::expire) has something to do.
    pub(crate) fn next_end(&self) -> Option<u64> {
        self.bans.first().map(|ban| ban.until_ns)
    }

    /// Forgets everything; says how many requests were refused.
    pub(crate) fn clear(&mut self) -> usize {
        self.deaths.clear();
        std::mem::take(&mut self.bans).len()
    }
}

/// Whether a death tells that code failed.
pub(crate) fn is_fault(exit: Exit) -> bool {
    use Signal::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV};
    matches!(exit, Exit::Signal(SIGSEGV | SIGBUS | SIGILL | SIGABRT | SIGFPE))
}

impl Master {
    /// A worker of the configuration that is served has died of `request`.
    pub(crate) fn suspect(&mut self, request: &Request) {
        let Some(zone) = self.zone else { return };
        let Some(table) = zone.quarantine() else { return };
        if self.quarantine.on_death(table.fingerprint(request), request, monotonic_ns()) {
            table.set(&self.quarantine.bans);
            let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
            warn!(self.log, "{DEATHS} workers have died of such a request: it is refused";
                "route" => zone.route_name(request.route).unwrap_or_default(), "method" => text(&request.method),
                "path" => text(&request.path), "seconds" => DURATION_NS / shared::clock::SECOND_NS);
        }
    }

    /// Takes requests again whose time is over.
    pub(crate) fn lift_quarantine(&mut self) {
        if self.quarantine.expire(monotonic_ns()) {
            self.write_quarantine();
        }
    }

    /// When [`lift_quarantine`](Master::lift_quarantine) has something to do.
    pub(crate) fn next_lift(&self, now: Instant) -> Option<Instant> {
        let left = self.quarantine.next_end()?.saturating_sub(monotonic_ns());
        now.checked_add(Duration::from_nanos(left))
    }

    /// Takes every request again, and forgets who died of what; says how many were refused.
    pub(crate) fn clear_quarantine(&mut self) -> usize {
        let count = self.quarantine.clear();
        // Also where nothing is refused, as the zone may be an earlier master's.
        self.write_quarantine();
        if count > 0 {
            info!(self.log, "quarantine is over"; "requests" => count);
        }
        count
    }

    fn write_quarantine(&self) {
        if let Some(table) = self.zone.and_then(|zone| zone.quarantine()) {
            table.set(&self.quarantine.bans);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60 * shared::clock::SECOND_NS;

    fn request(path: &str) -> Request {
        let path_length = path.len() as u64;
        Request { route: 0, method: b"GET".to_vec(), path: path.into(), path_length, path_rest: 0 }
    }

    #[test]
    fn three_deaths_within_the_time_and_for_its_length() {
        for (minutes, expected) in [
            (&[0, 0, 0][..], &[false, false, true][..]),
            (&[0, 4, 9], &[false, false, true]),
            (&[0, 5, 10], &[false, false, false]),
            (&[0, 5, 10, 11], &[false, false, false, true]),
            // One that dies of it although it is refused had begun with it before.
            (&[0, 1, 2, 3], &[false, false, true, true]),
        ] {
            let mut quarantine = Quarantine::default();
            let banned: Vec<_> =
                minutes.iter().map(|minute| quarantine.on_death(7, &request("/a"), minute * MINUTE)).collect();
            assert_eq!(banned, expected, "{minutes:?}");
            let last = minutes[minutes.len() - 1];
            if expected[expected.len() - 1] {
                assert_eq!(quarantine.next_end(), Some((last + 10) * MINUTE));
                assert!(!quarantine.expire((last + 10) * MINUTE - 1) && quarantine.expire((last + 10) * MINUTE));
            }
            assert_eq!(quarantine.next_end(), None);
        }
    }

    #[test]
    fn requests_are_counted_apart_and_all_is_bounded() {
        let mut quarantine = Quarantine::default();
        for round in 0..DEATHS {
            for print in 1..=20 {
                assert_eq!(quarantine.on_death(print, &request("/a"), print), round == 2, "{print} {round}");
            }
        }
        let refused: Vec<u64> = quarantine.bans.iter().map(|ban| ban.fingerprint).collect();
        assert_eq!(refused, (5..=20).collect::<Vec<_>>());
        for print in 100..1000 {
            quarantine.on_death(print, &request("/a"), 30);
        }
        assert_eq!(quarantine.deaths.len(), DEATHS_REMEMBERED_MAX);
        assert_eq!((quarantine.clear(), quarantine.clear(), quarantine.next_end()), (16, 0, None));
    }

    #[test]
    fn only_faults_of_code_count() {
        for (exit, expected) in [
            (Exit::Signal(Signal::SIGSEGV), true),
            (Exit::Signal(Signal::SIGABRT), true),
            (Exit::Signal(Signal::SIGKILL), false),
            (Exit::Signal(Signal::SIGTERM), false),
            (Exit::Code(worker::exit::PANICKED), false),
        ] {
            assert_eq!(is_fault(exit), expected, "{exit}");
        }
    }
}
