//! Request targets (RFC 9112 section 3.2), paths and hosts (RFC 3986): checked byte by byte, borrowed from the head.
//!
//! A query is opaque to a proxy, so only its bytes are checked, not what follows a percent sign in it.

#![forbid(unsafe_code)]

use std::net::Ipv6Addr;

use memchr::{memchr, memchr2, memchr2_iter, memmem, memrchr};

/// The longest host name in bytes; DNS ends at 253 (RFC 1035 section 2.3.4).
pub(crate) const HOST_BYTES_MAX: usize = 255;

/// Why a target or a host is refused, in a sentence for people. The client's answer is 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// A request target, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    /// The path as sent: begins with `/`, is `*` (the server itself is meant), or is empty (CONNECT).
    pub(crate) path: &'a [u8],
    /// What follows `?`, as sent.
    pub(crate) query: Option<&'a [u8]>,
    /// The host that absolute-form and authority-form name.
    pub(crate) host: Option<Host<'a>>,
    /// The port that is meant when a host names none.
    default_port: u16,
}

/// A host and perhaps a port, as the Host field has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Host<'a> {
    /// Both, as sent.
    pub(crate) text: &'a [u8],
    /// 1 to [`HOST_BYTES_MAX`] bytes in the sender's case, without the root's trailing dot; IPv6 with its brackets.
    pub(crate) name: &'a [u8],
    /// The port, when one was sent.
    pub(crate) port: Option<u16>,
}

/// Takes a request target apart.
///
/// # Errors
/// When it has none of the four forms, when its form is not one of the method's, or when a byte is outside the grammar.
pub(crate) fn parse_target<'a>(target: &'a [u8], method: &[u8]) -> Result<Target<'a>, Malformed> {
    match target {
        // RFC 9112 section 3.2.3: authority-form is CONNECT's, and CONNECT has no other.
        _ if method == b"CONNECT" => {
            let host = parse_host(target)?;
            host.port.ok_or(Malformed("A CONNECT target needs a port."))?;
            Ok(Target { path: b"", query: None, host: Some(host), default_port: 0 })
        }
        [b'/', ..] => origin_form(target, None, 80),
        // RFC 9112 section 3.2.4.
        b"*" if method == b"OPTIONS" => Ok(Target { path: target, query: None, host: None, default_port: 80 }),
        _ => absolute_form(target, method),
    }
}

/// Takes a Host field's value apart. An empty one is refused: it names nobody who could be asked.
///
/// # Errors
/// When it isn't a name, an IPv4 address or a bracketed IPv6 address with at most one port up to 65535. Percent signs
/// and empty labels are refused too: the grammar has them, but every hop would read them differently.
pub(crate) fn parse_host(text: &[u8]) -> Result<Host<'_>, Malformed> {
    let end = match text.first() {
        Some(b'[') => memchr(b']', text).map_or(text.len(), |close| close + 1),
        _ => memchr(b':', text).unwrap_or(text.len()),
    };
    let (name, rest) = text.split_at(end);
    let name = match name {
        [b'[', address @ .., b']'] => ipv6(address).map(|_| name),
        _ => registered_name(name),
    };
    let port = match rest {
        // RFC 3986 section 3.2.3: a port may be empty, and means none.
        [] | [b':'] => None,
        [b':', digits @ ..] => {
            Some(port(digits).ok_or(Malformed("The port after the host is not a number up to 65535."))?)
        }
        _ => return Err(Malformed("The host is not a name or an address.")),
    };
    Ok(Host { text, name: name.ok_or(Malformed("The host is not a name or an address."))?, port })
}

/// The path in its one normal form (RFC 3986 section 6.2.2): unreserved characters plain, other percent-encodings in
/// upper case, no dot segments; `..` at the root stays there. Encoded slashes stay encoded and repeated ones repeated.
/// A path that is normal already is returned as it is, others are written to `scratch`, which is cleared first.
///
/// # Errors
/// When a percent sign is not followed by two hexadecimal digits, or is by `00`.
pub(crate) fn normalise<'a>(path: &'a [u8], scratch: &'a mut Vec<u8>) -> Result<&'a [u8], Malformed> {
    if memchr2_iter(b'%', b'.', path).all(|at| is_normal_at(path, at)) {
        return Ok(path);
    }
    scratch.clear();
    let mut rest = path;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match byte {
            b'%' => {
                let [high, low, tail @ ..] = tail else { return Err(BAD_PERCENT) };
                rest = tail;
                match decode(*high, *low)? {
                    plain if is(plain, UNRESERVED) => scratch.push(plain),
                    _ => scratch.extend([b'%', high.to_ascii_uppercase(), low.to_ascii_uppercase()]),
                }
            }
            b'/' if ends_in_dots(scratch) => {}
            _ => scratch.push(*byte),
        }
    }
    ends_in_dots(scratch);
    Ok(scratch)
}

