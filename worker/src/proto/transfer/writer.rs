//! A message, as it is written.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::io::IoSlice;

use super::{Link, Patience};
use crate::message::body::Sink;
use crate::message::fault::{Fault, Kind, Stage};
use crate::message::head::BodyLength;
use crate::proto::chunked;
use crate::runtime::net::Stream;

/// Payload of at most so many bytes is copied behind what is held back: the kernel takes one piece for less than two.
const COPIED_BYTES_MAX: usize = 4096;

/// A message that is written to a socket: a head that is held back until something goes with it, then a body.
pub(crate) struct Writer<'a> {
    to: Link<'a>,
    /// The head, until it was sent; then framing that goes with the next write.
    held: &'a mut Vec<u8>,
    length: BodyLength,
    /// Payload that will be put on the socket directly and was not yet.
    announced: u64,
    sent: &'a Sent,
}

/// What a [`Writer`] has given to its socket; it may be asked while the writer is at work.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// Bytes of everything, heads included.
    pub(crate) wire: Cell<u64>,
    /// Bytes of payload.
    pub(crate) payload: Cell<u64>,
    /// Writes begun: after one, something may be on its way, however it ended.
    pub(crate) writes: Cell<u64>,
}

impl<'a> Writer<'a> {
    /// Writes the head in `held` and after it a body framed as `length` says.
    pub(crate) fn new(to: Link<'a>, held: &'a mut Vec<u8>, length: BodyLength, sent: &'a Sent) -> Writer<'a> {
        Writer { to, held, length, announced: 0, sent }
    }

    /// The head that is held back, to be written into.
    pub(crate) fn held(&mut self) -> &mut Vec<u8> {
        self.held
    }

    /// How the body that follows is framed.
    pub(crate) fn set_length(&mut self, length: BodyLength) {
        self.length = length;
    }

    /// Gives up the patience it has for another.
    pub(crate) fn set_patience(&mut self, patience: Patience) {
        self.to.patience = patience;
    }

    async fn send(&mut self, payload: &[u8], after: &[u8]) -> Result<(), Fault> {
        let written = if !self.held.is_empty() && payload.len() <= COPIED_BYTES_MAX {
            self.held.extend_from_slice(payload);
            self.held.extend_from_slice(after);
            self.to.write_all(&mut [IoSlice::new(self.held)], self.sent).await
        } else {
            let parts = &mut [IoSlice::new(self.held), IoSlice::new(payload), IoSlice::new(after)];
            let first = usize::from(self.held.is_empty());
            let last = if after.is_empty() { 2 } else { 3 };
            self.to.write_all(&mut parts[first..last], self.sent).await
        };
        self.held.clear();
        self.sent.payload.set(self.sent.payload.get() + payload.len() as u64);
        written
    }
}

impl Sink for Writer<'_> {
    async fn write(&mut self, payload: &[u8]) -> Result<(), Fault> {
        match self.length {
            BodyLength::None => Ok(()),
            BodyLength::Exactly(_) | BodyLength::UntilClose => self.send(payload, b"").await,
            BodyLength::Chunked => {
                chunked::write_size_line(payload.len(), self.held);
                self.send(payload, b"\r\n").await
            }
        }
    }

    async fn flush(&mut self) -> Result<(), Fault> {
        if self.held.is_empty() { Ok(()) } else { self.send(b"", b"").await }
    }

    async fn finish(&mut self, payload: &[u8], trailers: &[u8]) -> Result<(), Fault> {
        if !payload.is_empty() {
            self.write(payload).await?;
        }
        if self.length == BodyLength::Chunked {
            self.held.extend_from_slice(b"0\r\n");
            self.held.extend_from_slice(trailers);
            self.held.extend_from_slice(b"\r\n");
        }
        self.flush().await
    }

    async fn announce(&mut self, count: u64) -> Result<bool, Fault> {
        match (self.length, usize::try_from(count)) {
            (BodyLength::None, _) | (_, Err(_)) => return Ok(false),
            (BodyLength::Chunked, Ok(count)) => chunked::write_size_line(count, self.held),
            (BodyLength::Exactly(_) | BodyLength::UntilClose, _) => {}
        }
        self.flush().await?;
        self.announced = count;
        Ok(true)
    }

    fn socket(&self) -> &Stream {
        self.to.stream
    }

    fn put(&mut self, count: u64) {
        self.sent.wire.set(self.sent.wire.get() + count);
        self.sent.payload.set(self.sent.payload.get() + count);
        self.announced -= count.min(self.announced);
        if self.announced == 0 && self.length == BodyLength::Chunked {
            self.held.extend_from_slice(b"\r\n");
        }
    }

    async fn writable(&self) -> Result<(), Fault> {
        let wait = std::future::poll_fn(|cx| self.to.stream.poll_writable(cx));
        self.to.wait(Stage::Send, wait).await
    }

    fn gone(&self) -> Fault {
        self.to.fault(Stage::Send, Kind::Closed)
    }
}
