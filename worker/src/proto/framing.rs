//! Where a message's body ends (RFC 9112 §6.3). Whatever could be read in two ways is refused.

use super::h1::list_elements;
use crate::message::fault::{Fault, Kind, Stage};
use crate::message::head::{BodyLength, Fields, Known};

/// The length of a request's body.
///
/// # Errors
/// A [`Fault`] of the client's head: malformed, or a transfer coding other than chunked (RFC 9112 §6.1: 501).
pub(crate) fn of_request(minor: u8, fields: &Fields, bytes: &[u8]) -> Result<BodyLength, Fault> {
    let bad = |rule| Fault::client(Stage::Head, Kind::Malformed(rule));
    if fields.has(Known::TransferEncoding) {
        if minor == 0 {
            return Err(bad("Transfer-Encoding came with HTTP/1.0, which does not have it."));
        }
        if fields.has(Known::ContentLength) {
            return Err(bad("Both Transfer-Encoding and Content-Length are given."));
        }
        return match transfer_coding(fields, bytes) {
            Coding::Chunked => Ok(BodyLength::Chunked),
            Coding::Unknown => {
                Err(Fault::client(Stage::Head, Kind::Unsupported("The only transfer coding taken here is chunked.")))
            }
            Coding::Malformed => Err(bad("Transfer-Encoding is malformed.")),
        };
    }
    match content_length(fields, bytes) {
        Ok(None | Some(0)) => Ok(BodyLength::None),
        Ok(Some(length)) => Ok(BodyLength::Exactly(length)),
        Err(()) => Err(bad("Content-Length is not one number.")),
    }
}

/// The length of a response's body. `to_head` says that the request's method was HEAD.
///
/// # Errors
/// A [`Fault`] of the server's head.
pub(crate) fn of_response(
    status: u16,
    minor: u8,
    to_head: bool,
    fields: &Fields,
    bytes: &[u8],
) -> Result<BodyLength, Fault> {
    let bad = |rule| Fault::server(Stage::Head, Kind::Malformed(rule));
    let has_coding = fields.has(Known::TransferEncoding);
    if has_coding && fields.has(Known::ContentLength) {
        return Err(bad("Both Transfer-Encoding and Content-Length are given."));
    }
    let length = content_length(fields, bytes).map_err(|()| bad("Content-Length is not one number."))?;
    if to_head || status < 200 || matches!(status, 204 | 304) {
        return Ok(BodyLength::None);
    }
    if has_coding {
        return match transfer_coding(fields, bytes) {
            Coding::Chunked if minor == 1 => Ok(BodyLength::Chunked),
            Coding::Chunked => Err(bad("Transfer-Encoding came with HTTP/1.0, which does not have it.")),
            Coding::Unknown | Coding::Malformed => Err(bad("The transfer coding is not chunked.")),
        };
    }
    Ok(match length {
        Some(0) => BodyLength::None,
        Some(length) => BodyLength::Exactly(length),
        None => BodyLength::UntilClose,
    })
}

enum Coding {
    Chunked,
    Unknown,
    Malformed,
}

/// RFC 9112 §6.1: chunked comes last and once. Codings before it would have to be passed on by an intermediary that
/// understands them; none is understood here. A list over several fields is one that others may join differently.
fn transfer_coding(fields: &Fields, bytes: &[u8]) -> Coding {
    let mut values = fields.all(Known::TransferEncoding, bytes);
    let (Some(value), None) = (values.next(), values.next()) else { return Coding::Malformed };
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    if is_chunked(value) {
        return Coding::Chunked;
    }
    let codings = list_elements(value);
    let chunked_at = codings.clone().position(is_chunked);
    let count = codings.clone().count();
    let well_formed = codings.clone().all(|coding| coding.first().is_some_and(u8::is_ascii_alphabetic));
    match chunked_at {
        // Once, and last, after a coding that this proxy does not know.
        Some(at) if at + 1 == count && count > 1 && well_formed => Coding::Unknown,
        None if count > 0 && well_formed => Coding::Unknown,
        _ => Coding::Malformed,
    }
}

