//! The PROXY protocol, versions 1 (a line of text) and 2 (binary), both ways.
//!
//! A receiver that expects it takes no connection without it, so there is no guessing here: bytes that don't begin a
//! header are malformed at the first of them that differs. Version 2's extensions are skipped, within their bounds.

#![forbid(unsafe_code)]

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use conf::model::ProxyProtocol;
use memchr::memchr;

/// The longest header of version 1 in bytes, its line end included.
pub(crate) const V1_BYTES_MAX: usize = 107;
/// The longest header of version 2 in bytes that is accepted: what the protocol obliges receivers to take.
pub(crate) const V2_BYTES_MAX: usize = 536;

/// Who speaks to whom on the connection that a proxy passes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Addresses<'a> {
    /// Not said, or the proxy speaks for itself: the connection's own addresses stand.
    Unknown,
    /// TCP.
    Inet {
        /// The client.
        source: SocketAddr,
        /// Where the client connected to.
        destination: SocketAddr,
    },
    /// A stream over a unix socket. Paths are empty for unnamed ends; those over 108 bytes are cut when encoded.
    Unix {
        /// The client's path.
        source: &'a [u8],
        /// The path the client connected to.
        destination: &'a [u8],
    },
}

/// What the bytes so far amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress<'a> {
    /// A header may yet become of it. Never said of [`V2_BYTES_MAX`] bytes or more.
    Incomplete,
    /// A header.
    Done {
        /// How many bytes it took.
        length: usize,
        /// What it said.
        addresses: Addresses<'a>,
    },
    /// No header, and why; the connection is to be closed without an answer.
    Malformed(&'static str),
}

/// Reads a header of either version from the first bytes of a connection.
pub(crate) fn decode(bytes: &[u8]) -> Progress<'_> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(a, b)| a == b);
    let decoded = if begins(V2_SIGNATURE) {
        decode_v2(bytes)
    } else if begins(V1_SIGNATURE) {
        decode_v1(bytes)
    } else {
        Err("no PROXY protocol header")
    };
    match decoded {
        Ok(Some((length, addresses))) => Progress::Done { length, addresses },
        Ok(None) => Progress::Incomplete,
        Err(reason) => Progress::Malformed(reason),
    }
}

/// Appends a header. Version 1 has no word for unix sockets: `UNKNOWN` stands for them. When one end is IPv4 and the
/// other IPv6, the former is written as an IPv4-mapped address.
pub(crate) fn encode(version: ProxyProtocol, addresses: &Addresses<'_>, out: &mut Vec<u8>) {
    match version {
        ProxyProtocol::V1 => encode_v1(addresses, out),
        ProxyProtocol::V2 => encode_v2(addresses, out),
    }
}

type Decoded<'a> = Result<Option<(usize, Addresses<'a>)>, &'static str>;

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_HEAD_BYTES: usize = 16;

/// Version 2, command LOCAL: the sender's own connection.
const LOCAL: u8 = 0x20;
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
/// Family and transport.
const UNSPECIFIED: u8 = 0x00;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
const UNIX_STREAM: u8 = 0x31;

const TCP4_BYTES: u8 = 2 * (4 + 2);
const TCP6_BYTES: u8 = 2 * (16 + 2);
const UNIX_PATH_BYTES: u8 = 108;

fn decode_v1(bytes: &[u8]) -> Decoded<'_> {
    let window = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let line = match memchr(b'\r', window) {
        Some(end) if window.get(end + 1) == Some(&b'\n') => &window[..end],
        Some(end) if end + 1 == window.len() && window.len() < V1_BYTES_MAX => return Ok(None),
        None if window.len() < V1_BYTES_MAX => return Ok(None),
        Some(_) => return Err("no line feed after the carriage return of a PROXY line"),
        None => return Err("PROXY line too long"),
    };
    let length = line.len() + 2;
    let line = std::str::from_utf8(&line[V1_SIGNATURE.len()..]).map_err(|_| "PROXY line is not text")?;
    let mut words = line.split(' ');
    let addresses = match words.next() {
        // Whatever follows is to be ignored.
        Some("UNKNOWN") => Addresses::Unknown,
        Some("TCP4") => tcp_words::<Ipv4Addr>(words).ok_or("invalid TCP4 addresses in a PROXY line")?,
        Some("TCP6") => tcp_words::<Ipv6Addr>(words).ok_or("invalid TCP6 addresses in a PROXY line")?,
        _ => return Err("unknown protocol in a PROXY line"),
    };
    Ok(Some((length, addresses)))
}

