//! What is said of a connection that moves, and its form on the wire: fields in order, each behind its length (4 bytes).
//! Numbers are little-endian, what is absent is empty, addresses are text.

#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Kinds of records. Connections with TLS, when they move, are of other kinds, which a worker that has none refuses.
const WAITING: u8 = 1;
const TUNNEL: u8 = 2;

/// A connection, and all that a worker knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// One without TLS that waits for a request, its first or the next. Descriptor: the connection.
    Waiting(Client),
    /// One without TLS that has changed its protocol. Descriptors: the client's connection, the server's, and both ends
    /// of the pipe of each direction that has bytes in one, reading end first, to the server first.
    Tunnel(Client, Box<Tunnel>),
}

/// A client's connection. Times are CLOCK_MONOTONIC in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Client {
    /// The address of the listener that it came through, as its configuration has it.
    pub listener: String,
    /// The other end, if it has an address.
    pub peer: Option<SocketAddr>,
    /// This end.
    pub local: Option<SocketAddr>,
    /// What a PROXY protocol header has said: the client, and where it connected to.
    pub announced: Option<(SocketAddr, SocketAddr)>,
    /// When it was accepted.
    pub accepted: u64,
    /// How many requests it has carried.
    pub requests: u64,
    /// Whether a PROXY protocol header has to come first.
    pub awaits_announcement: bool,
    /// Since when it waits; 0 if it does not.
    pub waits_since: u64,
}

/// What goes on after a change of protocol.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tunnel {
    /// From the client to the server.
    pub up: Way,
    /// From the server to the client.
    pub down: Way,
    /// When a byte moved last.
    pub last_move: u64,
    /// How long none may, in nanoseconds.
    pub idle: u64,
    /// What is to be written of it when it ends.
    pub account: Account,
}

/// One direction of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Way {
    /// Read and not written yet; it goes before what is in the pipe.
    pub unsent: Vec<u8>,
    /// How many bytes the direction's pipe holds; 0 if it has none.
    pub in_pipe: u64,
    /// Whether its source has ended, and its sink was told.
    pub is_over: bool,
    /// How many bytes it has moved.
    pub moved: u64,
}

/// What is known of an exchange that became a tunnel: it is counted and logged once, by whoever sees its end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Account {
    /// When its first byte came.
    pub started: u64,
    /// The client, after trusted proxies.
    pub client: Option<IpAddr>,
    /// Whether the connection's peer is a trusted proxy.
    pub is_trusted: bool,
    /// The name that it goes by.
    pub id: Vec<u8>,
    /// The route's name.
    pub route: String,
    /// The upstream's name.
    pub upstream: String,
    /// The addresses of the servers that were tried, in order.
    pub servers: Vec<String>,
    /// How often it was sent again to the same server.
    pub repeats: u64,
    /// When the last attempt began.
    pub attempt_started: u64,
    /// How long it took to connect.
    pub connect_time: Option<u64>,
    /// How long it took until the answer's head had come.
    pub header_time: Option<u64>,
    /// Bytes sent to the server before the tunnel began.
    pub upstream_sent: u64,
    /// Bytes received from it before the tunnel began.
    pub upstream_received: u64,
    /// Bytes sent to the client before the tunnel began.
    pub sent: u64,
    /// The request's head.
    pub request: Vec<u8>,
    /// The answer's head.
    pub response: Vec<u8>,
}

impl Record {
    /// How many descriptors go with it.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        match self {
            Record::Waiting(_) => 1,
            Record::Tunnel(_, tunnel) => {
                2 + [&tunnel.up, &tunnel.down].into_iter().filter(|way| way.in_pipe > 0).count() * 2
            }
        }
    }

    /// Its kind, and its fields as bytes.
    pub(super) fn encode(&self) -> (u8, Vec<u8>) {
        let mut fields = Fields::default();
        match self {
            Record::Waiting(client) => {
                client.encode(&mut fields);
                (WAITING, fields.0)
            }
            Record::Tunnel(client, tunnel) => {
                let mut inner = Fields::default();
                client.encode(&mut inner);
                fields.put(&inner.0);
                tunnel.encode(&mut fields);
                (TUNNEL, fields.0)
            }
        }
    }

    /// Undoes [`Record::encode`].
    pub(super) fn decode(kind: u8, body: &[u8]) -> Result<Record, Unreadable> {
        let mut fields = Cut(body);
        match kind {
            WAITING => Ok(Record::Waiting(Client::decode(&mut fields)?)),
            TUNNEL => {
                let client = Client::decode(&mut Cut(fields.next()?))?;
                Ok(Record::Tunnel(client, Box::new(Tunnel::decode(&mut fields)?)))
            }
            _ => Err(Unreadable),
        }
    }
}

