//! Servers, and connections to them: kept, dialled, leased for one exchange.

pub(crate) mod dial;
pub(crate) mod h1;
pub(crate) mod pool;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use conf::model::{self, ProxyProtocol};
use conf::value::Address;
use shared::ident::Slot;
use shared::stats::{ServerCells, UpstreamCells};
use shared::zone::Zone;

use crate::runtime::clock;
use pool::Pool;

/// A named set of servers.
pub(crate) struct Upstream {
    pub(crate) name: Box<str>,
    pub(crate) servers: Vec<Rc<Server>>,
    pub(crate) keeping: Keeping,
    pub(crate) proxy_protocol: Option<ProxyProtocol>,
    pub(crate) cells: UpstreamCells,
}

/// One address of an upstream. It outlives the site that named it, for as long as the name does.
pub(crate) struct Server {
    pub(crate) address: Address,
    /// The address as it is logged.
    pub(crate) text: Box<str>,
    pub(crate) cells: ServerCells,
    pub(crate) pool: Pool,
}

impl Server {
    /// Whether its health word lets it have requests.
    pub(crate) fn is_up(&self) -> bool {
        shared::health::is_up(self.cells.health.load(Ordering::Relaxed))
    }
}

/// How long connections are kept; times in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keeping {
    pub(crate) idle_max: usize,
    pub(crate) idle_timeout: u64,
    pub(crate) requests_max: u64,
    pub(crate) age_max: u64,
}

impl Upstream {
    pub(crate) fn new(config: &model::Upstream, zone: &'static Zone, slot: Slot, known: &Servers) -> Option<Upstream> {
        let servers =
            config.servers.iter().map(|server| known.get_or_insert(&config.name, &server.address, zone, slot));
        let keep = &config.keep_alive;
        Some(Upstream {
            name: config.name.as_str().into(),
            servers: servers.collect::<Option<_>>()?,
            keeping: Keeping {
                // A connection that was announced with one client's address can't carry another's request.
                idle_max: if config.proxy_protocol.is_some() { 0 } else { keep.idle_max as usize },
                idle_timeout: clock::nanos(keep.idle_timeout),
                requests_max: if keep.requests_max == 0 { u64::MAX } else { keep.requests_max },
                age_max: clock::nanos(keep.age_max),
            },
            proxy_protocol: config.proxy_protocol,
            cells: zone.upstream(slot, &config.name)?,
        })
    }
}

/// A server's identity: its upstream's name and its address.
type Name = (Box<str>, Address);

/// The servers that this worker knows, by upstream and address: a server that a new site names again keeps its
/// connections and its counters.
#[derive(Default)]
pub(crate) struct Servers {
    by_name: RefCell<HashMap<Name, Rc<Server>>>,
    by_number: RefCell<Vec<Option<Rc<Server>>>>,
}

impl Servers {
    fn get_or_insert(&self, upstream: &str, address: &Address, zone: &'static Zone, slot: Slot) -> Option<Rc<Server>> {
        let key = (Box::from(upstream), address.clone());
        if let Some(server) = self.by_name.borrow().get(&key) {
            return Some(Rc::clone(server));
        }
        let text = address.to_string().into_boxed_str();
        let mut numbered = self.by_number.borrow_mut();
        let free = numbered.iter().position(Option::is_none).unwrap_or_else(|| {
            numbered.push(None);
            numbered.len() - 1
        });
        let number = u32::try_from(free).ok()?;
        let cells = zone.server(slot, upstream, &text)?;
        let server = Rc::new(Server { address: address.clone(), text, cells, pool: Pool::new(number, cells) });
        numbered[free] = Some(Rc::clone(&server));
        self.by_name.borrow_mut().insert(key, Rc::clone(&server));
        Some(server)
    }

    /// An idle connection became readable: it was closed, or speaks out of turn. Either way it is of no use.
    pub(crate) fn drop_idle(&self, server: u32, connection: u64) {
        if let Some(Some(server)) = self.by_number.borrow().get(server as usize) {
            server.pool.remove(connection);
        }
    }

    /// Closes connections that have been idle for too long.
    pub(crate) fn sweep(&self) {
        self.each(|server| server.pool.sweep());
    }

    /// Closes all idle connections.
    pub(crate) fn clear(&self) {
        self.each(|server| server.pool.clear());
    }

    /// Closes an idle connection to make room; false when there is none.
    pub(crate) fn evict(&self) -> bool {
        self.by_number.borrow().iter().flatten().any(|server| server.pool.evict())
    }

    /// How many connections carry an exchange.
    pub(crate) fn active(&self) -> u64 {
        self.by_number.borrow().iter().flatten().map(|server| server.cells.in_flight.get()).sum()
    }

    /// How many connections are idle.
    pub(crate) fn idle(&self) -> u64 {
        self.by_number.borrow().iter().flatten().map(|server| server.pool.len() as u64).sum()
    }

    /// Closes the connections of servers that no site names and no exchange uses, and forgets them.
    pub(crate) fn forget_unused(&self) {
        let mut numbered = self.by_number.borrow_mut();
        // One is in the list and one in the table.
        let is_unused = |server: &Rc<Server>| Rc::strong_count(server) == 2;
        self.by_name.borrow_mut().retain(|_, server| {
            let is_kept = !is_unused(server);
            if !is_kept {
                server.pool.clear();
            }
            is_kept
        });
        // What the table has let go of, only the list has.
        numbered.iter_mut().for_each(|place| drop(place.take_if(|server| Rc::strong_count(server) == 1)));
    }

    fn each(&self, act: impl Fn(&Server)) {
        self.by_number.borrow().iter().flatten().for_each(|server| act(server));
    }
}
