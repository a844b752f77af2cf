//! The whole path of a request, from a client's connection to a server's and back, on streams in memory, with a virtual
//! clock and faults that a seed decides.
//!
//! Each seed draws some clients, what they ask for, how servers treat each request and how clients misbehave; then
//! everything runs to its end. What a client heard is held against the script: an answer is the scripted one, or the one
//! that the fault calls for; a body that was cut never looks whole; what may not be repeated never reaches a server twice.

mod script;
mod server;
mod visit;
mod wire;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

use fastrand::Rng;
use shared::ident::{Generation, Seat, Slot};
use shared::zone::{Catalog, Maxima, Role, Zone};

use self::script::{Case, Flaw};
use self::server::serve;
use self::visit::{Ended, Visit, Whim};
use crate::downstream::{Door, Downstream};
use crate::runtime::clock::{MILLISECOND, SECOND};
use crate::runtime::net::memory;
use crate::runtime::reactor::{self, Parked};
use crate::runtime::timer::{self, Timer};
use crate::runtime::{buffer, clock, executor};
use crate::site::{Blueprint, Site};
use crate::upstream::Servers;

const SEEDS: u64 = 1000;
/// The longest that a seed may take, in virtual nanoseconds.
const END: u64 = 120 * SECOND;
const BEAT: u64 = 250 * MILLISECOND;
const FRONT: &str = "127.0.0.1:7000";
const SERVERS: [&str; 2] = ["127.0.0.1:7001", "127.0.0.1:7002"];

/// What a seed has drawn.
struct Play {
    cases: Vec<Case>,
    visits: Vec<Visit>,
    refuses: [bool; 2],
    drains_at: Option<u64>,
    /// Clients and servers' connections that have not ended.
    present: Cell<usize>,
    heard: RefCell<Vec<(Visit, Ended)>>,
}

impl Play {
    fn draw(dice: &mut Rng) -> Play {
        let (mut cases, mut visits) = (Vec::new(), Vec::new());
        for _ in 0..dice.usize(1..6) {
            let start = cases.len();
            for _ in 0..dice.usize(1..5) {
                cases.push(Case::draw(cases.len(), dice));
            }
            let bytes: usize = cases[start..].iter().map(|case| case.wire.len()).sum();
            let whims = [Whim::Stalls, Whim::Resets, Whim::HalfCloses, Whim::Leaves, Whim::Sulks];
            let whim =
                (dice.u8(0..4) == 0).then(|| (*dice.choice(whims.iter()).expect("not empty"), dice.usize(..bytes)));
            visits.push(Visit { numbers: start..cases.len(), is_pipelined: dice.bool(), stays: dice.bool(), whim });
        }
        let refuses = [(); 2].map(|()| dice.u8(0..8) == 0);
        let drains_at = (dice.u8(0..6) == 0).then(|| dice.u64(..2 * SECOND));
        Play { cases, visits, refuses, drains_at, present: Cell::new(0), heard: RefCell::default() }
    }
}

/// Someone who takes part.
struct Present(Rc<Play>);

impl Present {
    fn new(play: &Rc<Play>) -> Present {
        play.present.set(play.present.get() + 1);
        Present(Rc::clone(play))
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.present.set(self.0.present.get() - 1);
    }
}

/// A worker without processes, sockets and time of its own.
struct World {
    downstream: Rc<Downstream>,
    servers: Rc<Servers>,
    door: Rc<Door>,
}

impl World {
    fn new(zone: &'static Zone, slot: Slot, dice: &mut Rng) -> World {
        let (idle_max, requests_max) = (dice.u8(0..4), dice.u8(0..3) * 2);
        let text = format!(
            "listeners: [{{address: '{FRONT}'}}]\n\
             upstreams: {{app: {{servers: ['{}', '{}'], keep_alive: {{idle_max: {idle_max}, idle_timeout: 3s}}}}}}\n\
             routes: [{{name: all, match: {{path: /}}, upstream: app}}]\n\
             limits: {{keep_alive_requests: {requests_max}}}\n\
             timeouts: {{client_head: 3s, keep_alive: 3s, client_body: 3s, client_send: 3s, connect: 1s, \
             upstream_send: 2s, upstream_read: 2s}}\n",
            SERVERS[0], SERVERS[1]
        );
        let config = Arc::new(conf::parse(&text, "simulation").expect("a configuration").config);
        let servers = Rc::new(Servers::default());
        let site = Site::open(Blueprint::draw(Arc::clone(&config)), zone, slot, &servers).expect("a site");
        let records = crate::observe::flight::Records::new(zone.flights(slot), zone.process(slot).polled);
        let downstream = Downstream::new(Rc::new(site), records, None, slog::Logger::root(slog::Discard, slog::o!()));
        let cells = zone.listener(slot, FRONT).expect("published");
        let door = Door::of(&downstream, &config.listeners[0], cells);
        World { downstream, servers, door }
    }

