//! One end of a connection, driven step by step: the client's, or the origin's.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use nix::sys::socket::{setsockopt, sockopt};

use crate::message::{Framing, Head, Message, take_chunk, take_trailers};
use crate::patience::PATIENCE;

/// The most that one read takes.
const READ_BYTES: usize = 64 * 1024;

/// One end of a connection.
///
/// Every method that reads waits for what it is to read, and panics with what came instead if the peer closes, resets
/// or stays silent.
pub struct Wire {
    stream: Arc<Stream>,
    /// Received and not yet consumed.
    pending: Vec<u8>,
    /// All that was received, for who wants it.
    record: Option<Arc<Mutex<Vec<u8>>>>,
}

/// How a peer ended its side of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// In good order.
    Closed,
    /// By a reset.
    Reset,
}

impl Wire {
    /// A connection to a TCP address.
    #[track_caller]
    pub fn tcp(address: SocketAddr) -> Wire {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap_or_else(|e| panic!("{address}: {e}"));
        Wire::over_tcp(stream)
    }

    /// A connection to a unix socket.
    #[track_caller]
    pub fn unix(path: &Path) -> Wire {
        Wire::new(Stream::Unix(UnixStream::connect(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))))
    }

    pub(crate) fn over_tcp(stream: TcpStream) -> Wire {
        stream.set_nodelay(true).expect("TCP_NODELAY");
        Wire::new(Stream::Tcp(stream))
    }

    pub(crate) fn over_unix(stream: UnixStream) -> Wire {
        Wire::new(Stream::Unix(stream))
    }

    fn new(stream: Stream) -> Wire {
        stream.set_patience().expect("socket timeouts");
        Wire { stream: Arc::new(stream), pending: Vec::new(), record: None }
    }

    /// Sends all of `bytes`.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap_or_else(|e| panic!("send: {e}; received so far: {}", self.seen()));
    }

    /// Sends all of `bytes`, or says why the peer does not take them.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        (&*self.stream).write_all(bytes.as_ref())
    }

    /// Says that nothing more will be sent.
    #[track_caller]
    pub fn finish(&mut self) {
        self.stream.shutdown(Shutdown::Write).expect("shutdown");
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        match &*self.stream {
            Stream::Tcp(stream) => setsockopt(&stream.as_fd(), sockopt::Linger, &linger).expect("SO_LINGER"),
            Stream::Unix(_) => panic!("a unix socket cannot be reset"),
        }
    }

    /// The next head.
    #[track_caller]
    pub fn head(&mut self) -> Head {
        self.take("a head", Head::parse)
    }

    /// The next head, or `None` if the peer closed before it began.
    #[track_caller]
    pub fn next_head(&mut self) -> Option<Head> {
        if self.pending.is_empty() && !matches!(self.fill(), Ok(1..)) {
            return None;
        }
        Some(self.head())
    }

    /// The next request, or `None` if the peer closed before it began.
    #[track_caller]
    pub fn request(&mut self) -> Option<Message> {
        let head = self.next_head()?;
        let framing = head.request_framing();
        Some(self.body_of(head, framing))
    }

    /// The next response to a request that was neither HEAD nor CONNECT.
    #[track_caller]
    pub fn response(&mut self) -> Message {
        self.response_to("GET")
    }

    /// The next response to a `method` request.
    #[track_caller]
    pub fn response_to(&mut self, method: &str) -> Message {
        let head = self.head();
        let framing = head.response_framing(method);
        self.body_of(head, framing)
    }

    /// Asks for `target` with nothing but a Host field, and returns the response.
    #[track_caller]
    pub fn get(&mut self, target: &str) -> Message {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n"));
        self.response()
    }

    /// The next `count` bytes.
    #[track_caller]
    pub fn exactly(&mut self, count: usize) -> Vec<u8> {
        self.take("bytes", |bytes| bytes.get(..count).map(|taken| (taken.to_vec(), count)))
    }

    /// Whatever has come, at least one byte; empty if the peer has closed.
    #[track_caller]
    pub fn some(&mut self) -> Vec<u8> {
        if self.pending.is_empty() {
            self.fill().unwrap_or_else(|e| panic!("some bytes: {e}"));
        }
        std::mem::take(&mut self.pending)
    }

    /// Agrees to whatever protocol was asked for, and sends back what comes until the peer closes.
    #[track_caller]
    pub fn echo(&mut self) {
        self.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
        loop {
            let piece = self.some();
            if piece.is_empty() {
                return;
            }
            self.send(piece);
        }
    }

    /// The data of the next chunk; empty for the last one, after which come the [`trailers`](Wire::trailers).
    #[track_caller]
    pub fn chunk(&mut self) -> Vec<u8> {
        self.take("a chunk", take_chunk)
    }

    /// The trailer section after the last chunk.
    #[track_caller]
    pub fn trailers(&mut self) -> Vec<(String, String)> {
        self.take("trailers", take_trailers)
    }

    /// Everything until the peer ends the connection, and how it did.
    #[track_caller]
    pub fn rest(&mut self) -> (Vec<u8>, Ending) {
        let deadline = Instant::now() + PATIENCE;
        let ending = loop {
            assert!(Instant::now() < deadline, "no end of the connection; received so far: {}", self.seen());
            match self.fill() {
                Ok(0) => break Ending::Closed,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => break Ending::Reset,
                Err(e) => panic!("no end of the connection: {}; received so far: {}", reason(&e), self.seen()),
            }
        };
        (std::mem::take(&mut self.pending), ending)
    }

    /// Waits for the peer to close in good order, having sent nothing more.
    #[track_caller]
    pub fn closed(&mut self) {
        let (bytes, ending) = self.rest();
        assert!(bytes.is_empty(), "instead of closing it sent {}", bytes.escape_ascii());
        assert_eq!(ending, Ending::Closed);
    }

    /// Whether anything has come that was not taken, or the connection has ended; does not wait.
    pub fn has_news(&mut self) -> bool {
        if !self.pending.is_empty() {
            return true;
        }
        self.stream.set_nonblocking(true).expect("O_NONBLOCK");
        let outcome = self.fill();
        self.stream.set_nonblocking(false).expect("O_NONBLOCK");
        !outcome.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
    }

    /// This end's address.
    #[track_caller]
    pub fn local_address(&self) -> SocketAddr {
        match &*self.stream {
            Stream::Tcp(stream) => stream.local_addr().expect("a local address"),
            Stream::Unix(_) => panic!("a unix socket has no such address"),
        }
    }

    /// Sets the size of the kernel's buffers on this end, in bytes, so that backpressure comes soon.
    #[track_caller]
    pub fn narrow(&self, bytes: usize) {
        let fd = self.stream.as_fd();
        setsockopt(&fd, sockopt::RcvBuf, &bytes).expect("SO_RCVBUF");
        setsockopt(&fd, sockopt::SndBuf, &bytes).expect("SO_SNDBUF");
    }

    pub(crate) fn recorded_in(mut self, record: Arc<Mutex<Vec<u8>>>) -> Wire {
        self.record = Some(record);
        self
    }

    pub(crate) fn closer(&self) -> Closer {
        Closer(Arc::downgrade(&self.stream))
    }

    #[track_caller]
    fn body_of(&mut self, head: Head, framing: Framing) -> Message {
        let (mut body, mut trailers) = (Vec::new(), Vec::new());
        match framing {
            Framing::Length(length) => body = self.exactly(length),
            Framing::UntilClose => body = self.rest().0,
            Framing::Chunked => {
                loop {
                    let data = self.chunk();
                    if data.is_empty() {
                        break;
                    }
                    body.extend(data);
                }
                trailers = self.trailers();
            }
        }
        Message { head, body, trailers }
    }

    /// Waits until `parse` finds what it looks for at the start of what came, and takes it.
    #[track_caller]
    fn take<T>(&mut self, what: &str, parse: impl Fn(&[u8]) -> Option<(T, usize)>) -> T {
        loop {
            if let Some((found, used)) = parse(&self.pending) {
                self.pending.drain(..used);
                return found;
            }
            match self.fill() {
                Ok(0) => panic!("closed while waiting for {what}; it had sent {}", self.seen()),
                Ok(_) => {}
                Err(e) => panic!("{} while waiting for {what}; it had sent {}", reason(&e), self.seen()),
            }
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut buffer = [0; READ_BYTES];
        let outcome = (&*self.stream).read(&mut buffer);
        let received = &buffer[..*outcome.as_ref().unwrap_or(&0)];
        self.pending.extend_from_slice(received);
        if let Some(record) = &self.record {
            record.lock().expect("record").extend_from_slice(received);
        }
        outcome
    }

    fn seen(&self) -> String {
        let shown = &self.pending[..self.pending.len().min(2000)];
        format!("\"{}\"", shown.escape_ascii())
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock => format!("nothing came for {PATIENCE:?}"),
        _ => error.to_string(),
    }
}

/// Ends a connection that another thread may be waiting on, without keeping it open.
pub(crate) struct Closer(Weak<Stream>);

impl Closer {
    pub(crate) fn close(&self) {
        if let Some(stream) = self.0.upgrade() {
            // The peer may have ended it already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn set_patience(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(s) => s.set_read_timeout(Some(PATIENCE)).and(s.set_write_timeout(Some(PATIENCE))),
            Stream::Unix(s) => s.set_read_timeout(Some(PATIENCE)).and(s.set_write_timeout(Some(PATIENCE))),
        }
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        match self {
            Stream::Tcp(s) => s.set_nonblocking(nonblocking),
            Stream::Unix(s) => s.set_nonblocking(nonblocking),
        }
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Stream::Tcp(s) => s.shutdown(how),
            Stream::Unix(s) => s.shutdown(how),
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(s) => s.as_fd(),
            Stream::Unix(s) => s.as_fd(),
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match *self {
            Stream::Tcp(s) => (&mut &*s).read(buffer),
            Stream::Unix(s) => (&mut &*s).read(buffer),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match *self {
            Stream::Tcp(s) => (&mut &*s).write(bytes),
            Stream::Unix(s) => (&mut &*s).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
