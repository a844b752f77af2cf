//! Making processes: the one place where the master forks, and all the hygiene of it.
//!
//! The master has one thread, so a forked child may run any code. What it must not do is act as the master: signals
//! are blocked across the fork until the master's handlers are gone, the master's descriptors are closed, and the
//! child ends in `_exit`, never in the master's frames.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::prctl::set_name;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{ForkResult, Pid, execv, fexecve};

/// A child of this process. Its descriptor cannot come to mean another process, as a pid can.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its number; it stays taken until the exit is reaped.
    pub(crate) pid: Pid,
    descriptor: OwnedFd,
}

/// What the master's signals mean to a child, which is told by its channel what to do: nothing. A terminal sends INT
/// and QUIT to the whole group, and they are the master's business. TERM keeps its meaning for one process.
const IGNORED: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH];
const DEFAULT: [Signal; 2] = [Signal::SIGTERM, Signal::SIGCHLD];

/// Starts a child that runs `body` and ends with the code that it returns, or with [`worker::exit::PANICKED`].
///
/// `name` is what process lists show. The child has the standard streams and the descriptors in `keep`, and no other.
///
/// # Errors
/// When the kernel refuses a process or a descriptor; then there is no child.
pub(crate) fn fork(name: &CStr, keep: &[RawFd], body: impl FnOnce() -> i32) -> io::Result<Process> {
    let previous = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)?;
    // SAFETY: this process has one thread, so no lock can be held by another one.
    let forked = match unsafe { nix::unistd::fork() } {
        Ok(ForkResult::Child) => {
            let code = catch_unwind(AssertUnwindSafe(|| {
                become_child(name, keep, &previous);
                body()
            }));
            // SAFETY: ends the process at once. Destructors and exit handlers belong to the master.
            unsafe { libc::_exit(code.unwrap_or(worker::exit::PANICKED)) }
        }
        Ok(ForkResult::Parent { child }) => Ok(child),
        Err(error) => Err(error),
    };
    previous.thread_set_mask()?;
    let pid = forked?;
    match pidfd_open(pid) {
        Ok(descriptor) => Ok(Process { pid, descriptor }),
        Err(error) => {
            // It is our child and not yet reaped, so the number is still its own.
            let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
            Err(error)
        }
    }
}

/// Replaces the calling child by this program, run with `arguments`; `pass` stay open under their numbers. Returns
/// only when that failed.
pub(crate) fn exec_self(arguments: &[CString], pass: &[BorrowedFd<'_>]) -> io::Error {
    for descriptor in pass {
        if let Err(error) = fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty())) {
            return error.into();
        }
    }
    match execv(c"/proc/self/exe", arguments) {
        Err(error) => error.into(),
    }
}

/// Replaces the calling child by the program in the file `binary`, whatever its name is now; its arguments and the
/// descriptors that stay open are as for [`exec_self`]. Returns only when that failed.
pub(crate) fn exec_file(binary: BorrowedFd<'_>, arguments: &[CString], pass: &[BorrowedFd<'_>]) -> io::Error {
    // A service manager's watchdog asks for the process that is to tell it.
    let environment: Result<Vec<CString>, _> = std::env::vars_os()
        .map(|(name, value)| match name == "WATCHDOG_PID" {
            true => (name, std::process::id().to_string().into()),
            false => (name, value),
        })
        .map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect();
    let environment = match environment {
        Ok(environment) => environment,
        Err(error) => return error.into(),
    };
    for descriptor in pass {
        if let Err(error) = fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty())) {
            return error.into();
        }
    }
    match fexecve(binary, arguments, &environment) {
        Err(error) => error.into(),
    }
}

/// Takes over a descriptor that [`exec_self`] passed, by its number. Call it once a number, before any file is opened.
///
/// # Errors
/// When there is no such descriptor, or it is a standard stream.
pub(crate) fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(Errno::EBADF.into());
    }
    // SAFETY: fcntl(2) on a number that is not open fails, and changes nothing.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, as was just seen, and nobody else owns it: it came over exec.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Removes these variables from the environment, for this process and those that it starts.
