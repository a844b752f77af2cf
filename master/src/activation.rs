//! Sockets that a service manager opened before the start and passed on: sd_listen_fds(3).

#![forbid(unsafe_code)]

use std::env;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use conf::value::Address;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, setsockopt, sockopt};

use crate::spawn::{adopt, forget_variables};

/// The first descriptor that is passed; the others follow it.
const FIRST: RawFd = 3;
/// The most that are taken.
const SOCKETS_MAX: usize = 1024;

/// Takes over the sockets that were passed to this process, and removes what told of them from the environment. Call it
/// once, before any file is opened.
///
/// # Errors
/// A sentence for the operator: what was said of them is not so.
pub(crate) fn take() -> Result<Vec<OwnedFd>, String> {
    let [pid, count, names] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
    let said = [pid, count].map(|name| env::var(name).ok());
    forget_variables(&[pid, count, names]);
    let [pid, count] = said.each_ref().map(Option::as_deref);
    let count = passed(pid, count, std::process::id())?;
    (FIRST..)
        .take(count)
        .map(|number| {
            adopt(number).map_err(|error| {
                format!("LISTEN_FDS says that descriptor {number} was passed, which cannot be used: {error}")
            })
        })
        .collect()
}

/// How many descriptors were passed to the process `own`; those of another are none of its business.
fn passed(pid: Option<&str>, count: Option<&str>, own: u32) -> Result<usize, String> {
    if pid != Some(&own.to_string()) {
        return Ok(0);
    }
    let count = count.unwrap_or("0");
    match count.parse() {
        Ok(number) if number <= SOCKETS_MAX => Ok(number),
        Ok(_) => Err(format!("LISTEN_FDS is {count}: at most {SOCKETS_MAX} sockets can be passed")),
        Err(_) => Err(format!("LISTEN_FDS is {count:?}, which is no number")),
    }
}

/// Makes a socket ready to be accepted from, if it is one that a listener can have; says where it listens.
///
/// # Errors
/// What it is instead, or that the kernel does not tell.
pub(crate) fn identify(socket: &OwnedFd) -> Result<Address, String> {
    let cannot = |error: nix::Error| format!("it is no socket that can be asked: {error}");
    let is_listening = getsockopt(socket, sockopt::SockType).map_err(cannot)? == SockType::Stream
        && getsockopt(socket, sockopt::AcceptConn).map_err(cannot)?;
    if !is_listening {
        return Err("it is not a stream socket that listens".into());
    }
    let name: SockaddrStorage = getsockname(socket.as_raw_fd()).map_err(cannot)?;
    let inet = name.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    let inet = inet.or_else(|| name.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), v6.port()))));
    let address = match (inet, name.as_unix_addr().and_then(|unix| unix.path())) {
        (Some(address), _) => Address::Inet(address),
        (None, Some(path)) if path.is_absolute() => Address::Unix(Path::to_owned(path)),
        _ => return Err(format!("no listener has an address of its kind ({:?})", name.family())),
    };
    prepare(socket, &address).map_err(|error| format!("it cannot be prepared: {error}"))?;
    Ok(address)
}

/// As sockets are that are opened here.
fn prepare(socket: &OwnedFd, address: &Address) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    if let Address::Inet(_) = address {
        // Inherited by what connects from now on. Who waits already does without, and may be answered a little later.
        setsockopt(socket, sockopt::TcpNoDelay, &true)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_what_was_passed_to_this_process_counts() {
        for (pid, count, expected) in [
            (None, None, Some(0)),
            (None, Some("2"), Some(0)),
            (Some("8"), Some("2"), Some(0)),
            (Some("8"), Some("many"), Some(0)),
            (Some("7"), None, Some(0)),
            (Some("7"), Some("0"), Some(0)),
            (Some("7"), Some("2"), Some(2)),
            (Some("7"), Some("1024"), Some(1024)),
            (Some("7"), Some("1025"), None),
            (Some("7"), Some("-1"), None),
            (Some("7"), Some(""), None),
        ] {
            assert_eq!(passed(pid, count, 7).ok(), expected, "{pid:?} {count:?}");
        }
    }

    #[test]
    fn a_socket_is_known_by_its_address() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let inet = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = inet.local_addr().unwrap();
        let socket = OwnedFd::from(inet);
        assert_eq!(identify(&socket), Ok(Address::Inet(address)));
        let _client = TcpStream::connect(address).unwrap();
        let inet = TcpListener::from(socket);
        assert!(inet.accept().unwrap().0.nodelay().unwrap(), "what is accepted sends at once");
        assert_eq!(inet.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(identify(&UnixListener::bind(&path).unwrap().into()), Ok(Address::Unix(path)));

        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let wrong =
            [OwnedFd::from(udp), TcpStream::connect(address).unwrap().into(), File::open("/dev/null").unwrap().into()];
        for socket in wrong {
            assert!(identify(&socket).is_err(), "{socket:?}");
        }
    }
}
