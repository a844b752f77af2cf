//! Programs that are not ours and judge what ours does.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A foreign program that `integration/install.sh` installs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judge {
    /// The client that everyone has.
    Curl,
    /// As an origin.
    Nginx,
    /// Python with the `websockets` package.
    Python,
    /// Slow clients of several kinds.
    Slowhttptest,
    /// Load.
    Wrk,
}

impl Judge {
    /// A command of it. Fails the test if it is not installed: a judge that is absent has not agreed.
    #[track_caller]
    pub fn command(self) -> Command {
        let name = match self {
            Judge::Curl => "curl",
            Judge::Nginx => "nginx",
            Judge::Python => return Command::new(installed(cache().join("venv/bin/python"))),
            Judge::Slowhttptest => "slowhttptest",
            Judge::Wrk => "wrk",
        };
        let places = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin";
        let found = places.split(':').map(|place| Path::new(place).join(name)).find(|path| path.is_file());
        Command::new(installed(found.unwrap_or_else(|| PathBuf::from(name))))
    }
}

/// Where `integration/install.sh` puts what is not a package of the system.
pub fn cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache")
}

#[track_caller]
fn installed(path: PathBuf) -> PathBuf {
    assert!(path.is_file(), "{} is not installed: run integration/install.sh, as root or with sudo", path.display());
    path
}
