//! What is slow is bounded: each limit ends what it is for, and nothing else.

#![forbid(unsafe_code)]

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::socket::{Backlog, listen};

use integration::{Ending, Origin, Proxy, eventually, ok};

#[test]
fn a_slow_head_is_answered_408() {
    let origin = Origin::answering(ok("hi"));
    let proxy = Proxy::before_with(&origin, "timeouts: {client_head: 300ms}");
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost:");
    assert_eq!(client.response().status(), 408);
    client.closed();
    assert_eq!(origin.connections(), 0);
}

/// Bytes that trickle do not put the end off.
#[test]
fn a_trickling_head_is_not_given_more_time() {
    let proxy = Proxy::start("timeouts: {client_head: 300ms}\nroutes: []");
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nX: ");
    eventually("an end though bytes keep coming", || client.try_send("x").is_err() || client.has_news());
}

/// A connection that never speaks is closed without a word.
#[test]
fn a_silent_connection_is_closed() {
    let proxy = Proxy::start("timeouts: {client_head: 300ms}\nroutes: []");
    let mut client = proxy.client();
    let (bytes, ending) = client.rest();
    assert!(bytes.is_empty() || bytes.starts_with(b"HTTP/1.1 408"), "{}", bytes.escape_ascii());
    assert_eq!(ending, Ending::Closed);
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let origin = Origin::answering(ok("hi"));
    let proxy = Proxy::before_with(&origin, "timeouts: {keep_alive: 300ms}");
    let mut client = proxy.client();
    client.get("/");
    client.closed();
}

#[test]
fn a_slow_body_is_answered_408() {
    let origin = Origin::start(|mut wire, _| {
        wire.rest();
    });
    let proxy = Proxy::before_with(&origin, "timeouts: {client_body: 300ms}");
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nbegin");
    assert_eq!(client.response().status(), 408);
    assert!(client.rest().0.is_empty());
}

/// A client that stops reading is cut off, and its origin let go.
#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let (cancelled, was_cancelled) = std::sync::mpsc::channel();
    let origin = Origin::once(move |mut wire| {
        wire.request();
        wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1_u64 << 40));
        while wire.try_send([b'x'; 1 << 16]).is_ok() {}
        cancelled.send(()).expect("the test listens");
    });
    let proxy = Proxy::before_with(&origin, "timeouts: {client_send: 300ms}");
    let mut client = proxy.client();
    client.narrow(32 << 10);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    integration::receive(&was_cancelled);
}

#[test]
fn a_server_that_does_not_answer_is_a_gateway_timeout() {
    let origin = Origin::start(|mut wire, _| {
        wire.rest();
    });
    let proxy = Proxy::before_with(&origin, "timeouts: {upstream_read: 300ms}");
    let mut client = proxy.client();
    let response = client.get("/");
    assert_eq!(response.status(), 504);
    assert!(!response.body.is_empty());
    // The connection to the client is as good as before.
    assert_eq!(client.get("/").status(), 504);
}

/// The head has gone to the client by then, so all that is left is to break off.
#[test]
fn a_server_that_stops_midway_is_broken_off() {
    let origin = Origin::once(|mut wire| {
        wire.request();
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
        wire.rest();
    });
    let proxy = Proxy::before_with(&origin, "timeouts: {upstream_read: 300ms}");
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    assert_eq!(client.rest().0, b"half");
}

#[test]
fn a_server_that_does_not_read_is_a_gateway_timeout() {
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let origin = Origin::once(move |mut wire| {
        wire.narrow(16 << 10);
        wire.head();
        // It holds the connection open and reads no more.
        let _ = is_done.recv();
    });
    let proxy = Proxy::before_with(&origin, "timeouts: {upstream_send: 300ms}\nlimits: {body_bytes: 1GiB}");
    let mut client = proxy.client();
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 512 << 20));
    while !client.has_news() && client.try_send([b'x'; 1 << 16]).is_ok() {}
    assert_eq!(client.response().status(), 504);
    drop(done);
}

/// A queue that is full leaves a SYN unanswered, as a host that is down does.
#[test]
fn a_server_that_does_not_accept_is_a_gateway_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listen(&listener, Backlog::new(0).expect("a backlog")).expect("a shorter queue");
    let address = listener.local_addr().expect("its address");
    // Nobody accepts, so these fill the queue.
    let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
    let queued: Vec<_> = std::iter::from_fn(connect).take(16).collect();
    assert!(queued.len() < 16, "the queue has no end");
    let proxy = Proxy::start(&format!(
        "timeouts: {{connect: 300ms}}
upstreams: {{app: {{servers: [{{address: '{address}'}}]}}}}
routes: [{{match: {{path: {{prefix: /}}}}, upstream: app}}]"
    ));
    assert_eq!(proxy.client().get("/").status(), 504);
}

/// A response that keeps coming is bounded as a whole when the operator says so.
#[test]
fn a_whole_exchange_can_be_bounded() {
    let origin = Origin::once(|mut wire| {
        wire.request();
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while wire.try_send("1\r\nx\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let proxy = Proxy::before_with(&origin, "timeouts: {exchange: 500ms}");
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    let (body, _) = client.rest();
    assert!(!body.ends_with(b"0\r\n\r\n"), "a broken body that looks complete");
}

/// A route's own limit is the one that counts on it.
#[test]
fn a_route_has_its_own_limits() {
    let origin = Origin::start(|mut wire, _| {
        wire.rest();
    });
    let proxy = Proxy::start(&format!(
        "upstreams: {{app: {{servers: [{{address: '{}'}}]}}}}
routes:
  - {{match: {{path: {{prefix: /impatient}}}}, upstream: app, timeouts: {{upstream_read: 200ms}}, limits: {{body_bytes: 4}}}}
  - {{match: {{path: {{prefix: /}}}}, upstream: app}}",
        origin.address()
    ));
    assert_eq!(proxy.client().get("/impatient").status(), 504);
    let mut client = proxy.client();
    client.send("POST /impatient HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12345");
    assert_eq!(client.response().status(), 413);
    let mut client = proxy.client();
    client.send("POST /patient HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12345");
    eventually("the body at the origin", || origin.received(1).ends_with(b"12345"));
}
