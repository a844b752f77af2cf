//! Upstreams and their servers.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::{Once, Section, check_name, number, process};
use crate::field::Field;
use crate::model::{KeepAlive, Server, Upstream};
use crate::place::At;
use crate::problem::{Origin, Report};
use crate::raw::upstream;
use crate::value::{Address, Invalid};

/// The upstreams that routes can name.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// The index and the place of each.
    known: HashMap<String, (usize, Origin)>,
}

impl Names {
    /// The index of an upstream.
    pub(super) fn index(&self, name: &str) -> Option<usize> {
        self.known.get(name).map(|(index, _)| *index)
    }

    /// All names.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.known.keys().map(String::as_str)
    }

    /// Warns of upstreams that no route uses.
    pub(super) fn warn_of_unused(&self, used: &HashSet<usize>, report: &Report) {
        for (name, (index, origin)) in &self.known {
            if !used.contains(index) {
                let invalid = Invalid::new(format!("no route uses the upstream `{name}`"));
                report.warning_from(origin, invalid);
            }
        }
    }
}

/// The upstreams of all files. One that is wrong is known by name all the same, so that its routes are not blamed.
pub(super) fn all(sections: &[Section], report: &Report) -> (Vec<Upstream>, Names) {
    let mut upstreams = Vec::new();
    let mut names = Names::default();
    let mut once = Once::new();
    for (file, part) in sections {
        let root = At::root(*file);
        let section = root.key("upstreams");
        for (name, field) in part.upstreams.given().into_iter().flat_map(|named| &named.0) {
            let at = section.key(name);
            if let Err(invalid) = check_name(name) {
                report.key_error(&at, 0, invalid);
            }
            if !once.admit(name.clone(), &at, report, || format!("there is an upstream `{name}` already")) {
                continue;
            }
            names.known.insert(name.clone(), (upstreams.len(), Origin::of(&at)));
            let nothing = upstream::Upstream::default();
            match field {
                Field::Given(raw) => upstreams.push(upstream(name, raw, &at, report)),
                Field::Absent => upstreams.push(upstream(name, &nothing, &at, report)),
                Field::Bad => {}
            }
        }
    }
    (upstreams, names)
}

fn upstream(name: &str, raw: &upstream::Upstream, at: &At<'_>, report: &Report) -> Upstream {
    let servers_at = at.key("servers");
    if raw.servers.is_absent() || raw.servers.given().is_some_and(Vec::is_empty) {
        report.error(
            &servers_at,
            Invalid::new("there is no server").hint("name at least one: `servers: [10.0.0.1:3000]`"),
        );
    }
    let mut once = Once::new();
    let servers = raw.servers.given().into_iter().flatten().enumerate();
    Upstream {
        name: name.to_string(),
        servers: servers
            .filter_map(|(index, field)| server(field.given()?, &servers_at.index(index), &mut once, report))
            .collect(),
        keep_alive: keep_alive(raw.keep_alive.given()),
        proxy_protocol: raw.proxy_protocol.given().copied(),
    }
}

fn server(raw: &upstream::Server, at: &At<'_>, once: &mut Once<Address>, report: &Report) -> Option<Server> {
    let address_at = at.key("address");
    let (address, weight, at) = match raw {
        upstream::Server::Text(address) => (&address.0, 1, at),
        upstream::Server::Map(keys) => {
            let address = keys.address.needed(&address_at, report, "say where the server is, as in 10.0.0.1:3000")?;
            (&address.0, number(&keys.weight, 1), &address_at)
        }
    };
    once.admit(address.clone(), at, report, || format!("{address} is a server of this upstream already"));
    warn_of_odd(address, at, report);
    Some(Server { address: address.clone(), weight })
}

fn warn_of_odd(address: &Address, at: &At<'_>, report: &Report) {
    let Address::Inet(socket) = address else { return };
    let loopback = match socket.ip() {
        ip if !ip.is_unspecified() => return,
        IpAddr::V4(_) => format!("127.0.0.1:{}", socket.port()),
        IpAddr::V6(_) => format!("[::1]:{}", socket.port()),
    };
    let invalid = Invalid::new(format!("{} is where to listen, not where to connect to", socket.ip()));
    report.warning(at, invalid.hint(format!("if this machine is meant, write {loopback}")));
}

fn keep_alive(raw: Option<&upstream::KeepAlive>) -> KeepAlive {
    let absent = upstream::KeepAlive::default();
    let raw = raw.unwrap_or(&absent);
    KeepAlive {
        idle_max: number(&raw.idle_max, 512),
        idle_timeout: process::period(&raw.idle_timeout, 60_000),
        requests_max: number(&raw.requests_max, 0),
        age_max: process::period(&raw.age_max, 3_600_000),
    }
}
