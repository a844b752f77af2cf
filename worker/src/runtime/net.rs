//! Sockets as the rest of the worker sees them: reads and writes that wait, and nothing that allocates.
//!
//! What readiness means is in [`super::reactor`]. A call on a [`Stream`] is one system call when the socket is ready
//! and none when it is known not to be.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use conf::value::Address;
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, setsockopt, sockopt,
};

use super::reactor::{self, Registration, Source};

/// Either end of a connection.
pub(crate) struct Stream {
    io: Io,
    registration: Registration,
}

enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
    #[cfg(test)]
    Memory(memory::End),
}

thread_local! {
    static OPEN: Cell<usize> = const { Cell::new(0) };
    static ROOM: RefCell<Room> = const { RefCell::new(Room { streams_max: usize::MAX, make: None }) };
}

struct Room {
    streams_max: usize,
    make: Option<Rc<dyn Fn() -> bool>>,
}

/// From now on at most `streams_max` streams are open on this thread. When they are, `make` is asked to close one that
/// is not needed; it says whether it has.
pub(crate) fn set_room(streams_max: usize, make: impl Fn() -> bool + 'static) {
    ROOM.set(Room { streams_max, make: Some(Rc::new(make)) });
}

/// Whether one more stream may be opened; room is made for it if that is possible.
pub(crate) fn has_room() -> bool {
    let (streams_max, make) = ROOM.with_borrow(|room| (room.streams_max, room.make.clone()));
    OPEN.get() < streams_max || make.is_some_and(|make| make()) && OPEN.get() < streams_max
}

/// Whether so many more streams may be opened as things are; nothing is closed for them.
pub(crate) fn has_place(streams: usize) -> bool {
    OPEN.get().saturating_add(streams) <= ROOM.with_borrow(|room| room.streams_max)
}

/// Whether it is this machine that lacks something: descriptors, memory or local ports.
pub(crate) fn is_exhaustion(error: &io::Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM};
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE | ENOBUFS | ENOMEM | EADDRNOTAVAIL))
}

/// Calls `$call` on whichever socket it is.
macro_rules! on_io {
    ($io:expr, $socket:ident => $call:expr) => {
        match $io {
            Io::Tcp($socket) => $call,
            Io::Unix($socket) => $call,
            #[cfg(test)]
            Io::Memory($socket) => $call,
        }
    };
}

impl Stream {
    fn new(mut io: Io) -> io::Result<Stream> {
        let registration = match &mut io {
            Io::Tcp(socket) => Registration::of(socket)?,
            Io::Unix(socket) => Registration::of(socket)?,
            #[cfg(test)]
            Io::Memory(end) => end.take_registration(),
        };
        OPEN.set(OPEN.get() + 1);
        Ok(Stream { io, registration })
    }

    /// Connects to `address`. Wait for it with [`Timer`](super::timer::Timer): the kernel's own limit is minutes.
    ///
    /// # Errors
    /// Those of socket(2) and connect(2).
    pub(crate) async fn connect(address: &Address) -> io::Result<Stream> {
        #[cfg(test)]
        if let Some(end) = memory::dial(address) {
            return Stream::new(Io::Memory(end?));
        }
        let stream = match address {
            Address::Inet(address) => Stream::new(Io::Tcp(TcpStream::connect(*address)?))?,
            Address::Unix(path) => Stream::new(Io::Unix(UnixStream::connect(path)?))?,
        };
        poll_fn(|cx| {
            if stream.registration.is_writable() {
                return Poll::Ready(());
            }
            stream.registration.wake_writer(cx);
            Poll::Pending
        })
        .await;
        if stream.registration.is_hung_up()
            && let Some(error) = stream.take_error()?
        {
            return Err(error);
        }
        if let Io::Tcp(socket) = &stream.io {
            socket.set_nodelay(true)?;
        }
        Ok(stream)
    }

