//! The master's side of `control`: what it inherits, and how it is started.

#![forbid(unsafe_code)]

use std::ffi::CString;
use std::io::{self, PipeReader, PipeWriter, pipe};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::socket::Backlog;
use shared::channel::Channel;

use crate::children::{Child, Role};
use crate::listeners::{Company, open_unix};
use crate::recipe::ORIGINS;
use crate::rights::Rights;
use crate::runtime_dir::RuntimeDir;
use crate::spawn::{exec_self, fork};

/// What one `control` after another inherits.
pub(crate) struct Control {
    origins: Vec<(PathBuf, OwnedFd)>,
    /// Never written to. Its end comes when the last process that holds the other side has gone.
    lifeline: (PipeReader, PipeWriter),
}

impl Control {
    /// Opens the sockets of the demo origins; those that are `passed` are open already.
    ///
    /// # Errors
    /// When a path is taken, or descriptors run out.
    pub(crate) fn open(dir: &RuntimeDir, mut passed: Vec<(String, OwnedFd)>) -> io::Result<Control> {
        let open = |name| {
            let path = dir.origin(name);
            if let Some(at) = passed.iter().position(|(known, _)| known == name) {
                return Ok((path, passed.swap_remove(at).1));
            }
            // The lock of the directory is ours, so whoever still listens there belongs to a killed master.
            open_unix(&path, Backlog::MAXCONN, Company::Orphans).map(|socket| (path, socket))
        };
        Ok(Control { origins: ORIGINS.into_iter().map(open).collect::<io::Result<_>>()?, lifeline: pipe()? })
    }

    /// The sockets by the names of their origins, for another master.
    ///
    /// # Errors
    /// When descriptors run out.
    pub(crate) fn share(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let share = |(name, (_, socket)): (&&str, &(PathBuf, OwnedFd))| Ok(((*name).to_owned(), socket.try_clone()?));
        ORIGINS.iter().zip(&self.origins).map(share).collect()
    }

    /// Held open by master and workers: while one of them lives, so does `control`.
    pub(crate) fn lifeline(&self) -> BorrowedFd<'_> {
        self.lifeline.1.as_fd()
    }

    /// Starts it.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(crate) fn start(&self, rights: &Rights) -> Result<Child, String> {
        let (ours, theirs) = Channel::pair().map_err(|error| format!("cannot start control: {error}"))?;
        let origins = self.origins.iter().map(|(_, socket)| socket.as_fd());
        let pass: Vec<_> = origins.chain([self.lifeline.0.as_fd(), theirs.as_fd()]).collect();
        let keep: Vec<_> = pass.iter().map(AsRawFd::as_raw_fd).collect();
        let mut arguments = vec![c"sluice".to_owned(), c"control".to_owned()];
        for descriptor in &keep {
            arguments.push(CString::new(descriptor.to_string()).map_err(|error| error.to_string())?);
        }
        let process = fork(c"sluice-control", &keep, || {
            let failure = match rights.assume_control() {
                Ok(()) => exec_self(&arguments, &pass).to_string(),
                Err(reason) => reason,
            };
            eprintln!("sluice: cannot start control: {failure}");
            worker::exit::FAILED
        });
        process
            .map(|process| Child::new(Role::Control, process, Some(ours)))
            .map_err(|error| format!("cannot start control: {error}"))
    }

    /// Removes the paths of its sockets.
    pub(crate) fn unlink(&self) {
        for (path, _) in &self.origins {
            // It may have been removed by hand: then there is nothing left to do.
            let _ = std::fs::remove_file(path);
        }
    }
}
