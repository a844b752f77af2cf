//! The listening sockets: opened by the master, inherited by every worker, kept for as long as any configuration that
//! follows still names their address.
//!
//! A TCP listener has one `SO_REUSEPORT` socket a seat, or one for all. While the number of seats changes, the kernel
//! is told to deal connections to the seats that stay (see [`Listeners::steer`]): a socket that is closed with
//! connections in its queue resets them, and so does one that nobody accepts from yet when its change is taken back.

#![forbid(unsafe_code)]

mod passed;

pub(crate) use passed::Passed;

use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use conf::model::{Config, Listener};
use conf::value::Address;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, bind, getsockopt, listen,
    setsockopt, socket, sockopt,
};

/// The sockets of one configuration, in the order of its listeners.
#[derive(Debug)]
pub(crate) struct Listeners {
    bound: Vec<Bound>,
    owner: u32,
    /// The paths of unix sockets are another master's.
    is_lent: bool,
}

#[derive(Debug)]
struct Bound {
    address: Address,
    /// One a seat, or one.
    sockets: Vec<OwnedFd>,
    /// Sockets of an earlier master were there before these: their order in the kernel's group is not known.
    joined: bool,
    /// The first was passed by a service manager, which goes on having it: a unix path is not ours to remove.
    is_passed: bool,
}

/// What may be found at an address that is opened for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Company {
    /// Nobody: an address that is taken is an error.
    Nobody,
    /// Workers that a killed master left behind; their sockets are joined.
    Orphans,
}

impl Listeners {
    /// The addresses for which a service manager passed a socket, and which `other` does not have.
    pub(crate) fn passed_for_nothing(&self, other: &Listeners) -> Vec<&Address> {
        let passed = self.bound.iter().filter(|bound| bound.is_passed).map(|bound| &bound.address);
        passed.filter(|address| other.at(address).is_none()).collect()
    }

    /// Opens the sockets of `config`; those that `previous` has already are shared with it.
    ///
    /// # Errors
    /// A sentence for the operator. What was opened is closed again.
    pub(crate) fn open(
        config: &Config,
        seats: u32,
        previous: Option<&Listeners>,
        company: Company,
    ) -> Result<Listeners, String> {
        let is_lent = previous.is_some_and(|previous| previous.is_lent);
        let mut listeners = Listeners { bound: Vec::new(), owner: std::process::id(), is_lent };
        for listener in &config.listeners {
            let known = previous.and_then(|previous| previous.at(&listener.address));
            let opened = match (known, &listener.address) {
                (Some(known), _) => known.resized(listener, seats),
                (None, Address::Inet(address)) => open_inet(listener, *address, seats, company),
                (None, Address::Unix(path)) => open_unix(path, backlog(listener), company).map(|socket| Bound {
                    address: listener.address.clone(),
                    sockets: vec![socket],
                    joined: false,
                    is_passed: false,
                }),
            };
            match opened {
                Ok(bound) => listeners.bound.push(bound),
                Err(error) => {
                    listeners.unlink_all_but(previous);
                    return Err(format!("cannot listen on {}: {error}", listener.address));
                }
            }
        }
        Ok(listeners)
    }

    /// How many sockets there are.
    pub(crate) fn count(&self) -> usize {
        self.bound.iter().map(|bound| bound.sockets.len()).sum()
    }

