//! HTTP/1 bodies on a socket: the [`Source`] and the [`Sink`] of either side.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use super::chunked::{self, Decoder, Step};
use super::h1::is_token_byte;
use crate::message::body::{Sink, Source};
use crate::message::fault::{Fault, Kind, Side, Stage};
use crate::message::head::{BodyLength, Known};
use crate::runtime::buffer::Buffer;
use crate::runtime::clock;
use crate::runtime::net::Stream;
use crate::runtime::timer::{Elapsed, Timer};

/// Payload of at most so many bytes is copied behind what is held back: the kernel takes one piece for less than two.
const COPIED_BYTES_MAX: usize = 4096;

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
            true => Fault::proxy(Kind::Deadline),
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

/// A body that is read from a socket.
pub(crate) struct Reader<'a> {
    from: Link<'a>,
    /// What came with the head, behind it.
    leading: &'a [u8],
    /// What was read since; takes over what is left of `leading` when more is needed.
    buffer: Option<Buffer>,
    length: Remaining,
    /// How much of the input was handed out and is consumed by the next call.
    handed: usize,
    /// The most payload bytes that may still come.
    allowance: u64,
    trailers: Vec<u8>,
    trailer_limit: usize,
    /// Bytes taken from the connection so far, framing included.
    wire_bytes: u64,
}

enum Remaining {
    Done,
    Exactly(u64),
    Chunked(Decoder),
    UntilClose,
}

/// What is left when a body has been read.
pub(crate) struct Rest {
    /// How many of the last leading bytes did not belong to the body.
    pub(crate) leading_bytes: usize,
    /// What else was read beyond the body's end.
    pub(crate) buffer: Option<Buffer>,
    /// Whether the body was read to its end.
    pub(crate) is_complete: bool,
}

impl<'a> Reader<'a> {
    /// Reads a body of `length`, whose first bytes may be in `leading`. `limit` bounds the payload, `trailer_limit` the
    /// trailer section, in bytes.
    pub(crate) fn new(
        from: Link<'a>,
        leading: &'a [u8],
        length: BodyLength,
        limit: Option<u64>,
        trailer_limit: usize,
    ) -> Reader<'a> {
        let length = match length {
            BodyLength::None => Remaining::Done,
            BodyLength::Exactly(count) => Remaining::Exactly(count),
            BodyLength::Chunked => Remaining::Chunked(Decoder::default()),
            BodyLength::UntilClose => Remaining::UntilClose,
        };
        let allowance = limit.unwrap_or(u64::MAX);
        Reader {
            from,
            leading,
            buffer: None,
            length,
            handed: 0,
            allowance,
            trailers: Vec::new(),
            trailer_limit,
            wire_bytes: 0,
        }
    }

    /// Ends the reading.
    pub(crate) fn finish(mut self) -> Rest {
        self.consume(self.handed);
        let is_complete = self.is_complete();
        Rest { leading_bytes: self.leading.len(), buffer: self.buffer, is_complete }
    }

    /// Whether the body has been read to its end and nothing was read beyond it.
    pub(crate) fn is_clean(&self) -> bool {
        self.is_complete() && self.input().len() == self.handed
    }

    fn input(&self) -> &[u8] {
        self.buffer.as_ref().map_or(self.leading, Buffer::filled)
    }

    fn consume(&mut self, count: usize) {
        self.wire_bytes += count as u64;
        self.handed = 0;
        match &mut self.buffer {
            Some(buffer) => {
                buffer.consume(count);
                if buffer.is_empty() {
                    self.buffer = None;
                    self.leading = &[];
                }
            }
            None => self.leading = &self.leading[count..],
        }
    }

    /// Hands out the first `count` bytes of the input as payload.
    fn hand_out(&mut self, count: usize) -> Result<Option<&[u8]>, Fault> {
        self.account(count as u64)?;
        self.handed = count;
        Ok(Some(&self.input()[..count]))
    }

    fn account(&mut self, count: u64) -> Result<(), Fault> {
        match self.allowance.checked_sub(count) {
            Some(left) => self.allowance = left,
            None => return Err(Fault { side: self.from.side, stage: Stage::Body, kind: Kind::TooLarge }),
        }
        Ok(())
    }

    /// Reads more; false at the end of the connection.
    async fn read_more(&mut self) -> Result<bool, Fault> {
        if !self.leading.is_empty() {
            let mut buffer = Buffer::holding(self.leading);
            buffer.make_room(self.trailer_limit + 1);
            self.buffer = Some(buffer);
            self.leading = &[];
        }
        Ok(self.from.read(&mut self.buffer, Stage::Body).await? > 0)
    }

    fn malformed(&self, rule: &'static str) -> Fault {
        Fault { side: self.from.side, stage: Stage::Body, kind: Kind::Malformed(rule) }
    }

    /// The trailer section (RFC 9112 §7.1.2): kept are fields that a recipient may be given as trailers; none that frames,
    /// routes or controls (RFC 9110 §6.5.1).
    fn take_trailers(&mut self) -> Result<bool, Fault> {
        let input = self.input();
        let Some(end) = trailer_section_end(input).map_err(|rule| self.malformed(rule))? else {
            if input.len() > self.trailer_limit {
                return Err(Fault { side: self.from.side, stage: Stage::Body, kind: Kind::TooLarge });
            }
            return Ok(false);
        };
        let section = &input[..end - 2];
        let mut kept = Vec::new();
        for line in section.split_inclusive(|&byte| byte == b'\n') {
            let name = field_name(line).ok_or_else(|| self.malformed("A trailer field breaks the grammar."))?;
            if Known::of(name) == Known::Other && !is_forbidden_trailer(name) {
                kept.extend_from_slice(line);
            }
        }
        self.trailers = kept;
        self.consume(end);
        Ok(true)
    }
}

