//! The life of a request, on one page.
//!
//! ```text
//! listener -> connection -> codec -> serve { place -> act { upstream { pick -> lease -> relay } } } -> record
//! ```
//!
//! Here and in `attempt` below it all stages are named, and nowhere else; only `attempt` tries a request again. Neither
//! knows a protocol version: a request's body is a [`Source`], the way back is a [`Respond`].

mod attempt;
mod desk;
mod suspended;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;

use conf::model::{Action, Redirect, Respond as Fixed};
use shared::stats::ListenerCells;
use shared::zone::Phase;

use crate::message::body::{Respond, Source};
use crate::message::client::Client;
use crate::message::fault::{Fault, Kind, Side, Stage};
use crate::message::head::{BodyLength, Known, Request, Response};
use crate::message::page;
use crate::message::request_id::RequestId;
use crate::message::template::{Variables, render, render_field};
use crate::middleware::forwarded;
use crate::observe::access::AccessLog;
use crate::observe::record::{self, Cells, Exchange, View};
use crate::proto::hop::write_field;
use crate::runtime::clock;
use crate::runtime::sync::now;
use crate::site::Site;
use attempt::Attempt;

pub(crate) use desk::Desk;
pub(crate) use suspended::{Suspended, resume};

/// The methods that a client is told of; others are passed on as well.
const METHODS: &[u8] = b"GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS";
/// How much of a request's body is read that no one wants, in bytes.
const DISCARDED_BYTES_MAX: u64 = 64 * 1024;

/// A request, on whose behalf it came, and what it is answered by.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) site: &'a Site,
    pub(crate) client: &'a Client,
    pub(crate) request: Request<'a>,
    pub(crate) listener: &'a ListenerCells,
    pub(crate) log: &'a RefCell<Option<AccessLog>>,
}

/// Answers a request, or says why it can't be: `head` tells whether it could be read at all. What has become a tunnel may
/// come back, to go on in another worker.
///
/// # Errors
/// Why the exchange did not go well, which the client has been told where that was possible.
pub(crate) async fn serve<S: Source, R: Respond>(
    asked: Asked<'_>,
    head: Result<(), Fault>,
    body: &mut S,
    reply: &mut R,
    desk: &mut Desk,
) -> Result<Option<Box<Suspended>>, Fault> {
    asked.site.process.requests_active.inc();
    let exchange = Exchange::begin(desk.started);
    let mut active = Active { asked, exchange, body, reply, desk, is_over: false, has_left: false };
    let Active { exchange, body, reply, desk, .. } = &mut active;
    identify(asked, exchange, desk);
    let outcome = match head.and_then(|()| place(asked, exchange, desk)) {
        Ok(()) => act(asked, exchange, *body, *reply, desk).await,
        Err(fault) => Err(fault),
    };
    if let Err(fault) = &outcome {
        let fault = *fault;
        exchange.fault = Some(fault);
        // Where a client's message ends is not known once it broke a rule.
        if fault.side == Side::Client || reply.has_begun() {
            reply.close_after();
        }
        if !reply.has_begun() {
            exchange.status = fault.status();
            if !fault.is_client_gone() && explain(asked, fault, exchange, *body, *reply, desk).await.is_err() {
                reply.close_after();
            }
        }
    }
    active.is_over = true;
    active.has_left = matches!(outcome, Ok(Some(_)));
    outcome
}

/// An exchange in flight. When it is dropped it is counted and logged, however its end came.
struct Active<'a, S: Source, R: Respond> {
    asked: Asked<'a>,
    exchange: Exchange,
    body: &'a mut S,
    reply: &'a mut R,
    desk: &'a mut Desk,
    /// Whether it came to its own end. If not, the worker stopped or an exchange's code panicked.
    is_over: bool,
    /// Whether it goes on elsewhere: who sees its end counts it.
    has_left: bool,
}

impl<S: Source, R: Respond> Drop for Active<'_, S, R> {
    fn drop(&mut self) {
        let Active { asked, exchange, body, reply, desk, is_over, has_left } = self;
        if *has_left {
            asked.site.process.requests_active.dec();
            desk.inbox = None;
            return;
        }
        if !*is_over {
            let fault = Fault::proxy(if reply.has_begun() { Stage::Send } else { Stage::Head }, Kind::Abandoned);
            exchange.fault = Some(fault);
            if !reply.has_begun() {
                exchange.status = fault.status();
            }
        }
        asked.site.process.requests_active.dec();
        // As with nginx, a line has the time at which it is written.
        desk.clock.set(clock::wall_millis());
        exchange.request_bytes = asked.request.head.bytes as u64 + body.bytes_taken();
        let (to_client, to_server) = (exchange.tunnel.to_client.get(), exchange.tunnel.to_server.get());
        let (sent, sent_body) = reply.sent();
        (exchange.sent_bytes, exchange.sent_body_bytes) = (sent + to_client, sent_body + to_client);
        exchange.upstream_sent += to_server;
        exchange.upstream_received += to_client;
        asked.client.flight.end(exchange.request_bytes + to_server, exchange.sent_bytes, clock::now());
        match is_over {
            true => finish(*asked, exchange, desk),
            // This may be the way out of a panic, and a second one would end the worker.
            false => drop(catch_unwind(AssertUnwindSafe(|| finish(*asked, exchange, desk)))),
        }
        desk.inbox = None;
    }
}

