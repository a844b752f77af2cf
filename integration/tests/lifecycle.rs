//! Processes: how they start, end, die and are replaced.

#![forbid(unsafe_code)]

use std::net::TcpListener;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use integration::{Ending, Finished, Origin, Process, Proxy, Wire, eventually, ok, receive, until};
use nix::sys::signal::Signal;

/// Answers with the pid of the worker that answers.
const PIDS: &str = "routes: [{match: {path: {prefix: /}}, respond: {status: 200, body: '$pid'}}]";

/// Asks for the pid of the worker on the other end.
#[track_caller]
fn pid(client: &mut Wire) -> Process {
    Process(client.get("/").text().parse().expect("a pid"))
}

#[test]
fn the_processes_are_as_designed() {
    let proxy = Proxy::start(&format!("worker_processes: 3\n{PIDS}"));
    assert_eq!(proxy.workers().len(), 3);
    assert_eq!(proxy.processes().len(), 4);
    assert_eq!(proxy.master().threads(), 1);
    for worker in proxy.workers() {
        assert_eq!(worker.threads(), 1, "the loop; without an access log it needs no helper");
    }
    assert!(proxy.workers().contains(&pid(&mut proxy.client())));
    assert!(proxy.file("run/sluice.pid").exists());
    assert!(proxy.file("run/zone").exists());
}

#[test]
fn term_and_int_stop_at_once_and_leave_nothing() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut proxy = Proxy::start(&format!("{PIDS}\nlisteners: [{{address: 'unix:{{dir}}/in.sock'}}]"));
        let mut idle = Wire::unix(&proxy.file("in.sock"));
        pid(&mut idle);
        proxy.signal(signal);
        assert_eq!(proxy.wait_exit(), 0, "{signal}");
        assert!(!proxy.file("run/sluice.pid").exists(), "{signal}");
        assert!(!proxy.file("in.sock").exists(), "{signal}");
        assert!(idle.rest().0.is_empty(), "{signal}");
    }
}

#[test]
fn quit_finishes_what_is_in_flight() {
    let (arrived, has_arrived) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let origin = Origin::once(move |mut wire| {
        wire.request();
        arrived.send(()).expect("the test listens");
        receive(&may_go);
        wire.send(ok("finished"));
        wire.request();
    });
    let mut proxy = Proxy::before(&origin);
    let mut idle = proxy.client();
    let mut busy = proxy.client();
    busy.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    receive(&has_arrived);
    proxy.signal(Signal::SIGQUIT);
    idle.closed();
    go.send(()).expect("the origin listens");
    let response = busy.response();
    assert_eq!(response.text(), "finished");
    assert_eq!(busy.rest(), (Vec::new(), Ending::Closed));
    assert_eq!(proxy.wait_exit(), 0);
}

/// A drain has an end, whatever the clients do.
#[test]
fn quit_does_not_wait_forever() {
    let (origin, has_arrived) = Origin::silent();
    let mut proxy = Proxy::before_with(&origin, "shutdown_timeout: 300ms");
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    receive(&has_arrived);
    proxy.signal(Signal::SIGQUIT);
    assert_eq!(proxy.wait_exit(), 0);
}

#[test]
fn a_second_start_is_refused() {
    let proxy = Proxy::start(PIDS);
    let second = proxy.run(["run"]);
    assert_eq!(second.code, 4, "{second:?}");
    assert!(second.stderr.contains(&proxy.master().0.to_string()), "it does not name the pid: {second:?}");
    assert_eq!(vec![pid(&mut proxy.client())], proxy.workers());
}

/// After everything was killed, files of the dead lie about; they stop nobody.
#[test]
fn what_the_dead_left_is_taken_over() {
    let mut proxy = Proxy::start(&format!("{PIDS}\nlisteners: [{{address: 'unix:{{dir}}/in.sock'}}]"));
    proxy.kill();
    assert!(proxy.file("run/sluice.pid").exists());
    assert!(proxy.file("in.sock").exists());
    proxy.launch();
    proxy.wait_ready(2);
    assert_eq!(vec![pid(&mut Wire::unix(&proxy.file("in.sock")))], proxy.workers());
}

#[test]
fn a_port_that_is_taken_is_named() {
    let mut proxy = Proxy::prepared(PIDS);
    let _taken = TcpListener::bind(proxy.address()).expect("the port");
    proxy.launch();
    assert_eq!(proxy.wait_exit(), 1);
    assert!(proxy.log().contains(&proxy.address().to_string()), "{}", proxy.log());
}

#[test]
fn a_daemon_serves_when_its_launch_returns() {
    let mut proxy = Proxy::prepared(PIDS);
    let launched = proxy.launch_daemon();
    assert_eq!(launched.code, 0, "{launched:?}");
    assert_eq!(vec![pid(&mut proxy.client())], proxy.workers());
    let session = proxy.master().status("NSsid").expect("a session");
    assert_ne!(session, Process::this().status("NSsid").expect("a session"));
    proxy.run(["stop"]).output();
    assert!(proxy.processes().is_empty());
}

