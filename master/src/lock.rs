//! The lock that says who runs, and the pid file that tells others.
//!
//! The lock is an OFD lock on a file that is never renamed or unlinked, so two masters can never hold two files of one
//! name. Its text is the holder's pid, for messages and for the command line. Children close it.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::runtime_dir::replace_file;

/// Held for as long as the master lives.
#[derive(Debug)]
pub(crate) struct Lock(File);

/// Somebody else holds the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Its process number; `None` in the instant before it has written that.
    pub(crate) pid: Option<i32>,
}

impl Lock {
    /// Takes the lock at `path`, or says who has it.
    ///
    /// # Errors
    /// When the file cannot be made, locked or written.
    pub(crate) fn take(path: &Path) -> io::Result<Result<Lock, Holder>> {
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).mode(0o644).open(path)?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(Err(Holder { pid: written_pid(&mut file) })),
            Err(error) => return Err(error.into()),
        }
        let mut lock = Lock(file);
        lock.claim()?;
        Ok(Ok(lock))
    }

    /// The lock at `path` as another master passed it on: both hold it, until the last of them has gone.
    ///
    /// # Errors
    /// When it is another file.
    pub(crate) fn inherited(file: OwnedFd, path: &Path) -> io::Result<Lock> {
        let (file, named) = (File::from(file), fs::metadata(path)?);
        let passed = file.metadata()?;
        match (passed.dev(), passed.ino()) == (named.dev(), named.ino()) {
            true => Ok(Lock(file)),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not the lock of this directory")),
        }
    }

    /// The same lock under a descriptor for another master.
    ///
    /// # Errors
    /// When descriptors run out.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }

    /// Says that its holder is the caller.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn claim(&mut self) -> io::Result<()> {
        self.0.set_len(0)?;
        self.0.rewind()?;
        self.0.write_all(format!("{}\n", std::process::id()).as_bytes())
    }

    /// Gives it back at an orderly end: no pid is left behind.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn give_back(self) -> io::Result<()> {
        self.0.set_len(0)
    }
}

/// Who holds the lock at `path`, if anybody does.
///
/// # Errors
/// When there is a file but it cannot be read.
pub(crate) fn holder(path: &Path) -> io::Result<Option<Holder>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut lock = whole_file();
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    let is_free = i32::from(lock.l_type) == libc::F_UNLCK;
    Ok(if is_free { None } else { Some(Holder { pid: written_pid(&mut file) }) })
}

fn whole_file() -> libc::flock {
    #[allow(clippy::cast_possible_truncation, reason = "both constants are 0 or 1")]
    libc::flock { l_type: libc::F_WRLCK as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}

fn written_pid(file: &mut File) -> Option<i32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|pid| *pid > 0)
}

/// The file that other programs read the master's pid from. Only the process that wrote it removes it.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    owner: u32,
}

impl PidFile {
    /// Writes the caller's pid, in one step for whoever reads.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(crate) fn write(path: &Path) -> Result<PidFile, String> {
        let owner = std::process::id();
        replace_file(path, &format!("{owner}\n"), 0o644)
            .map_err(|error| format!("cannot write the pid file {}: {error}", path.display()))?;
        Ok(PidFile { path: path.into(), owner })
    }

    /// Whether another master has replaced it.
    pub(crate) fn is_anothers(&self) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|text| text.trim() != self.owner.to_string())
    }

    /// Removes it, unless the caller is another process or another master has replaced it.
    pub(crate) fn remove(self) {
        if self.owner == std::process::id() && !self.is_anothers() {
            // It may have been removed by hand: then there is nothing left to do.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_has_one_holder_and_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        assert_eq!(holder(&path).unwrap(), None);

        let lock = Lock::take(&path).unwrap().unwrap();
        let us = Holder { pid: i32::try_from(std::process::id()).ok() };
        assert_eq!(holder(&path).unwrap(), Some(us));
        assert_eq!(Lock::take(&path).unwrap().unwrap_err(), us);

        lock.give_back().unwrap();
        assert_eq!(holder(&path).unwrap(), None);
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }

    #[test]
    fn a_stale_lock_file_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        fs::write(&path, "4194304999\n").unwrap();
        assert_eq!(holder(&path).unwrap(), None);
        let _lock = Lock::take(&path).unwrap().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().trim(), std::process::id().to_string());
    }

    #[test]
    fn a_pid_file_that_another_replaced_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sluice.pid");
        PidFile::write(&path).unwrap().remove();
        assert!(!path.exists());

        let ours = PidFile::write(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        ours.remove();
        assert!(path.exists());
    }
}
