//! Hosts and paths that routes match, in the one form in which they are compared.

use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::model::HostPattern;
use crate::value::Invalid;

/// The longest host name, and the longest label in it, in bytes (RFC 1035 section 2.3.4).
const HOST_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

impl FromStr for HostPattern {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<HostPattern, Invalid> {
        let wrong = |hint: String| Err(Invalid::new(format!("`{text}` is not a host")).hint(hint));
        let lower = text.to_ascii_lowercase();
        if lower.starts_with('[') {
            let address = lower.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            return match address.map(str::parse::<Ipv6Addr>) {
                Some(Ok(_)) => Ok(HostPattern::Exact(lower)),
                _ => wrong("an IPv6 address stands in brackets, without port, as in [::1]".into()),
            };
        }
        let (name, wildcard) = lower.strip_prefix("*.").map_or((lower.as_str(), false), |name| (name, true));
        let bare = name.split([':', '/']).next().unwrap_or_default();
        match name {
            "*" | "" => return wrong("for any host leave `hosts` out".into()),
            _ if name.parse::<Ipv6Addr>().is_ok() => return wrong(format!("write [{name}]")),
            _ if !name.is_ascii() => return wrong("write a name beyond ASCII in its xn-- form (punycode)".into()),
            _ if name.contains('*') => {
                return wrong("a wildcard is a whole label at the start, as in *.example.com".into());
            }
            _ if bare != name && !bare.is_empty() => return wrong(format!("without port and path: {bare}")),
            _ if name.ends_with('.') => {
                return wrong(format!("without the dot at the end: {}", name.trim_end_matches('.')));
            }
            _ if name.len() > HOST_BYTES_MAX => return wrong(format!("a name has at most {HOST_BYTES_MAX} bytes")),
            _ => {}
        }
        if let Some(label) = name.split('.').find(|label| !is_label(label)) {
            return wrong(format!(
                "`{label}` is no label: 1 to {LABEL_BYTES_MAX} letters, digits, hyphens and underscores"
            ));
        }
        let name = name.to_string();
        Ok(if wildcard { HostPattern::Wildcard(name) } else { HostPattern::Exact(name) })
    }
}

fn is_label(label: &str) -> bool {
    (1..=LABEL_BYTES_MAX).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Checks that a path is what a request's can be after normalisation: otherwise it would never match.
///
/// The end of a prefix may be half a segment, so dots there are no dot segment yet.
pub(crate) fn check_path(text: &str, is_prefix: bool) -> Result<(), Invalid> {
    if !text.starts_with('/') {
        let hint = if text.is_empty() { "every path begins with /".to_string() } else { format!("write /{text}") };
        return Err(Invalid::new(format!("the path `{text}` does not begin with `/`")).hint(hint));
    }
    if let Some(mark) = text.find(['?', '#']) {
        return Err(Invalid::new("a path ends before `?` and `#`")
            .hint(format!("the query is not matched: write {}", &text[..mark])));
    }
    let normal = resolved(&encoded(text)?, is_prefix);
    if normal != text {
        return Err(Invalid::new(format!("`{text}` is not the form in which paths are compared"))
            .hint(format!("write {normal}")));
    }
    Ok(())
}

/// Percent-encodings in their normal form (RFC 3986 sections 6.2.2.1 and 6.2.2.2): none where none is needed, upper
/// case.
fn encoded(text: &str) -> Result<String, Invalid> {
    let mut normal = String::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        let value = match (byte, tail) {
            (b'%', [high, low, tail @ ..]) => {
                rest = tail;
                hex(*high).zip(hex(*low)).map(|(high, low)| high * 16 + low).filter(|value| *value != 0)
            }
            (b'%', _) => None,
            (byte, _) if is_path_byte(*byte) => {
                normal.push(char::from(*byte));
                continue;
            }
            (byte, _) => Some(*byte),
        };
        match value {
            Some(value) if is_unreserved(value) => normal.push(char::from(value)),
            Some(value) => normal.push_str(&format!("%{value:02X}")),
            None => {
                return Err(Invalid::new(format!("the path `{text}` holds a `%` that encodes nothing"))
                    .hint("two hexadecimal digits follow, not 00; a percent sign itself is %25"));
            }
        }
    }
    Ok(normal)
}

/// Without dot segments (RFC 3986 section 5.2.4).
fn resolved(path: &str, is_prefix: bool) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let last = path.split('/').count() - 1;
    for (index, segment) in path.split('/').enumerate().skip(1) {
        match segment {
            "." | ".." if index == last && is_prefix => segments.push(segment),
            "." | ".." => {
                if segment == ".." {
                    segments.pop();
                }
                if index == last {
                    segments.push("");
                }
            }
            _ => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Bytes that stand for themselves in a path: `pchar` and the slash (RFC 3986 section 3.3), and brackets, which
/// browsers leave plain.
fn is_path_byte(byte: u8) -> bool {
    is_unreserved(byte) || b"!$&'()*+,;=:@/[]".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_lowered_and_wildcards_told_apart() {
        let table = [
            ("Example.COM", HostPattern::Exact("example.com".into())),
            ("*.example.com", HostPattern::Wildcard("example.com".into())),
            ("10.0.0.1", HostPattern::Exact("10.0.0.1".into())),
            ("[::1]", HostPattern::Exact("[::1]".into())),
            ("a_b.internal", HostPattern::Exact("a_b.internal".into())),
        ];
        for (text, host) in table {
            assert_eq!(text.parse(), Ok(host));
        }
    }

    #[test]
    fn a_wrong_host_says_what_is_right() {
        let table = [
            ("*", "leave"),
            ("", "leave"),
            ("bücher.example", "xn--"),
            ("www.*.com", "whole label"),
            ("*example.com", "whole label"),
            ("example.com:80", "example.com"),
            ("http://example.com", "http"),
            ("example.com.", "example.com"),
            ("a..b", "label"),
            ("a b.com", "label"),
            ("::1", "[::1]"),
            ("[::1]:80", "brackets"),
        ];
        for (text, hint) in table {
            let invalid = text.parse::<HostPattern>().unwrap_err();
            assert!(invalid.hint.as_ref().unwrap().contains(hint), "{text}: {invalid}");
        }
        assert!(format!("{}.com", "a".repeat(64)).parse::<HostPattern>().is_err());
        assert!("a.".repeat(130).trim_end_matches('.').parse::<HostPattern>().is_err());
    }

    #[test]
    fn paths_must_be_as_they_are_compared() {
        for text in ["/", "/a/b", "/a//b", "/%2F", "/caf%C3%A9", "/a.b/..c", "/@:!$&"] {
            assert_eq!(check_path(text, false), Ok(()), "{text}");
        }
        assert_eq!(check_path("/.", true), Ok(()));
        let table = [
            ("", "begins with /"),
            ("a", "write /a"),
            ("/a?b", "write /a"),
            ("/%7Euser", "write /~user"),
            ("/%2f", "write /%2F"),
            ("/café", "write /caf%C3%A9"),
            ("/a b", "write /a%20b"),
            ("/a/../b", "write /b"),
            ("/a/./b/.", "write /a/b/"),
            ("/..", "write /"),
            ("/%2e%2e/x", "write /x"),
            ("/%", "%25"),
            ("/%zz", "%25"),
            ("/%00", "%25"),
        ];
        for (text, hint) in table {
            let invalid = check_path(text, false).unwrap_err();
            assert!(invalid.hint.as_ref().unwrap().contains(hint), "{text}: {invalid}");
        }
    }
}
