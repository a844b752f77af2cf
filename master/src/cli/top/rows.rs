//! The rows of the lower table: every upstream with its servers, in the order that was asked for.

#![forbid(unsafe_code)]

use shared::health;
use shared::stats::{Distribution, Server, Snapshot, Upstream};

/// By what upstreams, and the servers within each, are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Name,
    Requests,
    Latency,
    Faults,
}

impl Sort {
    pub(super) fn next(self) -> Sort {
        match self {
            Sort::Name => Sort::Requests,
            Sort::Requests => Sort::Latency,
            Sort::Latency => Sort::Faults,
            Sort::Faults => Sort::Name,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Sort::Name => "name",
            Sort::Requests => "requests",
            Sort::Latency => "p99",
            Sort::Faults => "faults",
        }
    }
}

/// An upstream or, indented, a server.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) requests: u64,
    pub(super) active: u64,
    pub(super) idle: u64,
    pub(super) faults: u64,
    pub(super) latency: Distribution,
    pub(super) health: String,
    pub(super) is_upstream: bool,
    pub(super) is_down: bool,
}

/// Rows of what happened in `change`.
pub(super) fn rows(change: &Snapshot, sort: Sort) -> Vec<Row> {
    let mut groups: Vec<(Row, Vec<Row>)> = change
        .upstreams
        .iter()
        .map(|upstream| (of_upstream(upstream), upstream.servers.iter().map(of_server).collect()))
        .collect();
    groups.sort_by_cached_key(|(upstream, _)| key(upstream, sort));
    let mut rows = Vec::new();
    for (upstream, mut servers) in groups {
        servers.sort_by_cached_key(|server| key(server, sort));
        rows.push(upstream);
        rows.append(&mut servers);
    }
    rows
}

/// Names rise, numbers fall.
fn key(row: &Row, sort: Sort) -> (u64, String) {
    let number = match sort {
        Sort::Name => 0,
        Sort::Requests => row.requests,
        Sort::Latency => row.latency.quantile_ns(0.99).unwrap_or(0),
        Sort::Faults => row.faults,
    };
    (u64::MAX - number, row.name.clone())
}

fn of_upstream(upstream: &Upstream) -> Row {
    let totals = &upstream.object.totals;
    let sum = |of: fn(&Server) -> u64| upstream.servers.iter().map(of).fold(0, u64::saturating_add);
    let (all, up) = (upstream.servers.len(), sum(|server| health::is_up(server.health).into()));
    Row {
        name: upstream.object.name.clone(),
        requests: totals.requests,
        active: sum(|server| server.object.totals.in_flight),
        idle: sum(|server| server.object.totals.idle),
        faults: totals.faults,
        latency: totals.latency.clone(),
        health: format!("{up}/{all} up"),
        is_upstream: true,
        is_down: up == 0,
    }
}

fn of_server(server: &Server) -> Row {
    let totals = &server.object.totals;
    let is_down = !health::is_up(server.health);
    Row {
        name: server.object.name.clone(),
        requests: totals.requests,
        active: totals.in_flight,
        idle: totals.idle,
        faults: totals.faults,
        latency: totals.latency.clone(),
        health: if is_down { "down" } else { "up" }.into(),
        is_upstream: false,
        is_down,
    }
}

#[cfg(test)]
mod tests {
    use shared::stats::{Object, ServerTotals, UpstreamTotals};

    use super::*;

    fn upstream(name: &str, servers: &[(&str, u64)]) -> Upstream {
        let server = |(name, requests): &(&str, u64)| {
            let totals = ServerTotals { requests: *requests, ..ServerTotals::default() };
            Server { object: Object { name: (*name).into(), totals, by_slot: vec![] }, health: health::INITIAL }
        };
        let requests = servers.iter().map(|(_, requests)| requests).sum();
        let totals = UpstreamTotals { requests, ..UpstreamTotals::default() };
        let object = Object { name: name.into(), totals, by_slot: vec![] };
        Upstream { object, servers: servers.iter().map(server).collect() }
    }

    #[test]
    fn servers_stay_with_their_upstream() {
        let upstreams = vec![upstream("b", &[("y", 1), ("x", 2)]), upstream("a", &[("z", 1)])];
        let change = Snapshot { upstreams, ..Snapshot::default() };
        let names = |sort| rows(&change, sort).iter().map(|row| row.name.clone()).collect::<String>();
        assert_eq!(names(Sort::Name), "azbxy");
        assert_eq!(names(Sort::Requests), "bxyaz");
        assert_eq!(names(Sort::Faults), "azbxy");
    }
}
