//! HTTP/1 with a client: reads requests and has them answered, and says what becomes of the connection.

mod reply;
mod tunnel;

use std::net::SocketAddr;

use shared::stats::ListenerCells;

use super::Downstream;
use crate::message::client::Client;
use crate::message::fault::{Fault, Kind, Side, Stage};
use crate::message::head::{BodyLength, Request, RequestHead};
use crate::pipeline::{Asked, Desk, Suspended, serve};
use crate::proto::h1::{Attempts, HeadLimits, Parsed, parse_request};
use crate::proto::proxy_protocol::{self, Addresses, Progress};
use crate::proto::transfer::{Link, Patience, Reader, Sent, Writer};
use crate::runtime::buffer::Buffer;
use crate::runtime::clock;
use crate::runtime::net::Stream;
use crate::runtime::timer::{Elapsed, Timer};
use reply::Reply;

/// What reading and writing on one connection takes; kept by a driver for the next one.
pub(super) struct Codec {
    head: RequestHead,
    /// What was read and not yet consumed; an exchange's head lies at the front.
    inbox: Option<Buffer>,
    /// A head on its way to the client.
    outbox: Vec<u8>,
    reading: Timer,
    writing: Timer,
}

/// What a connection opened with.
pub(super) enum Opening {
    /// Nothing yet.
    Silent,
    /// A PROXY protocol header: the client and the address it connected to, if they have addresses.
    Announced(Option<(SocketAddr, SocketAddr)>),
    /// Something else.
    Refused(&'static str),
}

/// How an exchange ended.
pub(super) enum Ended {
    /// There was none: nothing has come.
    Nothing,
    /// The connection is ready for the next one.
    Kept,
    /// The connection can be closed.
    Closed,
    /// The connection is to be closed, but the client still sends.
    Unread,
    /// It has not: the tunnel that it became is to go on elsewhere.
    Left(Box<Suspended>),
}

/// What is known of a connection when its exchange is over.
#[derive(Debug, Clone, Copy)]
struct Facts {
    /// The client is not there any more.
    is_gone: bool,
    /// An answer was begun that only the end of the connection completes, and it is not complete.
    is_cut: bool,
    /// Client or proxy have said that this was the last exchange.
    is_last: bool,
    /// The request's body was read to its end.
    is_read: bool,
    /// The client may have sent what was not read.
    may_speak: bool,
}

impl Facts {
    /// What becomes of the connection.
    fn end(self) -> Ended {
        match self {
            // To linger is to say first that this is the end.
            Facts { is_gone: true, .. } | Facts { is_cut: true, .. } => Ended::Closed,
            Facts { is_last: false, is_read: true, .. } => Ended::Kept,
            // RFC 9112 §9.6: to close with unread input would reset the connection.
            Facts { is_read: false, .. } | Facts { may_speak: true, .. } => Ended::Unread,
            _ => Ended::Closed,
        }
    }
}

impl Codec {
    pub(super) fn new() -> Codec {
        Codec {
            head: RequestHead::default(),
            inbox: None,
            outbox: Vec::new(),
            reading: Timer::new(),
            writing: Timer::new(),
        }
    }

    /// Makes it ready for another connection.
    pub(super) fn clear(&mut self) {
        self.inbox = None;
    }

    /// Whether something was read that is not consumed yet.
    pub(super) fn has_input(&self) -> bool {
        self.inbox.is_some()
    }

    /// A timer that no exchange uses now.
    pub(super) fn timer(&self) -> &Timer {
        &self.reading
    }

    /// Reads the PROXY protocol header that has to come first.
    pub(super) async fn read_announcement(&mut self, stream: &Stream, due: u64) -> Opening {
        loop {
            match proxy_protocol::decode(self.input()) {
                Progress::Incomplete => {}
                Progress::Malformed(reason) => return Opening::Refused(reason),
                Progress::Done { length, addresses } => {
                    let announced = match addresses {
                        Addresses::Inet { source, destination } => Some((source, destination)),
                        _ => None,
                    };
                    self.consume(length);
                    return Opening::Announced(announced);
                }
            }
            match self.read(stream, due).await {
                Input::More => {}
                Input::None => return Opening::Silent,
                Input::End => return Opening::Refused("the connection was closed before its end"),
                Input::Late => return Opening::Refused("it did not come in time"),
            }
        }
    }

