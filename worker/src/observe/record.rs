//! What is known of an exchange while it runs, and what is written of it when it ends.

use std::io::Write;
use std::net::IpAddr;

use conf::template::Variable;
use shared::stats::{ListenerCells, ProcessCells, RouteCells, ServerCells, UpstreamCells};

use super::time::Clock;
use crate::message::body::Traffic;
use crate::message::client::Client;
use crate::message::decimal;
use crate::message::fault::{Fault, Kind};
use crate::message::head::{Known, Request, Response};
use crate::message::request_id::RequestId;
use crate::message::template::Variables;
use crate::runtime::clock;

/// The most servers that are tried for one exchange.
pub(crate) const ATTEMPTS_MAX: usize = 3;

/// What is known of an exchange so far.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    /// When its first byte came, in nanoseconds of the worker's clock.
    pub(crate) started: u64,
    /// The client's address, after trusted proxies.
    pub(crate) client: Option<IpAddr>,
    /// Whether the connection's peer is a trusted proxy.
    pub(crate) is_trusted: bool,
    pub(crate) id: RequestId,
    /// Index of the route that took it.
    pub(crate) route: Option<usize>,
    /// The status that the client was sent, or would have been.
    pub(crate) status: u16,
    pub(crate) fault: Option<Fault>,
    /// Indexes of the servers that were tried, in order.
    tried: [u16; ATTEMPTS_MAX],
    attempts: usize,
    /// How often it was sent again on a new connection to the same server.
    pub(crate) repeats: u64,
    /// Of the last attempt, from its start, in nanoseconds.
    pub(crate) attempt_started: u64,
    pub(crate) connect_time: Option<u64>,
    pub(crate) header_time: Option<u64>,
    pub(crate) response_time: Option<u64>,
    pub(crate) upstream_status: Option<u16>,
    pub(crate) upstream_sent: u64,
    pub(crate) upstream_received: u64,
    /// What went through the tunnel that it became.
    pub(crate) tunnel: Traffic,
    /// Bytes of the request, head and body.
    pub(crate) request_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) sent_body_bytes: u64,
}

impl Exchange {
    /// One whose first byte came at `started`.
    pub(crate) fn begin(started: u64) -> Exchange {
        Exchange { started, ..Exchange::default() }
    }

    /// Notes that a server is tried.
    pub(crate) fn try_server(&mut self, server: usize) {
        if let (Some(place), Ok(server)) = (self.tried.get_mut(self.attempts), u16::try_from(server)) {
            *place = server;
            self.attempts += 1;
        }
    }

    /// Indexes of the servers tried so far.
    pub(crate) fn tried(&self) -> impl Iterator<Item = usize> + '_ {
        self.tried[..self.attempts].iter().map(|&server| usize::from(server))
    }

    pub(crate) fn attempts(&self) -> usize {
        self.attempts
    }

    /// Notes how long it has been since the last attempt began.
    pub(crate) fn since_attempt(&self) -> Option<u64> {
        Some(clock::now() - self.attempt_started)
    }
}

/// An exchange and everything that can be said of it.
pub(crate) struct View<'a> {
    pub(crate) exchange: &'a Exchange,
    pub(crate) client: &'a Client,
    pub(crate) request: Request<'a>,
    /// The server's response head, if one came.
    pub(crate) response: Option<Response<'a>>,
    /// In lower case, without port.
    pub(crate) host: &'a [u8],
    /// Normalised.
    pub(crate) path: &'a [u8],
    pub(crate) query: Option<&'a [u8]>,
    pub(crate) route: &'a str,
    pub(crate) upstream: Option<&'a str>,
    /// Addresses of the servers that were tried.
    pub(crate) servers: &'a dyn Fn(usize) -> &'a str,
    pub(crate) clock: &'a Clock,
    pub(crate) hostname: &'a str,
}

