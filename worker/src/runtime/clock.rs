//! One sample a turn: every decision within a turn sees the same time, and asking for it is a load.

use std::cell::Cell;

use nix::time::{ClockId, clock_gettime};

/// A nanosecond is the unit of every time and duration in a worker.
pub(crate) const SECOND: u64 = 1_000_000_000;
/// A thousandth of a [`SECOND`].
pub(crate) const MILLISECOND: u64 = 1_000_000;

thread_local! {
    static MONOTONIC: Cell<u64> = const { Cell::new(0) };
    static WALL: Cell<u64> = const { Cell::new(0) };
}

/// Nanoseconds of CLOCK_MONOTONIC at the start of this turn.
pub(crate) fn now() -> u64 {
    MONOTONIC.get()
}

/// Milliseconds since the epoch at the start of this turn.
pub(crate) fn wall_millis() -> u64 {
    WALL.get()
}

/// `duration` in nanoseconds, saturating after five centuries.
pub(crate) fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Reads both clocks.
pub(crate) fn sample() {
    if let Some(now) = read(ClockId::CLOCK_MONOTONIC) {
        MONOTONIC.set(now);
    }
    if let Some(now) = read(ClockId::CLOCK_REALTIME) {
        WALL.set(now / MILLISECOND);
    }
}

/// A clock that the kernel refuses to read keeps its last value; Linux refuses only unknown clocks.
fn read(clock: ClockId) -> Option<u64> {
    let time = clock_gettime(clock).ok()?;
    Some(u64::try_from(time.tv_sec()).ok()? * SECOND + u64::try_from(time.tv_nsec()).ok()?)
}

/// Moves the clock by hand, for a simulation.
#[cfg(test)]
pub(crate) fn set(monotonic: u64, wall_millis: u64) {
    MONOTONIC.set(monotonic);
    WALL.set(wall_millis);
}
