//! What a reload would do, told before it, and how what runs stands to what is written.

#![forbid(unsafe_code)]

use std::net::SocketAddr;

use integration::{Finished, Origin, Proxy, Wire, eventually, ok};
use nix::sys::signal::Signal;
use serde_json::Value;

fn answering(body: &str) -> String {
    format!("routes: [{{name: all, match: {{path: {{prefix: /}}}}, respond: {{status: 200, body: '{body}'}}}}]")
}

fn json(finished: Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
}

/// The exit code is for scripts: 0 for no change, 2 for some, 1 when it would be refused.
#[test]
fn a_plan_is_what_the_reload_then_does() {
    let proxy = Proxy::start(&answering("old"));
    let nothing = proxy.run(["plan"]);
    assert_eq!(nothing.code, 0, "{nothing:?}");
    assert!(nothing.stdout.contains("nothing would change"), "{nothing:?}");

    proxy.configure(&answering("new"));
    let live = proxy.run(["plan"]);
    assert_eq!(live.code, 2, "{live:?}");
    for part in ["routes[all].respond.body", "old -> new", "(live)", "no connection is closed"] {
        assert!(live.stdout.contains(part), "no {part} in {live:?}");
    }
    assert_eq!(proxy.client().get("/").text(), "old", "a plan changes nothing");
    let workers = proxy.workers();
    proxy.run(["reload"]).output();
    assert_eq!(proxy.run(["plan"]).code, 0);
    assert_eq!(proxy.workers(), workers);

    proxy.configure(&format!("worker_connections: 4000\n{}", answering("new")));
    let kept = {
        let mut client = proxy.client();
        client.get("/");
        client
    };
    let anew = json(proxy.run(["plan", "--json"]));
    assert_eq!(anew["effect"], "new workers", "{anew}");
    assert_eq!(anew["changes"][0]["path"], "worker_connections", "{anew}");
    assert_eq!(anew["changes"][0]["connections"], 1, "{anew}");
    drop(kept);
}

/// A route that can match nothing is legal, so `check` warns of it; a plan tells of it when it comes about.
#[test]
fn routes_that_would_get_nothing_are_told() {
    let route =
        |name: &str, matcher: &str| format!("{{name: {name}, match: {{{matcher}}}, respond: {{body: {name}}}}}");
    let served = [route("a", "path: /a"), route("old", "path: /old"), route("twice", "path: /old")];
    let planned = [&[route("new", "path: /a")], &served[..], &[route("some", "hosts: [x.t, y.t], path: /s")]].concat();
    let planned = [&planned[..], &[route("other", "hosts: [y.t, z.t], path: /s")]].concat();
    let proxy = Proxy::start(&format!("routes: [{}]", served.join(", ")));
    proxy.configure(&format!("routes: [{}]", planned.join(", ")));
    let page = proxy.run(["plan"]);
    assert_eq!(page.code, 2, "{page:?}");
    for part in [
        "+ routes[new]  (live, before all others)",
        "+ routes[some]  (live, after twice)",
        "! routes[a]  (shadowed)\n    no request reaches this route: `new`, before it, takes the same hosts and path",
        "! routes[other]  (shadowed)\n    requests for y.t go to the route `some`",
    ] {
        assert!(page.stdout.contains(part), "no {part} in {}", page.stdout);
    }
    assert!(!page.stdout.contains("routes[twice]"), "it is shadowed already: {}", page.stdout);
    let told = json(proxy.run(["plan", "--json"]));
    let shadowed = serde_json::json!([
        {"route": "a", "whole": true, "hosts": [], "by": ["new"]},
        {"route": "other", "whole": false, "hosts": ["y.t"], "by": ["some"]},
    ]);
    assert_eq!(told["shadowed"], shadowed);
    assert_eq!(told["changes"][0]["kind"], "added", "{told}");
    assert_eq!(told["changes"][0]["to"]["match"]["path"]["prefix"], "/a", "{told}");

    let warned = proxy.run(["check"]);
    assert!(warned.stderr.contains("no request reaches this route: `new`"), "{warned:?}");
    assert_eq!(proxy.client().get("/a").text(), "a");
    proxy.run(["reload"]).output();
    assert_eq!(proxy.client().get("/a").text(), "new", "as was told");
}

