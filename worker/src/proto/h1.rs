//! Parses HTTP/1 heads: httparse for the grammar, and on top of it what the RFC asks and httparse lets pass.

use std::mem::MaybeUninit;

use httparse::{Error, Header, Status};

use super::framing;
use crate::message::fault::{Fault, Kind, Stage};
use crate::message::head::{BodyLength, Fields, Known, Request, RequestHead, Response, ResponseHead, Span};

/// The most fields that a head can have; the configured limit is lower.
pub(crate) const HEADER_COUNT_MAX: usize = 512;

/// What is wrong with a line that only some recipients take for one.
const BARE_LF: &str = "A line ends with LF alone; RFC 9112 asks for CR LF.";

/// How large a head may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadLimits {
    /// Bytes, the empty line included.
    pub(crate) bytes: usize,
    /// Fields; at most [`HEADER_COUNT_MAX`].
    pub(crate) fields: usize,
}

/// Whether a head has come as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parsed {
    Complete,
    /// More bytes are needed; so far nothing is wrong.
    Partial,
}

/// Decides when a growing head is worth another parse, so that one which comes a byte at a time costs no more than a
/// few parses of the whole.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    seen: usize,
    next_attempt: usize,
}

impl Attempts {
    /// Whether to parse `bytes` now. Every head is tried when its end has come, and before that whenever it has doubled,
    /// so that a malformed one is not waited for.
    pub(crate) fn should_parse(&mut self, bytes: &[u8]) -> bool {
        // The empty line may have begun in what was seen before.
        let news = &bytes[self.seen.saturating_sub(2)..];
        let due = bytes.len() >= self.next_attempt || has_empty_line(news);
        self.seen = bytes.len();
        if due {
            self.next_attempt = bytes.len() * 2;
        }
        due
    }
}

/// Whether a line's end is followed by another, with or without a CR.
fn has_empty_line(bytes: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', bytes).any(|at| matches!(bytes[at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]))
}