impl Variables for View<'_> {
    fn append(&self, variable: &Variable, out: &mut Vec<u8>) -> bool {
        let Exchange { attempts, .. } = *self.exchange;
        match variable {
            Variable::Arg(name) => put(argument(self.query, name), out),
            Variable::Args => put(self.query, out),
            Variable::BodyBytesSent => number(self.exchange.sent_body_bytes, out),
            Variable::BytesSent => number(self.exchange.sent_bytes, out),
            Variable::Connection => number(self.client.number, out),
            Variable::ConnectionRequests => number(self.client.requests, out),
            Variable::Cookie(name) => put(self.cookie(name), out),
            Variable::Fault => put(self.exchange.fault.map(|fault| fault.token().as_bytes()), out),
            Variable::Host => put(some(self.host), out),
            Variable::Hostname => put(some(self.hostname.as_bytes()), out),
            Variable::Http(name) => put(self.request.head.fields.find(name, self.request.bytes), out),
            Variable::IsArgs => put(self.query.map(|_| &b"?"[..]), out),
            Variable::Msec => seconds(Some(clock::wall_millis() * clock::MILLISECOND), out),
            Variable::Pid => number(u64::from(std::process::id()), out),
            Variable::ProxyHost => put(self.upstream.map(str::as_bytes), out),
            Variable::ProxyProtocolAddr => address(self.client.announced.map(|(source, _)| source.ip()), out),
            Variable::RealipRemoteAddr => self.append_peer(self.client.peer.map(|peer| peer.ip()), out),
            Variable::RemoteAddr => self.append_peer(self.exchange.client, out),
            Variable::RemotePort => self.client.source().is_some_and(|source| number(source.port().into(), out)),
            Variable::RemoteUser => self.append_user(out),
            Variable::Request => self.append_request_line(out),
            Variable::RequestId => put(some(self.exchange.id.as_bytes()), out),
            Variable::RequestLength => number(self.exchange.request_bytes, out),
            Variable::RequestMethod => put(some(self.request.method()), out),
            Variable::RequestTime => seconds(Some(clock::now() - self.exchange.started), out),
            Variable::RequestUri => put(some(self.request.target()), out),
            Variable::Route => put(some(self.route.as_bytes()), out),
            Variable::Scheme => put(Some(b"http"), out),
            Variable::SentHttp(name) => {
                put(self.response.and_then(|response| response.head.fields.find(name, response.bytes)), out)
            }
            Variable::ServerAddr => address(self.client.destination().map(|local| local.ip()), out),
            Variable::ServerPort => self.client.destination().is_some_and(|local| number(local.port().into(), out)),
            Variable::ServerProtocol => put(self.protocol(), out),
            Variable::Status => number(self.exchange.status.into(), out),
            Variable::TimeIso8601 => put(Some(self.clock.iso8601()), out),
            Variable::TimeLocal => put(Some(self.clock.local()), out),
            Variable::UpstreamAddr => {
                for (place, server) in self.exchange.tried().enumerate() {
                    out.extend_from_slice(if place == 0 { b"" } else { b", " });
                    out.extend_from_slice((self.servers)(server).as_bytes());
                }
                attempts > 0
            }
            Variable::UpstreamBytesReceived => attempts > 0 && number(self.exchange.upstream_received, out),
            Variable::UpstreamBytesSent => attempts > 0 && number(self.exchange.upstream_sent, out),
            Variable::UpstreamConnectTime => seconds(self.exchange.connect_time, out),
            Variable::UpstreamHeaderTime => seconds(self.exchange.header_time, out),
            Variable::UpstreamResponseTime => seconds(self.exchange.response_time, out),
            Variable::UpstreamStatus => self.exchange.upstream_status.is_some_and(|status| number(status.into(), out)),
            Variable::Uri => put(some(self.path), out),
        }
    }
}

impl View<'_> {
    fn protocol(&self) -> Option<&'static [u8]> {
        let versions: [&[u8]; 2] = [b"HTTP/1.0", b"HTTP/1.1"];
        some(self.request.method()).and_then(|_| versions.get(usize::from(self.request.head.minor)).copied())
    }

    fn append_request_line(&self, out: &mut Vec<u8>) -> bool {
        let Some(protocol) = self.protocol() else { return false };
        for part in [self.request.method(), b" ", self.request.target(), b" ", protocol] {
            out.extend_from_slice(part);
        }
        true
    }

    /// The peer of a unix socket has no address: it is called what nginx calls it.
    fn append_peer(&self, peer: Option<IpAddr>, out: &mut Vec<u8>) -> bool {
        if peer.is_none() {
            return put(Some(b"unix:"), out);
        }
        address(peer, out)
    }

    /// The user of Basic credentials (RFC 7617 §2).
    fn append_user(&self, out: &mut Vec<u8>) -> bool {
        let credentials = self.request.head.fields.find("authorization", self.request.bytes);
        let Some((scheme, token)) = credentials.and_then(|value| value.split_at_checked(6)) else { return false };
        let start = out.len();
        if scheme.eq_ignore_ascii_case(b"basic ") {
            decode_base64_until_colon(token.trim_ascii(), out);
        }
        out.len() > start
    }

    fn cookie(&self, name: &str) -> Option<&[u8]> {
        let cookies = self.request.head.fields.all(Known::Cookie, self.request.bytes);
        let mut pairs = cookies.flat_map(|value| value.split(|&byte| byte == b';')).map(<[u8]>::trim_ascii);
        pairs.find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    }
}

