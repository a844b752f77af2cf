//! Ordinary HTTP/1.1 through the proxy, as RFC 9110 and RFC 9112 describe it.

#![forbid(unsafe_code)]

use std::sync::mpsc;

use integration::{Ending, Origin, Proxy, Wire, ok, receive};

/// RFC 9112 §9.3: both sides are kept alive.
#[test]
fn connections_are_kept_alive_on_both_sides() {
    let origin = Origin::answering(ok("hi"));
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for path in ["/a", "/b", "/c"] {
        assert_eq!(client.get(path).text(), "hi");
    }
    assert_eq!(origin.connections(), 1);
    assert_eq!(origin.requests().len(), 3);
}

/// RFC 9112 §9.3.2: answers come in the order of the requests.
#[test]
fn a_pipeline_is_answered_in_order() {
    let origin = Origin::start(|mut wire, _| {
        while let Some(request) = wire.request() {
            wire.send(ok(request.head.target()));
        }
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    let requests: String = (0..20).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    client.send(requests);
    for n in 0..20 {
        assert_eq!(client.response().text(), format!("/{n}"));
    }
}

/// RFC 9112 §9.6: `Connection: close` is obeyed after the answer, and what follows is not read.
#[test]
fn a_client_that_says_close_is_closed() {
    let origin = Origin::answering(ok("hi"));
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n");
    let response = client.response();
    assert_eq!(response.text(), "hi");
    assert_eq!(response.field("Connection"), Some("close"));
    assert_eq!(client.rest().0, b"");
    assert_eq!(origin.requests().len(), 1);
}

/// RFC 9112 §9.3: an HTTP/1.0 client's connection ends with the answer unless it asks otherwise.
#[test]
fn an_http_1_0_client_is_served_and_closed() {
    let origin = Origin::answering(ok("hi"));
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.response().text(), "hi");
    client.closed();
    let request = origin.first_request();
    assert!(request.head.line.ends_with("HTTP/1.1"), "{}", request.head.line);
    assert!(request.field("Host").is_some());
}

/// RFC 9112 §6.1: a client of HTTP/1.0 is never sent a transfer coding.
#[test]
fn an_http_1_0_client_gets_no_chunks() {
    let origin =
        Origin::answering("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
    let response = client.response();
    assert_eq!(response.field("Transfer-Encoding"), None);
    assert_eq!(response.text(), "abcde");
}

/// RFC 9110 §9.3.2: the fields of a GET, no body, and the connection goes on.
#[test]
fn head_has_fields_and_no_body() {
    let origin = Origin::start(|mut wire, _| {
        while let Some(request) = wire.request() {
            let body = if request.head.method() == "HEAD" { "" } else { "12345" };
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{body}"));
        }
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response_to("HEAD").field("Content-Length"), Some("5"));
    assert_eq!(client.get("/").text(), "12345");
    assert_eq!(origin.connections(), 1);
}

/// RFC 9112 §6.3: 204 and 304 end with their head, whatever their fields say.
#[test]
fn bodiless_statuses_end_with_their_head() {
    for (answer, status) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 99\r\n\r\n", 304),
        ("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", 304),
    ] {
        let origin = Origin::answering(answer);
        let proxy = Proxy::before(&origin);
        let mut client = proxy.client();
        for _ in 0..2 {
            assert_eq!(client.get("/").status(), status, "{answer:?}");
        }
        assert_eq!(origin.connections(), 1, "{answer:?}");
    }
}

/// RFC 9110 §10.1.1: the origin decides whether the body is wanted.
#[test]
fn continue_is_passed_on_before_the_body() {
    let origin = Origin::once(|mut wire| {
        let head = wire.head();
        assert_eq!(head.field("Expect").map(str::to_ascii_lowercase).as_deref(), Some("100-continue"));
        wire.send("HTTP/1.1 100 Continue\r\n\r\n");
        assert_eq!(wire.exactly(4), b"body");
        wire.send(ok("done"));
        wire.request();
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.head().status(), 100);
    client.send("body");
    assert_eq!(client.response().text(), "done");
}

/// RFC 9110 §15.2: interim answers are passed on, as many as come.
#[test]
fn early_hints_are_passed_on() {
    let origin = Origin::answering(
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n\
         HTTP/1.1 103 Early Hints\r\nLink: </b.js>; rel=preload\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    );
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    for link in ["</a.css>; rel=preload", "</b.js>; rel=preload"] {
        let hint = client.head();
        assert_eq!((hint.status(), hint.field("Link")), (103, Some(link)));
    }
    assert_eq!(client.response().text(), "hi");
}

/// RFC 9110 §15.2: a client of HTTP/1.0 is sent no interim answer.
#[test]
fn an_http_1_0_client_gets_no_interim_answer() {
    let origin = Origin::answering(format!("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n{}", ok("hi")));
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status(), response.text().as_str()), (200, "hi"));
}

/// RFC 9112 §6.3: a body that ends with the origin's connection is whole, and the client's connection can go on.
#[test]
fn a_close_delimited_body_is_reframed() {
    let origin = Origin::start(|mut wire, _| {
        wire.request();
        wire.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for _ in 0..2 {
        let response = client.get("/");
        assert_eq!(response.field("Transfer-Encoding"), Some("chunked"));
        assert_eq!(response.text(), "until the end");
    }
}

/// RFC 9112 §7.1: chunks are a framing of each hop's own; the content is what counts.
#[test]
fn chunked_bodies_go_both_ways() {
    let origin = Origin::start(|mut wire, _| {
        while let Some(request) = wire.request() {
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            for byte in &request.body {
                wire.send(format!("1\r\n{}\r\n", char::from(*byte)));
            }
            wire.send("0\r\n\r\n");
        }
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for _ in 0..2 {
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send("5\r\nhello\r\n6;note=\"x\"\r\n world\r\n00\r\n\r\n");
        assert_eq!(client.response().text(), "hello world");
    }
}

/// RFC 9110 §6.5: trailers reach the other side.
#[test]
fn trailers_go_both_ways() {
    let origin = Origin::once(|mut wire| {
        let request = wire.request().expect("a request");
        assert_eq!(request.trailers, [("X-Sum".to_owned(), "7".to_owned())]);
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Digest\r\n\r\n");
        wire.send("2\r\nhi\r\n0\r\nX-Digest: abc\r\n\r\n");
        wire.request();
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n");
    client.send("1\r\nx\r\n0\r\nX-Sum: 7\r\n\r\n");
    let response = client.response();
    assert_eq!(response.text(), "hi");
    assert_eq!(response.trailers, [("X-Digest".to_owned(), "abc".to_owned())]);
}

/// RFC 9112 §9.3: an answer that does not wait for the body ends the exchange; the client learns it at once.
#[test]
fn an_early_final_answer_reaches_a_client_that_is_still_sending() {
    let origin = Origin::once(|mut wire| {
        wire.head();
        wire.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmuch");
        wire.rest();
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nonly the beginning");
    let response = client.response();
    assert_eq!((response.status(), response.text().as_str()), (413, "much"));
}

/// An event is with the client before the origin sends the next.
#[test]
fn server_sent_events_arrive_at_once() {
    let (seen, was_seen) = mpsc::channel();
    let origin = Origin::once(move |mut wire| {
        wire.request();
        wire.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        for _ in 0..3 {
            wire.send("8\r\ndata: x\n\r\n");
            receive(&was_seen);
        }
        wire.send("0\r\n\r\n");
        wire.request();
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n");
    assert_eq!(client.head().field("Content-Type"), Some("text/event-stream"));
    for _ in 0..3 {
        assert_eq!(client.chunk(), b"data: x\n");
        seen.send(()).expect("the origin listens");
    }
    assert_eq!(client.chunk(), b"");
}

/// A request's body streams too: each piece is with the origin before the client sends the next.
#[test]
fn pieces_of_a_request_arrive_at_once() {
    let (seen, was_seen) = mpsc::channel();
    let origin = Origin::once(move |mut wire| {
        wire.head();
        for _ in 0..3 {
            assert_eq!(wire.chunk(), b"piece");
            seen.send(()).expect("the client listens");
        }
        assert_eq!(wire.chunk(), b"");
        wire.trailers();
        wire.send(ok("all"));
        wire.request();
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..3 {
        client.send("5\r\npiece\r\n");
        receive(&was_seen);
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.response().text(), "all");
}

/// A head may come byte by byte.
#[test]
fn a_head_in_pieces_is_one_head() {
    let origin = Origin::answering(ok("hi"));
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for byte in b"GET /slowly HTTP/1.1\r\nHost: a\r\nX-Long: abc\r\n\r\n" {
        client.send([*byte]);
    }
    assert_eq!(client.response().text(), "hi");
    assert_eq!(origin.requests()[0].field("X-Long"), Some("abc"));
}

#[test]
fn unix_sockets_work_on_both_sides() {
    let directory = tempfile::tempdir().expect("a directory");
    let origin = Origin::start_unix(&directory.path().join("origin.sock"), |mut wire, _| {
        while wire.request().is_some() {
            wire.send(ok("by path"));
        }
    });
    let proxy = Proxy::before_with(&origin, "listeners: [{address: 'unix:{dir}/in.sock'}]");
    let mut client = Wire::unix(&proxy.file("in.sock"));
    assert_eq!(client.get("/").text(), "by path");
    assert_eq!(client.get("/").text(), "by path");
}

#[test]
fn an_ipv6_listener_works() {
    let origin = Origin::answering(ok("six"));
    let proxy = Proxy::before_with(&origin, "listeners: [{address: '[::1]:{other_port}'}]");
    let mut client = Wire::tcp(([0, 0, 0, 0, 0, 0, 0, 1], proxy.other_port()).into());
    assert_eq!(client.get("/").text(), "six");
    assert_eq!(client.get("/").text(), "six");
}

#[test]
fn routes_respond_and_redirect_without_an_origin() {
    let proxy = Proxy::start(
        "routes:
  - {match: {path: {exact: /health}}, respond: {status: 200, headers: {X-From: '$host'}, body: 'fine'}}
  - {match: {hosts: ['*.old.test']}, redirect: {status: 308, location: 'https://new.test$request_uri'}}",
    );
    let mut client = proxy.client();
    let response = client.get("/health");
    assert_eq!((response.status(), response.text().as_str()), (200, "fine"));
    assert_eq!(response.field("X-From"), Some("test"));
    client.send("GET /a?b=c HTTP/1.1\r\nHost: www.old.test\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status(), response.field("Location")), (308, Some("https://new.test/a?b=c")));
    assert_eq!(client.get("/nowhere").status(), 404);
    client.send("GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    assert_eq!(client.response().status(), 404);
    assert_eq!(client.rest(), (Vec::new(), Ending::Closed));
}