    /// A connection that another process had. It is not touched, nor watched before it is waited for.
    ///
    /// # Errors
    /// `InvalidData` when the descriptor is no connection of a kind that is known here.
    pub(crate) fn adopt(descriptor: OwnedFd) -> io::Result<Stream> {
        let is_connection = matches!(getsockopt(&descriptor, sockopt::SockType), Ok(SockType::Stream))
            && matches!(getsockopt(&descriptor, sockopt::AcceptConn), Ok(false));
        let family = getsockname::<SockaddrStorage>(descriptor.as_raw_fd()).ok().and_then(|address| address.family());
        let stream = match family.filter(|_| is_connection) {
            Some(AddressFamily::Inet | AddressFamily::Inet6) => Io::Tcp(TcpStream::from_std(descriptor.into())),
            Some(AddressFamily::Unix) => Io::Unix(UnixStream::from_std(descriptor.into())),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let stream = Stream::new(stream)?;
        stream.registration.assume_ready();
        Ok(stream)
    }

    fn take_error(&self) -> io::Result<Option<io::Error>> {
        match &self.io {
            Io::Tcp(socket) => socket.take_error(),
            Io::Unix(socket) => socket.take_error(),
            #[cfg(test)]
            Io::Memory(_) => Ok(None),
        }
    }

    /// Its readiness.
    pub(crate) fn source(&self) -> &Source {
        &self.registration
    }

    /// The descriptor, for splice(2); a connection of a simulation has none.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.io {
            Io::Tcp(socket) => Some(socket.as_fd()),
            Io::Unix(socket) => Some(socket.as_fd()),
            #[cfg(test)]
            Io::Memory(_) => None,
        }
    }

    /// The local address of a TCP connection.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        match &self.io {
            Io::Tcp(socket) => socket.local_addr().ok(),
            _ => None,
        }
    }

    /// Reads at least a byte, or none at the end.
    pub(crate) fn poll_read(&self, cx: &Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_readable(cx));
            match on_io!(&self.io, socket => (&mut &*socket).read(into)) {
                Ok(count) => {
                    if 0 < count && count < into.len() {
                        self.registration.read_short();
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) if self.is_dry(&error) => self.registration.drained(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Whether a call is to be tried again when an edge has come: one that nobody watches for never comes.
    fn is_dry(&self, error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::WouldBlock && !self.registration.is_broken()
    }

    /// See [`Stream::poll_read`].
    pub(crate) async fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read(cx, into)).await
    }

    /// Reads what there is without waiting; `None` when there is nothing.
    pub(crate) fn try_read(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        match self.poll_read(&Context::from_waker(std::task::Waker::noop()), into) {
            Poll::Ready(read) => read.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// Writes what the socket takes of `parts` without waiting; `None` when it is full.
    pub(crate) fn try_write(&self, parts: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        if !self.registration.is_writable() {
            return Ok(None);
        }
        match self.poll_write(&Context::from_waker(std::task::Waker::noop()), parts) {
            Poll::Ready(written) => written.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// Ready when a read is worth trying.
    pub(crate) fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        if self.registration.is_readable() {
            return Poll::Ready(());
        }
        self.registration.wake_reader(cx);
        Poll::Pending
    }

    /// Ready when a write is worth trying.
    pub(crate) fn poll_writable(&self, cx: &Context<'_>) -> Poll<()> {
        if self.registration.is_writable() {
            return Poll::Ready(());
        }
        self.registration.wake_writer(cx);
        Poll::Pending
    }

    /// Writes what the socket takes of `parts`, at least a byte.
    pub(crate) fn poll_write(&self, cx: &Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_writable(cx));
            let written = match parts {
                [part] => on_io!(&self.io, socket => (&mut &*socket).write(part)),
                parts => on_io!(&self.io, socket => (&mut &*socket).write_vectored(parts)),
            };
            match written {
                Err(error) if self.is_dry(&error) => self.registration.filled(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return Poll::Ready(other),
            }
        }
    }

    /// Tells the peer that no more will come.
    ///
    /// # Errors
    /// When the connection is gone already.
    pub(crate) fn shutdown_write(&self) -> io::Result<()> {
        on_io!(&self.io, socket => socket.shutdown(Shutdown::Write))
    }
}

impl Stream {
    /// A watch on whether the peer is still there, which may be kept beside reads and writes.
    pub(crate) fn watch(&self) -> Presence {
        Presence(self.registration.share())
    }

    /// Makes a close a reset: the peer is not to take what it got for the whole.
    pub(crate) fn reset_on_close(&self) {
        if let Io::Tcp(socket) = &self.io {
            let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            // Where it is refused, the peer sees an end instead of a reset.
            let _ = setsockopt(socket, sockopt::Linger, &linger);
        }
        #[cfg(test)]
        if let Io::Memory(end) = &self.io {
            end.reset_on_close();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = OPEN.try_with(|open| open.set(open.get() - 1));
    }
}

/// Whether a stream's peer is still there.
pub(crate) struct Presence(Rc<Source>);

impl Presence {
    /// Ready when the peer has closed its side or the connection has failed, perhaps a few milliseconds ago. The task must be
    /// the one that reads.
    pub(crate) fn poll_gone(&self, cx: &Context<'_>) -> Poll<()> {
        if self.0.is_hung_up() {
            return Poll::Ready(());
        }
        self.0.wake_if_gone(cx);
        Poll::Pending
    }
}

/// Who is at the other end of an accepted connection.
pub(crate) type Peer = Option<SocketAddr>;

/// A listening socket that the master opened.
///
/// It is watched as long as somebody is in its queue, not for changes: who takes a few is told of the rest by the next
/// poll, and need not ask until there is nobody.
pub(crate) struct Listener {
    io: ListenerIo,
    registration: Registration,
    is_shared: bool,
}

enum ListenerIo {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Begins to accept from `socket`. `is_shared` says that other workers accept from the same one: an arrival then
    /// wakes only one of them.
    ///
    /// # Errors
    /// When it can't be watched.
    pub(crate) fn new(socket: OwnedFd, is_shared: bool) -> io::Result<Listener> {
        let address = getsockname::<SockaddrStorage>(socket.as_raw_fd())?;
        let registration = watch_queue(socket.as_fd(), is_shared)?;
        let io = match address.family() {
            Some(AddressFamily::Unix) => ListenerIo::Unix(UnixListener::from_std(socket.into())),
            _ => ListenerIo::Tcp(TcpListener::from_std(socket.into())),
        };
        Ok(Listener { io, registration, is_shared })
    }

    /// Leaves arrivals in the queue, or to the other workers that accept from it.
    pub(crate) fn pause(&mut self) {
        reactor::forget(self.io.as_fd());
    }

    /// Undoes [`Listener::pause`].
    ///
    /// # Errors
    /// When it can't be watched.
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        self.registration = watch_queue(self.io.as_fd(), self.is_shared)?;
        Ok(())
    }

    /// Accepts a connection without waiting; `None` when no one is in the queue.
    ///
    /// # Errors
    /// Those of accept4(2), want of descriptors among them.
    pub(crate) fn try_accept(&self) -> io::Result<Option<(Stream, Peer)>> {
        loop {
            let accepted = match &self.io {
                ListenerIo::Tcp(socket) => socket.accept().map(|(socket, peer)| (Io::Tcp(socket), Some(peer))),
                ListenerIo::Unix(socket) => socket.accept().map(|(socket, _)| (Io::Unix(socket), None)),
            };
            match accepted {
                Ok((io, peer)) => {
                    let stream = Stream::new(io)?;
                    stream.registration.assume_ready();
                    return Ok(Some((stream, peer)));
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(None),
                    // The client went away while it was queued.
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// Waits until a poll finds somebody in the queue.
    pub(crate) async fn arrival(&self) {
        self.registration.drained();
        poll_fn(|cx| {
            if self.registration.is_readable() {
                return Poll::Ready(());
            }
            self.registration.wake_reader(cx);
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        reactor::forget(self.io.as_fd());
    }
}

impl ListenerIo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            ListenerIo::Tcp(socket) => socket.as_fd(),
            ListenerIo::Unix(socket) => socket.as_fd(),
        }
    }
}

/// mio watches for changes only, and has no EPOLLEXCLUSIVE: the socket is added to its poll from outside, under a token
/// that mio hands back.
fn watch_queue(socket: BorrowedFd<'_>, is_shared: bool) -> io::Result<Registration> {
    Registration::with_token(|epoll, token| {
        let exclusive = if is_shared { EpollFlags::EPOLLEXCLUSIVE } else { EpollFlags::empty() };
        Ok(epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN | exclusive, token.0 as u64))?)
    })
}

#[cfg(test)]
pub(crate) mod memory;
