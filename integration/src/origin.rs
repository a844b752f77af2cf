//! A scripted origin: what stands behind the proxy in a test.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::message::Message;
use crate::patience::until;
use crate::wire::{Closer, Wire};

/// An origin whose connections follow a script, each on a thread of its own.
///
/// It records what it receives. A script that panics fails the test when the origin is dropped.
pub struct Origin {
    address: Address,
    state: Arc<State>,
}

enum Address {
    Inet(SocketAddr),
    Unix(PathBuf),
}

type Script = dyn Fn(Wire, usize) + Send + Sync;

struct State {
    script: Mutex<Arc<Script>>,
    stopping: AtomicBool,
    connections: Mutex<Vec<Connection>>,
    failures: Mutex<Vec<String>>,
}

struct Connection {
    received: Arc<Mutex<Vec<u8>>>,
    closer: Closer,
}

impl Origin {
    /// Runs `script` for every connection, with the connection's number, from 0.
    pub fn start(script: impl Fn(Wire, usize) + Send + Sync + 'static) -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let accept = move || listener.accept().map(|(stream, _)| Wire::over_tcp(stream));
        Origin::run(Address::Inet(address), accept, script)
    }

    /// The same on a unix socket.
    pub fn start_unix(path: &Path, script: impl Fn(Wire, usize) + Send + Sync + 'static) -> Origin {
        let listener = UnixListener::bind(path).expect("a unix socket");
        let accept = move || listener.accept().map(|(stream, _)| Wire::over_unix(stream));
        Origin::run(Address::Unix(path.to_owned()), accept, script)
    }

    /// Runs `script` for the first connection, and closes all others at once.
    pub fn once(script: impl FnOnce(Wire) + Send + 'static) -> Origin {
        let script = Mutex::new(Some(script));
        Origin::start(move |wire, _| {
            let taken = script.lock().expect("script").take();
            if let Some(script) = taken {
                script(wire);
            }
        })
    }

    /// Gives the same answer to every request, on connections that are kept alive.
    pub fn answering(answer: impl Into<String>) -> Origin {
        let answer = answer.into();
        Origin::start(move |mut wire, _| {
            while wire.request().is_some() {
                wire.send(&answer);
            }
        })
    }

    /// Takes one request and never answers; says when it has come.
    pub fn silent() -> (Origin, Receiver<()>) {
        let (arrived, has_arrived) = channel();
        let origin = Origin::once(move |mut wire| {
            wire.request();
            arrived.send(()).expect("the test listens");
            wire.rest();
        });
        (origin, has_arrived)
    }

    /// Answers every request with its own body.
    pub fn echoing() -> Origin {
        Origin::start(|mut wire, _| {
            while let Some(request) = wire.request() {
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.body.len()));
                wire.send(&request.body);
            }
        })
    }

    /// Ends all its connections, as a restart does, and follows another script from now on.
    pub fn restart(&self, script: impl Fn(Wire, usize) + Send + Sync + 'static) {
        *self.state.script.lock().expect("script") = Arc::new(script);
        self.state.close_connections();
    }

    /// Its address as a configuration names it.
    pub fn address(&self) -> String {
        match &self.address {
            Address::Inet(address) => address.to_string(),
            Address::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// How many connections were made to it.
    pub fn connections(&self) -> usize {
        self.state.connections.lock().expect("connections").len()
    }

    /// What came on connection `number`, byte for byte.
    pub fn received(&self, number: usize) -> Vec<u8> {
        let connections = self.state.connections.lock().expect("connections");
        connections.get(number).map(|c| c.received.lock().expect("record").clone()).unwrap_or_default()
    }

    /// The requests that came in full, connection by connection.
    pub fn requests(&self) -> Vec<Message> {
        (0..self.connections()).flat_map(|number| Message::requests(&self.received(number))).collect()
    }

    /// The first request, once it has come in full.
    #[track_caller]
    pub fn first_request(&self) -> Message {
        until("a request at the origin", || self.requests().into_iter().next())
    }

    fn run(
        address: Address,
        accept: impl Fn() -> std::io::Result<Wire> + Send + 'static,
        script: impl Fn(Wire, usize) + Send + Sync + 'static,
    ) -> Origin {
        let state = Arc::new(State {
            script: Mutex::new(Arc::new(script)),
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
            failures: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for number in 0.. {
                let Ok(wire) = accept() else { return };
                if shared.stopping.load(Ordering::SeqCst) {
                    return;
                }
                let (shared, wire) = (Arc::clone(&shared), shared.enter(wire));
                thread::spawn(move || shared.serve(wire, number));
            }
        });
        Origin { address, state }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.state.stopping.store(true, Ordering::SeqCst);
        // One last connection wakes the accepting thread, so that it sees the flag and drops its listener.
        match &self.address {
            Address::Inet(address) => drop(std::net::TcpStream::connect(address)),
            Address::Unix(path) => drop(std::os::unix::net::UnixStream::connect(path)),
        }
        self.state.close_connections();
        let failures = std::mem::take(&mut *self.state.failures.lock().expect("failures"));
        if !failures.is_empty() {
            let message = format!("the origin's script failed: {}", failures.join("; "));
            if thread::panicking() {
                eprintln!("{message}");
            } else {
                panic!("{message}");
            }
        }
    }
}

impl State {
    fn enter(&self, wire: Wire) -> Wire {
        let received = Arc::default();
        self.connections
            .lock()
            .expect("connections")
            .push(Connection { received: Arc::clone(&received), closer: wire.closer() });
        wire.recorded_in(received)
    }

    fn close_connections(&self) {
        for connection in self.connections.lock().expect("connections").iter() {
            connection.closer.close();
        }
    }

    fn serve(&self, wire: Wire, number: usize) {
        let script = Arc::clone(&self.script.lock().expect("script"));
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| script(wire, number))) else { return };
        if self.stopping.load(Ordering::SeqCst) {
            return;
        }
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default();
        self.failures.lock().expect("failures").push(text);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    fn client(origin: &Origin) -> Wire {
        Wire::tcp(origin.address().parse().unwrap())
    }

    #[test]
    fn it_answers_and_records() {
        let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
        let mut client = client(&origin);
        assert_eq!(client.get("/one").body, b"hi");
        assert_eq!(client.get("/two").body, b"hi");
        let targets: Vec<_> = origin.requests().iter().map(|r| r.head.target().to_owned()).collect();
        assert_eq!(targets, ["/one", "/two"]);
    }

    #[test]
    fn a_script_that_fails_fails_the_test() {
        let origin = Origin::once(|mut wire| {
            let request = wire.request().expect("a request");
            wire.send("HTTP/1.1 204 No Content\r\n\r\n");
            assert_eq!(request.head.target(), "/expected");
        });
        let mut client = client(&origin);
        client.get("/other");
        client.closed();
        crate::eventually("the failure", || !origin.state.failures.lock().unwrap().is_empty());
        assert!(catch_unwind(AssertUnwindSafe(|| drop(origin))).is_err());
    }
}
