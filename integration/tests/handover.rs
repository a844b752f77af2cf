//! Connections outlive the worker that they came to: idle ones and tunnels move to the next one.
//!
//! With SLUICE_SOAK there are more of them.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use integration::{Origin, PATIENCE, Process, Proxy, Wire, eventually, raise_descriptor_limit, receive};
use nix::sys::signal::Signal;

/// How long old workers may take to go: `shutdown_timeout` is far longer.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// What a stream is written in, in bytes: more than the proxy's buffers hold, so that it is spliced.
const PIECE_BYTES: usize = 64 * 1024;
/// A stream that goes both ways waits for so long after a piece: it never ends, and others want the processor too.
const PIECE_PAUSE: Duration = Duration::from_millis(3);
/// All between the ends of a stream is full when nothing has moved for so long.
const STILLNESS: Duration = Duration::from_millis(500);

fn is_soak() -> bool {
    std::env::var_os("SLUICE_SOAK").is_some()
}

/// How long each end of a stream goes on.
#[derive(Default)]
struct Course {
    is_over: AtomicBool,
    /// Streams that go one way are read from now on.
    is_read: AtomicBool,
    /// How much was written to those.
    flooded: AtomicU64,
    /// What all servers have sent, and received, in tunnels.
    sent: AtomicU64,
    received: AtomicU64,
}

/// The byte at `place` of every stream: no two neighbouring pieces look alike.
fn byte_at(place: u64) -> u8 {
    (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).to_le_bytes()[0]
}

/// Writes the stream until the course is over, then ends it; says how long it was.
fn write_stream(mut to: &TcpStream, course: &Course, pause: Duration) -> io::Result<u64> {
    let mut place = 0;
    while !course.is_over.load(Ordering::SeqCst) {
        let piece: Vec<u8> = (place..place + PIECE_BYTES as u64).map(byte_at).collect();
        to.write_all(&piece)?;
        place += piece.len() as u64;
        if pause.is_zero() {
            course.flooded.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
        thread::sleep(pause);
    }
    to.shutdown(Shutdown::Write)?;
    Ok(place)
}

/// Reads a stream that goes one way, once it may be.
fn read_late(from: &TcpStream, course: &Course) -> io::Result<u64> {
    eventually("it may be read", || course.is_read.load(Ordering::SeqCst));
    read_stream(from)
}

/// Reads the stream to its end and checks each byte; says how long it was.
fn read_stream(mut from: &TcpStream) -> io::Result<u64> {
    let mut place = 0;
    let mut block = vec![0; PIECE_BYTES];
    loop {
        let count = from.read(&mut block)?;
        if count == 0 {
            return Ok(place);
        }
        let wrong = (place..).zip(&block[..count]).find(|(at, byte)| byte_at(*at) != **byte);
        assert!(wrong.is_none(), "the stream differs at {wrong:?}");
        place += count as u64;
    }
}

/// An origin: `/echo`, `/both`, `/up` and `/down` become tunnels, everything else is answered.
fn origin(course: &Arc<Course>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let course = Arc::clone(course);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let course = Arc::clone(&course);
            // What ends it is seen by the client.
            thread::spawn(move || drop(serve(stream, &course)));
        }
    });
    address
}

fn serve(mut stream: TcpStream, course: &Course) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let path = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default().to_vec();
        let kind = match &path[..] {
            b"/echo" | b"/both" | b"/up" | b"/down" => &path[1..],
            _ => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
                continue;
            }
        };
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")?;
        let (mut sent, mut received) = (0, 0);
        match kind {
            b"echo" => {
                let mut block = [0; 4096];
                while let count @ 1.. = stream.read(&mut block)? {
                    stream.write_all(&block[..count])?;
                    (sent, received) = (sent + count as u64, received + count as u64);
                }
            }
            b"up" => {
                stream.shutdown(Shutdown::Write)?;
                received = read_late(&stream, course)?;
            }
            b"down" => sent = write_stream(&stream, course, Duration::ZERO)?,
            _ => (received, sent) = both(&stream, course)?,
        }
        course.sent.fetch_add(sent, Ordering::SeqCst);
        course.received.fetch_add(received, Ordering::SeqCst);
        return Ok(());
    }
}

/// Streams both ways at once; how much was read, and written.
fn both(stream: &TcpStream, course: &Course) -> io::Result<(u64, u64)> {
    thread::scope(|scope| {
        let reading = scope.spawn(|| read_stream(stream));
        let written = write_stream(stream, course, PIECE_PAUSE)?;
        Ok((reading.join().expect("the stream is as it was sent")?, written))
    })
}

/// Opens a tunnel of that kind.
fn open(address: SocketAddr, kind: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the proxy listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    let ask = format!("GET /{kind} HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    stream.write_all(ask.as_bytes()).expect("it reads");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", head.escape_ascii());
    stream
}