impl Target<'_> {
    /// Whether the target names the same host and port as the Host field, or names none (RFC 9112 section 3.2.2 lets a
    /// server ignore a Host that differs; two readings of one request are how requests are smuggled).
    pub(crate) fn agrees_with(&self, field: &Host<'_>) -> bool {
        self.host.is_none_or(|host| {
            let port = |of: Option<u16>| of.unwrap_or(self.default_port);
            host.name.eq_ignore_ascii_case(field.name) && port(host.port) == port(field.port)
        })
    }
}

const BAD_PERCENT: Malformed = Malformed("A percent sign in the path is not followed by two hexadecimal digits.");

/// RFC 9112 section 3.2.1. `/` is also what an absolute-form path begins with.
fn origin_form<'a>(target: &'a [u8], host: Option<Host<'a>>, default_port: u16) -> Result<Target<'a>, Malformed> {
    let (path, query) = match memchr(b'?', target) {
        Some(mark) => (&target[..mark], Some(&target[mark + 1..])),
        None => (target, None),
    };
    if !path.iter().all(|&byte| is(byte, PATH)) {
        return Err(Malformed("The path has a character that paths can't have."));
    }
    if !query.is_none_or(|query| query.iter().all(|&byte| is(byte, QUERY))) {
        return Err(Malformed("The query has a character that queries can't have."));
    }
    Ok(Target { path, query, host, default_port })
}

/// RFC 9112 section 3.2.2: a server must accept it from anyone.
fn absolute_form<'a>(target: &'a [u8], method: &[u8]) -> Result<Target<'a>, Malformed> {
    let colon = memmem::find(target, b"://").ok_or(Malformed("The request target has none of the four forms."))?;
    let default_port = match &target[..colon] {
        scheme if scheme.eq_ignore_ascii_case(b"http") => 80,
        scheme if scheme.eq_ignore_ascii_case(b"https") => 443,
        _ => return Err(Malformed("The request target's scheme is not http or https.")),
    };
    let rest = &target[colon + 3..];
    let end = memchr2(b'/', b'?', rest).unwrap_or(rest.len());
    // RFC 9110 section 4.2.4: user information before the host is an error; its `@` is in no host.
    let host = Some(parse_host(&rest[..end])?);
    let mut parts = origin_form(&rest[end..], host, default_port)?;
    if parts.path.is_empty() {
        // RFC 9112 section 3.2.4: OPTIONS for a bare authority asks about the server itself.
        parts.path = if method == b"OPTIONS" && parts.query.is_none() { b"*" } else { b"/" };
    }
    Ok(parts)
}

fn registered_name(text: &[u8]) -> Option<&[u8]> {
    let name = text.strip_suffix(b".").unwrap_or(text);
    let mut before = b'.';
    let well_formed = name.iter().all(|&byte| {
        let is_empty_label = std::mem::replace(&mut before, byte) == b'.' && byte == b'.';
        is(byte, NAME) && !is_empty_label
    });
    (well_formed && before != b'.' && name.len() <= HOST_BYTES_MAX).then_some(name)
}

fn ipv6(address: &[u8]) -> Option<Ipv6Addr> {
    std::str::from_utf8(address).ok()?.parse().ok()
}

/// Leading zeros are in the grammar, so only the value is bounded.
fn port(digits: &[u8]) -> Option<u16> {
    digits.iter().try_fold(0u16, |value, &byte| {
        let digit = byte.is_ascii_digit().then(|| byte - b'0')?;
        value.checked_mul(10)?.checked_add(digit.into())
    })
}

