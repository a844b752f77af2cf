//! The name that an exchange goes by, here and on every other hop.

#![forbid(unsafe_code)]

use super::head::{Known, Request};

/// The longest id that is taken over from a trusted proxy, in bytes.
pub(crate) const REQUEST_ID_BYTES_MAX: usize = 64;
/// Length of an id that is made here, in bytes, all of them hexadecimal digits.
const MADE_BYTES: usize = 32;

/// An exchange's identifier: 1 to [`REQUEST_ID_BYTES_MAX`] harmless bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestId {
    bytes: [u8; REQUEST_ID_BYTES_MAX],
    length: usize,
}

impl Default for RequestId {
    /// None yet.
    fn default() -> RequestId {
        RequestId { bytes: [0; REQUEST_ID_BYTES_MAX], length: 0 }
    }
}

impl RequestId {
    /// The id that a trusted proxy sent in `X-Request-Id`, if it sent one that can stand in a log and a page as it is.
    pub(crate) fn sent(request: Request<'_>) -> Option<RequestId> {
        RequestId::new(request.field(Known::XRequestId)?)
    }

    /// The id.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The id with this text, if it may be one.
    pub(crate) fn new(text: &[u8]) -> Option<RequestId> {
        let harmless = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~:/+=@".contains(byte);
        let mut bytes = [0; REQUEST_ID_BYTES_MAX];
        bytes.get_mut(..text.len())?.copy_from_slice(text);
        (!text.is_empty() && text.iter().all(harmless)).then_some(RequestId { bytes, length: text.len() })
    }
}

/// Where new ids come from. They are unique, not secret.
#[derive(Debug, Clone)]
pub(crate) struct RequestIds(fastrand::Rng);

impl RequestIds {
    /// A source of its own for each `seed`, which a worker draws after the fork: siblings would inherit an older one.
    pub(crate) fn new(seed: u64) -> RequestIds {
        RequestIds(fastrand::Rng::with_seed(seed))
    }

    /// An id of 32 hexadecimal digits.
    pub(crate) fn make(&mut self) -> RequestId {
        let mut bytes = [0; REQUEST_ID_BYTES_MAX];
        let random = self.0.u128(..).to_be_bytes();
        for (pair, byte) in bytes[..MADE_BYTES].as_chunks_mut().0.iter_mut().zip(random) {
            *pair = DIGITS[usize::from(byte)];
        }
        RequestId { bytes, length: MADE_BYTES }
    }
}

/// The hexadecimal digits of each byte.
static DIGITS: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < pairs.len() {
        pairs[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    pairs
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_ids_are_taken_over() {
        for (text, taken) in [
            ("a", true),
            ("01HZ-x_y.z/1+2=:@~", true),
            ("", false),
            ("a b", false),
            ("a\"b", false),
            ("a,b", false),
            ("<b>", false),
            ("\u{e9}", false),
        ] {
            let id = RequestId::new(text.as_bytes());
            assert_eq!(id.map(|id| id.as_bytes().to_vec()), taken.then(|| text.into()), "{text}");
        }
        assert!(RequestId::new(&[b'a'; REQUEST_ID_BYTES_MAX]).is_some());
        assert!(RequestId::new(&[b'a'; REQUEST_ID_BYTES_MAX + 1]).is_none());
    }

    #[test]
    fn made_ids_differ_between_exchanges_and_workers() {
        let (mut one, mut other) = (RequestIds::new(1), RequestIds::new(2));
        let ids = [one.make(), one.make(), other.make(), other.make()];
        for (at, id) in ids.iter().enumerate() {
            assert_eq!(id.as_bytes().len(), 32);
            assert!(id.as_bytes().iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
            assert!(!ids[..at].contains(id));
        }
    }
}