/// The connections that a plan tells of are those that are open.
#[test]
fn connections_are_counted_where_the_change_is() {
    let origin = Origin::answering(ok("x"));
    let server = origin.address();
    let text = |listeners: &str, server: &str, more: &str| {
        format!(
            "listeners: [{{address: '127.0.0.1:{{port}}'}}{listeners}]\n\
             routes: [{{name: all, match: {{path: /}}, upstream: app}}]\n\
             upstreams:\n  app: {{servers: [{server}]}}\n{more}"
        )
    };
    let other = ", {address: '127.0.0.1:{other_port}'}";
    let proxy = Proxy::start(&text(other, &format!("'{server}'"), "  spare: {servers: ['unix:/none']}"));
    let mut kept: Vec<Wire> = vec![proxy.client()];
    kept.extend((0..2).map(|_| Wire::tcp(SocketAddr::new(proxy.address().ip(), proxy.other_port()))));
    eventually("each has been answered, and one connection to the server is left", || {
        kept.iter_mut().for_each(|client| drop(client.get("/")));
        proxy.stats().total("connections_idle") == 3
    });
    let idle = || proxy.stats().named("upstreams", "app")["servers"][0]["idle"].as_u64();
    assert!(idle() >= Some(1));

    proxy.configure(&text("", &format!("'{server}'"), "timeouts: {keep_alive: 10s}"));
    let told = json(proxy.run(["plan", "--json"]));
    let changes = told["changes"].as_array().expect("changes");
    let found: Vec<_> = changes.iter().map(|it| (it["path"].clone(), it["connections"].clone())).collect();
    let listener = format!("listeners[127.0.0.1:{}]", proxy.other_port());
    let expected = [
        (Value::from(listener), Value::from(2)),
        ("upstreams.spare".into(), Value::from(0)),
        ("timeouts.keep_alive".into(), Value::from(3)),
    ];
    assert_eq!(found, expected, "{told}");

    // They are told of, not closed.
    proxy.run(["reload"]).output();
    kept.iter_mut().for_each(|client| assert_eq!(client.get("/").text(), "x"));
    proxy.configure(&text("", &format!("{{address: '{server}', weight: 2}}"), "timeouts: {keep_alive: 10s}"));
    let told = json(proxy.run(["plan", "--json"]));
    assert_eq!(told["changes"][0]["connections"].as_u64(), idle(), "{told}");
}

#[test]
fn what_would_be_refused_is_told_with_the_reason() {
    let proxy = Proxy::start(&answering("x"));
    for (text, reason) in [
        ("routes: [{match: {path: /}, upstream: nobody}]".to_owned(), "nobody"),
        (format!("pid_file: '{{dir}}/other.pid'\n{}", answering("x")), "restart"),
        (format!("access_log: /no/such/place/log\n{}", answering("x")), "/no/such/place"),
    ] {
        proxy.configure(&text);
        let refused = proxy.run(["plan"]);
        assert_eq!(refused.code, 1, "{refused:?}");
        let said = format!("{}{}", refused.stdout, refused.stderr);
        assert!(said.contains(reason), "no {reason} in {said}");
    }
    assert_eq!(proxy.client().get("/").text(), "x");
}

#[test]
fn without_a_proxy_there_is_nothing_to_compare_with() {
    let proxy = Proxy::prepared(&answering("x"));
    for command in ["plan", "status"] {
        let absent = proxy.run([command]);
        assert_eq!(absent.code, 3, "{absent:?}");
        assert!(absent.stderr.contains("no proxy runs"), "{absent:?}");
    }
}

/// Told from files alone: every worker may be stopped.
#[test]
fn status_tells_of_drift_and_of_the_last_verdict() {
    let proxy = Proxy::start(&format!("worker_processes: 4\n{}", answering("old")));
    proxy.workers().iter().for_each(|worker| worker.signal(Signal::SIGSTOP));
    let status = json(proxy.run(["status", "--json"]));
    assert_eq!((&status["generation"], &status["drift"]), (&Value::from(1), &Value::from(0)), "{status}");
    assert_eq!(status["cohorts"][0]["workers"].as_array().map(Vec::len), Some(4), "{status}");
    let page = proxy.run(["status"]).output();
    assert!(page.contains("says the same"), "{page}");
    proxy.workers().iter().for_each(|worker| worker.signal(Signal::SIGCONT));

    proxy.configure(&format!("worker_processes: 4\n{}", answering("new")));
    assert!(proxy.run(["status"]).output().contains("drifted: 1 settings"));
    proxy.run(["reload"]).output();
    let after = json(proxy.run(["status", "--json"]));
    assert_eq!((&after["generation"], &after["drift"]), (&Value::from(2), &Value::from(0)), "{after}");
    assert_ne!(after["configuration"], status["configuration"], "{after}");

    proxy.configure("routes: 7");
    proxy.run(["reload"]);
    let refused = json(proxy.run(["status", "--json"]));
    assert_eq!(refused["verdict"]["accepted"], false, "{refused}");
    assert_eq!((&refused["generation"], &refused["drift"]), (&Value::from(2), &Value::Null), "{refused}");
}

/// A reload of another file than the proxy reads would do nothing of what it says.
#[test]
fn a_reload_of_another_file_is_refused() {
    let proxy = Proxy::start(&answering("old"));
    let other = proxy.file("other.yaml");
    std::fs::copy(proxy.config_path(), &other).expect("a copy");
    let mut command = proxy.command(["reload", "-c"]);
    let refused = Finished::of(command.arg(&other));
    assert_eq!(refused.code, 1, "{refused:?}");
    for name in [&other, &proxy.config_path()] {
        assert!(refused.stderr.contains(&*name.to_string_lossy()), "{refused:?}");
    }
}
