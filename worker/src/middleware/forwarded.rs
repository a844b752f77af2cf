//! Who the client is, and what servers are told of it.
//!
//! A peer in `trusted_proxies` is believed: what it sent is passed on, with this hop added. What anyone else sent is
//! replaced by what is known here. `X-Forwarded-For` goes before `Forwarded` (RFC 7239), because a proxy that writes
//! only the former often lets a client's own `Forwarded` through; it is extended where there is one, never begun.

#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};

use conf::value::IpNet;

use crate::message::head::{Known, Request};
use crate::proto::h1::list_elements;
use crate::proto::hop::write_field;

/// Whether a peer is in one of the networks; `None` is the peer of a unix socket.
pub(crate) fn is_trusted(networks: &[IpNet], peer: Option<IpAddr>) -> bool {
    networks.iter().any(|network| match peer {
        Some(ip) => network.contains(ip),
        None => *network == IpNet::Unix,
    })
}

/// The client for whom a trusted peer speaks: of the addresses it passes on the rightmost that is not trusted itself, or
/// the leftmost when all are. Nothing when there is none that can be read: then the client is the peer.
pub(crate) fn client(networks: &[IpNet], request: Request<'_>) -> Option<IpAddr> {
    let fields = &request.head.fields;
    let known = if fields.has(Known::XForwardedFor) { Known::XForwardedFor } else { Known::Forwarded };
    fields.all(known, request.bytes).flat_map(list_elements).fold(None, |client, element| {
        let node = if known == Known::Forwarded { for_parameter(element)? } else { element };
        // For what stands left of something unreadable no one vouches, so that it ends all that was found so far.
        let ip = address(node)?;
        client.filter(|_| is_trusted(networks, Some(ip))).or(Some(ip))
    })
}

/// The way that a request came, as text that is made once a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hop<'a> {
    /// The peer's IP address in its canonical form; empty for a unix socket.
    pub(crate) peer: &'a [u8],
    /// Whether it [`is_trusted`].
    pub(crate) is_trusted: bool,
    /// `http` or `https`.
    pub(crate) scheme: &'a [u8],
    /// The request's Host, valid; empty when it has none.
    pub(crate) host: &'a [u8],
    /// The listener's port; empty for a unix socket.
    pub(crate) port: &'a [u8],
}