/// Whether the percent sign or full stop at `at` is what it would be in a normal path.
fn is_normal_at(path: &[u8], at: usize) -> bool {
    match &path[at..] {
        [b'%', high, low, ..] => {
            let upper = !high.is_ascii_lowercase() && !low.is_ascii_lowercase();
            upper && decode(*high, *low).is_ok_and(|byte| !is(byte, UNRESERVED))
        }
        [b'.'] | [b'.', b'/', ..] | [b'.', b'.'] | [b'.', b'.', b'/', ..] => at == 0 || path[at - 1] != b'/',
        [byte, ..] => *byte == b'.',
        [] => true,
    }
}

/// If the last segment is `.` or `..`, resolves it, up to and with the slash before it (RFC 3986 section 5.2.4).
fn ends_in_dots(path: &mut Vec<u8>) -> bool {
    let start = memrchr(b'/', path).map_or(0, |slash| slash + 1);
    let kept = match &path[start..] {
        b"." => start,
        b".." => memrchr(b'/', &path[..start.saturating_sub(1)]).map_or(start, |slash| slash + 1),
        _ => return false,
    };
    path.truncate(kept);
    true
}

fn decode(high: u8, low: u8) -> Result<u8, Malformed> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    match (digit(high), digit(low)) {
        (Some(0), Some(0)) => Err(Malformed("The path has an encoded NUL.")),
        (Some(high), Some(low)) => Ok(high << 4 | low),
        _ => Err(BAD_PERCENT),
    }
}

const UNRESERVED: u8 = 1;
const NAME: u8 = 2;
const PATH: u8 = 4;
const QUERY: u8 = 8;

/// Where a byte may stand, by RFC 3986 appendix A. Brackets are let through in paths and queries, where browsers leave
/// them plain and where no hop gives them a meaning.
static CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    mark(&mut classes, b"-._~", UNRESERVED | NAME | PATH | QUERY);
    mark(&mut classes, b"!$&'()*+,;=", NAME | PATH | QUERY);
    mark(&mut classes, b"%/:@[]", PATH | QUERY);
    mark(&mut classes, b"?", QUERY);
    let mut byte = 0;
    while byte < 128u8 {
        if byte.is_ascii_alphanumeric() {
            classes[byte as usize] = UNRESERVED | NAME | PATH | QUERY;
        }
        byte += 1;
    }
    classes
};

const fn mark(classes: &mut [u8; 256], bytes: &[u8], class: u8) {
    let mut at = 0;
    while at < bytes.len() {
        classes[bytes[at] as usize] = class;
        at += 1;
    }
}

