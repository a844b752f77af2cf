//! What is told of a worker that died, and what is refused when it was a request that killed it.

#![forbid(unsafe_code)]

use integration::{Origin, Proxy, eventually, ok, receive, until};
use nix::sys::signal::Signal;
use serde_json::Value;

const ROUTES: &str = "upstreams: {app: {servers: ['{origin}']}}\n\
    routes:\n  - {name: api, match: {path: {prefix: /api/}}, upstream: app}\n  \
    - {name: rest, match: {path: {prefix: /}}, respond: {status: 200, body: fine}}\n";

/// A request that kills its worker, and what is left of the connection.
fn crash(proxy: &Proxy, target: &str, signal: &str) {
    let workers = proxy.workers();
    let mut client = proxy.client();
    client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\nX-Misbehave: {signal}\r\n\r\n"));
    client.rest();
    until("a successor", || {
        let now = proxy.workers();
        (now.len() == workers.len() && now != workers).then_some(())
    });
    eventually("it serves", || proxy.stats().condition() == "running");
}

fn status(proxy: &Proxy) -> Value {
    serde_json::from_str(&proxy.run(["status", "--json"]).output()).expect("JSON")
}

#[test]
fn a_death_is_told_with_the_exchange_that_it_met() {
    let (origin, asked) = Origin::silent();
    let proxy = Proxy::start_misbehaving(&ROUTES.replace("{origin}", &origin.address()));
    let mut other = proxy.client();
    other.send("GET /api/slow?secret=1 HTTP/1.1\r\nHost: a\r\n\r\n");
    receive(&asked);
    crash(&proxy, "/a/../b%20c?secret=2", "segv");
    proxy.wait_log("a worker died: SIGSEGV");
    proxy.wait_log("it was at work on GET /b%20c of route rest for 127.0.0.1:");
    proxy.wait_log("cut with it: GET /api/slow of route api for 127.0.0.1:");
    assert!(proxy.log().contains("waiting for upstream (app "), "the server is named");
    assert!(!proxy.log().contains("secret"), "a query is in the log");
}

#[test]
fn a_request_that_killed_three_workers_is_refused_until_a_reload() {
    let origin = Origin::answering(ok("hi"));
    let text = ROUTES.replace("{origin}", &origin.address());
    let proxy = Proxy::start_misbehaving(&text);
    // Neither of these counts: the second is no fault of code.
    crash(&proxy, "/other", "segv");
    crash(&proxy, "/poison", "kill");
    for signal in ["segv", "abrt"] {
        crash(&proxy, "/poison?n=1", signal);
    }
    assert_eq!(proxy.client().get("/poison").status(), 200);
    assert_eq!(status(&proxy)["quarantine"], serde_json::json!([]));
    crash(&proxy, "/poison", "segv");
    proxy.wait_log("3 workers have died of such a request");
    let refused = proxy.client().get("/poison?n=2");
    assert_eq!(refused.status(), 503);
    assert_eq!(proxy.client().get("/other").status(), 200);
    let banned = &status(&proxy)["quarantine"][0];
    assert_eq!(
        (&banned["route"], &banned["method"], &banned["path"]),
        (&"rest".into(), &"GET".into(), &"/poison".into())
    );
    assert!(banned["seconds_left"].as_u64().is_some_and(|left| left > 500 && left <= 600), "{banned}");
    assert!(proxy.run(["status"]).output().contains("quarantine: GET /poison of route rest is refused for another"));
    assert_eq!(proxy.stats().total("quarantined"), 1);
    // An operator may know better.
    assert!(proxy.run(["quarantine"]).output().contains("GET /poison of route rest"));
    proxy.run(["quarantine", "--clear"]).output();
    assert_eq!(proxy.client().get("/poison").status(), 200);
    assert_eq!(proxy.run(["quarantine"]).output(), "no request is in quarantine\n");
    for _ in 0..3 {
        crash(&proxy, "/poison", "segv");
    }
    assert_eq!(proxy.client().get("/poison").status(), 503);
    // What the file says now may have mended it.
    proxy.reload(&format!("{text}shutdown_timeout: 7s\n")).output();
    assert_eq!(proxy.client().get("/poison").status(), 200);
    assert_eq!(status(&proxy)["quarantine"], serde_json::json!([]));
}

#[test]
fn a_worker_that_is_killed_from_outside_has_last_words_too() {
    let (origin, asked) = Origin::silent();
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("GET /long HTTP/1.1\r\nHost: a\r\n\r\n");
    receive(&asked);
    // Once the loop has turned, the exchange waits.
    let turns = proxy.stats().total("turns");
    eventually("a turn", || proxy.stats().total("turns") > turns);
    proxy.workers()[0].signal(Signal::SIGKILL);
    proxy.wait_log("it was at work on no exchange");
    proxy.wait_log("cut with it: GET /long of route all for 127.0.0.1:");
}
