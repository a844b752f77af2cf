//! HTTP/1 messages on a socket: a [`Reader`] is the source of a body, a [`Writer`] the sink of a head and a body.

mod reader;
mod trailers;
mod writer;

use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use crate::message::fault::{Fault, Kind, Side, Stage};
use crate::runtime::buffer::Buffer;
use crate::runtime::clock;
use crate::runtime::net::Stream;
use crate::runtime::timer::{Elapsed, Timer};

pub(crate) use reader::Reader;
pub(crate) use writer::{Sent, Writer};

/// The time limits of one direction, in nanoseconds of the worker's clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Between two reads, or two writes.
    pub(crate) step: u64,
    /// When the whole exchange must be over; `u64::MAX` for never.
    pub(crate) deadline: u64,
}

/// A socket, whose it is, and how long to wait for it.
#[derive(Clone, Copy)]
pub(crate) struct Link<'a> {
    pub(crate) stream: &'a Stream,
    pub(crate) timer: &'a Timer,
    pub(crate) side: Side,
    pub(crate) patience: Patience,
}

impl Link<'_> {
    fn fault(&self, stage: Stage, kind: Kind) -> Fault {
        Fault { side: self.side, stage, kind }
    }

    /// Waits for `future` as long as patience lasts.
    ///
    /// # Errors
    /// A timeout of this side, or of the exchange, which is nobody's fault but the proxy's.
    async fn wait<T>(&self, stage: Stage, future: impl Future<Output = T>) -> Result<T, Fault> {
        let Patience { step, deadline } = self.patience;
        let due = clock::now().saturating_add(step).min(deadline);
        self.timer.until(due, future).await.map_err(|Elapsed| match clock::now() >= deadline {
            true => Fault::proxy(stage, Kind::Deadline),
            false => self.fault(stage, Kind::Timeout),
        })
    }

    /// Waits until there is something to read, then reads into `buffer`, which is made for it when there is none: a
    /// connection that waits holds no memory.
    pub(crate) async fn read(&self, buffer: &mut Option<Buffer>, stage: Stage) -> Result<usize, Fault> {
        self.wait(stage, std::future::poll_fn(|cx| self.poll_read(cx, buffer)))
            .await?
            .map_err(|_| self.fault(stage, Kind::Closed))
    }

    fn poll_read(&self, cx: &Context<'_>, buffer: &mut Option<Buffer>) -> Poll<io::Result<usize>> {
        ready!(self.stream.poll_readable(cx));
        let into = buffer.get_or_insert_with(Buffer::new);
        into.make_room(0);
        debug_assert!(into.spare_bytes() > 0, "the caller makes room when it needs more than a block");
        let read = self.stream.poll_read(cx, into.spare());
        match &read {
            Poll::Ready(Ok(count)) => into.commit(*count),
            // Nothing was there after all.
            _ if into.is_empty() => *buffer = None,
            _ => {}
        }
        read
    }

    /// Writes all of `parts`, and counts what was written in `sent`, however far it comes.
    async fn write_all(&self, mut parts: &mut [IoSlice<'_>], sent: &Sent) -> Result<(), Fault> {
        sent.writes.set(sent.writes.get() + 1);
        while !parts.is_empty() {
            // Most writes find room, and need no timer.
            let written = match self.stream.try_write(parts) {
                Ok(None) => {
                    let write = std::future::poll_fn(|cx| self.stream.poll_write(cx, parts));
                    self.wait(Stage::Send, write).await?.map(Some)
                }
                written => written,
            };
            match written {
                Ok(None | Some(0)) | Err(_) => return Err(self.fault(Stage::Send, Kind::Closed)),
                Ok(Some(count)) => {
                    sent.wire.set(sent.wire.get() + count as u64);
                    IoSlice::advance_slices(&mut parts, count);
                }
            }
        }
        Ok(())
    }
}
