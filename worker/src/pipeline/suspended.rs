//! A tunnel between two tasks: taken out of the one that ran it, to go on in another, of this worker or of another.
//!
//! It is counted and logged once, by whoever sees its end, with the sums over its whole life.

use std::pin::pin;

use conf::model::Action;
use shared::handover::Account;
use shared::zone::{Flight, NO_DUE, Phase};

use super::{Active, Asked, Desk};
use crate::message::body::{End, Respond, Source, Traffic};
use crate::message::fault::Fault;
use crate::message::request_id::RequestId;
use crate::observe::record::Exchange;
use crate::proto::h1::{HEADER_COUNT_MAX, HeadLimits, Parsed, parse_response};
use crate::relay::tunnel::Tunnel;
use crate::runtime::buffer::Buffer;
use crate::runtime::clock;
use crate::runtime::net::Stream;
use crate::runtime::sync::first;
use crate::site::Site;
use crate::upstream::h1::InFlight;

/// A tunnel that nobody runs.
pub(crate) struct Suspended {
    pub(crate) server: Stream,
    pub(crate) tunnel: Box<Tunnel>,
    pub(crate) traffic: Traffic,
    /// What is known of the exchange that it was. Where it goes on, both heads are read again.
    pub(crate) account: Account,
}

/// Runs a tunnel until it ends, or its client's connection is to leave; says whether it is that.
///
/// # Errors
/// See [`Tunnel::run`].
pub(super) async fn carry<R: Respond>(
    reply: &R,
    tunnel: &mut Tunnel,
    server: End<'_>,
    traffic: &Traffic,
    flight: Flight,
) -> Result<bool, Fault> {
    let (client, _) = reply.tunnel();
    let over = pin!(async { tunnel.run(client, server, traffic, flight).await.map(|()| false) });
    let called = pin!(async {
        reply.departure().await;
        Ok(true)
    });
    first(over, called).await
}

/// Goes on with a tunnel whose request has been read again; comes back with it when it is to leave once more.
///
/// # Errors
/// What ended it, unless both sides did so in order.
pub(crate) async fn resume<S: Source, R: Respond>(
    asked: Asked<'_>,
    suspended: Box<Suspended>,
    body: &mut S,
    reply: &mut R,
    desk: &mut Desk,
) -> Result<Option<Box<Suspended>>, Fault> {
    let Suspended { server, mut tunnel, traffic, account } = *suspended;
    asked.site.process.requests_active.inc();
    // It was placed before, so it can be; if not, its line lacks what the target would have told.
    let _ = desk.place(asked.request);
    read_response(&account.response, asked, desk);
    let (exchange, work) = restore(asked.site, &account, traffic);
    record(asked, &exchange, desk);
    let mut active = Active { asked, exchange, body, reply, desk, is_over: false, has_left: false };
    let Active { exchange, reply, desk, .. } = &mut active;
    let end = End { stream: &server, timer: &desk.downward };
    let outcome = carry(*reply, &mut tunnel, end, &exchange.tunnel, asked.client.flight).await;
    drop(work);
    exchange.response_time = exchange.since_attempt();
    exchange.fault = outcome.err();
    let has_left = outcome == Ok(true);
    let traffic = if has_left { std::mem::take(&mut exchange.tunnel) } else { Traffic::default() };
    (active.is_over, active.has_left) = (true, has_left);
    outcome.map(|has_left| has_left.then(|| Box::new(Suspended { server, tunnel, traffic, account })))
}

