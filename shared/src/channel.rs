//! The control channel: one `SOCK_SEQPACKET` socketpair between the master and each worker. `control` has one too, by which
//! it says that it serves.
//!
//! A message is a frame: version (1), kind, then the kind's payload; descriptors ride along. Both ends run the same
//! binary or neighbours in age, so a frame of another version is refused, not guessed at.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};

use crate::fd;
use crate::ident::Generation;

const VERSION: u8 = 1;
/// The most bytes a frame has, head included.
const FRAME_BYTES_MAX: usize = 4096;

const ACCESS_LOG: u8 = 1;
const ERROR_LOG: u8 = 2;

/// What the master tells a worker.
#[derive(Debug)]
pub enum Command {
    /// Accept no more, finish what runs, then exit.
    Drain,
    /// Exit at once.
    Stop,
    /// Write logs to these files from now on; what is `None` stays as it is.
    Reopen {
        /// The access log.
        access_log: Option<OwnedFd>,
        /// The error log.
        error_log: Option<OwnedFd>,
    },
    /// Listening sockets for the [`Prepare`](Command::Prepare) that follows: one a seat, or one. An address may take more
    /// than one such frame.
    Sockets {
        /// Which of the configuration's listeners they are of.
        listener: u32,
        /// They, in the order of seats, at most [`SOCKETS_MAX`] a frame.
        sockets: Vec<OwnedFd>,
    },
    /// Make everything ready to serve another configuration, and say so; go on with the present one.
    Prepare {
        /// Its number.
        generation: Generation,
        /// Its text, sealed.
        text: OwnedFd,
        /// Where its objects are in the zone, sealed.
        bearings: OwnedFd,
        /// Where its access log goes, if it has one.
        access_log: Option<OwnedFd>,
    },
    /// Serve what was prepared from now on.
    Commit(Generation),
    /// Forget what was prepared, or sent for it.
    Abandon,
    /// Offer other workers what can be moved, from now on: see [`handover`](crate::handover). Comes before
    /// [`Drain`](Command::Drain), and once for each worker that takes.
    HandOver {
        /// The giving end.
        to: OwnedFd,
    },
    /// Take what another worker offers, up to its end.
    TakeOver {
        /// The taking end.
        from: OwnedFd,
    },
    /// The master is the proxy's from now on: its end is not the worker's.
    Establish,
    /// Close the connections on which nothing happens.
    CloseIdle,
}

/// The most sockets in one [`Command::Sockets`].
pub const SOCKETS_MAX: usize = fd::DESCRIPTORS_MAX;

/// What a worker tells the master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// It serves.
    Ready,
    /// It cannot serve, and why (cut to about 4 KB).
    Failed(String),
    /// It writes to the new log files.
    Reopened,
    /// It could serve that configuration.
    Prepared(Generation),
    /// It could not, and why.
    Refused(Generation, String),
    /// It serves that configuration.
    Swapped(Generation),
    /// It has let go of everything that this configuration does not name.
    Settled(Generation),
    /// Where its loop is: addresses of code, the innermost first, at most [`STACK_DEPTH_MAX`].
    Stack(Vec<u64>),
}

/// The most addresses of a [`Report::Stack`].
pub const STACK_DEPTH_MAX: usize = 64;

