//! What clients and servers have of a connection: messages read without any of the worker's parsers.

use std::future::poll_fn;
use std::io::IoSlice;
use std::rc::Rc;

use fastrand::Rng;

use super::script::Case;
use crate::runtime::clock::{self, MILLISECOND};
use crate::runtime::executor;
use crate::runtime::net::Stream;
use crate::runtime::timer::Timer;

/// A message's head.
pub(super) struct Head {
    pub(super) line: String,
    pub(super) fields: Vec<(String, String)>,
    pub(super) bytes: usize,
}

impl Head {
    pub(super) fn parse(wire: &[u8]) -> Option<Head> {
        let bytes = find(wire, b"\r\n\r\n")? + 4;
        let mut lines = std::str::from_utf8(&wire[..bytes - 4]).expect("heads are text").split("\r\n");
        let line = lines.next().expect("a line").to_owned();
        let field = |line: &str| {
            let (name, value) = line.split_once(": ").expect("a field");
            (name.to_ascii_lowercase(), value.to_owned())
        };
        Some(Head { line, fields: lines.map(field).collect(), bytes })
    }

    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let mut values = self.fields.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let value = values.next();
        assert!(values.next().is_none(), "{name} comes twice");
        value
    }

    /// The body that follows, as far as it has come; `None` when nothing frames it.
    pub(super) fn body(&self, rest: &[u8]) -> Option<Body> {
        match (self.field("content-length"), self.field("transfer-encoding")) {
            (None, None) => None,
            (None, Some(coding)) => {
                assert_eq!(coding, "chunked");
                Some(Body::unchunk(rest))
            }
            (Some(length), None) => {
                let length = length.parse().expect("a number");
                let count = rest.len().min(length);
                Some(Body { payload: rest[..count].to_vec(), bytes: count, is_whole: count == length })
            }
            _ => panic!("two framings"),
        }
    }
}

pub(super) struct Body {
    pub(super) payload: Vec<u8>,
    pub(super) bytes: usize,
    pub(super) is_whole: bool,
}

impl Body {
    pub(super) fn unchunk(wire: &[u8]) -> Body {
        let mut body = Body { payload: Vec::new(), bytes: 0, is_whole: false };
        while let Some(line) = find(&wire[body.bytes..], b"\r\n") {
            let size = std::str::from_utf8(&wire[body.bytes..body.bytes + line]).expect("a size");
            let size = usize::from_str_radix(size, 16).expect("a size");
            body.bytes += line + 2;
            let rest = &wire[body.bytes..];
            if size == 0 {
                let end = if rest.starts_with(b"\r\n") { Some(2) } else { find(rest, b"\r\n\r\n").map(|end| end + 4) };
                body.is_whole = end.is_some();
                body.bytes += end.unwrap_or(0);
                break;
            }
            body.payload.extend(&rest[..size.min(rest.len())]);
            if rest.len() < size + 2 {
                break;
            }
            assert_eq!(&rest[size..size + 2], b"\r\n", "a chunk's end");
            body.bytes += size + 2;
        }
        body
    }
}

pub(super) fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// One side's end of a connection: reads and writes in pieces, with pauses.
pub(super) struct Wire {
    pub(super) stream: Rc<Stream>,
    pub(super) timer: Timer,
    pub(super) dice: Rng,
    pub(super) stride: usize,
    pub(super) pause: u64,
    pub(super) input: Vec<u8>,
    /// Whether the connection has ended, and if so in order.
    pub(super) end: Option<bool>,
}

impl Wire {
    pub(super) fn new(stream: &Rc<Stream>, mut dice: Rng) -> Wire {
        let stride = *dice.choice([3, 20, 200, 4000].iter()).expect("not empty");
        let pause = dice.u64(1..if stride < 100 { 20 } else { 300 });
        Wire { stream: Rc::clone(stream), timer: Timer::new(), dice, stride, pause, input: Vec::new(), end: None }
    }

    pub(super) async fn sleep(&self, nanos: u64) {
        self.timer.sleep(clock::now() + nanos).await;
    }

    pub(super) async fn hesitate(&mut self) {
        match self.dice.u8(0..16) {
            0 | 1 => self.sleep(self.pause * MILLISECOND).await,
            2 | 3 => executor::yield_now().await,
            _ => {}
        }
    }

    /// Reads once; false at the end of the connection.
    pub(super) async fn read(&mut self) -> bool {
        let mut piece = [0; 1000];
        let size = self.dice.usize(1..=self.stride.clamp(20, 1000));
        let read = self.stream.read(&mut piece[..size]).await;
        match read {
            Ok(count @ 1..) => self.input.extend_from_slice(&piece[..count]),
            _ => self.end = Some(read.is_ok()),
        }
        self.hesitate().await;
        self.end.is_none()
    }

    /// Writes all; false when the connection is gone.
    pub(super) async fn write(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let part = [IoSlice::new(&bytes[..self.dice.usize(1..=self.stride).min(bytes.len())])];
            match poll_fn(|cx| self.stream.poll_write(cx, &part)).await {
                Ok(count) => bytes = &bytes[count..],
                Err(_) => return false,
            }
            self.hesitate().await;
        }
        true
    }

    /// Takes a request's body; false when it does not come to its end.
    pub(super) async fn take_body(&mut self, head: &Head, case: &Case) -> bool {
        loop {
            let none = Body { payload: Vec::new(), bytes: 0, is_whole: true };
            let body = head.body(&self.input).unwrap_or(none);
            assert!(case.body.starts_with(&body.payload), "the server got another body: {case:?}");
            if body.is_whole {
                assert!(body.payload == case.body && case.flaw.is_none(), "a cut body looks whole: {case:?}");
                self.input.drain(..body.bytes);
                return true;
            }
            if !self.read().await {
                return false;
            }
        }
    }
}
