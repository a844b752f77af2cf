//! Nothing is lost, whatever an operator does and whatever dies: load whose every request is accounted for, while things
//! happen. `make soak` runs the same for longer.

#![forbid(unsafe_code)]

use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use integration::{Binary, Origin, Proxy, Wire, eventually, until};
use nix::sys::signal::Signal;

/// Clients of each kind.
const CLIENTS: usize = 3;

/// How often something happens: `short` in the tests, `long` in a soak.
fn times(short: usize, long: usize) -> usize {
    if std::env::var_os("SLUICE_SOAK").is_some() { long } else { short }
}

/// Answers with the name that a request goes by, which its client chose, and with its body; echoes in a tunnel.
fn accounting() -> Origin {
    // What is cut off with the worker that passed it on is no failure of the origin's.
    Origin::start(|wire, _| drop(catch_unwind(AssertUnwindSafe(|| account(wire)))))
}

fn account(mut wire: Wire) {
    while let Some(request) = wire.request() {
        let name = request.head.field("x-name").unwrap_or_default().to_owned();
        if request.head.field("upgrade").is_some() {
            return wire.echo();
        }
        let body = [name.as_bytes(), &request.body].concat();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        wire.send([head.as_bytes(), &body].concat());
    }
}

/// What the clients have seen.
#[derive(Default)]
struct Ledger {
    names: AtomicU64,
    answered: AtomicU64,
    failed: Mutex<Vec<String>>,
    is_over: AtomicBool,
}

impl Ledger {
    fn name(&self) -> String {
        format!("request-{}", self.names.fetch_add(1, Ordering::SeqCst))
    }

