//! What commands ask of the running master, over a socket in its runtime directory.
//!
//! A frame on a `SOCK_SEQPACKET` socket: version (1), kind, then the kind's payload; a descriptor may ride along. A
//! connection carries one request and its answer: notes while it is worked on, and one last word. Only root and the master's
//! own user are heard.

#![forbid(unsafe_code)]

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::geteuid;
use shared::fd;

use crate::cycle::Master;
use crate::upgrade::Watch;

const VERSION: u8 = 1;
/// The most bytes of a frame, head included.
const FRAME_BYTES_MAX: usize = 8192;
/// The most connections that have not asked yet.
const SILENT_CLIENTS_MAX: usize = 16;

/// What is asked.
#[derive(Debug)]
pub(crate) enum Request {
    /// Have this binary take over.
    Upgrade {
        /// It, open for reading.
        binary: OwnedFd,
        /// How long one of its workers is watched first; zero for not at all.
        watch: Duration,
        /// How many requests that worker must have answered by then.
        requests_min: u64,
    },
    /// Take every request again that is in quarantine.
    ClearQuarantine,
    /// Have workers close the connections on which nothing happens.
    CloseIdle {
        /// All of them, not only old ones.
        all: bool,
    },
    /// Stop old workers, whatever they have left to do.
    StopOld,
}

impl Request {
    /// As it is sent.
    fn frame(&self) -> (Vec<u8>, Option<BorrowedFd<'_>>) {
        match self {
            Request::Upgrade { binary, watch, requests_min } => {
                let mut frame = vec![VERSION, 1];
                frame.extend(u64::try_from(watch.as_millis()).unwrap_or(u64::MAX).to_ne_bytes());
                frame.extend(requests_min.to_ne_bytes());
                (frame, Some(binary.as_fd()))
            }
            Request::ClearQuarantine => (vec![VERSION, 2], None),
            Request::CloseIdle { all } => (vec![VERSION, 3, u8::from(*all)], None),
            Request::StopOld => (vec![VERSION, 4], None),
        }
    }
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// How far it is.
    Note(String),
    /// It was done.
    Done(String),
    /// It was not, and why.
    Refused(String),
}

/// The socket, and who is connected to it and has not asked yet.
#[derive(Debug)]
pub(crate) struct Requests {
    listener: UnixListener,
    silent: Vec<Client>,
}

/// Somebody who waits for an answer.
#[derive(Debug)]
pub(crate) struct Client(OwnedFd);

impl Requests {
    /// Opens the socket, in place of an earlier one.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(crate) fn open(path: &Path) -> Result<Requests, String> {
        let open = || {
            let socket = make_socket()?;
            // An earlier master's, or one that was killed left it: the directory's lock is ours.
            let _ = fs::remove_file(path);
            bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
            listen(&socket, Backlog::new(16)?)?;
            let listener = UnixListener::from(socket);
            listener.set_nonblocking(true)?;
            Ok(Requests { listener, silent: Vec::new() })
        };
        open().map_err(|error: io::Error| format!("cannot listen for commands on {}: {error}", path.display()))
    }

    /// What becomes readable when there is something to [`take`](Requests::take).
    pub(crate) fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.silent.iter().map(|client| client.0.as_fd()).chain([self.listener.as_fd()])
    }

    /// What was asked meanwhile.
    pub(crate) fn take(&mut self) -> Vec<(Client, Request)> {
        while let Ok((socket, _)) = self.listener.accept() {
            // Who has been silent for the longest gives way.
            if self.silent.len() == SILENT_CLIENTS_MAX {
                self.silent.remove(0).answer(&Answer::Refused("too many ask at once".into()));
            }
            if socket.set_nonblocking(true).is_err() {
                continue;
            }
            let client = Client(socket.into());
            match getsockopt(&client.0, sockopt::PeerCredentials) {
                Ok(peer) if peer.uid() == 0 || peer.uid() == geteuid().as_raw() => self.silent.push(client),
                Ok(peer) => client.answer(&Answer::Refused(format!("user {} may not ask this", peer.uid()))),
                // It has gone already.
                Err(_) => {}
            }
        }
        let mut asked = Vec::new();
        for client in std::mem::take(&mut self.silent) {
            match client.hear() {
                Ok(Some(request)) => asked.push((client, request)),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.silent.push(client),
                Err(error) => client.answer(&Answer::Refused(error.to_string())),
            }
        }
        asked
    }
}

impl Client {
    /// Tells it something. One that has gone hears nothing; what it asked for is done all the same.
    pub(crate) fn answer(&self, answer: &Answer) {
        let (kind, text) = match answer {
            Answer::Note(text) => (1, text),
            Answer::Done(text) => (2, text),
            Answer::Refused(text) => (3, text),
        };
        let text = &text.as_bytes()[..text.floor_char_boundary(FRAME_BYTES_MAX - 2)];
        let _ = fd::send(self.0.as_fd(), &[&[VERSION, kind], text].concat(), &[]);
    }

    fn hear(&self) -> io::Result<Option<Request>> {
        let mut buffer = [0; FRAME_BYTES_MAX];
        let (length, files) = fd::receive(self.0.as_fd(), &mut buffer)?;
        let mut files = files.into_iter();
        match (&buffer[..length], files.next()) {
            ([], _) => Ok(None),
            ([VERSION, 1, numbers @ ..], Some(binary)) if numbers.len() >= 16 => {
                let mut numbers = numbers.as_chunks().0.iter().map(|bytes| u64::from_ne_bytes(*bytes));
                let mut next = || numbers.next().unwrap_or_default();
                Ok(Some(Request::Upgrade { binary, watch: Duration::from_millis(next()), requests_min: next() }))
            }
            ([VERSION, 2], None) => Ok(Some(Request::ClearQuarantine)),
            ([VERSION, 3, all @ 0..=1], None) => Ok(Some(Request::CloseIdle { all: *all == 1 })),
            ([VERSION, 4], None) => Ok(Some(Request::StopOld)),
            ([VERSION, ..], _) => {
                Err(io::Error::other("this master does not understand the request: it is another version"))
            }
            _ => Err(io::Error::other("this master speaks another version of the protocol")),
        }
    }
}

