//! Connections in memory, for simulations: bounded, half-closable, and broken on demand.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::rc::Rc;

use conf::value::Address;

use super::{Io, Stream};
use crate::runtime::reactor::Registration;

/// Bytes that one direction holds: small, so that writers meet a full socket often.
const PIPE_BYTES: usize = 700;

/// One direction of a connection.
struct Pipe {
    bytes: RefCell<VecDeque<u8>>,
    closed: Cell<bool>,
    reset: Cell<bool>,
    reader: Rc<Registration>,
    writer: Rc<Registration>,
}

/// One end of a connection.
pub(crate) struct End {
    incoming: Rc<Pipe>,
    outgoing: Rc<Pipe>,
    registration: Rc<Registration>,
    resets_on_close: Cell<bool>,
}

/// Takes a connection that was dialled.
type Accept = Box<dyn Fn(Stream) -> io::Result<()>>;

thread_local! {
    static SERVERS: RefCell<HashMap<Address, Accept>> = RefCell::default();
}

/// From now on a connection to `address` is given to `accept`, which may refuse it.
pub(crate) fn serve(address: Address, accept: impl Fn(Stream) -> io::Result<()> + 'static) {
    SERVERS.with_borrow_mut(|servers| servers.insert(address, Box::new(accept)));
}

pub(super) fn dial(address: &Address) -> Option<io::Result<End>> {
    SERVERS.with_borrow(|servers| {
        let accept = servers.get(address)?;
        let (client, server) = ends();
        Some(Stream::new(Io::Memory(server)).and_then(accept).map(|()| client))
    })
}

/// A connection, both ends.
pub(crate) fn pair() -> (Stream, Stream) {
    let (one, other) = ends();
    let stream = |end| Stream::new(Io::Memory(end)).expect("it takes no descriptor");
    (stream(one), stream(other))
}

fn ends() -> (End, End) {
    let (one, other) = (Rc::new(Registration::detached()), Rc::new(Registration::detached()));
    let pipe = |reader: &Rc<Registration>, writer: &Rc<Registration>| {
        writer.simulate(false, true, false);
        Rc::new(Pipe {
            bytes: RefCell::default(),
            closed: Cell::new(false),
            reset: Cell::new(false),
            reader: Rc::clone(reader),
            writer: Rc::clone(writer),
        })
    };
    let (there, back) = (pipe(&other, &one), pipe(&one, &other));
    let end = |incoming: &Rc<Pipe>, outgoing: &Rc<Pipe>, registration| {
        let (incoming, outgoing) = (Rc::clone(incoming), Rc::clone(outgoing));
        End { incoming, outgoing, registration, resets_on_close: Cell::new(false) }
    };
    (end(&back, &there, one), end(&there, &back, other))
}

impl End {
    pub(super) fn take_registration(&mut self) -> Registration {
        self.registration.twin()
    }

    /// Breaks the connection: both ends see a reset, and what is under way is lost.
    fn reset(&self) {
        for pipe in [&self.incoming, &self.outgoing] {
            pipe.reset.set(true);
            pipe.reader.simulate(true, true, true);
            pipe.writer.simulate(true, true, true);
        }
    }

    pub(super) fn reset_on_close(&self) {
        self.resets_on_close.set(true);
    }

    pub(super) fn shutdown(&self, _: Shutdown) -> io::Result<()> {
        self.outgoing.closed.set(true);
        self.outgoing.reader.simulate(true, false, true);
        Ok(())
    }
}

impl Stream {
    /// See [`End::reset`].
    pub(crate) fn reset(&self) {
        if let Io::Memory(end) = &self.io {
            end.reset();
        }
    }

    /// Takes nothing more from the peer, whose writes fail from now on; what was sent to it can still be read.
    pub(crate) fn stop_reading(&self) {
        if let Io::Memory(End { incoming, .. }) = &self.io {
            incoming.reset.set(true);
            incoming.writer.simulate(false, true, false);
        }
    }
}

impl Read for &End {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let pipe = &self.incoming;
        if pipe.reset.get() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let mut bytes = pipe.bytes.borrow_mut();
        bytes.make_contiguous();
        let count = bytes.read(into)?;
        drop(bytes);
        if count > 0 {
            pipe.writer.simulate(false, true, false);
        } else if !pipe.closed.get() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(count)
    }
}

impl Write for &End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let pipe = &self.outgoing;
        if pipe.reset.get() || pipe.closed.get() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut queue = pipe.bytes.borrow_mut();
        let room = PIPE_BYTES - queue.len();
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let before = queue.len();
        queue.extend(parts.iter().flat_map(|part| part.iter().copied()).take(room));
        let written = queue.len() - before;
        drop(queue);
        pipe.reader.simulate(true, false, false);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // As TCP does: to close with unread input is a reset.
        if self.resets_on_close.get() || !self.incoming.bytes.borrow().is_empty() {
            return self.reset();
        }
        self.outgoing.closed.set(true);
        self.outgoing.reader.simulate(true, true, true);
        self.incoming.reset.set(true);
        self.incoming.writer.simulate(true, true, true);
    }
}