    /// Their addresses, for people.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.bound.iter().map(|bound| bound.address.to_string()).collect()
    }

    /// The same sockets under descriptors that a child may be given, listener by listener, seat by seat.
    ///
    /// # Errors
    /// When descriptors run out.
    pub(crate) fn share(&self) -> io::Result<Vec<Vec<OwnedFd>>> {
        self.bound.iter().map(|bound| share(&bound.sockets)).collect()
    }

    /// The same, with their addresses as the configuration writes them.
    ///
    /// # Errors
    /// When descriptors run out.
    pub(crate) fn share_named(&self) -> io::Result<Vec<Passed>> {
        let passed = |bound: &Bound| {
            let (address, sockets) = (bound.address.to_string(), share(&bound.sockets)?);
            Ok(Passed { address, sockets, is_activated: bound.is_passed })
        };
        self.bound.iter().map(passed).collect()
    }

    /// The sockets of addresses that `previous` does not have, with the number of their listener.
    ///
    /// # Errors
    /// When descriptors run out.
    pub(crate) fn share_new(&self, previous: &Listeners) -> io::Result<Vec<(u32, Vec<OwnedFd>)>> {
        let new = (0..).zip(&self.bound).filter(|(_, bound)| previous.at(&bound.address).is_none());
        new.map(|(number, bound)| Ok((number, share(&bound.sockets)?))).collect()
    }

    /// Makes the kernel deal new connections to these sockets, where `previous` had fewer or more of an address; those
    /// that are queued stay where they are. Says whether a socket that is about to go has lost its share: it then needs
    /// a moment until connections half open have arrived in its queue.
    pub(crate) fn steer(&self, previous: &Listeners) -> bool {
        let mut any_goes = false;
        for bound in self.bound.iter().filter(|bound| !bound.joined) {
            let (before, after) =
                (previous.at(&bound.address).map_or(0, |known| known.sockets.len()), bound.sockets.len());
            // Where the kernel refuses, connections are dealt to all: one may come to a socket in the instant of its end.
            if before != 0 && before != after && steer(bound.sockets[0].as_fd(), after).is_ok() {
                any_goes |= before > after;
            }
        }
        any_goes
    }

    /// Removes the paths of unix sockets that `survivor` does not have. Only the process that made them can.
    pub(crate) fn unlink_all_but(&self, survivor: Option<&Listeners>) {
        if self.owner != std::process::id() || self.is_lent {
            return;
        }
        for bound in &self.bound {
            if let Address::Unix(path) = &bound.address
                && !bound.is_passed
                && survivor.is_none_or(|survivor| survivor.at(&bound.address).is_none())
            {
                // It may have been removed by hand: then there is nothing left to do.
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Closes these descriptors; workers have their own.
    pub(crate) fn close(&mut self) {
        self.bound.clear();
    }

    fn at(&self, address: &Address) -> Option<&Bound> {
        self.bound.iter().find(|bound| bound.address == *address)
    }
}

impl Bound {
    /// These sockets, fewer or more of them, for a configuration that may want another number and another backlog.
    fn resized(&self, listener: &Listener, seats: u32) -> io::Result<Bound> {
        // Beside a socket that is in no group, as a service manager may have opened it, none can be bound.
        let is_alone = !getsockopt(&self.sockets[0], sockopt::ReusePort)?;
        let wanted = if is_alone { 1 } else { sockets_wanted(listener, seats) };
        let mut sockets = share(&self.sockets[..wanted.min(self.sockets.len())])?;
        for socket in &sockets {
            listen(socket, backlog(listener))?;
        }
        if let Address::Inet(address) = listener.address
            && sockets.len() < wanted
        {
            if !self.joined {
                steer(sockets[0].as_fd(), sockets.len())?;
            }
            while sockets.len() < wanted {
                sockets.push(socket_inet(listener, address, Sharing::Group)?);
            }
        }
        Ok(Bound { address: self.address.clone(), sockets, joined: self.joined, is_passed: self.is_passed })
    }
}

fn sockets_wanted(listener: &Listener, seats: u32) -> usize {
    if listener.reuseport && listener.socket_addr().is_some() { seats as usize } else { 1 }
}

fn share(sockets: &[OwnedFd]) -> io::Result<Vec<OwnedFd>> {
    sockets.iter().map(OwnedFd::try_clone).collect()
}

fn backlog(listener: &Listener) -> Backlog {
    // The kernel cuts it to net.core.somaxconn; nix knows no larger number than the usual value of that.
    i32::try_from(listener.backlog).ok().and_then(|number| Backlog::new(number).ok()).unwrap_or(Backlog::MAXALLOWABLE)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// Sockets of the same user may be bound to the same address.
    Group,
    /// None may.
    Alone,
}

fn open_inet(listener: &Listener, address: SocketAddr, seats: u32, company: Company) -> io::Result<Bound> {
    if company == Company::Nobody && address.port() != 0 {
        // A group would be joined without a word: another proxy of the same user would lose half of its connections.
        drop(socket_inet(listener, address, Sharing::Alone)?);
    }
    // Even a single socket is in a group, so that a later configuration may add to it.
    let first = socket_inet(listener, address, Sharing::Group)?;
    let mut sockets = vec![first];
    while sockets.len() < sockets_wanted(listener, seats) {
        sockets.push(socket_inet(listener, address, Sharing::Group)?);
    }
    Ok(Bound { address: listener.address.clone(), sockets, joined: company == Company::Orphans, is_passed: false })
}

fn socket_inet(listener: &Listener, address: SocketAddr, sharing: Sharing) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if address.is_ipv6() {
        // [::] and 0.0.0.0 are two listeners, each as it is written.
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::ReusePort, &(sharing == Sharing::Group))?;
    // Accepted sockets inherit it, which saves a call on each.
    setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    if sharing == Sharing::Group {
        listen(&socket, backlog(listener))?;
    }
    Ok(socket)
}

/// Opens a listening unix socket. Anybody may connect who can reach the path: its directory is the guard.
///
/// # Errors
/// When somebody listens there, the path is something else than a socket, or cannot be made.
pub(crate) fn open_unix(path: &Path, backlog: Backlog, company: Company) -> io::Result<OwnedFd> {
    clear(path, company)?;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)? as &dyn SockaddrLike)?;
    fs::set_permissions(path, Permissions::from_mode(0o666))?;
    listen(&socket, backlog)?;
    Ok(socket)
}

