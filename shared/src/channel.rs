//! The control channel: one `SOCK_SEQPACKET` socketpair between the master and each worker.
//!
//! A message is a frame: version (1), kind, then the kind's payload; descriptors ride along. Both ends run the same
//! binary or neighbours in age, so a frame of another version is refused, not guessed at.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::fd;

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
}

/// What a worker tells the master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// It serves.
    Ready,
    /// It cannot serve, and why (cut to about 4 KB).
    Failed(String),
    /// It writes to the new log files.
    Reopened,
}

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
        }
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
            _ => Err(invalid("no such report")),
        }
    }

    fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<(&'b [u8], Vec<OwnedFd>)>> {
        let (length, files) = match fd::receive(self.as_fd(), buffer) {
            // The other end died with our messages unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            other => other?,
        };
        match &buffer[..length] {
            [] => Ok(None),
            [VERSION, frame @ ..] => Ok(Some((frame, files))),
            _ => Err(invalid("another version of the control channel")),
        }
    }
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
    fn reports_arrive_and_long_reasons_are_cut_at_a_character() {
        let (master, worker) = Channel::pair().unwrap();
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
        for frame in [&[2, 1][..], &[1], &[1, 9], &[1, 1, 0], &[1, 3, 1], &[1, 3, 7], &[0]] {
            fd::send(a.as_fd(), frame, &[]).unwrap();
            assert_eq!(b.recv_command().unwrap_err().kind(), io::ErrorKind::InvalidData, "{frame:?}");
        }
        let kept = File::open("/dev/null").unwrap();
        fd::send(a.as_fd(), &[1, 1], &[kept.as_fd()]).unwrap();
        assert!(b.recv_command().is_err());
    }
}
