//! The command line, as people and scripts meet it.

#![forbid(unsafe_code)]

use std::net::{SocketAddr, TcpListener};

use integration::{Binary, Finished, Proxy, Wire, eventually};

const NOTHING: &str = "routes: []";

#[test]
fn it_says_what_it_is() {
    let short = Binary::run(["-v"]);
    assert_eq!(short.code, 0, "{short:?}");
    let version = env!("CARGO_PKG_VERSION");
    assert!((short.stdout + &short.stderr).contains(version));
    let long = Binary::run(["-V"]);
    assert!((long.stdout + &long.stderr).contains(version));
    let help = Binary::run(["--help"]).output();
    for word in ["check", "stats", "top", "reload", "quit", "stop", "reopen", "schema", "exit"] {
        assert!(help.to_ascii_lowercase().contains(word), "no {word} in {help}");
    }
}

#[test]
fn what_it_does_not_understand_is_a_usage_error() {
    for arguments in [&["--nonsense"][..], &["nonsense"], &["-s", "nonsense"], &["-c"], &["stats", "--nonsense"]] {
        let finished = Binary::run(arguments);
        assert_eq!(finished.code, 2, "{arguments:?}: {finished:?}");
        assert!(!finished.stderr.is_empty(), "{arguments:?}");
    }
}

/// Whoever asks for a proxy that does not run is told where it was looked for.
#[test]
fn a_proxy_that_does_not_run_is_not_found() {
    let proxy = Proxy::prepared(NOTHING);
    let place = proxy.file("run").display().to_string();
    for arguments in [&["stats"][..], &["top"], &["reload"], &["quit"], &["stop"], &["reopen"], &["-s", "reload"]] {
        let mut command = proxy.command([]);
        let finished = Finished::of(command.args(arguments).arg("-c").arg(proxy.config_path()));
        assert_eq!(finished.code, 3, "{arguments:?}: {finished:?}");
        assert!(finished.stderr.contains(&place), "{arguments:?}: {finished:?}");
    }
}

#[test]
fn subcommands_and_nginx_flags_do_the_same() {
    for arguments in [&["quit"][..], &["stop"], &["-s", "quit"], &["-s", "stop"]] {
        let mut proxy = Proxy::start(NOTHING);
        let mut command = proxy.command([]);
        let finished = Finished::of(command.args(arguments).arg("-c").arg(proxy.config_path()));
        assert_eq!(finished.code, 0, "{arguments:?}: {finished:?}");
        assert_eq!(proxy.wait_exit(), 0, "{arguments:?}");
    }
    let proxy = Proxy::start(NOTHING);
    for (count, arguments) in [&["reload"][..], &["-s", "reload"]].into_iter().enumerate() {
        let mut command = proxy.command([]);
        let said = Finished::of(command.arg("-c").arg(proxy.config_path()).args(arguments)).output();
        assert!(said.contains(&format!("generation {}", count + 2)), "{said}");
    }
    proxy.run(["reopen"]).output();
    proxy.run(["-s", "reopen"]).output();
}

/// Paths in a configuration are relative to the file, or to the prefix when one is given.
#[test]
fn a_prefix_moves_relative_paths() {
    let mut proxy = Proxy::prepared(
        "access_log: {path: access.log, format: '$uri'}
routes: [{match: {path: {prefix: /}}, respond: {status: 200}}]",
    );
    let elsewhere = proxy.file("elsewhere");
    std::fs::create_dir(&elsewhere).expect("a directory");
    proxy.launch_with(["run", "-p", elsewhere.to_str().expect("a plain path")]);
    proxy.wait_ready(1);
    assert!(elsewhere.join("access.log").exists());
    assert!(!proxy.file("access.log").exists());
}

#[test]
fn top_needs_a_terminal_or_says_so() {
    let proxy = Proxy::start(NOTHING);
    let finished = proxy.run(["top"]);
    assert_ne!(finished.code, 0);
    assert!(!finished.stderr.is_empty() && !finished.stderr.contains("panicked"), "{finished:?}");
}

/// Without a configuration it serves the embedded default, on a port that is fixed and so may be someone else's.
#[test]
fn the_embedded_default_serves_two_demo_origins() {
    let address = SocketAddr::from(([127, 0, 0, 1], 8080));
    if TcpListener::bind(address).is_err() {
        eprintln!("{address} is taken by another program: the embedded default was not tried");
        return;
    }
    let mut proxy = Proxy::prepared(NOTHING);
    let runtime = proxy.file("xdg");
    std::fs::create_dir(&runtime).expect("a directory");
    proxy.launch_default(&runtime);
    proxy.wait_ready(1);
    let mut client = Wire::tcp(address);
    let pages = [client.get("/"), client.get("/")];
    assert!(pages.iter().all(|page| page.status() == 200));
    assert_ne!(pages[0].body, pages[1].body, "two origins take turns");
    client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    assert!(client.response().text().contains("hello"));
    assert_eq!(client.get("/bytes/100000").body.len(), 100_000);
    for word in ["curl", "sluice stats", "sluice top"] {
        assert!(proxy.log().contains(word), "it does not say to try {word}:\n{}", proxy.log());
    }
    // Its control process may die: it comes back, and traffic did not need it to be there all the time.
    let is_control = |process: &integration::Process| process.arguments() != proxy.master().arguments();
    let control = proxy.processes().into_iter().find(|p| is_control(p)).expect("a control process");
    let environment = std::fs::read(format!("/proc/{}/environ", control.0)).expect("its environment");
    assert!(!String::from_utf8_lossy(&environment).contains("LISTEN_"), "what was another's is not passed on");
    control.signal(nix::sys::signal::Signal::SIGKILL);
    eventually("a new control process", || {
        proxy.processes().into_iter().any(|process| is_control(&process) && process != control)
    });
    eventually("the demo is back", || Wire::tcp(address).get("/").status() == 200);
}
