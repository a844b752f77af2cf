//! Moves bytes both ways between two connections that speak a protocol of their own.
//!
//! Each direction ends by itself: an end of input on one side is passed on as one to the other, and the other direction
//! goes on. Small pieces are copied through a buffer that is held only while bytes are in it; a piece that fills the
//! buffer is followed by splicing until the socket is dry.
//!
//! What was read and not written is in the [`Tunnel`] whenever [`Tunnel::run`] waits, never in the future alone: that may
//! be dropped at any time, and another one goes on from there, in this worker or in another.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::task::Poll;

use shared::handover;
use shared::zone::Flight;

use super::splice::Pipe;
use crate::message::body::{End, Traffic};
use crate::message::fault::{Fault, Kind, Side, Stage};
use crate::runtime::buffer::Buffer;
use crate::runtime::sync::both;
use crate::runtime::timer::Elapsed;
use crate::runtime::{clock, executor};

/// Where a tunnel stands.
pub(crate) struct Tunnel {
    up: Flow,
    down: Flow,
    /// When a byte moved last.
    last_move: Cell<u64>,
    /// How long none may, in nanoseconds.
    idle: u64,
}

/// What one direction has taken and not passed on.
#[derive(Default)]
struct Flow {
    /// Goes first.
    unsent: Option<Buffer>,
    pipe: Option<Pipe>,
    /// Whether the source has ended, and the sink was told.
    is_over: bool,
}

impl Tunnel {
    /// A tunnel in which nothing has moved yet but what was read already: `from_client` and `from_server`. When nothing
    /// moves for `idle` nanoseconds, it ends.
    pub(crate) fn new(from_client: &[u8], from_server: &[u8], idle: u64) -> Tunnel {
        let flow = |read: &[u8]| Flow { unsent: unsent(read), ..Flow::default() };
        Tunnel { up: flow(from_client), down: flow(from_server), last_move: Cell::new(clock::now()), idle }
    }

    /// Runs until both directions have ended, one has failed, or nothing moved for too long.
    ///
    /// # Errors
    /// What ended it, unless both sides did so in order.
    pub(crate) async fn run(
        &mut self,
        client: End<'_>,
        server: End<'_>,
        traffic: &Traffic,
        flight: Flight,
    ) -> Result<(), Fault> {
        let Tunnel { up, down, last_move, idle } = self;
        let (last_move, idle) = (&*last_move, *idle);
        flight.expect_end(last_move.get().saturating_add(idle));
        let note_up = |bytes| flight.received(bytes, clock::now());
        let note_down = |bytes| flight.sent(bytes, clock::now());
        let (to_server, to_client) = (&traffic.to_server, &traffic.to_client);
        let upward = Way { from: &client, to: &server, moved: to_server, last_move, idle, flight, note: &note_up };
        let downward = Way { from: &server, to: &client, moved: to_client, last_move, idle, flight, note: &note_down };
        both(upward.run(up, Side::Client, Side::Server), downward.run(down, Side::Server, Side::Client)).await
    }

    /// As another worker is told of it, but for its account; and the pipes that have bytes in them.
    pub(crate) fn record(&self, traffic: &Traffic) -> (handover::Tunnel, Vec<BorrowedFd<'_>>) {
        let record = handover::Tunnel {
            up: self.up.record(traffic.to_server.get()),
            down: self.down.record(traffic.to_client.get()),
            last_move: self.last_move.get(),
            idle: self.idle,
            ..handover::Tunnel::default()
        };
        let pipes = [&self.up, &self.down].into_iter().filter_map(|flow| flow.pipe.as_ref());
        let ends = pipes.map(Pipe::ends).filter(|(_, held)| *held > 0).flat_map(|(ends, _)| ends);
        (record, ends.collect())
    }

    /// Undoes [`Tunnel::record`]; `pipes` are the ends of those that the record names.
    ///
    /// # Errors
    /// `InvalidData` when they are no such.
    pub(crate) fn adopt(
        record: &handover::Tunnel,
        pipes: &mut impl Iterator<Item = OwnedFd>,
    ) -> io::Result<(Tunnel, Traffic)> {
        let traffic = Traffic { to_server: Cell::new(record.up.moved), to_client: Cell::new(record.down.moved) };
        let tunnel = Tunnel {
            up: Flow::adopt(&record.up, pipes)?,
            down: Flow::adopt(&record.down, pipes)?,
            last_move: Cell::new(record.last_move.min(clock::now())),
            idle: record.idle,
        };
        Ok((tunnel, traffic))
    }
}

impl Flow {
    fn record(&self, moved: u64) -> handover::Way {
        handover::Way {
            unsent: self.unsent.as_ref().map(|unsent| unsent.filled().to_vec()).unwrap_or_default(),
            in_pipe: self.pipe.as_ref().map_or(0, |pipe| pipe.ends().1),
            is_over: self.is_over,
            moved,
        }
    }

    fn adopt(record: &handover::Way, pipes: &mut impl Iterator<Item = OwnedFd>) -> io::Result<Flow> {
        let pipe = match record.in_pipe {
            0 => None,
            held => {
                let mut end = || pipes.next().ok_or(io::ErrorKind::InvalidData);
                Some(Pipe::adopt(end()?, end()?, held)?)
            }
        };
        Ok(Flow { unsent: unsent(&record.unsent), pipe, is_over: record.is_over })
    }
}