pub(crate) fn forget_variables(names: &[&str]) {
    for name in names {
        // SAFETY: this process has one thread, so nobody reads the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
}

impl Process {
    /// A process that is not a child: the peer of a socket, which lives.
    ///
    /// # Errors
    /// When there is no such process any more, or descriptors run out.
    pub(crate) fn of_peer(pid: i32) -> io::Result<Process> {
        let pid = Pid::from_raw(pid);
        Ok(Process { pid, descriptor: pidfd_open(pid)? })
    }

    /// Becomes readable when the process has ended.
    pub(crate) fn end(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Sends a signal; to a process that has ended, none.
    pub(crate) fn signal(&self, signal: Signal) {
        let descriptor = self.descriptor.as_raw_fd();
        // SAFETY: pidfd_send_signal(2) without siginfo reads no memory of ours. It fails only when the process has
        // ended, which the loop is about to learn anyway.
        unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, descriptor, signal as libc::c_int, std::ptr::null::<()>(), 0)
        };
    }
}

fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes numbers only.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    match RawFd::try_from(number) {
        // SAFETY: the kernel just made it for us.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn become_child(name: &CStr, keep: &[RawFd], mask: &SigSet) {
    let reset = |signal, handler| {
        let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
        // SAFETY: neither of the two dispositions runs code.
        let _ = unsafe { sigaction(signal, &action) };
    };
    DEFAULT.into_iter().for_each(|signal| reset(signal, SigHandler::SigDfl));
    IGNORED.into_iter().for_each(|signal| reset(signal, SigHandler::SigIgn));
    close_all_but(keep);
    // The name is for people: a process that cannot have it works as well.
    let _ = set_name(name);
    let _ = mask.thread_set_mask();
}

fn close_all_but(keep: &[RawFd]) {
    let mut kept: Vec<u32> =
        keep.iter().filter_map(|number| u32::try_from(*number).ok()).filter(|number| *number > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    for number in kept.into_iter().chain([u32::MAX]) {
        if first < number {
            // SAFETY: their owners are frames of the master that this process never returns to, so that nobody here
            // uses or closes these numbers again.
            unsafe { libc::close_range(first, number - 1, 0) };
        }
        first = first.max(number.saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{pipe, read, write};

    use super::*;

    fn end_of(process: &Process) -> WaitStatus {
        waitpid(process.pid, None).unwrap()
    }

    #[test]
    fn a_child_keeps_what_it_is_given_and_nothing_else() {
        let (reader, writer) = pipe().unwrap();
        let _other = fs::File::open("/dev/null").unwrap();
        let process = fork(c"sluice-test", &[writer.as_raw_fd()], || {
            let mut open: Vec<i32> = (3..256).filter(|fd| fs::exists(format!("/proc/self/fd/{fd}")).unwrap()).collect();
            open.retain(|fd| *fd != writer.as_raw_fd());
            write(&writer, if open.is_empty() { b"clean" } else { b"dirty" }).unwrap();
            7
        })
        .unwrap();
        assert_eq!(end_of(&process), WaitStatus::Exited(process.pid, 7));
        let mut text = [0; 5];
        read(&reader, &mut text).unwrap();
        assert_eq!(&text, b"clean");
    }

    #[test]
    fn a_panic_is_an_exit_code() {
        let process = fork(c"sluice-test", &[], || {
            // Past the panic hook, whose locks another thread of the test may have held at the fork.
            std::panic::resume_unwind(Box::new("on purpose"))
        })
        .unwrap();
        assert_eq!(end_of(&process), WaitStatus::Exited(process.pid, worker::exit::PANICKED));
    }

    #[test]
    fn a_terminal_does_not_end_a_child_but_term_does() {
        let process = fork(c"sluice-test", &[], || {
            loop {
                nix::unistd::pause();
            }
        })
        .unwrap();
        IGNORED.into_iter().for_each(|signal| process.signal(signal));
        process.signal(Signal::SIGTERM);
        assert_eq!(end_of(&process), WaitStatus::Signaled(process.pid, Signal::SIGTERM, false));
        process.signal(Signal::SIGKILL);
    }
}
