//! Another master in the place of the one that runs: a new binary by command or by signal, and the next start after a kill.

#![forbid(unsafe_code)]

use std::fs;
use std::process::Child;
use std::thread;
use std::time::Duration;

use integration::{Binary, Finished, Origin, Process, Proxy, eventually, until};
use nix::sys::signal::Signal;

const TEXT: &str = "worker_processes: 4\nroutes: [{name: all, match: {path: /}, respond: {status: 200, body: hello}}]";

/// Asks for pages until the command has ended.
#[track_caller]
fn ask_until_ended(proxy: &Proxy, mut command: Child) -> Finished {
    while command.try_wait().expect("wait").is_none() {
        assert_eq!(proxy.client().get("/").status(), 200);
    }
    finish(command)
}

fn finish(command: Child) -> Finished {
    let output = command.wait_with_output().expect("its output");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Finished { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn begin_upgrade<const N: usize>(proxy: &Proxy, arguments: [&str; N]) -> Child {
    let mut command = proxy.command(["upgrade"]);
    command.args(arguments).arg("-c").arg(proxy.config_path());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().expect("it starts")
}

fn requests(proxy: &Proxy) -> u64 {
    proxy.stats().total("requests")
}

fn workers_of(proxy: &Proxy, master: Process) -> usize {
    let is_worker = |process: &&Process| process.parent() == Some(master) && process.arguments() == master.arguments();
    proxy.processes().iter().filter(is_worker).count()
}

#[test]
fn a_sound_binary_takes_over_with_all_that_was_counted() {
    let mut proxy = Proxy::start(TEXT);
    let (old, workers) = (proxy.master(), proxy.workers());
    (0..50).for_each(|_| assert_eq!(proxy.client().get("/").status(), 200));
    let done = ask_until_ended(&proxy, begin_upgrade(&proxy, ["--watch", "1s", "--min-requests", "5"]));
    assert!(done.stdout.contains("its first worker does well") && done.stdout.contains("upgraded: master"), "{done:?}");
    proxy.follow_master();
    let new = proxy.master();
    assert_ne!(old, new);
    eventually("the old ones are gone", || workers.iter().all(|worker| !worker.is_running()));
    eventually("the new ones serve", || proxy.stats().condition() == "running" && workers_of(&proxy, new) == 4);
    assert!(requests(&proxy) > 50, "counters go on");
    assert_eq!(proxy.stats().0["generation"], 2);
    assert!(!proxy.file("run/sluice.pid.oldbin").exists());
    // It is a master like any other: it reloads, upgrades again, and stops.
    proxy.reload(&format!("{TEXT}\nlimits: {{header_count: 77}}")).output();
    assert!(proxy.run(["status"]).output().contains("generation 3"));
    proxy.run(["stop"]).output();
    assert_eq!(fs::read_dir(proxy.file("run")).expect("a directory").count(), 1, "the lock alone is left");
}

#[test]
fn a_binary_that_does_not_come_to_serve_changes_nothing() {
    let proxy = Proxy::start(TEXT);
    let workers = proxy.workers();
    let not_a_program = proxy.file("text");
    fs::write(&not_a_program, "no program").expect("a file");
    for (binary, reason) in [
        ("/bin/false", "the other master ended: exit code 1"),
        (not_a_program.to_str().expect("a path"), "cannot be run"),
        ("/no/such/file", "cannot open /no/such/file"),
    ] {
        let refused = ask_until_ended(&proxy, begin_upgrade(&proxy, ["--binary", binary]));
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains(reason), "{refused:?}");
    }
    assert_eq!(proxy.workers(), workers);
    assert!(proxy.run(["status"]).output().contains("rolled back"), "it is told afterwards as well");
    // The zone is this master's again: workers that die are replaced, configurations taken.
    workers[0].signal(Signal::SIGKILL);
    eventually("it is replaced", || proxy.workers().len() == 4 && !proxy.workers().contains(&workers[0]));
    proxy.reload(&format!("{TEXT}\nlimits: {{header_count: 77}}")).output();
}

/// A later layout of the zone beside the present one, and a worker that does its work badly.
#[test]
fn a_binary_that_fails_at_its_work_is_rolled_back() {
    for (how, reason) in [("segv", "died before it was ready"), ("500", "requests failed with the new binary")] {
        let mut proxy = Proxy::prepared(TEXT);
        proxy.set_environment("SLUICE_MISBEHAVE", how);
        proxy.launch();
        proxy.wait_ready(1);
        let workers = proxy.workers();
        let binary = Binary::misbehaving().to_str().expect("a path");
        let mut upgrade = begin_upgrade(&proxy, ["--binary", binary, "--watch", "20s"]);
        let mut touched = 0;
        while upgrade.try_wait().expect("wait").is_none() {
            let mut client = proxy.client();
            client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            touched += usize::from(!client.rest().0.starts_with(b"HTTP/1.1 200"));
        }
        let refused = finish(upgrade);
        assert!(refused.code == 1 && refused.stderr.contains(reason), "{how}: {refused:?}");
        // The reason states what was seen by then; a few more may have been under way.
        let stated: usize = refused.stderr.split(' ').find_map(|word| word.parse().ok()).unwrap_or(4);
        assert!(touched > 0 && touched <= stated + 20, "{how}: {touched} requests were touched, {stated} told");
        assert_eq!(proxy.workers(), workers);
        (0..50).for_each(|_| assert_eq!(proxy.client().get("/").status(), 200));
        eventually("its worker ends", || proxy.processes().len() == 5);
    }
}

#[test]
fn a_zone_of_another_minor_layout_is_shared_both_ways() {
    let mut proxy = Proxy::start(TEXT);
    let version = |proxy: &Proxy| proxy.stats().0["zone_version"].as_str().expect("a version").to_owned();
    let minor =
        |proxy: &Proxy| version(proxy).split_once('.').expect("major.minor").1.parse::<u32>().expect("a number");
    let before = minor(&proxy);
    (0..30).for_each(|_| assert_eq!(proxy.client().get("/").status(), 200));
    for (binary, asked) in [(Binary::misbehaving(), 30), (Binary::path(), 60)] {
        let done = begin_upgrade(&proxy, ["--no-watch", "--binary", binary.to_str().expect("a path")]);
        assert_eq!(finish(done).code, 0);
        if binary == Binary::misbehaving() {
            proxy.follow_master();
        }
        eventually("the old ones are gone", || proxy.processes().len() == 5);
        assert_eq!(requests(&proxy), asked, "counters go on");
        assert_eq!(minor(&proxy), before + 1, "what the later version knows stays in the zone");
        (0..30).for_each(|_| assert_eq!(proxy.client().get("/").status(), 200));
    }
    eventually("all is counted", || requests(&proxy) == 90);
}

/// Another major layout: a zone of its own, in which the counters go on. The earlier binary is the one that claims to have
/// another.
#[test]
fn a_zone_of_another_major_layout_takes_the_counters_over() {
    let mut proxy = Proxy::prepared(TEXT);
    proxy.set_environment("SLUICE_ZONE_MAJOR", "7");
    proxy.program = Binary::misbehaving();
    proxy.launch();
    proxy.wait_ready(1);
    (0..30).for_each(|_| assert_eq!(proxy.client().get("/").status(), 200));
    eventually("all is counted", || requests(&proxy) == 30);
    let binary = Binary::path().to_str().expect("a path");
    let upgrade = begin_upgrade(&proxy, ["--binary", binary, "--watch", "1s", "--min-requests", "1"]);
    let done = ask_until_ended(&proxy, upgrade);
    assert!(done.code == 0 && done.stdout.contains("has layout version 7, this sluice reads version 1"), "{done:?}");
    assert!(done.stdout.contains("old and new know apart which servers are healthy"), "{done:?}");
    proxy.follow_master();
    proxy.program = Binary::path();
    eventually("the old ones are gone", || proxy.processes().len() == 5);
    assert!(
        requests(&proxy) > 30
            && proxy.stats().0["zone_version"].as_str().is_some_and(|version| version.starts_with("1."))
    );
    proxy.reload(&format!("{TEXT}\nlimits: {{header_count: 77}}")).output();
    proxy.run(["stop"]).output();
    assert_eq!(fs::read_dir(proxy.file("run")).expect("a directory").count(), 1, "the lock alone is left");
}

#[test]
fn an_upgrade_that_nobody_has_tried_out_is_undecided() {
    let proxy = Proxy::start(TEXT);
    let workers = proxy.workers();
    let refused = proxy.run(["upgrade", "--watch", "500ms"]);
    assert!(refused.code == 1 && refused.stderr.contains("undecided"), "{refused:?}");
    assert_eq!((proxy.workers(), proxy.client().get("/").status()), (workers, 200));
    eventually("the other master is gone", || proxy.processes().len() == 5);
    assert_eq!(proxy.run(["status"]).output().lines().next().map(|line| line.contains("generation 1,")), Some(true));
}

#[test]
fn a_worker_that_dies_during_a_watch_is_replaced_when_it_is_over() {
    let proxy = Proxy::start(TEXT);
    let workers = proxy.workers();
    let upgrade = begin_upgrade(&proxy, ["--watch", "1s", "--min-requests", "1000000"]);
    proxy.wait_log("is watched");
    workers[1].signal(Signal::SIGKILL);
    assert!(proxy.run(["reload", "-q"]).code != 0 || proxy.log().contains("reload refused"));
    let refused = ask_until_ended(&proxy, upgrade);
    assert!(refused.stderr.contains("undecided"), "{refused:?}");
    eventually("it is replaced", || proxy.workers().len() == 4 && !proxy.workers().contains(&workers[1]));
}

#[test]
fn whichever_master_is_killed_during_a_watch_the_other_goes_on() {
    let mut proxy = Proxy::start(TEXT);
    let old = proxy.master();
    for victim in ["the new", "the old"] {
        let begun = proxy.log().matches("is watched").count();
        let upgrade = begin_upgrade(&proxy, ["--watch", "20s"]);
        eventually("the watch", || proxy.log().matches("is watched").count() > begun);
        let new = until("the other master", || {
            let is_new = |process: &Process| process.parent() == Some(old) && process.arguments() != old.arguments();
            proxy.processes().into_iter().find(is_new)
        });
        if victim == "the new" {
            new.signal(Signal::SIGKILL);
            let refused = ask_until_ended(&proxy, upgrade);
            assert!(refused.stderr.contains("the other master ended: SIGKILL"), "{refused:?}");
            eventually("its worker ends", || proxy.processes().len() == 5);
        } else {
            old.signal(Signal::SIGKILL);
            let cut = ask_until_ended(&proxy, upgrade);
            assert!(cut.stderr.contains("the master ended before it had answered"), "{cut:?}");
            assert_eq!(proxy.wait_exit(), 128 + 9);
            eventually("it serves alone", || {
                assert_eq!(proxy.client().get("/").status(), 200);
                workers_of(&proxy, new) == 4 && proxy.processes().len() == 5
            });
            proxy.run(["stop"]).output();
        }
    }
}

/// As nginx does it: two masters, until the operator has decided.
#[test]
fn signals_upgrade_and_go_back() {
    let mut proxy = Proxy::start(TEXT);
    let old = proxy.master();
    let pid_in = |name: &str| fs::read_to_string(proxy.file(name)).unwrap_or_default().trim().to_owned();
    let both_serve = |times: usize| {
        eventually("both serve", || proxy.log().matches("both masters serve").count() == times);
        assert_ne!(pid_in("run/sluice.pid"), old.0.to_string());
        assert_eq!(pid_in("run/sluice.pid.oldbin"), old.0.to_string());
        assert_eq!(proxy.client().get("/").status(), 200);
    };
    old.signal(Signal::SIGUSR2);
    both_serve(1);
    old.signal(Signal::SIGHUP);
    eventually("the old one serves alone", || proxy.processes().len() == 5);
    assert_eq!((pid_in("run/sluice.pid"), pid_in("run/sluice.pid.oldbin")), (old.0.to_string(), String::new()));
    assert!(proxy.processes().contains(&old));
    old.signal(Signal::SIGUSR2);
    both_serve(2);
    old.signal(Signal::SIGQUIT);
    assert_eq!(proxy.wait_exit(), 0);
    eventually("the new one serves alone", || proxy.processes().len() == 5);
    assert_eq!(proxy.client().get("/").status(), 200);
    let stopped = proxy.run(["stop"]).output();
    assert!(stopped.contains("ended"), "{stopped}");
}

/// Whatever ends the new master while both serve, the old one has its place back, and nobody else is left.
#[test]
fn the_old_master_outlives_the_new_one() {
    let text = "worker_processes: 4\nlisteners: [{address: '127.0.0.1:{port}'}, {address: 'unix:{dir}/s'}]\n\
                routes: [{match: {path: /}, respond: {status: 200, body: hello}}]";
    for signal in [Signal::SIGTERM, Signal::SIGQUIT, Signal::SIGKILL] {
        let proxy = Proxy::start(text);
        let (old, workers) = (proxy.master(), proxy.workers());
        old.signal(Signal::SIGUSR2);
        proxy.wait_log("both masters serve");
        let pid = fs::read_to_string(proxy.file("run/sluice.pid")).expect("a pid file");
        let mut kept = proxy.client();
        kept.get("/");
        Process(pid.trim().parse().expect("a pid")).signal(signal);
        eventually("the old one serves alone", || proxy.processes().len() == 5 && proxy.workers() == workers);
        assert_eq!(integration::Wire::unix(&proxy.file("s")).get("/").status(), 200);
        assert_eq!(fs::read_to_string(proxy.file("run/sluice.pid")).expect("a pid file").trim(), old.0.to_string());
        assert_eq!(proxy.stats().condition(), "running");
        proxy.reload(&format!("{text}\nlimits: {{header_count: 77}}")).output();
        // TERM ends the new one at once, with all that it has.
        if signal != Signal::SIGTERM {
            assert_eq!(kept.get("/").status(), 200, "{signal}");
        }
    }
}

/// A start that fails leaves the workers of the killed master as they were.
#[test]
fn a_start_that_fails_costs_the_orphans_nothing() {
    let mut proxy = Proxy::start(TEXT);
    let workers = proxy.workers();
    let mut kept = proxy.client();
    kept.get("/");
    proxy.signal(Signal::SIGKILL);
    assert_eq!(proxy.wait_exit(), 128 + 9);
    let taken = std::net::TcpListener::bind(("127.0.0.1", proxy.other_port())).expect("a port");
    proxy.configure(&format!(
        "listeners: [{{address: '127.0.0.1:{{port}}'}}, {{address: '127.0.0.1:{{other_port}}'}}]\n{TEXT}"
    ));
    proxy.launch();
    assert_eq!(proxy.wait_exit(), 1);
    proxy.wait_log("took over from a worker");
    assert!(workers.iter().all(|worker| worker.is_running()));
    assert_eq!((kept.get("/").status(), proxy.client().get("/").status()), (200, 200));
    drop(taken);
    proxy.launch();
    eventually("the next one serves", || proxy.stats().condition() == "running");
    assert_eq!(kept.get("/").status(), 200);
    eventually("the orphans are gone", || workers.iter().all(|worker| !worker.is_running()));
}

/// A new master that stands still is given up, whatever is asked of it.
#[test]
fn a_new_master_that_stands_still_is_given_up() {
    let proxy = Proxy::start(TEXT);
    let old = proxy.master();
    old.signal(Signal::SIGUSR2);
    proxy.wait_log("both masters serve");
    let new = Process(fs::read_to_string(proxy.file("run/sluice.pid")).expect("a file").trim().parse().expect("a pid"));
    new.signal(Signal::SIGSTOP);
    old.signal(Signal::SIGHUP);
    eventually("the old one serves alone", || proxy.processes().len() == 5 && !new.is_running());
    assert_eq!(proxy.client().get("/").status(), 200);
    assert_eq!(proxy.stats().condition(), "running");
}

#[test]
fn a_reload_during_an_upgrade_is_refused_by_its_own_name() {
    let proxy = Proxy::start(TEXT);
    let upgrade = begin_upgrade(&proxy, ["--watch", "1s"]);
    proxy.wait_log("is watched");
    let refused = proxy.run(["reload"]);
    assert!(
        refused.code == 1 && refused.stderr.contains("upgrade") && refused.stderr.contains("under way"),
        "{refused:?}"
    );
    assert_eq!(finish(upgrade).code, 1);
    proxy.run(["reload"]).output();
}

/// One that stands still holds up nobody: the others give their sockets, and it is told when it turns again.
#[test]
fn an_orphan_that_stands_still_is_taken_over_later() {
    let mut proxy = Proxy::start(TEXT);
    let workers = proxy.workers();
    workers[0].signal(Signal::SIGSTOP);
    proxy.signal(Signal::SIGKILL);
    assert_eq!(proxy.wait_exit(), 128 + 9);
    proxy.launch();
    eventually("a new master serves", || proxy.stats().condition() == "running");
    eventually("the others are gone", || workers[1..].iter().all(|worker| !worker.is_running()));
    workers[0].signal(Signal::SIGCONT);
    eventually("it is gone as well", || !workers[0].is_running());
    assert_eq!(proxy.log().matches("took over from a worker").count(), 4);
}

#[test]
fn unix_sockets_pass_as_well() {
    let text = "listeners: [{address: 'unix:{dir}/s'}, {address: '127.0.0.1:{port}'}]\n\
                routes: [{match: {path: /}, respond: {status: 200}}]";
    let mut proxy = Proxy::start(text);
    let path = proxy.file("s");
    let ask = || integration::Wire::unix(&path).get("/").status();
    proxy.run(["upgrade", "--no-watch"]).output();
    proxy.follow_master();
    assert_eq!(ask(), 200);
    // A kill leaves the path, and its socket to whoever starts next.
    let killed = proxy.master();
    killed.signal(Signal::SIGKILL);
    eventually("its end", || !killed.is_running());
    proxy.launch();
    eventually("the next one serves", || proxy.stats().condition() == "running");
    assert_eq!(ask(), 200);
    proxy.run(["stop"]).output();
    assert!(!path.exists());
}

#[test]
fn the_next_start_goes_on_with_what_was_counted() {
    let origin = Origin::start(|mut wire, _| {
        while wire.request().is_some() {
            thread::sleep(Duration::from_millis(300));
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let mut proxy = Proxy::before_with(&origin, "worker_processes: 4");
    let workers = proxy.workers();
    assert_eq!(proxy.client().get("/").status(), 200);
    let before = requests(&proxy);
    let mut slow = proxy.client();
    slow.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    proxy.signal(Signal::SIGKILL);
    assert_eq!(proxy.wait_exit(), 128 + 9);
    assert_eq!(proxy.client().get("/").status(), 200);
    proxy.launch();
    eventually("a new master serves", || proxy.stats().condition() == "running");
    assert_eq!(slow.response().status(), 200, "what was under way comes to its end");
    eventually("the orphans are gone", || workers.iter().all(|worker| !worker.is_running()));
    assert!(requests(&proxy) >= before + 2);
    assert_eq!(proxy.log().matches("took over from a worker").count(), 4);
    // Their slots are free again: as many generations as there are slots would not fit otherwise.
    eventually("the slots are free", || {
        let stats = proxy.stats();
        stats.0["processes"].as_array().is_some_and(|processes| processes.len() == 4)
    });
}

#[test]
fn one_upgrade_at_a_time_and_none_of_nothing() {
    let proxy = Proxy::start(TEXT);
    let second = begin_upgrade(&proxy, ["--watch", "20s"]);
    proxy.wait_log("is watched");
    let refused = proxy.run(["upgrade"]);
    assert!(refused.code == 1 && refused.stderr.contains("an upgrade is under way"), "{refused:?}");
    proxy.run(["stop"]).output();
    let cut = finish(second);
    assert!(cut.stderr.contains("the proxy is stopped"), "{cut:?}");
    let absent = proxy.run(["upgrade"]);
    assert!(absent.code == 3 && absent.stderr.contains("no proxy runs"), "{absent:?}");
}