impl Client {
    fn encode(&self, fields: &mut Fields) {
        let (source, destination) = self.announced.unzip();
        fields.put(self.listener.as_bytes());
        fields.put_text(self.peer);
        fields.put_text(self.local);
        fields.put_text(source);
        fields.put_text(destination);
        fields.put_number(self.accepted);
        fields.put_number(self.requests);
        fields.put_number(self.awaits_announcement.into());
        fields.put_number(self.waits_since);
    }

    fn decode(fields: &mut Cut<'_>) -> Result<Client, Unreadable> {
        let listener = fields.string()?;
        let (peer, local) = (fields.parsed()?, fields.parsed()?);
        let (source, destination) = (fields.parsed()?, fields.parsed()?);
        Ok(Client {
            listener,
            peer,
            local,
            announced: source.zip(destination),
            accepted: fields.number()?,
            requests: fields.number()?,
            awaits_announcement: fields.number()? != 0,
            waits_since: fields.number()?,
        })
    }
}

impl Tunnel {
    fn encode(&self, fields: &mut Fields) {
        for way in [&self.up, &self.down] {
            fields.put(&way.unsent);
            fields.put_number(way.in_pipe);
            fields.put_number(way.is_over.into());
            fields.put_number(way.moved);
        }
        fields.put_number(self.last_move);
        fields.put_number(self.idle);
        let account = &self.account;
        fields.put_number(account.started);
        fields.put_text(account.client);
        fields.put_number(account.is_trusted.into());
        fields.put(&account.id);
        fields.put(account.route.as_bytes());
        fields.put(account.upstream.as_bytes());
        let mut servers = Fields::default();
        account.servers.iter().for_each(|server| servers.put(server.as_bytes()));
        fields.put(&servers.0);
        fields.put_number(account.repeats);
        fields.put_number(account.attempt_started);
        fields.put_some(account.connect_time);
        fields.put_some(account.header_time);
        fields.put_number(account.upstream_sent);
        fields.put_number(account.upstream_received);
        fields.put_number(account.sent);
        fields.put(&account.request);
        fields.put(&account.response);
    }

    fn decode(fields: &mut Cut<'_>) -> Result<Tunnel, Unreadable> {
        let mut way = || {
            Ok(Way {
                unsent: fields.next()?.to_vec(),
                in_pipe: fields.number()?,
                is_over: fields.number()? != 0,
                moved: fields.number()?,
            })
        };
        let (up, down) = (way()?, way()?);
        let (last_move, idle) = (fields.number()?, fields.number()?);
        let account = Account {
            started: fields.number()?,
            client: fields.parsed()?,
            is_trusted: fields.number()? != 0,
            id: fields.next()?.to_vec(),
            route: fields.string()?,
            upstream: fields.string()?,
            servers: {
                let mut servers = Cut(fields.next()?);
                let mut names = Vec::new();
                while !servers.0.is_empty() {
                    names.push(servers.string()?);
                }
                names
            },
            repeats: fields.number()?,
            attempt_started: fields.number()?,
            connect_time: fields.some()?,
            header_time: fields.some()?,
            upstream_sent: fields.number()?,
            upstream_received: fields.number()?,
            sent: fields.number()?,
            request: fields.next()?.to_vec(),
            response: fields.next()?.to_vec(),
        };
        Ok(Tunnel { up, down, last_move, idle, account })
    }
}

/// What is no record of a kind and version that is known here.
#[derive(Debug)]
pub(super) struct Unreadable;