fn argument<'a>(query: Option<&'a [u8]>, name: &str) -> Option<&'a [u8]> {
    let mut pairs = query?.split(|&byte| byte == b'&');
    pairs.find_map(|pair| {
        let (key, value) = match memchr::memchr(b'=', pair) {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &b""[..]),
        };
        key.eq_ignore_ascii_case(name.as_bytes()).then_some(value)
    })
}

/// Decodes base64 (RFC 4648 §4) up to the first colon or the first byte that is no digit of it.
fn decode_base64_until_colon(text: &[u8], out: &mut Vec<u8>) {
    let (mut bits, mut count) = (0u32, 0);
    for &byte in text {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            let [.., decoded] = (bits >> count).to_be_bytes();
            if decoded == b':' {
                return;
            }
            out.push(decoded);
        }
    }
}

fn some(value: &[u8]) -> Option<&[u8]> {
    (!value.is_empty()).then_some(value)
}

fn put(value: Option<&[u8]>, out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(value.unwrap_or_default());
    value.is_some()
}

fn number(value: u64, out: &mut Vec<u8>) -> bool {
    decimal::push(value, out);
    true
}

fn seconds(nanos: Option<u64>, out: &mut Vec<u8>) -> bool {
    if let Some(nanos) = nanos {
        decimal::push_seconds(nanos / clock::MILLISECOND, out);
    }
    nanos.is_some()
}

/// Appends an address; false when there is none.
pub(crate) fn address(value: Option<IpAddr>, out: &mut Vec<u8>) -> bool {
    match value {
        Some(IpAddr::V4(address)) => decimal::push_dotted(address.octets(), out),
        Some(IpAddr::V6(address)) => {
            // Writing to memory does not fail.
            let _ = write!(out, "{address}");
        }
        None => {}
    }
    value.is_some()
}

/// The cells that an exchange is counted in.
pub(crate) struct Cells<'a> {
    pub(crate) process: &'a ProcessCells,
    pub(crate) listener: &'a ListenerCells,
    pub(crate) route: &'a RouteCells,
    /// The upstream, and the server that was tried last.
    pub(crate) upstream: Option<(&'a UpstreamCells, Option<&'a ServerCells>)>,
}

/// Counts an exchange that has ended.
pub(crate) fn count(exchange: &Exchange, cells: &Cells<'_>) {
    let duration = clock::now() - exchange.started;
    cells.process.requests.inc();
    cells.listener.requests.inc();
    cells.listener.bytes_in.add(exchange.request_bytes);
    cells.listener.bytes_out.add(exchange.sent_bytes);
    cells.route.requests.inc();
    count_status(exchange.status, &cells.route.status);
    cells.route.bytes_in.add(exchange.request_bytes);
    cells.route.bytes_out.add(exchange.sent_bytes);
    cells.route.latency.record(duration);
    if let Some(fault) = exchange.fault {
        if fault.is_client_gone() {
            cells.route.aborted.inc();
        }
        if fault.kind == Kind::Quarantined {
            cells.process.quarantined.inc();
        }
        if fault.status() == 400 {
            cells.listener.bad_requests.inc();
        }
    }
    let Some((upstream, server)) = cells.upstream else { return };
    let server_fault = exchange.fault.filter(|fault| fault.side == crate::message::fault::Side::Server);
    upstream.requests.inc();
    upstream.retries.add(exchange.repeats + exchange.attempts().saturating_sub(1) as u64);
    upstream.faults.add(server_fault.is_some().into());
    if let Some(time) = exchange.header_time {
        upstream.latency.record(time);
    }
    let Some(server) = server else { return };
    server.bytes_out.add(exchange.upstream_sent);
    server.bytes_in.add(exchange.upstream_received);
    if let Some(fault) = server_fault {
        count_fault(server, fault);
    }
    if let Some(status) = exchange.upstream_status {
        count_status(status, &server.status);
    }
    if let Some(time) = exchange.header_time {
        server.latency.record(time);
    }
}

/// Counts a fault of a server: the one that ended an exchange, or one that led to another server.
pub(crate) fn count_fault(server: &ServerCells, fault: Fault) {
    server.faults.inc();
    server.timeouts.add((fault.kind == Kind::Timeout).into());
}

fn count_status(status: u16, classes: &[shared::stats::Counter; 5]) {
    if let Some(class) = usize::from(status / 100).checked_sub(1).and_then(|class| classes.get(class)) {
        class.inc();
    }
}
