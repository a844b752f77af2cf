//! Heads: one run of bytes and an index of where its parts lie.
//!
//! The bytes stay in the buffer that they arrived in; the index holds offsets and is used again for the next head, so
//! a warm connection allocates nothing. A [`Request`] or [`Response`] is index and bytes together.

/// Where something lies in a head's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Where `part` lies in `whole`, which it must be a piece of.
    pub(crate) fn of(part: &[u8], whole: &[u8]) -> Span {
        // An empty one may have been made elsewhere.
        if part.is_empty() {
            return Span::default();
        }
        let start = part.as_ptr() as usize - whole.as_ptr() as usize;
        let offset = |at| u32::try_from(at).expect("heads are limited to 64 KiB");
        Span { start: offset(start), end: offset(start + part.len()) }
    }

    /// The bytes it covers.
    pub(crate) fn within(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..self.end as usize]
    }

    /// Where it begins.
    pub(crate) fn start(self) -> usize {
        self.start as usize
    }
}

/// A field name that the proxy has something to do with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Known {
    Other,
    Accept,
    Connection,
    ContentLength,
    Cookie,
    Date,
    Expect,
    Forwarded,
    Host,
    Http2Settings,
    KeepAlive,
    /// A forwarding field with `_` for `-`: gateways of other protocols take it for the real one.
    Lookalike,
    MaxForwards,
    ProxyConnection,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    Via,
    XForwardedFor,
    XForwardedHost,
    XForwardedPort,
    XForwardedProto,
    XRequestId,
}

impl Known {
    /// Recognises a name, whatever its case. Its length and first letter decide which name it can be at all.
    pub(crate) fn of(name: &[u8]) -> Known {
        use Known::*;
        let Some(first) = name.first() else { return Other };
        match (name.len(), first | 0x20) {
            (2, b't') => name_is(name, b"te", Te),
            (3, b'v') => name_is(name, b"via", Via),
            (4, b'd') => name_is(name, b"date", Date),
            (4, b'h') => name_is(name, b"host", Host),
            (6, b'a') => name_is(name, b"accept", Accept),
            (6, b'c') => name_is(name, b"cookie", Cookie),
            (6, b'e') => name_is(name, b"expect", Expect),
            (7, b't') => name_is(name, b"trailer", Trailer),
            (7, b'u') => name_is(name, b"upgrade", Upgrade),
            (9, b'f') => name_is(name, b"forwarded", Forwarded),
            (10, b'c') => name_is(name, b"connection", Connection),
            (10, b'k') => name_is(name, b"keep-alive", KeepAlive),
            (12, b'm') => name_is(name, b"max-forwards", MaxForwards),
            (12, b'x') => name_is(name, b"x-request-id", XRequestId),
            (14, b'c') => name_is(name, b"content-length", ContentLength),
            (14, b'h') => name_is(name, b"http2-settings", Http2Settings),
            (15, b'x') => name_is(name, b"x-forwarded-for", XForwardedFor),
            (16, b'p') => name_is(name, b"proxy-connection", ProxyConnection),
            (16, b'x') if name[12] | 0x20 == b'h' => name_is(name, b"x-forwarded-host", XForwardedHost),
            (16, b'x') => name_is(name, b"x-forwarded-port", XForwardedPort),
            (17, b't') => name_is(name, b"transfer-encoding", TransferEncoding),
            (17, b'x') => name_is(name, b"x-forwarded-proto", XForwardedProto),
            _ => Other,
        }
    }

    const fn bit(self) -> u32 {
        1 << self as u8
    }
}

/// `known` if `name`, a token, is `candidate` in any case. Both are as long.
///
/// To set the bit that makes a letter small changes no other byte of a token into one of `candidate`, so that all bytes
/// are compared at once.
#[inline(always)]
fn name_is<const N: usize>(name: &[u8], candidate: &[u8; N], known: Known) -> Known {
    let Some(name) = name.first_chunk::<N>() else { return Known::Other };
    let differing = name.iter().zip(candidate).fold(0, |differing, (a, b)| differing | ((a | 0x20) ^ b));
    match differing {
        0 => known,
        _ if candidate[0] == b'x' && is_lookalike(name, candidate) => Known::Lookalike,
        _ => Known::Other,
    }
}

/// Whether `name` is `candidate`, in any case, but for `_` instead of `-`.
#[cold]
fn is_lookalike(name: &[u8], candidate: &[u8]) -> bool {
    let same = |(&a, &b): (&u8, &u8)| a.to_ascii_lowercase() == b || a == b'_' && b == b'-';
    name.iter().zip(candidate).all(same)
}

/// A header field.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    pub(crate) name: Span,
    pub(crate) value: Span,
    pub(crate) known: Known,
}

/// The fields of a head, in order.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    list: Vec<Field>,
    seen: u32,
}

