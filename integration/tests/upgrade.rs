//! Tunnels: what follows a 101.

#![forbid(unsafe_code)]

use std::sync::mpsc;

use integration::{Ending, Origin, Proxy, Wire, ok, receive};

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// An origin that switches and then follows `script`, and a client that has seen the switch.
fn tunnel(settings: &str, script: impl FnOnce(Wire) + Send + 'static) -> (Origin, Proxy, Wire) {
    let origin = Origin::once(move |mut wire| {
        let request = wire.request().expect("a request");
        assert_eq!(request.field("Upgrade"), Some("websocket"));
        assert!(request.field("Connection").is_some_and(|value| value.to_ascii_lowercase().contains("upgrade")));
        assert_eq!(request.field("Sec-WebSocket-Version"), Some("13"));
        wire.send(SWITCH);
        script(wire);
    });
    let proxy = Proxy::before_with(&origin, settings);
    let mut client = proxy.client();
    client.send(ASK);
    let switched = client.head();
    assert_eq!((switched.status(), switched.field("Upgrade")), (101, Some("websocket")));
    assert_eq!(switched.field("Sec-WebSocket-Accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    (origin, proxy, client)
}

/// RFC 9110 §7.8: after the switch the bytes are the two ends' own.
#[test]
fn a_tunnel_carries_bytes_both_ways() {
    let (_origin, _proxy, mut client) = tunnel("", |mut wire| {
        for _ in 0..100 {
            assert_eq!(wire.exactly(5), b"\x81\x03abc");
            wire.send(b"\x81\x02hi");
        }
    });
    for _ in 0..100 {
        client.send(b"\x81\x03abc");
        assert_eq!(client.exactly(4), b"\x81\x02hi");
    }
    client.closed();
}

/// Bytes that the client sent with its request, and the origin with its switch, are not lost.
#[test]
fn bytes_that_come_with_the_switch_are_kept() {
    let origin = Origin::once(|mut wire| {
        wire.head();
        wire.send(format!("{SWITCH}first"));
        assert_eq!(wire.exactly(5), b"early");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(format!("{ASK}early"));
    assert_eq!(client.head().status(), 101);
    assert_eq!(client.exactly(5), b"first");
}

/// One direction ends; the other goes on until it ends too.
#[test]
fn a_half_closed_tunnel_goes_on_the_other_way() {
    let (_origin, _proxy, mut client) = tunnel("", |mut wire| {
        assert_eq!(wire.rest(), (b"all I have".to_vec(), Ending::Closed));
        for _ in 0..10 {
            wire.send("answer");
        }
    });
    client.send("all I have");
    client.finish();
    assert_eq!(client.rest(), (b"answer".repeat(10), Ending::Closed));
}

#[test]
fn a_half_close_of_the_origin_is_passed_on() {
    let (_origin, _proxy, mut client) = tunnel("", |mut wire| {
        wire.send("bye");
        wire.finish();
        assert_eq!(wire.rest(), (b"still here".to_vec(), Ending::Closed));
    });
    assert_eq!(client.rest(), (b"bye".to_vec(), Ending::Closed));
    client.send("still here");
    client.finish();
}

#[test]
fn a_silent_tunnel_is_ended() {
    let (ended, has_ended) = mpsc::channel();
    let (_origin, _proxy, mut client) = tunnel("timeouts: {tunnel_idle: 300ms}", move |mut wire| {
        let (bytes, _) = wire.rest();
        assert!(bytes.is_empty());
        ended.send(()).expect("the test listens");
    });
    assert!(client.rest().0.is_empty());
    receive(&has_ended);
}

/// Large amounts both ways at once, which is where splicing and backpressure meet.
#[test]
fn a_tunnel_carries_large_amounts() {
    const TOTAL: usize = 16 << 20;
    const PIECE: usize = 1 << 16;
    let (_origin, _proxy, mut client) = tunnel("", |mut wire| {
        let mut carried = 0;
        while carried < TOTAL {
            let bytes = wire.some();
            assert!(!bytes.is_empty(), "ended after {carried} bytes");
            carried += bytes.len();
            wire.send(bytes);
        }
    });
    for at in 0..TOTAL / PIECE {
        let piece: Vec<u8> = (0..PIECE).map(|n| (n * 31 + at * 7).to_le_bytes()[0]).collect();
        client.send(&piece);
        assert!(client.exactly(PIECE) == piece, "differs in piece {at}");
    }
    client.closed();
}

/// RFC 9110 §7.8: the origin may decline, and then it is an ordinary exchange.
#[test]
fn a_declined_upgrade_is_an_ordinary_answer() {
    let origin = Origin::answering(ok("no"));
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(ASK);
    assert_eq!(client.response().text(), "no");
    assert_eq!(client.get("/").text(), "no");
}

/// RFC 9110 §15.2.2: nobody may switch who was not asked, nor to something else.
#[test]
fn a_switch_that_nobody_asked_for_is_a_bad_gateway() {
    for ask in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n",
    ] {
        let origin = Origin::once(|mut wire| {
            wire.request();
            wire.send(SWITCH);
            wire.rest();
        });
        let proxy = Proxy::before(&origin);
        let mut client = proxy.client();
        client.send(ask);
        assert_eq!(client.response().status(), 502);
    }
}

/// RFC 9110 §7.8: an Upgrade field in an HTTP/1.0 request is ignored.
#[test]
fn http_1_0_can_not_upgrade() {
    let origin = Origin::answering(ok("plain"));
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(ASK.replace("HTTP/1.1", "HTTP/1.0"));
    assert_eq!(client.response().text(), "plain");
    assert_eq!(origin.first_request().field("Upgrade"), None);
}
