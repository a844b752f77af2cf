//! A worker hands connections over and takes them: it runs on a thread of this process, and the test plays the other one.

#![allow(clippy::disallowed_methods, reason = "the worker under test and its origin are threads here")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shared::channel::{Channel, Command, Report};
use shared::estate::call;
use shared::handover::{Account, Answer, Client, Handover, Record, Refusal, Tunnel, WINDOW_RECORDS, Way};
use shared::ident::{Generation, Seat};
use shared::log::{Format, Target, root};
use shared::stats::ProcessCells;
use shared::zone::{Catalog, Maxima, Role, Zone};

/// How long any one fact may take.
const PATIENCE: Duration = Duration::from_secs(30);
const UPGRADE: &[u8] = b"GET /t HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";

/// How much an origin sends at `/f`: more than all buffers on the way hold.
const FLOOD_BYTES: u32 = 64 << 20;
/// How much of it has been taken from the origin.
static FLOODED: AtomicU64 = AtomicU64::new(0);

/// A worker, and what a master has of it.
struct Worker {
    front: String,
    origin: String,
    channel: Channel,
    cells: ProcessCells,
    log: tempfile::NamedTempFile,
    thread: JoinHandle<i32>,
}

impl Worker {
    /// Starts one before an origin that echoes in tunnels and answers `ok` otherwise.
    fn start(settings: &str) -> Worker {
        let (listener, back) = (bind(), bind());
        let [front, origin] = [&listener, &back].map(|listener| listener.local_addr().expect("bound").to_string());
        thread::spawn(move || {
            for stream in back.incoming() {
                thread::spawn(move || drop(serve(stream.expect("a connection"))));
            }
        });
        let text = format!(
            "{settings}\naccess_log: {{path: stdout, format: '$status $body_bytes_sent $upstream_bytes_sent $route $uri'}}\n\
             listeners: [{{address: '{front}'}}]\nupstreams: {{app: {{servers: ['{origin}']}}}}\n\
             routes: [{{name: all, match: {{path: /}}, upstream: app}}]\n"
        );
        let config = Arc::new(conf::parse(&text, "test").expect("a configuration").config);
        let zone = Zone::anonymous(Maxima::for_workers(1));
        let upstreams = vec![("app".to_owned(), vec![origin.clone()])];
        let catalog = Catalog { listeners: vec![front.clone()], routes: vec!["all".into()], upstreams };
        zone.publish(&catalog).expect("room in the zone");
        let slot = zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).expect("a slot");
        let (ours, channel) = Channel::pair().expect("a channel");
        let log = tempfile::NamedTempFile::new().expect("a file");
        let access_log = Some(log.reopen().expect("the file"));
        listener.set_nonblocking(true).expect("a socket");
        let call = call(None).expect("a socket");
        let thread = thread::spawn(move || {
            let error_log = Target::stderr().expect("standard error");
            let log = root(&error_log, slog::Level::Error, Format::Text, "worker");
            let listeners = vec![vec![OwnedFd::from(listener)]];
            let (generation, seat) = (Generation(1), Seat(0));
            worker::run(worker::Start {
                config,
                generation,
                seat,
                slot,
                zone,
                channel,
                call,
                owner: 0,
                is_on_trial: false,
                listeners,
                access_log,
                log,
                error_log,
            })
        });
        await_readable(ours.as_fd());
        assert_eq!(ours.recv_report().expect("a report"), Some(Report::Ready));
        Worker { front, origin, channel: ours, cells: zone.process(slot), log, thread }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.front).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
        stream
    }

    fn tunnel(&self) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(UPGRADE).expect("it reads");
        assert!(head(&mut stream).starts_with(b"HTTP/1.1 101 "));
        stream
    }

    fn tell(&self, command: &Command) {
        self.channel.send_command(command).expect("it listens");
    }

    /// Waits until it has ended; returns its access log.
    fn end(self) -> String {
        assert_eq!(self.thread.join().expect("no panic"), worker::exit::OK);
        std::fs::read_to_string(self.log.path()).expect("the log")
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    loop {
        match &head(&mut stream)[..] {
            [b'G', b'E', b'T', b' ', b'/', b't', ..] => break,
            [b'G', b'E', b'T', b' ', b'/', b'f', ..] => return flood(stream),
            _ => {}
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
    }
    stream.write_all(SWITCH)?;
    let mut block = [0; 4096];
    while let count @ 1.. = stream.read(&mut block)? {
        stream.write_all(&block[..count])?;
    }
    Ok(())
}

fn flood(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(SWITCH)?;
    for at in (0..FLOOD_BYTES).step_by(4096) {
        let piece: Vec<u8> = (at..at + 4096).step_by(4).flat_map(u32::to_le_bytes).collect();
        stream.write_all(&piece)?;
        FLOODED.fetch_add(4096, Ordering::SeqCst);
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read(&mut [0]).map(drop)
}

fn bind() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a port")
}

/// A head, or what came before the end of the stream.
fn head(stream: &mut TcpStream) -> Vec<u8> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            break;
        }
        head.push(byte[0]);
    }
    head
}