impl Hop<'_> {
    /// Appends the lines of all forwarding fields, in place of the request's own: `X-Forwarded-For`, `-Proto`, `-Host`
    /// and `-Port`, `Forwarded`, `Via` and `X-Request-Id`.
    pub(crate) fn write(&self, request: Request<'_>, request_id: &[u8], out: &mut Vec<u8>) {
        match self.is_trusted {
            true => self.extend(request, out),
            false => self.begin(out),
        }
        // RFC 9110 section 7.6.3: the version is that of the message received.
        let via: &[u8] = if request.head.minor == 0 { b"1.0 sluice" } else { b"1.1 sluice" };
        write_list(b"Via", request.head.fields.all(Known::Via, request.bytes), Some(via), out);
        write_field(b"X-Request-Id", request_id, out);
    }

    /// What is known here alone.
    fn begin(&self, out: &mut Vec<u8>) {
        write_field(b"X-Forwarded-For", if self.peer.is_empty() { b"unknown" } else { self.peer }, out);
        write_field(b"X-Forwarded-Proto", self.scheme, out);
        for (name, own) in [(&b"X-Forwarded-Host"[..], self.host), (b"X-Forwarded-Port", self.port)] {
            if !own.is_empty() {
                write_field(name, own, out);
            }
        }
    }

    /// What a trusted peer says, and this hop.
    fn extend(&self, request: Request<'_>, out: &mut Vec<u8>) {
        let sent = |known| request.head.fields.all(known, request.bytes).filter(|value| !value.is_empty());
        let is_said = |known| sent(known).next().is_some();

        // A peer without an address adds nothing to a list, but a list of one must not be empty.
        let peer: Option<&[u8]> = match self.peer {
            b"" if is_said(Known::XForwardedFor) => None,
            b"" => Some(b"unknown"),
            peer => Some(peer),
        };
        write_list(b"X-Forwarded-For", sent(Known::XForwardedFor), peer, out);
        for (name, known, own) in [
            (&b"X-Forwarded-Proto"[..], Known::XForwardedProto, self.scheme),
            (b"X-Forwarded-Host", Known::XForwardedHost, self.host),
            (b"X-Forwarded-Port", Known::XForwardedPort, self.port),
        ] {
            write_list(name, sent(known), (!is_said(known)).then_some(own), out);
        }
        if is_said(Known::Forwarded) {
            self.write_forwarded(sent(Known::Forwarded), out);
        }
    }

    /// RFC 7239 section 4: an element a hop. A Host has nothing in it that a quoted string would have to escape.
    fn write_forwarded<'v>(&self, sent: impl Iterator<Item = &'v [u8]>, out: &mut Vec<u8>) {
        write_list(b"Forwarded", sent, None, out);
        out.truncate(out.len() - b"\r\n".len());
        let (open, close): (&[u8], &[u8]) = match self.peer {
            peer if peer.contains(&b':') => (b"\"[", b"]\""),
            _ => (b"", b""),
        };
        let peer = if self.peer.is_empty() { b"unknown" } else { self.peer };
        for piece in [b", for=", open, peer, close, b";proto=", self.scheme] {
            out.extend_from_slice(piece);
        }
        if !self.host.is_empty() {
            for piece in [b";host=\"", self.host, b"\""] {
                out.extend_from_slice(piece);
            }
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// Appends a line with all values, or none when they are empty.
fn write_list<'v>(name: &[u8], values: impl Iterator<Item = &'v [u8]>, last: Option<&'v [u8]>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(name);
    let mut separator: &[u8] = b": ";
    for value in values.chain(last).filter(|value| !value.is_empty()) {
        out.extend_from_slice(separator);
        out.extend_from_slice(value);
        separator = b", ";
    }
    match separator {
        b": " => out.truncate(start),
        _ => out.extend_from_slice(b"\r\n"),
    }
}

/// The value of `for` in an element of Forwarded.
fn for_parameter(element: &[u8]) -> Option<&[u8]> {
    let value = element.split(|&byte| byte == b';').find_map(|pair| {
        let (name, value) = pair.trim_ascii().split_at_checked(b"for=".len())?;
        name.eq_ignore_ascii_case(b"for=").then_some(value)
    })?;
    Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
}

/// An address, perhaps with a port, which is not wanted. IPv6 may be in brackets.
fn address(node: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(node).ok()?;
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let ip = bare.parse().or_else(|_| text.parse().map(|address: SocketAddr| address.ip()));
    Some(ip.ok()?.to_canonical())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::message::head::{RequestHead, Span};

    const NETWORKS: [IpNet; 2] =
        [IpNet::Cidr { address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), prefix: 8 }, IpNet::Unix];

    fn with_request<T>(fields: &str, then: impl FnOnce(Request<'_>) -> T) -> T {
        let bytes = fields.as_bytes();
        let mut head = RequestHead { minor: 1, ..RequestHead::default() };
        for line in fields.lines() {
            let (name, value) = line.split_once(": ").unwrap();
            let known = Known::of(name.as_bytes());
            head.fields.push(Span::of(name.as_bytes(), bytes), Span::of(value.as_bytes(), bytes), known);
        }
        then(Request { head: &head, bytes })
    }

    #[test]
    fn trust() {
        for (peer, trusted) in [
            (Some("10.1.2.3"), true),
            (Some("::ffff:10.1.2.3"), true),
            (Some("11.1.2.3"), false),
            (Some("::1"), false),
            (None, true),
        ] {
            assert_eq!(is_trusted(&NETWORKS, peer.map(|ip| ip.parse().unwrap())), trusted, "{peer:?}");
        }
        assert!(!is_trusted(&NETWORKS[..1], None));
    }

    #[test]
    fn the_client_is_the_rightmost_whom_no_one_trusts() {
        for (fields, expected) in [
            ("Host: h", None),
            ("X-Forwarded-For: 1.1.1.1", Some("1.1.1.1")),
            ("X-Forwarded-For: 6.6.6.6, 1.1.1.1, 10.0.0.1", Some("1.1.1.1")),
            ("X-Forwarded-For: 6.6.6.6\nX-Forwarded-For: 1.1.1.1\nX-Forwarded-For: 10.0.0.1,,", Some("1.1.1.1")),
            ("X-Forwarded-For: 10.0.0.2, 10.0.0.1", Some("10.0.0.2")),
            ("X-Forwarded-For: 1.1.1.1, unknown, 10.0.0.1", Some("10.0.0.1")),
            ("X-Forwarded-For: 1.1.1.1, \"", None),
            ("X-Forwarded-For: 1.1.1.1:80", Some("1.1.1.1")),
            ("X-Forwarded-For: 2001:db8::1", Some("2001:db8::1")),
            ("X-Forwarded-For: [2001:db8::1]", Some("2001:db8::1")),
            ("X-Forwarded-For: [2001:db8::1]:80, ::ffff:10.0.0.1", Some("2001:db8::1")),
            ("Forwarded: for=6.6.6.6;proto=http, proto=https; For=\"1.1.1.1:8\", for=10.0.0.1", Some("1.1.1.1")),
            ("Forwarded: for=\"[2001:db8::1]:80\"", Some("2001:db8::1")),
            ("Forwarded: for=1.1.1.1, for=_hidden", None),
            ("Forwarded: for=1.1.1.1, by=10.0.0.1", None),
            ("Forwarded: for=6.6.6.6\nX-Forwarded-For: 1.1.1.1", Some("1.1.1.1")),
        ] {
            let found = with_request(fields, |request| client(&NETWORKS, request));
            assert_eq!(found, expected.map(|ip| ip.parse().unwrap()), "{fields}");
        }
    }

    #[test]
    fn what_servers_are_told() {
        let hop = Hop { peer: b"10.0.0.1", is_trusted: true, scheme: b"http", host: b"h:8080", port: b"8080" };
        let stranger = Hop { peer: b"::1", is_trusted: false, host: b"", ..hop };
        let local = Hop { peer: b"", port: b"", ..hop };
        let own = "X-Forwarded-Proto: http\nX-Forwarded-Host: h:8080\nX-Forwarded-Port: 8080\nVia: 1.1 sluice\n";
        let all = "X-Forwarded-For: 1.1.1.1\nX-Forwarded-For: 2.2.2.2\nX-Forwarded-Proto: https\n\
                   X-Forwarded-Host: example.com\nX-Forwarded-Port: 443\nForwarded: for=1.1.1.1\nVia: 1.0 a\n";
        let kept = "X-Forwarded-Proto: https\nX-Forwarded-Host: example.com\nX-Forwarded-Port: 443\n";
        let table = [
            (hop, "Host: h:8080", format!("X-Forwarded-For: 10.0.0.1\n{own}")),
            (
                hop,
                all,
                format!(
                    "X-Forwarded-For: 1.1.1.1, 2.2.2.2, 10.0.0.1\n{kept}\
                     Forwarded: for=1.1.1.1, for=10.0.0.1;proto=http;host=\"h:8080\"\nVia: 1.0 a, 1.1 sluice\n"
                ),
            ),
            (
                stranger,
                all,
                "X-Forwarded-For: ::1\nX-Forwarded-Proto: http\nX-Forwarded-Port: 8080\nVia: 1.0 a, 1.1 sluice\n"
                    .into(),
            ),
            (
                Hop { is_trusted: true, ..stranger },
                "Forwarded: for=a\nX-Forwarded-For: ",
                "X-Forwarded-For: ::1\nX-Forwarded-Proto: http\nX-Forwarded-Port: 8080\n\
                 Forwarded: for=a, for=\"[::1]\";proto=http\nVia: 1.1 sluice\n"
                    .into(),
            ),
            (
                local,
                all,
                format!(
                    "X-Forwarded-For: 1.1.1.1, 2.2.2.2\n{kept}\
                     Forwarded: for=1.1.1.1, for=unknown;proto=http;host=\"h:8080\"\nVia: 1.0 a, 1.1 sluice\n"
                ),
            ),
            (
                local,
                "Host: h",
                "X-Forwarded-For: unknown\nX-Forwarded-Proto: http\nX-Forwarded-Host: h:8080\nVia: 1.1 sluice\n".into(),
            ),
        ];
        for (hop, fields, expected) in table {
            let mut out = Vec::new();
            with_request(fields, |request| hop.write(request, b"id", &mut out));
            let expected = format!("{expected}X-Request-Id: id\n").replace('\n', "\r\n");
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{fields}");
        }
    }
}
