//! `control`: the process beside the traffic, and the only one that runs tokio.
//!
//! It may die at any time: the master starts another, and traffic does not notice. Its duties so far are the demo
//! origins of the built-in configuration; each duty is one future in [`serve`].

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use nix::sys::prctl::set_name;
use shared::channel::{Channel, Report};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::recipe::ORIGINS;
use crate::spawn::adopt;

pub(crate) mod launch;
mod origin;

/// Serves until told to end, or until neither master nor workers are left. `descriptors` are those that the master
/// passed: a listening socket for each origin, then the lifeline, then the channel. The exit code.
pub(crate) fn run(descriptors: &[RawFd]) -> u8 {
    // The name was lost at the exec. It is for people: without it all works as well.
    let _ = set_name(c"sluice-control");
    match inherit(descriptors).and_then(|(origins, lifeline, channel)| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(LocalSet::new().run_until(serve(origins, lifeline, channel)))
    }) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("sluice: control cannot serve: {error}");
            1
        }
    }
}

fn inherit(descriptors: &[RawFd]) -> io::Result<(Vec<UnixListener>, OwnedFd, Channel)> {
    if descriptors.len() != ORIGINS.len() + 2 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this command is for the master to run"));
    }
    let mut adopted = descriptors.iter().copied().map(adopt).collect::<io::Result<Vec<_>>>()?;
    let channel = Channel::from_fd(adopted.pop().ok_or(io::ErrorKind::InvalidInput)?);
    let lifeline = adopted.pop().ok_or(io::ErrorKind::InvalidInput)?;
    Ok((adopted.into_iter().map(UnixListener::from).collect(), lifeline, channel))
}

async fn serve(origins: Vec<UnixListener>, lifeline: OwnedFd, channel: Channel) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let lifeline = pipe::Receiver::from_owned_fd(lifeline)?;
    for (socket, name) in origins.into_iter().zip(ORIGINS) {
        tokio::task::spawn_local(origin::serve(tokio::net::UnixListener::from_std(socket)?, name));
    }
    // A master that was killed meanwhile does not hear it. There is nothing else to say.
    let _ = channel.send_report(&Report::Ready);
    drop(channel);
    tokio::select! {
        _ = terminate.recv() => {}
        // Nothing is ever written to it: it becomes readable at its end.
        _ = lifeline.readable() => {}
    }
    Ok(())
}
