//! Moves bytes from socket to socket through a pipe: they pass through the kernel only, by reference (splice(2)).

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

use super::TURN_BYTES_MAX;
use crate::message::body::{Sink, Source};
use crate::message::fault::Fault;
use crate::runtime::executor;
use crate::runtime::net::Stream;

/// What a pipe is asked to hold, in bytes. One that the kernel grants less (an account's share is limited) works too.
const PIPE_BYTES: i32 = 1 << 20;
/// How many empty pipes are kept for the next transfer.
const POOLED_PIPES: usize = 32;

thread_local! {
    static POOL: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// An empty pipe, or one that holds what was taken from a socket and not yet put on the other.
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
}

impl Pipe {
    pub(super) fn take() -> io::Result<Pipe> {
        if let Some(pipe) = POOL.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Refused beyond an account's share: it then holds 64 KiB.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        Ok(Pipe { read, write, held: 0 })
    }

    /// A pipe that another process had, with so many bytes in it.
    ///
    /// # Errors
    /// `InvalidData` when it can't be one.
    pub(super) fn adopt(read: OwnedFd, write: OwnedFd, held: u64) -> io::Result<Pipe> {
        let size = fcntl(&read, FcntlArg::F_GETPIPE_SZ).ok().filter(|_| fcntl(&write, FcntlArg::F_GETPIPE_SZ).is_ok());
        let held =
            usize::try_from(held).ok().filter(|held| size.is_some_and(|size| *held <= size.cast_unsigned() as usize));
        Ok(Pipe { read, write, held: held.ok_or(io::ErrorKind::InvalidData)? })
    }

    /// Its reading and its writing end, and how many bytes are between them.
    pub(super) fn ends(&self) -> ([BorrowedFd<'_>; 2], u64) {
        ([self.read.as_fd(), self.write.as_fd()], self.held as u64)
    }

    /// Keeps the pipe for another transfer, if it is empty.
    pub(super) fn give_back(self) {
        POOL.with_borrow_mut(|pool| {
            if self.held == 0 && pool.len() < POOLED_PIPES {
                pool.push(self);
            }
        });
    }

    /// Whether everything that was taken has been put.
    pub(super) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Takes at most `count` bytes from a socket; 0 at its end.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is dry: call it with an empty pipe only, a full one looks the same.
    pub(super) fn fill(&mut self, from: &Stream, count: u64) -> io::Result<usize> {
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(PIPE_BYTES as usize);
        let moved = shift(descriptor(from)?, self.write.as_fd(), count);
        if would_block(&moved) {
            from.source().drained();
        }
        self.held += moved.as_ref().ok().copied().unwrap_or(0);
        moved
    }

    /// Puts what the pipe holds on a socket, as much as it takes.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is full.
    pub(super) fn drain(&mut self, to: &Stream) -> io::Result<usize> {
        let moved = shift(self.read.as_fd(), descriptor(to)?, self.held);
        if would_block(&moved) {
            to.source().filled();
        }
        self.held -= moved.as_ref().ok().copied().unwrap_or(0);
        moved
    }
}

/// Moves `count` bytes, which the source offers directly, to the sink's socket through an empty pipe. `note` is told of
/// the bytes of each piece.
///
/// # Errors
/// The fault of whichever side failed first.
pub(super) async fn transfer(
    mut pipe: Pipe,
    source: &mut impl Source,
    sink: &mut impl Sink,
    count: u64,
    note: &impl Fn(u64),
) -> Result<(), Fault> {
    let (mut left, mut moved) = (count, 0);
    while left > 0 {
        let Some((from, _)) = source.direct() else { return Err(source.gone()) };
        match pipe.fill(from, left) {
            Ok(0) => return Err(source.gone()),
            Ok(taken) => {
                source.took(taken as u64);
                left -= taken as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => source.readable().await?,
            Err(_) => return Err(source.gone()),
        }
        while !pipe.is_empty() {
            match pipe.drain(sink.socket()) {
                Ok(put) => {
                    sink.put(put as u64);
                    note(put as u64);
                    moved += put as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sink.writable().await?,
                Err(_) => return Err(sink.gone()),
            }
        }
        if moved >= TURN_BYTES_MAX {
            moved = 0;
            executor::yield_now().await;
        }
    }
    pipe.give_back();
    Ok(())
}

fn shift(from: BorrowedFd<'_>, to: BorrowedFd<'_>, count: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
    loop {
        match splice(from, None, to, None, count, flags) {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

fn would_block<T>(result: &io::Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

fn descriptor(stream: &Stream) -> io::Result<BorrowedFd<'_>> {
    stream.descriptor().ok_or_else(|| io::ErrorKind::Unsupported.into())
}