#[test]
fn a_daemon_that_fails_says_why() {
    let mut proxy = Proxy::prepared(PIDS);
    let _taken = TcpListener::bind(proxy.address()).expect("the port");
    let launched = proxy.launch_daemon();
    assert_eq!(launched.code, 1, "{launched:?}");
    assert!(launched.stderr.contains(&proxy.address().to_string()), "{launched:?}");
    eventually("nothing is left", || proxy.processes().is_empty());
}

/// A resized terminal sends it too, so only a daemon obeys.
#[test]
fn winch_stops_the_workers_of_a_daemon_alone() {
    let proxy = Proxy::start(PIDS);
    let workers = proxy.workers();
    proxy.signal(Signal::SIGWINCH);
    assert_eq!(workers, vec![pid(&mut proxy.client())]);
    let mut daemon = Proxy::prepared(PIDS);
    assert_eq!(daemon.launch_daemon().code, 0);
    daemon.signal(Signal::SIGWINCH);
    eventually("the workers are gone", || daemon.workers().is_empty());
    assert!(daemon.master().is_running());
}

/// What a terminal or a stray script sends to a worker is the master's business.
#[test]
fn a_worker_ignores_what_is_meant_for_the_master() {
    let proxy = Proxy::start(PIDS);
    let worker = proxy.workers()[0];
    let mut client = proxy.client();
    for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH]
    {
        worker.signal(signal);
        assert_eq!(pid(&mut client), worker, "{signal}");
    }
}

#[test]
fn a_worker_that_dies_is_replaced() {
    let proxy = Proxy::start(PIDS);
    let first = proxy.workers()[0];
    first.signal(Signal::SIGKILL);
    eventually("a new worker", || proxy.workers().first().is_some_and(|worker| *worker != first));
    assert_eq!(vec![pid(&mut proxy.client())], proxy.workers());
}

/// Only the connections of the worker that dies suffer, and no connection waits for it in vain.
#[test]
fn a_worker_that_is_killed_under_load_takes_only_its_own() {
    let proxy = Proxy::start(&format!("worker_processes: 4\n{PIDS}"));
    let mut clients: Vec<_> = (0..128)
        .map(|_| {
            let mut client = proxy.client();
            (pid(&mut client), client)
        })
        .collect();
    let victim = clients[0].0;
    let survivors = clients.iter().filter(|(worker, _)| *worker != victim).count();
    assert!(survivors > 0, "one worker has every connection");
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..500 {
                // A connection that the victim had accepted may end without an answer; none may hang.
                let mut client = proxy.client();
                if client.try_send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").is_ok() {
                    client.rest();
                }
            }
        });
        victim.signal(Signal::SIGKILL);
        for _ in 0..20 {
            for (worker, client) in clients.iter_mut().filter(|(worker, _)| *worker != victim) {
                assert_eq!(pid(client), *worker);
            }
        }
    });
    for (worker, mut client) in clients {
        if worker == victim {
            assert!(client.rest().0.is_empty());
        }
    }
    eventually("four workers", || proxy.workers().len() == 4);
    for _ in 0..200 {
        assert!(proxy.workers().contains(&pid(&mut proxy.client())));
    }
}

/// A seat whose worker is stopped is accepted by the others.
#[test]
fn a_worker_that_hangs_does_not_swallow_connections() {
    let proxy = Proxy::start(&format!("worker_processes: 2\n{PIDS}"));
    let [hung, live] = proxy.workers()[..] else { panic!("two workers") };
    hung.signal(Signal::SIGSTOP);
    eventually("it is stopped", || hung.is_stopped());
    for _ in 0..40 {
        assert_eq!(pid(&mut proxy.client()), live);
    }
    hung.signal(Signal::SIGCONT);
}

#[test]
fn workers_serve_on_when_the_master_is_killed() {
    let mut proxy = Proxy::start(&format!("worker_processes: 2\n{PIDS}"));
    let workers = proxy.workers();
    let old_master = proxy.master();
    let mut client = proxy.client();
    let mine = pid(&mut client);
    proxy.signal(Signal::SIGKILL);
    assert_eq!(proxy.wait_exit(), 128 + 9);
    assert_eq!(pid(&mut client), mine);
    assert!(workers.contains(&pid(&mut proxy.client())));
    assert_eq!(proxy.stats().condition(), "orphaned");
    // A new master takes the place, and the orphans drain.
    proxy.launch();
    proxy.wait_ready(2);
    assert_ne!(proxy.master(), old_master);
    eventually("the orphans are gone", || proxy.processes().len() == 3);
    for _ in 0..20 {
        assert!(proxy.workers().contains(&pid(&mut proxy.client())));
    }
}

