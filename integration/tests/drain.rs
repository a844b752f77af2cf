//! `sluice drain`: what holds old workers, told without their help.

#![forbid(unsafe_code)]

use std::sync::Mutex;
use std::sync::mpsc::{self, Sender};

use integration::{Origin, Proxy, Wire, eventually, ok, receive, until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// An origin that changes the protocol for `/socket`, and answers everything else when it is told to.
fn origin() -> (Origin, Sender<()>) {
    let (go, may_go) = mpsc::channel();
    let may_go = Mutex::new(may_go);
    let origin = Origin::start(move |mut wire, _| {
        while let Some(request) = wire.request() {
            if request.head.target() == "/socket" {
                return wire.echo();
            }
            receive(&may_go.lock().expect("one at a time"));
            wire.send(ok("done"));
        }
    });
    (origin, go)
}

fn drain<const N: usize>(proxy: &Proxy, arguments: [&str; N]) -> Value {
    let mut command = proxy.command(["drain", "--json", "-c"]);
    let finished = integration::Finished::of(command.arg(proxy.config_path()).args(arguments));
    serde_json::from_str(&finished.output()).expect("JSON")
}

/// The one worker of the one cohort that is shown, if there is one.
fn worker(shown: &Value) -> Option<&Value> {
    let [cohort] = &shown["cohorts"].as_array()?[..] else { return None };
    let [worker] = &cohort["workers"].as_array()?[..] else { return None };
    Some(worker)
}

/// The connection of a client.
#[track_caller]
fn of<'v>(worker: &'v Value, client: &Wire) -> &'v Value {
    let address = client.local_address().to_string();
    let all = worker["connections"].as_array().expect("connections");
    all.iter().find(|connection| connection["client"] == address).unwrap_or_else(|| panic!("no {address} in {worker}"))
}

