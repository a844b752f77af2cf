//! The parsers of what strangers send, for a fuzzer: each takes any bytes and must neither panic nor hang.

#![forbid(unsafe_code)]

use crate::message::head::{RequestHead, ResponseHead};
use crate::pipeline::Desk;
use crate::proto::chunked::{Decoder, Step};
use crate::proto::h1::{HeadLimits, Parsed, parse_request as request, parse_response};
use crate::proto::proxy_protocol::{Progress, decode};

const LIMITS: HeadLimits = HeadLimits { bytes: 16 * 1024, fields: 100 };

/// A request's head, its target and its host.
pub fn request_head(bytes: &[u8]) {
    let mut head = RequestHead::default();
    if request(bytes, LIMITS, &mut head) == Ok(Parsed::Complete) {
        assert!(head.bytes <= bytes.len());
        let _ = Desk::new().place(crate::message::head::Request { head: &head, bytes });
    }
}

/// A response's head, as an answer to GET and to HEAD.
pub fn response_head(bytes: &[u8]) {
    let mut head = ResponseHead::default();
    for to_head in [false, true] {
        if parse_response(bytes, LIMITS, to_head, &mut head) == Ok(Parsed::Complete) {
            assert!(head.bytes <= bytes.len());
        }
    }
}

/// A body in the chunked coding. However it is cut in two, the same payload comes out.
pub fn chunked(bytes: &[u8]) {
    let whole = decode_chunked(&[bytes]);
    let (front, back) = bytes.split_at(bytes.len() / 2);
    assert_eq!(decode_chunked(&[front, back]), whole);
}

/// A PROXY protocol header.
pub fn proxy_protocol(bytes: &[u8]) {
    if let Progress::Done { length, .. } = decode(bytes) {
        assert!(length <= bytes.len());
    }
}

/// Payload, and whether the last chunk was reached; `None` when the coding is broken.
fn decode_chunked(pieces: &[&[u8]]) -> Option<(Vec<u8>, bool)> {
    let (mut decoder, mut input, mut payload) = (Decoder::default(), Vec::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match decoder.step(&input).ok()? {
                Step::Data(count) => payload.extend(input.drain(..count)),
                Step::Framing(count) => drop(input.drain(..count)),
                Step::Trailers => return Some((payload, true)),
                Step::More => break,
            }
        }
    }
    Some((payload, false))
}
