//! Processes as `/proc` shows them, and what a test does to them.

use std::fs;
use std::path::PathBuf;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// A process by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process(pub i32);

impl Process {
    /// The test's own.
    pub fn this() -> Process {
        Process(std::process::id().cast_signed())
    }

    /// Every process that was started with `variable=value` in its environment, or descends from one.
    pub(crate) fn marked(variable: &str, value: &str) -> Vec<Process> {
        let mark = format!("{variable}={value}");
        let is_marked = |process: &Process| {
            let environment = fs::read(process.file("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
        };
        Process::all().filter(|process| is_marked(process) && process.is_running()).collect()
    }

    /// Its children, those that have ended and were not waited for included.
    pub fn children(self) -> Vec<Process> {
        Process::all().filter(|process| process.parent() == Some(self)).collect()
    }

    fn all() -> impl Iterator<Item = Process> {
        let entries = fs::read_dir("/proc").expect("/proc").flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Process)
    }

    /// Whether it exists and has not ended (a zombie has).
    pub fn is_running(self) -> bool {
        self.state().is_some_and(|state| state != 'Z' && state != 'X')
    }

    /// Whether a signal has stopped it.
    pub fn is_stopped(self) -> bool {
        self.state() == Some('T')
    }

    /// Its parent.
    pub fn parent(self) -> Option<Process> {
        self.stat_field(1)?.parse().ok().map(Process)
    }

    /// Its arguments, the first of which names the program.
    pub fn arguments(self) -> Vec<String> {
        let text = fs::read_to_string(self.file("cmdline")).unwrap_or_default();
        text.split_terminator('\0').map(str::to_owned).collect()
    }

    /// How many threads it has.
    pub fn threads(self) -> usize {
        fs::read_dir(self.file("task")).map(Iterator::count).unwrap_or(0)
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(self) -> u64 {
        let kib = self.status("VmRSS").and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// A line of `/proc/PID/status` by its name.
    pub fn status(self, name: &str) -> Option<String> {
        let status = fs::read_to_string(self.file("status")).ok()?;
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(value.trim().to_owned())
    }

    /// Sends it a signal. It need not exist any more.
    pub fn signal(self, signal: Signal) {
        assert!(self.0 > 1, "refusing to signal {}", self.0);
        let _ = kill(Pid::from_raw(self.0), signal);
    }

    /// Takes the exit status of a process that was left to this one, so that it does not stay a zombie.
    pub(crate) fn reap(self) {
        let _ = waitpid(Pid::from_raw(self.0), Some(WaitPidFlag::WNOHANG));
    }

    fn state(self) -> Option<char> {
        self.stat_field(0)?.chars().next()
    }

    /// A field of `/proc/PID/stat`, counted from the state, which follows the name in parentheses.
    fn stat_field(self, index: usize) -> Option<String> {
        let stat = fs::read_to_string(self.file("stat")).ok()?;
        let (_, fields) = stat.rsplit_once(") ")?;
        fields.split(' ').nth(index).map(str::to_owned)
    }

    fn file(self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.0))
    }
}

/// Raises this process's limit of open files as far as it may, up to `wanted`, and returns what it is now.
pub fn raise_descriptor_limit(wanted: usize) -> usize {
    let wanted = wanted as u64;
    usize::try_from(raise_limit(wanted)).expect("a limit that memory could hold")
}

fn raise_limit(wanted: u64) -> u64 {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("RLIMIT_NOFILE");
    if soft >= wanted {
        return soft;
    }
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).is_ok() {
        return wanted;
    }
    let reachable = wanted.min(hard);
    setrlimit(Resource::RLIMIT_NOFILE, reachable, hard).expect("RLIMIT_NOFILE");
    reachable
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_is_seen_until_it_ends() {
        let mut child = Command::new("sleep").arg("60").env("KIT_TEST_MARK", "a").spawn().unwrap();
        let process = Process(child.id().cast_signed());
        crate::eventually("exec", || process.arguments() == ["sleep", "60"]);
        assert!(Process::marked("KIT_TEST_MARK", "a").contains(&process));
        assert_eq!(process.parent(), Some(Process::this()));
        assert_eq!(process.threads(), 1);
        process.signal(Signal::SIGSTOP);
        crate::eventually("stopped", || process.is_stopped());
        process.signal(Signal::SIGKILL);
        crate::eventually("ended", || !process.is_running());
        child.wait().unwrap();
    }
}
