//! What passes between a master and the one that takes over from it, and between a worker whose master was killed and the
//! next master: listening sockets first of all.
//!
//! A message is a frame on a `SOCK_SEQPACKET` socket: version (1), kind, then the kind's payload; descriptors ride along.
//! Both ends may be of different binaries, so a frame is only ever appended to: what follows a known payload is ignored, a
//! kind that is not known is refused, and so is another version.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, getsockopt, socket, socketpair, sockopt};

use crate::fd;
use crate::ident::Generation;

const VERSION: u8 = 1;
/// The most bytes of a frame, head included.
const FRAME_BYTES_MAX: usize = 8192;
/// The most bytes of text in a message: an address, or a reason.
pub const TEXT_BYTES_MAX: usize = FRAME_BYTES_MAX - 64;

/// What is said.
#[derive(Debug)]
pub enum Message {
    /// The first word of an earlier master.
    Terms(Terms),
    /// The text of the configuration that is served, sealed.
    Text(OwnedFd),
    /// The lock of the runtime directory: it is held as long as one of both has it.
    Lock(OwnedFd),
    /// Listening sockets of an address, in the order of seats. An address may take several messages.
    Listener {
        /// The address as the configuration writes it.
        address: String,
        /// They; at most [`fd::DESCRIPTORS_MAX`].
        sockets: Vec<OwnedFd>,
        /// Whether a service manager opened the first: a unix path is not the master's to remove.
        is_activated: bool,
    },
    /// The listening socket of a demo origin.
    Origin {
        /// Which.
        name: String,
        /// It.
        socket: OwnedFd,
    },
    /// What was counted so far, by name, sealed: for a zone of another layout.
    Counters(OwnedFd),
    /// That was all there is.
    Complete,
    /// One end of a pair over which a worker hands connections over; the other end is an old worker's.
    Connections(OwnedFd),
    /// The later master gives the zone back: the earlier one serves on alone.
    GiveBack,
    /// The later master, having given the zone back, ends.
    End,
    /// The zone is the later master's again.
    Resume,
    /// The earlier master ends, and only waits for its workers.
    Farewell,
    /// How far the later master is; for people.
    Progress(String),
    /// The later master serves: the zone, the pid file and the lock are its own.
    Serving,
    /// It has given the zone back.
    GivenBack,
    /// It does not come to serve, and why.
    Refused(String),
}

/// How a later master is to go about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The last generation that the earlier master has tried; the later one begins above it.
    pub generation: Generation,
    /// How long one worker is watched before the others follow, in milliseconds; 0 when none is.
    pub watch_ms: u64,
    /// How many requests that worker must have answered by then, for a verdict.
    pub requests_min: u64,
    /// Whether the earlier master has left the terminal.
    pub is_daemon: bool,
    /// Whether it ends as soon as the later one serves.
    pub is_final: bool,
}

/// One end.
#[derive(Debug)]
pub struct Link(OwnedFd);

