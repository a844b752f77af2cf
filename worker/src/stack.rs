//! Where the loop is, told to the master when that asks by a signal: a loop that stands still reads no channel.
//!
//! The signal is [`ASK`]. Its handler walks the stack, sends the addresses and returns, so that anybody may send it at any
//! time. It allocates nothing and takes no lock of ours; the master, of which this process is a fork, finds the names.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc::c_int;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::dup3_raw;
use shared::channel::{Channel, STACK_DEPTH_MAX};

/// The signal that asks. A process without a handler ignores it, and nothing here makes the kernel send it: that is for
/// sockets with an owner.
pub const ASK: Signal = Signal::SIGURG;

/// What the handler speaks through.
static CHANNEL: OnceLock<Channel> = OnceLock::new();

/// From now on [`ASK`] makes this process tell where its first thread is, through `channel`, and no more through an earlier
/// one.
///
/// # Errors
/// When descriptors run out.
pub fn tell_by(channel: &Channel) -> io::Result<()> {
    if let Some(known) = CHANNEL.get() {
        // SAFETY: the number is that of `known`, which goes on owning it: the kernel replaces what it stands for in one step.
        let number = unsafe { dup3_raw(channel.as_fd(), known.as_raw_fd(), OFlag::O_CLOEXEC) }?;
        // It is owned already.
        let _ = number.into_raw_fd();
        return Ok(());
    }
    let own = Channel::from_fd(channel.as_fd().try_clone_to_owned()?);
    // It was not set a moment ago, and this thread alone sets it.
    let _ = CHANNEL.set(own);
    let action = SigAction::new(SigHandler::Handler(tell), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does only what may be done between any two instructions, as is said there.
    unsafe { sigaction(ASK, &action) }?;
    Ok(())
}

extern "C" fn tell(_: c_int) {
    let errno = Errno::last_raw();
    if let Some(channel) = CHANNEL.get() {
        let (mut addresses, mut depth) = ([0; STACK_DEPTH_MAX], 0);
        // SAFETY: it keeps no state of its own that another walk could share; the walk reads tables that were mapped with
        // the program and, while no library is being loaded, of which there is none, waits for nobody. It allocates
        // nothing.
        unsafe {
            backtrace::trace_unsynchronized(|frame| {
                addresses[depth] = frame.ip().addr() as u64;
                depth += 1;
                depth < STACK_DEPTH_MAX
            });
        }
        // A master that is gone, or too busy to read, does without.
        let _ = channel.send_stack(&addresses[..depth]);
    }
    Errno::set_raw(errno);
}
