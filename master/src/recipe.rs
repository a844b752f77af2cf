//! Where the configuration comes from: a file, or what is built in.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use conf::model::{Config, LogTarget};
use conf::{Disk, Loaded, Problems};

use crate::runtime_dir::RuntimeDir;

/// The demo origins of the built-in configuration.
pub(crate) const ORIGINS: [&str; 2] = ["a", "b"];

/// How to get a configuration; done again at each reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Recipe {
    /// From a file.
    File {
        /// The file, absolute.
        path: PathBuf,
        /// The directory that relative paths in it start from, absolute; its own, unless another was named.
        prefix: Option<PathBuf>,
    },
    /// A proxy to try, with origins of its own.
    BuiltIn,
}

impl Recipe {
    /// The configuration as it is now.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub(crate) fn load(&self) -> Result<Loaded, Problems> {
        match self {
            Recipe::BuiltIn => conf::parse(&built_in(), "(built in)"),
            Recipe::File { path, .. } => Ok(self.anchored(conf::load(path, &Disk)?)),
        }
    }

    /// A configuration whose relative paths start where those of the file do.
    pub(crate) fn anchored(&self, mut loaded: Loaded) -> Loaded {
        if let Recipe::File { .. } = self {
            anchor(&mut loaded.config, self.directory());
        }
        loaded
    }

    /// Where the proxy is that it is of, even if the rest of it is wrong, and how long that may take to end.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub(crate) fn whereabouts(&self) -> Result<(RuntimeDir, Duration), Problems> {
        let mut told = match self {
            Recipe::BuiltIn => {
                return self.load().map(|Loaded { config, .. }| (RuntimeDir::of(&config), config.shutdown_timeout));
            }
            Recipe::File { path, .. } => conf::whereabouts(path, &Disk)?,
        };
        for path in told.runtime_dir.iter_mut().chain(&mut told.pid_file) {
            *path = self.directory().join(&*path);
        }
        Ok((RuntimeDir::at(told.runtime_dir, told.pid_file), told.shutdown_timeout))
    }

    /// Where relative paths start from.
    fn directory(&self) -> &Path {
        let directory = match self {
            Recipe::File { path, prefix } => prefix.as_deref().or_else(|| path.parent()),
            Recipe::BuiltIn => None,
        };
        directory.unwrap_or(Path::new("/"))
    }

    /// What it is called in messages.
    pub(crate) fn name(&self) -> String {
        match self {
            Recipe::File { path, .. } => path.display().to_string(),
            Recipe::BuiltIn => "(built in)".into(),
        }
    }

    /// Whether its upstreams are the demo origins, which `control` serves.
    pub(crate) fn needs_origins(&self) -> bool {
        *self == Recipe::BuiltIn
    }
}

/// Makes relative paths start from `directory`; a daemon has another working directory than the command that it was.
fn anchor(config: &mut Config, directory: &Path) {
    let logs = [Some(&mut config.error_log.target), config.access_log.as_mut().map(|log| &mut log.target)];
    let files = logs.into_iter().flatten().filter_map(|target| match target {
        LogTarget::File(path) => Some(path),
        LogTarget::Stderr | LogTarget::Stdout => None,
    });
    for path in files.chain(&mut config.pid_file).chain(&mut config.runtime_dir) {
        *path = directory.join(&*path);
    }
}

fn built_in() -> String {
    let directory = RuntimeDir::default_one();
    let server = |name| format!("      - address: 'unix:{}'\n", directory.origin(name).display());
    let servers: String = ORIGINS.into_iter().map(server).collect();
    format!(
        "listeners:\n  - address: 127.0.0.1:8080\nupstreams:\n  demo:\n    servers:\n{servers}\
         routes:\n  - name: demo\n    match: {{path: {{prefix: /}}}}\n    upstream: demo\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_configuration_is_valid() {
        let loaded = Recipe::BuiltIn.load().unwrap();
        assert_eq!(loaded.config.upstreams[0].servers.len(), ORIGINS.len());
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    }

    #[test]
    fn a_prefix_moves_relative_paths() {
        let (files, prefix) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = files.path().join("sluice.yaml");
        let text = "runtime_dir: run\nerror_log: /var/log/x\nlisteners: [{address: '127.0.0.1:1'}]\nroutes: [{match: {path: {prefix: /}}, respond: {status: 200}}]\n";
        std::fs::write(&path, text).unwrap();
        for (given, directory) in [(None, files.path()), (Some(prefix.path().into()), prefix.path())] {
            let loaded = Recipe::File { path: path.clone(), prefix: given }.load().unwrap();
            assert_eq!(loaded.config.runtime_dir, Some(directory.join("run")));
            assert_eq!(loaded.config.error_log.target, LogTarget::File("/var/log/x".into()));
        }
    }
}
