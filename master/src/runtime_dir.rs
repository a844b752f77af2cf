//! The runtime directory: where a proxy's zone, lock, pid file and control sockets live, and so how it is found.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use conf::model::Config;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::geteuid;
use shared::estate::call;
use shared::ident::Slot;
use shared::zone::SLOTS_MAX;

/// What the names of workers' own sockets begin and end with; between is the slot.
const CALL_PREFIX: &str = "worker.";
const CALL_SUFFIX: &str = ".sock";
/// The longest path of a unix socket, in bytes: `sun_path` less its closing NUL.
const UNIX_PATH_BYTES_MAX: usize = 107;

/// A runtime directory, which need not exist yet, and the pid file that goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuntimeDir {
    path: PathBuf,
    pid_file: PathBuf,
}

impl RuntimeDir {
    /// The one that a configuration names.
    pub(crate) fn of(config: &Config) -> RuntimeDir {
        RuntimeDir::at(config.runtime_dir.clone(), config.pid_file.clone())
    }

    /// This one, or that of whoever runs this; with the pid file there or in it.
    pub(crate) fn at(path: Option<PathBuf>, pid_file: Option<PathBuf>) -> RuntimeDir {
        let path = path.unwrap_or_else(default_path);
        let pid_file = pid_file.unwrap_or_else(|| path.join("sluice.pid"));
        RuntimeDir { path, pid_file }
    }

    /// The one of whoever runs this.
    pub(crate) fn default_one() -> RuntimeDir {
        RuntimeDir::at(None, None)
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the master's pid is written.
    pub(crate) fn pid_file(&self) -> &Path {
        &self.pid_file
    }

    /// Where nginx's users look for the pid of a master that another one has joined.
    pub(crate) fn old_pid_file(&self) -> PathBuf {
        let mut name = self.pid_file.as_os_str().to_owned();
        name.push(".oldbin");
        name.into()
    }

    /// The shared memory of all processes.
    pub(crate) fn zone(&self) -> PathBuf {
        self.path.join("zone")
    }

    /// The text of the configuration that is served.
    pub(crate) fn committed(&self) -> PathBuf {
        self.path.join("committed.yaml")
    }

    /// The file that the running master holds locked.
    pub(crate) fn lock(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// Where the worker in a slot is reached when its master is gone.
    pub(crate) fn call(&self, slot: Slot) -> PathBuf {
        self.path.join(format!("{CALL_PREFIX}{slot}{CALL_SUFFIX}"))
    }

    /// Makes that socket, for the worker that is about to be forked to listen on. Only whoever may write to the directory's
    /// files can connect: it belongs to the caller.
    ///
    /// # Errors
    /// When the path is too long for a socket, or the system refuses.
    pub(crate) fn open_call(&self, slot: Slot) -> io::Result<OwnedFd> {
        let path = self.call(slot);
        self.remove_call(slot);
        let socket = call(Some(&path))?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(socket)
    }

    /// Removes it: its worker has gone.
    pub(crate) fn remove_call(&self, slot: Slot) {
        // It may not be there: then there is nothing left to do.
        let _ = fs::remove_file(self.call(slot));
    }

    /// The slots of workers that may be reached.
    pub(crate) fn calls(&self) -> Vec<Slot> {
        let names = fs::read_dir(&self.path).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let slot = |name: OsString| {
            name.to_str()?.strip_prefix(CALL_PREFIX)?.strip_suffix(CALL_SUFFIX)?.parse().ok().map(Slot)
        };
        let mut slots: Vec<Slot> = names.filter_map(slot).collect();
        slots.sort_unstable();
        slots
    }

    /// Where commands ask the running master.
    pub(crate) fn master_socket(&self) -> PathBuf {
        self.path.join("master.sock")
    }

    /// The socket of a demo origin.
    pub(crate) fn origin(&self, name: &str) -> PathBuf {
        self.path.join(format!("origin-{name}.sock"))
    }

    /// What is unwise about it.
    pub(crate) fn warning(&self) -> Option<String> {
        let name = self.path.display();
        (!is_on_tmpfs(&self.path)).then(|| {
            format!(
                "the runtime directory {name} is not on a tmpfs: the counters in its zone will be written to a disk"
            )
        })
    }

    /// Makes the directory unless it is there, and makes sure that nobody else can plant files in it.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(crate) fn prepare(&self) -> Result<(), String> {
        let uid = geteuid().as_raw();
        let name = self.path.display();
        if !self.path.exists() {
            // Workers of another account reach control sockets through it; nothing readable lies in it.
            let mode = if uid == 0 { 0o755 } else { 0o700 };
            DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(&self.path)
                .and_then(|()| fs::set_permissions(&self.path, Permissions::from_mode(mode)))
                .map_err(|error| format!("cannot make the runtime directory {name}: {error}"))?;
        }
        self.inspect().map_err(|fault| format!("{fault}: remove it, or name another with runtime_dir"))
    }

    /// Whether the directory, if it is there, can be used.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(crate) fn inspect(&self) -> Result<(), String> {
        let uid = geteuid().as_raw();
        let name = self.path.display();
        let status = match fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            status => status.map_err(|error| format!("cannot use the runtime directory {name}: {error}"))?,
        };
        let fault = if !status.is_dir() {
            "is not a directory".into()
        } else if status.uid() != uid {
            format!("belongs to user {}, not to user {uid} who runs this", status.uid())
        } else if self.call(Slot(SLOTS_MAX)).as_os_str().len() > UNIX_PATH_BYTES_MAX {
            format!("has too long a path for the sockets in it, which have at most {UNIX_PATH_BYTES_MAX} bytes")
        } else if status.mode() & 0o022 != 0 {
            format!("may be written by others (mode {:04o})", status.mode() & 0o7777)
        } else {
            return Ok(());
        };
        Err(format!("the runtime directory {name} {fault}"))
    }
}

/// Gives the file at `path` this content, in one step for whoever reads it.
///
/// # Errors
/// Those of the file system.
pub(crate) fn replace_file(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&beside)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&beside, path)
}

/// Whether files at `path`, or at the nearest place above it that exists, are kept in memory.
fn is_on_tmpfs(path: &Path) -> bool {
    path.ancestors().find_map(|place| statfs(place).ok()).is_some_and(|status| status.filesystem_type() == TMPFS_MAGIC)
}

fn default_path() -> PathBuf {
    let uid = geteuid().as_raw();
    if uid == 0 {
        return PathBuf::from("/run/sluice");
    }
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(path) if path.is_absolute() => path.join("sluice"),
        _ => PathBuf::from(format!("/tmp/sluice-{uid}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn at(path: PathBuf) -> RuntimeDir {
        RuntimeDir { pid_file: path.join("sluice.pid"), path }
    }

    #[test]
    fn is_made_with_its_parents_and_then_accepted() {
        let home = tempfile::tempdir().unwrap();
        let directory = at(home.path().join("a/b"));
        directory.prepare().unwrap();
        directory.prepare().unwrap();
        assert_eq!(fs::metadata(directory.path()).unwrap().mode() & 0o022, 0);
    }

    #[test]
    fn is_refused_when_others_could_plant_files_in_it() {
        let home = tempfile::tempdir().unwrap();
        let open = home.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
        assert!(at(open.clone()).prepare().unwrap_err().contains("may be written by others (mode 0777)"));

        let link = home.path().join("link");
        symlink(&open, &link).unwrap();
        assert!(at(link).prepare().unwrap_err().contains("is not a directory"));

        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(at(file).prepare().unwrap_err().contains("is not a directory"));
    }
}
