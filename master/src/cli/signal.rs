//! Commands that signal the running master, and wait for what comes of it.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shared::ident::ProcessId;
use shared::stats::{Snapshot, Verdict};

use super::{complain, exit, print};
use crate::committed::Committed;
use crate::lock::{Holder, holder};
use crate::orphans::Orphans;
use crate::recipe::Recipe;
use crate::runtime_dir::RuntimeDir;

/// How long a reload may take: its proof, its start, and some patience.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a master may take to stop at once.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How often to look.
const PAUSE_MS: u16 = 20;

/// Asks for a reload and tells the verdict.
pub(crate) fn reload(dir: &RuntimeDir, recipe: &Recipe, quiet: bool) -> u8 {
    // Without -c the proxy was found by its directory, whatever it reads.
    if let (Recipe::File { .. }, Some(read)) = (recipe, Committed::name(&dir.committed()))
        && read != recipe.name()
    {
        let place = dir.path().display();
        return complain(&format!("the proxy in {place} reads {read}, not {}: nothing was done", recipe.name()));
    }
    if let Some(pid) = upgrading(dir) {
        return complain(&format!("an upgrade of the master ({pid}) is under way: nothing was done"));
    }
    let before = verdict(dir).map(|verdict| verdict.generation);
    let master = match send(dir, Signal::SIGHUP) {
        Ok(master) => master,
        Err(unsent) => return unsent.complain(dir),
    };
    let deadline = Instant::now() + RELOAD_TIMEOUT;
    while Instant::now() < deadline {
        match verdict(dir).filter(|verdict| Some(verdict.generation) != before) {
            Some(verdict) if !verdict.is_accepted => {
                let shown = recipe.load().map_or_else(|problems| problems.to_string(), |_| verdict.text);
                return complain(&format!("the reload was refused: {shown}"));
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
    let bound = shutdown_timeout.saturating_add(STOP_TIMEOUT);
    end(dir, Signal::SIGQUIT, bound, bound, quiet)
}

/// Asks to stop at once, and waits until the master has gone. Workers whose master was killed finish what runs: nobody may
/// signal what only a zone says is one.
pub(crate) fn stop(dir: &RuntimeDir, shutdown_timeout: Duration, quiet: bool) -> u8 {
    end(dir, Signal::SIGTERM, STOP_TIMEOUT, shutdown_timeout.saturating_add(STOP_TIMEOUT), quiet)
}

/// Asks to reopen the log files.
pub(crate) fn reopen(dir: &RuntimeDir) -> u8 {
    send(dir, Signal::SIGUSR1).map_or_else(|unsent| unsent.complain(dir), |_| exit::DONE)
}

/// `bound` is how long a master may take, `orphans_bound` workers without one.
fn end(dir: &RuntimeDir, signal: Signal, bound: Duration, orphans_bound: Duration, quiet: bool) -> u8 {
    match send(dir, signal) {
        Ok(master) => wait_for(|| master.is_alive(), bound, &format!("the master ({master})"), quiet),
        Err(Unsent::Orphaned(orphans)) => {
            if let Err(error) = orphans.retire() {
                return complain(&format!("cannot tell the workers of the killed master: {error}"));
            }
            let who = format!("the workers ({}) of the killed master ({})", orphans.pids(), orphans.master);
            wait_for(|| orphans.are_alive(), orphans_bound, &who, quiet)
        }
        Err(unsent) => unsent.complain(dir),
    }
}

fn wait_for(is_alive: impl Fn() -> bool, bound: Duration, who: &str, quiet: bool) -> u8 {
    let start = Instant::now();
    while is_alive() {
        if start.elapsed() > bound {
            return complain(&format!("{who} did not end within {bound:?}"));
        }
        pause();
    }
    if quiet { exit::DONE } else { print(&format!("ended: {who}")) }
}

/// Why a signal was not sent.
enum Unsent {
    /// No proxy runs.
    Absent,
    /// Its master was killed, and its workers serve on.
    Orphaned(Orphans),
    /// It can't be signalled; a sentence.
    Refused(String),
}

impl Unsent {
    /// Tells the operator; the exit code.
    fn complain(self, dir: &RuntimeDir) -> u8 {
        let place = dir.path().display();
        match self {
            Unsent::Refused(reason) => complain(&reason),
            Unsent::Absent => {
                complain(&format!("no proxy runs in {place} (nobody holds {})", dir.lock().display()));
                exit::ABSENT
            }
            Unsent::Orphaned(orphans) => {
                let what = match orphans.are_retired {
                    true => "finish what runs",
                    false => {
                        "serve on: start sluice again to take over from them, or `sluice quit` has them finish what runs"
                    }
                };
                complain(&format!(
                    "the master in {place} ({}) was killed, and its workers ({}) {what}",
                    orphans.master,
                    orphans.pids()
                ));
                exit::ABSENT
            }
        }
    }
}

/// Signals the master of `dir`, which is told apart from later processes of its number.
fn send(dir: &RuntimeDir, signal: Signal) -> Result<ProcessId, Unsent> {
    let place = dir.path().display();
    match holder(&dir.lock()) {
        Ok(Some(Holder { pid: Some(pid) })) => ProcessId::of(pid, 0)
            .and_then(|master| Ok(kill(Pid::from_raw(pid), signal).map(|()| master)?))
            .map_err(|error| Unsent::Refused(format!("cannot signal the master in {place} (pid {pid}): {error}"))),
        Ok(Some(Holder { pid: None })) => Err(Unsent::Refused(format!("the master in {place} is just starting"))),
        Ok(None) => Err(match Orphans::look(dir) {
            Ok(orphans) if !orphans.workers.is_empty() => Unsent::Orphaned(orphans),
            _ => Unsent::Absent,
        }),
        Err(error) => Err(Unsent::Refused(format!("cannot look for a proxy in {place}: {error}"))),
    }
}

/// The master that another binary is about to replace, if one is.
fn upgrading(dir: &RuntimeDir) -> Option<i32> {
    let earlier = std::fs::read_to_string(dir.old_pid_file()).ok()?;
    let runs = holder(&dir.lock()).ok()??.pid?;
    (earlier.trim() == runs.to_string()).then_some(runs)
}

fn verdict(dir: &RuntimeDir) -> Option<Verdict> {
    Snapshot::read(&dir.zone()).ok()?.verdict
}

fn pause() {
    // It waits for nothing, so whatever it answers the time has passed or a signal has come.
    let _ = poll(&mut [], PollTimeout::from(PAUSE_MS));
}