    /// Runs a client until the load is over. What it keeps (a connection) is made anew after a failure.
    fn run<T>(&self, kind: &str, begin: impl Fn() -> T, mut ask: impl FnMut(&mut T) -> bool) {
        let mut kept = None;
        while !self.is_over.load(Ordering::SeqCst) {
            let asked = catch_unwind(AssertUnwindSafe(|| {
                let on = kept.get_or_insert_with(&begin);
                ask(on)
            }));
            match asked {
                Ok(goes_on) => {
                    self.answered.fetch_add(1, Ordering::SeqCst);
                    kept = kept.filter(|_| goes_on);
                }
                Err(cause) => {
                    let text = cause.downcast_ref::<String>().cloned().unwrap_or_default();
                    self.failed.lock().expect("a ledger").push(format!("{kind}: {text}"));
                    kept = None;
                }
            }
        }
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    fn failed(&self) -> Vec<String> {
        self.failed.lock().expect("a ledger").clone()
    }

    /// Waits until the load has moved on by some requests of each client.
    fn moves_on(&self) {
        let before = self.answered();
        eventually("the load goes on", || self.answered() > before + 4 * CLIENTS as u64);
    }
}

/// Asks under a name and checks that the answer is to that, and whole; says whether the connection goes on.
fn exchange(wire: &mut Wire, ledger: &Ledger, extra: &str, body: &[&str]) -> bool {
    let (name, length) = (ledger.name(), body.iter().map(|piece| piece.len()).sum::<usize>());
    let method = if body.is_empty() { "GET" } else { "POST" };
    let framing = if body.is_empty() { String::new() } else { format!("Content-Length: {length}\r\n") };
    wire.send(format!("{method} / HTTP/1.1\r\nHost: a\r\nX-Name: {name}\r\n{framing}{extra}\r\n"));
    for piece in body {
        thread::sleep(Duration::from_millis(3));
        wire.send(piece);
    }
    let answer = wire.response();
    assert_eq!((answer.status(), answer.text()), (200, name + &body.concat()));
    answer.field("connection") != Some("close")
}

/// Puts load on the proxy at `address` by connections that are new, kept, slow and tunnels, while `happening` goes on.
fn under_load(address: SocketAddr, happening: impl FnOnce(&Ledger)) -> Ledger {
    let connect = || Wire::tcp(address);
    let open = || {
        let mut wire = connect();
        wire.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
        assert_eq!(wire.head().status(), 101);
        wire
    };
    let kinds: [&Kind<'_>; 4] = [
        &|ledger| {
            ledger.run("new", connect, |wire| {
                exchange(wire, ledger, "Connection: close\r\n", &[]);
                false
            });
        },
        &|ledger| ledger.run("kept", connect, |wire| exchange(wire, ledger, "", &[])),
        &|ledger| ledger.run("slow", connect, |wire| exchange(wire, ledger, "", &["one ", "two ", "three"])),
        &|ledger| {
            ledger.run("tunnel", open, |wire| {
                let name = ledger.name();
                wire.send(&name);
                assert_eq!(wire.exactly(name.len()), name.as_bytes());
                thread::sleep(Duration::from_millis(1));
                true
            });
        },
    ];
    loaded(&kinds, happening)
}

/// A client, until the load is over.
type Kind<'a> = dyn Fn(&Ledger) + Sync + 'a;

/// Runs clients of each of these kinds while `happening` goes on.
fn loaded(kinds: &[&Kind<'_>], happening: impl FnOnce(&Ledger)) -> Ledger {
    let ledger = Ledger::default();
    thread::scope(|scope| {
        for kind in kinds.iter().flat_map(|kind| [*kind; CLIENTS]) {
            scope.spawn(|| kind(&ledger));
        }
        let happened = catch_unwind(AssertUnwindSafe(|| {
            ledger.moves_on();
            happening(&ledger);
            ledger.moves_on();
        }));
        ledger.is_over.store(true, Ordering::SeqCst);
        happened.unwrap_or_else(|cause| std::panic::resume_unwind(cause));
    });
    ledger
}

fn text(origin: &Origin, settings: &str) -> String {
    format!(
        "shutdown_timeout: 10m\n{settings}\nupstreams: {{app: {{servers: ['{}']}}}}\n\
         routes: [{{name: all, match: {{path: /}}, upstream: app}}]",
        origin.address()
    )
}

#[track_caller]
fn assert_nothing_failed(ledger: &Ledger) {
    assert_eq!(ledger.failed(), Vec::<String>::new(), "of {} requests", ledger.answered());
}

#[test]
fn reloads_lose_nothing() {
    let origin = accounting();
    let settings = |live: usize, anew: usize| {
        let limits = format!("limits: {{header_count: {}}}", 50 + live % 100);
        text(&origin, &format!("worker_processes: 4\nworker_connections: {}\n{limits}", 4000 + anew))
    };
    let proxy = Proxy::start(&settings(0, 0));
    let (live, anew) = (times(40, 400), times(4, 20));
    let ledger = under_load(proxy.address(), |ledger| {
        let workers = proxy.workers();
        for number in 1..=live {
            proxy.reload(&settings(number, 0)).output();
        }
        assert_eq!(proxy.workers(), workers, "no process was replaced");
        for number in 1..=anew {
            let old = proxy.workers();
            proxy.reload(&settings(0, number)).output();
            ledger.moves_on();
            // Their tunnels, which never end by themselves, have moved to the new ones.
            eventually("the old workers are gone", || !old.iter().any(|worker| worker.is_running()));
        }
    });
    assert_nothing_failed(&ledger);
}

/// Memory stays what it was, however often the configuration changes.
#[test]
fn reloads_leave_nothing_behind() {
    let settings = |number: usize| {
        let route = |at: usize| format!("{{match: {{path: /r{number}-{at}}}, respond: {{status: 200}}}}");
        let routes: Vec<_> = (0..200).map(route).collect();
        format!("routes: [{}]", routes.join(", "))
    };
    let proxy = Proxy::start(&settings(0));
    let worker = proxy.workers()[0];
    let reload = |count: usize| {
        for number in 0..count {
            proxy.reload(&settings(number)).output();
            proxy.client().get("/");
        }
    };
    // Names of routes take places in the zone, whose pages are shared and count once touched: the first rounds touch them.
    reload(times(30, 60));
    let before = worker.resident_bytes();
    reload(times(30, 200));
    let after = worker.resident_bytes();
    assert!(after <= before + before / 20 + (1 << 20), "{before} bytes became {after}");
    assert_eq!(proxy.workers(), [worker]);
}

#[test]
fn a_killed_worker_takes_only_what_was_in_its_hands() {
    let origin = accounting();
    let proxy = Proxy::start(&text(&origin, "worker_processes: 4"));
    let kills = times(5, 20);
    let ledger = under_load(proxy.address(), |ledger| {
        for _ in 0..kills {
            let victim = proxy.workers()[0];
            victim.signal(Signal::SIGKILL);
            eventually("it is replaced", || {
                let workers = proxy.workers();
                workers.len() == 4 && !workers.contains(&victim)
            });
            ledger.moves_on();
        }
    });
    // A client has one request under way, or a tunnel; a connection that waits for its next one is lost unseen.
    let failed = ledger.failed();
    assert!(failed.len() <= kills * 4 * CLIENTS, "{failed:?}");
    assert!(failed.iter().all(|failure| !failure.starts_with("new: assertion")), "no answer is wrong: {failed:?}");
    eventually("counts are true again", || {
        let stats = proxy.stats();
        let gauges = ["requests_active", "connections_active", "connections_idle"];
        gauges.into_iter().all(|gauge| stats.total(gauge) == 0)
    });
}

/// The demo origins are in `control`. The master keeps their sockets: what comes while there is none waits in the queue,
/// and what was in the hands of the killed one is asked again, as it may be repeated.
#[test]
fn a_killed_control_costs_no_request_that_may_be_repeated() {
    let address = SocketAddr::from(([127, 0, 0, 1], 8080));
    if TcpListener::bind(address).is_err() {
        eprintln!("{address} is taken by another program: kills of control were not tried");
        return;
    }
    let mut proxy = Proxy::prepared("");
    let runtime = proxy.file("xdg");
    std::fs::create_dir(&runtime).expect("a directory");
    proxy.launch_default(&runtime);
    proxy.wait_ready(1);
    let (connect, kills) = (|| Wire::tcp(address), times(3, 20));
    let kinds: [&Kind<'_>; 2] = [
        &|ledger| {
            ledger.run("new", connect, |wire| {
                echoed(wire, ledger, "Connection: close\r\n");
                false
            });
        },
        &|ledger| ledger.run("kept", connect, |wire| echoed(wire, ledger, "")),
    ];
    let master = proxy.master().arguments();
    let control = || proxy.processes().into_iter().find(|process| process.arguments() != master);
    let ledger = loaded(&kinds, |ledger| {
        for _ in 0..kills {
            let victim = until("control is there", control);
            victim.signal(Signal::SIGKILL);
            eventually("it comes back", || control().is_some_and(|control| control != victim));
            // Whatever waited is answered before the next kill: what is repeated once is not repeated again.
            ledger.moves_on();
        }
    });
    assert_nothing_failed(&ledger);
    assert_eq!(proxy.log().matches("control ended").count(), kills, "{}", proxy.log());
}

/// Asks a demo origin for what it got, and checks that this is the request; says whether the connection goes on.
fn echoed(wire: &mut Wire, ledger: &Ledger, extra: &str) -> bool {
    let name = ledger.name();
    wire.send(format!("GET /echo HTTP/1.1\r\nHost: a\r\nX-Name: {name}\r\n{extra}\r\n"));
    let answer = wire.response();
    assert_eq!(answer.status(), 200);
    assert!(answer.text().contains(&format!("x-name: {name}\n")), "no {name} in {}", answer.text());
    answer.field("connection") != Some("close")
}

#[test]
fn a_killed_master_and_the_next_one_lose_nothing() {
    let origin = accounting();
    let mut proxy = Proxy::start(&text(&origin, "worker_processes: 4"));
    let master = proxy.master();
    let ledger = under_load(proxy.address(), |ledger| {
        for _ in 0..times(1, 5) {
            proxy.signal(Signal::SIGKILL);
            assert_eq!(proxy.wait_exit(), 128 + 9);
            ledger.moves_on();
            proxy.launch();
            eventually("a new master serves", || proxy.stats().condition() == "running");
            ledger.moves_on();
        }
    });
    assert_ne!(proxy.master(), master);
    assert_nothing_failed(&ledger);
}

#[test]
fn upgrades_lose_nothing() {
    let origin = accounting();
    let mut proxy = Proxy::prepared(&text(&origin, "worker_processes: 4"));
    proxy.launch();
    proxy.wait_ready(1);
    let upgrade = |proxy: &Proxy, binary: &str| {
        proxy.run(["upgrade", "--watch", "2s", "--min-requests", "10", "--binary", binary])
    };
    let program = Binary::path().to_str().expect("a path");
    let address = proxy.address();
    for round in 0..times(2, 7) {
        let ledger = under_load(address, |ledger| {
            let done = upgrade(&proxy, program);
            assert_eq!(done.code, 0, "{done:?}");
            ledger.moves_on();
        });
        assert_nothing_failed(&ledger);
        if round == 0 {
            proxy.follow_master();
        }
        let ledger = under_load(address, |ledger| {
            let refused = upgrade(&proxy, "/bin/false");
            assert!(refused.code == 1 && refused.stderr.contains("rolled back"), "{refused:?}");
            ledger.moves_on();
        });
        assert_nothing_failed(&ledger);
    }
}

/// What an unfit binary touches is what its first worker was asked before the verdict.
#[test]
fn upgrades_to_unfit_binaries_touch_what_their_first_worker_was_asked() {
    let origin = accounting();
    for failing in ["segv", "500"] {
        let mut proxy = Proxy::prepared(&text(&origin, "worker_processes: 4"));
        proxy.set_environment("SLUICE_MISBEHAVE", failing);
        proxy.launch();
        proxy.wait_ready(1);
        let ledger = under_load(proxy.address(), |ledger| {
            let binary = Binary::misbehaving().to_str().expect("a path");
            let refused = proxy.run(["upgrade", "--watch", "20s", "--binary", binary]);
            assert!(refused.code == 1 && refused.stderr.contains("rolled back"), "{refused:?}");
            // As many as may have been under way at the verdict.
            let before = ledger.failed().len();
            ledger.moves_on();
            assert!(ledger.failed().len() <= before + 4 * CLIENTS, "{:?}", ledger.failed());
        });
        let failed = ledger.failed();
        assert!(failed.iter().all(|failure| !failure.starts_with("kept: assertion") || failing == "500"), "{failed:?}");
        println!("{failing}: {} of {} requests were touched", failed.len(), ledger.answered());
    }
}

#[test]
fn workers_come_and_go_without_loss() {
    let origin = accounting();
    for reuseport in ["on", "off"] {
        let settings = |count: usize| {
            let listeners = format!("listeners: [{{address: '127.0.0.1:{{port}}', reuseport: {reuseport}}}]");
            text(&origin, &format!("worker_processes: {count}\n{listeners}"))
        };
        let proxy = Proxy::start(&settings(1));
        let ledger = under_load(proxy.address(), |ledger| {
            for count in [4, 2] {
                let old = proxy.workers();
                proxy.reload(&settings(count)).output();
                ledger.moves_on();
                eventually("the old workers are gone", || !old.iter().any(|worker| worker.is_running()));
            }
        });
        assert_nothing_failed(&ledger);
    }
}

/// Whatever is wrong, what runs is untouched, and the reason is told by the command and by the log.
#[test]
fn broken_configurations_change_nothing() {
    let origin = accounting();
    let good = text(&origin, "worker_processes: 2");
    let proxy = Proxy::start(&good);
    let broken = [
        ("routes: 7", "routes"),
        ("workers: 2", "workers"),
        ("listeners: [{address: nowhere}]", "nowhere"),
        ("listeners: [{address: '192.0.2.1:80'}]\nroutes: []", "192.0.2.1:80"),
        ("upstreams: {app: {servers: []}}", "app"),
        ("routes: [{match: {path: /}, upstream: nobody}]", "nobody"),
        ("pid_file: /elsewhere/pid\nroutes: []", "pid"),
        ("access_log: /no/such/place/log\nroutes: []", "/no/such/place"),
        ("timeouts: {connect: soon}", "soon"),
        ("a: [", "sluice.yaml"),
    ];
    let ledger = under_load(proxy.address(), |_| {
        let workers = proxy.workers();
        for _ in 0..times(1, 5) {
            for (text, reason) in broken {
                let refused = proxy.reload(text);
                assert_eq!(refused.code, 1, "{refused:?}");
                assert!(refused.stderr.contains(reason), "no {reason} in {refused:?}");
                let verdicts = || proxy.log().matches("reload refused").count();
                let before = verdicts();
                proxy.signal(Signal::SIGHUP);
                eventually("the signal is refused too", || verdicts() > before);
            }
        }
        assert_eq!(proxy.workers(), workers);
        proxy.configure(&good);
        assert_eq!(proxy.stats().0["generation"], 1);
    });
    assert_nothing_failed(&ledger);
}
