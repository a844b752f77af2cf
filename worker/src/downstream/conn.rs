//! A client's connection, from its first byte to its close.

use std::net::SocketAddr;
use std::rc::Rc;

use shared::handover;
use shared::zone::{Flight, Phase};

use super::Downstream;
use super::Waiting;
use super::accept::Door;
use super::h1::{Codec, Ended, Opening};
use crate::message::client::Client;
use crate::observe::flight::{Berth, Mark};
use crate::pipeline::{Desk, Suspended};
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
    /// Another worker did not want it: it ends here.
    stays: bool,
    /// The tunnel that it carries, while nobody runs it.
    suspended: Option<Box<Suspended>>,
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
    /// Its tunnel is suspended, to go on in another worker.
    Left,
}

impl Connection {
    pub(super) fn new(stream: Stream, peer: Option<SocketAddr>, number: u64, door: &Rc<Door>) -> Connection {
        let local = door.local.or_else(|| stream.local_addr());
        let berth = door.records.take();
        berth.flight().open(peer, door.cells.index, clock::now());
        let client = Client { peer, local, announced: None, number, requests: 0, flight: berth.flight() };
        door.cells.accepted.inc();
        door.process.accepted.inc();
        let mut connection = Connection::of(stream, client, berth, door);
        connection.awaits_announcement = door.proxy_protocol.get();
        connection
    }

    fn of(stream: Stream, client: Client, berth: Berth, door: &Rc<Door>) -> Connection {
        door.cells.active.inc();
        door.process.connections_active.inc();
        Connection {
            stream,
            client,
            berth,
            door: Rc::clone(door),
            since: clock::now(),
            awaits_announcement: false,
            is_on_trial: false,
            is_idle: false,
            stays: false,
            suspended: None,
        }
    }

    /// One that another worker had.
    pub(super) fn adopt(
        stream: Stream,
        record: &handover::Client,
        suspended: Option<Box<Suspended>>,
        number: u64,
        door: &Rc<Door>,
    ) -> Connection {
        let handover::Client { peer, local, announced, requests, .. } = *record;
        let (berth, since) = (door.records.take(), record.accepted.min(clock::now()));
        let client = Client { peer, local, announced, number, requests, flight: berth.flight() };
        client.flight.open(client.source(), door.cells.index, since);
        client.flight.go_on(requests);
        let mut connection = Connection::of(stream, client, berth, door);
        connection.since = since;
        connection.awaits_announcement = record.awaits_announcement;
        connection.suspended = suspended;
        connection
    }

    /// As another worker is told of it. It has waited since `waits_since`, if it waits.
    pub(super) fn record(&self, waits_since: u64) -> handover::Client {
        let Client { peer, local, announced, requests, .. } = self.client;
        handover::Client {
            listener: self.door.name(),
            peer,
            local,
            announced,
            accepted: self.since,
            requests,
            awaits_announcement: self.awaits_announcement,
            waits_since,
        }
    }

    /// What it waits for while it is idle.
    pub(super) fn waiting(&self) -> Waiting {
        if self.client.requests == 0 { Waiting::First } else { Waiting::Next }
    }

    /// The tunnel that it carries, if nobody runs it.
    pub(super) fn suspended(&self) -> Option<&Suspended> {
        self.suspended.as_deref()
    }

    /// Whether it ends here, wherever others go.
    pub(super) fn stays(&self) -> bool {
        self.stays
    }

    /// From now on it does.
    pub(super) fn set_stays(&mut self) {
        self.stays = true;
    }

    /// Its descriptors are about to be another worker's: the kernel is to forget them here.
    pub(super) fn leave(&self) {
        self.stream.source().leave();
        self.suspended.iter().for_each(|suspended| suspended.server.source().leave());
    }

    /// They are not, after all.
    pub(super) fn come_back(&self) {
        self.stream.source().come_back();
        self.suspended.iter().for_each(|suspended| suspended.server.source().come_back());
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
        if let Some(suspended) = self.suspended.take() {
            let (cells, tunnel) = (self.door.cells, (suspended, self.stays));
            let ended = codec.resume(&self.stream, &self.client, &cells, downstream, desk, tunnel).await;
            return self.end(ended, codec).await;
        }
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
                Ended::Closed | Ended::Unread | Ended::Left(_) => return self.end(ended, codec).await,
                Ended::Kept if codec.has_input() || self.stream.source().is_readable() => executor::yield_now().await,
                Ended::Kept => return Fate::Kept,
            }
        }
    }

    /// No exchange follows on it here.
    async fn end(&mut self, ended: Ended, codec: &Codec) -> Fate {
        match ended {
            Ended::Left(suspended) => {
                self.suspended = Some(suspended);
                return Fate::Left;
            }
            Ended::Unread => linger(&self.stream, self.client.flight, codec.timer()).await,
            _ => {}
        }
        Fate::Over
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
    flight.enter(Phase::Lingering, clock::now());
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
