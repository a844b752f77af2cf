//! A warm keep-alive exchange allocates nothing: a worker runs on a thread of this process, whose allocations are counted.

#![allow(clippy::disallowed_methods, reason = "the worker under test and its origin are threads here")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use shared::channel::{Channel, Command, Report};
use shared::estate::call;
use shared::ident::{Generation, Seat};
use shared::log::{Format, Target, root};
use shared::zone::{Catalog, Maxima, Role, Zone};

/// How many exchanges a window has, and how many windows are looked at. Once a second the worker keeps house, which
/// allocates: some windows are free of that.
const WINDOW: usize = 50;
const WINDOWS: usize = 20;

static COUNTED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_COUNTED: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

// SAFETY: every call is passed to the system's allocator unchanged; the counter allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if IS_COUNTED.try_with(Cell::get).unwrap_or(false) {
            COUNTED.fetch_add(1, Ordering::SeqCst);
        }
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block came from `alloc` above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Answers each request on each connection with a kibibyte, once its body of `body_bytes` has come.
fn serve(listener: TcpListener, body_bytes: usize) {
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n";
    let answer = [HEAD, &[b'x'; 1024]].concat();
    for stream in listener.incoming() {
        let (mut stream, answer) = (stream.expect("a connection"), answer.clone());
        thread::spawn(move || {
            let mut input = Vec::new();
            let mut piece = [0; 8192];
            while let Ok(count @ 1..) = stream.read(&mut piece) {
                input.extend_from_slice(&piece[..count]);
                let head = input.windows(4).position(|window| window == b"\r\n\r\n");
                if head.is_some_and(|end| input.len() >= end + 4 + body_bytes) {
                    input.clear();
                    stream.write_all(&answer).expect("the worker reads");
                }
            }
        });
    }
}

/// Starts a worker, warms one connection to it, and counts what exchanges on it allocate: the least of all windows.
fn least_allocations(access_log: &str, request: &[u8], body_bytes: usize) -> u64 {
    let (listener, origin) = (bind(), bind());
    let [front, back] = [&listener, &origin].map(|listener| listener.local_addr().expect("bound").to_string());
    thread::spawn(move || serve(origin, body_bytes));
    let text = format!(
        "access_log: {access_log}\nlisteners: [{{address: '{front}'}}]\nupstreams: {{app: {{servers: ['{back}']}}}}\n\
         routes: [{{name: all, match: {{path: /}}, upstream: app}}]\n"
    );
    let config = conf::parse(&text, "test").expect("a configuration").config;
    let zone = Zone::anonymous(Maxima::for_workers(1));
    let upstreams = vec![("app".to_owned(), vec![back])];
    let catalog = Catalog { listeners: vec![front.clone()], routes: vec!["all".into()], upstreams };
    zone.publish(&catalog).expect("room in the zone");
    let slot = zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).expect("a slot");
    let (ours, channel) = Channel::pair().expect("a channel");
    let file = OpenOptions::new().write(true).open("/dev/null").expect("a sink");
    listener.set_nonblocking(true).expect("a socket");
    let call = call(None).expect("a socket");
    let worker = thread::spawn(move || {
        IS_COUNTED.set(true);
        let error_log = Target::stderr().expect("standard error");
        let log = root(&error_log, slog::Level::Error, Format::Text, "worker");
        let listeners = vec![vec![OwnedFd::from(listener)]];
        let config = Arc::new(config);
        let (generation, seat, access_log) = (Generation(1), Seat(0), Some(file));
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
    while !matches!(ours.recv_report(), Ok(Some(Report::Ready))) {
        thread::yield_now();
    }
    let mut client = TcpStream::connect(&front).expect("the worker accepts");
    let mut exchange = || {
        client.write_all(request).expect("the worker reads");
        let (mut answer, mut filled) = ([0; 4096], 0);
        while !answer[..filled].ends_with(&[b'x'; 1024]) {
            let count = client.read(&mut answer[filled..]).expect("the worker answers");
            assert!(count > 0 && answer.starts_with(b"HTTP/1.1 200 "), "an answer");
            filled += count;
        }
    };
    (0..WINDOW).for_each(|_| exchange());
    let windows = std::iter::repeat_with(|| {
        let before = COUNTED.load(Ordering::SeqCst);
        (0..WINDOW).for_each(|_| exchange());
        COUNTED.load(Ordering::SeqCst) - before
    });
    assert!(COUNTED.load(Ordering::SeqCst) > 0, "starting allocates: nothing is counted");
    let least = windows.take(WINDOWS).min().expect("windows");
    ours.send_command(&Command::Stop).expect("the worker listens");
    assert_eq!(worker.join().expect("no panic"), worker::exit::OK);
    least
}

fn bind() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a port")
}

#[test]
fn a_warm_exchange_allocates_nothing() {
    let get =
        b"GET /a/b?c HTTP/1.1\r\nHost: example.com\r\nAccept: */*\r\nCookie: a=b\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n";
    let post =
        [&b"POST /form HTTP/1.1\r\nHost: example.com\r\nContent-Length: 1024\r\n\r\n"[..], &[b'y'; 1024]].concat();
    assert_eq!(least_allocations("off", get, 0), 0, "GET");
    assert_eq!(least_allocations("off", &post, 1024), 0, "POST");
    assert_eq!(least_allocations("{path: stdout, format: json}", get, 0), 0, "GET with an access log");
}