    /// Reads a request and has it answered.
    pub(super) async fn exchange(
        &mut self,
        stream: &Stream,
        client: &Client,
        accepted: u64,
        listener: &ListenerCells,
        downstream: &Downstream,
        desk: &mut Desk,
    ) -> Ended {
        let site = std::rc::Rc::clone(&downstream.site.borrow());
        let begun = if client.requests == 1 { accepted } else { clock::now() };
        let due = begun.saturating_add(site.timeouts.client_head);
        let head = match self.read_head(stream, site.head_limits, due, client, desk).await {
            Ok(Some(())) => Ok(()),
            Ok(None) => return Ended::Nothing,
            // Between requests a client may leave as it likes.
            Err(_) if self.inbox.is_none() => return Ended::Closed,
            Err(fault) => Err(fault),
        };
        let bytes = self.inbox.as_ref().map_or(&[][..], Buffer::filled);
        let leading = &bytes[self.head.bytes..];
        let link = |timer| Link {
            stream,
            timer,
            side: Side::Client,
            patience: Patience { step: site.timeouts.client_send, deadline: u64::MAX },
        };
        let sent = Sent::default();
        self.outbox.clear();
        let mut reply = Reply {
            writer: Writer::new(link(&self.writing), &mut self.outbox, BodyLength::None, &sent),
            sent: &sent,
            stream,
            timer: &self.reading,
            leading,
            minor: if head.is_ok() { self.head.minor } else { 1 },
            is_head: self.head.method.within(bytes) == b"HEAD",
            is_last: !self.head.keep_alive || client.requests >= site.keep_alive_requests,
            is_draining: &downstream.is_draining,
            departures: Some(&downstream.departures),
            begun_at: None,
            ends_with_connection: false,
            is_finished: false,
        };
        let mut body = Reader::new(link(&self.reading), leading, self.head.body, None, site.head_limits.bytes);
        let request = Request { head: &self.head, bytes };
        let asked = Asked { site: &site, client, request, listener, log: &downstream.log };
        let outcome = serve(asked, head, &mut body, &mut reply, desk).await;

        let (is_last, is_cut) = (reply.is_last, reply.is_cut());
        drop(reply);
        let rest = body.finish();
        let consumed = bytes.len() - rest.leading_bytes;
        let is_refused = head.is_err();
        match rest.buffer {
            Some(buffer) => self.inbox = Some(buffer),
            None => self.consume(consumed),
        }
        // A client that asked for the end, by a request without a body, has nothing more to say. Of others that may not be
        // known: some send an empty line behind a body.
        let has_said_all = !self.head.keep_alive && self.head.body == BodyLength::None;
        let source = stream.source();
        let facts = Facts {
            is_gone: matches!(&outcome, Err(fault) if fault.is_client_gone()),
            is_cut: is_cut && outcome.is_err(),
            is_last,
            is_read: rest.is_complete,
            may_speak: is_refused
                || self.inbox.is_some()
                || source.is_readable()
                || !has_said_all && !source.is_watched(),
        };
        match outcome {
            Ok(Some(left)) => Ended::Left(left),
            _ => facts.end(),
        }
    }

    /// Reads until a head has come; `None` when nothing has.
    async fn read_head(
        &mut self,
        stream: &Stream,
        limits: HeadLimits,
        due: u64,
        client: &Client,
        desk: &mut Desk,
    ) -> Result<Option<()>, Fault> {
        let mut attempts = Attempts::default();
        let mut has_begun = false;
        self.head.clear();
        loop {
            if let Some(buffer) = &mut self.inbox {
                if !std::mem::replace(&mut has_begun, true) {
                    desk.begin(clock::now());
                    client.flight.begin(client.requests, due, clock::now());
                }
                if attempts.should_parse(buffer.filled())
                    && parse_request(buffer.filled(), limits, &mut self.head)? == Parsed::Complete
                {
                    return Ok(Some(()));
                }
                if !buffer.make_room(limits.bytes) {
                    return Err(Fault::client(Stage::Head, Kind::TooLarge));
                }
            }
            match self.read(stream, due).await {
                Input::More => {}
                Input::None => return Ok(None),
                Input::End => return Err(Fault::client(Stage::Head, Kind::Closed)),
                Input::Late => return Err(Fault::client(Stage::Head, Kind::Timeout)),
            }
        }
    }

    /// Reads more. A connection on which nothing has come is not waited for.
    async fn read(&mut self, stream: &Stream, due: u64) -> Input {
        let is_first = self.inbox.is_none();
        if is_first && !stream.source().is_readable() {
            return Input::None;
        }
        let buffer = self.inbox.get_or_insert_with(Buffer::new);
        let read = if is_first {
            stream.try_read(buffer.spare())
        } else {
            match self.reading.until(due, stream.read(buffer.spare())).await {
                Ok(read) => read.map(Some),
                Err(Elapsed) => return Input::Late,
            }
        };
        match read {
            Ok(Some(count @ 1..)) => {
                buffer.commit(count);
                return Input::More;
            }
            _ if !is_first => return Input::End,
            _ => self.inbox = None,
        }
        if matches!(read, Ok(None)) { Input::None } else { Input::End }
    }

    fn input(&self) -> &[u8] {
        self.inbox.as_ref().map_or(&[], Buffer::filled)
    }

    fn consume(&mut self, count: usize) {
        if let Some(buffer) = &mut self.inbox {
            buffer.consume(count);
            if buffer.is_empty() {
                self.inbox = None;
            }
        }
    }
}

/// What a read brought.
enum Input {
    More,
    None,
    End,
    Late,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_connection_ends() {
        let good = Facts { is_gone: false, is_cut: false, is_last: false, is_read: true, may_speak: false };
        for (facts, expected) in [
            (good, "kept"),
            (Facts { may_speak: true, ..good }, "kept"),
            (Facts { is_last: true, ..good }, "closed"),
            (Facts { is_last: true, may_speak: true, ..good }, "unread"),
            (Facts { is_last: true, is_read: false, ..good }, "unread"),
            (Facts { is_read: false, ..good }, "unread"),
            (Facts { is_gone: true, ..good }, "closed"),
            (Facts { is_gone: true, is_last: true, may_speak: true, ..good }, "closed"),
            (Facts { is_cut: true, is_last: true, is_read: false, may_speak: true, ..good }, "closed"),
        ] {
            let ended = match facts.end() {
                Ended::Kept => "kept",
                Ended::Closed => "closed",
                Ended::Unread => "unread",
                Ended::Nothing | Ended::Left(_) => "another",
            };
            assert_eq!(ended, expected, "{facts:?}");
        }
    }
}
