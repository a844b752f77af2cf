//! Where bodies end: large ones, broken ones, abandoned ones.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use integration::{Ending, Origin, Proxy, Wire, eventually, ok, receive};

/// Big enough for every buffer on the way to fill many times, and for splicing to be chosen.
const BIG_BODY_BYTES: usize = 64 << 20;

/// What the pieces of a big body are cut to.
const PIECE_BYTES: usize = 1 << 16;

/// Bytes that repeat nowhere near: a misplaced or lost byte shows.
struct Pattern(u64);

impl Pattern {
    fn new() -> Pattern {
        Pattern(0x9E37_79B9_7F4A_7C15)
    }

    fn piece(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            bytes.extend(self.0.to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }

    #[track_caller]
    fn expect_from(&mut self, wire: &mut Wire, total: usize) {
        for at in (0..total).step_by(PIECE_BYTES) {
            let count = PIECE_BYTES.min(total - at);
            assert!(wire.exactly(count) == self.piece(count), "the body differs within {count} bytes from {at}");
        }
    }

    fn send_to(&mut self, wire: &mut Wire, total: usize) {
        for at in (0..total).step_by(PIECE_BYTES) {
            wire.send(self.piece(PIECE_BYTES.min(total - at)));
        }
    }
}

#[test]
fn a_big_response_is_byte_exact() {
    let origin = Origin::once(|mut wire| {
        wire.request();
        wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG_BODY_BYTES}\r\n\r\n"));
        Pattern::new().send_to(&mut wire, BIG_BODY_BYTES);
        wire.request();
        wire.send(ok("next"));
        wire.request();
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.head().field("Content-Length"), Some(BIG_BODY_BYTES.to_string().as_str()));
    Pattern::new().expect_from(&mut client, BIG_BODY_BYTES);
    assert_eq!(client.get("/next").text(), "next");
}

#[test]
fn a_big_request_is_byte_exact() {
    let origin = Origin::once(|mut wire| {
        wire.head();
        Pattern::new().expect_from(&mut wire, BIG_BODY_BYTES);
        wire.send(ok("all of it"));
        wire.request();
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {BIG_BODY_BYTES}\r\n\r\n"));
    Pattern::new().send_to(&mut client, BIG_BODY_BYTES);
    assert_eq!(client.response().text(), "all of it");
}

/// Both bodies at once, each waiting for the other: neither may be held back until the other is done.
#[test]
fn bodies_stream_both_ways_at_once() {
    const TOTAL: usize = 8 << 20;
    let origin = Origin::once(|mut wire| {
        wire.head();
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        loop {
            let piece = wire.chunk();
            wire.send(format!("{:x}\r\n", piece.len()));
            wire.send(&piece);
            wire.send("\r\n");
            if piece.is_empty() {
                break;
            }
        }
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let (mut sent, mut received) = (Pattern::new(), Pattern::new());
    let mut unread = Vec::new();
    for at in (0..TOTAL).step_by(PIECE_BYTES) {
        client.send(format!("{PIECE_BYTES:x}\r\n"));
        client.send(sent.piece(PIECE_BYTES));
        client.send("\r\n");
        if at == 0 {
            assert_eq!(client.head().status(), 200);
        }
        while unread.len() < PIECE_BYTES {
            unread.extend(client.chunk());
        }
        let rest = unread.split_off(PIECE_BYTES);
        assert!(unread == received.piece(PIECE_BYTES), "the echo differs from {at}");
        unread = rest;
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.chunk(), b"");
}

/// A client that does not read stops the origin, not the proxy's memory.
#[test]
fn a_reader_that_stops_holds_the_sender_back() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let origin = Origin::once(move |mut wire| {
        wire.request();
        wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG_BODY_BYTES}\r\n\r\n"));
        for _ in 0..BIG_BODY_BYTES / PIECE_BYTES {
            wire.send([b'x'; PIECE_BYTES]);
            counter.fetch_add(PIECE_BYTES, Ordering::SeqCst);
        }
        wire.request();
    });
    let proxy = Proxy::before(&origin);
    let before = proxy.workers()[0].resident_bytes();
    let mut client = proxy.client();
    client.narrow(64 << 10);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.head();
    let mut last = usize::MAX;
    eventually("the origin is held back", || {
        thread::sleep(Duration::from_millis(100));
        std::mem::replace(&mut last, sent.load(Ordering::SeqCst)) == sent.load(Ordering::SeqCst)
    });
    let grown = proxy.workers()[0].resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "the worker has grown by {grown} bytes");
    assert!(last < BIG_BODY_BYTES, "everything was taken though nobody reads");
    assert_eq!(client.exactly(BIG_BODY_BYTES).len(), BIG_BODY_BYTES);
}

/// RFC 9112 §8: a body cut short must look cut short.
#[test]
fn an_origin_that_breaks_off_is_seen_to_break_off() {
    for head in ["Content-Length: 100\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\na\r\n"] {
        let origin = Origin::once(move |mut wire| {
            wire.request();
            wire.send(format!("HTTP/1.1 200 OK\r\n{head}0123456789"));
        });
        let proxy = Proxy::before(&origin);
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.head().status(), 200);
        let (body, _) = client.rest();
        let body = String::from_utf8_lossy(&body).into_owned();
        assert!(!body.ends_with("0\r\n\r\n"), "{body:?} looks complete");
        assert!(body.len() < 100, "{body:?} looks complete");
    }
}

/// The same by a reset in the middle of a body that ends with the connection.
#[test]
fn a_reset_does_not_end_a_close_delimited_body() {
    let (seen, was_seen) = mpsc::channel();
    let origin = Origin::once(move |mut wire| {
        wire.request();
        wire.send("HTTP/1.1 200 OK\r\n\r\nbeginning");
        receive(&was_seen);
        wire.reset();
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.head();
    assert_eq!(client.chunk(), b"beginning");
    seen.send(()).expect("the origin listens");
    let (rest, _) = client.rest();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "{} looks complete", rest.escape_ascii());
}

/// A client that goes away while the origin works takes the upstream exchange with it.
#[test]
fn a_client_that_leaves_cancels_the_origin() {
    for abandon in [drop::<Wire>, Wire::reset] {
        let (arrived, has_arrived) = mpsc::channel();
        let (cancelled, was_cancelled) = mpsc::channel();
        let origin = Origin::once(move |mut wire| {
            wire.request();
            arrived.send(()).expect("the test listens");
            wire.rest();
            cancelled.send(()).expect("the test listens");
        });
        let proxy = Proxy::before(&origin);
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        receive(&has_arrived);
        abandon(client);
        receive(&was_cancelled);
    }
}

/// The same in the middle of the response, and of the request.
#[test]
fn a_client_that_leaves_midway_cancels_the_origin() {
    let (cancelled, was_cancelled) = mpsc::channel();
    let origin = Origin::start(move |mut wire, _| {
        if wire.head().method() == "GET" {
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            while wire.try_send([b"1000\r\n", &[b'x'; 0x1000][..], b"\r\n"].concat()).is_ok() {}
        } else {
            wire.rest();
        }
        cancelled.send(()).expect("the test listens");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.head();
    client.chunk();
    drop(client);
    receive(&was_cancelled);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nbegin");
    eventually("the body has begun", || origin.received(1).ends_with(b"begin"));
    drop(client);
    receive(&was_cancelled);
}

/// RFC 9112 §9.6: an answer that ends the connection must not be destroyed by a reset for what was still coming.
#[test]
fn a_refused_client_reads_its_answer_before_the_connection_ends() {
    let origin = Origin::answering(ok("hi"));
    let proxy = Proxy::before_with(&origin, "limits: {body_bytes: 1KiB}");
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    for _ in 0..16 {
        // It may stop taking them at some point; until then they must be read, not answered by a reset.
        let _ = client.try_send([b'x'; 16 << 10]);
    }
    assert_eq!(client.response().status(), 413);
    client.finish();
    assert_eq!(client.rest().1, Ending::Closed);
    assert_eq!(origin.connections(), 0);
}

/// A chunked body grows over the limit only on the way: it is cut off there.
#[test]
fn a_chunked_body_over_the_limit_is_refused() {
    let origin = Origin::start(|mut wire, _| {
        wire.rest();
    });
    let proxy = Proxy::before_with(&origin, "limits: {body_bytes: 1KiB}");
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n800\r\n");
    client.send([b'x'; 0x800]);
    assert_eq!(client.response().status(), 413);
    assert!(client.rest().0.is_empty());
}

/// A response's framing is judged as strictly as a request's.
#[test]
fn a_response_that_can_not_be_framed_is_a_bad_gateway() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked, identity\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nBad Name: x\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nFolded: x\r\n  y\0z\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n",
        "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HELLO\r\n\r\n",
        "\0\x01\x02\x03\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ] {
        let origin = Origin::start(move |mut wire, _| {
            wire.request();
            wire.send(answer);
            wire.rest();
        });
        let proxy = Proxy::before(&origin);
        assert_eq!(proxy.client().get("/").status(), 502, "{answer:?}");
    }
}

/// Bytes after a response belong to nobody: the connection is not used again, and nobody receives them.
#[test]
fn bytes_after_a_response_never_reach_another_client() {
    let origin = Origin::start(|mut wire, _| {
        while wire.request().is_some() {
            wire.send(format!("{}{}", ok("mine"), ok("smuggled")));
        }
    });
    let proxy = Proxy::before(&origin);
    for _ in 0..10 {
        let mut client = proxy.client();
        for _ in 0..2 {
            assert_eq!(client.get("/").text(), "mine");
        }
    }
}

/// A cut body is not to look whole, also when its end is the connection's and the client has sent more than was read.
#[test]
fn a_cut_answer_to_http_1_0_is_a_reset() {
    let origin = Origin::start(|mut wire, _| {
        wire.request();
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    // HTTP/1.0 has no chunks: only the connection's end would tell that the body is whole.
    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\nmore");
    let (_, ending) = client.rest();
    assert_eq!(ending, Ending::Reset);
}
