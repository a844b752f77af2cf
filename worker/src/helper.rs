//! The one thread beside a worker's loop: for work that blocks.
//!
//! It writes the access log and draws the blueprints of other configurations. Jobs are done in order. It obeys no signal and knows no
//! connection; the loop never waits for it, except at the end, and then not forever.

#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "this is the one thread that a worker may start")]

use std::cell::Cell;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Builder;
use std::time::Duration;

use memchr::{memchr, memchr_iter, memrchr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::time::{ClockId, clock_gettime};

/// How many buffers of lines may be on their way before the loop is told that the helper lags.
const BUFFERS_MAX: usize = 8;
/// What a buffer that comes back keeps of its memory at most, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long a pipe or a socket that takes nothing is waited for, in milliseconds, before its lines are given up: other
/// jobs are behind them.
const STALL_MILLIS: u16 = 1000;
/// How often lost lines are reported at most, in seconds.
const REPORT_SECONDS: i64 = 60;

/// What the loop has of the thread.
#[derive(Debug)]
pub(crate) struct Helper {
    jobs: Sender<Job>,
    emptied: Receiver<Vec<u8>>,
    /// Nothing is ever sent: it closes when the thread ends.
    running: Receiver<Infallible>,
    /// Buffers handed over and not taken back.
    buffers: Cell<usize>,
}

impl Helper {
    /// Starts the thread. `log` is told of lines that are lost.
    ///
    /// # Errors
    /// When the kernel has no room for a thread.
    pub(crate) fn start(access_log: Option<File>, log: slog::Logger) -> io::Result<Helper> {
        let (jobs, queue) = channel();
        let (give_back, emptied) = channel();
        let (end, running) = channel();
        let work = move || {
            let mut losses = Losses { log, lines: 0, reported: None };
            let mut target = access_log;
            for job in queue {
                match job {
                    Job::Write(mut lines) => {
                        losses.write(target.as_ref(), &lines);
                        lines.clear();
                        lines.shrink_to(BUFFER_BYTES);
                        // The loop may have gone without its buffer.
                        let _ = give_back.send(lines);
                    }
                    Job::Reopen(file) => target = file,
                    Job::Run(work) => work(),
                    Job::End => break,
                }
            }
            losses.report("the log ends");
            drop(end);
        };
        // A thread inherits the mask: no signal that is meant for the loop can come here, not even at first.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let thread = Builder::new().name("helper".into()).spawn(work);
        mask.thread_set_mask()?;
        thread?;
        Ok(Helper { jobs, emptied, running, buffers: Cell::new(0) })
    }

    /// Hands whole lines over to be written, and leaves an empty buffer in their place. False, with the lines still
    /// there, when the helper lags by more than 8 buffers.
    pub(crate) fn write(&self, lines: &mut Vec<u8>) -> bool {
        let empty = match self.emptied.try_recv() {
            Ok(empty) => empty,
            Err(_) if self.buffers.get() < BUFFERS_MAX => {
                self.buffers.set(self.buffers.get() + 1);
                Vec::with_capacity(BUFFER_BYTES)
            }
            Err(_) => return false,
        };
        self.jobs.send(Job::Write(std::mem::replace(lines, empty))).is_ok()
    }

    /// What follows goes to another file, or nowhere.
    pub(crate) fn reopen(&self, file: Option<File>) {
        let _ = self.jobs.send(Job::Reopen(file));
    }

    /// Has other work done, behind what was handed over before.
    pub(crate) fn run(&self, work: impl FnOnce() + Send + 'static) {
        let _ = self.jobs.send(Job::Run(Box::new(work)));
    }

    /// Waits until all jobs are done and the thread ends, but no longer than `bound`; says whether it has. A thread that
    /// hasn't, blocked in a write, ends with the process. Jobs that come later are not done.
    pub(crate) fn finish(&self, bound: Duration) -> bool {
        let _ = self.jobs.send(Job::End);
        matches!(self.running.recv_timeout(bound), Err(RecvTimeoutError::Disconnected))
    }
}

enum Job {
    Write(Vec<u8>),
    Reopen(Option<File>),
    Run(Box<dyn FnOnce() + Send>),
    End,
}

/// Lines that could not be written, and when that was last said.
struct Losses {
    log: slog::Logger,
    lines: u64,
    reported: Option<i64>,
}

impl Losses {
    fn write(&mut self, target: Option<&File>, lines: &[u8]) {
        let mut rest = lines;
        let Some(Err(error)) = target.map(|file| write(file, &mut rest)) else { return };
        self.lines += memchr_iter(b'\n', rest).count() as u64;
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| time.tv_sec());
        if self.reported.is_none_or(|then| now - then >= REPORT_SECONDS) {
            self.report(error);
            self.reported = Some(now);
        }
    }

    fn report(&mut self, reason: impl std::fmt::Display) {
        if self.lines > 0 {
            slog::error!(self.log, "access log lines lost"; "lines" => self.lines, "reason" => %reason);
            self.lines = 0;
        }
    }
}