impl Link {
    /// Both ends; non-blocking, closed on exec.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn pair() -> nix::Result<(Link, Link)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Link(a), Link(b)))
    }

    /// The end that another process handed over, checked for its type.
    ///
    /// # Errors
    /// `InvalidInput` when it is no such socket.
    pub fn from_fd(descriptor: OwnedFd) -> io::Result<Link> {
        match getsockopt(&descriptor, sockopt::SockType) {
            Ok(SockType::SeqPacket) => Ok(Link(descriptor)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "that descriptor is not a link between masters")),
        }
    }

    /// Says something.
    ///
    /// # Errors
    /// `WouldBlock` when the other end does not listen; `BrokenPipe` when it is gone.
    pub fn send(&self, message: &Message) -> io::Result<()> {
        let mut frame = vec![VERSION, kind(message)];
        let mut files = Vec::new();
        match message {
            Message::Terms(terms) => {
                for number in [
                    terms.generation.0,
                    terms.watch_ms,
                    terms.requests_min,
                    terms.is_daemon.into(),
                    terms.is_final.into(),
                ] {
                    frame.extend(number.to_ne_bytes());
                }
            }
            Message::Text(file) | Message::Lock(file) | Message::Counters(file) | Message::Connections(file) => {
                files.push(file.as_fd());
            }
            Message::Listener { address, sockets, is_activated } => {
                put_text(&mut frame, address);
                frame.push(u8::from(*is_activated));
                files.extend(sockets.iter().map(AsFd::as_fd));
            }
            Message::Origin { name, socket } => {
                put_text(&mut frame, name);
                files.push(socket.as_fd());
            }
            Message::Progress(text) | Message::Refused(text) => put_text(&mut frame, text),
            Message::Complete
            | Message::GiveBack
            | Message::End
            | Message::Resume
            | Message::Farewell
            | Message::Serving
            | Message::GivenBack => {}
        }
        fd::send(self.0.as_fd(), &frame, &files)
    }

    /// Passes the listening sockets of an address on, in as many messages as that takes.
    ///
    /// # Errors
    /// Those of [`send`](Link::send).
    pub fn send_sockets(&self, address: &str, mut sockets: Vec<OwnedFd>, is_activated: bool) -> io::Result<()> {
        while !sockets.is_empty() {
            let rest = sockets.split_off(sockets.len().min(fd::DESCRIPTORS_MAX));
            self.send(&Message::Listener { address: address.to_owned(), sockets, is_activated })?;
            sockets = rest;
        }
        Ok(())
    }

    /// The next message, or `None` when the other end is gone.
    ///
    /// # Errors
    /// `WouldBlock` when there is none yet; `InvalidData` for a frame that is not one.
    pub fn receive(&self) -> io::Result<Option<Message>> {
        let mut buffer = [0; FRAME_BYTES_MAX];
        let (length, files) = loop {
            match fd::receive(self.0.as_fd(), &mut buffer) {
                // The other end died with our messages unread. That is told once; what it had said is still there.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                other => break other?,
            }
        };
        match &buffer[..length] {
            [] => Ok(None),
            [VERSION, kind, payload @ ..] => read(*kind, payload, files)
                .map(Some)
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("message {kind} is not understood"))),
            [other, ..] => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("version {other} of the protocol between masters is not understood; this is {VERSION}"),
            )),
        }
    }

    /// The descriptor, for handing it over.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// A socket for a worker to listen on when its master is gone, at `path` or under a name of the kernel's choice.