/// Removes a socket that nobody listens on any more.
fn clear(path: &Path, company: Company) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the path is taken by something that is not a socket",
        ));
    }
    if company == Company::Nobody {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
        }
    }
    fs::remove_file(path)
}

/// Attaches the program `return random() % seats` to the group of `socket`: its result is an index into the group, whose
/// order is that of the calls of listen(2), which is that of the seats.
fn steer(socket: BorrowedFd<'_>, seats: usize) -> nix::Result<()> {
    const LOAD_ANCILLARY: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const RANDOM: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM).cast_unsigned();
    const MODULO: u16 = 0x94; // BPF_ALU | BPF_MOD | BPF_K
    const RETURN: u16 = 0x16; // BPF_RET | BPF_A
    let seats = u32::try_from(seats).unwrap_or(u32::MAX).max(1);
    let mut program = [(LOAD_ANCILLARY, RANDOM), (MODULO, seats), (RETURN, 0)].map(|(code, k)| libc::sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    });
    let program = libc::sock_fprog { len: 3, filter: program.as_mut_ptr() };
    setsockopt(&socket, sockopt::AttachReusePortCbpf, &program)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn listener(address: Address, reuseport: bool) -> Listener {
        Listener { address, backlog: 128, reuseport, proxy_protocol: false }
    }

    fn config(listeners: Vec<Listener>) -> Config {
        let text =
            "listeners: [{address: '127.0.0.1:1'}]\nroutes: [{match: {path: {prefix: /}}, respond: {status: 200}}]\n";
        Config { listeners, ..conf::parse(text, "test").unwrap().config }
    }

    fn free_port() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    /// How many connections wait on each socket of the first listener; takes them.
    fn queued(listeners: &Listeners) -> Vec<usize> {
        let sockets = listeners.share().unwrap().remove(0);
        let count = |socket: OwnedFd| {
            let socket = TcpListener::from(socket);
            std::iter::from_fn(|| socket.accept().ok())
                .inspect(|(stream, _)| assert!(stream.nodelay().unwrap()))
                .count()
        };
        sockets.into_iter().map(count).collect()
    }

    fn connect(address: SocketAddr, times: usize) -> Vec<TcpStream> {
        (0..times).map(|_| TcpStream::connect(address).unwrap()).collect()
    }

    #[test]
    fn each_seat_has_a_socket_and_a_taken_address_is_refused() {
        let address = free_port();
        let config = config(vec![listener(Address::Inet(address), true)]);
        let listeners = Listeners::open(&config, 3, None, Company::Nobody).unwrap();
        assert_eq!(listeners.count(), 3);
        let _clients = connect(address, 60);
        assert_eq!(queued(&listeners).iter().sum::<usize>(), 60);

        let error = Listeners::open(&config, 3, None, Company::Nobody).unwrap_err();
        assert!(error.starts_with(&format!("cannot listen on {address}: ")) && error.contains("in use"), "{error}");
        assert_eq!(Listeners::open(&config, 2, None, Company::Orphans).unwrap().count(), 2);
    }

    #[test]
    fn seats_that_come_get_nothing_before_they_are_steered_to() {
        let address = free_port();
        let config = config(vec![listener(Address::Inet(address), true)]);
        let two = Listeners::open(&config, 2, None, Company::Nobody).unwrap();
        let four = Listeners::open(&config, 4, Some(&two), Company::Nobody).unwrap();
        let _clients = connect(address, 80);
        assert_eq!(queued(&four)[2..], [0, 0]);
        assert!(!four.steer(&two));
        let _clients = connect(address, 80);
        assert!(queued(&four).iter().all(|count| *count > 0));
    }

    #[test]
    fn seats_that_go_get_nothing_once_they_are_steered_from() {
        let address = free_port();
        let config = config(vec![listener(Address::Inet(address), true)]);
        let four = Listeners::open(&config, 4, None, Company::Nobody).unwrap();
        let one = Listeners::open(&config, 1, Some(&four), Company::Nobody).unwrap();
        assert!(one.steer(&four));
        let _clients = connect(address, 40);
        assert_eq!(queued(&four), [40, 0, 0, 0]);
        drop(four);
        let _clients = connect(address, 10);
        assert_eq!(queued(&one), [10]);
    }

    #[test]
    fn a_single_socket_may_become_a_group_and_back() {
        let address = free_port();
        let (off, on) = (
            config(vec![listener(Address::Inet(address), false)]),
            config(vec![listener(Address::Inet(address), true)]),
        );
        let one = Listeners::open(&off, 4, None, Company::Nobody).unwrap();
        assert_eq!(one.count(), 1);
        let four = Listeners::open(&on, 4, Some(&one), Company::Nobody).unwrap();
        assert_eq!(four.count(), 4);
        assert_eq!(Listeners::open(&off, 4, Some(&four), Company::Nobody).unwrap().count(), 1);
    }

    #[test]
    fn ipv6_does_not_take_the_ipv4_port() {
        let address = free_port();
        let v6 = SocketAddr::new("::".parse().unwrap(), address.port());
        let config = config(vec![listener(Address::Inet(v6), true), listener(Address::Inet(address), true)]);
        match Listeners::open(&config, 1, None, Company::Nobody) {
            Ok(listeners) => assert_eq!(listeners.addresses(), [v6.to_string(), address.to_string()]),
            // A machine without IPv6 cannot tell.
            Err(error) => assert!(error.contains(&v6.to_string()), "{error}"),
        }
    }

    /// A socket as a service manager opens it.
    fn passed(address: SocketAddr, sharing: Sharing) -> Listeners {
        let listener = listener(Address::Inet(address), true);
        let socket = socket_inet(&listener, address, sharing).unwrap();
        listen(&socket, Backlog::new(16).unwrap()).unwrap();
        Listeners::activated(vec![(Address::Inet(address), socket)]).unwrap()
    }

    #[test]
    fn a_passed_socket_is_used_alone_or_as_the_first_of_a_group() {
        for (sharing, expected) in [(Sharing::Alone, 1), (Sharing::Group, 3)] {
            let (address, other) = (free_port(), free_port());
            let passed = passed(address, sharing);
            let _early = connect(address, 1);
            let listeners = [address, other].map(|address| listener(Address::Inet(address), true));
            let config = config(listeners.to_vec());
            let opened = Listeners::open(&config, 3, Some(&passed), Company::Nobody).unwrap();
            assert!(passed.passed_for_nothing(&opened).is_empty());
            drop(passed);
            assert_eq!(opened.share().unwrap().iter().map(Vec::len).collect::<Vec<_>>(), [expected, 3]);
            assert_eq!(queued(&opened)[0], 1, "who came early is served");
            let more = Listeners::open(&config, 5, Some(&opened), Company::Nobody).unwrap();
            let _clients = connect(address, 80);
            assert_eq!(queued(&more).iter().sum::<usize>(), 80);
            let fewer = Listeners::open(&config, 1, Some(&more), Company::Nobody).unwrap();
            fewer.steer(&more);
            drop((opened, more));
            let _clients = connect(address, 10);
            assert_eq!(queued(&fewer), [10]);
        }
    }

    #[test]
    fn what_was_passed_stays_with_who_passed_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let theirs = UnixListener::bind(&path).unwrap();
        let address = Address::Unix(path.clone());
        let pass = || (address.clone(), OwnedFd::from(theirs.try_clone().unwrap()));
        let passed = Listeners::activated(vec![pass()]).unwrap();
        let config = config(vec![listener(address.clone(), false)]);
        let opened = Listeners::open(&config, 2, Some(&passed), Company::Nobody).unwrap();
        opened.unlink_all_but(None);
        assert!(path.exists());
        assert_eq!(passed.passed_for_nothing(&Listeners { bound: Vec::new(), owner: 0, is_lent: false }), [&address]);
        let error = Listeners::activated(vec![pass(), pass()]).unwrap_err();
        assert!(error.contains("two sockets") && error.contains("app.sock"), "{error}");
    }

    #[test]
    fn a_unix_path_is_taken_only_from_the_dead() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let config = config(vec![listener(Address::Unix(path.clone()), true)]);

        let living = UnixListener::bind(&path).unwrap();
        let error = Listeners::open(&config, 2, None, Company::Nobody).unwrap_err();
        assert!(error.contains("another process listens there"), "{error}");
        drop(living);

        let listeners = Listeners::open(&config, 2, None, Company::Nobody).unwrap();
        assert_eq!(listeners.count(), 1);
        UnixStream::connect(&path).unwrap();
        let next = Listeners::open(&config, 2, Some(&listeners), Company::Nobody).unwrap();
        listeners.unlink_all_but(Some(&next));
        assert!(path.exists());
        next.unlink_all_but(None);
        assert!(!path.exists());

        fs::write(&path, "").unwrap();
        let error = Listeners::open(&config, 1, None, Company::Nobody).unwrap_err();
        assert!(error.contains("not a socket"), "{error}");
        assert!(path.exists());
    }
}