fn is(byte: u8, class: u8) -> bool {
    CLASSES[usize::from(byte)] & class != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        for (method, target, expected) in [
            ("GET", "/a/b?c=d?e", Some(("/a/b", Some("c=d?e"), None))),
            ("GET", "/", Some(("/", None, None))),
            ("GET", "/a[1]?b[]=%", Some(("/a[1]", Some("b[]=%"), None))),
            ("GET", "http://h/a", Some(("/a", None, Some("h")))),
            ("GET", "HTTPS://H:8/a?b", Some(("/a", Some("b"), Some("H:8")))),
            ("GET", "http://h?b", Some(("/", Some("b"), Some("h")))),
            ("OPTIONS", "http://h", Some(("*", None, Some("h")))),
            ("OPTIONS", "http://h/", Some(("/", None, Some("h")))),
            ("OPTIONS", "*", Some(("*", None, None))),
            ("CONNECT", "h:443", Some(("", None, Some("h:443")))),
            ("CONNECT", "h", None),
            ("CONNECT", "/", None),
            ("GET", "*", None),
            ("GET", "", None),
            ("GET", "a", None),
            ("GET", "h:443", None),
            ("GET", "ftp://h/", None),
            ("GET", "http:///a", None),
            ("GET", "http://u@h/", None),
            ("GET", "http://u:p@h/", None),
            ("GET", "/a#b", None),
            ("GET", "/a b", None),
            ("GET", "/\u{e9}", None),
            ("GET", "/a?\x7f", None),
        ] {
            let found = parse_target(target.as_bytes(), method.as_bytes()).ok();
            let found = found.map(|target| (target.path, target.query, target.host.map(|host| host.text)));
            let expected = expected
                .map(|(path, query, host)| (path.as_bytes(), query.map(str::as_bytes), host.map(str::as_bytes)));
            assert_eq!(found, expected, "{method} {target}");
        }
        for byte in (0..=b' ').chain(*b"\"<>\\^`{}|#\x7f").chain(0x80..=0xff) {
            assert!(parse_target(&[b'/', byte], b"GET").is_err(), "{byte} in a path");
            assert!(parse_target(&[b'/', b'?', byte], b"GET").is_err(), "{byte} in a query");
        }
    }

    #[test]
    fn hosts() {
        for (text, expected) in [
            ("Example.COM", Some(("Example.COM", None))),
            ("example.com.:8080", Some(("example.com", Some(8080)))),
            ("h:", Some(("h", None))),
            ("h:00080", Some(("h", Some(80)))),
            ("127.0.0.1:65535", Some(("127.0.0.1", Some(65535)))),
            ("[2001:db8::1]:80", Some(("[2001:db8::1]", Some(80)))),
            ("[::]", Some(("[::]", None))),
            ("", None),
            (".", None),
            (":80", None),
            ("a..b", None),
            (".a", None),
            ("h:65536", None),
            ("h:80:81", None),
            ("h:-1", None),
            ("h:+1", None),
            ("::1", None),
            ("[::1", None),
            ("[]", None),
            ("[::1]x", None),
            ("[::1%25eth0]", None),
            ("[v1.a]", None),
            ("a]", None),
            ("u@h", None),
            ("h/x", None),
            ("a b", None),
            ("a%2eb", None),
            ("h\0", None),
            ("\u{e9}", None),
        ] {
            let found = parse_host(text.as_bytes()).ok().map(|host| (host.name, host.port));
            assert_eq!(found, expected.map(|(name, port)| (name.as_bytes(), port)), "{text}");
        }
        assert!(parse_host(&[b'a'; HOST_BYTES_MAX]).is_ok());
        assert!(parse_host(&[b'a'; HOST_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn target_against_host_field() {
        for (target, host, agrees) in [
            ("/a", "h", true),
            ("http://H/", "h", true),
            ("http://h/", "h:80", true),
            ("http://h./", "h", true),
            ("https://h/", "h:443", true),
            ("https://h:443/", "h", true),
            ("https://h/", "h:80", false),
            ("http://h/", "h:8080", false),
            ("http://h/", "i", false),
        ] {
            let target = parse_target(target.as_bytes(), b"GET").unwrap();
            assert_eq!(target.agrees_with(&parse_host(host.as_bytes()).unwrap()), agrees, "{target:?} {host}");
        }
    }

    #[test]
    fn normal_paths() {
        let mut scratch = Vec::new();
        for (path, expected) in [
            ("/", Some("/")),
            ("*", Some("*")),
            ("", Some("")),
            ("/a//b/", Some("/a//b/")),
            ("/.a/..b/c../...", Some("/.a/..b/c../...")),
            ("/a%20b%2Fc", Some("/a%20b%2Fc")),
            ("/%7euser/%41%2d", Some("/~user/A-")),
            ("/a%2fb%c3%A9", Some("/a%2Fb%C3%A9")),
            ("/a/./b/.", Some("/a/b/")),
            ("/a/b/../c", Some("/a/c")),
            ("/a/b/..", Some("/a/")),
            ("/a//..", Some("/a/")),
            ("/..", Some("/")),
            ("/../../a", Some("/a")),
            ("/a/%2E%2e/b", Some("/b")),
            ("/a/.%2e/%2e", Some("/")),
            ("/%2e%2e%2fa", Some("/..%2Fa")),
            ("/%0d%0a", Some("/%0D%0A")),
            ("/%", None),
            ("/%4", None),
            ("/%zz", None),
            ("/%+1", None),
            ("/a%00", None),
        ] {
            assert_eq!(normalise(path.as_bytes(), &mut scratch).ok(), expected.map(str::as_bytes), "{path}");
        }
    }

    #[test]
    fn normal_form_is_a_fixed_point() {
        let mut random = fastrand::Rng::with_seed(3986);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for _ in 0..20_000 {
            let mut path = vec![b'/'];
            path.extend((0..random.usize(..12)).map(|_| b"/.%2eEa"[random.usize(..7)]));
            let Ok(once) = normalise(&path, &mut first) else { continue };
            let untouched = second.capacity();
            assert_eq!(normalise(once, &mut second), Ok(once));
            assert_eq!(second.capacity(), untouched, "a normal path is not copied");
            assert!(!once.split(|&byte| byte == b'/').any(|segment| segment == b"." || segment == b".."));
        }
    }
}
