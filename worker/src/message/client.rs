//! Who asked.

use std::net::SocketAddr;

use shared::zone::Flight;

/// A client's connection, as far as an exchange on it needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    /// The other end; a unix socket's has no address.
    pub(crate) peer: Option<SocketAddr>,
    /// This end.
    pub(crate) local: Option<SocketAddr>,
    /// What a PROXY protocol header said: client and the address it connected to.
    pub(crate) announced: Option<(SocketAddr, SocketAddr)>,
    /// The connection's number within the worker.
    pub(crate) number: u64,
    /// How many requests it has carried, the present one included.
    pub(crate) requests: u64,
    /// What the zone says of it.
    pub(crate) flight: Flight,
}

impl Client {
    /// Whom the connection comes from: the announced client, else the peer.
    pub(crate) fn source(&self) -> Option<SocketAddr> {
        self.announced.map(|(source, _)| source).or(self.peer)
    }

    /// Where the client connected to.
    pub(crate) fn destination(&self) -> Option<SocketAddr> {
        self.announced.map(|(_, destination)| destination).or(self.local)
    }
}
