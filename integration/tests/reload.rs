//! A new configuration for a proxy that runs.

#![forbid(unsafe_code)]

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use integration::{Origin, Proxy, Wire, eventually, ok, receive};
use nix::sys::signal::Signal;

/// A configuration that answers everything with `body`.
fn answering(body: &str) -> String {
    format!("routes: [{{name: all, match: {{path: {{prefix: /}}}}, respond: {{status: 200, body: '{body}'}}}}]")
}

#[test]
fn a_reload_takes_effect_and_keeps_the_master() {
    let mut proxy = Proxy::start(&answering("old"));
    let (master, old_workers) = (proxy.master(), proxy.workers());
    assert_eq!(proxy.client().get("/").text(), "old");
    proxy.reload(&answering("new")).output();
    assert_eq!(proxy.client().get("/").text(), "new");
    proxy.wait_ready(2);
    assert_eq!(proxy.master(), master);
    eventually("the old workers are gone", || old_workers.iter().all(|worker| !worker.is_running()));
    assert_eq!(proxy.workers().len(), 1);
}

#[test]
fn a_signal_reloads_too() {
    let mut proxy = Proxy::start(&answering("old"));
    proxy.configure(&answering("new"));
    proxy.signal(Signal::SIGHUP);
    proxy.wait_ready(2);
    assert_eq!(proxy.client().get("/").text(), "new");
}

#[test]
fn a_request_in_flight_is_finished_by_whoever_began_it() {
    let (arrived, has_arrived) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let origin = Origin::once(move |mut wire| {
        wire.request();
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n");
        arrived.send(()).expect("the test listens");
        receive(&may_go);
        wire.send("finished");
        wire.request();
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    receive(&has_arrived);
    proxy.reload(&answering("new")).output();
    assert_eq!(proxy.client().get("/").text(), "new");
    go.send(()).expect("the origin listens");
    assert_eq!(client.response().text(), "finished");
}

/// Not one request is lost, however often the configuration changes.
#[test]
fn reloads_under_load_lose_nothing() {
    let origin = Origin::answering(ok("hi"));
    let text = format!(
        "worker_processes: 2
upstreams: {{app: {{servers: [{{address: '{}'}}]}}}}
routes: [{{match: {{path: {{prefix: /}}}}, upstream: app}}]",
        origin.address()
    );
    let proxy = Proxy::start(&text);
    let done = AtomicBool::new(false);
    let ask = || {
        let mut asked = 0;
        while !done.load(Ordering::SeqCst) {
            let mut client = proxy.client();
            client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            assert_eq!(client.response().text(), "hi");
            asked += 1;
        }
        asked
    };
    thread::scope(|scope| {
        let loads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        for _ in 0..5 {
            let reloaded = proxy.reload(&text);
            assert_eq!(reloaded.code, 0, "{reloaded:?}");
        }
        done.store(true, Ordering::SeqCst);
        for load in loads {
            assert!(load.join().expect("no request is lost") > 0);
        }
    });
}

/// RFC 9112 §9.6: a connection that is kept alive is told to close, and its next request goes to a new one.
#[test]
fn a_kept_connection_is_not_cut_between_request_and_answer() {
    let proxy = Proxy::start(&answering("old"));
    let mut client = proxy.client();
    client.get("/");
    proxy.reload(&answering("new")).output();
    // Either it was closed while idle, or it may go on; what it must not do is swallow a request.
    eventually("the old connection ends", || client.has_news());
    assert!(client.rest().0.is_empty());
}

#[test]
fn a_bad_configuration_changes_nothing_and_says_why() {
    const BAD: &str = "routes: [{match: {path: {prefix: /}}, upstrem: app}]\nworker_connections: many";
    let proxy = Proxy::start(&answering("old"));
    let workers = proxy.workers();
    let refused = proxy.reload(BAD);
    assert_eq!(refused.code, 1, "{refused:?}");
    for word in ["upstrem", "worker_connections"] {
        assert!(refused.stderr.contains(word), "no {word}: {refused:?}");
    }
    proxy.wait_log("upstrem");
    // Commands find the proxy although its file is wrong.
    assert!(proxy.run(["stats"]).output().contains("refused"));
    proxy.run(["reopen"]).output();
    proxy.configure(&answering("new"));
    assert_eq!(proxy.workers(), workers);
    assert_eq!(proxy.client().get("/").text(), "old");
    // The mistake is not remembered.
    proxy.run(["reload"]).output();
    assert_eq!(proxy.client().get("/").text(), "new");
}

#[test]
fn a_port_that_is_taken_refuses_the_reload() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    let proxy = Proxy::start(&answering("old"));
    let listeners = format!("listeners: [{{address: '127.0.0.1:{{port}}'}}, {{address: '{address}'}}]");
    let refused = proxy.reload(&format!("{listeners}\n{}", answering("new")));
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains(&address.to_string()), "{refused:?}");
    assert_eq!(proxy.client().get("/").text(), "old");
}

#[test]
fn what_needs_a_restart_is_refused_with_that_reason() {
    let proxy = Proxy::start(&answering("old"));
    let refused = proxy.reload(&format!("pid_file: '{{dir}}/other.pid'\n{}", answering("new")));
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("pid_file") && refused.stderr.contains("restart"), "{refused:?}");
    assert_eq!(proxy.client().get("/").text(), "old");
}

#[test]
fn listeners_come_and_go() {
    let proxy = Proxy::start(&answering("x"));
    let other = std::net::SocketAddr::from(([127, 0, 0, 1], proxy.other_port()));
    assert!(TcpStream::connect(other).is_err());
    let both = "listeners: [{address: '127.0.0.1:{port}'}, {address: '127.0.0.1:{other_port}'}]";
    proxy.reload(&format!("{both}\n{}", answering("x"))).output();
    assert_eq!(Wire::tcp(other).get("/").text(), "x");
    assert_eq!(proxy.client().get("/").text(), "x");
    proxy.reload(&answering("x")).output();
    eventually("nobody listens any more", || TcpStream::connect(other).is_err());
    assert_eq!(proxy.client().get("/").text(), "x");
}

#[test]
fn the_number_of_workers_can_change() {
    let proxy = Proxy::start(&answering("x"));
    for count in [3, 1, 2] {
        proxy.reload(&format!("worker_processes: {count}\n{}", answering("x"))).output();
        eventually("as many workers as asked for", || proxy.workers().len() == count);
        for _ in 0..20 {
            assert_eq!(proxy.client().get("/").text(), "x");
        }
    }
}

/// What keeps its name keeps its counters.
#[test]
fn counters_outlive_a_reload() {
    let proxy = Proxy::start(&answering("old"));
    for _ in 0..3 {
        proxy.client().get("/");
    }
    proxy.reload(&answering("new")).output();
    for _ in 0..4 {
        proxy.client().get("/");
    }
    eventually("all are counted", || proxy.stats().named("routes", "all")["requests"] == 7);
}

/// Old workers have `shutdown_timeout` and no more.
#[test]
fn old_workers_do_not_stay_forever() {
    let (arrived, has_arrived) = mpsc::channel();
    let origin = Origin::once(move |mut wire| {
        wire.request();
        arrived.send(()).expect("the test listens");
        wire.rest();
    });
    let impatient = "shutdown_timeout: 300ms";
    let proxy = Proxy::before_with(&origin, impatient);
    let old = proxy.workers();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    receive(&has_arrived);
    proxy.reload(&format!("{impatient}\n{}", answering("new"))).output();
    eventually("the old worker is gone", || old.iter().all(|worker| !worker.is_running()));
    client.rest();
}
