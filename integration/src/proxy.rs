//! A running proxy.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::binary::{Binary, Finished};
use crate::origin::Origin;
use crate::patience::{PATIENCE, eventually, until};
use crate::process::Process;
use crate::stats::Stats;
use crate::wire::Wire;

/// The environment variable that marks every process of one [`Proxy`].
const MARK: &str = "SLUICE_TEST_PROXY";

/// A proxy with a directory, a configuration and a port of its own.
///
/// Dropped, it is stopped, and nothing of it may be left running. When the test fails, its configuration and its log
/// are printed.
pub struct Proxy {
    directory: TempDir,
    port: u16,
    other_port: u16,
    mark: String,
    /// The program that is run: by default the one under test.
    pub program: &'static Path,
    master: Option<Child>,
    environment: Vec<(&'static str, String)>,
    /// Not started, or ended: there is nothing to stop.
    ended: bool,
}

impl Proxy {
    /// Starts a proxy and waits until its workers serve.
    ///
    /// In `text`, `{port}` and `{other_port}` stand for free ports and `{dir}` for the proxy's own directory. What
    /// every test needs is added if `text` does not say it: one worker, a listener on 127.0.0.1, a runtime directory.
    #[track_caller]
    pub fn start(text: &str) -> Proxy {
        let mut proxy = Proxy::prepared(text);
        proxy.launch();
        proxy.wait_ready(1);
        proxy
    }

    /// The same with a build that fails when it is asked to.
    #[track_caller]
    pub fn start_misbehaving(text: &str) -> Proxy {
        let mut proxy = Proxy::prepared(text);
        proxy.program = Binary::misbehaving();
        proxy.launch();
        proxy.wait_ready(1);
        proxy
    }

    /// Starts a proxy that sends everything to `origin`.
    #[track_caller]
    pub fn before(origin: &Origin) -> Proxy {
        Proxy::before_with(origin, "")
    }

    /// The same with more top-level settings.
    #[track_caller]
    pub fn before_with(origin: &Origin, settings: &str) -> Proxy {
        Proxy::start(&format!("{settings}\n{}", everything_to(&origin.address())))
    }

    /// A proxy with its configuration written, but not started.
    pub fn prepared(text: &str) -> Proxy {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Orphans come to this process then, which is how they are found and reaped.
        prctl::set_child_subreaper(true).expect("PR_SET_CHILD_SUBREAPER");
        let directory = tempfile::Builder::new().prefix("sluice-test-").tempdir().expect("a directory");
        let mark = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let [port, other_port] = [free_port(), free_port()];
        let program = Binary::path();
        let proxy =
            Proxy { directory, port, other_port, mark, program, master: None, environment: Vec::new(), ended: true };
        proxy.configure(text);
        proxy
    }

    /// Writes a new configuration; what the running proxy makes of it is another matter.
    pub fn configure(&self, text: &str) {
        let mut text = text.to_owned();
        for (key, value) in
            [("worker_processes", "1"), ("runtime_dir", "{dir}/run"), ("listeners", "[{address: '127.0.0.1:{port}'}]")]
        {
            if !text.lines().any(|line| line.starts_with(&format!("{key}:"))) {
                text.push_str(&format!("\n{key}: {value}"));
            }
        }
        let text = text
            .replace("{port}", &self.port.to_string())
            .replace("{other_port}", &self.other_port.to_string())
            .replace("{dir}", &self.directory().display().to_string());
        fs::write(self.config_path(), text).expect("the configuration");
    }

    /// Starts the master in the foreground, without waiting.
    pub fn launch(&mut self) {
        self.launch_with(["run"]);
    }

    /// The same with these arguments, before `-c` and the configuration.
    pub fn launch_with<const N: usize>(&mut self, arguments: [&str; N]) {
        let mut command = self.command(arguments);
        command.arg("-c").arg(self.config_path());
        self.spawn(command);
    }

    /// Starts the master as one does without any configuration, with `runtime` as the user's runtime directory. Its
    /// environment tells of sockets that were passed to another process.
    pub fn launch_default(&mut self, runtime: &Path) {
        let mut command = self.command([]);
        command.env("XDG_RUNTIME_DIR", runtime).env("LISTEN_PID", "1").env("LISTEN_FDS", "2");
        self.spawn(command);
    }

    /// Starts the master as another program's business: `wrapper` is a command that executes what follows it.
    pub fn launch_through<const N: usize>(&mut self, wrapper: [&str; N]) {
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(self.program).arg("run").arg("-c").arg(self.config_path());
        command.env(MARK, &self.mark).stdin(Stdio::null());
        self.spawn(command);
    }