#[test]
fn what_holds_an_old_worker_is_told_even_when_that_is_stopped() {
    let (origin, go) = origin();
    let proxy = Proxy::before_with(&origin, "shutdown_timeout: 1h");
    let (mut tunnel, mut slow, idle) = (proxy.client(), proxy.client(), proxy.client());
    tunnel.send("GET /socket HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(tunnel.head().status(), 101);
    tunnel.send("twelve bytes");
    assert_eq!(tunnel.exactly(12), b"twelve bytes");
    slow.send("GET /slow?secret HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually("the request at the origin", || origin.requests().len() == 2);
    assert_eq!(drain(&proxy, [])["cohorts"], serde_json::json!([]));
    let old = proxy.workers()[0];

    let text = format!(
        "worker_connections: 4000\nshutdown_timeout: 1h\nupstreams: {{app: {{servers: ['{}']}}}}\n\
         routes: [{{name: all, match: {{path: {{prefix: /}}}}, upstream: app}}]\n",
        origin.address()
    );
    proxy.reload(&text).output();
    // What can move moves to the new worker, and has its record there.
    let shown = until("an old worker with one connection", || {
        let shown = drain(&proxy, []);
        let held = worker(&shown).is_some_and(|worker| {
            worker["state"] == "draining" && worker["connections"].as_array().is_some_and(|all| all.len() == 1)
        });
        held.then_some(shown)
    });
    let all = drain(&proxy, ["--all"]);
    let new = &all["cohorts"][1]["workers"][0];
    assert_eq!((&of(new, &idle)["state"], &of(new, &idle)["requests"]), (&"idle".into(), &0.into()));
    tunnel.send("more");
    assert_eq!(tunnel.exactly(4), b"more");
    eventually("more", || of(&drain(&proxy, ["--all"])["cohorts"][1]["workers"][0], &tunnel)["bytes_out"] == 16);
    let all = drain(&proxy, ["--all"]);
    let new = &all["cohorts"][1]["workers"][0];
    assert_eq!((&shown["generation"], &shown["cohorts"][0]["generation"]), (&2.into(), &1.into()));
    let there = worker(&shown).expect("a worker");
    assert_eq!(there["pid"], old.0);
    assert!(there["resident_bytes"].as_u64().is_some_and(|bytes| bytes > 100_000), "{there}");
    assert!(there["stopped_in_seconds"].as_u64().is_some_and(|left| left > 3000 && left <= 3600), "{there}");
    let (socket, answer) = (of(new, &tunnel), of(there, &slow));
    for (connection, state, path, requests) in
        [(socket, "tunnel", "/socket", 1), (answer, "waiting for upstream", "/slow", 1)]
    {
        assert_eq!((&connection["state"], &connection["path"]), (&state.into(), &path.into()));
        assert_eq!((&connection["route"], &connection["protocol"]), (&"all".into(), &"http/1".into()));
        assert_eq!((&connection["server"], &connection["requests"]), (&origin.address().into(), &requests.into()));
    }
    assert_eq!((&socket["bytes_in"], &socket["bytes_out"]), (&16.into(), &16.into()));
    assert_eq!((&answer["ends_by"], &answer["ends_in_seconds"]), (&"its answer, then close".into(), &Value::Null));
    assert_eq!(socket["ends_by"], "tunnel_idle");

    old.signal(Signal::SIGSTOP);
    eventually("stopped", || old.is_stopped());
    let stopped = drain(&proxy, []);
    assert_eq!(of(worker(&stopped).expect("a worker"), &slow)["path"], "/slow");
    eventually("stalled", || worker(&drain(&proxy, [])).is_some_and(|worker| worker["state"] == "stalled"));
    let table = proxy.run(["drain"]).output();
    assert!(table.contains(&format!("worker {} of seat 0: stalled", old.0)), "{table}");
    assert!(table.contains("GET /slow") && !table.contains("secret"), "{table}");
    old.signal(Signal::SIGCONT);

    go.send(()).expect("the origin listens");
    let last = slow.response();
    assert_eq!((last.text().as_str(), last.head.field("connection")), ("done", Some("close")));
    slow.closed();
    eventually("nobody is old", || proxy.run(["drain"]).output().contains("no old worker is left"));
}

#[test]
fn connections_of_workers_that_serve_are_shown_when_asked_for() {
    let (origin, go) = origin();
    let proxy = Proxy::before(&origin);
    assert_eq!(worker(&drain(&proxy, ["--all"])).expect("a worker")["connections"], serde_json::json!([]));
    let mut client = proxy.client();
    let state = |client: &Wire| of(worker(&drain(&proxy, ["--all"])).expect("a worker"), client).clone();
    eventually("a connection", || {
        worker(&drain(&proxy, ["--all"]))
            .is_some_and(|worker| worker["connections"].as_array().is_some_and(|all| all.len() == 1))
    });
    let first = state(&client);
    assert_eq!(
        (&first["state"], &first["ends_by"], &first["requests"]),
        (&"idle".into(), &"client_head".into(), &0.into())
    );
    for path in ["/one", "/two"] {
        go.send(()).expect("the origin listens");
        client.get(path);
    }
    eventually("between requests", || state(&client)["state"] == "idle" && state(&client)["requests"] == 2);
    let kept = state(&client);
    assert_eq!(
        (&kept["ends_by"], &kept["path"], &kept["route"]),
        (&"keep_alive".into(), &"/two".into(), &"all".into())
    );
    assert!(kept["bytes_in"].as_u64().is_some_and(|bytes| bytes > 60), "{kept}");
    client.send("POST /three HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nfour");
    eventually("a body", || state(&client)["state"] == "request body");
    let body = state(&client);
    assert_eq!((&body["method"], &body["path"], &body["requests"]), (&"POST".into(), &"/three".into(), &3.into()));
    client.send("GET / H");
    drop(client);
    eventually("it is gone", || {
        worker(&drain(&proxy, ["--all"])).is_some_and(|worker| worker["connections"] == serde_json::json!([]))
    });
}

#[test]
fn idle_connections_are_closed_and_old_workers_stopped_by_order() {
    let (origin, _go) = origin();
    let proxy = Proxy::before_with(&origin, "worker_processes: 2");
    let (mut idle, mut tunnel) = (proxy.client(), proxy.client());
    tunnel.send("GET /socket HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(tunnel.head().status(), 101);
    let said = proxy.run(["drain", "--close-idle"]).output();
    assert_eq!(said, "0 workers close connections on which nothing happens\n");
    let said = proxy.run(["drain", "--close-idle", "--all"]).output();
    assert_eq!(said, "2 workers close connections on which nothing happens\n");
    idle.closed();
    // Whoever has it now carries it on; to stop what is old does not touch who serves.
    tunnel.send("still");
    assert_eq!(tunnel.exactly(5), b"still");
    assert_eq!(proxy.run(["drain", "--kill"]).output(), "0 old workers are stopped\n");
    let mut slow = proxy.client();
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually("the request at the origin", || origin.requests().len() == 2);
    let old = proxy.workers();
    let text = format!(
        "worker_processes: 2\nworker_connections: 4000\nupstreams: {{app: {{servers: ['{}']}}}}\n\
         routes: [{{name: all, match: {{path: {{prefix: /}}}}, upstream: app}}]\n",
        origin.address()
    );
    proxy.reload(&text).output();
    eventually("one is held", || worker(&drain(&proxy, [])).is_some());
    assert_eq!(proxy.run(["drain", "--kill"]).output(), "1 old workers are stopped\n");
    eventually("nobody is old", || proxy.run(["drain"]).output().contains("no old worker is left"));
    assert!(!old.iter().any(|worker| worker.is_running()));
    assert!(slow.rest().0.is_empty());
}

#[test]
fn bytes_of_an_answer_are_told_while_it_runs() {
    let (go, may_go) = mpsc::channel();
    let origin = Origin::once(move |mut wire| {
        wire.request();
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n");
        wire.send([b'x'; 200_000]);
        receive(&may_go);
        wire.send([b'x'; 100_000]);
        wire.rest();
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("GET /long HTTP/1.1\r\nHost: a\r\n\r\n");
    client.head();
    client.exactly(200_000);
    let connection = || of(worker(&drain(&proxy, ["--all"])).expect("a worker"), &client).clone();
    eventually("two thirds of it", || connection()["bytes_out"] == 200_000);
    assert_eq!(connection()["state"], "sending response");
    go.send(()).expect("the origin listens");
    client.exactly(100_000);
}

#[test]
fn without_a_proxy_there_is_nothing_to_tell() {
    let proxy = Proxy::prepared("routes: []");
    assert_eq!(proxy.run(["drain"]).code, 3);
}