///
/// # Errors
/// When the path is taken or too long, or descriptors run out.
pub fn call(path: Option<&Path>) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    let address = path.map_or_else(|| Ok(UnixAddr::new_unnamed()), UnixAddr::new)?;
    bind(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

fn kind(message: &Message) -> u8 {
    match message {
        Message::Terms(_) => 1,
        Message::Text(_) => 2,
        Message::Lock(_) => 3,
        Message::Listener { .. } => 4,
        Message::Origin { .. } => 5,
        Message::Complete => 6,
        Message::Connections(_) => 7,
        Message::GiveBack => 8,
        Message::End => 9,
        Message::Progress(_) => 10,
        Message::Serving => 11,
        Message::GivenBack => 12,
        Message::Refused(_) => 13,
        Message::Resume => 14,
        Message::Farewell => 15,
        Message::Counters(_) => 16,
    }
}

fn read(kind: u8, payload: &[u8], files: Vec<OwnedFd>) -> Option<Message> {
    let mut files = files.into_iter();
    Some(match kind {
        1 => {
            let mut numbers = payload.as_chunks().0.iter().map(|bytes| u64::from_ne_bytes(*bytes));
            Message::Terms(Terms {
                generation: Generation(numbers.next()?),
                watch_ms: numbers.next()?,
                requests_min: numbers.next()?,
                is_daemon: numbers.next()? != 0,
                is_final: numbers.next().is_some_and(|number| number != 0),
            })
        }
        2 => Message::Text(files.next()?),
        3 => Message::Lock(files.next()?),
        4 => {
            let address = text(payload)?;
            let is_activated = payload.get(2 + address.len()).is_some_and(|flag| *flag != 0);
            Message::Listener { address, sockets: files.collect(), is_activated }
        }
        5 => Message::Origin { name: text(payload)?, socket: files.next()? },
        6 => Message::Complete,
        7 => Message::Connections(files.next()?),
        8 => Message::GiveBack,
        9 => Message::End,
        10 => Message::Progress(text(payload)?),
        11 => Message::Serving,
        12 => Message::GivenBack,
        13 => Message::Refused(text(payload)?),
        14 => Message::Resume,
        15 => Message::Farewell,
        16 => Message::Counters(files.next()?),
        _ => return None,
    })
}

fn put_text(frame: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
    frame.extend(u16::try_from(text.len()).unwrap_or(0).to_ne_bytes());
    frame.extend(text.as_bytes());
}

fn text(mut payload: &[u8]) -> Option<String> {
    let length = u16::from_ne_bytes(*payload.split_off(..2)?.as_array()?);
    String::from_utf8(payload.split_off(..usize::from(length))?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn file() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn what_is_said_is_heard() {
        let (a, b) = Link::pair().unwrap();
        assert_eq!(b.receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let terms =
            Terms { generation: Generation(7), watch_ms: 30_000, requests_min: 20, is_daemon: true, is_final: true };
        let said = [
            Message::Terms(terms),
            Message::Text(file()),
            Message::Lock(file()),
            Message::Listener { address: "[::1]:80".into(), sockets: vec![file(), file()], is_activated: true },
            Message::Origin { name: "a".into(), socket: file() },
            Message::Counters(file()),
            Message::Complete,
            Message::Connections(file()),
            Message::GiveBack,
            Message::End,
            Message::Resume,
            Message::Farewell,
            Message::Progress("on it".into()),
            Message::Serving,
            Message::GivenBack,
            Message::Refused("no".into()),
        ];
        let shown = |message: &Message| match message {
            Message::Terms(terms) => format!("{terms:?}"),
            Message::Listener { address, sockets, is_activated } => {
                format!("{address} {} {is_activated}", sockets.len())
            }
            Message::Origin { name, .. } => name.clone(),
            Message::Progress(text) | Message::Refused(text) => text.clone(),
            other => kind(other).to_string(),
        };
        for message in &said {
            a.send(message).unwrap();
            assert_eq!(shown(&b.receive().unwrap().unwrap()), shown(message));
        }
        a.send(&Message::Refused("é".repeat(9000))).unwrap();
        assert!(matches!(b.receive().unwrap(), Some(Message::Refused(text)) if text.len() == TEXT_BYTES_MAX));
        b.send(&Message::GiveBack).unwrap();
        a.send(&Message::Serving).unwrap();
        drop(a);
        assert!(matches!(b.receive().unwrap(), Some(Message::Serving)), "its last words are heard");
        assert!(b.receive().unwrap().is_none());
        assert!(Link::from_fd(file()).is_err() && Link::from_fd(b.into_fd()).is_ok());
    }

    #[test]
    fn later_versions_may_say_more_and_nonsense_is_refused() {
        let (a, b) = Link::pair().unwrap();
        let mut longer = vec![VERSION, 13];
        put_text(&mut longer, "why");
        longer.extend(b"and more");
        fd::send(a.as_fd(), &longer, &[]).unwrap();
        assert!(matches!(b.receive().unwrap(), Some(Message::Refused(text)) if text == "why"));
        for frame in
            [&[2, 1][..], &[VERSION], &[VERSION, 99], &[VERSION, 1, 0, 0], &[VERSION, 2], &[VERSION, 10, 9, 0, b'x']]
        {
            fd::send(a.as_fd(), frame, &[]).unwrap();
            assert_eq!(b.receive().unwrap_err().kind(), io::ErrorKind::InvalidData, "{frame:?}");
        }
    }
}