impl Fields {
    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.seen = 0;
    }

    pub(crate) fn push(&mut self, name: Span, value: Span, known: Known) {
        self.seen |= known.bit();
        self.list.push(Field { name, value, known });
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Field> + Clone {
        self.list.iter()
    }

    /// Whether there is a field of this name; costs nothing.
    pub(crate) fn has(&self, known: Known) -> bool {
        self.seen & known.bit() != 0
    }

    /// The values of the fields of a known name.
    pub(crate) fn all<'a>(&'a self, known: Known, bytes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + Clone {
        let list = if self.has(known) { &self.list[..] } else { &[] };
        list.iter().filter(move |field| field.known == known).map(|field| field.value.within(bytes))
    }

    /// The value of the first field of this name; `name` is in lower case, and `_` stands for `-` too.
    pub(crate) fn find<'a>(&self, name: &str, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let same = |&field: &&Field| {
            let found = field.name.within(bytes);
            let equal = |(a, b): (&u8, u8)| a.to_ascii_lowercase() == b || *a == b'-' && b == b'_';
            found.len() == name.len() && found.iter().zip(name.bytes()).all(equal)
        };
        self.list.iter().find(same).map(|field| field.value.within(bytes))
    }
}

/// How long a body is, and how its end is known (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum BodyLength {
    /// There is none.
    #[default]
    None,
    /// So many bytes.
    Exactly(u64),
    /// Chunks, the last of which is empty.
    Chunked,
    /// All that comes before the connection closes; responses only.
    UntilClose,
}

/// The index of a request's head.
#[derive(Debug, Default)]
pub(crate) struct RequestHead {
    pub(crate) method: Span,
    pub(crate) target: Span,
    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub(crate) minor: u8,
    pub(crate) fields: Fields,
    /// How many bytes the head takes, its empty line included.
    pub(crate) bytes: usize,
    pub(crate) body: BodyLength,
    /// Whether the client wants the connection kept (RFC 9112 §9.3).
    pub(crate) keep_alive: bool,
    /// Whether it waits for a 100 before it sends the body (RFC 9110 §10.1.1).
    pub(crate) expects_continue: bool,
    /// Whether it asks to change the protocol, by an Upgrade field that can be passed on.
    pub(crate) upgrade: bool,
    /// Whether Connection names fields beyond `close`, `keep-alive` and `upgrade`.
    pub(crate) names_fields: bool,
}

impl RequestHead {
    /// Forgets the last one, but for the memory that its fields took.
    pub(crate) fn clear(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = RequestHead { fields, ..RequestHead::default() };
    }
}

/// A request's head.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) head: &'a RequestHead,
    pub(crate) bytes: &'a [u8],
}

impl<'a> Request<'a> {
    pub(crate) fn method(self) -> &'a [u8] {
        self.head.method.within(self.bytes)
    }

    pub(crate) fn target(self) -> &'a [u8] {
        self.head.target.within(self.bytes)
    }

    /// The first value of a known field.
    pub(crate) fn field(self, known: Known) -> Option<&'a [u8]> {
        self.head.fields.all(known, self.bytes).next()
    }

    /// How many more hops an OPTIONS may go (RFC 9110 §7.6.2; TRACE goes none).
    pub(crate) fn max_forwards(self) -> Option<u64> {
        let value = self.field(Known::MaxForwards).filter(|_| self.method() == b"OPTIONS")?;
        std::str::from_utf8(value).ok()?.parse().ok()
    }

    pub(crate) fn is_head(self) -> bool {
        self.method() == b"HEAD"
    }

    /// Whether sending it twice means the same as sending it once (RFC 9110 §9.2.2).
    pub(crate) fn is_idempotent(self) -> bool {
        matches!(self.method(), b"GET" | b"HEAD" | b"OPTIONS" | b"PUT" | b"DELETE" | b"TRACE")
    }
}

/// The index of a response's head.
#[derive(Debug, Default)]
pub(crate) struct ResponseHead {
    pub(crate) status: u16,
    pub(crate) reason: Span,
    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub(crate) minor: u8,
    pub(crate) fields: Fields,
    /// How many bytes the head takes, its empty line included.
    pub(crate) bytes: usize,
    pub(crate) body: BodyLength,
    /// Whether the server keeps the connection.
    pub(crate) keep_alive: bool,
    /// Whether Connection names fields beyond `close`, `keep-alive` and `upgrade`.
    pub(crate) names_fields: bool,
}

/// A response's head.
#[derive(Clone, Copy)]
pub(crate) struct Response<'a> {
    pub(crate) head: &'a ResponseHead,
    pub(crate) bytes: &'a [u8],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_recognised_in_any_case_and_only_whole() {
        for (name, known) in [
            ("Host", Known::Host),
            ("HOST", Known::Host),
            ("Hosts", Known::Other),
            ("X-Forwarded-Host", Known::XForwardedHost),
            ("x-forwarded-port", Known::XForwardedPort),
            ("X-Forwarded-Hose", Known::Other),
            ("transfer-encoding", Known::TransferEncoding),
            ("transfer_encoding", Known::Other),
            ("X_Forwarded-For", Known::Lookalike),
            ("", Known::Other),
        ] {
            assert_eq!(Known::of(name.as_bytes()), known, "{name}");
        }
    }

    #[test]
    fn fields_are_found_by_their_variable_name() {
        let bytes = b"User-Agent: curl\r\n";
        let mut fields = Fields::default();
        fields.push(Span::of(&bytes[..10], bytes), Span::of(&bytes[12..16], bytes), Known::Other);
        assert_eq!(fields.find("user_agent", bytes), Some(&b"curl"[..]));
        assert_eq!(fields.find("user-agent", bytes), Some(&b"curl"[..]));
        assert_eq!(fields.find("user_agents", bytes), None);
    }
}
