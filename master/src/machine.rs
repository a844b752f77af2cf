//! What a configuration asks of this machine and cannot have: accounts, cores, places to write to.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use conf::model::{Config, LogTarget};
use conf::{Loaded, Problem, Problems, Severity};
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat, geteuid};

use crate::rights::{Lack, Rights};
use crate::runtime_dir::RuntimeDir;

/// Everything that is lacking, with its place in the file. Nothing is made or opened to find out.
pub(crate) fn problems(loaded: &Loaded) -> Problems {
    let config = &loaded.config;
    let mut found = Vec::new();
    if let Err(Lack { setting, reason, hint }) = Rights::of(config, 0) {
        found.push(loaded.problem(setting, reason, hint));
    }
    let directory = RuntimeDir::of(config);
    for (setting, path) in logs(config) {
        if let Err(reason) = is_writable(path) {
            found.push(problem_of(loaded, setting, path, &reason));
        }
    }
    // It is written beside and renamed, so that it is its directory that counts; the runtime directory is made.
    let place = directory.pid_file().parent().unwrap_or(Path::new("/"));
    if config.pid_file.is_some()
        && (place != directory.path() || place.exists())
        && let Err(reason) = may_write(place)
    {
        found.push(problem_of(loaded, "pid_file", directory.pid_file(), &reason));
    }
    match directory.inspect() {
        Err(reason) => found.push(loaded.problem("runtime_dir", reason, "remove it, or name another")),
        Ok(()) => {
            let place = directory.path().ancestors().find(|place| place.exists()).unwrap_or(Path::new("/"));
            if let Err(reason) = may_write(place) {
                let message = format!("{} cannot be used: {reason}", directory.path().display());
                found.push(loaded.problem("runtime_dir", message, "name one that can be made and written to"));
            }
        }
    }
    Problems(found)
}

/// Those of `found` that say no more than that the caller, who is not root, may not write somewhere: the account that runs
/// the proxy may.
pub(crate) fn of_others(found: Problems) -> (Problems, Vec<Problem>) {
    let is_of_others = |problem: &mut Problem| {
        let about_places = ["access_log", "error_log", "pid_file", "runtime_dir"].contains(&problem.path.as_str());
        about_places && !geteuid().is_root()
    };
    let Problems(mut problems) = found;
    let mut others: Vec<Problem> = problems.extract_if(.., is_of_others).collect();
    others.iter_mut().for_each(|problem| problem.severity = Severity::Warning);
    (Problems(problems), others)
}

/// The log files, and the settings that name them.
fn logs(config: &Config) -> impl Iterator<Item = (&'static str, &Path)> {
    let access = config.access_log.as_ref().map(|log| ("access_log", &log.target));
    let logs = access.into_iter().chain([("error_log", &config.error_log.target)]);
    logs.filter_map(|(setting, target)| match target {
        LogTarget::File(path) => Some((setting, path.as_path())),
        LogTarget::Stderr | LogTarget::Stdout => None,
    })
}

fn problem_of(loaded: &Loaded, setting: &str, path: &Path, reason: &str) -> Problem {
    let message = format!("{} cannot be written: {reason}", path.display());
    loaded.problem(setting, message, "name a file in a directory that exists and may be written to")
}

/// Whether the caller may write a file there, or make it.
fn is_writable(path: &Path) -> Result<(), String> {
    let place = match fs::metadata(path) {
        Ok(status) if status.is_dir() => return Err("it is a directory".into()),
        Ok(_) => path,
        Err(_) => path.parent().unwrap_or(Path::new("/")),
    };
    may_write(place)
}

fn may_write(place: &Path) -> Result<(), String> {
    faccessat(AT_FDCWD, place, AccessFlags::W_OK, AtFlags::AT_EACCESS)
        .map_err(|error| format!("{}: {}", place.display(), error.desc()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lack_is_told_with_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().display();
        let text = format!(
            "runtime_dir: {home}\npid_file: {home}/none/pid\nerror_log: {home}\naccess_log: {{path: {home}/a/b}}\n\
             worker_cpu_affinity: [[1000]]\nlisteners: [{{address: '127.0.0.1:1'}}]\n"
        );
        let loaded = conf::parse(&text, "x.yaml").unwrap();
        let found: Vec<_> = problems(&loaded).0.into_iter().map(|problem| (problem.path, problem.line)).collect();
        let expected = [("worker_cpu_affinity", 5), ("access_log", 4), ("error_log", 3), ("pid_file", 2)];
        assert_eq!(found, expected.map(|(path, line)| (path.to_owned(), line)));
        let text = format!(
            "runtime_dir: {home}/run\npid_file: {home}/run/pid\nerror_log: {home}/log\nlisteners: [{{address: '127.0.0.1:1'}}]\n"
        );
        assert_eq!(problems(&conf::parse(&text, "x.yaml").unwrap()).0, []);
    }
}
