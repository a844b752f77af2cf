//! What the command line makes of configurations.

#![forbid(unsafe_code)]

use std::fs;

use integration::{Binary, Proxy};
use serde_json::Value;

/// Every mistake at once, each where it is and with what would be right.
const WRONG: &str = "worker_processes: none
worker_conections: 100
listeners:
  - address: localhost:80
  - address: 127.0.0.1:99999
timeouts:
  client_head: 30
upstreams:
  app:
    servers: []
routes:
  - match: {path: {prefix: /}}
    upstream: ap
  - match: {path: {prefx: /a}}
    respond: {status: 99}
";

#[test]
fn check_reports_every_problem_at_once() {
    let proxy = Proxy::prepared(WRONG);
    for arguments in [["check"], ["-t"]] {
        let finished = proxy.run(arguments);
        assert_eq!(finished.code, 1, "{finished:?}");
        let text = &finished.stderr;
        for (line, path, word) in [
            (1, "worker_processes", "none"),
            (2, "worker_conections", "worker_connections"),
            (4, "listeners[0].address", "localhost"),
            (5, "listeners[1].address", "99999"),
            (7, "timeouts.client_head", "30s"),
            (10, "upstreams.app.servers", "server"),
            (13, "routes[0].upstream", "app"),
            (14, "routes[1].match.path", "prefix"),
            (15, "routes[1].respond.status", "99"),
        ] {
            assert!(text.contains(&format!("sluice.yaml:{line}:")), "no line {line} in {text}");
            assert!(text.contains(path), "no {path} in {text}");
            assert!(text.contains(word), "no {word} in {text}");
        }
    }
}

/// What only this machine can tell is told with its place too, before anything is started.
#[test]
fn check_tells_what_this_machine_lacks() {
    let proxy = Proxy::prepared("access_log: /no/such/place/access.log\npid_file: /no/such/place/pid\nroutes: []");
    for arguments in ["check", "run"] {
        let finished = proxy.run([arguments]);
        assert_eq!(finished.code, 1, "{finished:?}");
        for (place, setting) in [("sluice.yaml:1:", "access_log"), ("sluice.yaml:2:", "pid_file")] {
            let line = finished.stderr.lines().find(|line| line.contains(place)).unwrap_or_default();
            assert!(line.contains(setting) && line.contains("/no/such/place"), "{finished:?}");
        }
    }
}

#[test]
fn a_sound_configuration_is_said_to_be_sound() {
    let proxy = Proxy::prepared("routes: []");
    let finished = proxy.run(["check"]);
    assert_eq!(finished.code, 0, "{finished:?}");
    assert!(finished.stderr.contains("successful"), "{finished:?}");
    let quiet = proxy.run(["-t", "-q"]);
    assert!(quiet.code == 0 && !quiet.stderr.contains("successful"), "{quiet:?}");
}

#[test]
fn a_file_that_is_no_yaml_or_not_there_is_named() {
    let proxy = Proxy::prepared("routes: []");
    for text in ["routes: [", "\t", "- a\n- b", "\0", "a: b: c"] {
        fs::write(proxy.config_path(), text).expect("write");
        let finished = proxy.run(["check"]);
        assert_eq!(finished.code, 1, "{text:?}: {finished:?}");
        assert!(finished.stderr.contains("sluice.yaml"), "{text:?}: {finished:?}");
        assert!(!finished.stderr.contains("panicked"), "{text:?}: {finished:?}");
    }
    fs::remove_file(proxy.config_path()).expect("remove");
    let finished = proxy.run(["check"]);
    assert_eq!(finished.code, 1);
    assert!(finished.stderr.contains("sluice.yaml"), "{finished:?}");
}

/// What `-T` prints is a configuration, the same one.
#[test]
fn the_effective_configuration_is_a_fixed_point() {
    let proxy = Proxy::prepared(
        "upstreams: {app: {servers: ['127.0.0.1:1']}}
routes: [{match: {hosts: [a.test], path: {prefix: /}}, upstream: app, timeouts: {connect: 1s}}]",
    );
    let effective = proxy.run(["-T"]).output();
    assert!(effective.contains("127.0.0.1:1"), "{effective}");
    fs::write(proxy.config_path(), &effective).expect("write");
    assert_eq!(proxy.run(["-T"]).output(), effective);
}

#[test]
fn includes_are_merged_and_their_mistakes_named() {
    let proxy = Proxy::prepared("include: conf.d/*.yaml\nroutes: []");
    fs::create_dir(proxy.file("conf.d")).expect("a directory");
    fs::write(proxy.file("conf.d/a.yaml"), "upstreams: {one: {servers: ['127.0.0.1:1']}}\n").expect("write");
    let route = "routes: [{match: {path: {prefix: /}}, upstream: one}]\n";
    fs::write(proxy.file("conf.d/b.yaml"), route).expect("write");
    let effective = proxy.run(["-T"]).output();
    assert!(effective.contains("127.0.0.1:1"), "{effective}");
    fs::write(proxy.file("conf.d/b.yaml"), route.replace("upstream: one", "upstream: on")).expect("write");
    let finished = proxy.run(["check"]);
    assert_eq!(finished.code, 1);
    assert!(finished.stderr.contains("b.yaml:1:"), "{finished:?}");
    assert!(finished.stderr.contains("one"), "{finished:?}");
}

/// YAML lets a later key of the same name win in silence; here it is a mistake.
#[test]
fn a_key_that_is_given_twice_is_refused() {
    let proxy = Proxy::prepared("shutdown_timeout: 1s\nshutdown_timeout: 2s\nroutes: []");
    let finished = proxy.run(["check"]);
    assert_eq!(finished.code, 1, "{finished:?}");
    assert!(finished.stderr.contains("sluice.yaml:2:"), "{finished:?}");
}

/// The schema, the reference page and what is accepted come from the same place, and the pages are kept fresh.
#[test]
fn schema_and_reference_are_those_of_the_documentation() {
    let schema = Binary::run(["schema"]).output();
    let parsed: Value = serde_json::from_str(&schema).expect("JSON");
    assert!(
        parsed["properties"]["listeners"]["description"].is_string() || parsed["properties"]["listeners"].is_object()
    );
    let reference = Binary::run(["reference"]).output();
    for word in ["worker_processes", "trusted_proxies", "client_head"] {
        assert!(reference.contains(word) && schema.contains(word), "{word}");
    }
    let documents = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");
    for (printed, name) in [(schema, "schema.json"), (reference, "configuration.md")] {
        let page = fs::read_to_string(format!("{documents}/{name}")).expect("the page");
        assert!(page.trim() == printed.trim(), "docs/{name} is stale: run `make docs`");
    }
}

/// Why a start fails is said, wherever the log goes.
#[test]
fn a_start_that_cannot_begin_says_why() {
    let mut proxy = Proxy::prepared("routes: []");
    std::fs::create_dir_all(proxy.file("run/lock")).expect("a directory");
    proxy.launch();
    assert_eq!(proxy.wait_exit(), 1);
    proxy.wait_log("cannot lock");
}
