//! What a service manager hears, by a socket that stands for it.

#![forbid(unsafe_code)]

use std::os::unix::net::UnixDatagram;

use integration::{PATIENCE, Proxy};
use nix::sys::signal::Signal;

const ANSWER: &str = "routes: [{match: {path: /}, respond: {status: 200}}]";

/// A proxy that a manager has started, with a setting of the environment.
fn managed(setting: &str) -> (Proxy, UnixDatagram) {
    let mut proxy = Proxy::prepared(ANSWER);
    let path = proxy.file("notify.sock");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(PATIENCE)).expect("a socket");
    proxy.launch_through(["env", &format!("NOTIFY_SOCKET={}", path.display()), setting]);
    (proxy, manager)
}

/// The next message that is not about the watchdog, by its lines.
fn hear(manager: &UnixDatagram) -> Vec<String> {
    loop {
        let mut message = [0; 4096];
        let count = manager.recv(&mut message).expect("the manager is told");
        let lines: Vec<String> = String::from_utf8_lossy(&message[..count]).lines().map(str::to_owned).collect();
        if lines != ["WATCHDOG=1"] {
            return lines;
        }
    }
}

#[test]
fn a_service_manager_hears_of_the_start_of_reloads_and_of_the_end() {
    let (mut proxy, manager) = managed("WATCHDOG_USEC=0");
    let started = hear(&manager);
    assert!(started.contains(&"READY=1".into()), "{started:?}");
    let master = proxy.master().0;
    assert!(started.contains(&format!("MAINPID={master}")), "{started:?}");

    for (text, verdict) in
        [(format!("limits: {{header_count: 50}}\n{ANSWER}"), "generation 2 serves"), ("routes: 7".into(), "refused")]
    {
        proxy.reload(&text);
        let reloading = hear(&manager);
        assert!(reloading.contains(&"RELOADING=1".into()), "{reloading:?}");
        assert!(reloading.iter().any(|line| line.starts_with("MONOTONIC_USEC=")), "{reloading:?}");
        let done = hear(&manager);
        assert!(done.contains(&"READY=1".into()), "{done:?}");
        assert!(done.iter().any(|line| line.starts_with("STATUS=") && line.contains(verdict)), "{done:?}");
    }
    proxy.signal(Signal::SIGQUIT);
    assert_eq!(hear(&manager), ["STOPPING=1"]);
    assert_eq!(proxy.wait_exit(), 0);
}

#[test]
fn a_watchdog_hears_that_the_loop_turns() {
    let (_proxy, manager) = managed("WATCHDOG_USEC=200000");
    let mut beats = 0;
    while beats < 3 {
        let mut message = [0; 4096];
        let count = manager.recv(&mut message).expect("the manager is told");
        beats += usize::from(&message[..count] == b"WATCHDOG=1\n");
    }
}