/// Commands know such workers from a proxy that is not there, and can have them finish.
#[test]
fn workers_whose_master_was_killed_can_be_told_to_finish() {
    let mut proxy = Proxy::start(&format!("worker_processes: 2\n{PIDS}"));
    let workers = proxy.workers();
    proxy.signal(Signal::SIGKILL);
    assert_eq!(proxy.wait_exit(), 128 + 9);
    for command in ["reload", "reopen"] {
        let refused = proxy.run([command]);
        assert_eq!(refused.code, 3, "{refused:?}");
        assert!(refused.stderr.contains("was killed") && refused.stderr.contains("serve on"), "{refused:?}");
    }
    proxy.client().get("/");
    let quit = proxy.run(["quit"]);
    assert_eq!(quit.code, 0, "{quit:?}");
    assert!(workers.iter().all(|worker| !worker.is_running()), "{quit:?}");
    let refused = proxy.run(["quit"]);
    assert!(refused.code == 3 && refused.stderr.contains("no proxy runs"), "{refused:?}");
}

/// Without a master too `shutdown_timeout` bounds how long they may take.
#[test]
fn workers_whose_master_was_killed_do_not_finish_forever() {
    let (origin, has_arrived) = Origin::silent();
    let mut proxy = Proxy::before_with(&origin, "shutdown_timeout: 300ms");
    let worker = proxy.workers()[0];
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    receive(&has_arrived);
    proxy.signal(Signal::SIGKILL);
    assert_eq!(proxy.wait_exit(), 128 + 9);
    let quit = proxy.run(["quit"]);
    assert_eq!(quit.code, 0, "{quit:?}");
    assert!(!worker.is_running());
    client.rest();
}

/// A worker whose loop stands still is replaced; a master that stood still as well judges nobody.
#[test]
fn a_loop_that_does_not_turn_is_given_up() {
    let proxy = Proxy::start(&format!("worker_processes: 4\nwatchdog: 2s\n{PIDS}"));
    let (master, workers) = (proxy.master(), proxy.workers());
    let all: Vec<_> = workers.iter().copied().chain([master]).collect();
    all.iter().for_each(|process| process.signal(Signal::SIGSTOP));
    let stood_still =
        |process: &serde_json::Value| process["heartbeat_age_seconds"].as_f64().is_some_and(|age| age > 3.0);
    eventually("they have stood still", || {
        let stats = proxy.stats();
        stats.0["processes"].as_array().is_some_and(|processes| processes.iter().all(stood_still))
    });
    all.iter().for_each(|process| process.signal(Signal::SIGCONT));
    eventually("all serve again", || proxy.run(["stats"]).output().contains("4 of 4 workers serving"));
    assert_eq!(proxy.workers(), workers);

    let hung = workers[0];
    hung.signal(Signal::SIGSTOP);
    eventually("it is replaced", || {
        let now = proxy.workers();
        now.len() == 4 && !now.contains(&hung)
    });
    proxy.wait_log("stood still");
    proxy.wait_log("does not say where");
}

/// Where a loop is stands in the log by names: when it stands still, before it is killed, or when anybody asks.
#[test]
fn a_loop_tells_where_it_is() {
    let proxy = Proxy::start(&format!("worker_processes: 2\nwatchdog: 2s\n{PIDS}"));
    let asked = proxy.workers()[0];
    asked.signal(Signal::SIGURG);
    let told = |log: &str, worker: i32| {
        let lines = log.lines().filter(|line| line.contains("scribe[") && line.contains(&format!("worker={worker}")));
        lines.clone().any(|line| line.contains("run worker=") && line.contains("worker/src/command.rs:"))
            && lines.count() > 4
    };
    eventually("the places have names", || told(&proxy.log(), asked.0));
    assert!(!proxy.log().contains("worker/src/stack.rs"), "the handler is not where it was");
    assert!(proxy.workers().contains(&asked), "to be asked harms nobody");

    // A stopped process answers when it goes on. Its time may be up by then; another one is in time.
    eventually("one that stands still says where, and is replaced", || {
        let hung = proxy.workers()[0];
        hung.signal(Signal::SIGSTOP);
        eventually("it is asked", || {
            let log = proxy.log();
            log.lines().any(|line| line.contains("has stood still") && line.contains(&format!("worker={}", hung.0)))
        });
        hung.signal(Signal::SIGCONT);
        eventually("it is replaced", || {
            let now = proxy.workers();
            now.len() == 2 && !now.contains(&hung)
        });
        let gave_up = |line: &str| line.contains("does not say where") && line.contains(&format!("worker={}", hung.0));
        if proxy.log().lines().any(gave_up) {
            return false;
        }
        eventually("the places have names", || told(&proxy.log(), hung.0));
        true
    });
}

