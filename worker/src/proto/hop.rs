//! Heads as they leave: what belongs to one hop is taken out, what the next hop needs is put in (RFC 9110 §7.6).

use super::h1::list_elements;
use crate::message::decimal;
use crate::message::head::{BodyLength, Field, Fields, Known, Request, Response};

/// Appends a request's head for a server, without the empty line, so that more fields can follow.
///
/// Left out are fields of the hop and those that [`is_forwarding`] says are written anew. `host` is sent as Host.
pub(crate) fn write_request(request: Request<'_>, target: &[u8], host: &[u8], out: &mut Vec<u8>) {
    let head = request.head;
    out.extend_from_slice(request.method());
    out.push(b' ');
    out.extend_from_slice(target);
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    out.extend_from_slice(host);
    out.extend_from_slice(b"\r\n");
    let hops = request.max_forwards();
    let keep = |known| match known {
        Known::Host => false,
        Known::MaxForwards => hops.is_none(),
        Known::Expect => head.expects_continue,
        known => !is_of_hop(known) && !is_forwarding(known),
    };
    write_fields(&head.fields, request.bytes, head.bytes, head.names_fields, keep, out);
    if head.body == BodyLength::None && head.fields.has(Known::ContentLength) {
        // RFC 9110 §8.6: some servers ask for a length even of nothing.
        write_number(b"Content-Length", 0, out);
    }
    if let Some(hops) = hops {
        write_number(b"Max-Forwards", hops.saturating_sub(1), out);
    }
    write_length(head.body, out);
    if head.upgrade {
        write_upgrade(&head.fields, request.bytes, out);
    } else if head
        .fields
        .all(Known::Te, request.bytes)
        .flat_map(list_elements)
        .any(|coding| coding.eq_ignore_ascii_case(b"trailers"))
    {
        out.extend_from_slice(b"Connection: TE\r\nTE: trailers\r\n");
    }
}

/// Whose connection the response is written to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client {
    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub(crate) minor: u8,
    /// Whether the connection goes on after this response.
    pub(crate) keep_alive: bool,
}