/// Sends numbered messages through each tunnel in turn until the course is over, and expects them back; says how many.
fn ping(tunnels: &mut [TcpStream], course: &Course) -> io::Result<u64> {
    let mut number = 0u64;
    while !course.is_over.load(Ordering::SeqCst) {
        number += 1;
        for tunnel in &mut *tunnels {
            tunnel.write_all(&number.to_le_bytes())?;
        }
        for tunnel in &mut *tunnels {
            let mut answer = [0; 8];
            tunnel.read_exact(&mut answer)?;
            assert_eq!(u64::from_le_bytes(answer), number, "a message is lost, repeated or out of order");
        }
        // Tunnels wait most of the time.
        thread::sleep(Duration::from_millis(2));
    }
    Ok(number)
}

fn settings(origin: SocketAddr, number: usize) -> String {
    format!(
        "worker_processes: 4\nworker_connections: {}\nshutdown_timeout: 60s\naccess_log: {{path: '{{dir}}/access.log', \
         format: json}}\nlimits: {{connections: 8000}}\ntimeouts: {{client_head: 120s, keep_alive: 120s}}\n\
         upstreams: {{app: {{servers: ['{origin}']}}}}\nroutes: [{{name: all, match: {{path: /}}, upstream: app}}]",
        8000 + number
    )
}

#[track_caller]
fn assert_gone(workers: &[Process], proxy: &Proxy) {
    let deadline = Instant::now() + GONE_WITHIN;
    while let Some(worker) = workers.iter().find(|worker| worker.is_running()) {
        assert!(Instant::now() < deadline, "{worker:?} is held by something: {}", proxy.stats().0["totals"]);
        thread::sleep(Duration::from_millis(5));
    }
}

/// The bar: no disconnect, no byte lost, repeated or out of order, and the old processes gone.
#[test]
fn new_workers_take_everything_over() {
    raise_descriptor_limit(16_384);
    let (idle, threads, tunnels, reloads) = if is_soak() { (2000, 20, 25, 20) } else { (200, 4, 8, 4) };
    let course = Arc::new(Course::default());
    let origin = origin(&course);
    let proxy = Proxy::start(&settings(origin, 0));
    let address = proxy.address();
    let mut kept: Vec<Wire> = (0..idle).map(|_| proxy.client()).collect();
    for wire in kept.iter_mut().step_by(2) {
        assert_eq!(wire.get("/").text(), "ok");
    }
    let mut clients = 0;
    let (sent, received) = thread::scope(|scope| {
        let mut pings = Vec::new();
        for _ in 0..threads {
            let mut tunnels: Vec<_> = (0..tunnels).map(|_| open(address, "echo")).collect();
            clients += tunnels.len() as u64;
            let course = &course;
            pings.push(
                scope.spawn(move || ping(&mut tunnels, course).expect("no tunnel is cut") * tunnels.len() as u64),
            );
        }
        let mut streams = Vec::new();
        for kind in ["both", "both", "up", "up", "down", "down"] {
            let (stream, course) = (open(address, kind), &course);
            clients += 1;
            streams.push(scope.spawn(move || match kind {
                "both" => both(&stream, course).expect("no tunnel is cut"),
                "up" => {
                    let written = write_stream(&stream, course, Duration::ZERO).expect("no tunnel is cut");
                    (read_stream(&stream).expect("no tunnel is cut"), written)
                }
                _ => {
                    stream.shutdown(Shutdown::Write).expect("a connection");
                    (read_late(&stream, course).expect("no tunnel is cut"), 0)
                }
            }));
        }
        let mut seen = 0;
        while std::mem::replace(&mut seen, course.flooded.load(Ordering::SeqCst)) != seen || seen == 0 {
            thread::sleep(STILLNESS);
        }
        for number in 1..=reloads {
            course.is_read.store(number > 2, Ordering::SeqCst);
            let old = proxy.workers();
            proxy.reload(&settings(origin, number)).output();
            assert_gone(&old, &proxy);
        }
        course.is_read.store(true, Ordering::SeqCst);
        course.is_over.store(true, Ordering::SeqCst);
        let (mut sent, mut received) = (0, 0);
        for ping in pings {
            let messages = ping.join().expect("messages come as they were sent");
            (sent, received) = (sent + messages * 8, received + messages * 8);
        }
        for stream in streams {
            let (read, written) = stream.join().expect("a stream comes as it was sent");
            (sent, received) = (sent + written, received + read);
        }
        (sent, received)
    });
    eventually("what one side has sent the other has received", || {
        (course.received.load(Ordering::SeqCst), course.sent.load(Ordering::SeqCst)) == (sent, received)
    });
    for wire in &mut kept {
        assert_eq!(wire.get("/").text(), "ok");
    }
    // Each tunnel has one line, with the sums over its whole life.
    let lines = || std::fs::read_to_string(proxy.file("access.log")).unwrap_or_default();
    let of_tunnels = || lines().lines().filter(|line| line.contains("\"status\":101")).count() as u64;
    eventually("each tunnel has its line", || of_tunnels() >= clients);
    assert_eq!(of_tunnels(), clients);
    let numbers = lines();
    let numbers = numbers.lines().filter(|line| line.contains("\"status\":101"));
    let logged: u64 = numbers
        .map(|line| {
            assert!(
                line.contains("\"route\":\"all\"") && line.contains(&format!("\"upstream_addr\":\"{origin}\"")),
                "{line}"
            );
            let (_, rest) = line.split_once("\"body_bytes_sent\":").expect("a number");
            rest.split(',').next().expect("a number").parse::<u64>().expect("a number")
        })
        .sum();
    assert_eq!(logged, received);
    let stats = proxy.stats();
    assert_eq!(stats.total("accepted"), idle as u64 + clients);
    assert_eq!(stats.total("handed_over"), stats.total("taken_over"));
    assert!(stats.total("handed_over") >= reloads as u64 * (idle as u64 + clients), "{}", stats.0["totals"]);
    assert_eq!(stats.total("connections_idle") + stats.total("connections_active"), idle as u64);
    assert_eq!((stats.total("requests_active"), stats.total("panics")), (0, 0));
}