/// Fields on their way out, each behind its length.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn put(&mut self, bytes: &[u8]) {
        // A record that long is not sent.
        self.0.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.0.extend_from_slice(bytes);
    }

    fn put_number(&mut self, number: u64) {
        self.put(&number.to_le_bytes());
    }

    fn put_some(&mut self, number: Option<u64>) {
        self.put(number.map(u64::to_le_bytes).as_ref().map_or(&[], |bytes| bytes));
    }

    fn put_text(&mut self, value: Option<impl ToString>) {
        self.put(value.map(|value| value.to_string()).unwrap_or_default().as_bytes());
    }
}

/// Fields on their way in.
struct Cut<'a>(&'a [u8]);

impl<'a> Cut<'a> {
    fn next(&mut self) -> Result<&'a [u8], Unreadable> {
        let (length, rest) = self.0.split_first_chunk().ok_or(Unreadable)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| Unreadable)?;
        let (field, rest) = rest.split_at_checked(length).ok_or(Unreadable)?;
        self.0 = rest;
        Ok(field)
    }

    fn number(&mut self) -> Result<u64, Unreadable> {
        self.next()?.try_into().map(u64::from_le_bytes).map_err(|_| Unreadable)
    }

    fn some(&mut self) -> Result<Option<u64>, Unreadable> {
        let field = self.next()?;
        if field.is_empty() {
            return Ok(None);
        }
        field.try_into().map(|bytes| Some(u64::from_le_bytes(bytes))).map_err(|_| Unreadable)
    }

    fn string(&mut self) -> Result<String, Unreadable> {
        String::from_utf8(self.next()?.to_vec()).map_err(|_| Unreadable)
    }

    fn parsed<T: FromStr>(&mut self) -> Result<Option<T>, Unreadable> {
        let text = self.string()?;
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| Unreadable)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn client() -> Client {
        Client {
            listener: "127.0.0.1:8080".into(),
            peer: Some("192.0.2.1:4000".parse().unwrap()),
            local: None,
            announced: Some(("[2001:db8::1]:1".parse().unwrap(), "[2001:db8::2]:2".parse().unwrap())),
            accepted: 7,
            requests: 3,
            awaits_announcement: true,
            waits_since: u64::MAX,
        }
    }

    pub(in super::super) fn tunnel(unsent: usize) -> Record {
        let way = Way { unsent: vec![b'u'; unsent], in_pipe: 0, is_over: true, moved: 1 << 40 };
        let account = Account {
            started: 1,
            client: Some("192.0.2.9".parse().unwrap()),
            is_trusted: true,
            id: b"id".to_vec(),
            route: "all".into(),
            upstream: "app".into(),
            servers: vec!["127.0.0.1:1".into(), "unix:/a".into()],
            repeats: 1,
            attempt_started: 2,
            connect_time: None,
            header_time: Some(0),
            upstream_sent: 4,
            upstream_received: 5,
            sent: 6,
            request: b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            response: b"HTTP/1.1 101 \r\n\r\n".to_vec(),
        };
        let down = Way { in_pipe: 9, ..Way::default() };
        Record::Tunnel(client(), Box::new(Tunnel { up: way, down, last_move: 8, idle: 9, account }))
    }

    fn decode(kind: u8, body: &[u8]) -> Option<Record> {
        Record::decode(kind, body).ok()
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_no_part_of_it_is() {
        for record in [Record::Waiting(client()), Record::Waiting(Client::default()), tunnel(20)] {
            let (kind, body) = record.encode();
            assert_eq!(decode(kind, &body).as_ref(), Some(&record));
            for length in 0..body.len() {
                assert_eq!(decode(kind, &body[..length]), None, "cut at {length}");
            }
            // A later version's field.
            let longer = [&body[..], &[1, 0, 0, 0, 9]].concat();
            assert_eq!(decode(kind, &longer).as_ref(), Some(&record));
            assert_eq!(decode(3, &body), None);
            // Whatever a byte is changed to, it is read or refused.
            for at in 0..body.len() {
                let mut changed = body.clone();
                changed[at] ^= 0x81;
                decode(kind, &changed);
            }
        }
    }
}