fn tcp_words<'w, Ip: std::str::FromStr + Into<IpAddr>>(
    mut words: impl Iterator<Item = &'w str>,
) -> Option<Addresses<'static>> {
    let mut ip = || words.next()?.parse::<Ip>().ok().map(Into::into);
    let (source, destination) = (ip()?, ip()?);
    let mut port = || {
        let word = words.next()?;
        let canonical = word == "0" || !word.starts_with(['0', '+']);
        word.parse().ok().filter(|_| canonical)
    };
    let (source, destination) = (SocketAddr::new(source, port()?), SocketAddr::new(destination, port()?));
    words.next().is_none().then_some(Addresses::Inet { source, destination })
}

fn decode_v2(bytes: &[u8]) -> Decoded<'_> {
    let Some((head, rest)) = bytes.split_first_chunk::<V2_HEAD_BYTES>() else { return Ok(None) };
    let [.., command, family, high, low] = *head;
    let block = usize::from(u16::from_be_bytes([high, low]));
    if V2_HEAD_BYTES + block > V2_BYTES_MAX {
        return Err("PROXY header too long");
    }
    if !matches!(command, LOCAL | PROXY) {
        return Err("unknown version or command in a PROXY header");
    }
    let Some(block) = rest.get(..block) else { return Ok(None) };
    let length = V2_HEAD_BYTES + block.len();
    if command == LOCAL {
        return Ok(Some((length, Addresses::Unknown)));
    }
    let short = "PROXY header too short for its addresses";
    let (addresses, extensions) = match family {
        // What follows an unspecified family has no defined shape.
        UNSPECIFIED => (Addresses::Unknown, &[][..]),
        TCP4 => {
            let (block, extensions) = block.split_first_chunk::<{ TCP4_BYTES as usize }>().ok_or(short)?;
            let [a, b, c, d, e, f, g, h, ports @ ..] = *block;
            (inet([a, b, c, d], [e, f, g, h], ports), extensions)
        }
        TCP6 => {
            let (source, rest) = block.split_first_chunk::<16>().ok_or(short)?;
            let (destination, rest) = rest.split_first_chunk::<16>().ok_or(short)?;
            let (ports, extensions) = rest.split_first_chunk::<4>().ok_or(short)?;
            (inet(*source, *destination, *ports), extensions)
        }
        UNIX_STREAM => {
            let (source, rest) = block.split_at_checked(UNIX_PATH_BYTES.into()).ok_or(short)?;
            let (destination, extensions) = rest.split_at_checked(UNIX_PATH_BYTES.into()).ok_or(short)?;
            (Addresses::Unix { source: to_nul(source), destination: to_nul(destination) }, extensions)
        }
        _ => return Err("PROXY header for something other than a stream"),
    };
    skip_extensions(extensions)?;
    Ok(Some((length, addresses)))
}

fn inet(source: impl Into<IpAddr>, destination: impl Into<IpAddr>, ports: [u8; 4]) -> Addresses<'static> {
    let [a, b, c, d] = ports;
    Addresses::Inet {
        source: SocketAddr::new(source.into(), u16::from_be_bytes([a, b])),
        destination: SocketAddr::new(destination.into(), u16::from_be_bytes([c, d])),
    }
}

fn to_nul(path: &[u8]) -> &[u8] {
    &path[..memchr(0, path).unwrap_or(path.len())]
}