    /// Starts the master as systemd does that has opened its sockets: they are descriptors 3 and 4.
    pub fn launch_activated(&mut self, sockets: [OwnedFd; 2]) {
        // Standard streams are what a command can be given: the shell moves them to where they belong.
        const MOVE: &str = "exec 3<&0 4<&2 0</dev/null 2>&1; LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=a:b exec \"$@\"";
        let [third, fourth] = sockets;
        let log = File::options().create(true).append(true).open(self.log_path()).expect("the log");
        let mut command = Command::new("sh");
        command.args(["-c", MOVE, "sh"]).arg(Binary::path()).args(["run", "-c"]).arg(self.config_path());
        command.env(MARK, &self.mark).stdin(third).stderr(fourth).stdout(log);
        self.master = Some(command.spawn().expect("the program starts"));
        self.ended = false;
    }

    fn spawn(&mut self, mut command: Command) {
        let log = File::options().create(true).append(true).open(self.log_path()).expect("the log");
        // Both, for what a start has to say to people may go to either.
        command.stdout(log.try_clone().expect("dup")).stderr(log);
        self.master = Some(command.spawn().expect("the program starts"));
        self.ended = false;
    }

    /// Starts it as a daemon (`-d`) and returns how the launching command ended.
    pub fn launch_daemon(&mut self) -> Finished {
        let log = self.file("launch");
        let mut command = self.command(["run", "-d", "-c"]);
        // Files, for a pipe would stay open in the daemon if that kept its standard streams.
        let file = File::create(&log).expect("a file");
        command.arg(self.config_path()).stdout(Stdio::null()).stderr(file);
        let status = command.status().expect("the program starts");
        self.ended = !status.success();
        Finished {
            code: status.code().unwrap_or(-1),
            stdout: String::new(),
            stderr: fs::read_to_string(log).unwrap_or_default(),
        }
    }

    /// Runs a subcommand about this proxy: `arguments`, then `-c` and its configuration.
    pub fn run<const N: usize>(&self, arguments: [&str; N]) -> Finished {
        Finished::of(self.command(arguments).arg("-c").arg(self.config_path()))
    }

    /// A command of the program that belongs to this proxy.
    pub fn command<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = Command::new(self.program);
        command.stdin(Stdio::null()).args(arguments).env(MARK, &self.mark).current_dir(self.directory());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Writes a new configuration and asks the proxy to take it.
    pub fn reload(&self, text: &str) -> Finished {
        self.configure(text);
        self.run(["reload"])
    }

    /// From now on its processes find this in their environment.
    pub fn set_environment(&mut self, name: &'static str, value: &str) {
        self.environment.push((name, value.to_owned()));
    }

    /// A new connection to its port.
    #[track_caller]
    pub fn client(&self) -> Wire {
        Wire::tcp(self.address())
    }

    /// The address that `{port}` is on.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.port)
    }

    /// The port that `{other_port}` stands for.
    pub fn other_port(&self) -> u16 {
        self.other_port
    }

    /// What a snapshot of the shared statistics says.
    #[track_caller]
    pub fn stats(&self) -> Stats {
        Stats::parse(&self.run(["stats", "--json"]).output())
    }

    /// The master.
    #[track_caller]
    pub fn master(&self) -> Process {
        self.find_master().expect("a master, or its pid file")
    }

    fn find_master(&self) -> Option<Process> {
        if let Some(child) = &self.master {
            return Some(Process(child.id().cast_signed()));
        }
        let text = fs::read_to_string(self.file("run/sluice.pid")).ok()?;
        text.trim().parse().ok().map(Process)
    }

    /// The workers, oldest first.
    pub fn workers(&self) -> Vec<Process> {
        let master = self.master();
        let arguments = master.arguments();
        // A worker is a fork of the master; other children were executed anew, with arguments of their own.
        let is_worker = |process: &Process| process.parent() == Some(master) && process.arguments() == arguments;
        let mut workers: Vec<_> = self.processes().into_iter().filter(is_worker).collect();
        workers.sort();
        workers
    }

    /// Every running process of this proxy, orphans included.
    pub fn processes(&self) -> Vec<Process> {
        Process::marked(MARK, &self.mark)
    }

    /// Sends the master a signal.
    pub fn signal(&self, signal: Signal) {
        self.master().signal(signal);
    }

