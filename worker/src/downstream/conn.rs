//! A client's connection, from its first byte to its close.

use std::net::SocketAddr;
use std::rc::Rc;

use shared::zone::{Flight, Phase};

use super::Downstream;
use super::accept::Door;
use super::h1::{Codec, Ended, Opening};
use crate::message::client::Client;
use crate::observe::flight::{Berth, Mark};
use crate::pipeline::Desk;
use crate::runtime::buffer::Buffer;
use crate::runtime::clock::{self, SECOND};
use crate::runtime::executor;
use crate::runtime::net::Stream;
use crate::runtime::timer::Timer;

/// How long a client may be silent, after its last answer, before what it still sends is no longer read; nanoseconds.
const LINGER_SILENCE: u64 = 2 * SECOND;
/// How long it may go on sending, in nanoseconds.
const LINGER_TOTAL: u64 = 10 * SECOND;

/// A client's connection.
pub(super) struct Connection {
    stream: Stream,
    client: Client,
    berth: Berth,
    door: Rc<Door>,
    since: u64,
    /// Whether a PROXY protocol header has to come first.
    awaits_announcement: bool,
    /// Whether it was asked for its request as soon as it had come in, and has not been asked again.
    is_on_trial: bool,
    is_idle: bool,
}

/// What becomes of a connection that was driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing has come yet.
    Silent,
    /// It waits for the next request.
    Kept,
    /// It is to be closed.
    Over,
}

impl Connection {
    pub(super) fn new(stream: Stream, peer: Option<SocketAddr>, number: u64, door: &Rc<Door>) -> Connection {
        let local = door.local.or_else(|| stream.local_addr());
        let (berth, since) = (door.records.take(), clock::now());
        berth.flight().open(peer, door.cells.index, since);
        let client = Client { peer, local, announced: None, number, requests: 0, flight: berth.flight() };
        door.cells.accepted.inc();
        door.cells.active.inc();
        door.process.accepted.inc();
        door.process.connections_active.inc();
        Connection {
            stream,
            client,
            berth,
            door: Rc::clone(door),
            since,
            awaits_announcement: door.proxy_protocol.get(),
            is_on_trial: false,
            is_idle: false,
        }
    }

    /// It is asked at once for what it has to say.
    pub(super) fn put_on_trial(&mut self) {
        self.is_on_trial = true;
    }

    /// What became of it shows whether it had something to say.
    pub(super) fn end_trial(&mut self, fate: Fate) {
        if std::mem::take(&mut self.is_on_trial) {
            self.door.note_prompt(fate != Fate::Silent);
        }
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// What its work is attributed to.
    pub(super) fn mark(&self) -> Mark {
        self.berth.mark()
    }

    /// It waits, and is closed at `due` if nothing comes.
    pub(super) fn expect_end(&self, due: u64) {
        self.client.flight.expect_end(due);
    }

    /// When it was accepted.
    pub(super) fn since(&self) -> u64 {
        self.since
    }

    /// Counts it among those that wait between requests, or no longer.
    pub(super) fn set_idle(&mut self, is_idle: bool) {
        let process = self.door.process;
        match (self.is_idle, is_idle) {
            (false, true) => {
                process.connections_active.dec();
                process.connections_idle.inc();
            }
            (true, false) => {
                process.connections_idle.dec();
                process.connections_active.inc();
            }
            _ => {}
        }
        self.is_idle = is_idle;
    }

    /// Runs exchanges for as long as requests come at once.
    pub(super) async fn run(&mut self, downstream: &Downstream, codec: &mut Codec, desk: &mut Desk) -> Fate {
        if self.awaits_announcement {
            let due = self.since.saturating_add(downstream.site.borrow().timeouts.client_head);
            match codec.read_announcement(&self.stream, due).await {
                Opening::Silent => return Fate::Silent,
                Opening::Refused(reason) => {
                    self.door.cells.bad_requests.inc();
                    slog::debug!(downstream.logger, "no valid PROXY protocol header: {}", reason;
                        "client" => ?self.client.peer);
                    return Fate::Over;
                }
                Opening::Announced(announced) => {
                    self.client.announced = announced;
                    if let Some((source, _)) = announced {
                        self.client.flight.announce(source);
                    }
                }
            }
            self.awaits_announcement = false;
        }
        loop {
            self.client.requests += 1;
            let ended =
                codec.exchange(&self.stream, &self.client, self.since, &self.door.cells, downstream, desk).await;
            match ended {
                Ended::Nothing => {
                    self.client.requests -= 1;
                    return if self.client.requests == 0 { Fate::Silent } else { Fate::Kept };
                }
                Ended::Closed => return Fate::Over,
                Ended::Unread => {
                    self.client.flight.enter(Phase::Lingering, clock::now());
                    linger(&self.stream, self.client.flight, codec.timer()).await;
                    return Fate::Over;
                }
                Ended::Kept if codec.has_input() || self.stream.source().is_readable() => executor::yield_now().await,
                Ended::Kept => return Fate::Kept,
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.set_idle(false);
        self.door.cells.active.dec();
        self.door.process.connections_active.dec();
        self.door.vacate();
    }
}

/// Reads and forgets what the client still sends: to close with unread input resets the connection, and the client might
/// lose the answer (RFC 9112 §9.6).
async fn linger(stream: &Stream, flight: Flight, timer: &Timer) {
    if stream.shutdown_write().is_err() {
        return;
    }
    let end = clock::now().saturating_add(LINGER_TOTAL);
    flight.expect_end(end);
    let mut rest = Buffer::new();
    while clock::now() < end {
        let due = clock::now().saturating_add(LINGER_SILENCE).min(end);
        if !matches!(timer.until(due, stream.read(rest.spare())).await, Ok(Ok(1..))) {
            return;
        }
        executor::yield_now().await;
    }
}