fn echoes(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 4];
    stream.write_all(b"ping").and_then(|()| stream.read_exact(&mut answer)).is_ok() && &answer == b"ping"
}

fn await_readable(descriptor: BorrowedFd<'_>) {
    let patience = PollTimeout::try_from(PATIENCE).expect("seconds");
    let count = poll(&mut [PollFd::new(descriptor, PollFlags::POLLIN)], patience).expect("poll");
    assert_eq!(count, 1, "nothing came");
}

/// The next offer.
fn offer(line: &Handover) -> (u32, Record, Vec<OwnedFd>) {
    await_readable(line.as_fd());
    let offer = line.next_offer().expect("an offer").expect("the worker lives");
    let (record, descriptors) = offer.content.expect("it is readable");
    (offer.number, record, descriptors)
}

fn answer_of(line: &Handover) -> (u32, Answer) {
    await_readable(line.as_fd());
    line.next_answer().expect("an answer").expect("the worker lives")
}

/// Both ends of a connection.
fn pair() -> (TcpStream, TcpStream) {
    let listener = bind();
    let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
    near.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
    let far = listener.accept().expect("a connection").0;
    far.set_nonblocking(true).expect("O_NONBLOCK");
    (near, far)
}

/// One that takes some connections, refuses some, and dies: what it took is its own, the rest ends or goes on as if there
/// had been nobody.
#[test]
fn what_was_not_taken_goes_on_in_the_old_worker() {
    let worker = Worker::start("");
    let mut silent: Vec<_> = (0..40).map(|_| worker.connect()).collect();
    let mut kept: Vec<_> = (0..20).map(|_| worker.connect()).collect();
    for stream in &mut kept {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("it reads");
        assert!(head(stream).starts_with(b"HTTP/1.1 200 "));
        stream.read_exact(&mut [0; 2]).expect("a body");
    }
    let mut tunnels: Vec<_> = (0..30).map(|_| worker.tunnel()).collect();
    tunnels.iter_mut().for_each(|tunnel| assert!(echoes(tunnel)));

    let (to, line) = Handover::pair().expect("a pair");
    worker.tell(&Command::HandOver { to: to.into_fd() });
    worker.tell(&Command::Drain);
    let mut offers: Vec<_> = (0..WINDOW_RECORDS).map(|_| offer(&line)).collect();
    assert_eq!(line.next_offer().expect_err("the window is full").kind(), io::ErrorKind::WouldBlock);

    // One of each kind is taken, one refused, and one answered twice: the second word counts for nothing.
    let mut taken = Vec::new();
    for wanted in ["tunnel", "kept", "silent"] {
        let is_wanted = |record: &Record| match record {
            Record::Tunnel(..) => wanted == "tunnel",
            Record::Waiting(client) => wanted == if client.requests == 0 { "silent" } else { "kept" },
        };
        let mut next = || loop {
            match offers.iter().position(|(_, record, _)| is_wanted(record)) {
                Some(at) => return offers.swap_remove(at),
                None => {
                    // Of those that were called later than others were offered.
                    let (number, record, descriptors) = offers.pop().expect("others were offered");
                    line.answer(number, Answer::Taken).expect("it is there");
                    taken.push((record, descriptors));
                    offers.push(offer(&line));
                }
            }
        };
        let (first, second) = (next(), next());
        line.answer(first.0, Answer::Taken).expect("it is there");
        line.answer(first.0, Answer::Refused(Refusal::Room)).expect("it is there");
        line.answer(second.0, Answer::Refused(Refusal::Room)).expect("it is there");
        taken.push((first.1, first.2));
    }
    drop((offers, line));

    let is_tunnel = |(record, _): &&(Record, Vec<OwnedFd>)| matches!(record, Record::Tunnel(..));
    let (of_tunnels, of_others) = (taken.iter().filter(is_tunnel).count(), taken.len());
    // What was taken is not read any more but by who took it; tunnels that were not go on.
    for tunnel in &tunnels {
        tunnel.set_read_timeout(Some(Duration::from_millis(300))).expect("SO_RCVTIMEO");
    }
    assert_eq!(tunnels.iter_mut().filter_map(|tunnel| echoes(tunnel).then_some(())).count(), 30 - of_tunnels);
    for (record, mut descriptors) in taken {
        if let Record::Tunnel(client, tunnel) = &record {
            assert_eq!((client.listener.as_str(), tunnel.up.moved, tunnel.down.moved), (&*worker.front, 4, 4));
            assert_eq!((tunnel.account.request.as_slice(), tunnel.account.response.as_slice()), (UPGRADE, SWITCH));
            let mut stream = TcpStream::from(descriptors.swap_remove(0));
            let mut ping = [0; 4];
            stream.read_exact(&mut ping).expect("what the client sent is there for who took it");
            assert_eq!(&ping, b"ping");
        } else {
            drop(descriptors);
        }
    }
    // Those that waited are closed, once a request on its way would have come.
    for stream in silent.iter_mut().chain(&mut kept) {
        assert_eq!(stream.read(&mut [0; 9]).expect("an end"), 0);
    }
    assert_eq!(worker.cells.handed_over.get(), of_others as u64);
    drop(tunnels);
    let log = worker.end();
    assert_eq!(log.lines().filter(|line| line.starts_with("101 ")).count(), 30 - of_tunnels);
}