/// A worker that is stopped is not shown as one that serves.
#[test]
fn a_loop_that_does_not_turn_is_told_of() {
    let proxy = Proxy::start(&format!("worker_processes: 2\n{PIDS}"));
    let hung = proxy.workers()[0];
    hung.signal(Signal::SIGSTOP);
    eventually("the table says so", || {
        let page = proxy.run(["stats", "--by-worker"]).output();
        page.contains("stalled") && page.contains("1 of 2 workers serving")
    });
    hung.signal(Signal::SIGCONT);
    eventually("both serve again", || proxy.run(["stats"]).output().contains("2 of 2 workers serving"));
}

#[test]
fn statistics_need_nobody_alive() {
    let mut proxy = Proxy::start(&format!("worker_processes: 2\n{PIDS}"));
    let mut client = proxy.client();
    for _ in 0..5 {
        client.get("/");
    }
    eventually("all are counted", || proxy.stats().total("requests") == 5);
    for process in proxy.processes() {
        process.signal(Signal::SIGSTOP);
        eventually("it is stopped", || process.is_stopped());
    }
    assert_eq!(proxy.stats().total("requests"), 5);
    proxy.kill();
    assert_eq!(proxy.stats().total("requests"), 5);
    assert_eq!(proxy.stats().condition(), "stopped");
    assert!(proxy.run(["stats"]).output().contains("stopped"));
}

/// Needs a master that runs as root; as another user it starts with the rights of that user, and no more.
#[test]
fn workers_have_no_rights() {
    if !is_root() {
        let proxy = Proxy::start(PIDS);
        assert_eq!(proxy.workers()[0].status("NoNewPrivs").as_deref(), Some("1"));
        return;
    }
    let proxy = Proxy::start(&format!("user: nobody\n{PIDS}"));
    let worker = proxy.workers()[0];
    let uids = worker.status("Uid").expect("user ids");
    assert!(uids.split_whitespace().all(|uid| uid == "65534"), "{uids}");
    assert_eq!(worker.status("Groups").as_deref().map(|groups| groups.contains(" 0 ")), Some(false));
    assert_eq!(worker.status("CapEff").as_deref(), Some("0000000000000000"));
    assert_eq!(worker.status("NoNewPrivs").as_deref(), Some("1"));
    assert_eq!(pid(&mut proxy.client()), worker);
}

#[test]
fn dead_workers_are_waited_for() {
    let proxy = Proxy::start(PIDS);
    for _ in 0..5 {
        let worker = proxy.workers()[0];
        worker.signal(Signal::SIGKILL);
        until("a new worker", || proxy.workers().first().filter(|new| **new != worker).copied());
    }
    eventually("one child, and no zombies", || proxy.master().children() == proxy.workers());
}

/// As the first process of a container it inherits what others leave behind. Needs root, to make such a place.
#[test]
fn a_first_process_waits_for_strangers() {
    if !is_root() {
        eprintln!("not root: a master as first process was not tried");
        return;
    }
    let mut proxy = Proxy::prepared(PIDS);
    proxy.launch_through(["unshare", "--pid", "--fork"]);
    proxy.wait_ready(1);
    let [first] = proxy.master().children()[..] else { panic!("unshare has one child") };
    // The shell ends at once and leaves its child to the first process.
    let mut shell = Command::new("nsenter");
    shell.args(["--pid", "--target", &first.0.to_string(), "sh", "-c", "sleep 1 >/dev/null 2>&1 &"]);
    Finished::of(&mut shell).output();
    let stranger = |process: &Process| process.arguments().first().is_some_and(|program| program == "sleep");
    eventually("the stranger has come", || first.children().iter().any(stranger));
    eventually("the stranger is gone", || first.children().len() == 1);
    first.signal(Signal::SIGTERM);
    assert_eq!(proxy.wait_exit(), 0);
}

fn is_root() -> bool {
    Process::this().status("Uid").is_some_and(|uids| uids.starts_with("0\t"))
}

/// Nobody is left hanging in a queue that is no longer served.
#[test]
fn a_proxy_that_quits_refuses_whoever_comes() {
    let (arrived, has_arrived) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let may_go = std::sync::Mutex::new(may_go);
    let origin = Origin::start(move |mut wire, _| {
        wire.request();
        arrived.send(()).expect("the test listens");
        receive(&may_go.lock().expect("one at a time"));
        wire.send(ok("done"));
    });
    let mut proxy = Proxy::before_with(&origin, "worker_processes: 2");
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    receive(&has_arrived);
    proxy.signal(Signal::SIGQUIT);
    eventually("no one is let in", || std::net::TcpStream::connect(proxy.address()).is_err());
    go.send(()).expect("the origin listens");
    assert_eq!(client.response().text(), "done");
    assert_eq!(proxy.wait_exit(), 0);
}
