//! One sample a turn: every decision within a turn sees the same time, and asking for it is a load.

use std::cell::Cell;

use nix::time::{ClockId, clock_gettime};

/// A nanosecond is the unit of every time and duration in a worker.
pub(crate) const SECOND: u64 = 1_000_000_000;
/// A thousandth of a [`SECOND`].
pub(crate) const MILLISECOND: u64 = 1_000_000;

/// How long the difference between the two clocks is taken to stand, in nanoseconds.
const WALL_AGE_MAX: u64 = 100 * MILLISECOND;

thread_local! {
    static MONOTONIC: Cell<u64> = const { Cell::new(0) };
    static WALL: Cell<Wall> = const { Cell::new(Wall { ahead: 0, until: 0 }) };
}

/// What the wall's clock shows, by the other one.
#[derive(Clone, Copy)]
struct Wall {
    /// How far it is ahead of CLOCK_MONOTONIC, in nanoseconds; wrapping.
    ahead: u64,
    /// When that is looked at again.
    until: u64,
}

/// Nanoseconds of CLOCK_MONOTONIC at the start of this turn.
pub(crate) fn now() -> u64 {
    MONOTONIC.get()
}

/// Milliseconds since the epoch at the start of this turn.
pub(crate) fn wall_millis() -> u64 {
    MONOTONIC.get().wrapping_add(WALL.get().ahead) / MILLISECOND
}

/// `duration` in nanoseconds, saturating after five centuries.
pub(crate) fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Reads the clock; that of the wall too from time to time, since it may be set.
pub(crate) fn sample() {
    #[cfg(test)]
    if IS_VIRTUAL.get() {
        return;
    }
    let Some(now) = read(ClockId::CLOCK_MONOTONIC) else { return };
    MONOTONIC.set(now);
    if now >= WALL.get().until
        && let Some(wall) = read(ClockId::CLOCK_REALTIME)
    {
        WALL.set(Wall { ahead: wall.wrapping_sub(now), until: now + WALL_AGE_MAX });
    }
}

/// A clock that the kernel refuses to read keeps its last value; Linux refuses only unknown clocks.
fn read(clock: ClockId) -> Option<u64> {
    let time = clock_gettime(clock).ok()?;
    Some(u64::try_from(time.tv_sec()).ok()? * SECOND + u64::try_from(time.tv_nsec()).ok()?)
}

#[cfg(test)]
thread_local! {
    static IS_VIRTUAL: Cell<bool> = const { Cell::new(false) };
}

/// Moves the clock by hand, for a simulation; from then on nothing else moves it.
#[cfg(test)]
pub(crate) fn set(monotonic: u64, wall_millis: u64) {
    IS_VIRTUAL.set(true);
    MONOTONIC.set(monotonic);
    WALL.set(Wall { ahead: (wall_millis * MILLISECOND).wrapping_sub(monotonic), until: u64::MAX });
}
