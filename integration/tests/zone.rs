//! The shared memory as the command line reads it.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::Command;

use integration::{Finished, Origin, Proxy, eventually, ok};

#[test]
fn every_request_is_counted_once_where_it_belongs() {
    let origin = Origin::answering(ok("hello"));
    let proxy = Proxy::start(&format!(
        "worker_processes: 2
upstreams: {{app: {{servers: [{{address: '{}'}}]}}}}
routes:
  - {{name: app, match: {{path: {{prefix: /app}}}}, upstream: app}}
  - {{name: gone, match: {{path: {{exact: /gone}}}}, respond: {{status: 410}}}}",
        origin.address()
    ));
    for _ in 0..20 {
        let mut client = proxy.client();
        assert_eq!(client.get("/app").status(), 200);
        assert_eq!(client.get("/gone").status(), 410);
        assert_eq!(client.get("/nowhere").status(), 404);
    }
    let requests = |kind: &str, name: &str| proxy.stats().named(kind, name)["requests"].as_u64();
    // The record of an exchange is written after its last byte is sent.
    eventually("all are counted", || proxy.stats().total("requests") == 60);
    assert_eq!(requests("routes", "app"), Some(20));
    assert_eq!(requests("routes", "gone"), Some(20));
    assert_eq!(requests("routes", "(none)"), Some(20));
    assert_eq!(requests("upstreams", "app"), Some(20));
    assert_eq!(requests("listeners", &proxy.address().to_string()), Some(60));
    assert_eq!(proxy.stats().total("accepted"), 20);
    eventually("no connection is open", || {
        let stats = proxy.stats();
        stats.total("connections_active") + stats.total("connections_idle") == 0
    });
}

#[test]
fn gauges_of_a_killed_worker_are_repaired() {
    let proxy = Proxy::start("routes: [{match: {path: {prefix: /}}, respond: {status: 200}}]");
    let mut clients: Vec<_> = (0..10).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.get("/");
    }
    eventually("ten idle connections", || proxy.stats().total("connections_idle") == 10);
    let worker = proxy.workers()[0];
    worker.signal(nix::sys::signal::Signal::SIGKILL);
    eventually("a new worker", || proxy.workers().first().is_some_and(|new| *new != worker));
    eventually("no connection of the dead", || proxy.stats().total("connections_idle") == 0);
    assert_eq!(proxy.stats().total("requests"), 10);
}

#[test]
fn the_file_is_not_for_everyone() {
    let proxy = Proxy::start("routes: []");
    let mode = fs::metadata(proxy.file("run/zone")).expect("the zone").permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
}

#[test]
fn every_form_of_output_is_given() {
    let proxy = Proxy::start("worker_processes: 2\nroutes: [{match: {path: {prefix: /}}, respond: {status: 200}}]");
    proxy.client().get("/");
    let table = proxy.run(["stats"]).output();
    assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
    let by_worker = proxy.run(["stats", "--by-worker"]).output();
    for worker in proxy.workers() {
        assert!(by_worker.contains(&worker.0.to_string()), "{by_worker}");
    }
    let metrics = proxy.run(["stats", "--openmetrics"]).output();
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    let is_sound = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap_or((line, ""));
        line.starts_with("# ") || (name.starts_with("sluice_") && value.parse::<f64>().is_ok())
    };
    assert!(metrics.lines().all(is_sound), "{metrics}");
    let rates = proxy.run(["stats", "--interval", "100ms", "--count", "2"]).output();
    assert!(!rates.is_empty());
}

/// A proxy that does not run, with a zone file of the test's making.
fn stranger() -> (Proxy, File) {
    let stranger = Proxy::prepared("routes: []");
    fs::create_dir(stranger.file("run")).expect("a runtime directory");
    fs::set_permissions(stranger.file("run"), fs::Permissions::from_mode(0o700)).expect("its mode");
    let zone = File::options().create(true).truncate(false).write(true).read(true).open(stranger.file("run/zone"));
    (stranger, zone.expect("a zone"))
}

/// Fails if the reader crashed: it may read on or refuse, with a reason.
#[track_caller]
fn assert_composed(finished: &Finished, what: &str) {
    let explained = finished.code == 0 || (matches!(finished.code, 1 | 3) && !finished.stderr.is_empty());
    assert!(explained && !finished.stderr.contains("panicked"), "{what}: {finished:?}");
}

#[test]
fn a_zone_that_is_no_zone_is_refused_with_a_reason() {
    for (what, bytes) in [("empty", Vec::new()), ("zeros", vec![0; 65536]), ("text", b"not a zone\n".repeat(1000))] {
        let (stranger, zone) = stranger();
        zone.write_all_at(&bytes, 0).expect("write");
        let finished = stranger.run(["stats", "--json"]);
        assert_composed(&finished, what);
        assert_ne!(finished.code, 0, "{what}");
        assert!(finished.stderr.contains("zone"), "{what}: {finished:?}");
    }
}

#[test]
fn a_damaged_zone_never_crashes_its_reader() {
    let proxy = Proxy::start("routes: [{match: {path: {prefix: /}}, respond: {status: 200}}]");
    proxy.client().get("/");
    let (stranger, zone) = stranger();
    // The file has holes, and is larger than a test should write out.
    let mut copy = Command::new("cp");
    Finished::of(copy.arg("--sparse=always").arg(proxy.file("run/zone")).arg(stranger.file("run/zone"))).output();
    assert_eq!(stranger.run(["stats", "--json"]).code, 0);
    let mut head = [0; 512];
    zone.read_exact_at(&mut head, 0).expect("the head");
    for at in (0..head.len()).step_by(8) {
        for value in [0, 0x7f, 0xff] {
            zone.write_all_at(&[value; 8], at as u64).expect("damage");
            assert_composed(&stranger.run(["stats", "--json"]), &format!("{value:#x} at {at}"));
            zone.write_all_at(&head, 0).expect("repair");
        }
    }
    let length = zone.metadata().expect("its length").len();
    for length in [length - 1, length / 2, 4097, 4096, 4095, 65, 64, 63, 8, 7, 1] {
        zone.set_len(length).expect("truncate");
        assert_composed(&stranger.run(["stats", "--json"]), &format!("cut to {length} bytes"));
    }
}
