//! Listeners.

use std::net::SocketAddr;

use super::{Once, Section, number};
use crate::model::Listener;
use crate::place::At;
use crate::problem::{Origin, Report};
use crate::raw::listener;
use crate::value::{Address, Invalid};

/// The listeners of all files; reports when there are none.
pub(super) fn all(sections: &[Section], report: &Report) -> Vec<Listener> {
    let mut listeners = Vec::new();
    let mut once = Once::new();
    let mut bound = Vec::new();
    let mut is_silent = true;
    for (file, part) in sections {
        let root = At::root(*file);
        let at = root.key("listeners");
        is_silent &= part.listeners.is_absent() || part.listeners.given().is_some_and(Vec::is_empty);
        for (index, field) in part.listeners.given().into_iter().flatten().enumerate() {
            let Some(raw) = field.given() else { continue };
            let at = at.index(index);
            let listener = listener(raw, &at, &mut once, report);
            if let Some(address) = listener.as_ref().and_then(Listener::socket_addr) {
                overlap(&bound, address, &at.key("address"), report);
                bound.push((address, Origin::of(&at.key("address"))));
            }
            listeners.extend(listener);
        }
    }
    if is_silent {
        let invalid =
            Invalid::new("there is no listener").hint("say where to listen: `listeners: [{address: 127.0.0.1:8080}]`");
        report.error(&At::root(0).key("listeners"), invalid);
    }
    listeners
}

/// Reports a listener on all addresses of a port beside one on a single address: the first takes what is meant for the
/// second, unless both happen to be open. IPv6 sockets take no IPv4 connections, so that the families do not meet.
fn overlap(bound: &[(SocketAddr, Origin)], address: SocketAddr, at: &At<'_>, report: &Report) {
    let meets = |other: SocketAddr| {
        let is_all = other.ip().is_unspecified() != address.ip().is_unspecified();
        is_all && address.port() != 0 && other.port() == address.port() && other.is_ipv4() == address.is_ipv4()
    };
    if let Some((other, first)) = bound.iter().find(|(other, _)| meets(*other)) {
        let (all, one) = if address.ip().is_unspecified() { (address, *other) } else { (*other, address) };
        report.repeated(at, first, format!("{all} takes every address of its port, {one} among them"));
    }
}

fn listener(raw: &listener::Listener, at: &At<'_>, once: &mut Once<Address>, report: &Report) -> Option<Listener> {
    let address_at = at.key("address");
    let address = &raw.address.needed(&address_at, report, "say where to listen, as in 127.0.0.1:8080")?.0;
    once.admit(address.clone(), &address_at, report, || format!("{address} has a listener already"));
    let is_unix = matches!(address, Address::Unix(_));
    let reuseport = raw.reuseport.given().map_or(!is_unix, |switch| switch.0.0);
    if reuseport && is_unix {
        report.error(
            &at.key("reuseport"),
            Invalid::new("a unix socket is always one for all workers").hint("leave it out"),
        );
    }
    Some(Listener {
        address: address.clone(),
        backlog: number(&raw.backlog, 4096),
        reuseport,
        proxy_protocol: raw.proxy_protocol.given().is_some_and(|switch| switch.0.0),
    })
}

#[cfg(test)]
mod tests {
    /// What is wrong with listeners on these addresses: the places, and what.
    fn wrong(addresses: &[&str]) -> Vec<(String, String)> {
        let list: Vec<_> = addresses.iter().map(|address| format!("{{address: '{address}'}}")).collect();
        let text =
            format!("listeners: [{}]\nroutes: [{{match: {{path: /}}, respond: {{status: 200}}}}]", list.join(", "));
        let problems = crate::parse(&text, "test").map_or_else(|problems| problems.0, |_| Vec::new());
        problems.into_iter().map(|problem| (problem.path, problem.message)).collect()
    }

    #[test]
    fn one_port_is_not_listened_on_twice() {
        for (addresses, is_sound) in [
            (["0.0.0.0:80", "127.0.0.1:80"], false),
            (["127.0.0.1:80", "0.0.0.0:80"], false),
            (["[::]:80", "[::1]:80"], false),
            (["127.0.0.1:80", "127.0.0.1:80"], false),
            (["0.0.0.0:80", "127.0.0.1:81"], true),
            (["0.0.0.0:80", "[::1]:80"], true),
            (["127.0.0.1:80", "127.0.0.2:80"], true),
            (["unix:/a", "0.0.0.0:80"], true),
        ] {
            let found = wrong(&addresses);
            assert_eq!(found.is_empty(), is_sound, "{addresses:?}: {found:?}");
            assert!(found.iter().all(|(path, _)| path == "listeners[1].address"), "{found:?}");
        }
    }
}
