//! The clock of the zone.

#![forbid(unsafe_code)]

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds a second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// `CLOCK_MONOTONIC` in nanoseconds: the same for every process since boot, untouched by a changed wall clock.
#[must_use]
pub fn monotonic_ns() -> u64 {
    // The call fails for an unknown clock only, and Linux has had this one since 2.6.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        u64::try_from(time.tv_sec()).unwrap_or(0) * SECOND_NS + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}
