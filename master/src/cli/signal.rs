//! Commands that signal the running master, and wait for what comes of it.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shared::ident::ProcessId;
use shared::stats::{Snapshot, Verdict};

use super::{complain, exit, print};
use crate::lock::{Holder, holder};
use crate::runtime_dir::RuntimeDir;

/// How long a reload may take: its proof, its start, and some patience.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a master may take to stop at once.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How often to look.
const PAUSE_MS: u16 = 20;

/// Asks for a reload and tells the verdict.
pub(crate) fn reload(dir: &RuntimeDir, quiet: bool) -> u8 {
    let before = verdict(dir).map(|verdict| verdict.generation);
    let master = match send(dir, Signal::SIGHUP) {
        Ok(master) => master,
        Err(code) => return code,
    };
    let deadline = Instant::now() + RELOAD_TIMEOUT;
    while Instant::now() < deadline {
        match verdict(dir).filter(|verdict| Some(verdict.generation) != before) {
            Some(verdict) if !verdict.is_accepted => {
                return complain(&format!("the reload was refused: {}", verdict.text));
            }
            Some(_) if quiet => return exit::DONE,
            Some(verdict) => return print(&format!("generation {} serves: {}", verdict.generation, verdict.text)),
            None if !master.is_alive() => return complain(&format!("the master ({master}) ended while it reloaded")),
            None => pause(),
        }
    }
    complain(&format!("no verdict after {RELOAD_TIMEOUT:?}; the master's log may tell why"))
}

/// Asks to finish what runs, which takes at most `shutdown_timeout`, and waits until the master has gone.
pub(crate) fn quit(dir: &RuntimeDir, shutdown_timeout: Duration, quiet: bool) -> u8 {
    end(dir, Signal::SIGQUIT, shutdown_timeout.saturating_add(STOP_TIMEOUT), quiet)
}

/// Asks to stop at once, and waits until the master has gone.
pub(crate) fn stop(dir: &RuntimeDir, quiet: bool) -> u8 {
    end(dir, Signal::SIGTERM, STOP_TIMEOUT, quiet)
}

/// Asks to reopen the log files.
pub(crate) fn reopen(dir: &RuntimeDir) -> u8 {
    send(dir, Signal::SIGUSR1).map_or_else(|code| code, |_| exit::DONE)
}

fn end(dir: &RuntimeDir, signal: Signal, bound: Duration, quiet: bool) -> u8 {
    let master = match send(dir, signal) {
        Ok(master) => master,
        Err(code) => return code,
    };
    let start = Instant::now();
    while master.is_alive() {
        if start.elapsed() > bound {
            return complain(&format!("the master ({master}) has not stopped after {bound:?}"));
        }
        pause();
    }
    if quiet { exit::DONE } else { print(&format!("stopped ({master})")) }
}

/// Signals the master of `dir`, which is told apart from later processes of its number. The exit code if that cannot
/// be done.
fn send(dir: &RuntimeDir, signal: Signal) -> Result<ProcessId, u8> {
    let place = dir.path().display();
    match holder(&dir.lock()) {
        Ok(Some(Holder { pid: Some(pid) })) => ProcessId::of(pid, 0)
            .and_then(|master| Ok(kill(Pid::from_raw(pid), signal).map(|()| master)?))
            .map_err(|error| complain(&format!("cannot signal the master in {place} (pid {pid}): {error}"))),
        Ok(Some(Holder { pid: None })) => Err(complain(&format!("the master in {place} is just starting"))),
        Ok(None) => {
            complain(&format!("no proxy runs in {place} (nobody holds {})", dir.lock().display()));
            Err(exit::ABSENT)
        }
        Err(error) => Err(complain(&format!("cannot look for a proxy in {place}: {error}"))),
    }
}

fn verdict(dir: &RuntimeDir) -> Option<Verdict> {
    Snapshot::read(&dir.zone()).ok()?.verdict
}

fn pause() {
    // It waits for nothing, so whatever it answers the time has passed or a signal has come.
    let _ = poll(&mut [], PollTimeout::from(PAUSE_MS));
}