    /// Waits for the master to end by itself, or by a signal of the test, and returns its exit status.
    #[track_caller]
    pub fn wait_exit(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let child = self.master.as_mut().expect("a master in the foreground");
        let status = until("the master's end", || child.try_wait().expect("wait"));
        self.ended = true;
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }

    /// The master that was started has ended by itself in favour of another one: that is the master from now on.
    #[track_caller]
    pub fn follow_master(&mut self) {
        assert_eq!(self.wait_exit(), 0, "the earlier master's end");
        self.master = None;
        self.ended = false;
    }

    /// Kills everything of this proxy at once, as when the machine fails.
    pub fn kill(&mut self) {
        for process in self.processes() {
            process.signal(Signal::SIGKILL);
        }
        self.ended = true;
        self.end();
    }

    /// Waits until the log holds `count` lines that say that a start or a reload is done.
    #[track_caller]
    pub fn wait_ready(&mut self, count: usize) {
        until("ready", || {
            let ended = self.master.as_mut().is_some_and(|child| child.try_wait().expect("wait").is_some());
            assert!(!ended, "the master has ended:\n{}", self.log());
            (self.log().lines().filter(|line| is_ready(line)).count() >= count).then_some(())
        });
    }

    /// Waits until the log holds a line with `text`.
    #[track_caller]
    pub fn wait_log(&self, text: &str) {
        eventually(&format!("{text:?} in the log"), || self.log().contains(text));
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// A file or directory of this proxy by name; `run/` is its runtime directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Its configuration.
    pub fn config_path(&self) -> PathBuf {
        self.file("sluice.yaml")
    }

    fn log_path(&self) -> PathBuf {
        self.file("stderr.log")
    }

    fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Waits until nothing of it runs, kills what does not end, and says what that was.
    fn end(&mut self) -> Vec<Process> {
        let mut known = self.processes();
        let deadline = Instant::now() + PATIENCE;
        let mut left = known.clone();
        while !left.is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
            left = self.processes();
        }
        for process in &left {
            process.signal(Signal::SIGKILL);
        }
        known.extend(&left);
        if let Some(mut master) = self.master.take() {
            known.retain(|process| process.0 != master.id().cast_signed());
            let _ = master.wait();
        }
        known.into_iter().for_each(Process::reap);
        left
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(master) = self.find_master().filter(|master| !self.ended && master.is_running()) {
            master.signal(Signal::SIGTERM);
        }
        let left = self.end();
        if thread::panicking() {
            let text = fs::read_to_string(self.config_path()).unwrap_or_default();
            eprintln!("--- configuration\n{text}\n--- log\n{}\n---", self.log());
        } else {
            assert!(left.is_empty(), "still running after the end: {left:?}\n{}", self.log());
        }
    }
}

/// A configuration's upstream and route that send everything to one address.
fn everything_to(address: &str) -> String {
    format!(
        "upstreams: {{app: {{servers: [{{address: '{address}'}}]}}}}\n\
         routes: [{{name: all, match: {{path: {{prefix: /}}}}, upstream: app}}]\n"
    )
}

/// Whether a line of the log says that all workers serve.
fn is_ready(line: &str) -> bool {
    let mut words = line.split_whitespace();
    words.any(|word| word == "ready") && words.any(|word| word.starts_with("generation="))
}

/// The ports that tests choose from: below those that the kernel gives to connections and to listeners that ask for any.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// A port of 127.0.0.1 that nobody has now and no other test of this process is given.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        // Test processes that run at the same time begin at different places.
        let start = u16::try_from(std::process::id() * 97 % u32::from(PORTS.end - PORTS.start)).expect("in range");
        let port = PORTS.start + (start + offset) % (PORTS.end - PORTS.start);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_completed_and_its_places_filled_in() {
        let proxy = Proxy::prepared("worker_processes: 2\nroutes: []");
        let text = fs::read_to_string(proxy.config_path()).unwrap();
        assert!(text.starts_with("worker_processes: 2\nroutes: []\n"), "{text}");
        assert!(text.contains(&format!("listeners: [{{address: '{}'}}]", proxy.address())), "{text}");
        assert!(text.contains(&format!("runtime_dir: {}/run", proxy.directory().display())), "{text}");
        assert_eq!(text.matches("worker_processes").count(), 1);
    }

    #[test]
    fn the_ready_line_is_recognised() {
        let line = "2026-11-23T12:00:00.123Z INFO  master[7] ready generation=1 workers=1 listeners=1";
        assert!(is_ready(line));
        assert!(!is_ready("2026-11-23T12:00:00.123Z INFO  worker[9] ready to drain"));
    }
}
