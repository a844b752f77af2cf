//! The pool of upstream connections: what is reused, what is tried again, what is not.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use integration::{Origin, Proxy, eventually, free_port, ok};

/// A configuration before `origin` with keep-alive settings.
fn pooled(origin: &Origin, keep_alive: &str) -> Proxy {
    Proxy::start(&format!(
        "upstreams: {{app: {{servers: [{{address: '{}'}}], keep_alive: {{{keep_alive}}}}}}}
routes: [{{match: {{path: {{prefix: /}}}}, upstream: app}}]",
        origin.address()
    ))
}

#[test]
fn an_idle_connection_serves_other_clients() {
    let origin = Origin::answering(ok("hi"));
    let proxy = Proxy::before(&origin);
    for _ in 0..5 {
        assert_eq!(proxy.client().get("/").text(), "hi");
    }
    assert_eq!(origin.connections(), 1);
}

/// RFC 9112 §9.6: an origin that says close is not asked again on that connection.
#[test]
fn a_connection_that_the_origin_ends_is_not_reused() {
    let origin = Origin::start(|mut wire, _| {
        wire.request();
        wire.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for _ in 0..3 {
        assert_eq!(client.get("/").text(), "hi");
    }
    assert_eq!(origin.connections(), 3);
}

/// RFC 9112 §9.3: an HTTP/1.0 origin ends its connections.
#[test]
fn a_connection_to_an_http_1_0_origin_is_not_reused() {
    let origin = Origin::start(|mut wire, _| {
        wire.request();
        wire.send("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for _ in 0..3 {
        assert_eq!(client.get("/").text(), "hi");
    }
    assert_eq!(origin.connections(), 3);
}

#[test]
fn no_idle_connections_are_kept_when_none_may_be() {
    let origin = Origin::answering(ok("hi"));
    let proxy = pooled(&origin, "idle_max: 0");
    let mut client = proxy.client();
    for _ in 0..3 {
        client.get("/");
    }
    assert_eq!(origin.connections(), 3);
}

#[test]
fn a_connection_serves_no_more_requests_than_it_may() {
    let origin = Origin::answering(ok("hi"));
    let proxy = pooled(&origin, "requests_max: 2");
    let mut client = proxy.client();
    for _ in 0..6 {
        client.get("/");
    }
    assert_eq!(origin.connections(), 3);
}

#[test]
fn an_idle_connection_is_closed_in_time() {
    let ended = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&ended);
    let origin = Origin::start(move |mut wire, _| {
        while wire.request().is_some() {
            wire.send(ok("hi"));
        }
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let proxy = pooled(&origin, "idle_timeout: 200ms");
    proxy.client().get("/");
    eventually("the idle connection is closed", || ended.load(Ordering::SeqCst) == 1);
    assert_eq!(proxy.client().get("/").text(), "hi");
    assert_eq!(origin.connections(), 2);
}

/// An origin whose first connection dies on its second request, unanswered. Others live.
fn origin_that_dies_once() -> Origin {
    Origin::start(|mut wire, number| {
        wire.request();
        wire.send(ok("first"));
        if number == 0 {
            wire.head();
            return;
        }
        while wire.request().is_some() {
            wire.send(ok("next"));
        }
    })
}

/// RFC 9112 §9.3.1: a request that may be repeated is, once, when a kept connection turns out to be dead.
#[test]
fn a_replayable_request_survives_a_dead_idle_connection() {
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "DELETE / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let origin = origin_that_dies_once();
        let proxy = Proxy::before(&origin);
        let mut client = proxy.client();
        client.get("/");
        client.send(request);
        assert_eq!(client.response().status(), 200, "{request:?}");
        assert_eq!(origin.connections(), 2);
    }
}

/// RFC 9110 §9.2.2: a request that may have done its work is never sent twice.
#[test]
fn a_post_is_not_repeated() {
    let origin = origin_that_dies_once();
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.get("/");
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody");
    assert_eq!(client.response().status(), 502);
    let posts = origin.requests().iter().filter(|request| request.head.method() == "POST").count();
    assert!(posts <= 1);
    assert_eq!(origin.connections(), 1);
}

/// A fresh connection that dies is the server's fault, not the pool's.
#[test]
fn a_fresh_connection_that_dies_is_a_bad_gateway() {
    let origin = Origin::start(|mut wire, _| {
        wire.head();
    });
    let proxy = Proxy::before(&origin);
    assert_eq!(proxy.client().get("/").status(), 502);
    assert_eq!(origin.connections(), 1);
}

/// RFC 9110 §9.2.2: with another server to ask, a request that may be repeated is, once; no other is.
#[test]
fn a_fresh_connection_that_dies_sends_a_replayable_request_to_the_next_server() {
    let dying = || {
        Origin::start(|mut wire, _| {
            wire.request();
        })
    };
    let text = |origins: &[&Origin]| {
        let servers: Vec<_> = origins.iter().map(|origin| format!("'{}'", origin.address())).collect();
        format!(
            "upstreams: {{app: {{servers: [{}]}}}}\nroutes: [{{match: {{path: /}}, upstream: app}}]",
            servers.join(", ")
        )
    };
    let (first, well) = (dying(), Origin::answering(ok("well")));
    let proxy = Proxy::start(&text(&[&first, &well]));
    for _ in 0..2 {
        assert_eq!(proxy.client().get("/").text(), "well");
    }
    assert_eq!(first.connections(), 1, "the turn of the one that dies came once");
    // An exchange is counted after its answer was sent.
    eventually("it is counted", || proxy.stats().named("upstreams", "app")["retries"] == 1);
    let mut client = proxy.client();
    let statuses: Vec<u16> = (0..2)
        .map(|_| {
            client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
            client.response().status()
        })
        .collect();
    assert!(statuses.contains(&502) && statuses.contains(&200), "{statuses:?}");

    // A third server is not asked: what is sent twice and kills whom it reaches is no business of the next.
    let servers = [dying(), dying(), dying()];
    let proxy = Proxy::start(&text(&[&servers[0], &servers[1], &servers[2]]));
    assert_eq!(proxy.client().get("/").status(), 502);
    assert_eq!(servers.iter().map(Origin::connections).sum::<usize>(), 2);
}

/// Every idle connection is dead, as after a restart of the origin: the next request gets through at once.
#[test]
fn a_restarted_origin_costs_no_request() {
    let origin = Origin::answering(ok("old"));
    let proxy = Proxy::before(&origin);
    let mut clients: Vec<_> = (0..8).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    for client in &mut clients {
        assert_eq!(client.response().text(), "old");
    }
    origin.restart(|mut wire, _| {
        while wire.request().is_some() {
            wire.send(ok("new"));
        }
    });
    for client in &mut clients {
        assert_eq!(client.get("/").text(), "new");
    }
}

#[test]
fn servers_share_the_requests_by_weight() {
    let (light, heavy) = (Origin::answering(ok("light")), Origin::answering(ok("heavy")));
    let proxy = Proxy::start(&format!(
        "upstreams: {{app: {{servers: [{{address: '{}'}}, {{address: '{}', weight: 3}}]}}}}
routes: [{{match: {{path: {{prefix: /}}}}, upstream: app}}]",
        light.address(),
        heavy.address()
    ));
    let mut client = proxy.client();
    for _ in 0..40 {
        client.get("/");
    }
    assert_eq!((light.requests().len(), heavy.requests().len()), (10, 30));
}

/// A connection that was refused has sent nothing, so another server may be asked.
#[test]
fn nothing_listens_is_a_bad_gateway() {
    let port = free_port();
    let proxy = Proxy::start(&format!(
        "upstreams: {{app: {{servers: [{{address: '127.0.0.1:{port}'}}]}}}}
routes: [{{match: {{path: {{prefix: /}}}}, upstream: app}}]"
    ));
    let mut client = proxy.client();
    for _ in 0..3 {
        assert_eq!(client.get("/").status(), 502);
    }
}

/// Who asked is told: by a page while nothing of the answer was passed on, or by a body that is cut.
#[test]
fn an_answer_that_ends_after_its_head_does_not_go_unsaid() {
    let origin = Origin::start(|mut wire, _| {
        wire.request();
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    });
    let proxy = Proxy::before(&origin);
    for _ in 0..10 {
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        match client.head().status() {
            502 => {}
            200 => assert_eq!(client.rest().0, b""),
            other => panic!("{other}"),
        }
    }
}
