//! Signals become flags and a wake-up of the loop; nothing else happens in a handler.

#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH, c_int};
use signal_hook::{flag, low_level::pipe};

/// The signals that the master obeys.
pub(crate) struct Signals {
    wake: UnixStream,
    flags: Vec<(c_int, Arc<AtomicBool>)>,
}

/// Which signals have come since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// SIGTERM or SIGINT.
    pub(crate) stop: bool,
    /// SIGQUIT.
    pub(crate) quit: bool,
    /// SIGHUP.
    pub(crate) reload: bool,
    /// SIGUSR1.
    pub(crate) reopen: bool,
    /// SIGUSR2.
    pub(crate) upgrade: bool,
    /// SIGWINCH.
    pub(crate) retire_workers: bool,
    /// SIGCHLD.
    pub(crate) child: bool,
}

impl Signals {
    /// Takes the signals over.
    ///
    /// # Errors
    /// When descriptors run out.
    pub(crate) fn register() -> io::Result<Signals> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let mut flags = Vec::new();
        for signal in [SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGWINCH, SIGCHLD] {
            let raised = Arc::new(AtomicBool::new(false));
            // Actions run in the order of their registration: the flag is up when the loop wakes.
            flag::register(signal, Arc::clone(&raised))?;
            pipe::register(signal, waker.try_clone()?)?;
            flags.push((signal, raised));
        }
        Ok(Signals { wake, flags })
    }

    /// What came since the last call.
    pub(crate) fn take(&mut self) -> Facts {
        let mut waste = [0; 64];
        while matches!(self.wake.read(&mut waste), Ok(1..)) {}
        let mut facts = Facts::default();
        for (signal, raised) in &self.flags {
            if raised.swap(false, Ordering::Relaxed) {
                match *signal {
                    SIGTERM | SIGINT => facts.stop = true,
                    SIGQUIT => facts.quit = true,
                    SIGHUP => facts.reload = true,
                    SIGUSR1 => facts.reopen = true,
                    SIGUSR2 => facts.upgrade = true,
                    SIGWINCH => facts.retire_workers = true,
                    _ => facts.child = true,
                }
            }
        }
        facts
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, raise};

    use super::*;

    #[test]
    fn a_signal_is_a_fact_once() {
        let mut signals = Signals::register().unwrap();
        raise(Signal::SIGWINCH).unwrap();
        raise(Signal::SIGUSR1).unwrap();
        let facts = signals.take();
        assert!(facts.retire_workers && facts.reopen && !facts.stop && !facts.reload);
        let facts = signals.take();
        assert!(!facts.retire_workers && !facts.reopen);
    }
}
