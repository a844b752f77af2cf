//! What the proxy adds to a message, takes out of it, and believes of it.

#![forbid(unsafe_code)]

use integration::{Message, Origin, Proxy, Wire, ok};

/// Sends a request with `fields` and returns what the origin received.
#[track_caller]
fn forwarded(proxy: &Proxy, origin: &Origin, fields: &str) -> Message {
    let before = origin.requests().len();
    let mut client = proxy.client();
    client.send(format!("GET /path HTTP/1.1\r\nHost: Shop.test:81\r\n{fields}\r\n"));
    assert_eq!(client.response().status(), 200);
    origin.requests().into_iter().nth(before).expect("a request at the origin")
}

/// RFC 9110 §7.6.1: what is between two neighbours stays between them.
#[test]
fn hop_by_hop_fields_of_a_request_are_removed() {
    let origin = Origin::answering(ok("hi"));
    let proxy = Proxy::before(&origin);
    let request = forwarded(
        &proxy,
        &origin,
        "Connection: keep-alive, X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
         Proxy-Authorization: Basic x\r\nTE: gzip\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nX-Public: 2\r\n",
    );
    for name in ["X-Private", "Keep-Alive", "Proxy-Connection", "TE", "Upgrade"] {
        assert_eq!(request.field(name), None, "{name}");
    }
    assert_eq!(request.field("X-Public"), Some("2"));
    let connection = request.field("Connection").unwrap_or("").to_ascii_lowercase();
    assert!(!connection.contains("x-private"), "{connection}");
}

/// The same for a response.
#[test]
fn hop_by_hop_fields_of_a_response_are_removed() {
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: close\r\nX-Public: 2\r\n\r\nhi",
    );
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    let response = client.get("/");
    for name in ["X-Private", "Keep-Alive", "Proxy-Connection"] {
        assert_eq!(response.field(name), None, "{name}");
    }
    assert_eq!(response.field("X-Public"), Some("2"));
    assert_eq!(client.get("/").text(), "hi");
}

/// RFC 9110 §7.6.1: `Connection` can not be used to take away a field that the request's meaning hangs on.
#[test]
fn connection_can_not_name_framing_or_routing_fields() {
    let origin = Origin::answering(ok("hi"));
    let proxy = Proxy::before(&origin);
    let request = forwarded(&proxy, &origin, "Connection: Host, X-Forwarded-For, X-Request-Id, Via\r\n");
    for name in ["Host", "X-Forwarded-For", "X-Request-Id", "Via"] {
        assert!(request.field(name).is_some(), "{name} is gone");
    }
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nConnection: Content-Length\r\nContent-Length: 4\r\n\r\nbody");
    let status = client.response().status();
    assert!(matches!(status, 200 | 400), "{status}");
    assert!(origin.requests().iter().all(|request| request.head.method() == "GET" || request.body == b"body"));
}

/// A client that nobody vouches for speaks for itself alone.
#[test]
fn an_untrusted_client_is_not_believed() {
    let origin = Origin::answering(ok("hi"));
    let proxy = Proxy::before(&origin);
    let request = forwarded(
        &proxy,
        &origin,
        "X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.test\r\nX-Forwarded-Port: 443\r\n\
         Forwarded: for=9.9.9.9\r\nX-Request-Id: chosen-by-the-client\r\n",
    );
    assert_eq!(request.field("X-Forwarded-For"), Some("127.0.0.1"));
    assert_eq!(request.field("X-Forwarded-Proto"), Some("http"));
    assert_eq!(request.field("X-Forwarded-Host"), Some("Shop.test:81"));
    assert_eq!(request.field("X-Forwarded-Port"), Some(proxy.address().port().to_string().as_str()));
    assert!(!request.field("Forwarded").unwrap_or("").contains("9.9.9.9"));
    assert_eq!(request.field("Via"), Some("1.1 sluice"));
    let id = request.field("X-Request-Id").expect("an id");
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert_eq!(request.field("Host"), Some("Shop.test:81"));
}

