//! Leaving the terminal: the launching command stays until the daemon has said how its start went.

use std::fs::File;
use std::io::{self, Read, Write};

use nix::libc;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe, setsid};

/// Who goes on after [`detach`].
pub(crate) enum Side {
    /// The command that was typed. How the start went, once that is known.
    Launcher(Outcome),
    /// The daemon: a session of its own, the root as working directory, nothing on its standard streams.
    Daemon(Launch),
}

/// How a start went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The exit code for the launching command.
    pub(crate) code: u8,
    /// What to print, if anything.
    pub(crate) text: String,
}

/// The daemon's line to the launching command. Dropped unused, it tells that the start failed for an unknown reason.
#[derive(Debug)]
pub(crate) struct Launch(File);

impl Launch {
    /// Tells how the start went; the launching command ends with that.
    pub(crate) fn report(mut self, outcome: &Outcome) {
        let mut message = vec![outcome.code];
        message.extend_from_slice(outcome.text.as_bytes());
        // A launching command that was interrupted hears nothing; the daemon serves all the same.
        let _ = self.0.write_all(&message);
    }
}

/// Forks twice, so that the daemon neither leads a session that could gain a terminal nor is anybody's child.
///
/// # Errors
/// When processes or descriptors run out.
pub(crate) fn detach() -> io::Result<Side> {
    let (reader, writer) = pipe()?;
    // SAFETY: the process has one thread, so the child may do all that the parent may.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(writer);
            waitpid(child, None)?;
            return Ok(Side::Launcher(hear(&mut File::from(reader))));
        }
        ForkResult::Child => drop(reader),
    }
    setsid()?;
    // SAFETY: as above.
    if let ForkResult::Parent { .. } = unsafe { fork() }? {
        // SAFETY: ends the process without running what the parent registered for its own end.
        unsafe { libc::_exit(0) }
    }
    std::env::set_current_dir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(Side::Daemon(Launch(File::from(writer))))
}

fn hear(pipe: &mut impl Read) -> Outcome {
    let mut message = Vec::new();
    match pipe.read_to_end(&mut message).map(|_| message.split_first()) {
        Ok(Some((&code, text))) => Outcome { code, text: String::from_utf8_lossy(text).into_owned() },
        Ok(None) => Outcome { code: 1, text: "the master ended before it was ready".into() },
        Err(error) => Outcome { code: 1, text: format!("cannot hear from the master: {error}") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_daemon_reports_is_heard() {
        for (code, text) in [(0, ""), (1, "no such file"), (4, "one runs already")] {
            let outcome = Outcome { code, text: text.into() };
            let (reader, writer) = pipe().unwrap();
            Launch(writer.into()).report(&outcome);
            assert_eq!(hear(&mut File::from(reader)), outcome);
        }
    }

    #[test]
    fn silence_is_a_failure() {
        let (reader, writer) = pipe().unwrap();
        drop(Launch(writer.into()));
        assert_eq!(hear(&mut File::from(reader)).code, 1);
    }
}
