//! The body of a message, as it is read.

#![forbid(unsafe_code)]

use super::{Link, Patience, trailers};
use crate::message::body::Source;
use crate::message::fault::{Fault, Kind, Stage};
use crate::message::head::BodyLength;
use crate::proto::chunked::{Decoder, Step};
use crate::runtime::buffer::Buffer;
use crate::runtime::net::Stream;

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
    /// Bytes consumed so far, framing included.
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

    /// Takes the trailer section; false when its end has not come.
    fn take_trailers(&mut self) -> Result<bool, Fault> {
        let input = self.input();
        let Some(end) = trailers::section_end(input).map_err(|rule| self.malformed(rule))? else {
            if input.len() > self.trailer_limit {
                return Err(Fault { side: self.from.side, stage: Stage::Body, kind: Kind::TooLarge });
            }
            return Ok(false);
        };
        let kept = trailers::kept(&input[..end - 2]).map_err(|rule| self.malformed(rule))?;
        self.trailers = kept;
        self.consume(end);
        Ok(true)
    }
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

    fn last(&mut self) -> Option<(&[u8], &[u8])> {
        self.consume(self.handed);
        let left = match self.length {
            Remaining::Done => 0,
            Remaining::Exactly(left) if left <= self.allowance => usize::try_from(left).ok()?,
            _ => return None,
        };
        if left > self.input().len() {
            return None;
        }
        self.length = Remaining::Done;
        self.handed = left;
        Some((&self.input()[..left], &self.trailers))
    }

    fn is_complete(&self) -> bool {
        matches!(self.length, Remaining::Done)
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
        self.wire_bytes + self.handed as u64
    }
}