/// A trusted proxy speaks for the client before it.
#[test]
fn a_trusted_proxy_is_believed() {
    let origin = Origin::answering(ok("hi"));
    let proxy = Proxy::before_with(&origin, "trusted_proxies: ['127.0.0.0/8', '10.0.0.0/8']");
    let request = forwarded(
        &proxy,
        &origin,
        "X-Forwarded-For: 6.6.6.6, 9.9.9.9, 10.1.1.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n\
         X-Forwarded-Port: 443\r\nX-Request-Id: from-the-edge-7\r\nVia: 1.1 edge\r\n",
    );
    assert_eq!(request.field("X-Forwarded-For"), Some("6.6.6.6, 9.9.9.9, 10.1.1.1, 127.0.0.1"));
    assert_eq!(request.field("X-Forwarded-Proto"), Some("https"));
    assert_eq!(request.field("X-Forwarded-Host"), Some("shop.example"));
    assert_eq!(request.field("X-Forwarded-Port"), Some("443"));
    assert_eq!(request.field("X-Request-Id"), Some("from-the-edge-7"));
    let via = request.head.all("Via").join(", ");
    assert_eq!(via, "1.1 edge, 1.1 sluice");
}

/// The client is the last one in the chain that nobody vouches for.
#[test]
fn the_client_address_is_the_rightmost_untrusted() {
    let proxy = Proxy::start(
        "trusted_proxies: ['127.0.0.0/8', '10.0.0.0/8']
routes: [{match: {path: {prefix: /}}, respond: {status: 200, body: '$remote_addr'}}]",
    );
    let mut client = proxy.client();
    for (fields, address) in [
        ("", "127.0.0.1"),
        ("X-Forwarded-For: 9.9.9.9\r\n", "9.9.9.9"),
        ("X-Forwarded-For: 6.6.6.6, 9.9.9.9, 10.1.1.1\r\n", "9.9.9.9"),
        ("X-Forwarded-For: 10.2.2.2, 10.1.1.1\r\n", "10.2.2.2"),
    ] {
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        assert_eq!(client.response().text(), address, "{fields:?}");
    }
}

/// Two requests never share an id, and the client can quote the one it was given when things go wrong.
#[test]
fn request_ids_are_unique() {
    let origin = Origin::answering(ok("hi"));
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for _ in 0..50 {
        client.get("/");
    }
    let requests = origin.requests();
    let mut ids: Vec<_> = requests.iter().filter_map(|request| request.field("X-Request-Id")).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 50);
}

/// An error that the proxy answers itself, in the form that the client prefers, with an id to quote.
#[test]
fn errors_come_in_the_clients_preferred_form() {
    let proxy = Proxy::start(&format!(
        "upstreams: {{app: {{servers: [{{address: '127.0.0.1:{}'}}]}}}}
routes: [{{match: {{path: {{prefix: /}}}}, upstream: app}}]",
        integration::free_port()
    ));
    let mut client = proxy.client();
    for (accept, kind) in [
        ("", "text/plain"),
        ("Accept: */*\r\n", "text/plain"),
        ("Accept: application/json\r\n", "application/json"),
        ("Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\n", "text/html"),
        ("Accept: text/html;q=0.1, application/json;q=0.9\r\n", "application/json"),
    ] {
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{accept}\r\n"));
        let response = client.response();
        assert_eq!(response.status(), 502);
        let content_type = response.field("Content-Type").expect("a type");
        assert!(content_type.starts_with(kind), "{accept:?}: {content_type}");
        let text = response.text();
        let words = text.split(|c: char| !c.is_ascii_hexdigit());
        assert!(words.clone().any(|word| word.len() == 32), "{accept:?}: no id in {text}");
        if kind == "application/json" {
            serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
        }
    }
}

/// A configuration with a listener that demands a PROXY protocol header, and answers with the addresses it believes.
const PROXY_IN: &str = "listeners: [{address: '127.0.0.1:{port}', proxy_protocol: true}]
routes: [{match: {path: {prefix: /}}, respond: {status: 200, body: '$remote_addr $remote_port'}}]";

