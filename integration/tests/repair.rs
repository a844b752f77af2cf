//! What a killed worker leaves in the shared memory is put right, and nothing that was counted is taken back.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use integration::{Origin, Proxy, Stats, eventually, ok};
use nix::sys::signal::Signal;
use serde_json::Value;

const WORKERS: usize = 4;
const ROUNDS: usize = 5;
const CLIENTS: usize = 8;
const KEPT: u64 = 6;

/// Asks for as much as there is time for; a connection that its worker's death cuts is opened anew.
fn load(proxy: &Proxy, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        let mut client = proxy.client();
        for _ in 0..20 {
            if client.try_send("GET /some/path HTTP/1.1\r\nHost: a\r\n\r\n").is_err() || client.next_head().is_none() {
                break;
            }
            client.exactly(2);
        }
    }
}

/// Everything that says how much there is now.
fn gauges(proxy: &Proxy, stats: &Stats) -> Vec<u64> {
    let listener = stats.named("listeners", &proxy.address().to_string());
    let server = &stats.named("upstreams", "app")["servers"][0];
    let own = [&listener["active"], &server["in_flight"]].map(|gauge| gauge.as_u64().expect("a gauge"));
    let totals = ["requests_active", "connections_active", "connections_idle"].map(|name| stats.total(name));
    [&totals[..], &own].concat()
}

/// Everything that only grows.
fn counters(stats: &Stats) -> Vec<u64> {
    let route = stats.named("routes", "all");
    let server = &stats.named("upstreams", "app")["servers"][0];
    let sums = [&route["requests"], &route["bytes_out"], &server["requests"], &server["connects"]];
    let sums = sums.map(|counter| counter.as_u64().expect("a counter"));
    [&["accepted", "requests", "turns"].map(|name| stats.total(name))[..], &sums].concat()
}

fn recorded(proxy: &Proxy) -> u64 {
    let shown: Value = serde_json::from_str(&proxy.run(["drain", "--all", "--json"]).output()).expect("JSON");
    let workers = shown["cohorts"].as_array().expect("cohorts").iter().flat_map(|cohort| cohort["workers"].as_array());
    workers.flatten().map(|worker| worker["connections"].as_array().map_or(0, Vec::len) as u64).sum()
}

#[test]
fn gauges_are_true_again_after_every_kill_and_counters_never_go_back() {
    let origin = Origin::answering(ok("hi"));
    let proxy = Proxy::before_with(&origin, &format!("worker_processes: {WORKERS}"));
    let mut before = counters(&proxy.stats());
    for round in 0..ROUNDS {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| load(&proxy, &is_over));
            }
            // In the second half of the rounds two at once.
            for victim in proxy.workers().iter().take(1 + round / 3) {
                let busy = proxy.stats().total("requests");
                eventually("load", || proxy.stats().total("requests") > busy + 100);
                victim.signal(Signal::SIGKILL);
                eventually("a successor", || {
                    let workers = proxy.workers();
                    workers.len() == WORKERS && !workers.contains(victim)
                });
                let now = counters(&proxy.stats());
                assert!(now.iter().zip(&before).all(|(now, before)| now >= before), "{before:?} became {now:?}");
                before = now;
            }
            is_over.store(true, Ordering::Relaxed);
        });
        eventually("nobody there", || gauges(&proxy, &proxy.stats()) == [0; 5] && recorded(&proxy) == 0);
        let mut kept: Vec<_> = (0..KEPT).map(|_| proxy.client()).collect();
        kept.iter_mut().for_each(|client| assert_eq!(client.get("/").status(), 200));
        eventually("those who are there", || gauges(&proxy, &proxy.stats()) == [0, 0, KEPT, KEPT, 0]);
        assert_eq!(recorded(&proxy), KEPT);
    }
}
