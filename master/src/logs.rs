//! The files that lines go to. The master opens them, and passes them on: workers may not have the right to.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, stderr, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use conf::model::{Config, ErrorLogFormat, LogLevel, LogTarget};
use shared::log::{Format, Target, root};
use slog::{Level, Logger};

/// The open logs of one configuration.
#[derive(Debug)]
pub(crate) struct Logs {
    access: Option<File>,
    error: File,
    target: Target,
    level: Level,
    format: Format,
}

impl Logs {
    /// Opens what `config` names.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(crate) fn open(config: &Config) -> Result<Logs, String> {
        let access = config.access_log.as_ref().map(|log| open(&log.target, "access_log")).transpose()?;
        let error = open(&config.error_log.target, "error_log")?;
        let target = Target::from(OwnedFd::from(error.try_clone().map_err(|error| error.to_string())?));
        let format = match config.error_log.format {
            ErrorLogFormat::Text => Format::Text,
            ErrorLogFormat::Json => Format::Json,
        };
        Ok(Logs { access, error, target, level: level(config.error_log.level), format })
    }

    /// The master's logger.
    pub(crate) fn logger(&self) -> Logger {
        root(&self.target, self.level, self.format, "master")
    }

    /// The logger of a child that was given `error`, made by itself, and what it writes to. `role` is what it is.
    pub(crate) fn child_logger(&self, error: File, role: &'static str) -> (Target, Logger) {
        let target = Target::from(OwnedFd::from(error));
        let logger = root(&target, self.level, self.format, role);
        (target, logger)
    }

    /// The access log and the error log, under descriptors that a child may be given.
    ///
    /// # Errors
    /// When descriptors run out.
    pub(crate) fn share(&self) -> io::Result<(Option<File>, File)> {
        Ok((self.access.as_ref().map(File::try_clone).transpose()?, self.error.try_clone()?))
    }

    /// Opens the files of `config`, which are these, once more: new files, where the old ones were renamed. Loggers
    /// made before write to them too.
    ///
    /// # Errors
    /// A sentence for the operator; then the old files stay in use.
    pub(crate) fn reopen(&mut self, config: &Config) -> Result<(), String> {
        let fresh = Logs::open(config)?;
        self.target.replace(fresh.error.try_clone().map_err(|error| error.to_string())?.into());
        self.access = fresh.access;
        self.error = fresh.error;
        Ok(())
    }
}

fn level(level: LogLevel) -> Level {
    match level {
        LogLevel::Debug => Level::Debug,
        LogLevel::Info => Level::Info,
        LogLevel::Warning => Level::Warning,
        LogLevel::Error => Level::Error,
        LogLevel::Critical => Level::Critical,
    }
}

fn open(target: &LogTarget, setting: &str) -> Result<File, String> {
    let file = match target {
        LogTarget::Stderr => stderr().as_fd().try_clone_to_owned().map(File::from),
        LogTarget::Stdout => stdout().as_fd().try_clone_to_owned().map(File::from),
        LogTarget::File(path) => open_file(path),
    };
    file.map_err(|error| format!("cannot open {setting} {}: {error}", name(target)))
}

fn open_file(path: &Path) -> io::Result<File> {
    // Opened for reading too, a named pipe needs no reader yet.
    let is_pipe = fs::metadata(path).is_ok_and(|status| status.file_type().is_fifo());
    OpenOptions::new().read(is_pipe).append(true).create(true).mode(0o644).open(path)
}

fn name(target: &LogTarget) -> String {
    match target {
        LogTarget::Stderr => "stderr".into(),
        LogTarget::Stdout => "stdout".into(),
        LogTarget::File(path) => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn files_are_appended_to_and_pipes_need_no_reader() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        for _ in 0..2 {
            open_file(&path).unwrap().write_all(b"line\n").unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "line\nline\n");

        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        open_file(&pipe).unwrap().write_all(b"line\n").unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named_with_its_setting() {
        let missing = LogTarget::File("/no/such/place/log".into());
        let error = open(&missing, "access_log").unwrap_err();
        assert!(error.starts_with("cannot open access_log /no/such/place/log: "), "{error}");
    }
}