/// Who asks, and by what name the exchange goes.
fn identify(asked: Asked<'_>, exchange: &mut Exchange, desk: &mut Desk) {
    let Asked { site, client, request, .. } = asked;
    let peer = client.source().map(|source| source.ip().to_canonical());
    exchange.is_trusted = forwarded::is_trusted(&site.trusted_proxies, peer);
    let (believed, sent) = match exchange.is_trusted {
        true => (forwarded::client(&site.trusted_proxies, request), RequestId::sent(request)),
        false => (None, None),
    };
    exchange.client = believed.or(peer);
    exchange.id = sent.unwrap_or_else(|| desk.ids.make());
}

/// Which route takes the request.
fn place(asked: Asked<'_>, exchange: &mut Exchange, desk: &mut Desk) -> Result<(), Fault> {
    // RFC 9110 §9.3.6, §9.3.8: a tunnel to wherever the client says, and an echo of fields that others added, are not
    // offered. It is the client's fault, so that the connection ends: what follows a CONNECT may be no request.
    if matches!(asked.request.method(), b"CONNECT" | b"TRACE") {
        return Err(Fault::client(Stage::Route, Kind::Method));
    }
    desk.place(asked.request)?;
    exchange.route = asked.site.router.find(&desk.host, &desk.path);
    let route = exchange.route.map(|route| asked.site.routes[route].cells.index);
    let (method, path, quarantine) = (asked.request.method(), &desk.path, asked.site.quarantine.as_ref());
    asked.client.flight.decide(route, method, path, quarantine.map_or(0, |quarantine| quarantine.rest(path)));
    let Some(route) = route else { return Err(Fault::proxy(Stage::Route, Kind::NoRoute)) };
    match quarantine {
        Some(quarantine) if quarantine.refuses(route, method, path, clock::now()) => {
            Err(Fault::proxy(Stage::Route, Kind::Quarantined))
        }
        _ => Ok(()),
    }
}

/// Does what the route says.
async fn act<S: Source, R: Respond>(
    asked: Asked<'_>,
    exchange: &mut Exchange,
    body: &mut S,
    reply: &mut R,
    desk: &mut Desk,
) -> Result<Option<Box<Suspended>>, Fault> {
    let Some(route) = exchange.route.map(|route| &asked.site.routes[route]) else { return Ok(None) };
    #[cfg(feature = "misbehave")]
    if let Some(status) = crate::middleware::misbehave::obey(asked.request) {
        exchange.status = status;
        return answer(asked, status, body, reply, desk).await.map(|()| None);
    }
    let limits = &route.limits;
    let deadline = clock::now().saturating_add(limits.exchange);
    body.set_terms(limits.client_body, deadline, limits.body_bytes);
    reply.set_terms(limits.client_send, deadline);
    asked.client.flight.expect_end(deadline);
    if let (BodyLength::Exactly(length), Some(limit)) = (asked.request.head.body, limits.body_bytes)
        && length > limit
    {
        return Err(Fault::client(Stage::Body, Kind::TooLarge));
    }
    if asked.request.max_forwards() == Some(0) {
        // RFC 9110 §7.6.2: the request is for this proxy.
        exchange.status = 200;
        desk.draft.clear();
        desk.page.clear();
        write_field(b"Allow", METHODS, &mut desk.draft);
        return answer(asked, 200, body, reply, desk).await.map(|()| None);
    }
    match &route.action {
        Action::Upstream(upstream) => {
            Attempt { asked, upstream: *upstream, limits, deadline, exchange, body, reply, desk }.until_answered().await
        }
        Action::Respond(fixed) => respond(asked, fixed, exchange, body, reply, desk).await.map(|()| None),
        Action::Redirect(to) => redirect(asked, to, exchange, body, reply, desk).await.map(|()| None),
    }
}

/// The route's own answer.
async fn respond(
    asked: Asked<'_>,
    fixed: &Fixed,
    exchange: &mut Exchange,
    body: &mut impl Source,
    reply: &mut impl Respond,
    desk: &mut Desk,
) -> Result<(), Fault> {
    exchange.status = fixed.status;
    let (mut fields, mut page) = (std::mem::take(&mut desk.draft), std::mem::take(&mut desk.page));
    with_view(asked, exchange, desk, |view| {
        for (name, value) in &fixed.headers {
            write_template(name, value, view, &mut fields);
        }
        render(&fixed.body, view, &mut page);
    });
    if !page.is_empty() && !fixed.headers.keys().any(|name| name.eq_ignore_ascii_case("content-type")) {
        write_field(b"Content-Type", b"text/plain; charset=utf-8", &mut fields);
    }
    (desk.draft, desk.page) = (fields, page);
    answer(asked, fixed.status, body, reply, desk).await
}

