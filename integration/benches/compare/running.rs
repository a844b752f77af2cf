//! A program that was started for a measurement, and is gone when this is dropped.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::load;
use crate::scenario::Load;
use crate::usage;

const START_TIMEOUT: Duration = Duration::from_secs(10);
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(20);

/// A running program with a port of its own on 127.0.0.1, its files in a directory of its own.
pub(crate) struct Running {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Running {
    /// Starts what `command` makes of a directory and a port, on one CPU, and waits until it answers `probe`.
    ///
    /// # Errors
    /// When it does not start, dies, or does not answer in ten seconds; with what it said.
    pub(crate) fn start(
        cpu: usize,
        probe: Load,
        command: impl FnOnce(&Path, u16) -> io::Result<Command>,
    ) -> Result<Self> {
        // Open to all: a master that runs as root leaves its files to a worker that does not.
        let dir =
            tempfile::Builder::new().prefix("sluice-bench-").permissions(Permissions::from_mode(0o755)).tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let output = File::create(dir.path().join("output"))?;
        let mut command = command(dir.path(), port)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = on_cpu(cpu, || command.spawn()).with_context(|| format!("{:?}", command.get_program()))?;
        let mut running = Running { child, port, _dir: dir };
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let answer = load::ask(port, probe);
            let Err(error) = answer else { return Ok(running) };
            let died = running.child.try_wait()?;
            if died.is_some() || Instant::now() > deadline {
                let said = fs::read_to_string(running._dir.path().join("output")).unwrap_or_default();
                let state = died.map_or_else(|| "does not answer".to_owned(), |status| status.to_string());
                bail!("{:?} {state}: {error:#}\n{said}", command.get_program());
            }
            sleep(STEP);
        }
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The pid of its first process.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }
}

impl Drop for Running {
    /// Asks it to stop, and ends those of its processes that do not.
    fn drop(&mut self) {
        let family = usage::tree(self.pid());
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            let _ = self.child.try_wait();
            let alive: Vec<_> = family.iter().filter(|process| process.is_alive()).collect();
            if alive.is_empty() {
                return;
            }
            if Instant::now() > deadline {
                for process in alive {
                    let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
                }
                let _ = self.child.wait();
                return;
            }
            sleep(STEP);
        }
    }
}

/// The CPU that proxies run on, and the one for everything else.
///
/// # Errors
/// When this process may use fewer than two.
pub(crate) fn two_cpus() -> Result<(usize, usize)> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    match (cpus.next(), cpus.next()) {
        (Some(proxy), Some(load)) => Ok((proxy, load)),
        _ => bail!("two CPUs are needed: one for the proxy, one for the load"),
    }
}

/// Keeps this thread, and what it starts, on one CPU.
///
/// # Errors
/// When it is not allowed to run there.
pub(crate) fn stay_on(cpu: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// A child inherits where its parent may run, so the parent goes there for as long as the start takes.
fn on_cpu<T>(cpu: usize, start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let home = sched_getaffinity(Pid::from_raw(0))?;
    stay_on(cpu)?;
    let started = start();
    sched_setaffinity(Pid::from_raw(0), &home)?;
    started
}
