//! Many connections, and too many.

#![forbid(unsafe_code)]

use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, Sender};

use integration::{Origin, Proxy, Wire, eventually, ok, raise_descriptor_limit, receive};

/// How many connections are to be held at once, where the limit of open files allows it.
const CONNECTIONS: usize = 10_000;

/// How many requests are in flight at once meanwhile.
const BATCH: usize = 100;

/// What this process needs besides them.
const SPARE_DESCRIPTORS: usize = 500;

/// Everything that a connection takes is given back, to the last descriptor.
#[test]
fn ten_thousand_connections_leave_nothing_behind() {
    let limit = raise_descriptor_limit(CONNECTIONS + SPARE_DESCRIPTORS);
    let count = CONNECTIONS.min(limit - SPARE_DESCRIPTORS);
    if count < CONNECTIONS {
        eprintln!("only {count} connections: this user may open no more than {limit} files");
    }
    let origin = Origin::answering(ok("hi"));
    let proxy = Proxy::start(&format!(
        "worker_connections: 16384
limits: {{connections: 12000}}
upstreams: {{app: {{servers: [{{address: '{}'}}], keep_alive: {{idle_timeout: 200ms}}}}}}
routes: [{{match: {{path: {{prefix: /}}}}, upstream: app}}]",
        origin.address()
    ));
    let descriptors = || proxy.stats().total("descriptors");
    let at_start = descriptors();
    assert!(at_start > 0);
    let mut clients: Vec<Wire> = Vec::new();
    while clients.len() < count {
        // As many at a time as the origin has threads for.
        let mut batch: Vec<_> = (0..BATCH.min(count - clients.len())).map(|_| proxy.client()).collect();
        batch.iter_mut().for_each(|client| client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
        batch.iter_mut().for_each(|client| assert_eq!(client.response().text(), "hi"));
        clients.append(&mut batch);
    }
    eventually("all are idle", || proxy.stats().total("connections_idle") == count as u64);
    eventually("the worker counts them", || descriptors() >= at_start + count as u64);
    // None was lost on the way: each still works.
    for client in clients.iter_mut().step_by(97) {
        assert_eq!(client.get("/").text(), "hi");
    }
    drop(clients);
    eventually("every descriptor is given back", || descriptors() == at_start);
    let stats = proxy.stats();
    for gauge in ["connections_active", "connections_idle", "requests_active", "upstream_active", "upstream_idle"] {
        assert_eq!(stats.total(gauge), 0, "{gauge}");
    }
}

/// When there is no room, the connection that has idled longest makes some.
#[test]
fn the_oldest_idle_connection_goes_first() {
    const ROOM: usize = 20;
    const MORE: usize = 5;
    let proxy = Proxy::start(&format!(
        "limits: {{connections: {ROOM}}}
routes: [{{match: {{path: {{prefix: /}}}}, respond: {{status: 200, body: 'hi'}}}}]"
    ));
    let mut clients: Vec<_> = (0..ROOM).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.get("/");
    }
    // The first has spoken last now.
    clients.rotate_left(1);
    assert_eq!(clients.last_mut().expect("clients").get("/").status(), 200);
    let mut newcomers: Vec<_> = (0..MORE).map(|_| proxy.client()).collect();
    for client in &mut newcomers {
        assert_eq!(client.get("/").text(), "hi");
    }
    for client in &mut clients[..MORE] {
        client.closed();
    }
    for client in clients[MORE..].iter_mut().chain(&mut newcomers) {
        assert_eq!(client.get("/").text(), "hi");
    }
    assert_eq!(proxy.stats().total("idle_evicted"), MORE as u64);
}

/// An origin that says when a request has come, and answers it when told to.
fn answering_when_told() -> (Origin, Receiver<()>, Sender<()>) {
    let (arrived, has_arrived) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let may_go = Mutex::new(may_go);
    let origin = Origin::start(move |mut wire, _| {
        while wire.request().is_some() {
            arrived.send(()).expect("the test listens");
            receive(&may_go.lock().expect("one at a time"));
            wire.send(ok("done"));
        }
    });
    (origin, has_arrived, go)
}

/// Connections at work are not thrown out for those that come.
#[test]
fn a_flood_does_not_disturb_requests_in_flight() {
    const ROOM: usize = 10;
    let (origin, has_arrived, go) = answering_when_told();
    let proxy = Proxy::before_with(&origin, &format!("limits: {{connections: {ROOM}}}"));
    let mut busy: Vec<_> = (0..ROOM).map(|_| proxy.client()).collect();
    for client in &mut busy {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    busy.iter().for_each(|_| receive(&has_arrived));
    let flood: Vec<_> = (0..50).map(|_| proxy.client()).collect();
    busy.iter().for_each(|_| go.send(()).expect("the origin listens"));
    for client in &mut busy {
        assert_eq!(client.response().text(), "done");
    }
    drop((flood, busy));
    // There is room again.
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    receive(&has_arrived);
    go.send(()).expect("the origin listens");
    assert_eq!(client.response().text(), "done");
}

/// Who waits is let in as soon as another's connection is idle, not when it ends.
#[test]
fn a_connection_that_falls_idle_makes_room() {
    let (origin, has_arrived, go) = answering_when_told();
    let proxy = Proxy::before_with(&origin, "limits: {connections: 1}");
    let mut first = proxy.client();
    first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    receive(&has_arrived);
    let mut second = proxy.client();
    second.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    go.send(()).expect("the origin listens");
    assert_eq!(first.response().text(), "done");
    receive(&has_arrived);
    go.send(()).expect("the origin listens");
    assert_eq!(second.response().text(), "done");
}

/// Connections that say nothing cost no memory to speak of.
#[test]
fn silent_connections_are_cheap() {
    const SILENT: usize = 2_000;
    raise_descriptor_limit(SILENT + SPARE_DESCRIPTORS);
    let proxy = Proxy::start("routes: [{match: {path: {prefix: /}}, respond: {status: 200, body: 'hi'}}]");
    proxy.client().get("/");
    let before = proxy.workers()[0].resident_bytes();
    let clients: Vec<_> = (0..SILENT).map(|_| proxy.client()).collect();
    eventually("all are accepted", || proxy.stats().total("accepted") > SILENT as u64);
    let each = proxy.workers()[0].resident_bytes().saturating_sub(before) / SILENT as u64;
    assert!(each < 8 << 10, "{each} bytes a silent connection");
    assert_eq!(proxy.client().get("/").text(), "hi");
    drop(clients);
}