/// One end of the channel; non-blocking, closed on exec.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Both ends.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn pair() -> nix::Result<(Channel, Channel)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Channel(a), Channel(b)))
    }

    /// The end that another process handed over; it must be an end of a [`pair`](Channel::pair).
    #[must_use]
    pub fn from_fd(descriptor: OwnedFd) -> Channel {
        Channel(descriptor)
    }

    /// Master to worker.
    ///
    /// # Errors
    /// `WouldBlock` when the worker has stopped reading; `BrokenPipe` when it is gone.
    pub fn send_command(&self, command: &Command) -> io::Result<()> {
        match command {
            Command::Drain => fd::send(self.as_fd(), &[VERSION, 1], &[]),
            Command::Stop => fd::send(self.as_fd(), &[VERSION, 2], &[]),
            Command::Reopen { access_log, error_log } => {
                let which = access_log.as_ref().map_or(0, |_| ACCESS_LOG) | error_log.as_ref().map_or(0, |_| ERROR_LOG);
                let files: Vec<_> = [access_log, error_log].into_iter().flatten().map(AsFd::as_fd).collect();
                fd::send(self.as_fd(), &[VERSION, 3, which], &files)
            }
            Command::Sockets { listener, sockets } => {
                let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
                fd::send(self.as_fd(), &frame(4, &listener.to_ne_bytes(), b""), &sockets)
            }
            Command::Prepare { generation, text, bearings, access_log } => {
                let files: Vec<_> = [text, bearings].into_iter().chain(access_log).map(AsFd::as_fd).collect();
                fd::send(self.as_fd(), &frame(5, &generation.0.to_ne_bytes(), b""), &files)
            }
            Command::Commit(generation) => fd::send(self.as_fd(), &frame(6, &generation.0.to_ne_bytes(), b""), &[]),
            Command::Abandon => fd::send(self.as_fd(), &[VERSION, 7], &[]),
            Command::HandOver { to } => fd::send(self.as_fd(), &[VERSION, 8], &[to.as_fd()]),
            Command::TakeOver { from } => fd::send(self.as_fd(), &[VERSION, 9], &[from.as_fd()]),
            Command::Establish => fd::send(self.as_fd(), &[VERSION, 10], &[]),
            Command::CloseIdle => fd::send(self.as_fd(), &[VERSION, 11], &[]),
        }
    }

    /// The next command, or `None` when the master is gone.
    ///
    /// # Errors
    /// `WouldBlock` when there is none yet; `InvalidData` for a frame that is not one.
    pub fn recv_command(&self) -> io::Result<Option<Command>> {
        let mut buffer = [0; FRAME_BYTES_MAX];
        let Some((frame, files)) = self.receive(&mut buffer)? else { return Ok(None) };
        match (frame, files.len()) {
            ([1], 0) => Ok(Some(Command::Drain)),
            ([2], 0) => Ok(Some(Command::Stop)),
            ([3, which @ 0..=3], count) if which.count_ones() as usize == count => {
                let mut files = files.into_iter();
                let access_log = if which & ACCESS_LOG == 0 { None } else { files.next() };
                let error_log = if which & ERROR_LOG == 0 { None } else { files.next() };
                Ok(Some(Command::Reopen { access_log, error_log }))
            }
            ([4, listener @ ..], 1..) => {
                let listener = u32::from_ne_bytes(number(listener)?);
                Ok(Some(Command::Sockets { listener, sockets: files }))
            }
            ([5, generation @ ..], 2..=3) => {
                let generation = Generation(u64::from_ne_bytes(number(generation)?));
                let mut files = files.into_iter();
                match (files.next(), files.next()) {
                    (Some(text), Some(bearings)) => {
                        Ok(Some(Command::Prepare { generation, text, bearings, access_log: files.next() }))
                    }
                    _ => Err(invalid("no such command")),
                }
            }
            ([6, generation @ ..], 0) => Ok(Some(Command::Commit(Generation(u64::from_ne_bytes(number(generation)?))))),
            ([7], 0) => Ok(Some(Command::Abandon)),
            ([kind @ 8..=9], 1) => Ok(files.into_iter().next().map(|end| match kind {
                8 => Command::HandOver { to: end },
                _ => Command::TakeOver { from: end },
            })),
            ([10], 0) => Ok(Some(Command::Establish)),
            ([11], 0) => Ok(Some(Command::CloseIdle)),
            _ => Err(invalid("no such command")),
        }
    }

    /// Worker to master.
    ///
    /// # Errors
    /// `WouldBlock` when the master has stopped reading; `BrokenPipe` when it is gone.
    pub fn send_report(&self, report: &Report) -> io::Result<()> {
        match report {
            Report::Ready => fd::send(self.as_fd(), &[VERSION, 1], &[]),
            Report::Failed(reason) => {
                let mut frame = vec![VERSION, 2];
                frame.extend_from_slice(&reason.as_bytes()[..reason.floor_char_boundary(FRAME_BYTES_MAX - 2)]);
                fd::send(self.as_fd(), &frame, &[])
            }
            Report::Reopened => fd::send(self.as_fd(), &[VERSION, 3], &[]),
            Report::Prepared(generation) => self.send_of(4, *generation, b""),
            Report::Refused(generation, reason) => {
                self.send_of(5, *generation, &reason.as_bytes()[..reason.floor_char_boundary(FRAME_BYTES_MAX - 10)])
            }
            Report::Swapped(generation) => self.send_of(6, *generation, b""),
            Report::Settled(generation) => self.send_of(7, *generation, b""),
            Report::Stack(addresses) => self.send_stack(addresses),
        }
    }

    /// [`Report::Stack`], for a signal handler: nothing is allocated and no lock taken. Addresses beyond
    /// [`STACK_DEPTH_MAX`] are left out.
    ///
    /// # Errors
    /// As [`send_report`](Channel::send_report).
    pub fn send_stack(&self, addresses: &[u64]) -> io::Result<()> {
        let mut frame = [0; 2 + 8 * STACK_DEPTH_MAX];
        frame[..2].copy_from_slice(&[VERSION, 8]);
        let mut end = 2;
        for (place, address) in frame[2..].chunks_exact_mut(8).zip(addresses) {
            place.copy_from_slice(&address.to_ne_bytes());
            end += place.len();
        }
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        send(self.as_raw_fd(), &frame[..end], flags).map(drop).map_err(io::Error::from)
    }

    fn send_of(&self, kind: u8, generation: Generation, text: &[u8]) -> io::Result<()> {
        fd::send(self.as_fd(), &frame(kind, &generation.0.to_ne_bytes(), text), &[])
    }

    /// The next report, or `None` when the worker is gone.
    ///
    /// # Errors
    /// `WouldBlock` when there is none yet; `InvalidData` for a frame that is not one.
    pub fn recv_report(&self) -> io::Result<Option<Report>> {
        let mut buffer = [0; FRAME_BYTES_MAX];
        let Some((frame, _)) = self.receive(&mut buffer)? else { return Ok(None) };
        match frame {
            [1] => Ok(Some(Report::Ready)),
            [2, reason @ ..] => Ok(Some(Report::Failed(String::from_utf8_lossy(reason).into_owned()))),
            [3] => Ok(Some(Report::Reopened)),
            [kind @ 4..=7, rest @ ..] => {
                let (number_bytes, text) = rest.split_at_checked(8).ok_or_else(|| invalid("a frame that was cut"))?;
                let generation = Generation(u64::from_ne_bytes(number(number_bytes)?));
                Ok(Some(match kind {
                    4 => Report::Prepared(generation),
                    5 => Report::Refused(generation, String::from_utf8_lossy(text).into_owned()),
                    6 => Report::Swapped(generation),
                    _ => Report::Settled(generation),
                }))
            }
            [8, addresses @ ..] if addresses.len() % 8 == 0 && addresses.len() <= 8 * STACK_DEPTH_MAX => {
                let (addresses, _) = addresses.as_chunks();
                Ok(Some(Report::Stack(addresses.iter().map(|address| u64::from_ne_bytes(*address)).collect())))
            }
            _ => Err(invalid("no such report")),
        }
    }

    fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<(&'b [u8], Vec<OwnedFd>)>> {
        let (length, files) = loop {
            match fd::receive(self.as_fd(), buffer) {
                // The other end died with our messages unread. That is told once; what it had said is still there.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                other => break other?,
            }
        };
        match &buffer[..length] {
            [] => Ok(None),
            [VERSION, frame @ ..] => Ok(Some((frame, files))),
            _ => Err(invalid("another version of the control channel")),
        }
    }
}