fn unsent(bytes: &[u8]) -> Option<Buffer> {
    (!bytes.is_empty()).then(|| Buffer::holding(bytes))
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
    async fn run(&self, flow: &mut Flow, source: Side, sink: Side) -> Result<(), Fault> {
        let failed = |side| move |_| Fault { side, stage: Stage::Tunnel, kind: Kind::Closed };
        self.pass_on(flow).await?.map_err(failed(sink))?;
        while !flow.is_over {
            self.wait(|cx| self.from.stream.poll_readable(cx)).await?;
            let mut buffer = Buffer::new();
            let read = self.wait(|cx| self.from.stream.poll_read(cx, buffer.spare())).await?;
            let count = read.map_err(failed(source))?;
            if count == 0 {
                // Gone already is as good as told.
                let _ = self.to.stream.shutdown_write();
                flow.is_over = true;
                return Ok(());
            }
            let filled = count == buffer.spare_bytes();
            buffer.commit(count);
            flow.unsent = Some(buffer);
            self.pass_on(flow).await?.map_err(failed(sink))?;
            if filled && self.from.stream.descriptor().is_some() {
                self.splice(flow).await?.map_err(failed(sink))?;
            }
            executor::yield_now().await;
        }
        Ok(())
    }

    /// Splices until the source is dry or at its end, which the next read will see.
    async fn splice(&self, flow: &mut Flow) -> Result<io::Result<()>, Fault> {
        let Ok(pipe) = Pipe::take() else { return Ok(Ok(())) };
        flow.pipe = Some(pipe);
        while let Some(pipe) = &mut flow.pipe
            && pipe.fill(self.from.stream, u64::MAX).is_ok_and(|taken| taken > 0)
        {
            if let Err(error) = self.empty(pipe).await? {
                return Ok(Err(error));
            }
            executor::yield_now().await;
        }
        flow.pipe.take().into_iter().for_each(Pipe::give_back);
        Ok(Ok(()))
    }

    /// Writes what was read, until nothing is held.
    async fn pass_on(&self, flow: &mut Flow) -> Result<io::Result<()>, Fault> {
        while let Some(buffer) = &mut flow.unsent {
            let parts = &[IoSlice::new(buffer.filled())];
            match self.wait(|cx| self.to.stream.poll_write(cx, parts)).await? {
                Ok(0) => return Ok(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.note(count as u64);
                    buffer.consume(count);
                    flow.unsent.take_if(|buffer| buffer.is_empty());
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        if let Some(pipe) = &mut flow.pipe {
            if let Err(error) = self.empty(pipe).await? {
                return Ok(Err(error));
            }
            flow.pipe.take().into_iter().for_each(Pipe::give_back);
        }
        Ok(Ok(()))
    }

    async fn empty(&self, pipe: &mut Pipe) -> Result<io::Result<()>, Fault> {
        while !pipe.is_empty() {
            match pipe.drain(self.to.stream) {
                Ok(put) => self.note(put as u64),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(|cx| self.to.stream.poll_writable(cx)).await?;
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

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;
    use crate::runtime::net::memory;
    use crate::runtime::timer::Timer;

    /// A tunnel whose future is dropped all the time, and which goes on from a record of itself, carries every byte once
    /// and in order, and both ends of input.
    #[test]
    fn a_tunnel_may_be_dropped_whenever_it_waits() {
        clock::set(1, 1);
        for seed in 0..200 {
            let mut dice = fastrand::Rng::with_seed(seed);
            let ((near, client), (server, far)) = (memory::pair(), memory::pair());
            let (one, other) = (Timer::new(), Timer::new());
            let sent: Vec<u8> = (0..40_000u32).map(|n| (n * 7 + n / 251).to_le_bytes()[0]).collect();
            let (mut tunnel, mut traffic) = (Tunnel::new(&sent[..9], b"", u64::MAX), Traffic::default());
            let (mut given, mut taken) = ([9, 0], [Vec::new(), Vec::new()]);
            let (ends, mut has_ended) = ([&near, &far], [false; 2]);
            let mut block = [0; 900];
            let mut rounds = 0;
            loop {
                rounds += 1;
                assert!(rounds < 100_000, "it does not move on: seed {seed}");
                for (side, end) in ends.iter().enumerate() {
                    let piece = &sent[given[side]..sent.len().min(given[side] + dice.usize(1..900))];
                    if piece.is_empty() {
                        end.shutdown_write().unwrap();
                    } else if dice.bool() {
                        given[side] += end.try_write(&[IoSlice::new(piece)]).unwrap().unwrap_or(0);
                    }
                    while dice.bool()
                        && !has_ended[side]
                        && let Some(count) = end.try_read(&mut block).unwrap()
                    {
                        has_ended[side] = count == 0;
                        taken[side].extend_from_slice(&block[..count]);
                    }
                }
                let ended = {
                    let client = End { stream: &client, timer: &one };
                    let server = End { stream: &server, timer: &other };
                    let mut run = pin!(tunnel.run(client, server, &traffic, Flight::nowhere()));
                    let mut polls = 0..dice.usize(0..4);
                    polls.any(|_| run.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready())
                };
                if ended {
                    break;
                }
                let (record, pipes) = tunnel.record(&traffic);
                assert!(pipes.is_empty());
                (tunnel, traffic) = Tunnel::adopt(&record, &mut std::iter::empty()).unwrap();
            }
            for (side, end) in ends.iter().enumerate() {
                while let Ok(Some(count @ 1..)) = end.try_read(&mut block) {
                    taken[side].extend_from_slice(&block[..count]);
                }
                assert!(taken[side] == sent, "seed {seed}: {} bytes of {}", taken[side].len(), sent.len());
            }
            assert_eq!((traffic.to_server.get(), traffic.to_client.get()), (40_000, 40_000));
        }
    }
}