/// One that does not answer: after some seconds the offer is taken back, and can't be taken any more.
#[test]
fn what_is_not_answered_is_taken_back() {
    let worker = Worker::start("");
    let mut tunnel = worker.tunnel();
    let (to, line) = Handover::pair().expect("a pair");
    worker.tell(&Command::HandOver { to: to.into_fd() });
    let (number, _, descriptors) = offer(&line);
    assert!(echoes(&mut tunnel), "it goes on");
    let taken = line.answer(number, Answer::Taken).expect_err("too late");
    assert_eq!(taken.kind(), io::ErrorKind::BrokenPipe);
    drop((descriptors, line));
    worker.tell(&Command::Drain);
    assert!(echoes(&mut tunnel));
    drop(tunnel);
    assert_eq!(worker.cells.handed_over.get(), 0);
    worker.end();
}

/// A direction that is full is suspended with what its buffer and its pipe hold: it goes between what the client was sent and
/// what the server's socket holds.
#[test]
fn a_tunnel_that_is_full_is_offered_with_its_pipe() {
    let worker = Worker::start("");
    let mut client = worker.connect();
    client.write_all(b"GET /f HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").expect("it reads");
    assert!(head(&mut client).starts_with(b"HTTP/1.1 101 "));
    let (mut seen, mut stills) = (0, 0);
    while stills < 4 {
        thread::sleep(Duration::from_millis(200));
        let before = std::mem::replace(&mut seen, FLOODED.load(Ordering::SeqCst));
        stills = if seen == before && seen > 0 { stills + 1 } else { 0 };
    }
    let (to, line) = Handover::pair().expect("a pair");
    worker.tell(&Command::HandOver { to: to.into_fd() });
    let (number, record, mut descriptors) = offer(&line);
    line.answer(number, Answer::Taken).expect("it is there");
    let Record::Tunnel(_, tunnel) = record else { panic!("{record:?}") };
    // Where it met the full socket is left to chance: mostly while it spliced.
    let held = tunnel.down.unsent.len() as u64 + tunnel.down.in_pipe;
    assert!(held > 0 && tunnel.up == Way::default(), "{held} bytes are held");
    let mut came = vec![0; usize::try_from(tunnel.down.moved).expect("a count")];
    client.read_exact(&mut came).expect("what was sent");
    came.extend_from_slice(&tunnel.down.unsent);
    let start = came.len();
    came.resize(start + usize::try_from(tunnel.down.in_pipe).expect("a count"), 0);
    if tunnel.down.in_pipe > 0 {
        File::from(descriptors.swap_remove(2)).read_exact(&mut came[start..]).expect("what the pipe holds");
    }
    let mut server = TcpStream::from(descriptors.swap_remove(1));
    server.set_nonblocking(false).expect("O_NONBLOCK");
    server.read_to_end(&mut came).expect("the rest");
    assert!(came.len() == FLOOD_BYTES as usize, "{} bytes", came.len());
    let numbers = came.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
    assert_eq!(numbers.zip((0..).step_by(4)).find(|(number, at)| number != at), None);
    drop((client, server, line));
    worker.tell(&Command::Stop);
    worker.end();
}