/// An answer that sends the client elsewhere.
async fn redirect(
    asked: Asked<'_>,
    to: &Redirect,
    exchange: &mut Exchange,
    body: &mut impl Source,
    reply: &mut impl Respond,
    desk: &mut Desk,
) -> Result<(), Fault> {
    exchange.status = to.status;
    let mut fields = std::mem::take(&mut desk.draft);
    with_view(asked, exchange, desk, |view| write_template("Location", &to.location, view, &mut fields));
    desk.draft = fields;
    answer(asked, to.status, body, reply, desk).await
}

/// A page for the person who asked.
async fn explain(
    asked: Asked<'_>,
    fault: Fault,
    exchange: &Exchange,
    body: &mut impl Source,
    reply: &mut impl Respond,
    desk: &mut Desk,
) -> Result<(), Fault> {
    let status = fault.status();
    reply.set_terms(asked.site.timeouts.client_send, u64::MAX);
    desk.draft.clear();
    desk.page.clear();
    let accept = asked.request.field(Known::Accept);
    let kind =
        page::render(status, page::reason(status), fault.sentence(), exchange.id.as_bytes(), accept, &mut desk.page);
    write_field(b"Content-Type", kind.as_bytes(), &mut desk.draft);
    write_field(b"X-Request-Id", exchange.id.as_bytes(), &mut desk.draft);
    if fault.kind == Kind::Method {
        write_field(b"Allow", METHODS, &mut desk.draft);
    }
    answer(asked, status, body, reply, desk).await
}

/// Sends the fields and the body that were drafted.
async fn answer(
    asked: Asked<'_>,
    status: u16,
    body: &mut impl Source,
    reply: &mut impl Respond,
    desk: &mut Desk,
) -> Result<(), Fault> {
    // Nothing is waited for, so that the turn's own time would say that it took none.
    clock::sample();
    asked.client.flight.enter(Phase::Sending, clock::now());
    // What has come of the request's body is read past, so that the connection can go on; the rest is not waited for.
    while !body.is_complete()
        && body.bytes_taken() < DISCARDED_BYTES_MAX
        && matches!(now(pin!(body.next())).await, Some(Ok(_)))
    {}
    if !body.is_complete() {
        reply.close_after();
    }
    reply.begin_own(status, &desk.draft, desk.page.len() as u64, desk.clock.http());
    reply.finish(&desk.page, b"").await
}

fn write_template(name: &str, value: &conf::template::Template, variables: &impl Variables, out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    render_field(value, variables, out);
    out.extend_from_slice(b"\r\n");
}

/// Counts the exchange and logs it: the only place that does either.
fn finish(asked: Asked<'_>, exchange: &Exchange, desk: &Desk) {
    let Asked { site, listener, log, .. } = asked;
    let upstream = asked.upstream(exchange);
    let server = upstream.and_then(|upstream| Some(&upstream.servers[exchange.tried().last()?].cells));
    let cells = Cells {
        process: &site.process,
        listener,
        route: site.route_cells(exchange.route),
        upstream: upstream.map(|upstream| (&upstream.cells, server)),
    };
    record::count(exchange, &cells);
    if let Some(log) = &mut *log.borrow_mut() {
        with_view(asked, exchange, desk, |view| log.line(view));
    }
}

impl<'a> Asked<'a> {
    /// The upstream of the exchange's route, if it has one.
    fn upstream(self, exchange: &Exchange) -> Option<&'a crate::upstream::Upstream> {
        match self.site.routes[exchange.route?].action {
            Action::Upstream(upstream) => Some(&self.site.upstreams[upstream]),
            Action::Respond(_) | Action::Redirect(_) => None,
        }
    }
}

fn with_view<T>(asked: Asked<'_>, exchange: &Exchange, desk: &Desk, then: impl FnOnce(&View<'_>) -> T) -> T {
    let upstream = asked.upstream(exchange);
    let server_text = |server: usize| upstream.map_or("", |upstream| &*upstream.servers[server].text);
    let response = Response { head: &desk.response, bytes: desk.inbox.as_ref().map_or(&[], |inbox| inbox.filled()) };
    then(&View {
        exchange,
        client: asked.client,
        request: asked.request,
        response: (response.head.status >= 200 && !response.bytes.is_empty()).then_some(response),
        host: &desk.host,
        path: &desk.path,
        query: desk.query(),
        route: exchange.route.map_or("", |route| &asked.site.routes[route].name),
        upstream: upstream.map(|upstream| &*upstream.name),
        servers: &server_text,
        clock: &desk.clock,
        hostname: &asked.site.hostname,
    })
}