/// Type, length in two bytes, value; again and again.
fn skip_extensions(mut extensions: &[u8]) -> Result<(), &'static str> {
    while let [_, high, low, rest @ ..] = extensions {
        let value = usize::from(u16::from_be_bytes([*high, *low]));
        extensions = rest.get(value..).ok_or("extension overruns its PROXY header")?;
    }
    if extensions.is_empty() { Ok(()) } else { Err("extension overruns its PROXY header") }
}

fn encode_v1(addresses: &Addresses<'_>, out: &mut Vec<u8>) {
    let Addresses::Inet { source, destination } = addresses else {
        return out.extend_from_slice(b"PROXY UNKNOWN\r\n");
    };
    let (family, from, to) = match (source.ip(), destination.ip()) {
        (from @ IpAddr::V4(_), to @ IpAddr::V4(_)) => ("TCP4", from, to),
        (from, to) => ("TCP6", mapped(from).into(), mapped(to).into()),
    };
    let written = write!(out, "PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port());
    debug_assert!(written.is_ok(), "a Vec takes everything");
}

fn encode_v2(addresses: &Addresses<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(V2_SIGNATURE);
    let mut head = |command: u8, family: u8, block: u8| out.extend([command, family, 0, block]);
    match addresses {
        Addresses::Unknown => head(LOCAL, UNSPECIFIED, 0),
        Addresses::Inet { source, destination } => {
            match (source.ip(), destination.ip()) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    head(PROXY, TCP4, TCP4_BYTES);
                    out.extend(from.octets().into_iter().chain(to.octets()));
                }
                (from, to) => {
                    head(PROXY, TCP6, TCP6_BYTES);
                    out.extend(mapped(from).octets().into_iter().chain(mapped(to).octets()));
                }
            }
            out.extend(source.port().to_be_bytes().into_iter().chain(destination.port().to_be_bytes()));
        }
        Addresses::Unix { source, destination } => {
            head(PROXY, UNIX_STREAM, 2 * UNIX_PATH_BYTES);
            for path in [source, destination] {
                out.extend(path.iter().copied().chain(std::iter::repeat(0)).take(UNIX_PATH_BYTES.into()));
            }
        }
    }
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(source: &str, destination: &str) -> Addresses<'static> {
        Addresses::Inet { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[command, family], &length, block].concat()
    }

    #[test]
    fn lines() {
        for (line, expected) in [
            ("PROXY TCP4 1.2.3.4 5.6.7.8 9 65535\r\n", Some(tcp("1.2.3.4:9", "5.6.7.8:65535"))),
            ("PROXY TCP6 ::1 2001:db8::2 1 0\r\n", Some(tcp("[::1]:1", "[2001:db8::2]:0"))),
            ("PROXY UNKNOWN\r\n", Some(Addresses::Unknown)),
            ("PROXY UNKNOWN anything at all\r\n", Some(Addresses::Unknown)),
            ("PROXY UNKNOWNS\r\n", None),
            ("PROXY UDP4 1.2.3.4 5.6.7.8 9 10\r\n", None),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 9\r\n", None),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 9 10 \r\n", None),
            ("PROXY TCP4 1.2.3.4  5.6.7.8 9 10\r\n", None),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 09 10\r\n", None),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 +9 10\r\n", None),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 9 65536\r\n", None),
            ("PROXY TCP4 1.2.3.04 5.6.7.8 9 10\r\n", None),
            ("PROXY TCP4 ::1 ::1 9 10\r\n", None),
            ("PROXY TCP6 1.2.3.4 5.6.7.8 9 10\r\n", None),
            ("PROXY\tTCP4 1.2.3.4 5.6.7.8 9 10\r\n", None),
            ("PROXY UNKNOWN\n\r", None),
            ("PROXY UNKNOWN\rx", None),
            ("GET / HTTP/1.1\r\n", None),
        ] {
            let expected = expected.map(|addresses| Progress::Done { length: line.len(), addresses });
            let found = decode(line.as_bytes());
            match expected {
                Some(expected) => assert_eq!(found, expected, "{line:?}"),
                None => assert!(!matches!(found, Progress::Done { .. }), "{line:?}"),
            }
        }
        let long = [b"PROXY UNKNOWN ", &[b'x'; 91][..]].concat();
        assert_eq!(
            decode(&[&long[..], b"\r\n"].concat()),
            Progress::Done { length: 107, addresses: Addresses::Unknown }
        );
        assert_eq!(decode(&long), Progress::Incomplete);
        assert!(matches!(decode(&[&long[..], b"x\r\n"].concat()), Progress::Malformed(_)));
        assert!(matches!(decode(&[&long[..], b"xx"].concat()), Progress::Malformed(_)));
    }

    #[test]
    fn binary() {
        let addresses = [1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 1, 0];
        let with = |extension: &[u8]| [&addresses, extension].concat();
        let done = |length, addresses| Progress::Done { length, addresses };
        let both = tcp("1.2.3.4:9", "5.6.7.8:256");
        assert_eq!(decode(&v2(PROXY, TCP4, &addresses)), done(28, both));
        assert_eq!(decode(&v2(PROXY, TCP4, &with(&[4, 0, 2, 7, 7, 4, 0, 0]))), done(36, both));
        assert_eq!(decode(&v2(LOCAL, TCP4, &[1])), done(17, Addresses::Unknown));
        assert_eq!(decode(&v2(PROXY, UNSPECIFIED, &[1, 2])), done(18, Addresses::Unknown));
        for (header, what) in [
            (v2(PROXY, TCP4, &with(&[4, 0, 2, 7])), "an extension past the end"),
            (v2(PROXY, TCP4, &with(&[4, 0])), "half an extension's head"),
            (v2(PROXY, TCP4, &addresses[1..]), "too short"),
            (v2(PROXY, TCP6, &addresses), "too short"),
            (v2(PROXY, UNIX_STREAM, &[0; 215]), "too short"),
            (v2(PROXY, 0x12, &addresses), "datagrams"),
            (v2(PROXY, 0x41, &addresses), "no such family"),
            (v2(0x22, TCP4, &addresses), "no such command"),
            (v2(0x11, TCP4, &addresses), "no such version"),
            (v2(LOCAL, 0, &[0; V2_BYTES_MAX - V2_HEAD_BYTES + 1]), "too long"),
        ] {
            assert!(matches!(decode(&header), Progress::Malformed(_)), "{what}");
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_and_no_sooner() {
        let path = [b'p'; UNIX_PATH_BYTES as usize];
        let tables = [
            (tcp("1.2.3.4:9", "5.6.7.8:10"), None),
            (tcp("[::1]:9", "[2001:db8::1]:10"), None),
            (tcp("1.2.3.4:9", "[::1]:10"), Some(tcp("[::ffff:1.2.3.4]:9", "[::1]:10"))),
            (Addresses::Unknown, None),
            (Addresses::Unix { source: b"", destination: &path }, None),
        ];
        for (addresses, read_as) in tables {
            for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
                let mut bytes = Vec::new();
                encode(version, &addresses, &mut bytes);
                let length = bytes.len();
                for cut in 0..length {
                    assert_eq!(decode(&bytes[..cut]), Progress::Incomplete);
                }
                bytes.extend(b"GET /");
                let unix_in_text = version == ProxyProtocol::V1 && matches!(addresses, Addresses::Unix { .. });
                let addresses = if unix_in_text { Addresses::Unknown } else { read_as.unwrap_or(addresses) };
                assert_eq!(decode(&bytes), Progress::Done { length, addresses });
            }
        }
    }

    #[test]
    fn any_bytes_get_an_answer_in_time() {
        let mut random = fastrand::Rng::with_seed(2);
        let mut bytes = v2(PROXY, TCP6, &[0; 60]);
        bytes.resize(V2_BYTES_MAX, 0);
        for _ in 0..20_000 {
            let at = random.usize(12..24);
            bytes[at] = random.u8(..);
            assert_ne!(decode(&bytes), Progress::Incomplete);
            decode(&bytes[..random.usize(..bytes.len())]);
        }
    }
}
