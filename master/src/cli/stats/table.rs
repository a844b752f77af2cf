//! The snapshot as tables for a terminal of 80 columns.

#![forbid(unsafe_code)]

use shared::health;
use shared::ident::Slot;
use shared::stats::{
    Condition, Distribution, ListenerTotals, Object, Process, RouteTotals, Server, ServerTotals, Snapshot, Upstream,
    UpstreamTotals,
};

use super::View;
use super::quantity::{self, age, bytes, count, latency};

const COLUMNS: usize = 80;

/// The page; with an interval its counters are rates and its latencies those of the interval.
pub(super) fn render(view: &View) -> String {
    let shown = Shown {
        now: view.recent.as_ref().map_or(&view.now, |recent| &recent.change),
        seconds: view.recent.as_ref().map(|recent| recent.seconds),
        by_worker: view.by_worker,
    };
    let mut page = head(&view.now);
    if let Some(seconds) = shown.seconds {
        page.push_str(&format!("counters are per second, over the last {seconds:.1}s\n"));
    }
    for table in [Some(shown.totals()), shown.workers(), shown.listeners(), shown.routes(), shown.upstreams()] {
        table.filter(|table| table.rows.len() > 1).into_iter().for_each(|table| table.print(&mut page));
    }
    page
}

/// One or two lines that say how the proxy is.
pub(crate) fn head(now: &Snapshot) -> String {
    let condition = now.condition();
    let (serving, workers) = (now.serving(), now.workers().filter(|worker| worker.is_alive));
    let mut head = format!("sluice {}", condition.name());
    if condition != Condition::Stopped {
        let up = age(now.taken_ns.saturating_sub(now.created_ns));
        head += &format!(", generation {}, {serving} of {} workers serving, up {up}", now.generation, workers.count());
    }
    if now.is_supervised {
        head += &format!(", master {}", now.master.pid);
    }
    head.push('\n');
    if let Some(verdict) = &now.verdict {
        let outcome = if verdict.is_accepted { "accepted" } else { "refused" };
        let ago = age(now.taken_ns.saturating_sub(verdict.at_ns));
        head += &format!("generation {} {outcome} {ago} ago: {}", verdict.generation, verdict.text);
        head.truncate(head.trim_end_matches([' ', ':']).len());
        head.push('\n');
    }
    head
}

struct Shown<'s> {
    now: &'s Snapshot,
    seconds: Option<f64>,
    by_worker: bool,
}