/// Appends a server's response head for a client, its empty line included. `length` is how the body will be framed;
/// `date` is sent when the server gave none (RFC 9110 §6.6.1).
pub(crate) fn write_response(
    response: Response<'_>,
    length: BodyLength,
    client: Client,
    date: &[u8],
    out: &mut Vec<u8>,
) {
    let head = response.head;
    write_status_line(head.status, head.reason.within(response.bytes), out);
    let bodyless = head.body == BodyLength::None && head.status >= 200 && head.status != 204;
    // A response without a body may still say how long the one to a GET would be.
    let keep = |known| known == Known::ContentLength && bodyless || !is_of_hop(known);
    write_fields(&head.fields, response.bytes, head.bytes, head.names_fields, keep, out);
    if head.status == 101 {
        write_upgrade(&head.fields, response.bytes, out);
    } else if head.status >= 200 {
        if !head.fields.has(Known::Date) {
            write_field(b"Date", date, out);
        }
        write_length(length, out);
        write_persistence(client, out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends `HTTP/1.1 status reason`.
pub(crate) fn write_status_line(status: u16, reason: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    for place in [100, 10, 1] {
        out.push(b'0' + (status / place % 10) as u8);
    }
    out.push(b' ');
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
}

/// Appends the field that frames a body of `length`; one that ends with the connection has none.
pub(crate) fn write_length(length: BodyLength, out: &mut Vec<u8>) {
    match length {
        BodyLength::None | BodyLength::UntilClose => {}
        BodyLength::Exactly(count) => write_number(b"Content-Length", count, out),
        BodyLength::Chunked => write_field(b"Transfer-Encoding", b"chunked", out),
    }
}

/// Appends what tells the client whether its connection goes on, where its version does not say so already.
pub(crate) fn write_persistence(client: Client, out: &mut Vec<u8>) {
    match client {
        Client { keep_alive: false, .. } => write_field(b"Connection", b"close", out),
        Client { minor: 0, .. } => write_field(b"Connection", b"keep-alive", out),
        _ => {}
    }
}

/// Appends a field line.
pub(crate) fn write_field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Appends a field line with a decimal value.
pub(crate) fn write_number(name: &[u8], number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    decimal::push(number, out);
    out.extend_from_slice(b"\r\n");
}

/// Fields that concern one connection only, and those that frame a message: they are written anew for the next hop.
fn is_of_hop(known: Known) -> bool {
    use Known::*;
    matches!(
        known,
        Connection | ContentLength | Http2Settings | KeepAlive | ProxyConnection | Te | TransferEncoding | Upgrade
    )
}

/// Fields that say whom a request comes from: written anew by the middleware that knows whom to believe.
fn is_forwarding(known: Known) -> bool {
    use Known::*;
    matches!(
        known,
        Lookalike | Forwarded | Via | XForwardedFor | XForwardedHost | XForwardedPort | XForwardedProto | XRequestId
    )
}

/// Appends the lines of the kept fields as they came. Kept lines that are neighbours go in one piece.
fn write_fields(
    fields: &Fields,
    bytes: &[u8],
    head_bytes: usize,
    names_fields: bool,
    keep: impl Fn(Known) -> bool,
    out: &mut Vec<u8>,
) {
    // What frames a message is not a field of the hop because someone says so.
    let may_go = |field: &Field| names_fields && field.known != Known::ContentLength && is_named(fields, bytes, field);
    let is_kept = |field: &Field| keep(field.known) && !may_go(field);
    let mut run_start = None;
    for field in fields.iter() {
        match (run_start, is_kept(field)) {
            (None, true) => run_start = Some(field.name.start()),
            (Some(start), false) => {
                out.extend_from_slice(&bytes[start..field.name.start()]);
                run_start = None;
            }
            _ => {}
        }
    }
    if let Some(start) = run_start {
        out.extend_from_slice(&bytes[start..head_bytes - 2]);
    }
}

/// Whether a Connection field names this one (RFC 9110 §7.6.1).
fn is_named(fields: &Fields, bytes: &[u8], field: &Field) -> bool {
    let name = field.name.within(bytes);
    let mut options = fields.all(Known::Connection, bytes).flat_map(list_elements);
    options.any(|option| option.eq_ignore_ascii_case(name))
}

fn write_upgrade(fields: &Fields, bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"Connection: upgrade\r\n");
    for protocols in fields.all(Known::Upgrade, bytes) {
        write_field(b"Upgrade", protocols, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::head::{RequestHead, ResponseHead};
    use crate::proto::h1::{HeadLimits, parse_request, parse_response};

    const LIMITS: HeadLimits = HeadLimits { bytes: 16384, fields: 100 };

    #[test]
    fn fields_of_the_hop_stay_behind() {
        for (fields, kept) in [
            ("A: 1\r\nB: 2\r\n", "A: 1\r\nB: 2\r\n"),
            ("A: 1\r\nConnection: b, close\r\nB: 2\r\nC: 3\r\n", "A: 1\r\nC: 3\r\n"),
            ("Keep-Alive: 5\r\nA: 1\r\nProxy-Connection: x\r\n", "A: 1\r\n"),
            ("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nA: 1\r\n", "A: 1\r\n"),
            ("Upgrade: websocket\r\nA: 1\r\n", "A: 1\r\n"),
            ("Connection: upgrade\r\nUpgrade: websocket\r\n", "Connection: upgrade\r\nUpgrade: websocket\r\n"),
            ("X-Forwarded-For: evil\r\nVia: x\r\nA: 1\r\n", "A: 1\r\n"),
            ("TE: trailers, gzip\r\n", "Connection: TE\r\nTE: trailers\r\n"),
            ("Transfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\n"),
            ("content-length: 007\r\n", "Content-Length: 7\r\n"),
            ("Expect: 100-continue\r\n", "Expect: 100-continue\r\n"),
            ("Content-Length: 0\r\n", "Content-Length: 0\r\n"),
            ("X_Forwarded_For: evil\r\nX-Real_IP: 1\r\n", "X-Real_IP: 1\r\n"),
        ] {
            let bytes = format!("GET /x HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
            let mut head = RequestHead::default();
            parse_request(bytes.as_bytes(), LIMITS, &mut head).expect(&bytes);
            let mut out = Vec::new();
            write_request(Request { head: &head, bytes: bytes.as_bytes() }, b"/x", b"h", &mut out);
            assert_eq!(String::from_utf8_lossy(&out), format!("GET /x HTTP/1.1\r\nHost: h\r\n{kept}"), "{fields}");
        }
    }

    #[test]
    fn responses_are_framed_for_the_client() {
        let keep = Client { minor: 1, keep_alive: true };
        for (response, to_head, length, client, expected) in [
            (
                "HTTP/1.1 200 OK\r\nDate: x\r\nContent-Length: 5\r\n\r\n",
                false,
                BodyLength::Exactly(5),
                keep,
                "HTTP/1.1 200 OK\r\nDate: x\r\nContent-Length: 5\r\n\r\n",
            ),
            (
                "HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
                false,
                BodyLength::UntilClose,
                Client { minor: 0, keep_alive: false },
                "HTTP/1.1 200 Fine\r\nDate: now\r\nConnection: close\r\n\r\n",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDate: x\r\n\r\n",
                true,
                BodyLength::None,
                Client { minor: 0, keep_alive: true },
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDate: x\r\nConnection: keep-alive\r\n\r\n",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: content-length\r\nDate: x\r\n\r\n",
                false,
                BodyLength::None,
                keep,
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nDate: x\r\n\r\n",
            ),
            (
                "HTTP/1.1 204 None\r\nContent-Length: 5\r\nDate: x\r\n\r\n",
                false,
                BodyLength::None,
                keep,
                "HTTP/1.1 204 None\r\nDate: x\r\n\r\n",
            ),
            (
                "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n",
                false,
                BodyLength::None,
                keep,
                "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n",
            ),
        ] {
            let mut head = ResponseHead::default();
            parse_response(response.as_bytes(), LIMITS, to_head, &mut head).expect(response);
            let mut out = Vec::new();
            write_response(Response { head: &head, bytes: response.as_bytes() }, length, client, b"now", &mut out);
            assert_eq!(String::from_utf8_lossy(&out), expected);
        }
    }
}
