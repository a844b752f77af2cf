//! HTTP/1.1 messages, as plainly as a test needs them.
//!
//! The parser is not the proxy's and shares nothing with it. It is strict where leniency would hide a fault: lines end
//! with CRLF, a field has a colon, a chunk has its size and its end.

/// A message's first line and its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The request line or the status line, without its CRLF.
    pub line: String,
    /// Names as sent, values without surrounding blanks, in order.
    pub fields: Vec<(String, String)>,
}

/// A message with its body taken out of its framing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The head.
    pub head: Head,
    /// The body.
    pub body: Vec<u8>,
    /// The fields after the last chunk.
    pub trailers: Vec<(String, String)>,
}

/// A plain 200 answer with this body.
pub fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// How much of the connection is the message's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// This many bytes.
    Length(usize),
    /// Chunks.
    Chunked,
    /// All that comes until the connection ends.
    UntilClose,
}

impl Head {
    /// The head at the start of `bytes` and its length, or `None` if more bytes are needed.
    pub(crate) fn parse(bytes: &[u8]) -> Option<(Head, usize)> {
        let end = find(bytes, b"\r\n\r\n")?;
        let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let (line, rest) = text.split_once("\r\n").unwrap_or((&text, ""));
        Some((Head { line: line.to_owned(), fields: fields(rest) }, end + 4))
    }

    /// The status, if this is a response.
    pub fn status(&self) -> u16 {
        let code = self.line.split(' ').nth(1).and_then(|code| code.parse().ok());
        code.unwrap_or_else(|| panic!("not a status line: {:?}", self.line))
    }

    /// The method, if this is a request.
    pub fn method(&self) -> &str {
        self.line.split(' ').next().unwrap_or("")
    }

    /// The target, if this is a request.
    pub fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or("")
    }

    /// The value of the one field of this name; `None` if there is none. Fails if there are several.
    pub fn field(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "several {name} fields: {all:?}");
        all.first().copied()
    }

    /// The values of all fields of this name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    /// How a request's body is framed.
    pub(crate) fn request_framing(&self) -> Framing {
        self.declared_framing().unwrap_or(Framing::Length(0))
    }

    /// How the body of a response to a `method` request is framed (RFC 9112 §6.3).
    pub(crate) fn response_framing(&self, method: &str) -> Framing {
        let status = self.status();
        if method == "HEAD" || status < 200 || status == 204 || status == 304 {
            return Framing::Length(0);
        }
        self.declared_framing().unwrap_or(Framing::UntilClose)
    }

    fn declared_framing(&self) -> Option<Framing> {
        if let Some(coding) = self.field("Transfer-Encoding") {
            assert_eq!(self.field("Content-Length"), None, "both framings at once");
            assert!(coding.eq_ignore_ascii_case("chunked"), "unknown transfer coding {coding:?}");
            return Some(Framing::Chunked);
        }
        let length = self.field("Content-Length")?;
        Some(Framing::Length(length.parse().unwrap_or_else(|_| panic!("bad Content-Length {length:?}"))))
    }
}

impl Message {
    /// The status, if this is a response.
    pub fn status(&self) -> u16 {
        self.head.status()
    }

    /// The value of the one field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.field(name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The complete requests at the start of `bytes`.
    pub(crate) fn requests(mut bytes: &[u8]) -> Vec<Message> {
        let mut requests = Vec::new();
        while let Some((head, used)) = Head::parse(bytes) {
            let framing = head.request_framing();
            let Some((body, trailers, body_used)) = take_body(&bytes[used..], framing) else { break };
            requests.push(Message { head, body, trailers });
            bytes = &bytes[used + body_used..];
        }
        requests
    }
}

/// A chunk at the start of `bytes`: its data and its whole length. An empty one is the last; its trailers follow.
pub(crate) fn take_chunk(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let line_end = find(bytes, b"\r\n")?;
    let line = String::from_utf8_lossy(&bytes[..line_end]).into_owned();
    let digits = line.split(';').next().unwrap_or("");
    let size = usize::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("bad chunk size line {line:?}"));
    let data = line_end + 2;
    if size == 0 {
        return Some((Vec::new(), data));
    }
    let end = data + size;
    let after = bytes.get(end..end + 2)?;
    assert_eq!(after, b"\r\n", "chunk of {size} bytes is not followed by CRLF");
    Some((bytes[data..end].to_vec(), end + 2))
}

/// The trailer section at the start of `bytes`, and its length.
pub(crate) fn take_trailers(bytes: &[u8]) -> Option<(Vec<(String, String)>, usize)> {
    if bytes.starts_with(b"\r\n") {
        return Some((Vec::new(), 2));
    }
    let end = find(bytes, b"\r\n\r\n")?;
    Some((fields(&String::from_utf8_lossy(&bytes[..end])), end + 4))
}

type Body = (Vec<u8>, Vec<(String, String)>, usize);

fn take_body(bytes: &[u8], framing: Framing) -> Option<Body> {
    match framing {
        Framing::Length(length) => Some((bytes.get(..length)?.to_vec(), Vec::new(), length)),
        Framing::UntilClose => Some((bytes.to_vec(), Vec::new(), bytes.len())),
        Framing::Chunked => {
            let (mut body, mut used) = (Vec::new(), 0);
            loop {
                let (data, chunk_used) = take_chunk(&bytes[used..])?;
                used += chunk_used;
                if data.is_empty() {
                    let (trailers, trailers_used) = take_trailers(&bytes[used..])?;
                    return Some((body, trailers, used + trailers_used));
                }
                body.extend(data);
            }
        }
    }
}

fn fields(lines: &str) -> Vec<(String, String)> {
    let split = |line: &str| {
        let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("a field without a colon: {line:?}"));
        (name.to_owned(), value.trim_matches([' ', '\t']).to_owned())
    };
    lines.split("\r\n").filter(|line| !line.is_empty()).map(split).collect()
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipeline_is_cut_into_its_requests() {
        let bytes = b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc\
            POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nde\r\n0\r\nT: v\r\n\r\n\
            GET /c HTTP/1.1\r\n\r\nGET /incomplete";
        let requests = Message::requests(bytes);
        let seen: Vec<_> = requests.iter().map(|r| (r.head.target(), r.text())).collect();
        assert_eq!(seen, [("/a", "abc".into()), ("/b", "de".into()), ("/c", String::new())]);
        assert_eq!(requests[1].trailers, [("T".into(), "v".into())]);
    }

    #[test]
    fn framing_follows_method_and_status() {
        let (head, _) = Head::parse(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n").unwrap();
        assert_eq!(head.response_framing("GET"), Framing::Length(7));
        assert_eq!(head.response_framing("HEAD"), Framing::Length(0));
        let (head, _) = Head::parse(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n").unwrap();
        assert_eq!(head.response_framing("GET"), Framing::Length(0));
        let (head, _) = Head::parse(b"HTTP/1.0 200 OK\r\n\r\n").unwrap();
        assert_eq!(head.response_framing("GET"), Framing::UntilClose);
    }
}
