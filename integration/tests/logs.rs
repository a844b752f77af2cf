//! The access log: its formats, its reopening, its whole lines.

#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::sync::mpsc;
use std::thread;

use integration::{Ending, Origin, Proxy, eventually, ok, receive};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A proxy that logs to the file `access.log` in `format`, before `origin`.
fn logging(origin: &Origin, format: &str) -> Proxy {
    Proxy::before_with(origin, &format!("access_log: {{path: '{{dir}}/access.log', format: {format}}}"))
}

/// The lines of the log, once there are `count`.
#[track_caller]
fn lines(proxy: &Proxy, count: usize) -> Vec<String> {
    let read = || fs::read_to_string(proxy.file("access.log")).unwrap_or_default();
    eventually("the lines of the log", || read().lines().count() >= count);
    let text = read();
    assert!(text.ends_with('\n'));
    assert_eq!(text.lines().count(), count, "{text}");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn the_combined_format_is_that_of_nginx() {
    let origin = Origin::answering(ok("hello"));
    let proxy = logging(&origin, "combined");
    let mut client = proxy.client();
    client.send("GET /a?b=c HTTP/1.1\r\nHost: a\r\nUser-Agent: test \"agent\"\r\nReferer: http://b/\r\n\r\n");
    client.response();
    client.get("/x");
    let lines = lines(&proxy, 2);
    let (before, after) = lines[0].split_once('[').expect("a time");
    assert_eq!(before, "127.0.0.1 - - ");
    let (time, after) = after.split_once("] ").expect("a time");
    assert!(time.len() == "10/Oct/2026:13:55:36 +0000".len() && time.ends_with(" +0000"), "{time}");
    assert_eq!(after, r#""GET /a?b=c HTTP/1.1" 200 5 "http://b/" "test \x22agent\x22""#);
    assert!(lines[1].ends_with(r#""GET /x HTTP/1.1" 200 5 "-" "-""#), "{}", lines[1]);
}

#[test]
fn the_json_format_is_one_object_a_line() {
    let origin = Origin::answering(ok("hello"));
    let proxy = logging(&origin, "json");
    let mut client = proxy.client();
    client.send("GET /a?b=\"c HTTP/1.1\r\n\r\n");
    client.response();
    let mut client = proxy.client();
    client.send("GET /a?b=c HTTP/1.1\r\nHost: a\r\nUser-Agent: \u{e9} \"quoted\" \\\r\n\r\n");
    client.response();
    let lines = lines(&proxy, 2);
    let records: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(records[0]["status"], 400);
    let record = &records[1];
    for (key, value) in [
        ("remote_addr", Value::from("127.0.0.1")),
        ("method", Value::from("GET")),
        ("status", Value::from(200)),
        ("body_bytes_sent", Value::from(5)),
        ("route", Value::from("all")),
        ("upstream", Value::from("app")),
        ("upstream_addr", Value::from(origin.address())),
        ("user_agent", Value::from("\u{e9} \"quoted\" \\")),
    ] {
        assert_eq!(record[key], value, "{key} of {record}");
    }
    assert!(record["request_time"].is_number(), "{record}");
}

#[test]
fn a_format_can_be_the_operators_own() {
    let origin = Origin::answering(ok("hello"));
    let proxy = logging(&origin, "'$status|$request_method|$uri|$arg_n|$http_x_key|$upstream_status|$$'");
    let mut client = proxy.client();
    client.send("GET /a/../b?n=7 HTTP/1.1\r\nHost: a\r\nX-Key: k\r\n\r\n");
    client.response();
    assert_eq!(lines(&proxy, 1), ["200|GET|/b|7|k|200|$"]);
}

/// A client that has gone, a server that is gone: each leaves its line, with the reason.
#[test]
fn what_goes_wrong_is_logged_with_its_reason() {
    let proxy = Proxy::start(&format!(
        "access_log: {{path: '{{dir}}/access.log', format: '$status $fault'}}
upstreams: {{app: {{servers: [{{address: '127.0.0.1:{}'}}]}}}}
routes: [{{match: {{path: {{prefix: /}}}}, upstream: app}}]",
        integration::free_port()
    ));
    proxy.client().get("/");
    let line = lines(&proxy, 1).remove(0);
    let fault = line.strip_prefix("502 ").expect("the status");
    assert!(!fault.is_empty() && fault != "-", "{line}");
}

/// The way of logrotate: the file is moved, then the signal; no line is lost.
#[test]
fn a_moved_log_is_reopened() {
    let origin = Origin::answering(ok("hi"));
    let proxy = logging(&origin, "'$uri'");
    let mut client = proxy.client();
    client.get("/before");
    assert_eq!(lines(&proxy, 1), ["/before"]);
    fs::rename(proxy.file("access.log"), proxy.file("access.log.1")).expect("rename");
    proxy.signal(Signal::SIGUSR1);
    eventually("a new file", || proxy.file("access.log").exists());
    // A worker may still hold the old file when the master has made the new one.
    eventually("a line in the new file", || {
        client.get("/after");
        fs::read_to_string(proxy.file("access.log")).is_ok_and(|text| text.contains("/after"))
    });
    assert!(fs::read_to_string(proxy.file("access.log.1")).expect("the old one").starts_with("/before\n"));
    proxy.run(["reopen"]).output();
}

/// What a proxy has served when it ends is in the log.
#[test]
fn nothing_is_lost_at_the_end() {
    let origin = Origin::answering(ok("hi"));
    let mut proxy = logging(&origin, "'$uri'");
    let mut client = proxy.client();
    for _ in 0..100 {
        client.get("/x");
    }
    proxy.signal(Signal::SIGQUIT);
    assert_eq!(proxy.wait_exit(), 0);
    let text = fs::read_to_string(proxy.file("access.log")).expect("the log");
    assert_eq!(text.lines().filter(|line| *line == "/x").count(), 100);
}

/// Several workers, one pipe, a slow reader: lines come whole, or are counted as dropped.
#[test]
fn lines_on_a_pipe_are_whole() {
    const CLIENTS: usize = 4;
    const REQUESTS: usize = 500;
    let origin = Origin::answering(ok("hi"));
    let mut proxy = Proxy::prepared(&format!(
        "worker_processes: 4
access_log: {{path: '{{dir}}/pipe', format: json}}
upstreams: {{app: {{servers: [{{address: '{}'}}]}}}}
routes: [{{match: {{path: {{prefix: /}}}}, upstream: app}}]",
        origin.address()
    ));
    nix::unistd::mkfifo(&proxy.file("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    // Open for both, so that neither side waits for the other and the pipe outlives a worker.
    let pipe = fs::File::options().read(true).write(true).open(proxy.file("pipe")).expect("the pipe");
    proxy.launch();
    proxy.wait_ready(1);
    let reader = thread::spawn(move || {
        let mut served = 0;
        for line in BufReader::with_capacity(512, pipe).lines() {
            let line = line.expect("a line");
            let record: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("torn: {e}: {line}"));
            if record["uri"].as_str().is_some_and(|uri| uri.starts_with("/last")) {
                return served;
            }
            served += 1;
        }
        served
    });
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = proxy.client();
                for number in 0..REQUESTS {
                    client.get(&format!("/{number}/{}", "x".repeat(number % 900)));
                }
            });
        }
    });
    let dropped = || proxy.stats().total("log_lines_dropped");
    eventually("every request is counted", || proxy.stats().total("requests") == (CLIENTS * REQUESTS) as u64);
    // Workers hand their lines over once a second; when the last worker's last line is through, all are.
    let mut last = Vec::new();
    eventually("all lines are through", || {
        last.push(proxy.client().get("/last").status());
        thread::sleep(std::time::Duration::from_millis(100));
        reader.is_finished()
    });
    let served = reader.join().expect("whole lines");
    assert!(served as u64 + dropped() <= (CLIENTS * REQUESTS) as u64);
    assert!(served > 0);
}

