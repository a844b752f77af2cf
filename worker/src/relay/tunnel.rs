//! Moves bytes both ways between two connections that speak a protocol of their own.
//!
//! Each direction ends by itself: an end of input on one side is passed on as one to the other, and the other direction
//! goes on. Small pieces are copied through a buffer that is held only while bytes are in it; a piece that fills the
//! buffer is followed by splicing until the socket is dry.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::task::Poll;

use shared::zone::Flight;

use super::splice::Pipe;
use crate::message::body::{End, Traffic};
use crate::message::fault::{Fault, Kind, Side, Stage};
use crate::runtime::buffer::Buffer;
use crate::runtime::sync::both;
use crate::runtime::timer::Elapsed;
use crate::runtime::{clock, executor};

/// Runs until both directions have ended, one has failed, or nothing moved for `idle` nanoseconds.
///
/// # Errors
/// What ended it, unless both sides did so in order.
pub(crate) async fn run(
    client: End<'_>,
    server: End<'_>,
    idle: u64,
    traffic: &Traffic,
    flight: Flight,
) -> Result<(), Fault> {
    let last_move = Cell::new(clock::now());
    flight.expect_end(last_move.get().saturating_add(idle));
    let note_up = |bytes| flight.received(bytes, clock::now());
    let note_down = |bytes| flight.sent(bytes, clock::now());
    let (moved, last_move) = (traffic, &last_move);
    let up = Way { from: &client, to: &server, moved: &moved.to_server, last_move, idle, flight, note: &note_up };
    let down = Way { from: &server, to: &client, moved: &moved.to_client, last_move, idle, flight, note: &note_down };
    both(up.run(Side::Client, Side::Server), down.run(Side::Server, Side::Client)).await
}

/// One direction.
struct Way<'a> {
    from: &'a End<'a>,
    to: &'a End<'a>,
    moved: &'a Cell<u64>,
    last_move: &'a Cell<u64>,
    idle: u64,
    flight: Flight,
    note: &'a dyn Fn(u64),
}

impl Way<'_> {
    async fn run(&self, source: Side, sink: Side) -> Result<(), Fault> {
        let failed = |side| move |_| Fault { side, stage: Stage::Tunnel, kind: Kind::Closed };
        self.write(self.from.leading).await?.map_err(failed(sink))?;
        loop {
            self.wait(|cx| self.from.stream.poll_readable(cx)).await?;
            let mut buffer = Buffer::new();
            let read = self.wait(|cx| self.from.stream.poll_read(cx, buffer.spare())).await?;
            let count = read.map_err(failed(source))?;
            if count == 0 {
                // Gone already is as good as told.
                let _ = self.to.stream.shutdown_write();
                return Ok(());
            }
            let filled = count == buffer.spare_bytes();
            buffer.commit(count);
            self.write(buffer.filled()).await?.map_err(failed(sink))?;
            drop(buffer);
            if filled && self.from.stream.descriptor().is_some() {
                self.splice().await?.map_err(failed(sink))?;
            }
            executor::yield_now().await;
        }
    }

    /// Splices until the source is dry or at its end, which the next read will see.
    async fn splice(&self) -> Result<io::Result<()>, Fault> {
        let Ok(mut pipe) = Pipe::take() else { return Ok(Ok(())) };
        while pipe.fill(self.from.stream, u64::MAX).is_ok_and(|taken| taken > 0) {
            while !pipe.is_empty() {
                match pipe.drain(self.to.stream) {
                    Ok(put) => self.note(put as u64),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.wait(|cx| self.to.stream.poll_writable(cx)).await?;
                    }
                    Err(error) => return Ok(Err(error)),
                }
            }
            executor::yield_now().await;
        }
        pipe.give_back();
        Ok(Ok(()))
    }

    async fn write(&self, bytes: &[u8]) -> Result<io::Result<()>, Fault> {
        let mut parts = &mut [IoSlice::new(bytes)][..];
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match self.wait(|cx| self.to.stream.poll_write(cx, parts)).await? {
                Ok(0) => return Ok(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.note(count as u64);
                    IoSlice::advance_slices(&mut parts, count);
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }

    fn note(&self, count: u64) {
        self.moved.set(self.moved.get() + count);
        self.last_move.set(clock::now());
        (self.note)(count);
        self.flight.expect_end(clock::now().saturating_add(self.idle));
    }

    /// Waits as long as bytes move in either direction.
    async fn wait<T>(&self, mut poll: impl FnMut(&std::task::Context<'_>) -> Poll<T>) -> Result<T, Fault> {
        loop {
            let due = self.last_move.get().saturating_add(self.idle);
            match self.from.timer.until(due, std::future::poll_fn(|cx| poll(cx))).await {
                Ok(output) => return Ok(output),
                Err(Elapsed) if self.last_move.get().saturating_add(self.idle) > clock::now() => {}
                Err(Elapsed) => return Err(Fault::client(Stage::Tunnel, Kind::Timeout)),
            }
        }
    }
}
