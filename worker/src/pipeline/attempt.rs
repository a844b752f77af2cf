//! An exchange with an upstream: pick a server, lease a connection, relay both ways; and again, where that is safe.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use shared::zone::Phase;

use super::suspended::{self, Suspended};
use super::{Asked, Desk};
use crate::message::body::{End, Respond, Source};
use crate::message::decimal;
use crate::message::fault::{Fault, Kind, Side, Stage};
use crate::message::head::{BodyLength, Response};
use crate::middleware::forwarded::Hop;
use crate::observe::record::{self, ATTEMPTS_MAX, Exchange};
use crate::proto::h1::switches_as_asked;
use crate::proto::hop::write_request;
use crate::proto::proxy_protocol::{self, Addresses};
use crate::proto::transfer::{Patience, Reader, Sent, Writer};
use crate::relay;
use crate::relay::tunnel::Tunnel;
use crate::runtime::buffer::Buffer;
use crate::runtime::clock;
use crate::runtime::net::Presence;
use crate::runtime::sync::Background;
use crate::site::RouteLimits;
use crate::upstream::h1::{self, Lease};
use crate::upstream::{Server, Upstream};

/// The most interim responses that are passed on for one request.
const INTERIM_RESPONSES_MAX: usize = 16;

/// Everything that an exchange with an upstream needs.
pub(super) struct Attempt<'a, S, R> {
    pub(super) asked: Asked<'a>,
    /// Index of the upstream.
    pub(super) upstream: usize,
    pub(super) limits: &'a RouteLimits,
    /// When the exchange must be over.
    pub(super) deadline: u64,
    pub(super) exchange: &'a mut Exchange,
    pub(super) body: &'a mut S,
    pub(super) reply: &'a mut R,
    pub(super) desk: &'a mut Desk,
}

/// What becomes of a connection to a server after an exchange.
enum After {
    /// It may carry another.
    Keep,
    /// It is closed.
    Close,
    /// It goes on elsewhere, as a tunnel.
    Leave(Box<Tunnel>),
}

impl<'a, S: Source, R: Respond> Attempt<'a, S, R> {
    /// Tries servers until one has answered or no further try is safe.
    ///
    /// A request that can't have reached a server (no connection was made) goes to the next one. One whose connection
    /// ended before a byte of an answer came goes on only if it may be repeated: its method is idempotent (RFC 9110
    /// §9.2.2) and it has no body, so that nothing of it is lost. If the connection had been idle, the server had closed
    /// it, and is asked once more on a new one. If it was new, the server has failed, and the next one is asked; but what
    /// was sent again and failed again is not sent a third time (the same section).
    ///
    /// A tunnel that is to go on elsewhere is returned.
    pub(super) async fn until_answered(&mut self) -> Result<Option<Box<Suspended>>, Fault> {
        let mut last = None;
        let mut was_repeated = false;
        while self.exchange.attempts() < ATTEMPTS_MAX {
            let is_tried = |server| self.exchange.tried().any(|tried| tried == server);
            let Some(server) = self.asked.site.pick(self.upstream, is_tried) else { break };
            self.exchange.try_server(server);
            let server = &self.upstream().servers[server];
            if let Some((failed, fault)) = last.take() {
                record::count_fault(failed, fault);
            }
            let mut was_reused = false;
            // What was sent once already is not trusted to a connection that may be dead.
            let mut outcome = self.once(server, was_repeated, &mut was_reused).await;
            if let Err(fault) = &outcome
                && was_reused
                && fault.is_unanswered()
                && self.may_repeat()
            {
                self.exchange.repeats += 1;
                was_repeated = true;
                outcome = self.once(server, true, &mut was_reused).await;
            }
            let Err(fault) = outcome else { return outcome };
            let is_unsent = fault.side == Side::Server && fault.stage == Stage::Connect;
            if !is_unsent && (was_repeated || !fault.is_unanswered() || !self.may_repeat()) {
                return outcome;
            }
            was_repeated |= !is_unsent;
            last = Some((&server.cells, fault));
        }
        // An upstream has a server, so there was an attempt.
        Err(last.map_or(Fault::server(Stage::Connect, Kind::Refused), |(_, fault)| fault))
    }