/// Writes lines; `rest` is left at what wasn't written. To a file in one piece. A pipe or a socket has other writers too,
/// and takes whole at most PIPE_BUF bytes at a time, so that it gets as many lines as fit.
fn write(mut file: &File, rest: &mut &[u8]) -> io::Result<()> {
    let kind = file.metadata()?.file_type();
    let is_stream = kind.is_fifo() || kind.is_socket();
    while !rest.is_empty() {
        let length = if is_stream { whole_lines(rest, nix::libc::PIPE_BUF) } else { rest.len() };
        let mut piece = &rest[..length];
        while !piece.is_empty() {
            if is_stream {
                wait_for_room(file)?;
            }
            match file.write(piece) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    piece = &piece[count..];
                    *rest = &rest[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing here sets O_NONBLOCK, but whoever shares the terminal or the pipe may have.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_for_room(file)?,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// How many of `bytes`: the lines that end within `limit`, or the first one alone if it is longer.
fn whole_lines(bytes: &[u8], limit: usize) -> usize {
    let end = memrchr(b'\n', &bytes[..bytes.len().min(limit)]).or_else(|| memchr(b'\n', bytes));
    end.map_or(bytes.len(), |end| end + 1)
}

fn wait_for_room(file: &File) -> io::Result<()> {
    let mut room = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut room, PollTimeout::from(STALL_MILLIS))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use nix::sys::signal::Signal;
    use slog::{Drain, Logger, OwnedKVList, Record, o};

    use super::*;

    /// Longer than any of these takes on a machine that is not broken.
    const LONG: Duration = Duration::from_secs(60);

    struct Count(Arc<AtomicUsize>);

    impl Drain for Count {
        type Ok = ();
        type Err = slog::Never;

        fn log(&self, _: &Record<'_>, _: &OwnedKVList) -> Result<(), slog::Never> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    fn quiet() -> Logger {
        Logger::root(slog::Discard, o!())
    }

    fn content(mut file: File) -> String {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn lines_go_where_the_log_was_when_they_were_handed_over() {
        let files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        let clone = |at: usize| Some(files[at].try_clone().unwrap());
        let helper = Helper::start(clone(0), quiet()).unwrap();
        let mut lines = b"a\nb\n".to_vec();
        assert!(helper.write(&mut lines) && lines.is_empty());
        helper.reopen(clone(1));
        lines.extend(b"c\n");
        assert!(helper.write(&mut lines));
        helper.reopen(None);
        lines.extend(b"d\n");
        assert!(helper.write(&mut lines));
        assert!(helper.finish(LONG));
        assert_eq!(files.map(content), ["a\nb\n", "c\n"]);
    }

    #[test]
    fn pipes_get_whole_lines() {
        for (bytes, limit, length) in [
            (&b"aa\nbb\ncc\n"[..], 7, 6),
            (b"aa\nbb\ncc\n", 6, 6),
            (b"aa\nbb\ncc\n", 5, 3),
            (b"aa\nbb\ncc\n", 2, 3),
            (b"aa\nbb\ncc\n", 90, 9),
            (b"aaaa", 2, 4),
        ] {
            assert_eq!(whole_lines(bytes, limit), length);
        }
    }

    #[test]
    fn a_pipe_that_is_read_loses_nothing() {
        let (mut reader, writer) = io::pipe().unwrap();
        let helper = Helper::start(Some(File::from(OwnedFd::from(writer))), quiet()).unwrap();
        let line = [&[b'x'; 150][..], b"\n"].concat();
        let mut lines = line.repeat(2000);
        assert!(helper.write(&mut lines));
        let reading = std::thread::spawn(move || {
            let mut text = Vec::new();
            reader.read_to_end(&mut text).map(|_| text)
        });
        assert!(helper.finish(LONG));
        assert!(reading.join().unwrap().unwrap() == line.repeat(2000));
    }

    #[test]
    fn a_log_that_fails_is_reported_once_a_while() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let reports = Arc::new(AtomicUsize::new(0));
        let writer = File::from(OwnedFd::from(writer));
        let mut losses = Losses { log: Logger::root(Count(reports.clone()), o!()), lines: 0, reported: None };
        losses.write(None, b"a\n");
        assert_eq!(reports.load(Ordering::Relaxed), 0);
        for _ in 0..5 {
            losses.write(Some(&writer), b"a\nb\n");
        }
        assert_eq!((reports.load(Ordering::Relaxed), losses.lines), (1, 8));
        losses.reported = losses.reported.map(|then| then - REPORT_SECONDS);
        losses.write(Some(&writer), b"c\n");
        assert_eq!((reports.load(Ordering::Relaxed), losses.lines), (2, 0));
    }

    #[test]
    fn the_loop_keeps_its_own_mask() {
        let helper = Helper::start(None, quiet()).unwrap();
        assert!(helper.finish(LONG) && helper.finish(LONG));
        assert!(!SigSet::thread_get_mask().unwrap().contains(Signal::SIGTERM));
    }
}
