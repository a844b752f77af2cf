//! What a configuration asks of this machine and cannot have: accounts, cores, places to write to.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use conf::model::{Config, LogTarget};
use conf::{Loaded, Problem, Problems};
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};

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
    for (setting, path) in written(config, &directory) {
        if let Err(reason) = is_writable(path) {
            found.push(problem_of(loaded, setting, path, &reason));
        }
    }
    if let Err(reason) = directory.inspect() {
        found.push(loaded.problem("runtime_dir", reason, "remove it, or name another"));
    }
    Problems(found)
}

/// The files that are written under names of the operator's own, and the settings that name them.
fn written<'c>(config: &'c Config, directory: &'c RuntimeDir) -> Vec<(&'static str, &'c Path)> {
    let access = config.access_log.as_ref().map(|log| ("access_log", &log.target));
    let logs = access.into_iter().chain([("error_log", &config.error_log.target)]);
    let files = logs.filter_map(|(setting, target)| match target {
        LogTarget::File(path) => Some((setting, path.as_path())),
        LogTarget::Stderr | LogTarget::Stdout => None,
    });
    let pid_file = config.pid_file.is_some().then(|| ("pid_file", directory.pid_file()));
    files.chain(pid_file).collect()
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
        let text = format!("runtime_dir: {home}\nerror_log: {home}/log\nlisteners: [{{address: '127.0.0.1:1'}}]\n");
        assert_eq!(problems(&conf::parse(&text, "x.yaml").unwrap()).0, []);
    }
}
