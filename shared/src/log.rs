//! The operator's log: slog on one descriptor, a line a `write(2)`, no thread.
//!
//! ```text
//! 2026-11-23T12:00:00.123Z INFO  worker[123] seat=0 connection refused address=10.0.0.1:80
//! {"time":"2026-11-23T12:00:00.123Z","level":"INFO","role":"worker","pid":123,"msg":"connection refused","seat":0,"address":"10.0.0.1:80"}
//! ```
//! A line is at most [`LINE_BYTES_MAX`] long, which a pipe takes whole: lines of several processes never mix.
//! What a full disk or a closed pipe refuses is lost; a log is no reason to stop serving.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use slog::{Drain, KV, Key, Level, Logger, Never, OwnedKVList, Record, Serializer, o};

mod escape;
mod time;

use escape::Quoting;

/// The most bytes of a line, its newline included: `PIPE_BUF` on Linux.
pub const LINE_BYTES_MAX: usize = 4096;
/// The most bytes one value may take of a line.
pub const VALUE_BYTES_MAX: usize = 2048;

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object (RFC 8259) a line.
    Json,
}

/// Where lines go; clones share the file, and its replacement.
#[derive(Debug, Clone)]
pub struct Target(Arc<RwLock<OwnedFd>>);

impl Target {
    /// The standard error of this process.
    ///
    /// # Errors
    /// When it is closed.
    pub fn stderr() -> io::Result<Target> {
        Ok(Target::from(io::stderr().as_fd().try_clone_to_owned()?))
    }

    /// Makes every logger on this target write to `descriptor` from now on: how log files are reopened.
    pub fn replace(&self, descriptor: OwnedFd) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = descriptor;
    }

    fn write(&self, line: &[u8]) {
        let descriptor = self.0.read().unwrap_or_else(PoisonError::into_inner);
        while nix::unistd::write(&*descriptor, line) == Err(nix::errno::Errno::EINTR) {}
    }
}

impl From<OwnedFd> for Target {
    fn from(descriptor: OwnedFd) -> Target {
        Target(Arc::new(RwLock::new(descriptor)))
    }
}

/// A logger that writes records of `level` and above, as process `role` of the calling pid. A forked child makes its own.
pub fn root(target: &Target, level: Level, format: Format, role: &'static str) -> Logger {
    let lines = Lines { target: target.clone(), format, role, pid: std::process::id() };
    Logger::root(lines.filter_level(level).fuse(), o!())
}

struct Lines {
    target: Target,
    format: Format,
    role: &'static str,
    pid: u32,
}

impl Drain for Lines {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        thread_local!(static LINE: RefCell<String> = RefCell::new(String::with_capacity(LINE_BYTES_MAX)));
        // A value whose Display logs comes back here while its own line is being made: it gets a line of its own.
        LINE.with(|kept| match kept.try_borrow_mut() {
            Ok(mut line) => self.write(&mut line, record, values),
            Err(_) => self.write(&mut String::new(), record, values),
        });
        Ok(())
    }
}

impl Lines {
    fn write(&self, line: &mut String, record: &Record<'_>, values: &OwnedKVList) {
        line.clear();
        let context = Pairs::of(self.format, |pairs| values.serialize(record, pairs));
        let own = Pairs::of(self.format, |pairs| record.kv().serialize(record, pairs));
        let time = time::Utc(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        let (level, role, pid) = (record.level().as_short_str(), self.role, self.pid);
        match self.format {
            Format::Text => {
                push(line, format_args!("{time} {level:<5} {role}[{pid}]"));
                context.append_to(line);
                line.push(' ');
                escape::append(line, VALUE_BYTES_MAX, Quoting::None, format_args!("{}", record.msg()));
                own.append_to(line);
                line.push('\n');
            }
            Format::Json => {
                push(
                    line,
                    format_args!(
                        "{{\"time\":\"{time}\",\"level\":\"{level}\",\"role\":\"{role}\",\"pid\":{pid},\"msg\":"
                    ),
                );
                escape::append(line, VALUE_BYTES_MAX, Quoting::Json, format_args!("{}", record.msg()));
                context.append_to(line);
                own.append_to(line);
                line.push_str("}\n");
            }
        }
        self.target.write(line.as_bytes());
    }
}

/// Rendered pairs of one list. slog hands them out last first; lines want them as they were written.
struct Pairs {
    format: Format,
    text: String,
    ends: Vec<usize>,
}

impl Pairs {
    fn of(format: Format, fill: impl FnOnce(&mut Pairs) -> slog::Result) -> Pairs {
        let mut pairs = Pairs { format, text: String::new(), ends: Vec::new() };
        // A value that cannot be written costs its own pair only.
        let _ = fill(&mut pairs);
        pairs
    }