/// Parses a request's head from the front of `bytes` into `head`.
///
/// # Errors
/// A [`Fault`] of the client's head.
pub(crate) fn parse_request(bytes: &[u8], limits: HeadLimits, head: &mut RequestHead) -> Result<Parsed, Fault> {
    let mut fields = [const { MaybeUninit::<Header<'_>>::uninit() }; HEADER_COUNT_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let status = parsed.parse_with_uninit_headers(bytes, &mut fields[..limits.fields.min(HEADER_COUNT_MAX)]);
    head.clear();
    let length = match status {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => {
            return if bytes.len() >= limits.bytes { Err(request_too_large(bytes)) } else { check_start(bytes) };
        }
        Err(error) => return Err(request_error(error, bytes)),
    };
    if length > limits.bytes {
        return Err(request_too_large(bytes));
    }
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(malformed("The request line is incomplete."));
    };
    head.method = Span::of(method.as_bytes(), bytes);
    head.target = Span::of(target.as_bytes(), bytes);
    head.minor = minor;
    head.bytes = length;
    // RFC 9112 §2.2: empty lines before a request are passed over.
    if bytes[..head.method.start()].chunks(2).any(|line| line != b"\r\n") {
        return Err(malformed(BARE_LF));
    }
    index(parsed.headers, &bytes[..length], &mut head.fields).map_err(malformed)?;
    head.body = framing::of_request(minor, &head.fields, bytes)?;
    let connection = ConnectionOptions::of(&head.fields, bytes);
    head.keep_alive = if minor == 0 { connection.keep_alive && !connection.close } else { !connection.close };
    head.names_fields = connection.others;
    // A body before the change of protocol would leave two readings of where it begins.
    head.upgrade =
        minor == 1 && connection.upgrade && head.body == BodyLength::None && offers_upgrade(&head.fields, bytes);
    head.expects_continue = match head.fields.all(Known::Expect, bytes).next() {
        // An HTTP/1.0 client can't be meant by it (RFC 9110 §10.1.1).
        Some(_) if minor == 0 => false,
        Some(value) if value.eq_ignore_ascii_case(b"100-continue") => true,
        Some(_) => return Err(Fault::client(Stage::Head, Kind::Expectation)),
        None => false,
    };
    Ok(Parsed::Complete)
}

/// Parses a response's head from the front of `bytes` into `head`. `to_head` says that the request's method was HEAD.
///
/// # Errors
/// A [`Fault`] of the server's head.
pub(crate) fn parse_response(
    bytes: &[u8],
    limits: HeadLimits,
    to_head: bool,
    head: &mut ResponseHead,
) -> Result<Parsed, Fault> {
    let bad = |rule| Fault::server(Stage::Head, Kind::Malformed(rule));
    let mut fields = [const { MaybeUninit::<Header<'_>>::uninit() }; HEADER_COUNT_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let fields = &mut fields[..limits.fields.min(HEADER_COUNT_MAX)];
    let status = config.parse_response_with_uninit_headers(&mut parsed, bytes, fields);
    head.fields.clear();
    let length = match status {
        Ok(Status::Complete(length)) if length <= limits.bytes => length,
        Ok(Status::Partial) if bytes.len() < limits.bytes => return Ok(Parsed::Partial),
        Ok(_) | Err(Error::TooManyHeaders) => return Err(Fault::server(Stage::Head, Kind::TooLarge)),
        Err(_) => return Err(bad("The response's head breaks the grammar.")),
    };
    let (Some(status), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(bad("The status line is incomplete."));
    };
    // httparse skips empty lines before the status line; no server has a reason to send them.
    if !bytes.starts_with(b"HTTP/") || !(100..600).contains(&status) {
        return Err(bad("The status line breaks the grammar."));
    }
    head.status = status;
    head.minor = minor;
    head.reason = parsed.reason.map_or(Span::default(), |reason| Span::of(reason.as_bytes(), bytes));
    head.bytes = length;
    index(parsed.headers, &bytes[..length], &mut head.fields).map_err(bad)?;
    head.body = framing::of_response(status, minor, to_head, &head.fields, bytes)?;
    let connection = ConnectionOptions::of(&head.fields, bytes);
    head.names_fields = connection.others;
    let wants_keep = if minor == 0 { connection.keep_alive } else { true };
    head.keep_alive = wants_keep && !connection.close && head.body != BodyLength::UntilClose;
    Ok(Parsed::Complete)
}

/// Copies httparse's fields into the index, checking what it does not.
fn index(parsed: &[Header<'_>], head: &[u8], fields: &mut Fields) -> Result<(), &'static str> {
    // RFC 9112 §2.2 lets a recipient take a bare LF for a line's end; two parsers that differ in it can be played
    // against each other, so none is taken here. A line ends where a field begins, or the head.
    let mut ends_with_crlf = head.ends_with(b"\r\n\r\n");
    for field in parsed {
        let name = field.name.as_bytes();
        let name_at = Span::of(name, head);
        // A line came before it, that of the request or of the status.
        ends_with_crlf &= head.get(name_at.start().wrapping_sub(2)) == Some(&b'\r');
        fields.push(name_at, Span::of(field.value, head), Known::of(name));
    }
    if !ends_with_crlf {
        return Err(BARE_LF);
    }
    Ok(())
}

/// Whether `byte` may stand in a token (RFC 9110 §5.6.2).
pub(crate) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What the Connection fields say (RFC 9110 §7.6.1).
#[derive(Default)]
struct ConnectionOptions {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    others: bool,
}

impl ConnectionOptions {
    fn of(fields: &Fields, bytes: &[u8]) -> ConnectionOptions {
        let mut options = ConnectionOptions::default();
        for option in fields.all(Known::Connection, bytes).flat_map(list_elements) {
            match option {
                _ if option.eq_ignore_ascii_case(b"close") => options.close = true,
                _ if option.eq_ignore_ascii_case(b"keep-alive") => options.keep_alive = true,
                _ if option.eq_ignore_ascii_case(b"upgrade") => options.upgrade = true,
                _ => options.others = true,
            }
        }
        options
    }
}

/// The elements of a comma-separated list, without the white space around them (RFC 9110 §5.6.1).
pub(crate) fn list_elements(value: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// Whether Upgrade names a protocol that can be passed on. `h2c` is not: RFC 9113 dropped it, and a server that takes
/// it would speak HTTP/2 unseen by this proxy.
fn offers_upgrade(fields: &Fields, bytes: &[u8]) -> bool {
    let mut protocols = fields.all(Known::Upgrade, bytes).flat_map(list_elements).peekable();
    protocols.peek().is_some() && protocols.all(|protocol| !protocol.eq_ignore_ascii_case(b"h2c"))
}

/// Whether a 101 names protocols that the request offered, and no other (RFC 9110 §7.8).
pub(crate) fn switches_as_asked(request: Request<'_>, response: Response<'_>) -> bool {
    let mut chosen = response.head.fields.all(Known::Upgrade, response.bytes).flat_map(list_elements).peekable();
    let offered = request.head.fields.all(Known::Upgrade, request.bytes).flat_map(list_elements);
    let is_offered = |protocol: &[u8]| offered.clone().any(|known| known.eq_ignore_ascii_case(protocol));
    request.head.upgrade && chosen.peek().is_some() && chosen.all(is_offered)
}

#[cold]
fn malformed(rule: &'static str) -> Fault {
    Fault::client(Stage::Head, Kind::Malformed(rule))
}

/// The first bytes of an incomplete head: an empty line before it is let pass (RFC 9112 §2.2), a bare LF is not.
fn check_start(bytes: &[u8]) -> Result<Parsed, Fault> {
    if bytes.first() == Some(&b'\n') {
        return Err(malformed(BARE_LF));
    }
    Ok(Parsed::Partial)
}

#[cold]
fn request_too_large(bytes: &[u8]) -> Fault {
    let kind = if memchr::memchr(b'\n', bytes).is_none() { Kind::TargetTooLong } else { Kind::TooLarge };
    Fault::client(Stage::Head, kind)
}

#[cold]
fn request_error(error: Error, bytes: &[u8]) -> Fault {
    match error {
        Error::TooManyHeaders => Fault::client(Stage::Head, Kind::TooLarge),
        Error::Version if names_other_version(bytes) => Fault::client(Stage::Head, Kind::Version),
        Error::Version => malformed("The request line has no HTTP version."),
        Error::Token => malformed("The request line breaks the grammar."),
        Error::NewLine => malformed("A line of the head does not end with CR LF."),
        Error::HeaderName => malformed("A field's name breaks the grammar, or white space stands around it."),
        Error::HeaderValue => malformed("A field's value has a control character."),
        Error::Status => malformed("The request line breaks the grammar."),
    }
}

/// Whether the request line ends with a well-formed version, which then is one that is not spoken here.
fn names_other_version(bytes: &[u8]) -> bool {
    let line = bytes.split(|&byte| byte == b'\n').find(|line| line.len() > 1).unwrap_or_default().trim_ascii_end();
    match line.rsplit(|&byte| byte == b' ').next() {
        Some(b"HTTP/1.0" | b"HTTP/1.1") => false,
        Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]) => major.is_ascii_digit() && minor.is_ascii_digit(),
        _ => false,
    }
}
