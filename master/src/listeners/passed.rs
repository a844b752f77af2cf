//! Listening sockets that another process opened: checked before they are used.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use conf::value::Address;
use nix::sys::socket::{SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt};

use super::{Bound, Listeners};

/// Sockets by the address as a configuration writes it, each in the order of seats.
pub(crate) type Passed = Vec<(String, Vec<OwnedFd>)>;

impl Listeners {
    /// Sockets of these addresses, each in the order of its seats. The paths of unix sockets stay those of whoever made
    /// them while the listeners are `lent`.
    ///
    /// # Errors
    /// A sentence for the operator, for what is no listening socket of its address.
    pub(crate) fn passed(found: Passed, is_lent: bool) -> Result<Listeners, String> {
        let mut bound: Vec<Bound> = Vec::new();
        for (text, sockets) in found {
            let address: Address =
                text.parse().map_err(|error| format!("cannot use the sockets of {text}: {error}"))?;
            for socket in &sockets {
                check(socket, &address)
                    .map_err(|fault| format!("cannot use a socket that was passed for {text}: {fault}"))?;
            }
            match bound.iter_mut().find(|known| known.address == address) {
                Some(known) => known.sockets.extend(sockets),
                None => bound.push(Bound { address, sockets, joined: false }),
            }
        }
        bound.retain(|bound| !bound.sockets.is_empty());
        Ok(Listeners { bound, owner: std::process::id(), is_lent })
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
        let passed = |address: &str, socket: OwnedFd| Listeners::passed(vec![(address.into(), vec![socket])], false);
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