    /// Appends what fits; a pair is never cut in two.
    fn append_to(&self, line: &mut String) {
        let room = LINE_BYTES_MAX - "}\n".len();
        for (index, end) in self.ends.iter().enumerate().rev() {
            let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
            if line.len() + end - start <= room {
                line.push_str(&self.text[start..*end]);
            }
        }
    }

    fn pair(&mut self, key: Key, quoting: Quoting, value: fmt::Arguments<'_>) {
        match self.format {
            Format::Text => {
                push(&mut self.text, format_args!(" {key}="));
                escape::append(&mut self.text, VALUE_BYTES_MAX, Quoting::IfNeeded, value);
            }
            Format::Json => {
                self.text.push(',');
                escape::append(&mut self.text, VALUE_BYTES_MAX, Quoting::Json, format_args!("{key}"));
                self.text.push(':');
                escape::append(&mut self.text, VALUE_BYTES_MAX, quoting, value);
            }
        }
        self.ends.push(self.text.len());
    }
}

macro_rules! emit_bare {
    ($($name:ident: $kind:ty),*) => {$(
        fn $name(&mut self, key: Key, value: $kind) -> slog::Result {
            self.pair(key, Quoting::None, format_args!("{value}"));
            Ok(())
        }
    )*};
}

impl Serializer for Pairs {
    fn emit_arguments(&mut self, key: Key, value: &fmt::Arguments<'_>) -> slog::Result {
        self.pair(key, Quoting::Json, *value);
        Ok(())
    }

    fn emit_none(&mut self, key: Key) -> slog::Result {
        self.pair(key, Quoting::None, format_args!("null"));
        Ok(())
    }

    emit_bare!(emit_u8: u8, emit_u16: u16, emit_u32: u32, emit_u64: u64, emit_usize: usize,
        emit_i8: i8, emit_i16: i16, emit_i32: i32, emit_i64: i64, emit_isize: isize, emit_bool: bool);
}

fn push(line: &mut String, text: fmt::Arguments<'_>) {
    // Writing to a String fails only when a value's own Display says so; what it wrote stays.
    let _ = line.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use slog::{error, info, warn};

    use super::*;

    fn lines(format: Format, log: impl FnOnce(&Logger)) -> String {
        let (mut reader, writer) = io::pipe().unwrap();
        let target = Target::from(OwnedFd::from(writer));
        log(&root(&target, Level::Info, format, "worker").new(o!("seat" => 0, "zone" => "a b")));
        drop(target);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn text_reads_in_the_order_it_was_written() {
        let text = lines(Format::Text, |log| {
            info!(log, "moved"; "from" => "a", "to" => "b=\"c\"");
            slog::debug!(log, "not shown");
        });
        let (time, rest) = text.split_at(24);
        assert!(time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
        let pid = std::process::id();
        assert_eq!(rest, format!(" INFO  worker[{pid}] seat=0 zone=\"a b\" moved from=a to=\"b=\\\"c\\\"\"\n"));
    }

    #[test]
    fn json_escapes_and_keeps_numbers() {
        let text = lines(
            Format::Json,
            |log| warn!(log, "a\"\u{1}\n{}", "é"; "n" => 7u64, "ok" => true, "none" => Option::<u8>::None, "t" => "\t\\"),
        );
        let tail = text.split_once("\"msg\":").unwrap().1;
        assert_eq!(
            tail,
            "\"a\\\"\\u0001\\né\",\"seat\":0,\"zone\":\"a b\",\"n\":7,\"ok\":true,\"none\":null,\"t\":\"\\t\\\\\"}\n"
        );
    }

    #[test]
    fn a_line_is_one_line_and_fits_a_pipe() {
        for format in [Format::Text, Format::Json] {
            let long = "\n\u{7}".repeat(3000);
            let text = lines(format, |log| error!(log, "{}", long; "a" => &long, "b" => &long, "c" => 1));
            assert!(text.len() <= LINE_BYTES_MAX, "{}", text.len());
            assert_eq!(text.matches('\n').count(), 1);
            assert!(text.contains("c=1") || text.contains("\"c\":1}"), "{text}");
        }
    }

    #[test]
    fn a_replaced_target_takes_the_next_line() {
        let (first, second) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
        let target = Target::from(OwnedFd::from(first.reopen().unwrap()));
        let log = root(&target, Level::Info, Format::Text, "master");
        info!(log, "one");
        target.replace(OwnedFd::from(second.reopen().unwrap()));
        info!(log, "two");
        assert!(std::fs::read_to_string(first.path()).unwrap().ends_with(" one\n"));
        assert!(std::fs::read_to_string(second.path()).unwrap().ends_with(" two\n"));
    }
}
