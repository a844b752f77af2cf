//! A worker without a master: it serves on, and waits at its own socket for the next one.
//!
//! The socket lies in the runtime directory and was made by the master that is gone. The next master connects, is sent the
//! listening sockets, and is obeyed from then on. A worker on trial, whose master was not yet the proxy's, ends instead.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use mio::Interest;
use mio::unix::SourceFd;
use nix::sys::socket::{Backlog, getsockopt, listen, sockopt};
use shared::channel::Channel;
use shared::estate::{Link, Message};
use slog::{info, warn};

use super::{Line, Worker};
use crate::runtime::clock::{self, MILLISECOND};
use crate::runtime::reactor::Registration;
use crate::runtime::timer::Timer;

/// How many masters may wait to be let in.
const BACKLOG: i32 = 4;

/// How long to wait when descriptors or memory are short, in nanoseconds.
const WANT_PAUSE: u64 = 100 * MILLISECOND;

impl Line {
    /// The channel to a master, watched.
    ///
    /// # Errors
    /// When it can't be; the channel comes back.
    pub(super) fn new(channel: Channel) -> Result<Line, (Channel, io::Error)> {
        match Registration::new(&mut SourceFd(&channel.as_raw_fd()), Interest::READABLE) {
            Ok(ready) => Ok(Line { channel, ready }),
            Err(error) => Err((channel, error)),
        }
    }
}

impl Worker {
    /// Waits until another master has come.
    pub(super) async fn await_master(&self) -> Line {
        let timer = Timer::new();
        loop {
            self.call_ready.readable().await;
            match self.call.accept() {
                Ok((socket, _)) => match self.introduce(socket) {
                    Ok(line) => return line,
                    Err(error) => warn!(self.log, "another master has come and gone"; "reason" => %error),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.call_ready.drained(),
                // It hung up while it waited.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    warn!(self.log, "cannot let another master in"; "reason" => %error);
                    timer.sleep(clock::now() + WANT_PAUSE).await;
                }
            }
        }
    }

    /// Tells a new master what there is.
    fn introduce(&self, socket: UnixStream) -> io::Result<Line> {
        socket.set_nonblocking(true)?;
        let peer = getsockopt(&socket, sockopt::PeerCredentials)?;
        if peer.uid() != 0 && peer.uid() != self.owner {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("it belongs to user {}", peer.uid())));
        }
        let link = Link::from_fd(socket.into())?;
        for (address, sockets) in self.sockets()? {
            link.send_sockets(&address, sockets, false)?;
        }
        link.send(&Message::Complete)?;
        info!(self.log, "another master has taken over"; "master" => peer.pid());
        Line::new(Channel::from_fd(link.into_fd())).map_err(|(_, error)| error)
    }

    /// The listening sockets by address, in the order of seats.
    fn sockets(&self) -> io::Result<Vec<(String, Vec<OwnedFd>)>> {
        let mut found: Vec<(String, Vec<OwnedFd>)> = Vec::new();
        for gate in self.gates.borrow().iter() {
            let (address, socket) = (gate.address().to_string(), gate.socket().try_clone_to_owned()?);
            match found.iter_mut().find(|(known, _)| *known == address) {
                Some((_, sockets)) => sockets.push(socket),
                None => found.push((address, vec![socket])),
            }
        }
        Ok(found)
    }
}

/// From now on this process is who answers at `call`: the kernel names as peer whoever listened last.
pub(super) fn answer_at(call: OwnedFd) -> io::Result<(UnixListener, Registration)> {
    listen(&call.as_fd(), Backlog::new(BACKLOG)?)?;
    let ready = Registration::new(&mut SourceFd(&call.as_raw_fd()), Interest::READABLE)?;
    Ok((UnixListener::from(call), ready))
}
