//! The chunked transfer coding, strictly (RFC 9112 §7.1).
//!
//! The decoder is fed what has arrived and says what lies in it: so many bytes of payload, so many of framing. It keeps
//! its place between calls, so a chunk's data is never collected, only pointed at.

use super::h1::is_token_byte;

/// The longest chunk-size line, extensions included, in bytes.
const SIZE_LINE_BYTES_MAX: usize = 4096;
/// The most extensions of all chunks of a body together, in bytes: padding that carries nothing is an attack.
const EXTENSIONS_BYTES_MAX: usize = 64 * 1024;

/// What the front of the input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// So many bytes of payload; at least one.
    Data(usize),
    /// So many bytes of framing, to be skipped; at least one.
    Framing(usize),
    /// The input ends within framing: more is needed.
    More,
    /// The last chunk's line has been passed: the trailer section begins.
    Trailers,
}

/// Where the decoder is within the coding.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    state: State,
    extension_bytes: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    SizeLine,
    Data(u64),
    DataEnd,
    Trailers,
}

impl Decoder {
    /// Says what the front of `input` is. The caller removes those bytes before it asks again.
    ///
    /// # Errors
    /// The rule that the input breaks.
    pub(crate) fn step(&mut self, input: &[u8]) -> Result<Step, &'static str> {
        match self.state {
            State::SizeLine => self.size_line(input),
            State::Data(left) if input.is_empty() && left > 0 => Ok(Step::More),
            State::Data(left) => {
                let count = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                self.state = if count as u64 == left { State::DataEnd } else { State::Data(left - count as u64) };
                Ok(Step::Data(count))
            }
            State::DataEnd => match input {
                [] | [b'\r'] => Ok(Step::More),
                [b'\r', b'\n', ..] => {
                    self.state = State::SizeLine;
                    Ok(Step::Framing(2))
                }
                _ => Err("A chunk's data is longer than its size says."),
            },
            State::Trailers => Ok(Step::Trailers),
        }
    }

    /// How many payload bytes are sure to come next without framing between them.
    pub(crate) fn run_length(&self) -> u64 {
        if let State::Data(left) = self.state { left } else { 0 }
    }

    /// `count` payload bytes went by without being shown; at most [`Decoder::run_length`].
    pub(crate) fn skip(&mut self, count: u64) {
        if let State::Data(left) = self.state {
            self.state = if count >= left { State::DataEnd } else { State::Data(left - count) };
        }
    }

    fn size_line(&mut self, input: &[u8]) -> Result<Step, &'static str> {
        let Some(end) = memchr::memchr(b'\n', input) else {
            check_size_start(input)?;
            return if input.len() > SIZE_LINE_BYTES_MAX {
                Err("A chunk's size line is too long.")
            } else {
                Ok(Step::More)
            };
        };
        let Some(line) = input[..end].strip_suffix(b"\r") else {
            return Err("A chunk's size line ends with LF alone.");
        };
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        if digits == 0 || digits > 16 {
            return Err("A chunk's size is not a hexadecimal number.");
        }
        let mut size = 0u64;
        for &digit in &line[..digits] {
            size = size << 4 | u64::from((digit as char).to_digit(16).unwrap_or(0));
        }
        if size >= 1 << 63 {
            return Err("A chunk's size is too large.");
        }
        let extensions = &line[digits..];
        if !extensions.is_empty() {
            self.extension_bytes += extensions.len();
            if line.len() > SIZE_LINE_BYTES_MAX || self.extension_bytes > EXTENSIONS_BYTES_MAX {
                return Err("The chunk extensions are too long.");
            }
            check_extensions(extensions).ok_or("A chunk's extension is malformed.")?;
        }
        self.state = if size == 0 { State::Trailers } else { State::Data(size) };
        Ok(Step::Framing(end + 1))
    }
}

/// A size line that can't become valid any more is refused before its end has come.
fn check_size_start(input: &[u8]) -> Result<(), &'static str> {
    match input.iter().position(|byte| !byte.is_ascii_hexdigit()) {
        None if input.len() > 16 => Err("A chunk's size is too large."),
        Some(at) if at == 0 || !matches!(input[at], b';' | b' ' | b'\t' | b'\r') => {
            Err("A chunk's size is not a hexadecimal number.")
        }
        _ => Ok(()),
    }
}