/// RFC 9110 §8.6: digits alone. A list of equal numbers could be taken for one; it is a mark of trouble and refused.
fn content_length(fields: &Fields, bytes: &[u8]) -> Result<Option<u64>, ()> {
    let mut values = fields.all(Known::ContentLength, bytes);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(());
    }
    decimal(value).map(Some).ok_or(())
}

/// A number of digits alone, below 2^63: what others hold in a signed integer.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 {
        return None;
    }
    let number = text
        .iter()
        .try_fold(0u64, |number, byte| byte.is_ascii_digit().then(|| number * 10 + u64::from(byte - b'0')))?;
    (number < 1 << 63).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::head::Span;

    fn fields(head: &str) -> Fields {
        let mut fields = Fields::default();
        for line in head.lines() {
            let (name, value) = line.split_once(": ").expect("a field");
            let span = |part: &str| Span::of(part.as_bytes(), head.as_bytes());
            fields.push(span(name), span(value), Known::of(name.as_bytes()));
        }
        fields
    }

    #[test]
    fn requests() {
        for (head, expected) in [
            ("", Ok(BodyLength::None)),
            ("Content-Length: 0", Ok(BodyLength::None)),
            ("Content-Length: 12", Ok(BodyLength::Exactly(12))),
            ("Content-Length: 0012", Ok(BodyLength::Exactly(12))),
            ("Content-Length: 9223372036854775807", Ok(BodyLength::Exactly(i64::MAX as u64))),
            ("Content-Length: 9223372036854775808", Err(400)),
            ("Content-Length: 99999999999999999999", Err(400)),
            ("Content-Length: +1", Err(400)),
            ("Content-Length: 0x1", Err(400)),
            ("Content-Length: 1 1", Err(400)),
            ("Content-Length: 5, 5", Err(400)),
            ("Content-Length: 5\nContent-Length: 5", Err(400)),
            ("Content-Length: 5\nContent-Length: 6", Err(400)),
            ("Transfer-Encoding: chunked", Ok(BodyLength::Chunked)),
            ("Transfer-Encoding: CHUNKED", Ok(BodyLength::Chunked)),
            ("Transfer-Encoding: gzip, chunked", Err(501)),
            ("Transfer-Encoding: gzip", Err(501)),
            ("Transfer-Encoding: identity", Err(501)),
            ("Transfer-Encoding: chunked, gzip", Err(400)),
            ("Transfer-Encoding: chunked, chunked", Err(400)),
            ("Transfer-Encoding: chunked,", Err(400)),
            ("Transfer-Encoding: \u{b}chunked", Err(400)),
            ("Transfer-Encoding: chunked\nTransfer-Encoding: chunked", Err(400)),
            ("Transfer-Encoding: chunked\nContent-Length: 3", Err(400)),
        ] {
            let found = of_request(1, &fields(head), head.as_bytes()).map_err(Fault::status);
            assert_eq!(found, expected, "{head}");
        }
        let chunked = "Transfer-Encoding: chunked";
        assert!(of_request(0, &fields(chunked), chunked.as_bytes()).is_err());
    }

    #[test]
    fn responses() {
        for (status, minor, to_head, head, expected) in [
            (200, 1, false, "", Some(BodyLength::UntilClose)),
            (200, 1, false, "Content-Length: 7", Some(BodyLength::Exactly(7))),
            (200, 1, true, "Content-Length: 7", Some(BodyLength::None)),
            (204, 1, false, "Content-Length: 7", Some(BodyLength::None)),
            (304, 1, false, "Content-Length: 7", Some(BodyLength::None)),
            (103, 1, false, "", Some(BodyLength::None)),
            (200, 1, false, "Transfer-Encoding: chunked", Some(BodyLength::Chunked)),
            (200, 0, false, "Transfer-Encoding: chunked", None),
            (200, 1, false, "Transfer-Encoding: gzip", None),
            (200, 1, false, "Content-Length: x", None),
            (200, 1, false, "Content-Length: 7\nTransfer-Encoding: chunked", None),
        ] {
            let found = of_response(status, minor, to_head, &fields(head), head.as_bytes()).ok();
            assert_eq!(found, expected, "{status} {head}");
        }
    }
}
