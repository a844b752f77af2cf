//! The command line: nginx's flags beside subcommands.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf, absolute};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::control;
use crate::lock::holder;
use crate::recipe::Recipe;
use crate::requests::{Request, ask};
use crate::runtime_dir::RuntimeDir;

mod check;
mod drain;
mod interval;
mod plan;
mod quarantine;
mod run;
mod signal;
mod stats;
mod status;
mod top;
mod upgrade;

/// Exit codes, as the help tells them.
pub(crate) mod exit {
    /// It was done.
    pub(crate) const DONE: u8 = 0;
    /// It failed: the start failed, the reload was refused, the configuration is invalid.
    pub(crate) const FAILED: u8 = 1;
    /// `plan`: a reload would change something.
    pub(crate) const CHANGES: u8 = 2;
    /// No such proxy runs.
    pub(crate) const ABSENT: u8 = 3;
    /// One runs already.
    pub(crate) const RUNS_ALREADY: u8 = 4;
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed: the start failed, the reload was refused, the configuration is invalid
  2  the command line is wrong; of `plan`: a reload would change something
  3  no such proxy runs
  4  one runs already

Without -c, `run` uses a built-in configuration with two demo origins, and every other command looks for the proxy in
the default runtime directory: /run/sluice for root, else $XDG_RUNTIME_DIR/sluice, else /tmp/sluice-UID.";

/// A reverse proxy.
#[derive(Debug, Parser)]
#[command(name = "sluice", after_help = EXIT_CODES, disable_version_flag = true, max_term_width = 110)]
struct Cli {
    /// The configuration file
    #[arg(short, long = "config", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Paths in the configuration are relative to this directory, not to the file's own
    #[arg(short, long, value_name = "DIRECTORY", global = true)]
    prefix: Option<PathBuf>,
    /// Say nothing unless something is wrong
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Leave the terminal; return once the workers are ready
    #[arg(short, long, global = true)]
    daemon: bool,
    /// Test the configuration; the same as `check`
    #[arg(short = 't')]
    test: bool,
    /// Test the configuration and print it with all defaults filled in
    #[arg(short = 'T')]
    test_and_print: bool,
    /// Signal the running master
    #[arg(short, value_name = "SIGNAL")]
    signal: Option<SignalName>,
    /// Print the version
    #[arg(short = 'v', long = "version", action = ArgAction::SetTrue)]
    version: bool,
    /// Print the version and how this was built
    #[arg(short = 'V')]
    version_and_build: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SignalName {
    Stop,
    Quit,
    Reload,
    Reopen,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the proxy (the default)
    Run,
    /// Test the configuration
    Check {
        /// Print it with all defaults filled in
        #[arg(long)]
        print: bool,
    },
    /// Show what the running proxy counts
    Stats(stats::StatsArgs),
    /// Watch the running proxy
    Top(top::TopArgs),
    /// Show what a reload would change, and how: exits with 0 for nothing, 2 for something, 1 if it would be refused
    Plan(plan::PlanArgs),
    /// Show what is served since when, by whom, and whether the file has drifted from it
    Status(status::StatusArgs),
    /// Show which old workers are still there, and what holds them
    Drain(drain::DrainArgs),
    /// Show the requests that are refused because workers have died of them
    Quarantine(quarantine::QuarantineArgs),
    /// Put a changed configuration into effect; fails with the reason if it is refused
    Reload,
    /// Put another binary in this one's place, if it does well; else all stays as it is
    Upgrade(upgrade::UpgradeArgs),
    /// Stop gracefully: finish what runs, within shutdown_timeout
    Quit,
    /// Stop at once
    Stop,
    /// Reopen the log files
    Reopen,
    /// Print the JSON Schema of the configuration
    Schema,
    /// Print the reference of the configuration, in Markdown
    Reference,
    /// Take the place of the master at the other end of a link; started by that master
    #[command(hide = true)]
    Succeed {
        /// The link
        link: i32,
    },
    /// Serve the demo origins; started by the master, with inherited descriptors
    #[command(hide = true)]
    Control {
        /// Listening sockets, then the lifeline
        descriptors: Vec<i32>,
    },
}

/// Runs what the command line asks for.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse().and_then(Cli::checked) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    ExitCode::from(cli.run())
}

impl Cli {
    /// Refuses what clap cannot: flags that are commands, together or beside a subcommand.
    fn checked(self) -> Result<Cli, clap::Error> {
        let commands = [
            ("-t", self.test),
            ("-T", self.test_and_print),
            ("-s", self.signal.is_some()),
            ("-v", self.version),
            ("-V", self.version_and_build),
            ("a subcommand", self.command.is_some()),
        ];
        let given: Vec<_> = commands.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect();
        let conflict = |text: String| Err(Cli::command().error(ErrorKind::ArgumentConflict, text));
        if given.len() > 1 {
            return conflict(format!("{} say different things to do", given.join(" and ")));
        }
        if self.daemon && !matches!(self.command, None | Some(Command::Run)) {
            return conflict("-d is for `run`".into());
        }
        if self.prefix.is_some() && self.config.is_none() {
            return conflict("-p is about the paths in a configuration file: name it with -c".into());
        }
        Ok(self)
    }

