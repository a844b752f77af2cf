//! Sockets that a service manager opened before the start, as systemd passes them: sd_listen_fds(3).

#![forbid(unsafe_code)]

use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use integration::{Process, Proxy, Wire, eventually};
use nix::sys::signal::Signal;

const PIDS: &str = "routes: [{match: {path: /}, respond: {body: '$pid'}}]";

/// What systemd holds: it goes on listening whatever becomes of the proxy.
struct Keeper {
    inet: TcpListener,
    unix: UnixListener,
}

impl Keeper {
    fn of(proxy: &Proxy) -> Keeper {
        let inet = TcpListener::bind(proxy.address()).expect("a free port");
        Keeper { inet, unix: UnixListener::bind(proxy.file("app.sock")).expect("a free path") }
    }

    fn sockets(&self) -> [OwnedFd; 2] {
        [self.inet.try_clone().expect("dup").into(), self.unix.try_clone().expect("dup").into()]
    }
}

fn text(more: &str) -> String {
    format!(
        "worker_processes: 2\nshutdown_timeout: 5s\n{PIDS}\n\
         listeners: [{{address: '127.0.0.1:{{port}}'}}, {{address: '127.0.0.1:{{other_port}}'}}{more}]"
    )
}

const UNIX: &str = ", {address: 'unix:{dir}/app.sock'}";

/// Clients wait while there is no proxy, before the first start and between two; none is refused.
#[test]
fn passed_sockets_are_served_from_and_outlive_the_proxy() {
    let mut proxy = Proxy::prepared(&text(UNIX));
    let keeper = Keeper::of(&proxy);
    for start in 1..=2 {
        proxy.configure(&text(UNIX));
        let mut early = [proxy.client(), Wire::unix(&proxy.file("app.sock"))];
        early.iter_mut().for_each(|client| client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        proxy.launch_activated(keeper.sockets());
        proxy.wait_ready(start);
        for mut client in early {
            assert_eq!(client.response().status(), 200);
        }
        // One socket that is in no group is every worker's.
        let workers = proxy.workers();
        eventually("a crowd is more than one worker accepts", || {
            let mut crowd: Vec<Wire> = (0..200).map(|_| proxy.client()).collect();
            let mut answered_by: Vec<String> = crowd.iter_mut().map(|client| client.get("/").text()).collect();
            answered_by.sort();
            answered_by.dedup();
            answered_by.len() == workers.len()
        });
        // It is ours like any other: kept over a reload, in place or with new workers.
        proxy.reload(&format!("timeouts: {{connect: {start}s}}\n{}", text(UNIX))).output();
        assert_eq!(proxy.workers(), workers);
        proxy.reload(&format!("worker_connections: {}\n{}", 1000 + start, text(UNIX))).output();
        assert_eq!(proxy.client().get("/").status(), 200);
        proxy.signal(Signal::SIGQUIT);
        assert_eq!(proxy.wait_exit(), 0, "{}", proxy.log());
        assert!(proxy.file("app.sock").exists(), "the path is the manager's");
    }
}

#[test]
fn what_nobody_asked_for_is_closed_and_told() {
    let mut proxy = Proxy::prepared(&text(""));
    let keeper = Keeper::of(&proxy);
    proxy.launch_activated(keeper.sockets());
    proxy.wait_ready(1);
    proxy.wait_log("no listener is for: it is closed address=unix:");
    let socket = |fd: &str| std::fs::read_link(fd).unwrap_or_default();
    let theirs = socket(&format!("/proc/self/fd/{}", keeper.unix.as_raw_fd()));
    let used = socket(&format!("/proc/self/fd/{}", keeper.inet.as_raw_fd()));
    let holds = |process: &Process, socket: &PathBuf| {
        let all = std::fs::read_dir(format!("/proc/{}/fd", process.0)).into_iter().flatten().flatten();
        all.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|path| path == *socket)
    };
    for process in proxy.workers().iter().chain([&proxy.master()]) {
        assert!(holds(process, &used) && !holds(process, &theirs), "{process:?}");
    }
}

/// A socket that is in a group is the first seat's; the other seats have their own beside it.
#[test]
fn a_group_is_joined() {
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket, sockopt,
    };

    let mut proxy = Proxy::prepared(&text(UNIX));
    let unix = UnixListener::bind(proxy.file("app.sock")).expect("a free path");
    let inet = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    setsockopt(&inet, sockopt::ReusePort, &true).expect("SO_REUSEPORT");
    bind(inet.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, proxy.address().port())).expect("a free port");
    listen(&inet, Backlog::new(128).expect("a number")).expect("it listens");
    proxy.launch_activated([inet, unix.into()]);
    proxy.wait_ready(1);
    let answered_by = || Process(proxy.client().get("/").text().parse().expect("a pid"));
    for worker in proxy.workers() {
        eventually("each worker gets connections", || answered_by() == worker);
    }
    let reloaded = proxy.reload(&text(UNIX).replace("worker_processes: 2", "worker_processes: 1"));
    reloaded.output();
    for _ in 0..40 {
        assert_eq!(proxy.client().get("/").status(), 200);
    }
}