#[test]
fn a_proxy_protocol_header_names_the_client() {
    let proxy = Proxy::start(PROXY_IN);
    let version_2 = |command_and_family: &[u8], addresses: &[u8]| {
        let length = u16::try_from(addresses.len()).expect("short").to_be_bytes();
        [b"\r\n\r\n\0\r\nQUIT\n", command_and_family, &length, addresses].concat()
    };
    let six = [&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7][..], &[0; 16], &[0x10, 0, 0, 80]].concat();
    let with_note = [&[10, 0, 0, 8, 10, 0, 0, 9, 0x10, 1, 0, 80][..], &[0x04, 0, 2, 0, 0]].concat();
    for (header, expected) in [
        (b"PROXY TCP4 10.0.0.7 10.0.0.9 4096 80\r\n".to_vec(), "10.0.0.7 4096"),
        (b"PROXY TCP6 2001:db8::7 ::1 4096 80\r\n".to_vec(), "2001:db8::7 4096"),
        (version_2(&[0x21, 0x11], &[10, 0, 0, 7, 10, 0, 0, 9, 0x10, 0, 0, 80]), "10.0.0.7 4096"),
        (version_2(&[0x21, 0x21], &six), "2001:db8::7 4096"),
        (version_2(&[0x21, 0x11], &with_note), "10.0.0.8 4097"),
    ] {
        let mut client = proxy.client();
        client.send(&header);
        assert_eq!(client.get("/").text(), expected, "{}", header.escape_ascii());
        assert_eq!(client.get("/").text(), expected, "{}", header.escape_ascii());
    }
    for header in [&b"PROXY UNKNOWN\r\n"[..], &version_2(&[0x20, 0x00], &[])] {
        let mut client = proxy.client();
        client.send(header);
        let address = client.local_address();
        assert_eq!(client.get("/").text(), format!("{} {}", address.ip(), address.port()));
    }
}

#[test]
fn a_listener_that_demands_the_proxy_protocol_refuses_what_lacks_it() {
    let proxy = Proxy::start(PROXY_IN);
    for beginning in [
        &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
        b"PROXY TCP4 10.0.0.7 10.0.0.9 4096\r\n",
        b"PROXY TCP4 10.0.0.777 10.0.0.9 4096 80\r\n",
        b"PROXY TCP4 10.0.0.7 10.0.0.9 4096 80\nGET",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\x00\x0c............",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x02..",
    ] {
        let mut client = proxy.client();
        client.send(beginning);
        client.finish();
        let answer = client.rest().0;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{}", answer.escape_ascii());
    }
}

/// What opens a connection to the origin; the requests follow it, and the connection serves one client.
#[test]
fn a_proxy_protocol_header_goes_to_the_origin() {
    for version in ["v1", "v2"] {
        let (heard, hears) = std::sync::mpsc::channel();
        let origin = Origin::start(move |mut wire: Wire, _| {
            let header = if version == "v1" {
                let mut line = Vec::new();
                while !line.ends_with(b"\r\n") {
                    line.extend(wire.exactly(1));
                }
                line
            } else {
                wire.exactly(16 + 12)
            };
            heard.send(header).expect("the test listens");
            while wire.request().is_some() {
                wire.send(ok("hi"));
            }
        });
        let proxy = Proxy::start(&format!(
            "upstreams: {{app: {{servers: [{{address: '{}'}}], proxy_protocol: {version}}}}}
routes: [{{match: {{path: {{prefix: /}}}}, upstream: app}}]",
            origin.address()
        ));
        for _ in 0..2 {
            let mut client = proxy.client();
            assert_eq!(client.get("/").text(), "hi");
            let (from, to) = (client.local_address().port(), proxy.address().port());
            let header = integration::receive(&hears);
            if version == "v1" {
                let line = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} {to}\r\n");
                assert_eq!(header, line.as_bytes());
            } else {
                let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
                let addresses = [&[127, 0, 0, 1, 127, 0, 0, 1][..], &ports].concat();
                assert_eq!(header, [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &addresses].concat());
            }
        }
    }
}

/// RFC 9110 §7.6.2: an OPTIONS goes as many hops as it says.
#[test]
fn an_options_request_goes_no_further_than_it_may() {
    let origin = Origin::answering(ok("through"));
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("OPTIONS /a HTTP/1.1\r\nHost: a\r\nMax-Forwards: 2\r\n\r\n");
    assert_eq!(client.response().text(), "through");
    client.send("OPTIONS /b HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n");
    let answer = client.response();
    assert_eq!((answer.status(), answer.text().as_str()), (200, ""));
    assert!(answer.field("Allow").expect("the methods").contains("GET"));
    let requests = origin.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert_eq!(requests[0].field("Max-Forwards"), Some("1"));
}