/// `*( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] )` (RFC 9112 §7.1.1).
fn check_extensions(mut rest: &[u8]) -> Option<()> {
    while !rest.is_empty() {
        rest = skip_space(rest).strip_prefix(b";")?;
        rest = token(skip_space(rest))?;
        let after = skip_space(rest);
        if let Some(value) = after.strip_prefix(b"=") {
            let value = skip_space(value);
            rest = if value.first() == Some(&b'"') { quoted(value)? } else { token(value)? };
        }
    }
    Some(())
}

fn skip_space(text: &[u8]) -> &[u8] {
    &text[text.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count()..]
}

/// What follows the token at the front.
fn token(text: &[u8]) -> Option<&[u8]> {
    let length = text.iter().take_while(|&&byte| is_token_byte(byte)).count();
    (length > 0).then(|| &text[length..])
}

/// What follows the quoted string at the front (RFC 9110 §5.6.4).
fn quoted(text: &[u8]) -> Option<&[u8]> {
    let mut rest = text.strip_prefix(b"\"")?;
    loop {
        let (&byte, after) = rest.split_first()?;
        rest = match byte {
            b'"' => return Some(after),
            b'\\' => match after.split_first()? {
                (b'\t' | b' '..=b'~' | 0x80.., after) => after,
                _ => return None,
            },
            b'\t' | b' '..=b'~' | 0x80.. => after,
            _ => return None,
        };
    }
}

/// Appends the size line of a chunk of `size` bytes.
pub(crate) fn write_size_line(size: usize, out: &mut Vec<u8>) {
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        out.push(b"0123456789abcdef"[size >> (4 * place) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Payload, and what is left of the input when the trailers begin.
    type Decoded = (Vec<u8>, Vec<u8>);

    /// Decodes `input` in pieces of `piece` bytes.
    fn decode(input: &[u8], piece: usize) -> Result<Option<Decoded>, &'static str> {
        let (mut decoder, mut held, mut payload) = (Decoder::default(), Vec::new(), Vec::new());
        let mut pieces = input.chunks(piece);
        loop {
            match decoder.step(&held)? {
                Step::Data(count) => payload.extend(held.drain(..count)),
                Step::Framing(count) => drop(held.drain(..count)),
                Step::More => match pieces.next() {
                    Some(more) => held.extend_from_slice(more),
                    None => return Ok(None),
                },
                Step::Trailers => {
                    held.extend(pieces.flatten());
                    return Ok(Some((payload, held)));
                }
            }
        }
    }

    #[test]
    fn valid_bodies_in_pieces_of_any_size() {
        for (input, payload) in [
            ("0\r\n\r\n", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "hello"),
            ("005\r\nhello\r\n1;a=b;c=\"d;\\\"e\"\r\n!\r\n00\r\n\r\n", "hello!"),
            ("5 ; name\r\nhello\r\n0\r\n\r\n", "hello"),
            ("A\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
        ] {
            for piece in 1..=input.len() {
                let (found, rest) = decode(input.as_bytes(), piece).expect(input).expect(input);
                assert_eq!((found.as_slice(), rest.as_slice()), (payload.as_bytes(), &b"\r\n"[..]), "{input}");
            }
        }
    }

    #[test]
    fn invalid_bodies_are_refused_whole_and_in_pieces() {
        for input in [
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhelloX\r\n0\r\n\r\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "5 \r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "-5\r\nhello\r\n0\r\n\r\n",
            "\r\nhello",
            "5;\r\nhello\r\n0\r\n\r\n",
            "5;a=\r\nhello\r\n0\r\n\r\n",
            "5;a=\"b\r\nhello\r\n0\r\n\r\n",
            "5;a\0\r\nhello\r\n0\r\n\r\n",
            "5;a\rb\r\nhello\r\n0\r\n\r\n",
            "5,5\r\nhello\r\n0\r\n\r\n",
            "fffffffffffffffff\r\n",
            "8000000000000000\r\n",
            "g\r\n",
        ] {
            for piece in [1, 2, input.len()] {
                assert!(decode(input.as_bytes(), piece).is_err(), "{input:?} in pieces of {piece}");
            }
        }
        let endless = [b"1;a=".to_vec(), vec![b'b'; 5000]].concat();
        assert!(decode(&endless, 100).is_err());
    }

    #[test]
    fn size_lines() {
        for (size, line) in [(0, "0\r\n"), (15, "f\r\n"), (16, "10\r\n"), (0xabcde, "abcde\r\n")] {
            let mut out = Vec::new();
            write_size_line(size, &mut out);
            assert_eq!(out, line.as_bytes());
        }
    }
}
