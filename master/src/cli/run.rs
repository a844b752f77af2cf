//! `sluice run`: from a configuration to a master that serves.

#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};

use super::{complain, exit};
use crate::activation;
use crate::cycle::{Master, Start};
use crate::daemon::{Launch, Outcome, Side, detach};
use crate::inheritance::{Estate, Inheritance};
use crate::listeners::Listeners;
use crate::lock::{Holder, Lock, holder};
use crate::logs::Logs;
use crate::machine;
use crate::recipe::Recipe;
use crate::runtime_dir::RuntimeDir;
use crate::spawn::adopt;
use conf::Loaded;
use conf::model::LogTarget;
use slog::{Logger, info, warn};

/// Starts what `recipe` says; returns when it has ended, or, as the command that launched a daemon, when it serves.
pub(crate) fn run(recipe: Recipe, daemon: bool, quiet: bool) -> u8 {
    let passed = match activation::take() {
        Ok(passed) => passed,
        Err(reason) => return complain(&reason),
    };
    let loaded = match recipe.load() {
        Ok(loaded) => loaded,
        Err(problems) => return complain(&format!("the configuration is invalid\n{problems}")),
    };
    for warning in &loaded.warnings {
        eprintln!("{warning}");
    }
    let lacks = machine::problems(&loaded);
    if !lacks.0.is_empty() {
        return complain(&format!("the configuration cannot be served here\n{lacks}"));
    }
    let dir = RuntimeDir::of(&loaded.config);
    let is_daemon = daemon || loaded.config.daemon;
    // Asked once more with the lock; here only to answer on the terminal at once.
    if let Ok(Some(holder)) = holder(&dir.lock()) {
        return end(runs_already(&dir, holder));
    }
    if !is_daemon {
        let shows_log = loaded.config.error_log.target == LogTarget::Stderr;
        return match serve(recipe, loaded, dir, passed, None, quiet) {
            // What ended a master is the last line of its log.
            Ok(outcome) if shows_log && outcome.code == exit::FAILED => exit::FAILED,
            Ok(outcome) | Err(outcome) => end(outcome),
        };
    }
    if !matches!(loaded.config.error_log.target, LogTarget::File(_)) {
        eprintln!("sluice: warning: a daemon has no standard streams; name a file in error_log to see what it says");
    }
    match detach() {
        Ok(Side::Launcher(outcome)) => end(outcome),
        Ok(Side::Daemon(launch)) => match serve(recipe, loaded, dir, passed, Some(launch), true) {
            Ok(outcome) | Err(outcome) => outcome.code,
        },
        Err(error) => complain(&format!("cannot leave the terminal: {error}")),
    }
}

fn end(outcome: Outcome) -> u8 {
    if !outcome.text.is_empty() {
        eprintln!("sluice: {}", outcome.text);
    }
    outcome.code
}

/// Becomes the master, and tells how that ended.
///
/// # Errors
/// Why it did not even begin, which no log says.
fn serve(
    recipe: Recipe,
    loaded: Loaded,
    dir: RuntimeDir,
    passed: Vec<OwnedFd>,
    launch: Option<Launch>,
    quiet: bool,
) -> Result<Outcome, Outcome> {
    let greeting = (recipe == Recipe::BuiltIn && !quiet).then(|| GREETING.to_owned());
    let mut launch = launch;
    match prepare(recipe, &loaded, dir, passed, &mut launch, greeting) {
        Ok(master) => Ok(master.run(loaded)),
        Err(outcome) => {
            if let Some(launch) = launch {
                launch.report(&outcome);
            }
            Err(outcome)
        }
    }
}

fn prepare(
    recipe: Recipe,
    loaded: &Loaded,
    dir: RuntimeDir,
    passed: Vec<OwnedFd>,
    launch: &mut Option<Launch>,
    greeting: Option<String>,
) -> Result<Master, Outcome> {
    let failed = |text: String| Outcome { code: exit::FAILED, text };
    let log = Logs::open(&loaded.config).map_err(failed)?.logger();
    dir.prepare().map_err(failed)?;
    let lock = Lock::take(&dir.lock())
        .map_err(|error| failed(format!("cannot lock {}: {error}", dir.lock().display())))?
        .map_err(|holder| runs_already(&dir, holder))?;
    let mut inheritance = Inheritance::of_orphans(&dir, &loaded.config, &log);
    inheritance.add_listeners(listeners_of(passed, &log).map_err(failed)?);
    Master::new(Start { recipe, dir, lock, log, launch: launch.take(), inheritance, greeting })
        .map_err(|error| failed(format!("cannot start: {error}")))
}

/// Takes the place of the master at the other end of the link with this number, which started this process for that.
pub(crate) fn succeed(recipe: Recipe, link: i32) -> u8 {
    let failed = |text: String| complain(&format!("cannot take the place of the master that serves: {text}"));
    let link = match adopt(link) {
        Ok(link) => link,
        Err(error) => return failed(error.to_string()),
    };
    let Estate { loaded, lock, inheritance } = match Estate::receive(link, &recipe) {
        Ok(estate) => estate,
        Err(reason) => return failed(reason),
    };
    let dir = RuntimeDir::of(&loaded.config);
    let start = |log| Start { recipe, dir, lock, log, launch: None, inheritance, greeting: None };
    let master = Logs::open(&loaded.config)
        .and_then(|logs| Master::new(start(logs.logger())).map_err(|error| format!("cannot start: {error}")));
    match master {
        Ok(master) => master.run(loaded).code,
        // The other master sees the end of the link.
        Err(reason) => failed(reason),
    }
}

/// What was passed, as listeners. What cannot be one is closed.
fn listeners_of(passed: Vec<OwnedFd>, log: &Logger) -> Result<Listeners, String> {
    let known = passed.into_iter().filter_map(|socket| match activation::identify(&socket) {
        Ok(address) => {
            info!(log, "a listening socket was passed"; "address" => %address);
            Some((address, socket))
        }
        Err(reason) => {
            warn!(log, "what was passed cannot be used and is closed: {}", reason; "descriptor" => socket.as_raw_fd());
            None
        }
    });
    Listeners::activated(known.collect())
}

fn runs_already(dir: &RuntimeDir, holder: Holder) -> Outcome {
    let who = holder.pid.map_or_else(|| "it is starting".into(), |pid| format!("pid {pid}"));
    Outcome { code: exit::RUNS_ALREADY, text: format!("one runs already in {} ({who})", dir.path().display()) }
}

const GREETING: &str = "
Sluice serves on http://127.0.0.1:8080, in front of two demo origins. Try:

  curl -i http://127.0.0.1:8080/               a page; ask again, and the other origin answers
  curl -d 'hello' http://127.0.0.1:8080/echo   what arrived at the origin
  curl -N http://127.0.0.1:8080/stream         server-sent events, one each half second
  sluice stats                                 what was counted
  sluice top                                   the same, live

Ctrl-C stops it. `sluice -c FILE` serves a configuration of your own.
";