/// A worker that is stopped in the middle of it has a line for each tunnel that nobody has taken.
#[test]
fn what_is_on_its_way_at_a_stop_is_logged() {
    let worker = Worker::start("");
    let tunnels: Vec<_> = (0..WINDOW_RECORDS + 10).map(|_| worker.tunnel()).collect();
    let (to, line) = Handover::pair().expect("a pair");
    worker.tell(&Command::HandOver { to: to.into_fd() });
    let offers: Vec<_> = (0..WINDOW_RECORDS).map(|_| offer(&line)).collect();
    line.answer(offers[0].0, Answer::Taken).expect("it is there");
    worker.tell(&Command::Stop);
    let cells = worker.cells;
    let log = worker.end();
    assert_eq!(line.answer(offers[1].0, Answer::Taken).expect_err("too late").kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(log.lines().filter(|line| line.starts_with("101 ")).count(), tunnels.len() - 1);
    assert_eq!((cells.requests_active.get(), cells.handed_over.get()), (0, 1));
}

/// Whatever state a tunnel is in, every byte comes once and in order.
#[test]
fn a_tunnel_is_taken_with_all_that_is_under_way() {
    let worker = Worker::start("");
    let (from, line) = Handover::pair().expect("a pair");
    worker.tell(&Command::TakeOver { from: from.into_fd() });
    let ((mut client, of_client), (mut server, of_server)) = (pair(), pair());
    let (reading, mut writing) = io::pipe().expect("a pipe");
    writing.write_all(b"second ").expect("room");
    client.write_all(b"third").expect("a connection");
    client.shutdown(Shutdown::Write).expect("a connection");
    server.write_all(b"answer").expect("a connection");
    let account = Account {
        route: "all".into(),
        upstream: "app".into(),
        servers: vec![worker.origin.clone()],
        request: UPGRADE.to_vec(),
        response: SWITCH.to_vec(),
        sent: 70,
        upstream_sent: 80,
        ..Account::default()
    };
    let up = Way { unsent: b"first ".to_vec(), in_pipe: 7, is_over: false, moved: 1000 };
    let down = Way { unsent: vec![b'd'; 20_000], in_pipe: 0, is_over: false, moved: 2000 };
    let tunnel = Tunnel { up, down, last_move: u64::MAX, idle: u64::MAX, account };
    let listener = Client { listener: worker.front.clone(), requests: 1, ..Client::default() };
    let record = Record::Tunnel(listener, Box::new(tunnel));
    let descriptors = [of_client.as_fd(), of_server.as_fd(), reading.as_fd(), writing.as_fd()];
    line.offer(7, &record, &descriptors).expect("room");
    assert_eq!(answer_of(&line), (7, Answer::Taken));
    drop((of_client, of_server, reading, writing));
    let mut came = Vec::new();
    server.read_to_end(&mut came).expect("to the end");
    assert_eq!(came, b"first second third");
    server.shutdown(Shutdown::Write).expect("a connection");
    came.clear();
    client.read_to_end(&mut came).expect("to the end");
    assert_eq!(came, [&[b'd'; 20_000][..], b"answer"].concat());
    drop((client, server, line));
    worker.tell(&Command::Drain);
    // The sums are those of its whole life.
    let (cells, log) = (worker.cells, worker.end());
    assert_eq!(log, format!("101 {} {} all /t\n", 2000 + 20_006, 80 + 1000 + 18));
    assert_eq!((cells.taken_over.get(), cells.accepted.get(), cells.requests.get()), (1, 0, 1));
    assert_eq!((cells.requests_active.get(), cells.connections_active.get()), (0, 0));
}

#[test]
fn a_connection_is_taken_unread_or_refused() {
    let worker = Worker::start("limits: {connections: 10}");
    let (from, line) = Handover::pair().expect("a pair");
    worker.tell(&Command::TakeOver { from: from.into_fd() });
    let of = |listener: &str| Client { listener: listener.into(), ..Client::default() };
    let (_client, of_client) = pair();
    line.offer(1, &Record::Waiting(of("nowhere")), &[of_client.as_fd()]).expect("room");
    assert_eq!(answer_of(&line), (1, Answer::Refused(Refusal::Listener)));
    let null = File::open("/dev/null").expect("a file");
    line.offer(2, &Record::Waiting(of(&worker.front)), &[null.as_fd()]).expect("room");
    assert_eq!(answer_of(&line), (2, Answer::Refused(Refusal::Unreadable)));
    let way = Way { in_pipe: 1 << 40, ..Way::default() };
    let tunnel = Record::Tunnel(of(&worker.front), Box::new(Tunnel { up: way, ..Tunnel::default() }));
    line.offer(3, &tunnel, &[of_client.as_fd(), of_client.as_fd(), null.as_fd(), null.as_fd()]).expect("room");
    assert_eq!(answer_of(&line), (3, Answer::Refused(Refusal::Unreadable)));

    // A request that had come before is answered by who has taken the connection, and the one after it.
    let mut clients = Vec::new();
    for number in 4..14 {
        let (mut client, of_client) = pair();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("a connection");
        line.offer(number, &Record::Waiting(of(&worker.front)), &[of_client.as_fd()]).expect("room");
        assert_eq!(answer_of(&line), (number, Answer::Taken));
        clients.push(client);
    }
    let (_other, of_other) = pair();
    line.offer(14, &Record::Waiting(of(&worker.front)), &[of_other.as_fd()]).expect("room");
    assert_eq!(answer_of(&line), (14, Answer::Refused(Refusal::Room)));
    for client in &mut clients {
        assert!(head(client).starts_with(b"HTTP/1.1 200 "));
        client.read_exact(&mut [0; 2]).expect("a body");
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("a connection");
        assert!(head(client).starts_with(b"HTTP/1.1 200 "));
    }
    assert_eq!((worker.cells.taken_over.get(), worker.cells.accepted.get()), (10, 0));

    // One that drains takes nothing more, and says so by its end.
    worker.tell(&Command::Drain);
    await_readable(line.as_fd());
    assert_eq!(line.next_answer().expect("an end"), None);
    drop(clients);
    worker.end();
}