fn frame(kind: u8, number: &[u8], text: &[u8]) -> Vec<u8> {
    [&[VERSION, kind], number, text].concat()
}

fn number<const N: usize>(bytes: &[u8]) -> io::Result<[u8; N]> {
    bytes.try_into().map_err(|_| invalid("a frame that was cut"))
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    #[test]
    fn commands_arrive_in_order_with_their_files() {
        let (master, worker) = Channel::pair().unwrap();
        assert_eq!(worker.recv_command().unwrap_err().kind(), io::ErrorKind::WouldBlock);

        let file = tempfile::NamedTempFile::new().unwrap();
        let error_log = Some(OwnedFd::from(file.reopen().unwrap()));
        master.send_command(&Command::Drain).unwrap();
        master.send_command(&Command::Reopen { access_log: None, error_log }).unwrap();
        master.send_command(&Command::Stop).unwrap();
        drop(master);

        assert!(matches!(worker.recv_command().unwrap(), Some(Command::Drain)));
        let Some(Command::Reopen { access_log: None, error_log: Some(log) }) = worker.recv_command().unwrap() else {
            panic!("the files were mixed up")
        };
        File::from(log).write_all(b"line\n").unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"line\n");
        assert!(matches!(worker.recv_command().unwrap(), Some(Command::Stop)));
        assert!(worker.recv_command().unwrap().is_none());
    }

    #[test]
    fn a_change_arrives_as_it_was_sent() {
        let (master, worker) = Channel::pair().unwrap();
        let file = || OwnedFd::from(File::open("/dev/null").unwrap());
        let generation = Generation(7);
        master.send_command(&Command::Sockets { listener: 3, sockets: vec![file(), file()] }).unwrap();
        for access_log in [None, Some(file())] {
            let prepare = Command::Prepare { generation, text: file(), bearings: file(), access_log };
            master.send_command(&prepare).unwrap();
        }
        master.send_command(&Command::Commit(generation)).unwrap();
        master.send_command(&Command::Abandon).unwrap();
        master.send_command(&Command::HandOver { to: file() }).unwrap();
        master.send_command(&Command::TakeOver { from: file() }).unwrap();
        master.send_command(&Command::Establish).unwrap();
        master.send_command(&Command::CloseIdle).unwrap();
        let next = || worker.recv_command().unwrap().unwrap();
        assert!(matches!(next(), Command::Sockets { listener: 3, sockets } if sockets.len() == 2));
        assert!(matches!(next(), Command::Prepare { generation: Generation(7), access_log: None, .. }));
        assert!(matches!(next(), Command::Prepare { access_log: Some(_), .. }));
        assert!(matches!(next(), Command::Commit(Generation(7))));
        assert!(matches!(next(), Command::Abandon));
        assert!(matches!(next(), Command::HandOver { .. }));
        assert!(matches!(next(), Command::TakeOver { .. }));
        assert!(matches!(next(), Command::Establish));
        assert!(matches!(next(), Command::CloseIdle));
        for report in [
            Report::Prepared(generation),
            Report::Refused(generation, "no".into()),
            Report::Swapped(generation),
            Report::Settled(generation),
            Report::Stack(Vec::new()),
            Report::Stack((0..64).map(|number| u64::MAX - number).collect()),
        ] {
            worker.send_report(&report).unwrap();
            assert_eq!(master.recv_report().unwrap(), Some(report));
        }
    }

    #[test]
    fn reports_arrive_and_long_reasons_are_cut_at_a_character() {
        let (master, worker) = Channel::pair().unwrap();
        worker.send_stack(&[7; 100]).unwrap();
        assert_eq!(master.recv_report().unwrap(), Some(Report::Stack(vec![7; STACK_DEPTH_MAX])));
        for report in [Report::Ready, Report::Reopened, Report::Failed("no".into())] {
            worker.send_report(&report).unwrap();
            assert_eq!(master.recv_report().unwrap(), Some(report));
        }
        worker.send_report(&Report::Failed("é".repeat(4000))).unwrap();
        let Some(Report::Failed(reason)) = master.recv_report().unwrap() else { panic!("not a failure") };
        assert_eq!(reason, "é".repeat(2047));
        drop(worker);
        assert_eq!(master.recv_report().unwrap(), None);
        assert_eq!(master.send_command(&Command::Stop).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn frames_that_are_not_ours_are_refused() {
        let (a, b) = Channel::pair().unwrap();
        for frame in [
            &[2, 1][..],
            &[1],
            &[1, 9],
            &[1, 1, 0],
            &[1, 3, 1],
            &[1, 3, 7],
            &[1, 4],
            &[1, 5, 0],
            &[1, 6, 1],
            &[1, 8],
            &[0],
        ] {
            fd::send(a.as_fd(), frame, &[]).unwrap();
            assert_eq!(b.recv_command().unwrap_err().kind(), io::ErrorKind::InvalidData, "{frame:?}");
        }
        let kept = File::open("/dev/null").unwrap();
        fd::send(a.as_fd(), &[1, 1], &[kept.as_fd()]).unwrap();
        assert!(b.recv_command().is_err());
    }
}
