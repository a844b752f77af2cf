//! An HTTP/1.1 connection to a server, leased for one exchange.

use std::rc::Rc;

use super::pool::Connection;
use super::{Server, Upstream, dial};
use crate::message::fault::{Fault, Kind, Side, Stage};
use crate::message::head::ResponseHead;
use crate::proto::h1::{Attempts, HeadLimits, Parsed, parse_response};
use crate::proto::transfer::{Link, Patience};
use crate::runtime::buffer::Buffer;
use crate::runtime::net::Stream;
use crate::runtime::timer::Timer;

/// A connection checked out for an exchange. Dropped, it is closed; see [`Lease::keep`].
pub(crate) struct Lease {
    pub(crate) work: InFlight,
    connection: Connection,
    /// Whether it had carried a request before: then the server may have closed it unseen.
    pub(crate) is_reused: bool,
}

/// An exchange that a server is at work on.
pub(crate) struct InFlight {
    pub(crate) server: Rc<Server>,
}

impl InFlight {
    fn begin(server: &Rc<Server>) -> InFlight {
        server.cells.in_flight.inc();
        server.cells.requests.inc();
        InFlight { server: Rc::clone(server) }
    }

    /// One that another worker has begun.
    pub(crate) fn go_on(server: &Rc<Server>) -> InFlight {
        server.cells.in_flight.inc();
        InFlight { server: Rc::clone(server) }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.server.cells.in_flight.dec();
    }
}

impl Lease {
    /// The warmest idle connection; `None` when there is none.
    pub(crate) fn kept(server: &Rc<Server>) -> Option<Lease> {
        let connection = server.pool.take()?;
        Some(Lease { work: InFlight::begin(server), connection, is_reused: true })
    }

    /// Opens a connection within `patience`.
    ///
    /// # Errors
    /// See [`dial::connect`].
    pub(crate) async fn open(
        server: &Rc<Server>,
        greeting: &[u8],
        timer: &Timer,
        patience: Patience,
    ) -> Result<Lease, Fault> {
        let connection = dial::connect(server, greeting, timer, patience).await?;
        Ok(Lease { work: InFlight::begin(server), connection, is_reused: false })
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.connection.stream
    }

    /// The connection as something to read from and write to.
    pub(crate) fn link<'a>(&'a self, timer: &'a Timer, patience: Patience) -> Link<'a> {
        Link { stream: &self.connection.stream, timer, side: Side::Server, patience }
    }

    /// The connection alone, for a tunnel that goes on elsewhere.
    pub(crate) fn into_stream(self) -> Stream {
        self.connection.stream
    }

    /// Keeps the connection for the next exchange: the response was read to its end, nothing came after it, and the
    /// server agrees.
    pub(crate) fn keep(mut self, upstream: &Upstream) {
        self.connection.requests += 1;
        self.work.server.pool.put(self.connection, &upstream.keeping);
    }
}

/// Reads a response's head to the front of `inbox`.
///
/// # Errors
/// A fault of the server: it closed, was late, or sent what is no head.
pub(crate) async fn read_head(
    link: Link<'_>,
    inbox: &mut Option<Buffer>,
    limits: HeadLimits,
    to_head: bool,
    head: &mut ResponseHead,
) -> Result<(), Fault> {
    let mut attempts = Attempts::default();
    loop {
        if let Some(buffer) = inbox
            && !buffer.is_empty()
        {
            if attempts.should_parse(buffer.filled())
                && parse_response(buffer.filled(), limits, to_head, head)? == Parsed::Complete
            {
                return Ok(());
            }
            if !buffer.make_room(limits.bytes) {
                return Err(Fault::server(Stage::Head, Kind::TooLarge));
            }
        }
        let closed = Fault::server(Stage::Head, Kind::Closed);
        match link.read(inbox, Stage::Head).await {
            Ok(1..) => {}
            Err(fault) if fault != closed => return Err(fault),
            // In order or by a reset: once an answer has begun, another attempt is not safe.
            _ if inbox.as_ref().is_some_and(|buffer| !buffer.is_empty()) => {
                return Err(Fault::server(Stage::Head, Kind::Malformed("The response's head was cut off.")));
            }
            _ => return Err(closed),
        }
    }
}
