//! Listening sockets that another process opened, an earlier master or a service manager: checked before they are used.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use conf::value::Address;
use nix::sys::socket::{SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt};

use super::{Bound, Listeners};

/// Sockets of one address, as another process passes them.
#[derive(Debug)]
pub(crate) struct Passed {
    /// As a configuration writes it.
    pub(crate) address: String,
    /// In the order of seats; of an address with many there may be several such pieces.
    pub(crate) sockets: Vec<OwnedFd>,
    /// Whether a service manager opened the first.
    pub(crate) is_activated: bool,
}

impl Listeners {
    /// Sockets of these addresses, each in the order of its seats. The paths of unix sockets stay those of whoever made
    /// them while the listeners are `lent`.
    ///
    /// # Errors
    /// A sentence for the operator, for what is no listening socket of its address.
    pub(crate) fn passed(found: Vec<Passed>, is_lent: bool) -> Result<Listeners, String> {
        let mut bound: Vec<Bound> = Vec::new();
        for Passed { address: text, sockets, is_activated } in found {
            let address: Address =
                text.parse().map_err(|error| format!("cannot use the sockets of {text}: {error}"))?;
            for socket in &sockets {
                check(socket, &address)
                    .map_err(|fault| format!("cannot use a socket that was passed for {text}: {fault}"))?;
            }
            match bound.iter_mut().find(|known| known.address == address) {
                Some(known) => known.sockets.extend(sockets),
                None => bound.push(Bound { address, sockets, joined: false, is_passed: is_activated }),
            }
        }
        bound.retain(|bound| !bound.sockets.is_empty());
        Ok(Listeners { bound, owner: std::process::id(), is_lent })
    }

    /// Sockets that a service manager opened, one for an address.
    ///
    /// # Errors
    /// A sentence for the operator: two are for one address, so that clients of the one that is left over would wait for
    /// ever.
    pub(crate) fn activated(sockets: Vec<(Address, OwnedFd)>) -> Result<Listeners, String> {
        let mut listeners = Listeners { bound: Vec::new(), owner: std::process::id(), is_lent: false };
        for (address, socket) in sockets {
            if listeners.at(&address).is_some() {
                return Err(format!("two sockets were passed for {address}: one is all that can be used"));
            }
            listeners.bound.push(Bound { address, sockets: vec![socket], joined: false, is_passed: true });
        }
        Ok(listeners)
    }

    /// These, and of what a service manager passed the sockets of other addresses: of the same ones the sockets are there
    /// already, as an earlier master was passed them as well.
    pub(crate) fn with(mut self, activated: Listeners) -> Listeners {
        for bound in activated.bound {
            match self.bound.iter_mut().find(|known| known.address == bound.address) {
                Some(known) => known.is_passed = true,
                None => self.bound.push(bound),
            }
        }
        self
    }

    /// From now on the paths of unix sockets are another master's, or this one's again.
    pub(crate) fn lend(&mut self, is_lent: bool) {
        self.is_lent = is_lent;
    }
}

fn check(socket: &OwnedFd, address: &Address) -> Result<(), String> {
    let said = |error: nix::errno::Errno| error.desc().to_owned();
    if getsockopt(socket, sockopt::SockType).map_err(said)? != SockType::Stream {
        return Err("it is not a stream socket".into());
    }
    if !getsockopt(&socket.as_fd(), sockopt::AcceptConn).map_err(said)? {
        return Err("it does not listen".into());
    }
    let name: SockaddrStorage = getsockname(socket.as_raw_fd()).map_err(said)?;
    let is_its = match address {
        Address::Inet(address) => name == SockaddrStorage::from(*address),
        Address::Unix(path) => name.as_unix_addr().and_then(|name| name.path()) == Some(path),
    };
    if is_its { Ok(()) } else { Err(format!("it is bound to another address ({})", shown(&name))) }
}

fn shown(name: &SockaddrStorage) -> String {
    match name.as_unix_addr().and_then(|name| name.path()) {
        Some(path) => format!("unix:{}", path.display()),
        None if name.family().is_some() => name.to_string(),
        None => "of an unknown kind".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_is_used_for_its_own_address_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let (tcp, unix) = (TcpListener::bind("127.0.0.1:0").unwrap(), UnixListener::bind(&path).unwrap());
        let (at, path) = (tcp.local_addr().unwrap().to_string(), format!("unix:{}", path.display()));
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(&at).unwrap();
        let passed = |address: &str, socket: OwnedFd| {
            Listeners::passed(
                vec![Passed { address: address.into(), sockets: vec![socket], is_activated: false }],
                false,
            )
        };
        assert_eq!(passed(&at, tcp.try_clone().unwrap().into()).unwrap().addresses(), [&*at]);
        assert_eq!(passed(&path, unix.try_clone().unwrap().into()).unwrap().addresses(), [&*path]);
        for (address, socket, why) in [
            (&*at, unix.into(), "another address (unix:"),
            (&*path, tcp.try_clone().unwrap().into(), "another address (127.0.0.1:"),
            ("127.0.0.2:80", tcp.into(), "another address"),
            (&*at, udp.into(), "not a stream socket"),
            (&*at, client.into(), "does not listen"),
            ("nonsense", std::fs::File::open("/dev/null").unwrap().into(), "nonsense"),
        ] {
            let fault = passed(address, socket).unwrap_err();
            assert!(fault.contains(why), "{fault}");
        }
    }
}
