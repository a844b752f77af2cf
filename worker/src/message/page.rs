//! The body of an answer that the proxy makes itself, in the type that the client likes best.

#![forbid(unsafe_code)]

use super::{decimal, escape};

/// Appends a page and returns its media type. `detail` is a sentence for people, `accept` the request's Accept field;
/// without one, or where it leaves the choice, the page is plain text.
pub(crate) fn render(
    status: u16,
    reason: &str,
    detail: &str,
    request_id: &[u8],
    accept: Option<&[u8]>,
    out: &mut Vec<u8>,
) -> &'static str {
    let form = preferred(accept.unwrap_or(b"*/*"));
    for piece in form.layout() {
        let start = out.len();
        match piece {
            Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
            Piece::Status => decimal::push(status.into(), out),
            Piece::Reason => out.extend_from_slice(reason.as_bytes()),
            Piece::Detail => out.extend_from_slice(detail.as_bytes()),
            Piece::RequestId => out.extend_from_slice(request_id),
        }
        match (form, piece) {
            (_, Piece::Text(_)) | (Form::Text, _) => {}
            (Form::Html, _) => escape::html(out, start),
            (Form::Json, _) => escape::json(out, start),
        }
    }
    form.media_type()
}

/// The phrase that goes with a status (RFC 9110 section 15 and the registry it founds); empty when there is none.
pub(crate) fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        _ => "",
    }
}

/// What a page can be; the first is the one that nobody need ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Html,
    Json,
}

#[derive(Debug, Clone, Copy)]
enum Piece {
    Text(&'static str),
    Status,
    Reason,
    Detail,
    RequestId,
}

impl Form {
    const ALL: [Form; 3] = [Form::Text, Form::Html, Form::Json];

    fn media_type(self) -> &'static str {
        match self {
            Form::Text => "text/plain; charset=utf-8",
            Form::Html => "text/html; charset=utf-8",
            Form::Json => "application/json",
        }
    }

    /// Type and subtype.
    fn essence(self) -> (&'static str, &'static str) {
        match self {
            Form::Text => ("text", "plain"),
            Form::Html => ("text", "html"),
            Form::Json => ("application", "json"),
        }
    }

    fn layout(self) -> &'static [Piece] {
        use Piece::{Detail, Reason, RequestId, Status, Text};
        match self {
            Form::Text => {
                &[Status, Text(" "), Reason, Text("\n"), Detail, Text("\nRequest id: "), RequestId, Text("\n")]
            }
            Form::Json => &[
                Text("{\"status\":"),
                Status,
                Text(",\"reason\":\""),
                Reason,
                Text("\",\"detail\":\""),
                Detail,
                Text("\",\"request_id\":\""),
                RequestId,
                Text("\"}\n"),
            ],
            Form::Html => &[
                Text("<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>"),
                Status,
                Text(" "),
                Reason,
                Text(HTML_STYLE),
                Status,
                Text("</h1>\n<h2>"),
                Reason,
                Text("</h2>\n<p>"),
                Detail,
                Text("</p>\n<footer>Request id <code>"),
                RequestId,
                Text("</code></footer>\n</main>\n</html>\n"),
            ],
        }
    }
}

const HTML_STYLE: &str = "</title>
<meta name=\"viewport\" content=\"width=device-width\">
<style>
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }
body { display: grid; place-items: center; min-height: 90vh; margin: 0 1rem }
main { max-width: 32rem }
h1 { font-size: 4rem; font-weight: 200; line-height: 1; margin: 0 }
h2 { font-weight: 500; margin: .5rem 0 1rem }
footer { font-size: .8rem; margin-top: 2rem; opacity: .6; overflow-wrap: anywhere }
</style>
<main>
<h1>";

/// RFC 9110 section 12.5.1: of the ranges that match a type the most specific has its weight. Between equal weights a
/// type that was named goes before one that a wildcard lets in, then the one named first. When nothing is acceptable,
/// text is sent all the same: the status matters more.
fn preferred(accept: &[u8]) -> Form {
    let rank = |form: &Form| {
        let ranges = accept.split(|&byte| byte == b',').enumerate();
        let matching = ranges.filter_map(|(at, range)| match_range(range, form.essence(), at));
        let (precise, at, weight) = matching.max_by_key(|&(precise, at, _)| (precise, std::cmp::Reverse(at)))?;
        (weight > 0).then_some((weight, precise, std::cmp::Reverse(at)))
    };
    // The first of equals wins: max takes the last.
    Form::ALL.into_iter().rev().max_by_key(rank).unwrap_or(Form::Text)
}

