//! Who is who: processes, seats, slots, generations.

#![forbid(unsafe_code)]

use std::{fmt, fs, io};

/// A process, told apart from any other that has had or will have its pid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessId {
    /// The process number.
    pub pid: i32,
    /// When it started: clock ticks since boot, field 22 of `/proc/PID/stat`.
    pub start_time: u64,
    /// Which life of its slot this is, as [`Zone::claim_slot`](crate::zone::Zone::claim_slot) counts them; 0 for a process without a slot.
    pub incarnation: u64,
}

impl ProcessId {
    /// The living process `pid`.
    ///
    /// # Errors
    /// When there is no such process, or `/proc` cannot be read.
    pub fn of(pid: i32, incarnation: u64) -> io::Result<ProcessId> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_time = start_time(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time")))?;
        Ok(ProcessId { pid, start_time, incarnation })
    }

    /// The calling process.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn current(incarnation: u64) -> io::Result<ProcessId> {
        ProcessId::of(nix::unistd::getpid().as_raw(), incarnation)
    }

    /// Whether this very process still runs. A zombie does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.pid > 0
            && fs::read_to_string(format!("/proc/{}/stat", self.pid))
                .is_ok_and(|stat| start_time(&stat) == Some(self.start_time) && !is_dead(&stat))
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)
    }
}

/// A worker's index, 0 to `worker_processes - 1`. It owns listening sockets; the old and the new worker share it during a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seat(pub u32);

/// The index of the zone's record of one living process, never shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// The number of a configuration; the first is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

macro_rules! display_as_number {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

display_as_number!(Seat Slot Generation);

/// The kernel's name of this boot, as a number: what was written in another boot is about processes long gone.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn boot_id() -> io::Result<u128> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&digits, 16).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The fields of `/proc/PID/stat` from the third on: the second, the name, is in parentheses and may hold any byte.
fn fields(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace()
}

fn start_time(stat: &str) -> Option<u64> {
    fields(stat).nth(19)?.parse().ok()
}

fn is_dead(stat: &str) -> bool {
    matches!(fields(stat).next(), Some("Z" | "X"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_forge_the_start_time() {
        let stat = "7 (a) S 1 ) 2) R 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        assert_eq!(start_time(stat), Some(4242));
        assert_eq!(start_time("7 (cut"), None);
        assert!(is_dead("7 (x) Z 1"));
    }

    #[test]
    fn this_process_is_alive_and_its_twin_is_not() {
        let id = ProcessId::current(0).unwrap();
        assert!(id.is_alive());
        assert!(!ProcessId { start_time: id.start_time + 1, ..id }.is_alive());
        assert!(!ProcessId { pid: 0, ..id }.is_alive());
        assert_ne!(boot_id().unwrap(), 0);
    }
}
