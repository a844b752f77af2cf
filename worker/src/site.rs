//! One configuration, compiled for a worker.
//!
//! It is made in two steps: a [`Blueprint`] is drawn from the text's model, on whatever thread there is time for it, and
//! holds nothing of a worker; a [`Site`] is that with this worker's servers and cells, and lives on its loop. An exchange
//! keeps the site that it began with.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use conf::model::{self, Config};
use conf::value::IpNet;
use shared::ident::Slot;
use shared::stats::{ProcessCells, RouteCells};
use shared::zone::{NO_ROUTE, Quarantine, Zone};

use crate::balance::RoundRobin;
use crate::proto::h1::{HEADER_COUNT_MAX, HeadLimits};
use crate::router::Router;
use crate::runtime::clock::nanos;
use crate::upstream::{Servers, Upstream};

/// What can be compiled without a worker.
pub(crate) struct Blueprint {
    config: Arc<Config>,
    router: Router,
}

impl Blueprint {
    /// Compiles a configuration.
    pub(crate) fn draw(config: Arc<Config>) -> Blueprint {
        let router = Router::new(&config.routes);
        Blueprint { config, router }
    }
}

/// One configuration in one worker.
pub(crate) struct Site {
    pub(crate) router: Router,
    /// In the order of the configuration's.
    pub(crate) routes: Vec<Route>,
    /// Where exchanges are counted that no route took.
    pub(crate) no_route: RouteCells,
    pub(crate) upstreams: Vec<Upstream>,
    /// Whose turn it is, for each of them.
    turns: Vec<RefCell<RoundRobin>>,
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) head_limits: HeadLimits,
    pub(crate) timeouts: Timeouts,
    pub(crate) keep_alive_requests: u64,
    pub(crate) connections_max: u64,
    /// How long the worker may take to finish, once nobody is there to say so, in nanoseconds.
    pub(crate) shutdown_timeout: u64,
    pub(crate) process: ProcessCells,
    /// What is refused because of what it did.
    pub(crate) quarantine: Option<Quarantine>,
    pub(crate) hostname: Box<str>,
}

/// Time limits outside of routes, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    pub(crate) client_head: u64,
    pub(crate) keep_alive: u64,
    /// For answers to requests that no route took.
    pub(crate) client_send: u64,
}

/// Which requests, and what is done with them.
pub(crate) struct Route {
    pub(crate) name: Box<str>,
    pub(crate) action: model::Action,
    pub(crate) cells: RouteCells,
    pub(crate) limits: RouteLimits,
}

/// Limits of an exchange; times in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RouteLimits {
    pub(crate) client_body: u64,
    pub(crate) client_send: u64,
    pub(crate) connect: u64,
    pub(crate) upstream_send: u64,
    pub(crate) upstream_read: u64,
    pub(crate) tunnel_idle: u64,
    /// `u64::MAX` when there is none.
    pub(crate) exchange: u64,
    pub(crate) body_bytes: Option<u64>,
}

impl Site {
    /// Gives a blueprint to this worker: `known` servers keep their connections, new ones are added to them.
    ///
    /// # Errors
    /// A sentence that names what the zone has no place for. The master publishes before it starts a worker, so this
    /// means that the zone is another one's.
    pub(crate) fn open(blueprint: Blueprint, zone: &'static Zone, slot: Slot, known: &Servers) -> Result<Site, String> {
        let Blueprint { config, router } = blueprint;
        let missing = |noun: &str, name: &str| format!("the zone has no {noun} {name:?}");
        let route_cells = |name: &str| zone.route(slot, name).ok_or_else(|| missing("route", name));
        let upstreams = config.upstreams.iter().map(|upstream| {
            Upstream::new(upstream, zone, slot, known).ok_or_else(|| missing("upstream", &upstream.name))
        });
        let routes = config.routes.iter().map(|route| {
            Ok(Route {
                name: route.name.as_str().into(),
                action: route.action.clone(),
                cells: route_cells(&route.name)?,
                limits: RouteLimits::new(&route.timeouts, &route.limits),
            })
        });
        Ok(Site {
            routes: routes.collect::<Result<_, String>>()?,
            no_route: route_cells(NO_ROUTE)?,
            upstreams: upstreams.collect::<Result<_, String>>()?,
            turns: config.upstreams.iter().map(turns).collect(),
            router,
            trusted_proxies: config.trusted_proxies.clone(),
            head_limits: HeadLimits {
                bytes: config.limits.head_bytes,
                fields: config.limits.header_count.min(HEADER_COUNT_MAX),
            },
            timeouts: Timeouts {
                client_head: nanos(config.timeouts.client_head),
                keep_alive: nanos(config.timeouts.keep_alive),
                client_send: nanos(config.timeouts.route.client_send),
            },
            keep_alive_requests: match config.limits.keep_alive_requests {
                0 => u64::MAX,
                limit => limit,
            },
            connections_max: u64::from(config.limits.connections),
            shutdown_timeout: nanos(config.shutdown_timeout),
            process: zone.process(slot),
            quarantine: zone.quarantine(),
            hostname: hostname(),
        })
    }

    /// The upstream's next server that was not tried yet. Those whose health word says so are passed over, unless all are.
    pub(crate) fn pick(&self, upstream: usize, is_tried: impl Fn(usize) -> bool) -> Option<usize> {
        let servers = &self.upstreams[upstream].servers;
        if servers.len() == 1 {
            return (!is_tried(0)).then_some(0);
        }
        let mut turns = self.turns[upstream].borrow_mut();
        let healthy = turns.pick(|server| !is_tried(server) && servers[server].is_up());
        healthy.or_else(|| turns.pick(|server| !is_tried(server)))
    }

    /// The cells of the route with this index, or of exchanges that none took.
    pub(crate) fn route_cells(&self, route: Option<usize>) -> &RouteCells {
        route.map_or(&self.no_route, |route| &self.routes[route].cells)
    }
}

impl RouteLimits {
    fn new(timeouts: &model::RouteTimeouts, limits: &model::RouteLimits) -> RouteLimits {
        RouteLimits {
            client_body: nanos(timeouts.client_body),
            client_send: nanos(timeouts.client_send),
            connect: nanos(timeouts.connect),
            upstream_send: nanos(timeouts.upstream_send),
            upstream_read: nanos(timeouts.upstream_read),
            tunnel_idle: nanos(timeouts.tunnel_idle),
            exchange: timeouts.exchange.map_or(u64::MAX, nanos),
            body_bytes: limits.body_bytes,
        }
    }
}

fn turns(upstream: &model::Upstream) -> RefCell<RoundRobin> {
    RefCell::new(RoundRobin::new(upstream.servers.iter().map(|server| server.weight), fastrand::u64(..)))
}

fn hostname() -> Box<str> {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_default().into_boxed_str()
}

/// The worker's present site, which a reload replaces.
pub(crate) type Current = RefCell<Rc<Site>>;
