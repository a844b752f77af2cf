//! Requests that must not get through, from the grammar and the rules of RFC 9110 and RFC 9112.
//!
//! Each is refused with the status that its fault deserves, the connection ends, and the origin never hears of it.

#![forbid(unsafe_code)]

use integration::{Message, Origin, Proxy, eventually, ok};

/// A request and the status that it must be refused with.
type Case = (&'static str, &'static [u8], u16);

/// RFC 9112 §3: the request line.
const REQUEST_LINES: &[Case] = &[
    ("no version, as in HTTP/0.9", b"GET /\r\nHost: a\r\n\r\n", 400),
    ("version of another protocol", b"GET / HTCPCP/1.0\r\nHost: a\r\n\r\n", 400),
    ("version in lower case (§2.3)", b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
    ("version without minor", b"GET / HTTP/1\r\nHost: a\r\n\r\n", 400),
    ("version with too many digits", b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
    ("a major version from the future", b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
    ("a major version from the past", b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
    ("two blanks after the method", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("two blanks before the version", b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("a tab for a blank", b"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("a blank before the method", b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("a blank after the version", b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    ("a target with a blank", b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("a target that is no path", b"GET a/b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("a target with a fragment", b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("a target with a control byte", b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("a target with NUL", b"GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("a target with DEL", b"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("a broken percent-encoding", b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("an asterisk for GET (§3.2.4)", b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("an authority for GET (§3.2.3)", b"GET a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 400),
    ("a method that is no token", b"GE(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("no method", b" / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("a bare LF after the line (§2.2)", b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    ("a bare CR in the line", b"GET /\rx HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("a TLS hello", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", 400),
    ("CONNECT", b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405),
    ("TRACE", b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
];

/// RFC 9110 §5 and RFC 9112 §5: fields.
const FIELDS: &[Case] = &[
    ("a blank before the colon (§5.1)", b"GET / HTTP/1.1\r\nHost: a\r\nX-A : b\r\n\r\n", 400),
    ("a tab before the colon", b"GET / HTTP/1.1\r\nHost: a\r\nX-A\t: b\r\n\r\n", 400),
    ("a line without a colon", b"GET / HTTP/1.1\r\nHost: a\r\nX-A\r\n\r\n", 400),
    ("a field without a name", b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400),
    ("a name that is no token", b"GET / HTTP/1.1\r\nHost: a\r\nX@A: b\r\n\r\n", 400),
    ("a name with a byte over 127", b"GET / HTTP/1.1\r\nHost: a\r\nX\xc3A: b\r\n\r\n", 400),
    ("a folded line (§5.2)", b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\r\n c\r\n\r\n", 400),
    ("a first line that is folded", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    ("a fold of only a tab", b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\r\n\t\r\n\r\n", 400),
    ("NUL in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\0c\r\n\r\n", 400),
    ("a bare CR in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\rc\r\n\r\n", 400),
    ("a control byte in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\x08\r\n\r\n", 400),
    ("a bare LF between fields", b"GET / HTTP/1.1\r\nHost: a\nX-A: b\r\n\r\n", 400),
    ("a bare LF at the end", b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
];

/// RFC 9112 §3.2: Host.
const HOSTS: &[Case] = &[
    ("none", b"GET / HTTP/1.1\r\n\r\n", 400),
    ("two that agree", b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    ("two that differ", b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", 400),
    ("a list", b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    ("with a path", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    ("with user information", b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    ("with a port that is no number", b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
    ("with a port out of range", b"GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", 400),
    ("with an open bracket", b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
    ("with a blank in it", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    ("an absolute target that names another (§3.2.2)", b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("an absolute target without a host", b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
];

/// RFC 9112 §6: what decides where the body ends.
const FRAMINGS: &[Case] = &[
    (
        "length and coding together (§6.1)",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("two lengths that differ", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    ("a list of lengths that differ", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\nab", 400),
    ("a negative length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
    ("a length with a sign", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na", 400),
    ("a hexadecimal length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\na", 400),
    ("an empty length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400),
    ("a length with a blank in it", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1 2\r\n\r\na", 400),
    ("a length of 2^64", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n", 400),
    ("a coding that nobody knows", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: cow\r\n\r\n", 501),
    ("a coding after chunked", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", 501),
    ("chunked twice", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 501),
    (
        "chunked twice in two fields",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        501,
    ),
    ("a coding before chunked", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
    ("an empty coding", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n", 501),
    ("a coding in HTTP/1.0", b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("chunked behind a vertical tab", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", 501),
    ("quoted chunked", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n", 501),
];

/// RFC 9112 §7.1: chunks. All follow the same head, so only what comes after it stands here.
const CHUNKS: &[(&str, &[u8])] = &[
    ("a size that is no number", b"x\r\n\r\n"),
    ("no size", b"\r\n\r\n"),
    ("a signed size", b"+1\r\na\r\n0\r\n\r\n"),
    ("a size with 0x", b"0x1\r\na\r\n0\r\n\r\n"),
    ("a size over 2^64", b"10000000000000000\r\na\r\n0\r\n\r\n"),
    ("a size with an underscore", b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n"),
    ("a blank before the size", b" 1\r\na\r\n0\r\n\r\n"),
    ("a size line that ends with LF", b"1\na\r\n0\r\n\r\n"),
    ("a bare CR in an extension", b"1;a\rb\r\na\r\n0\r\n\r\n"),
    ("a bare LF in an extension", b"1;a\nb\r\na\r\n0\r\n\r\n"),
    ("NUL in an extension", b"1;a=\0\r\na\r\n0\r\n\r\n"),
    ("data longer than its size", b"1\r\nab\r\n0\r\n\r\n"),
    ("data that ends with LF", b"1\r\na\n0\r\n\r\n"),
    ("data that ends with CR alone", b"1\r\na\r0\r\n\r\n"),
    ("a last chunk that ends with LF", b"1\r\na\r\n0\n\n"),
    ("a trailer without a colon", b"0\r\nX-A\r\n\r\n"),
    ("a folded trailer", b"0\r\nX-A: b\r\n c\r\n\r\n"),
    ("a trailer with a blank before its colon", b"0\r\nX-A : b\r\n\r\n"),
    ("a trailer line that ends with LF", b"0\r\nX-A: b\n\r\n"),
];

/// A head for the cases of [`CHUNKS`].
const CHUNKED_HEAD: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Follows each case, so that a proxy which misjudges its end would pass this on.
const FOLLOWER: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Fails unless each case is refused, the connection closed after it, and the origin told nothing.
#[track_caller]
fn refuse(cases: &[Case]) {
    let origin = Origin::answering(ok("through"));
    let proxy = Proxy::before(&origin);
    let mut wrong = Vec::new();
    for (what, request, status) in cases {
        let mut client = proxy.client();
        client.send([*request, FOLLOWER].concat());
        let answer = client.response();
        // Where §6.1 asks for 501 (no such coding), §6.3 asks for 400 (chunked is not the last): either will do.
        if answer.status() == *status || (*status == 501 && answer.status() == 400) {
            eventually(&format!("the end after {what}"), || client.has_news());
            assert_eq!(client.rest().0, b"", "{what}");
        } else {
            wrong.push(format!("{what}: {}", answer.head.line));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let reached: Vec<Message> = origin.requests();
    assert!(reached.is_empty(), "these reached the origin: {reached:?}");
    assert_eq!(proxy.client().get("/").text(), "through");
}

#[test]
fn malformed_request_lines_are_refused() {
    refuse(REQUEST_LINES);
}

#[test]
fn malformed_fields_are_refused() {
    refuse(FIELDS);
}

#[test]
fn ambiguous_hosts_are_refused() {
    refuse(HOSTS);
}

#[test]
fn ambiguous_framing_is_refused() {
    refuse(FRAMINGS);
}

/// The head of such a request may be with the origin already; then its exchange is broken off there, never completed.
#[test]
fn malformed_chunks_are_refused() {
    let origin = Origin::start(|mut wire, _| {
        wire.rest();
    });
    let proxy = Proxy::before(&origin);
    for (what, body) in CHUNKS {
        let mut client = proxy.client();
        client.send([CHUNKED_HEAD, body, FOLLOWER].concat());
        let answer = client.response();
        assert_eq!(answer.status(), 400, "{what}");
        assert_eq!(client.rest().0, b"", "{what}");
    }
    let reached: Vec<Message> = origin.requests();
    assert!(reached.is_empty(), "these reached the origin: {reached:?}");
}

/// What is odd and yet allowed gets through, as what it is.
#[test]
fn odd_requests_that_are_allowed_get_through() {
    let origin = Origin::answering(ok("through"));
    let proxy = Proxy::before(&origin);
    for (what, request, target) in [
        ("an empty line before the request line (§2.2)", "\r\nGET /a HTTP/1.1\r\nHost: a\r\n\r\n", "/a"),
        ("an absolute target (§3.2.2)", "GET http://a/x?y HTTP/1.1\r\nHost: a\r\n\r\n", "/x?y"),
        ("an absolute target without a path", "GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", "/"),
        ("an asterisk for OPTIONS (§3.2.4)", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "*"),
        ("blanks around a value", "GET /b HTTP/1.1\r\nHost:  \t a \t\r\n\r\n", "/b"),
        ("a method of one's own", "BREW /pot HTTP/1.1\r\nHost: a\r\n\r\n", "/pot"),
        ("a byte over 127 in a value (RFC 9110 §5.5)", "GET /c HTTP/1.1\r\nHost: a\r\nX: \u{e9}\r\n\r\n", "/c"),
        ("an IPv6 host", "GET /d HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "/d"),
        ("a length with zeros before it", "POST /e HTTP/1.1\r\nHost: a\r\nContent-Length: 001\r\n\r\nx", "/e"),
        (
            "chunked in capitals (§7)",
            "POST /f HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n",
            "/f",
        ),
    ] {
        let before = origin.requests().len();
        let mut client = proxy.client();
        client.send(request);
        assert_eq!(client.response().text(), "through", "{what}");
        let requests = origin.requests();
        assert_eq!(requests.len(), before + 1, "{what}");
        assert!(requests.iter().any(|request| request.head.target() == target), "{what}");
    }
}

/// RFC 6585 §5, RFC 9110 §15.5.14: what is too large is refused by its own status, and costs no more than its limit.
#[test]
fn what_is_too_large_is_refused() {
    let origin = Origin::answering(ok("through"));
    let limits = "limits: {head_bytes: 2KiB, header_count: 10, body_bytes: 1KiB}";
    let proxy = Proxy::before_with(&origin, limits);
    let many_fields: String = (0..11).map(|n| format!("X-{n}: v\r\n")).collect();
    for (what, request, status) in [
        ("a long target", format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(4096)), 414),
        ("a long field", format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(4096)), 431),
        ("a head that never ends", format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(4096)), 431),
        ("many fields", format!("GET / HTTP/1.1\r\nHost: a\r\n{many_fields}\r\n"), 431),
        ("a long body", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1025\r\n\r\n".to_owned(), 413),
    ] {
        let mut client = proxy.client();
        client.send(request);
        let answered = client.response().status();
        // A target that fills the head is either: its limit is the head's.
        assert!(answered == status || (status == 414 && answered == 431), "{what}: {answered}");
        assert_eq!(client.rest().0, b"", "{what}");
    }
    assert_eq!(origin.connections(), 0);
}
