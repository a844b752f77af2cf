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

/// The same, in workers that cannot be those of [`answering`].
fn answering_anew(body: &str) -> String {
    format!("worker_connections: 4000\n{}", answering(body))
}

/// Routes, and with them every connection, change while the same processes go on.
#[test]
fn a_reload_takes_effect_in_the_workers_that_run() {
    let proxy = Proxy::start(&format!("worker_processes: 4\n{}", answering("old")));
    let (master, workers) = (proxy.master(), proxy.workers());
    let mut kept = proxy.client();
    assert_eq!(kept.get("/").text(), "old");
    let said = proxy.reload(&format!("worker_processes: 4\n{}", answering("new"))).output();
    assert!(said.contains("generation 2") && said.contains("routes[all].respond.body"), "{said}");
    assert_eq!(kept.get("/").text(), "new");
    for _ in 0..20 {
        assert_eq!(proxy.client().get("/").text(), "new");
    }
    assert_eq!((proxy.master(), proxy.workers()), (master, workers));
    let said = proxy.reload(&format!("worker_processes: 4\n{}", answering("new"))).output();
    assert!(said.contains("nothing has changed"), "{said}");
}

#[test]
fn what_running_workers_cannot_change_gets_new_ones() {
    let mut proxy = Proxy::start(&answering("old"));
    let (master, old_workers) = (proxy.master(), proxy.workers());
    assert_eq!(proxy.client().get("/").text(), "old");
    proxy.reload(&answering_anew("new")).output();
    assert_eq!(proxy.client().get("/").text(), "new");
    proxy.wait_ready(2);
    assert_eq!(proxy.master(), master);
    eventually("the old workers are gone", || old_workers.iter().all(|worker| !worker.is_running()));
    assert_eq!(proxy.workers().len(), 1);
}

#[test]
fn a_signal_reloads_too() {
    let proxy = Proxy::start(&answering("old"));
    proxy.configure(&answering("new"));
    proxy.signal(Signal::SIGHUP);
    eventually("the new answer", || proxy.client().get("/").text() == "new");
    proxy.wait_log("reloaded");
}

/// A tunnel outlives the configuration that it was opened under, and its upstream.
#[test]
fn a_tunnel_stays_open_through_a_reload() {
    let origin = Origin::start(|mut wire, _| {
        wire.request();
        wire.echo();
    });
    let proxy = Proxy::before(&origin);
    let mut tunnel = proxy.client();
    tunnel.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(tunnel.head().status(), 101);
    for number in 0..10 {
        proxy.reload(&answering(&format!("answer {number}"))).output();
        tunnel.send(format!("<{number}>"));
        assert_eq!(tunnel.exactly(3), format!("<{number}>").as_bytes());
    }
    assert_eq!(proxy.client().get("/").text(), "answer 9");
}

/// The access log is begun, changed and ended by running workers.
#[test]
fn logs_change_in_workers_that_run() {
    let logging = |log: &str| format!("access_log: {log}\n{}", answering("x"));
    let proxy = Proxy::start(&logging("off"));
    let workers = proxy.workers();
    let lines = |name: &str| std::fs::read_to_string(proxy.file(name)).unwrap_or_default();
    for (file, format, expected) in [("a.log", "'$status'", "200\n"), ("b.log", "'$uri'", "/\n")] {
        proxy.reload(&logging(&format!("{{path: '{{dir}}/{file}', format: {format}}}"))).output();
        proxy.client().get("/");
        eventually("the line", || lines(file) == expected);
    }
    proxy.reload(&logging("off")).output();
    proxy.client().get("/");
    assert_eq!((lines("a.log"), lines("b.log")), ("200\n".into(), "/\n".into()));
    assert_eq!(proxy.workers(), workers);
}

/// A worker that does not answer refuses the change for all; one that dies after it is replaced by one that has it.
#[test]
fn a_worker_that_dies_serves_the_new_configuration_when_it_is_back() {
    let text = |body: &str| format!("worker_processes: 4\n{}", answering(body));
    let proxy = Proxy::start(&text("old"));
    proxy.reload(&text("new")).output();
    let victim = proxy.workers()[0];
    victim.signal(Signal::SIGKILL);
    eventually("it is replaced", || {
        let workers = proxy.workers();
        workers.len() == 4 && !workers.contains(&victim)
    });
    for _ in 0..20 {
        assert_eq!(proxy.client().get("/").text(), "new");
    }
    proxy.reload(&text("newer")).output();
    for _ in 0..20 {
        assert_eq!(proxy.client().get("/").text(), "newer");
    }
}

/// What no configuration names any more makes room in the zone, which holds 64 listeners.
#[test]
fn places_in_the_zone_are_given_back() {
    let proxy = Proxy::start(&answering("x"));
    let workers = proxy.workers();
    for number in 0..150 {
        let listeners =
            format!("listeners: [{{address: '127.0.0.1:{{port}}'}}, {{address: 'unix:{{dir}}/{number}.sock'}}]");
        proxy.reload(&format!("{listeners}\n{}", answering("x"))).output();
        assert_eq!(Wire::unix(&proxy.file(&format!("{number}.sock"))).get("/").text(), "x");
    }
    assert!(!proxy.file("148.sock").exists());
    assert_eq!(proxy.workers(), workers);
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
        for number in 0..40 {
            // Every tenth takes new workers.
            let anew = format!("worker_connections: {}\n", 4000 + number / 10);
            let reloaded = proxy.reload(&format!("{anew}limits: {{keep_alive_requests: {}}}\n{text}", 1000 + number));
            assert_eq!(reloaded.code, 0, "{reloaded:?}");
        }
        done.store(true, Ordering::SeqCst);
        for load in loads {
            assert!(load.join().expect("no request is lost") > 0);
        }
    });
}

/// When workers are replaced, a connection that is kept alive goes on with a new one.
#[test]
fn a_kept_connection_outlives_its_worker() {
    let proxy = Proxy::start(&answering("old"));
    let mut client = proxy.client();
    client.get("/");
    proxy.reload(&answering_anew("new")).output();
    eventually("it is a new worker's", || proxy.stats().total("taken_over") == 1);
    assert_eq!(client.get("/").text(), "new");
}

/// RFC 9112 §9.6: where no new worker knows the listener, it is told to close.
#[test]
fn a_kept_connection_that_nobody_takes_is_not_cut_between_request_and_answer() {
    let proxy = Proxy::start(&answering("old"));
    let mut client = proxy.client();
    client.get("/");
    let elsewhere = "listeners: [{address: '127.0.0.1:{other_port}'}]";
    proxy.reload(&format!("{elsewhere}\n{}", answering_anew("new"))).output();
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
    let (origin, has_arrived) = Origin::silent();
    let impatient = "shutdown_timeout: 300ms";
    let proxy = Proxy::before_with(&origin, impatient);
    let old = proxy.workers();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    receive(&has_arrived);
    proxy.reload(&format!("{impatient}\n{}", answering_anew("new"))).output();
    eventually("the old worker is gone", || old.iter().all(|worker| !worker.is_running()));
    client.rest();
}