impl Master {
    /// Does what commands ask.
    pub(crate) fn heed(&mut self, now: Instant) {
        let asked = self.requests.as_mut().map(Requests::take).unwrap_or_default();
        for (client, request) in asked {
            match request {
                Request::Upgrade { binary, watch, requests_min } => {
                    self.upgrade_for(&binary, Watch { time: watch, requests_min }, client, now);
                }
                Request::ClearQuarantine => {
                    let count = self.clear_quarantine();
                    client.answer(&Answer::Done(format!("{count} requests were refused and are taken again")));
                }
                Request::CloseIdle { all } => {
                    let count = self.close_idle(all);
                    client.answer(&Answer::Done(format!("{count} workers close connections on which nothing happens")));
                }
                Request::StopOld => {
                    let count = self.stop_old(now);
                    client.answer(&Answer::Done(format!("{count} old workers are stopped")));
                }
            }
        }
    }
}

/// Asks the master whose socket is at `path`, and waits for its last word, at most `patience`; each note is shown.
///
/// # Errors
/// A sentence for the operator: why it was not done.
pub(crate) fn ask(path: &Path, request: &Request, patience: Duration, note: impl Fn(&str)) -> Result<String, String> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock => format!("no answer from the master after {patience:?}"),
        _ => format!("cannot ask the master at {}: {error}", path.display()),
    };
    let socket = (|| {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        let seconds = i64::try_from(patience.as_secs()).unwrap_or(i64::MAX);
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(seconds))?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        let (frame, descriptor) = request.frame();
        fd::send(socket.as_fd(), &frame, &Vec::from_iter(descriptor))?;
        Ok(socket)
    })()
    .map_err(failed)?;
    let mut buffer = [0; FRAME_BYTES_MAX];
    loop {
        let (length, _) = fd::receive(socket.as_fd(), &mut buffer).map_err(failed)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match &buffer[..length] {
            [VERSION, 1, rest @ ..] => note(&text(rest)),
            [VERSION, 2, rest @ ..] => return Ok(text(rest)),
            [VERSION, 3, rest @ ..] => return Err(text(rest)),
            [] => return Err("the master ended before it had answered".into()),
            _ => return Err("the master speaks another version of the protocol".into()),
        }
    }
}

fn make_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn request() -> Request {
        let binary = File::open("/dev/null").unwrap().into();
        Request::Upgrade { binary, watch: Duration::from_secs(3), requests_min: 7 }
    }

    #[test]
    fn what_is_asked_is_heard_and_answered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("master.sock");
        let mut requests = Requests::open(&path).unwrap();
        let asker = std::thread::spawn({
            let path = path.clone();
            move || ask(&path, &request(), Duration::from_secs(20), |note| assert_eq!(note, "soon"))
        });
        let (client, asked) = loop {
            if let Some(asked) = requests.take().pop() {
                break asked;
            }
        };
        let Request::Upgrade { watch, requests_min, .. } = asked else { panic!("{asked:?}") };
        assert_eq!((watch, requests_min), (Duration::from_secs(3), 7));
        client.answer(&Answer::Note("soon".into()));
        client.answer(&Answer::Refused("no".into()));
        assert_eq!(asker.join().unwrap(), Err("no".into()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn each_request_is_heard_as_it_was_asked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("master.sock");
        let mut requests = Requests::open(&path).unwrap();
        for request in [
            Request::ClearQuarantine,
            Request::CloseIdle { all: false },
            Request::CloseIdle { all: true },
            Request::StopOld,
        ] {
            let socket = make_socket().unwrap();
            connect(socket.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
            fd::send(socket.as_fd(), &request.frame().0, &[]).unwrap();
            let asked = requests.take().pop().map(|(_, asked)| format!("{asked:?}"));
            assert_eq!(asked, Some(format!("{request:?}")));
        }
    }

    #[test]
    fn nonsense_is_refused_and_silence_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("master.sock");
        let mut requests = Requests::open(&path).unwrap();
        let connect_to = || {
            let socket = make_socket().unwrap();
            connect(socket.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
            socket
        };
        for frame in [&[2, 1][..], &[1, 99], &[1, 1], &[1]] {
            let socket = connect_to();
            fd::send(socket.as_fd(), frame, &[]).unwrap();
            assert!(requests.take().is_empty());
            let mut buffer = [0; 200];
            let (length, _) = fd::receive(socket.as_fd(), &mut buffer).unwrap();
            assert!(length > 2 && buffer[..2] == [VERSION, 3]);
        }
        let silent: Vec<_> = (0..SILENT_CLIENTS_MAX).map(|_| connect_to()).collect();
        assert!(requests.take().is_empty() && requests.silent.len() == SILENT_CLIENTS_MAX);
        let one_more = connect_to();
        assert!(requests.take().is_empty() && requests.silent.len() == SILENT_CLIENTS_MAX);
        let mut buffer = [0; 200];
        assert!(fd::receive(silent[0].as_fd(), &mut buffer).unwrap().0 > 2, "the first is told");
        drop((silent, one_more));
        assert!(requests.take().is_empty() && requests.silent.is_empty());
        assert!(ask(&path.join("x"), &request(), Duration::from_secs(1), |_| {}).unwrap_err().contains("cannot ask"));
    }
}
