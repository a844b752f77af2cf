//! The way back to an HTTP/1 client: how an answer is framed for it, and whether it was whole.

use std::cell::Cell;

use super::super::departures::Departures;
use crate::message::body::{End, Respond, Sink};
use crate::message::fault::Fault;
use crate::message::head::{BodyLength, Response};
use crate::message::page;
use crate::proto::hop;
use crate::proto::transfer::{Patience, Sent, Writer};
use crate::runtime::net::{Presence, Stream};
use crate::runtime::timer::Timer;

/// The way back to an HTTP/1 client.
pub(super) struct Reply<'a> {
    pub(super) writer: Writer<'a>,
    pub(super) sent: &'a Sent,
    pub(super) stream: &'a Stream,
    /// For a tunnel; the body is at its end by then.
    pub(super) timer: &'a Timer,
    pub(super) leading: &'a [u8],
    pub(super) minor: u8,
    pub(super) is_head: bool,
    pub(super) is_last: bool,
    pub(super) is_draining: &'a Cell<bool>,
    /// None if the connection ends here whatever comes.
    pub(super) departures: Option<&'a Departures>,
    /// How many writes had been begun when the final response began.
    pub(super) begun_at: Option<u64>,
    /// Only the connection's end tells the client where the body ends.
    pub(super) ends_with_connection: bool,
    pub(super) is_finished: bool,
}

impl Drop for Reply<'_> {
    /// However the exchange ended: a part of an answer is not to look like the whole.
    fn drop(&mut self) {
        if self.is_cut() {
            self.stream.reset_on_close();
        }
    }
}

impl Reply<'_> {
    /// Whether an answer was begun that only the connection's end completes, and is not complete.
    pub(super) fn is_cut(&self) -> bool {
        self.ends_with_connection && !self.is_finished
    }

    /// How a body of which the server says `length` is framed for this client, and who the client is.
    fn begin_with(&mut self, length: BodyLength) -> (BodyLength, hop::Client) {
        self.begun_at = Some(self.sent.writes.get());
        let framed = match length {
            // RFC 9112 §6.1: HTTP/1.0 has no transfer codings.
            BodyLength::Chunked | BodyLength::UntilClose if self.minor == 0 => BodyLength::UntilClose,
            BodyLength::Chunked | BodyLength::UntilClose => BodyLength::Chunked,
            length => length,
        };
        self.ends_with_connection = framed == BodyLength::UntilClose;
        self.is_last |= self.ends_with_connection || self.is_draining.get();
        self.writer.set_length(framed);
        (framed, hop::Client { minor: self.minor, keep_alive: !self.is_last })
    }
}

impl Respond for Reply<'_> {
    async fn interim(&mut self, response: Response<'_>) -> Result<(), Fault> {
        // RFC 9110 §15.2: HTTP/1.0 has no interim responses.
        if self.minor == 0 {
            return Ok(());
        }
        let client = hop::Client { minor: self.minor, keep_alive: true };
        hop::write_response(response, BodyLength::None, client, b"", self.writer.held());
        self.writer.flush().await
    }

    fn begin(&mut self, response: Response<'_>, date: &[u8]) {
        self.is_last |= response.head.status == 101;
        let (length, client) = self.begin_with(response.head.body);
        hop::write_response(response, length, client, date, self.writer.held());
    }

    fn begin_own(&mut self, status: u16, fields: &[u8], length: u64, date: &[u8]) {
        let has_body = status != 204 && status != 304;
        let (_, client) = self.begin_with(match length {
            1.. if has_body && !self.is_head => BodyLength::Exactly(length),
            _ => BodyLength::None,
        });
        let out = self.writer.held();
        // A server's head that was not sent yet gives way.
        out.clear();
        hop::write_status_line(status, page::reason(status).as_bytes(), out);
        hop::write_field(b"Date", date, out);
        out.extend_from_slice(fields);
        if has_body {
            hop::write_number(b"Content-Length", length, out);
        }
        hop::write_persistence(client, out);
        out.extend_from_slice(b"\r\n");
    }

    fn has_begun(&self) -> bool {
        self.begun_at.is_some_and(|before| self.sent.writes.get() > before)
    }

    fn close_after(&mut self) {
        self.is_last = true;
    }

    fn set_terms(&mut self, step: u64, deadline: u64) {
        self.writer.set_patience(Patience { step, deadline });
    }

    fn presence(&self) -> Presence {
        self.stream.watch()
    }

    fn tunnel(&self) -> (End<'_>, &[u8]) {
        (End { stream: self.stream, timer: self.timer }, self.leading)
    }

    async fn departure(&self) {
        match self.departures {
            Some(departures) => departures.call().await,
            None => std::future::pending().await,
        }
    }

    fn sent(&self) -> (u64, u64) {
        (self.sent.wire.get(), self.sent.payload.get())
    }
}

impl Sink for Reply<'_> {
    async fn write(&mut self, payload: &[u8]) -> Result<(), Fault> {
        self.writer.write(payload).await
    }

    async fn flush(&mut self) -> Result<(), Fault> {
        self.writer.flush().await
    }

    async fn finish(&mut self, payload: &[u8], trailers: &[u8]) -> Result<(), Fault> {
        self.writer.finish(payload, trailers).await?;
        self.is_finished = true;
        Ok(())
    }

    async fn announce(&mut self, count: u64) -> Result<bool, Fault> {
        self.writer.announce(count).await
    }

    fn socket(&self) -> &Stream {
        self.writer.socket()
    }

    fn put(&mut self, count: u64) {
        self.writer.put(count);
    }

    async fn writable(&self) -> Result<(), Fault> {
        self.writer.writable().await
    }

    fn gone(&self) -> Fault {
        self.writer.gone()
    }
}
