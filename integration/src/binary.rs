//! The program under test, and one run of it as a command.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The `sluice` program.
pub struct Binary;

/// How a command ended.
#[derive(Debug)]
pub struct Finished {
    /// The exit status; 128 and the number of the signal if one ended it.
    pub code: i32,
    /// What it printed on standard output.
    pub stdout: String,
    /// What it printed on standard error.
    pub stderr: String,
}

impl Binary {
    /// Where it is: `SLUICE_BIN` if that is set; else it is built, beside this test's own executable.
    pub fn path() -> &'static Path {
        static PATH: OnceLock<PathBuf> = OnceLock::new();
        PATH.get_or_init(|| match std::env::var_os("SLUICE_BIN") {
            Some(path) => PathBuf::from(path),
            None => build(&target(), &["--workspace"]),
        })
    }

    /// Where a build of it is that fails when it is asked to (the feature `misbehave`): built once, in a directory of its own.
    pub fn misbehaving() -> &'static Path {
        static PATH: OnceLock<PathBuf> = OnceLock::new();
        PATH.get_or_init(|| {
            let target = target();
            build(&target.join("misbehave"), &["--package", "sluice", "--features", "misbehave"])
        })
    }

    /// A command of it that is not yet started.
    pub fn command() -> Command {
        let mut command = Command::new(Binary::path());
        command.stdin(Stdio::null());
        command
    }

    /// Runs it with `arguments` to its end.
    pub fn run<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Finished {
        Finished::of(Binary::command().args(arguments))
    }
}

impl Finished {
    /// Runs `command` to its end.
    pub fn of(command: &mut Command) -> Finished {
        use std::os::unix::process::ExitStatusExt;
        let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Finished { code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// What it printed, if it succeeded.
    #[track_caller]
    pub fn output(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }
}

/// Builds the program with the profile of this test, so that it is never a stale one. Builds into one directory wait for
/// one another: cargo locks it.
fn build(target: &Path, what: &[&str]) -> PathBuf {
    let release = profile().ends_with("release");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(["build", "--quiet", "--bin", "sluice"]).args(what).arg("--target-dir");
    command.arg(target).args(release.then_some("--release"));
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let built = Finished::of(&mut command);
    assert_eq!(built.code, 0, "the program does not build:\n{}", built.stderr);
    target.join(if release { "release" } else { "debug" }).join("sluice")
}

/// `target/PROFILE`, of this test's own executable.
fn profile() -> PathBuf {
    let test = std::env::current_exe().expect("this test's path");
    test.ancestors().nth(2).expect("target/PROFILE/deps/test").to_owned()
}

/// The directory of all builds.
fn target() -> PathBuf {
    profile().parent().expect("target/PROFILE").to_owned()
}