#[test]
fn the_error_log_can_be_json() {
    let proxy = Proxy::prepared("error_log: {path: '{dir}/error.log', format: json}\nroutes: []");
    let mut proxy = proxy;
    proxy.launch();
    eventually("it says that it is ready", || {
        let text = fs::read_to_string(proxy.file("error.log")).unwrap_or_default();
        let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        records.into_iter().any(|record| record["msg"] == "ready" && record["generation"] == 1)
    });
}

/// However a worker is ended, what it had gathered is written, and what it was at work on gets a line.
#[test]
fn exchanges_that_are_cut_are_logged() {
    for ending in ["stop", "a quit that lasts too long", "a signal to the worker"] {
        let (arrived, has_arrived) = mpsc::channel();
        let origin = Origin::start(move |mut wire, _| {
            let request = wire.request().expect("a request");
            if request.head.target() == "/begun" {
                wire.send("HTTP/1.1 200 OK\r\n\r\npart");
            }
            arrived.send(()).expect("the test listens");
            wire.rest();
        });
        let settings = "shutdown_timeout: 300ms\naccess_log: {path: '{dir}/access.log', format: json}";
        let mut proxy = Proxy::before_with(&origin, settings);
        let mut waiting = proxy.client();
        waiting.send("GET /waiting HTTP/1.1\r\nHost: a\r\n\r\n");
        receive(&has_arrived);
        // By HTTP/1.0 the end of the connection is all that ends an answer: it must not look like one.
        let mut begun = proxy.client();
        begun.send("GET /begun HTTP/1.0\r\nHost: a\r\n\r\n");
        receive(&has_arrived);
        begun.exactly("HTTP/1.1 200 OK\r\n".len());
        match ending {
            "stop" => proxy.signal(Signal::SIGTERM),
            "a signal to the worker" => proxy.workers()[0].signal(Signal::SIGTERM),
            _ => proxy.signal(Signal::SIGQUIT),
        }
        if ending != "a signal to the worker" {
            assert_eq!(proxy.wait_exit(), 0);
        }
        assert_eq!(begun.rest().1, Ending::Reset, "{ending}");
        let mut records: Vec<Value> =
            lines(&proxy, 2).iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        records.sort_by_key(|record| record["uri"].to_string());
        for (record, uri, status) in [(&records[0], "/begun", 200), (&records[1], "/waiting", 503)] {
            assert_eq!(record["uri"], uri, "{ending}: {record}");
            assert_eq!(record["status"], status, "{ending}: {record}");
            assert_eq!(record["fault"], "proxy_stopped", "{ending}: {record}");
        }
        proxy.wait_log("exchanges were cut");
    }
}
