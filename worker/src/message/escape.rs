//! Text made safe for where it goes: a line of a log, a JSON string, HTML, a header field.
//!
//! Each function works in place on the tail of a buffer, from `start`, because a value is appended before anyone knows
//! whether it needs escaping. Most don't, and cost one pass that compares.

#![forbid(unsafe_code)]

/// nginx's default: quotes, backslashes and whatever isn't printable ASCII become `\xXX`.
pub(crate) fn log(out: &mut Vec<u8>, start: usize) {
    let plain = |byte: u8| (b' '..0x7f).contains(&byte) & (byte != b'"') & (byte != b'\\');
    if !all(&out[start..], plain) {
        expand(out, start, |byte| {
            if plain(byte) { Piece::plain(byte) } else { Piece::hexadecimal(b"\\x", byte, b"0123456789ABCDEF") }
        });
    }
}

/// The inside of a JSON string (RFC 8259 section 7). Bytes that aren't UTF-8 are read as Latin-1, so that none is lost.
pub(crate) fn json(out: &mut Vec<u8>, start: usize) {
    let plain = |byte: u8| (byte >= b' ') & (byte != b'"') & (byte != b'\\');
    if all(&out[start..], |byte| plain(byte) & byte.is_ascii()) {
        return;
    }
    let is_utf8 = std::str::from_utf8(&out[start..]).is_ok();
    expand(out, start, |byte| match byte {
        b'"' => Piece::new(b"\\\""),
        b'\\' => Piece::new(b"\\\\"),
        b'\n' => Piece::new(b"\\n"),
        b'\r' => Piece::new(b"\\r"),
        b'\t' => Piece::new(b"\\t"),
        _ if plain(byte) && (byte.is_ascii() || is_utf8) => Piece::plain(byte),
        _ => Piece::hexadecimal(b"\\u00", byte, b"0123456789abcdef"),
    });
}

/// Text or a quoted attribute of HTML.
pub(crate) fn html(out: &mut Vec<u8>, start: usize) {
    expand(out, start, |byte| match byte {
        b'&' => Piece::new(b"&amp;"),
        b'<' => Piece::new(b"&lt;"),
        b'>' => Piece::new(b"&gt;"),
        b'"' => Piece::new(b"&quot;"),
        b'\'' => Piece::new(b"&#39;"),
        _ => Piece::plain(byte),
    });
}

/// A field value: whatever could end it becomes a space (RFC 9110 section 5.5), and so do the other control characters.
pub(crate) fn field(out: &mut [u8], start: usize) {
    for byte in &mut out[start..] {
        if byte.is_ascii_control() && *byte != b'\t' {
            *byte = b' ';
        }
    }
}

/// What one byte becomes.
struct Piece {
    bytes: [u8; 6],
    length: usize,
}

impl Piece {
    fn new(text: &[u8]) -> Piece {
        let mut bytes = [0; 6];
        bytes[..text.len()].copy_from_slice(text);
        Piece { bytes, length: text.len() }
    }

    fn plain(byte: u8) -> Piece {
        Piece { bytes: [byte, 0, 0, 0, 0, 0], length: 1 }
    }

    fn hexadecimal(prefix: &[u8], byte: u8, digits: &[u8; 16]) -> Piece {
        let mut piece = Piece::new(prefix);
        piece.bytes[prefix.len()] = digits[usize::from(byte >> 4)];
        piece.bytes[prefix.len() + 1] = digits[usize::from(byte & 15)];
        piece.length += 2;
        piece
    }
}

/// Looks at every byte even after one failed, which lets the compiler compare many at a time.
fn all(bytes: &[u8], plain: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(true, |all, &byte| all & plain(byte))
}

/// Works from the end, where the room is, so that what isn't read yet is never overwritten.
fn expand(out: &mut Vec<u8>, start: usize, piece: impl Fn(u8) -> Piece) {
    let mut read = out.len();
    let mut write = start + out[start..].iter().map(|&byte| piece(byte).length).sum::<usize>();
    out.resize(write, 0);
    // From here down to `start` every byte stands for itself and where it is.
    while write > read {
        read -= 1;
        let Piece { bytes, length } = piece(out[read]);
        write -= length;
        out[write..write + length].copy_from_slice(&bytes[..length]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(escape: impl Fn(&mut Vec<u8>, usize), text: &[u8]) -> String {
        let mut out = b"\"<".to_vec();
        out.extend(text);
        escape(&mut out, 2);
        String::from_utf8(out).unwrap().split_off(2)
    }

    #[test]
    fn table() {
        for (text, in_log, in_json, in_html) in [
            (&b""[..], "", "", ""),
            (b"plain ~", "plain ~", "plain ~", "plain ~"),
            (b"\"a\\", "\\x22a\\x5C", "\\\"a\\\\", "&quot;a\\"),
            (b"a\r\n\tb", "a\\x0D\\x0A\\x09b", "a\\r\\n\\tb", "a\r\n\tb"),
            (b"<&'>", "<&'>", "<&'>", "&lt;&amp;&#39;&gt;"),
            (b"\x1b\0\x7f", "\\x1B\\x00\\x7F", "\\u001b\\u0000\x7f", "\x1b\0\x7f"),
            ("é".as_bytes(), "\\xC3\\xA9", "é", "é"),
            ("é\"".as_bytes(), "\\xC3\\xA9\\x22", "é\\\"", "é&quot;"),
        ] {
            assert_eq!(escaped(log, text), in_log);
            assert_eq!(escaped(json, text), in_json);
            assert_eq!(escaped(html, text), in_html);
        }
        assert_eq!(escaped(json, b"\xe9\"\xff"), "\\u00e9\\\"\\u00ff");
        assert_eq!(escaped(|out, start| field(out, start), b"a\r\nX: y\0\tz"), "a  X: y \tz");
    }
}