/// A new worker that dies while it takes over takes along what was its own already; the rest goes on.
#[test]
fn a_worker_killed_while_it_takes_over_takes_only_what_it_had() {
    raise_descriptor_limit(16_384);
    let course = Arc::new(Course::default());
    let origin = origin(&course);
    let proxy = Proxy::start(&settings(origin, 0));
    let address = proxy.address();
    for number in 1..=3 {
        let mut tunnels: Vec<_> = (0..100).map(|_| open(address, "echo")).collect();
        let old = proxy.workers();
        let mut is_reloaded = false;
        thread::scope(|scope| {
            let proxy = &proxy;
            let reload = scope.spawn(move || proxy.reload(&settings(origin, number)));
            // Another one than before, as soon as it is seen: how far it has come is left to chance.
            let victim = integration::until("a new worker", || {
                let is_new = |worker: &Process| !old.contains(worker);
                proxy.workers().into_iter().find(is_new)
            });
            thread::sleep(Duration::from_millis(5 * number as u64));
            victim.signal(Signal::SIGKILL);
            // It may have been refused, if none was ready yet.
            is_reloaded = reload.join().expect("the command ends").code == 0;
        });
        if is_reloaded {
            // What the dead one did not have went to the one that replaced it.
            assert_gone(&old, &proxy);
        }
        let lives = |tunnel: &mut TcpStream| {
            let mut answer = [0; 4];
            tunnel.write_all(b"ping").and_then(|()| tunnel.read_exact(&mut answer)).is_ok() && &answer == b"ping"
        };
        let lost = tunnels.iter_mut().map(lives).filter(|lives| !lives).count();
        assert!(lost < 100, "one worker of four has died");
        eventually("there are as many workers as there should be", || {
            let stats = proxy.stats();
            stats.total("connections_active") == 100 - lost as u64 && proxy.workers().len() == 4
        });
        assert_eq!(tunnels.iter_mut().map(lives).filter(|lives| !lives).count(), lost);
        drop(tunnels);
        eventually("nothing is held", || proxy.stats().total("connections_active") == 0);
    }
    assert_eq!(proxy.stats().total("panics"), 0);
}

/// What becomes movable late finds whoever serves then, however often workers were replaced meanwhile.
#[test]
fn a_tunnel_that_begins_in_a_draining_worker_moves_on() {
    let (switches, may_switch) = std::sync::mpsc::channel();
    let origin = Origin::once(move |mut wire| {
        wire.request();
        receive(&may_switch);
        wire.echo();
    });
    let of = |number: usize| settings(origin.address().parse().expect("an address"), number);
    let proxy = Proxy::start(&of(0));
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    eventually("the request is under way", || proxy.stats().total("requests_active") == 1);
    let first = proxy.workers();
    proxy.reload(&of(1)).output();
    let second: Vec<_> = proxy.workers().into_iter().filter(|worker| !first.contains(worker)).collect();
    proxy.reload(&of(2)).output();
    assert_gone(&second, &proxy);
    assert_eq!(first.iter().filter(|worker| worker.is_running()).count(), 1, "an exchange finishes where it is");
    switches.send(()).expect("the origin waits");
    assert_eq!(client.head().status(), 101);
    assert_gone(&first, &proxy);
    client.send("ping");
    assert_eq!(client.exactly(4), b"ping");
}