    fn upstream(&self) -> &'a Upstream {
        &self.asked.site.upstreams[self.upstream]
    }

    fn may_repeat(&self) -> bool {
        let request = self.asked.request;
        // Not even an interim response has been passed on.
        self.reply.sent().0 == 0 && request.head.body == BodyLength::None && request.is_idempotent()
    }

    /// One try on one connection.
    async fn once(
        &mut self,
        server: &Rc<Server>,
        fresh: bool,
        was_reused: &mut bool,
    ) -> Result<Option<Box<Suspended>>, Fault> {
        self.exchange.attempt_started = clock::now();
        self.asked.client.flight.ask(server.cells.index, Phase::Waiting, clock::now());
        (self.exchange.upstream_status, self.exchange.header_time) = (None, None);
        self.exchange.upstream_sent = 0;
        self.write_greeting();
        let patience = Patience { step: self.limits.connect, deadline: self.deadline };
        let kept = if fresh { None } else { Lease::kept(server) };
        let lease = match kept {
            Some(lease) => lease,
            None => {
                let lease = pin!(Lease::open(server, &self.desk.draft, &self.desk.downward, patience));
                unless_gone(&self.reply.presence(), lease).await?
            }
        };
        *was_reused = lease.is_reused;
        self.exchange.connect_time = self.exchange.since_attempt();
        self.write_head();
        let sent = Sent::default();
        let outcome = self.over(&lease, &sent).await;
        self.exchange.upstream_sent += sent.wire.get();
        self.exchange.response_time = self.exchange.since_attempt();
        match outcome? {
            After::Close => {}
            After::Keep => lease.keep(self.upstream()),
            After::Leave(tunnel) => {
                let account = suspended::account(self.asked, self.exchange, self.desk, self.reply.sent().0);
                let (server, traffic) = (lease.into_stream(), std::mem::take(&mut self.exchange.tunnel));
                return Ok(Some(Box::new(Suspended { server, tunnel, traffic, account })));
            }
        }
        Ok(None)
    }

    /// The PROXY protocol header, if this upstream wants one.
    fn write_greeting(&mut self) {
        self.desk.draft.clear();
        let Some(version) = self.upstream().proxy_protocol else { return };
        let client = self.asked.client;
        let addresses = match (client.source(), client.destination()) {
            (Some(source), Some(destination)) => Addresses::Inet { source, destination },
            _ => Addresses::Unknown,
        };
        proxy_protocol::encode(version, &addresses, &mut self.desk.draft);
    }

    /// The request's head as the server is to see it.
    fn write_head(&mut self) {
        let Asked { client, request, .. } = self.asked;
        let Desk { to_server, authority, target, page: port, draft: peer, .. } = &mut *self.desk;
        to_server.clear();
        peer.clear();
        port.clear();
        record::address(client.source().map(|source| source.ip().to_canonical()), peer);
        if let Some(destination) = client.destination() {
            decimal::push(destination.port().into(), port);
        }
        // RFC 9112 §3.2: the field is sent even if there is nothing to say in it.
        write_request(request, target, authority, to_server);
        let hop = Hop { peer, is_trusted: self.exchange.is_trusted, scheme: b"http", host: authority, port };
        hop.write(request, self.exchange.id.as_bytes(), to_server);
        to_server.extend_from_slice(b"\r\n");
        port.clear();
        peer.clear();
    }

    /// The exchange on a leased connection.
    async fn over(&mut self, lease: &Lease, sent: &Sent) -> Result<After, Fault> {
        let Attempt { asked, limits, deadline, exchange, body, reply, desk, .. } = self;
        let Desk { to_server, inbox, response, upward, downward, clock: date, .. } = &mut **desk;
        let request = asked.request;
        let patience = |step| Patience { step, deadline: *deadline };
        let sending = lease.link(upward, patience(limits.upstream_send));
        let receiving = lease.link(downward, patience(limits.upstream_read));
        let mut writer = Writer::new(sending, to_server, request.head.body, sent);
        let presence = reply.presence();

        let flight = asked.client.flight;
        let upload = pin!(relay::copy(*body, &mut writer, |bytes| flight.received(bytes, clock::now())));
        let mut upload = Background::new(upload);
        let has_body = request.head.body != BodyLength::None;
        if has_body {
            flight.enter(Phase::Body, clock::now());
        }
        let mut interims = 0;
        loop {
            // While the request is still on its way, the server's time to answer has not begun. What came together with an
            // interim response is read already.
            if filled(inbox).is_empty() {
                upload.unless(|cx| lease.stream().poll_readable(cx)).await;
            }
            if has_body {
                flight.enter(Phase::Waiting, clock::now());
            }
            {
                let limits = asked.site.head_limits;
                let head = pin!(h1::read_head(receiving, inbox, limits, request.is_head(), response));
                upload.during(pin!(unless_gone(&presence, head)), ends_exchange).await?;
            }
            if response.status >= 200 || response.status == 101 {
                break;
            }
            interims += 1;
            if interims > INTERIM_RESPONSES_MAX {
                return Err(Fault::server(Stage::Head, Kind::Malformed("There are too many interim responses.")));
            }
            reply.interim(Response { head: response, bytes: filled(inbox) }).await?;
            if let Some(inbox) = inbox {
                inbox.consume(response.bytes);
            }
        }
        exchange.header_time = exchange.since_attempt();
        exchange.upstream_status = Some(response.status);
        exchange.status = response.status;
        let bytes = filled(inbox);
        let leading = &bytes[response.bytes..];
        let answer = Response { head: response, bytes };
        if response.status == 101 {
            if !switches_as_asked(request, answer) {
                return Err(Fault::server(Stage::Head, Kind::Malformed("The protocol was changed unasked.")));
            }
            reply.begin(answer, date.http());
            reply.flush().await?;
            exchange.upstream_received = response.bytes as u64;
            flight.enter(Phase::Tunnel, clock::now());
            let mut tunnel = Box::new(Tunnel::new(reply.tunnel().1, leading, limits.tunnel_idle));
            let server = End { stream: lease.stream(), timer: downward };
            let is_leaving = suspended::carry(*reply, &mut tunnel, server, &exchange.tunnel, flight).await?;
            return Ok(if is_leaving { After::Leave(tunnel) } else { After::Close });
        }
        if !matches!(upload.outcome, Some(Ok(()))) {
            // The answer comes before the whole request was read: what is left of it stands before any next one.
            reply.close_after();
        }
        let mut reader = Reader::new(receiving, leading, response.body, None, asked.site.head_limits.bytes);
        reply.begin(answer, date.http());
        let outcome = {
            flight.enter(Phase::Sending, clock::now());
            let download = pin!(relay::copy(&mut reader, *reply, |bytes| flight.sent(bytes, clock::now())));
            let download = pin!(unless_gone(&presence, download));
            // A server that answers may leave the rest of the request unread: how long the answer may take is another
            // limit.
            upload.during(download, |fault| fault.side != Side::Server).await
        };
        exchange.upstream_received = response.bytes as u64 + reader.bytes_taken();
        outcome?;
        let sent_all = matches!(upload.outcome, Some(Ok(())));
        let is_clean = sent_all && reader.is_clean() && response.keep_alive;
        Ok(if is_clean { After::Keep } else { After::Close })
    }
}

/// Whether a fault of the upload ends the exchange at once. That the server takes no more does not: it may have answered.
fn ends_exchange(fault: &Fault) -> bool {
    (fault.side, fault.kind) != (Side::Server, Kind::Closed)
}

fn filled(inbox: &Option<Buffer>) -> &[u8] {
    inbox.as_ref().map_or(&[], Buffer::filled)
}

/// Waits for `future` unless the client goes away first: there is no use in an answer that no one will read.
async fn unless_gone<T>(
    presence: &Presence,
    mut future: Pin<&mut impl Future<Output = Result<T, Fault>>>,
) -> Result<T, Fault> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Pending => presence.poll_gone(cx).map(|()| Err(Fault::client(Stage::Send, Kind::Closed))),
        ready => ready,
    })
    .await
}