    fn run(self) -> u8 {
        let quiet = self.quiet;
        let command = match (self.command, self.signal) {
            _ if self.version => return print(VERSION),
            _ if self.version_and_build => return print(&version_and_build()),
            _ if self.test || self.test_and_print => Command::Check { print: self.test_and_print },
            (_, Some(SignalName::Stop)) => Command::Stop,
            (_, Some(SignalName::Quit)) => Command::Quit,
            (_, Some(SignalName::Reload)) => Command::Reload,
            (_, Some(SignalName::Reopen)) => Command::Reopen,
            (command, None) => command.unwrap_or(Command::Run),
        };
        let recipe = match recipe(self.config.as_deref(), self.prefix.as_deref()) {
            Ok(recipe) => recipe,
            Err(error) => return complain(&format!("cannot tell where this is: {error}")),
        };
        let found = |act: &dyn Fn(&RuntimeDir, Duration) -> u8| match recipe.whereabouts() {
            Ok((dir, shutdown_timeout)) => act(&dir, shutdown_timeout),
            Err(problems) => complain(&format!("the configuration does not say which proxy is meant:\n{problems}")),
        };
        match command {
            Command::Run => run::run(recipe, self.daemon, quiet),
            Command::Check { print } => check::run(&recipe, print, quiet),
            Command::Stats(args) => found(&|dir, _| code(stats::run(args.clone(), dir.path()))),
            Command::Top(args) => found(&|dir, _| code(top::run(args.clone(), dir.path()))),
            Command::Plan(args) => plan::run(&args, &recipe, self.prefix.as_deref(), quiet),
            Command::Status(args) => found(&|dir, _| status::run(&args, dir, &recipe)),
            Command::Quarantine(args) => found(&|dir, _| quarantine::run(args, dir)),
            Command::Drain(args) => found(&|dir, _| drain::run(&args, dir)),
            Command::Reload => found(&|dir, _| signal::reload(dir, &recipe, quiet)),
            Command::Quit => found(&|dir, shutdown_timeout| signal::quit(dir, shutdown_timeout, quiet)),
            Command::Stop => found(&|dir, shutdown_timeout| signal::stop(dir, shutdown_timeout, quiet)),
            Command::Upgrade(args) => found(&|dir, _| upgrade::run(&args, dir, quiet)),
            Command::Succeed { link } => run::succeed(recipe, link),
            Command::Reopen => found(&|dir, _| signal::reopen(dir)),
            Command::Schema => print(&format!("{:#}", conf::schema())),
            Command::Reference => print(conf::reference().trim_end()),
            Command::Control { descriptors } => control::run(&descriptors),
        }
    }
}

const VERSION: &str = concat!("sluice version: sluice/", env!("CARGO_PKG_VERSION"));

fn version_and_build() -> String {
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    format!("{VERSION}\nbuilt for {}-{}, {build}", std::env::consts::ARCH, std::env::consts::OS)
}

fn recipe(config: Option<&Path>, prefix: Option<&Path>) -> std::io::Result<Recipe> {
    Ok(match config {
        Some(path) => Recipe::File { path: absolute(path)?, prefix: prefix.map(absolute).transpose()? },
        None => Recipe::BuiltIn,
    })
}

fn code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(exit::FAILED)
}

/// Has the master of `dir` do something that it does at once.
fn order(dir: &RuntimeDir, request: &Request) -> u8 {
    /// How long it may take to answer.
    const PATIENCE: Duration = Duration::from_secs(10);
    match holder(&dir.lock()) {
        Ok(Some(_)) => {}
        Ok(None) => {
            complain(&format!("no proxy runs in {}", dir.path().display()));
            return exit::ABSENT;
        }
        Err(error) => return complain(&format!("cannot look for a proxy in {}: {error}", dir.path().display())),
    }
    match ask(&dir.master_socket(), request, PATIENCE, |_| {}) {
        Ok(text) => print(&text),
        Err(reason) => complain(&reason),
    }
}

fn print(text: &str) -> u8 {
    use std::io::Write;
    // A reader that has seen enough is no failure of ours.
    let _ = writeln!(std::io::stdout(), "{text}");
    exit::DONE
}

fn complain(text: &str) -> u8 {
    eprintln!("sluice: {text}");
    exit::FAILED
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, ErrorKind> {
        let words = std::iter::once("sluice").chain(line.split_whitespace());
        Cli::try_parse_from(words).and_then(Cli::checked).map_err(|error| error.kind())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn nginx_flags_and_subcommands() {
        for line in [
            "",
            "-t",
            "-T -q",
            "-s reload",
            "-c a.yaml",
            "-c a.yaml -p /x run",
            "run -c a.yaml -d",
            "-d",
            "stop -c a.yaml",
            "-V",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line));
        }
        for line in ["-s restart", "-x", "start", "check -c"] {
            assert!(parse(line).is_err(), "{line}");
        }
        for line in ["-t -s stop", "-t run", "-s quit check", "check -d", "-t -T", "-p /x"] {
            assert_eq!(parse(line).unwrap_err(), ErrorKind::ArgumentConflict, "{line}");
        }
    }

    #[test]
    fn relative_files_are_found_from_any_directory_later() {
        let Recipe::File { path, prefix } = recipe(Some(Path::new("a.yaml")), Some(Path::new("x"))).unwrap() else {
            panic!("not a file")
        };
        assert!(path.is_absolute() && prefix.unwrap().is_absolute());
        assert_eq!(recipe(None, None).unwrap(), Recipe::BuiltIn);
    }
}