/// Where the section ends, its empty line included; `None` when that has not come.
fn trailer_section_end(input: &[u8]) -> Result<Option<usize>, &'static str> {
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', input) {
        if end == start || input[end - 1] != b'\r' {
            return Err("A trailer line ends with LF alone.");
        }
        if end - start == 1 {
            return Ok(Some(end + 1));
        }
        start = end + 1;
    }
    Ok(None)
}

/// The name of a field line that is well-formed, its CR LF included.
fn field_name(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\r\n")?;
    let colon = memchr::memchr(b':', line)?;
    let (name, value) = line.split_at(colon);
    let named = !name.is_empty() && name.iter().all(|&byte| is_token_byte(byte));
    let clean = value.iter().all(|&byte| byte == b'\t' || byte >= b' ' && byte != 0x7f);
    (named && clean).then_some(name)
}

fn is_forbidden_trailer(name: &[u8]) -> bool {
    const FORBIDDEN: [&[u8]; 10] = [
        b"age",
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-range",
        b"content-type",
        b"location",
        b"max-forwards",
        b"proxy-authorization",
        b"set-cookie",
    ];
    FORBIDDEN.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden))
}

impl Source for Reader<'_> {
    async fn next(&mut self) -> Result<Option<&[u8]>, Fault> {
        self.consume(self.handed);
        loop {
            let available = self.input().len();
            match &mut self.length {
                Remaining::Done => return Ok(None),
                Remaining::Exactly(left) if available > 0 => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(available);
                    *left -= count as u64;
                    if *left == 0 {
                        self.length = Remaining::Done;
                    }
                    return self.hand_out(count);
                }
                Remaining::UntilClose if available > 0 => return self.hand_out(available),
                Remaining::Exactly(_) | Remaining::UntilClose => {}
                Remaining::Chunked(decoder) => {
                    let input = self.buffer.as_ref().map_or(self.leading, Buffer::filled);
                    match decoder.step(input).map_err(|rule| self.malformed(rule))? {
                        Step::Data(count) => return self.hand_out(count),
                        Step::Framing(count) => {
                            self.consume(count);
                            continue;
                        }
                        Step::Trailers => {
                            if self.take_trailers()? {
                                self.length = Remaining::Done;
                                return Ok(None);
                            }
                            if let Some(buffer) = &mut self.buffer {
                                buffer.make_room(self.trailer_limit + 1);
                            }
                        }
                        Step::More => {}
                    }
                }
            }
            if !self.read_more().await? {
                if matches!(self.length, Remaining::UntilClose) {
                    self.length = Remaining::Done;
                    return Ok(None);
                }
                return Err(self.gone());
            }
        }
    }

    fn is_complete(&self) -> bool {
        matches!(self.length, Remaining::Done)
    }

    fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    fn direct(&self) -> Option<(&Stream, u64)> {
        if self.input().len() > self.handed {
            return None;
        }
        let count = match &self.length {
            Remaining::Exactly(left) => *left,
            Remaining::Chunked(decoder) => decoder.run_length(),
            Remaining::Done | Remaining::UntilClose => 0,
        };
        (0 < count && count <= self.allowance).then_some((self.from.stream, count))
    }

    fn took(&mut self, count: u64) {
        self.consume(self.handed);
        self.wire_bytes += count;
        // `direct` offered no more than is allowed.
        let _ = self.account(count);
        match &mut self.length {
            Remaining::Exactly(left) if *left <= count => self.length = Remaining::Done,
            Remaining::Exactly(left) => *left -= count,
            Remaining::Chunked(decoder) => decoder.skip(count),
            Remaining::Done | Remaining::UntilClose => {}
        }
    }

    async fn readable(&self) -> Result<(), Fault> {
        let wait = std::future::poll_fn(|cx| self.from.stream.poll_readable(cx));
        self.from.wait(Stage::Body, wait).await
    }

    fn gone(&self) -> Fault {
        self.from.fault(Stage::Body, Kind::Closed)
    }

    fn set_terms(&mut self, step: u64, deadline: u64, limit: Option<u64>) {
        self.from.patience = Patience { step, deadline };
        self.allowance = limit.unwrap_or(u64::MAX);
    }

    fn bytes_taken(&self) -> u64 {
        self.wire_bytes
    }
}

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

    async fn finish(&mut self, trailers: &[u8]) -> Result<(), Fault> {
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
