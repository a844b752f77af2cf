//! Listeners.

use super::{Once, Section, number};
use crate::model::Listener;
use crate::place::At;
use crate::problem::Report;
use crate::raw::listener;
use crate::value::{Address, Invalid};

/// The listeners of all files; reports when there are none.
pub(super) fn all(sections: &[Section], report: &Report) -> Vec<Listener> {
    let mut listeners = Vec::new();
    let mut once = Once::new();
    let mut is_silent = true;
    for (file, part) in sections {
        let root = At::root(*file);
        let at = root.key("listeners");
        is_silent &= part.listeners.is_absent() || part.listeners.given().is_some_and(Vec::is_empty);
        for (index, field) in part.listeners.given().into_iter().flatten().enumerate() {
            let Some(raw) = field.given() else { continue };
            listeners.extend(listener(raw, &at.index(index), &mut once, report));
        }
    }
    if is_silent {
        let invalid =
            Invalid::new("there is no listener").hint("say where to listen: `listeners: [{address: 127.0.0.1:8080}]`");
        report.error(&At::root(0).key("listeners"), invalid);
    }
    listeners
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