impl Shown<'_> {
    fn totals(&self) -> Table {
        let totals = &self.now.totals;
        let mut table = Table::new(
            "TOTAL",
            &["requests", "active", "conns", "idle", "accepted", "evicted", "refused", "panics", "fds"],
        );
        table.row(
            "all processes",
            [
                self.count(totals.requests),
                count(totals.requests_active),
                count(totals.connections_active),
                count(totals.connections_idle),
                self.count(totals.accepted),
                self.count(totals.idle_evicted),
                self.count(totals.accept_failures),
                self.count(totals.panics),
                count(totals.descriptors),
            ],
        );
        table
    }

    fn workers(&self) -> Option<Table> {
        let mut table =
            Table::new("PROCESS", &["state", "pid", "gen", "requests", "active", "conns", "idle", "fds", "seen"]);
        for process in &self.now.processes {
            let totals = &process.totals;
            table.row(
                &label(process),
                [
                    self.now.status(process).to_owned(),
                    process.id.pid.to_string(),
                    process.generation.to_string(),
                    self.count(totals.requests),
                    count(totals.requests_active),
                    count(totals.connections_active),
                    count(totals.connections_idle),
                    count(totals.descriptors),
                    age(self.now.taken_ns.saturating_sub(process.heartbeat_ns)),
                ],
            );
        }
        self.by_worker.then_some(table)
    }

    fn listeners(&self) -> Option<Table> {
        let mut table = Table::new("LISTENER", &["requests", "conns", "accepted", "bad", "in", "out"]);
        for listener in &self.now.listeners {
            self.rows(&mut table, "", listener, |_, totals: &ListenerTotals| {
                [
                    self.count(totals.requests),
                    count(totals.active),
                    self.count(totals.accepted),
                    self.count(totals.bad_requests),
                    self.bytes(totals.bytes_in),
                    self.bytes(totals.bytes_out),
                ]
            });
        }
        Some(table)
    }

    fn routes(&self) -> Option<Table> {
        let mut table = Table::new("ROUTE", &["requests", "2xx", "3xx", "4xx", "5xx", "gone", "out", "p50", "p99"]);
        for route in &self.now.routes {
            self.rows(&mut table, "", route, |_, totals: &RouteTotals| {
                let [_, s2, s3, s4, s5] = totals.status.map(|count| self.count(count));
                let [p50, p99] = percentiles(&totals.latency);
                [
                    self.count(totals.requests),
                    s2,
                    s3,
                    s4,
                    s5,
                    self.count(totals.aborted),
                    self.bytes(totals.bytes_out),
                    p50,
                    p99,
                ]
            });
        }
        Some(table)
    }

    fn upstreams(&self) -> Option<Table> {
        let mut table =
            Table::new("UPSTREAM", &["requests", "active", "idle", "faults", "retries", "p50", "p99", "health"]);
        for upstream in &self.now.upstreams {
            self.rows(&mut table, "", &upstream.object, |slot, totals: &UpstreamTotals| {
                let [p50, p99] = percentiles(&totals.latency);
                let up = upstream.servers.iter().filter(|server| health::is_up(server.health)).count();
                [
                    self.count(totals.requests),
                    count(sum(upstream, slot, |totals| totals.in_flight)),
                    count(sum(upstream, slot, |totals| totals.idle)),
                    self.count(totals.faults),
                    self.count(totals.retries),
                    p50,
                    p99,
                    slot.map_or_else(|| format!("{up}/{} up", upstream.servers.len()), |_| String::new()),
                ]
            });
            for server in &upstream.servers {
                let health = if health::is_up(server.health) { "up" } else { "down" };
                self.rows(&mut table, "  ", &server.object, |slot, totals: &ServerTotals| {
                    let [p50, p99] = percentiles(&totals.latency);
                    [
                        self.count(totals.requests),
                        count(totals.in_flight),
                        count(totals.idle),
                        self.count(totals.faults),
                        String::new(),
                        p50,
                        p99,
                        slot.map_or(health, |_| "").to_owned(),
                    ]
                });
            }
        }
        Some(table)
    }

    /// The row of an object, and one for each worker's share if asked for.
    fn rows<T, const N: usize>(
        &self,
        table: &mut Table,
        indent: &str,
        object: &Object<T>,
        cells: impl Fn(Option<Slot>, &T) -> [String; N],
    ) {
        table.row(&format!("{indent}{}", object.name), cells(None, &object.totals));
        for (slot, totals) in object.by_slot.iter().filter(|_| self.by_worker) {
            let process = self.now.processes.iter().find(|process| process.slot == *slot);
            let label = process.map_or_else(|| "ended".to_owned(), label);
            table.row(&format!("{indent}  {label}"), cells(Some(*slot), totals));
        }
    }

    fn count(&self, number: u64) -> String {
        self.seconds.map_or_else(|| count(number), |seconds| quantity::rate(number, seconds))
    }

    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn bytes(&self, number: u64) -> String {
        bytes(self.seconds.map_or(number, |seconds| (number as f64 / seconds) as u64))
    }
}

/// What a process is called in tables.
pub(crate) fn label(process: &Process) -> String {
    match (process.role, process.seat) {
        (Some(role), Some(seat)) => format!("{} {seat}", role.name()),
        (Some(role), None) => role.name().to_owned(),
        (None, _) => "unknown".to_owned(),
    }
}

/// What the servers of an upstream have of something, together or in one slot.
fn sum(upstream: &Upstream, slot: Option<Slot>, of: impl Fn(&ServerTotals) -> u64) -> u64 {
    let of_server = |server: &Server| match slot {
        None => of(&server.object.totals),
        Some(slot) => server.object.by_slot.iter().find(|(at, _)| *at == slot).map_or(0, |(_, totals)| of(totals)),
    };
    upstream.servers.iter().map(of_server).fold(0, u64::saturating_add)
}

fn percentiles(distribution: &Distribution) -> [String; 2] {
    [0.5, 0.99].map(|share| latency(distribution.quantile_ns(share)))
}