/// How precisely a range names a type, where it stands, and its weight; nothing when it doesn't match.
fn match_range(range: &[u8], (kind, subkind): (&str, &str), at: usize) -> Option<(u8, usize, u16)> {
    let mut parts = range.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
    let (range_kind, range_subkind) = parts.next().and_then(|name| split_at_byte(name, b'/'))?;
    let same = |a: &[u8], b: &str| a.eq_ignore_ascii_case(b.as_bytes());
    let precise = match (range_kind, range_subkind) {
        (b"*", b"*") => 0,
        (a, b"*") if same(a, kind) => 1,
        (a, b) if same(a, kind) && same(b, subkind) => 2,
        _ => return None,
    };
    let weight = parts.filter_map(|part| split_at_byte(part, b'=')).find(|(name, _)| same(name, "q"));
    Some((precise, at, weight.map_or(Some(1000), |(_, value)| thousandths(value))?))
}

fn split_at_byte(text: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|&other| other == byte)?;
    Some((&text[..at], &text[at + 1..]))
}

/// RFC 9110 section 12.4.2: 0 or 1, with up to three decimals.
fn thousandths(weight: &[u8]) -> Option<u16> {
    let (whole, decimals) = match weight {
        [whole @ b'0'..=b'1'] => (whole, &[][..]),
        [whole @ b'0'..=b'1', b'.', decimals @ ..] if decimals.len() <= 3 => (whole, decimals),
        _ => return None,
    };
    let value = (0..3).try_fold(u16::from(whole - b'0'), |value, at| {
        let digit = decimals.get(at).copied().unwrap_or(b'0');
        digit.is_ascii_digit().then(|| value * 10 + u16::from(digit - b'0'))
    })?;
    (value <= 1000).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negotiation() {
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
        for (accept, expected) in [
            ("*/*", Form::Text),
            ("", Form::Text),
            ("nonsense", Form::Text),
            ("image/png", Form::Text),
            (browser, Form::Html),
            ("text/*", Form::Text),
            ("application/json, text/plain, */*", Form::Json),
            ("text/plain, application/json", Form::Text),
            ("APPLICATION/JSON; charset=utf-8 ; Q=0.5, text/html;q=0.4", Form::Json),
            ("text/plain;q=0, */*;q=0.1", Form::Html),
            ("text/*;q=0.9, text/plain;q=0.1, application/json;q=0.5", Form::Html),
            ("text/plain;q=0, text/html;q=0, application/json;q=0", Form::Text),
            ("application/json;q=2, text/html;q=0.001", Form::Html),
            ("application/json;q=1.001, text/html;q=x", Form::Text),
            ("application/json;q=1.000, text/html;q=0.999", Form::Json),
        ] {
            assert_eq!(preferred(accept.as_bytes()), expected, "{accept}");
        }
    }

    #[test]
    fn pages() {
        let page = |accept: &str| {
            let mut out = Vec::new();
            let media_type = render(502, reason(502), "It's <b>.", b"\"id\"", Some(accept.as_bytes()), &mut out);
            (media_type, String::from_utf8(out).unwrap())
        };
        let (media_type, text) = page("*/*");
        assert_eq!(media_type, "text/plain; charset=utf-8");
        assert_eq!(text, "502 Bad Gateway\nIt's <b>.\nRequest id: \"id\"\n");
        let (media_type, text) = page("application/json");
        assert_eq!(media_type, "application/json");
        let expected = r#"{"status":502,"reason":"Bad Gateway","detail":"It's <b>.","request_id":"\"id\""}"#;
        assert_eq!(text.trim_end(), expected);
        let (media_type, text) = page("text/html");
        assert_eq!(media_type, "text/html; charset=utf-8");
        assert!(text.contains("<title>502 Bad Gateway</title>") && text.contains("It&#39;s &lt;b&gt;."));
        assert!(text.contains("<code>&quot;id&quot;</code>") && !text.contains("<b>"));
    }
}
