//! Keeps a zone full of make-believe traffic, to look at `sluice top` and `sluice stats` without a proxy.
//!
//! `cargo run -p shared --example traffic -- DIRECTORY` writes `DIRECTORY/zone` until it is interrupted.

#![forbid(unsafe_code)]

use std::error::Error;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use shared::clock::monotonic_ns;
use shared::health::{Event, apply};
use shared::ident::{Generation, ProcessId, Seat, Slot};
use shared::stats::{ListenerCells, RouteCells, ServerCells, State, UpstreamCells};
use shared::zone::{Catalog, Maxima, Role, Zone};

const LISTENERS: [&str; 2] = ["0.0.0.0:8080", "[::]:8443"];
const ROUTES: [&str; 3] = ["api", "shop.example.com/checkout/", "assets"];
const SERVERS: [&str; 3] = ["10.0.0.1:3000", "10.0.0.2:3000", "unix:/run/app/very-long-name-of-a-socket.sock"];

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args().nth(1).ok_or("usage: traffic DIRECTORY")?;
    let me = ProcessId::current(0)?;
    let zone = Zone::create(&Path::new(&directory).join("zone"), Maxima::for_workers(4), me)?;
    let servers = || SERVERS.map(String::from).to_vec();
    zone.publish(&Catalog {
        listeners: LISTENERS.map(String::from).to_vec(),
        routes: ROUTES.map(String::from).to_vec(),
        upstreams: vec![("app".into(), servers()), ("static".into(), servers())],
    })?;
    zone.set_verdict(Generation(1), true, "started");
    let mut workers = Vec::new();
    for seat in 0..4 {
        let slot = zone.claim_slot(Role::Worker, Some(Seat(seat)), Generation(1))?;
        zone.enter_slot(slot, me);
        workers.push(Worker { zone, slot, dice: u64::from(seat) + 1 });
    }
    if let Some(server) = zone.server(workers[0].slot, "static", SERVERS[1]) {
        apply(server.health, Event::Failed { fall: 1 });
    }
    loop {
        for worker in &mut workers {
            worker.turn();
        }
        sleep(Duration::from_millis(50));
    }
}

struct Worker {
    zone: &'static Zone,
    slot: Slot,
    dice: u64,
}

impl Worker {
    fn turn(&mut self) {
        let process = self.zone.process(self.slot);
        process.state.set(State::Serving);
        process.heartbeat.set(monotonic_ns());
        process.connections_active.set(self.roll(40));
        process.connections_idle.set(self.roll(400));
        process.requests_active.set(self.roll(40));
        process.descriptors.set(60 + self.roll(500));
        let requests = self.roll(90) + self.roll(90);
        for _ in 0..requests {
            if self.exchange().is_none() {
                process.panics.inc();
            }
            process.requests.inc();
        }
        process.accepted.add(requests / 10);
    }

    fn exchange(&mut self) -> Option<()> {
        let (route, server) = (ROUTES[self.pick(3)], SERVERS[self.pick(3)]);
        let upstream = ["app", "static"][self.pick(2)];
        let listener: ListenerCells = self.zone.listener(self.slot, LISTENERS[self.pick(2)])?;
        let route: RouteCells = self.zone.route(self.slot, route)?;
        let server: ServerCells = self.zone.server(self.slot, upstream, server)?;
        let upstream: UpstreamCells = self.zone.upstream(self.slot, upstream)?;
        let head = 300_000 + self.roll(1_000) * self.roll(1_000) * self.roll(30) / 10;
        let class = [1, 1, 1, 1, 1, 1, 2, 3, 1, 4][self.pick(10)];
        let bytes = self.roll(40_000);
        listener.requests.inc();
        listener.bytes_in.add(500);
        listener.bytes_out.add(bytes);
        listener.active.set(self.roll(40));
        route.requests.inc();
        route.status[class].inc();
        route.bytes_out.add(bytes);
        route.latency.record(head + 50_000);
        upstream.requests.inc();
        upstream.latency.record(head);
        server.requests.inc();
        server.latency.record(head);
        server.in_flight.set(self.roll(12));
        server.idle.set(self.roll(30));
        if class == 4 {
            upstream.faults.inc();
            server.faults.inc();
        }
        Some(())
    }

    /// Below `sides`, the same in every run.
    fn roll(&mut self, sides: u64) -> u64 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % sides
    }

    fn pick(&mut self, count: u64) -> usize {
        usize::try_from(self.roll(count)).unwrap_or(0)
    }
}