/// A name, and columns to its right. A name that leaves no room for them has a line of its own.
struct Table {
    rows: Vec<(String, Vec<String>)>,
}

impl Table {
    fn new(title: &str, columns: &[&str]) -> Table {
        Table { rows: vec![(title.to_owned(), columns.iter().map(ToString::to_string).collect())] }
    }

    fn row<const N: usize>(&mut self, name: &str, cells: [String; N]) {
        self.rows.push((name.to_owned(), cells.into()));
    }

    fn print(&self, page: &mut String) {
        let columns = self.rows[0].1.len();
        let width = |column: usize| self.rows.iter().map(|(_, cells)| cells[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let room = COLUMNS.saturating_sub(widths.iter().map(|width| width + 2).sum());
        page.push('\n');
        for (name, cells) in &self.rows {
            let mut name = name.as_str();
            if name.chars().count() > room {
                page.extend([name, "\n"]);
                name = "";
            }
            page.push_str(&format!("{name:<room$}"));
            for (cell, width) in cells.iter().zip(&widths) {
                page.push_str(&format!("  {cell:>width$}"));
            }
            page.truncate(page.trim_end_matches(' ').len());
            page.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::ident::{Generation, ProcessId, Seat};
    use shared::stats::ProcessTotals;
    use shared::zone::Role;

    use super::super::Recent;
    use super::*;

    /// A proxy with large numbers and long names.
    fn busy() -> Snapshot {
        let by_slot = |totals: &ServerTotals| vec![(Slot(0), totals.clone()), (Slot(9), totals.clone())];
        let much = 987_654_321_012;
        let server = ServerTotals { requests: much, in_flight: much, faults: much, ..ServerTotals::default() };
        let route = RouteTotals { requests: much, status: [much; 5], bytes_out: much, ..RouteTotals::default() };
        let process = Process {
            slot: Slot(0),
            id: ProcessId { pid: 4_194_304, start_time: 1, incarnation: 1 },
            is_alive: true,
            role: Some(Role::Worker),
            seat: Some(Seat(127)),
            generation: Generation(12_345),
            state: Some(shared::stats::State::Serving),
            heartbeat_ns: 400_000_000_000_000,
            drain_due_ns: None,
            totals: ProcessTotals { requests: much, descriptors: much, ..ProcessTotals::default() },
        };
        let named = |name: &str| name.repeat(30);
        Snapshot {
            is_supervised: true,
            taken_ns: 400_000_000_000_000,
            processes: vec![process],
            listeners: vec![Object { name: "[::1]:80".into(), totals: ListenerTotals::default(), by_slot: vec![] }],
            routes: vec![Object { name: named("route"), totals: route, by_slot: vec![] }],
            upstreams: vec![Upstream {
                object: Object { name: "app".into(), totals: UpstreamTotals::default(), by_slot: vec![] },
                servers: vec![Server {
                    object: Object { name: named("10.0"), by_slot: by_slot(&server), totals: server },
                    health: health::INITIAL,
                }],
            }],
            ..Snapshot::default()
        }
    }

    #[test]
    fn figures_stay_within_80_columns_and_names_stay_whole() {
        let recent = || Some(Recent { change: busy(), seconds: 0.3 });
        for (recent, by_worker) in [(None, false), (None, true), (recent(), true)] {
            let page = render(&View { now: busy(), recent, by_worker });
            let too_long = page.lines().find(|line| line.chars().count() > COLUMNS && line.contains("  "));
            assert_eq!(too_long.filter(|line| !line.starts_with("  10.0")), None);
            for name in ["route".repeat(30), "10.0".repeat(30)] {
                assert!(page.lines().any(|line| line.trim() == name), "{page}");
            }
            assert_eq!(page.contains("worker 127"), by_worker);
            assert_eq!(page.contains("ended"), by_worker);
        }
    }

    #[test]
    fn the_head_says_how_things_stand() {
        let stopped = Snapshot { is_supervised: false, processes: vec![], ..busy() };
        assert_eq!(head(&stopped), "sluice stopped\n");
        assert_eq!(head(&busy()), "sluice running, generation 0, 1 of 1 workers serving, up 4d 15h, master 0\n");
    }
}