    fn begin(self: &Rc<World>, play: &Rc<Play>, dice: &mut Rng) {
        for (server, address) in SERVERS.into_iter().enumerate() {
            let (play, dice) = (Rc::clone(play), RefCell::new(dice.fork()));
            memory::serve(address.parse().expect("an address"), move |stream| {
                if play.refuses[server] {
                    return Err(std::io::ErrorKind::ConnectionRefused.into());
                }
                executor::spawn(serve(stream, dice.borrow_mut().fork(), Rc::clone(&play)));
                Ok(())
            });
        }
        for visit in play.visits.clone() {
            let (world, play, present, mut dice) = (Rc::clone(self), Rc::clone(play), Present::new(play), dice.fork());
            executor::spawn(async move {
                let _present = present;
                let timer = Timer::new();
                timer.sleep(clock::now() + dice.u64(..SECOND)).await;
                let (near, far) = memory::pair();
                let peer = "192.0.2.1:4000".parse().expect("an address");
                world.downstream.admit(far, Some(peer), &world.door);
                let ended = visit.run(near, dice, &play).await;
                play.heard.borrow_mut().push((visit, ended));
            });
        }
    }

    /// Lets everything happen until everyone has left.
    fn run(&self, play: &Play) {
        let start = clock::now();
        let (mut beat, mut drain) = (start + BEAT, play.drains_at.map(|after| start + after));
        loop {
            let mut turns = 0;
            while executor::has_queued() || self.deliver() {
                executor::run_queued();
                turns += 1;
                assert!(turns < 100_000, "it spins");
            }
            if play.present.get() == 0 {
                return;
            }
            let now = timer::next_due().map_or(beat, |due| due.min(beat)).max(clock::now());
            assert!(now < start + END, "something waits for ever");
            clock::set(now, now / MILLISECOND);
            timer::fire(now);
            if now >= beat {
                beat += BEAT;
                self.downstream.sweep();
                self.servers.sweep();
            }
            if drain.take_if(|drain| *drain <= now).is_some() {
                self.downstream.drain();
                self.servers.clear();
            }
        }
    }

    /// Hands over parked connections that became ready.
    fn deliver(&self) -> bool {
        let ready = reactor::simulated();
        for parked in &ready {
            match *parked {
                Parked::Client(key, uses) => self.downstream.wake(key, uses),
                Parked::Server(server, connection) => self.servers.drop_idle(server, connection),
            }
        }
        !ready.is_empty()
    }
}

fn simulate(seed: u64, zone: &'static Zone, slot: Slot) {
    let mut dice = Rng::with_seed(seed);
    fastrand::seed(seed);
    let now = (seed + 1) * 1000 * SECOND;
    clock::set(now, now / MILLISECOND);
    timer::fire(now);
    let panics = Rc::new(RefCell::new(Vec::new()));
    let sink = Rc::clone(&panics);
    executor::on_panic(move |message| sink.borrow_mut().push(message.to_owned()));
    let world = Rc::new(World::new(zone, slot, &mut dice));
    let play = Rc::new(Play::draw(&mut dice));
    world.begin(&play, &mut dice);
    world.run(&play);
    assert!(panics.borrow().is_empty(), "{panics:?}");
    for (visit, (wire, end)) in &*play.heard.borrow() {
        visit.check(wire, *end, &play);
    }
    for case in &play.cases {
        let most = if case.flaw == Some(Flaw::Head) {
            0
        } else if case.method == "POST" {
            1
        } else {
            2
        };
        assert!(case.seen.get() <= most, "sent too often: {case:?}");
    }
    let (process, listener) = (zone.process(slot), zone.listener(slot, FRONT).expect("published"));
    let gauges = [process.requests_active, process.connections_active, process.connections_idle, listener.active];
    assert_eq!(gauges.map(|gauge| gauge.get()), [0; 4]);
    assert_eq!((world.servers.active(), world.servers.idle(), buffer::in_use_bytes()), (0, 0, 0));
    assert_eq!(world.downstream.is_drained(), play.drains_at.is_some() && world.downstream.is_draining());
}

#[test]
fn whatever_happens_an_answer_is_the_right_one_or_visibly_none() {
    let zone = Zone::anonymous(Maxima::for_workers(1));
    let upstreams = vec![("app".to_owned(), SERVERS.map(str::to_owned).to_vec())];
    zone.publish(&Catalog { listeners: vec![FRONT.into()], routes: vec!["all".into()], upstreams }).expect("room");
    let slot = zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).expect("a slot");
    let seeds = match std::env::var("SLUICE_SEED") {
        Ok(seed) => seed.parse().map(|seed| seed..seed + 1).expect("SLUICE_SEED is a number"),
        Err(_) => 0..SEEDS,
    };
    let mut failed = Vec::new();
    for seed in seeds {
        if catch_unwind(AssertUnwindSafe(|| simulate(seed, zone, slot))).is_err() {
            failed.push(seed);
        }
    }
    assert!(failed.is_empty(), "SLUICE_SEED=N repeats one of {failed:?}");
}
