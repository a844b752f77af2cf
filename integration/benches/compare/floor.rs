//! The floor: a relay that reads nothing of what it passes on.
//!
//! Each client connection is tied to one connection to the origin for life. What such a relay costs is what an epoll
//! proxy on this kernel cannot go below without either fewer system calls or fewer, warmer connections.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use nix::poll::{PollFd, PollFlags, PollTimeout};

const LISTENER: Token = Token(usize::MAX);
const BUFFER_BYTES: usize = 64 * 1024;
const EVENTS_A_TURN: usize = 512;

/// Client and server; a stream's token is twice the pair's index, plus its place in the pair.
type Pair = [TcpStream; 2];

/// Relays until it is killed.
pub(crate) fn run(listen: SocketAddr, origin: SocketAddr) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(listen)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut pairs: Vec<Option<Pair>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut events = Events::with_capacity(EVENTS_A_TURN);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            done => done?,
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((client, _)) = listener.accept() {
                    let index = free.pop().unwrap_or_else(|| {
                        pairs.push(None);
                        pairs.len() - 1
                    });
                    match join(&poll, client, origin, index) {
                        Ok(pair) => pairs[index] = Some(pair),
                        Err(_) => free.push(index),
                    }
                }
                continue;
            }
            let (index, side) = (event.token().0 / 2, event.token().0 % 2);
            let Some(pair) = &mut pairs[index] else { continue };
            if !pass_on(pair, side, event.is_read_closed(), &mut buffer) {
                pairs[index] = None;
                free.push(index);
            }
        }
    }
}

fn join(poll: &Poll, client: TcpStream, origin: SocketAddr, index: usize) -> io::Result<Pair> {
    let mut pair = [client, TcpStream::connect(origin)?];
    for (side, stream) in pair.iter_mut().enumerate() {
        stream.set_nodelay(true)?;
        poll.registry().register(stream, Token(2 * index + side), Interest::READABLE)?;
    }
    Ok(pair)
}

/// Moves what one side has to say to the other; false when the pair is done.
fn pass_on(pair: &mut Pair, side: usize, peer_closed: bool, buffer: &mut [u8]) -> bool {
    let [client, server] = pair;
    let (from, to) = if side == 0 { (client, server) } else { (server, client) };
    loop {
        match from.read(buffer) {
            Ok(0) => return false,
            Ok(got) => {
                if send_all(to, &buffer[..got]).is_err() {
                    return false;
                }
                // A short read has drained the socket; only a hang-up leaves something to be seen behind it.
                if got < buffer.len() && !peer_closed {
                    return true;
                }
            }
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}

fn send_all(to: &mut TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut writable = [PollFd::new(to.as_fd(), PollFlags::POLLOUT)];
                nix::poll::poll(&mut writable, PollTimeout::from(1000u16))?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener as Listener;
    use std::net::TcpStream as Stream;

    use super::*;

    #[test]
    fn a_pair_passes_bytes_both_ways_and_ends_with_either_side() {
        let (origin, door) = (Listener::bind("127.0.0.1:0").unwrap(), Listener::bind("127.0.0.1:0").unwrap());
        let mut client = Stream::connect(door.local_addr().unwrap()).unwrap();
        let poll = Poll::new().unwrap();
        let accepted = door.accept().unwrap().0;
        accepted.set_nonblocking(true).unwrap();
        let mut pair = join(&poll, TcpStream::from_std(accepted), origin.local_addr().unwrap(), 0).unwrap();
        let mut server = origin.accept().unwrap().0;
        let (mut buffer, mut seen) = ([0; 16], [0; 4]);

        client.write_all(b"ping").unwrap();
        assert!(pass_on(&mut pair, 0, false, &mut buffer));
        server.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"ping");

        server.write_all(b"pong").unwrap();
        drop(server);
        assert!(!pass_on(&mut pair, 1, true, &mut buffer));
        client.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"pong");
    }
}
