//! The seam between protocols and the relay: where a body's bytes come from and where they go.
//!
//! A protocol version implements these two; the relay knows nothing else of it.

use std::cell::Cell;

use super::fault::Fault;
use super::head::Response;
use crate::runtime::net::{Presence, Stream};
use crate::runtime::timer::Timer;

/// Where a body comes from.
pub(crate) trait Source {
    /// Waits for payload; `None` at the body's end. What was returned before is consumed by the call.
    ///
    /// # Errors
    /// A fault of the side that it comes from.
    async fn next(&mut self) -> Result<Option<&[u8]>, Fault>;

    /// All that is left of the payload, and the trailer fields that may be passed on, as lines; `None` when some of it is
    /// still to come, or may not be taken. It is consumed as by [`Source::next`].
    fn last(&mut self) -> Option<(&[u8], &[u8])>;

    /// Whether the body has been read to its end.
    fn is_complete(&self) -> bool;

    /// The socket that the next bytes of the payload lie on, unframed, and how many those are: they may be taken from
    /// it directly. Only offered when none of the payload is held in memory.
    fn direct(&self) -> Option<(&Stream, u64)>;

    /// So many bytes, at most as many as offered, were taken directly. It is told at once, not when all were: a transfer
    /// may be given up at any time.
    fn took(&mut self, count: u64);

    /// Waits until a direct transfer can go on.
    ///
    /// # Errors
    /// As [`Source::next`].
    async fn readable(&self) -> Result<(), Fault>;

    /// The fault when, in a direct transfer, the connection ended or failed.
    fn gone(&self) -> Fault;

    /// From now on a step may take `step` nanoseconds and the whole until `deadline`; the payload may have at most `limit`
    /// bytes.
    fn set_terms(&mut self, step: u64, deadline: u64, limit: Option<u64>);

    /// Bytes taken from the connection so far, framing included.
    fn bytes_taken(&self) -> u64;
}

/// Where a body goes.
pub(crate) trait Sink {
    /// Sends payload, and before it whatever was held back.
    ///
    /// # Errors
    /// A fault of the side that it goes to.
    async fn write(&mut self, payload: &[u8]) -> Result<(), Fault>;

    /// Sends whatever was held back, because nothing will follow for a while.
    ///
    /// # Errors
    /// As [`Sink::write`].
    async fn flush(&mut self) -> Result<(), Fault>;

    /// Ends the body with the last of its payload, or with nothing, and trailer fields.
    ///
    /// # Errors
    /// As [`Sink::write`].
    async fn finish(&mut self, payload: &[u8], trailers: &[u8]) -> Result<(), Fault>;

    /// Makes ready for `count` bytes of payload that will be put on [`Sink::socket`] directly; false when this can't be
    /// done. [`Sink::put`] is called for each part of them.
    ///
    /// # Errors
    /// As [`Sink::write`].
    async fn announce(&mut self, count: u64) -> Result<bool, Fault>;

    /// The socket that the body goes to.
    fn socket(&self) -> &Stream;

    /// So many of the announced bytes were put on the socket.
    fn put(&mut self, count: u64);

    /// Waits until a direct transfer can go on.
    ///
    /// # Errors
    /// As [`Sink::write`].
    async fn writable(&self) -> Result<(), Fault>;

    /// The fault when, in a direct transfer, the connection ended or failed.
    fn gone(&self) -> Fault;
}

/// The way back to whoever asked: a sink that begins with a head.
pub(crate) trait Respond: Sink {
    /// Passes on an interim response (RFC 9110 §15.2), if the client's version has them.
    ///
    /// # Errors
    /// As [`Sink::write`].
    async fn interim(&mut self, response: Response<'_>) -> Result<(), Fault>;

    /// Begins the final response with a server's head. Nothing is sent before there is a body to send, or a flush.
    fn begin(&mut self, response: Response<'_>, date: &[u8]);

    /// Begins a response of the proxy's own: `fields` are whole lines, the body will be `length` bytes, or is left out
    /// when the method asks for none.
    fn begin_own(&mut self, status: u16, fields: &[u8], length: u64, date: &[u8]);

    /// Whether something of a final response was sent: no other can follow.
    fn has_begun(&self) -> bool;

    /// The connection can't carry another exchange.
    fn close_after(&mut self);

    /// From now on a step may take `step` nanoseconds, and the whole until `deadline`.
    fn set_terms(&mut self, step: u64, deadline: u64);

    /// A watch on whether the one who asked is still there.
    fn presence(&self) -> Presence;

    /// The connection itself, and what the client sent on it after the head: for a tunnel.
    fn tunnel(&self) -> (End<'_>, &[u8]);

    /// Waits until the connection is to go on in another worker; for ever if it is to stay.
    async fn departure(&self);

    /// Bytes sent so far: all, and of bodies alone.
    fn sent(&self) -> (u64, u64);
}

/// How many bytes went each way through a tunnel so far.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) to_server: Cell<u64>,
    pub(crate) to_client: Cell<u64>,
}

/// One side of a tunnel.
pub(crate) struct End<'a> {
    pub(crate) stream: &'a Stream,
    pub(crate) timer: &'a Timer,
}
