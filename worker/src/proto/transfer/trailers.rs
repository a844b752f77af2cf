//! The trailer section of a chunked body (RFC 9112 §7.1.2).

#![forbid(unsafe_code)]

use crate::message::head::Known;
use crate::proto::h1::is_token_byte;

/// The lines of a section, without its empty line, that a recipient may be given as trailers: none that frames, routes
/// or controls (RFC 9110 §6.5.1).
///
/// # Errors
/// The rule that a line breaks.
pub(super) fn kept(section: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut kept = Vec::new();
    for line in section.split_inclusive(|&byte| byte == b'\n') {
        let name = field_name(line).ok_or("A trailer field breaks the grammar.")?;
        if Known::of(name) == Known::Other && !is_forbidden(name) {
            kept.extend_from_slice(line);
        }
    }
    Ok(kept)
}

/// Where the section ends, its empty line included; `None` when that has not come.
pub(super) fn section_end(input: &[u8]) -> Result<Option<usize>, &'static str> {
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', input) {
        if end == start || input[end - 1] != b'\r' {
            return Err("A trailer line ends with LF alone.");
        }
        if end - start == 1 {
            return Ok(Some(end + 1));
        }
        start = end + 1;
    }
    Ok(None)
}

/// The name of a field line that is well-formed, its CR LF included.
fn field_name(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\r\n")?;
    let colon = memchr::memchr(b':', line)?;
    let (name, value) = line.split_at(colon);
    let named = !name.is_empty() && name.iter().all(|&byte| is_token_byte(byte));
    let clean = value.iter().all(|&byte| byte == b'\t' || byte >= b' ' && byte != 0x7f);
    (named && clean).then_some(name)
}

fn is_forbidden(name: &[u8]) -> bool {
    const FORBIDDEN: [&[u8]; 9] = [
        b"age",
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-range",
        b"content-type",
        b"location",
        b"proxy-authorization",
        b"set-cookie",
    ];
    FORBIDDEN.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden))
}