/// Says in the zone what a connection carries that has come as a tunnel.
fn record(asked: Asked<'_>, exchange: &Exchange, desk: &Desk) {
    let flight = asked.client.flight;
    let route = exchange.route.map(|route| asked.site.routes[route].cells.index);
    let rest = asked.site.quarantine.map_or(0, |quarantine| quarantine.rest(&desk.path));
    flight.begin(asked.client.requests, NO_DUE, exchange.started);
    flight.decide(route, asked.request.method(), &desk.path, rest);
    flight.set_moved(exchange.tunnel.to_server.get(), exchange.tunnel.to_client.get());
    match asked.upstream(exchange).zip(exchange.tried().last()) {
        Some((upstream, server)) => flight.ask(upstream.servers[server].cells.index, Phase::Tunnel, clock::now()),
        None => flight.enter(Phase::Tunnel, clock::now()),
    }
}

/// What is known of an exchange that has become a tunnel; `sent` bytes went to the client before.
pub(super) fn account(asked: Asked<'_>, exchange: &Exchange, desk: &Desk, sent: u64) -> Account {
    let upstream = asked.upstream(exchange);
    let server = |server: usize| Some(upstream?.servers.get(server)?.text.to_string());
    let response = desk.inbox.as_ref().and_then(|inbox| inbox.filled().get(..desk.response.bytes));
    Account {
        started: exchange.started,
        client: exchange.client,
        is_trusted: exchange.is_trusted,
        id: exchange.id.as_bytes().to_vec(),
        route: exchange.route.map(|route| asked.site.routes[route].name.to_string()).unwrap_or_default(),
        upstream: upstream.map(|upstream| upstream.name.to_string()).unwrap_or_default(),
        servers: exchange.tried().filter_map(server).collect(),
        repeats: exchange.repeats,
        attempt_started: exchange.attempt_started,
        connect_time: exchange.connect_time,
        header_time: exchange.header_time,
        upstream_sent: exchange.upstream_sent,
        upstream_received: exchange.upstream_received,
        sent,
        request: asked.request.bytes[..asked.request.head.bytes].to_vec(),
        response: response.unwrap_or_default().to_vec(),
    }
}

/// Undoes [`account`]. An exchange whose route is not there any more, or leads elsewhere, goes on as one that no route
/// took.
fn restore(site: &Site, account: &Account, traffic: Traffic) -> (Exchange, Option<InFlight>) {
    let now = clock::now();
    let mut exchange = Exchange::begin(account.started.min(now));
    exchange.client = account.client;
    exchange.is_trusted = account.is_trusted;
    exchange.id = RequestId::new(&account.id).unwrap_or_default();
    exchange.status = 101;
    exchange.repeats = account.repeats;
    exchange.attempt_started = account.attempt_started.min(now);
    exchange.connect_time = account.connect_time;
    exchange.header_time = account.header_time;
    exchange.upstream_status = Some(101);
    exchange.upstream_sent = account.upstream_sent;
    exchange.upstream_received = account.upstream_received;
    exchange.tunnel = traffic;
    let found = site.routes.iter().enumerate().find_map(|(route, at)| match at.action {
        Action::Upstream(upstream) if *at.name == account.route => Some((route, &site.upstreams[upstream])),
        _ => None,
    });
    let Some((route, upstream)) = found.filter(|(_, upstream)| *upstream.name == account.upstream) else {
        return (exchange, None);
    };
    exchange.route = Some(route);
    let place = |text: &String| upstream.servers.iter().position(|server| *server.text == **text);
    // Of all or of none: it is the last one that the rest is counted for.
    let servers: Option<Vec<usize>> = account.servers.iter().map(place).collect();
    servers.iter().flatten().for_each(|server| exchange.try_server(*server));
    let last = exchange.tried().last();
    (exchange, last.map(|server| InFlight::go_on(&upstream.servers[server])))
}

/// Reads the server's head again, for who logs a field of it.
fn read_response(head: &[u8], asked: Asked<'_>, desk: &mut Desk) {
    let limits = HeadLimits { bytes: head.len(), fields: HEADER_COUNT_MAX };
    let parsed = parse_response(head, limits, asked.request.is_head(), &mut desk.response);
    if parsed == Ok(Parsed::Complete) {
        desk.inbox = Some(Buffer::holding(head));
    }
}
