//! `sluice drain`: which old workers are still there, which connections hold them, and what will end those.
//!
//! All is read from the zone, so that a worker that does not answer is shown as well.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;

use clap::Args;
use nix::unistd::{SysconfVar, sysconf};
use serde_json::{Value, json};
use shared::clock::SECOND_NS;
use shared::ident::Generation;
use shared::stats::{Connection, Process, Snapshot, State};
use shared::zone::{Phase, ZoneError};

use super::stats::quantity::{age, bytes};
use super::{complain, exit, order, print};
use crate::requests::Request;
use crate::runtime_dir::RuntimeDir;

/// What `sluice drain` is asked for.
#[derive(Debug, Clone, Args)]
pub(crate) struct DrainArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show the connections of the workers that serve, too
    #[arg(long)]
    all: bool,
    /// Close the connections of old workers on which nothing happens; with --all those of every worker
    #[arg(long, conflicts_with = "json")]
    close_idle: bool,
    /// Stop old workers at once, whatever they have left to do
    #[arg(long, conflicts_with_all = ["json", "all", "close_idle"])]
    kill: bool,
}

/// Tells what holds old workers of the proxy of `dir`, or has the master do something about it.
pub(crate) fn run(args: &DrainArgs, dir: &RuntimeDir) -> u8 {
    if args.close_idle {
        return order(dir, &Request::CloseIdle { all: args.all });
    }
    if args.kill {
        return order(dir, &Request::StopOld);
    }
    let read = || Ok((Snapshot::read(&dir.zone())?, Connection::read_all(&dir.zone())?));
    let (now, connections) = match read() {
        Ok(read) => read,
        Err(error @ ZoneError::Absent(_)) => {
            complain(&format!("no proxy runs in {}: {error}", dir.path().display()));
            return exit::ABSENT;
        }
        Err(error) => return complain(&error.to_string()),
    };
    let drain = Drain { cohorts: cohorts(&now, connections, args.all), now };
    print(if args.json { drain.json().to_string() } else { drain.table() }.trim_end())
}

struct Drain {
    now: Snapshot,
    /// By generation, oldest first.
    cohorts: BTreeMap<Generation, Vec<Worker>>,
}

/// A worker and its connections.
struct Worker {
    process: Process,
    connections: Vec<Connection>,
    resident_bytes: Option<u64>,
    age_ns: Option<u64>,
}

/// What ends a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
struct End {
    /// What does, when nothing unforeseen happens.
    by: &'static str,
    /// When that is, if it is known, in nanoseconds from now.
    in_ns: Option<u64>,
    /// When the worker is stopped, whatever it has left to do, in nanoseconds from now.
    stopped_in_ns: Option<u64>,
}

/// The living workers that are old, or all, with what holds them.
fn cohorts(now: &Snapshot, connections: Vec<Connection>, all: bool) -> BTreeMap<Generation, Vec<Worker>> {
    let mut of_slot: BTreeMap<_, Vec<Connection>> = BTreeMap::new();
    for connection in connections {
        of_slot.entry(connection.slot).or_default().push(connection);
    }
    let mut cohorts: BTreeMap<_, Vec<Worker>> = BTreeMap::new();
    for process in now.workers().filter(|worker| worker.is_alive && (all || is_old(worker, now))) {
        let mut connections = of_slot.remove(&process.slot).unwrap_or_default();
        connections.sort_by_key(|connection| connection.since_ns);
        let (pid, process) = (process.id.pid, process.clone());
        let (resident_bytes, age_ns) = (resident_bytes(pid), age_ns(process.id.start_time));
        cohorts.entry(process.generation).or_default().push(Worker { process, connections, resident_bytes, age_ns });
    }
    cohorts
}

/// Whether a worker is on its way out: it says so, or another configuration than its own is served.
fn is_old(worker: &Process, now: &Snapshot) -> bool {
    matches!(worker.state, Some(State::Draining | State::Exiting)) || worker.generation < now.generation
}

/// What ends a connection that has carried `requests`, and by itself ends at `due`, if its worker is stopped at
/// `drain_due`; times are monotonic nanoseconds.
fn end_of(phase: Phase, requests: u64, due: Option<u64>, drain_due: Option<u64>, now: u64) -> End {
    let from_now = |at: u64| at.saturating_sub(now);
    let drains = drain_due.is_some();
    let (by, is_timed) = match phase {
        Phase::Idle if requests == 0 => ("client_head", true),
        Phase::Idle if drains => ("idle", true),
        Phase::Idle => ("keep_alive", true),
        Phase::Head => ("client_head, or its answer", true),
        Phase::Tunnel => ("tunnel_idle", true),
        Phase::Lingering => ("linger", true),
        Phase::Decided | Phase::Body | Phase::Waiting | Phase::Sending if drains => ("its answer, then close", false),
        Phase::Decided | Phase::Body | Phase::Waiting | Phase::Sending => ("its answer", false),
    };
    End { by, in_ns: due.filter(|_| is_timed).map(from_now), stopped_in_ns: drain_due.map(from_now) }
}

impl End {
    fn text(&self) -> String {
        let mut text = self.by.to_owned();
        match (self.in_ns, self.stopped_in_ns) {
            // The worker's end comes first.
            (Some(due), Some(stop)) if stop < due => return format!("shutdown_timeout in {}", age(stop)),
            (Some(due), _) => text += &format!(" in {}", age(due)),
            (None, Some(stop)) => text += &format!("; shutdown_timeout in {}", age(stop)),
            (None, None) => {}
        }
        text
    }
}

impl Worker {
    /// How many connections have no record.
    fn unrecorded(&self) -> u64 {
        let totals = &self.process.totals;
        let open = totals.connections_active.saturating_add(totals.connections_idle);
        open.saturating_sub(self.connections.len() as u64)
    }

    fn end_of(&self, connection: &Connection, now: u64) -> End {
        end_of(connection.phase, connection.requests, connection.due_ns, self.process.drain_due_ns, now)
    }

    fn line(&self, now: &Snapshot) -> String {
        let seat = self.process.seat.map_or(String::new(), |seat| format!(" of seat {seat}"));
        let mut line = format!("worker {}{seat}: {}", self.process.id.pid, now.status(&self.process));
        if let Some(since) = self.age_ns {
            line += &format!(", up {}", age(since));
        }
        if let Some(resident) = self.resident_bytes {
            line += &format!(", {} resident", bytes(resident));
        }
        if let Some(due) = self.process.drain_due_ns {
            line += &format!(", stopped in {}", age(due.saturating_sub(now.taken_ns)));
        }
        line += &match self.connections.len() {
            1 => ", 1 connection".to_owned(),
            count => format!(", {count} connections"),
        };
        match self.unrecorded() {
            0 => {}
            count => line += &format!(" and {count} without a record"),
        }
        line
    }

    fn rows(&self, now: u64) -> Vec<[String; 9]> {
        let head = ["CLIENT", "ROUTE", "STATE", "AGE", "LAST", "IN", "OUT", "ENDS BY", "REQUEST"].map(str::to_owned);
        let since = |at: u64| age(now.saturating_sub(at));
        let row = |connection: &Connection| {
            [
                connection.client_text(),
                connection.route.clone().unwrap_or_else(|| "-".into()),
                connection.phase.name().to_owned(),
                since(connection.since_ns),
                since(connection.moved_ns),
                bytes(connection.received),
                bytes(connection.sent),
                self.end_of(connection, now).text(),
                connection.request_line(),
            ]
        };
        std::iter::once(head).chain(self.connections.iter().map(row)).collect()
    }

    fn json(&self, now: &Snapshot) -> Value {
        let seconds = |nanoseconds: u64| nanoseconds / SECOND_NS;
        let since = |at: u64| seconds(now.taken_ns.saturating_sub(at));
        let connection = |connection: &Connection| {
            let end = self.end_of(connection, now.taken_ns);
            json!({
                "client": connection.client_text(),
                "listener": connection.listener,
                "protocol": connection.protocol,
                "state": connection.phase.name(),
                "route": connection.route,
                "upstream": connection.server.as_ref().map(|(upstream, _)| upstream),
                "server": connection.server.as_ref().map(|(_, server)| server),
                "method": connection.method,
                "path": connection.path,
                "cut": connection.is_cut,
                "requests": connection.requests,
                "age_seconds": since(connection.since_ns),
                "request_age_seconds": (connection.begun_ns != 0).then(|| since(connection.begun_ns)),
                "last_activity_seconds": since(connection.moved_ns),
                "bytes_in": connection.received,
                "bytes_out": connection.sent,
                "ends_by": end.by,
                "ends_in_seconds": end.in_ns.map(seconds),
                "stopped_in_seconds": end.stopped_in_ns.map(seconds),
                "torn": connection.is_torn,
            })
        };
        let connections: Vec<Value> = self.connections.iter().map(connection).collect();
        json!({
            "pid": self.process.id.pid,
            "seat": self.process.seat.map(|seat| seat.0),
            "state": now.status(&self.process),
            "age_seconds": self.age_ns.map(seconds),
            "resident_bytes": self.resident_bytes,
            "stopped_in_seconds": self.process.drain_due_ns.map(|due| seconds(due.saturating_sub(now.taken_ns))),
            "connections": connections,
            "unrecorded": self.unrecorded(),
        })
    }
}

impl Drain {
    fn table(&self) -> String {
        if self.cohorts.is_empty() {
            return "no old worker is left".into();
        }
        let mut page = String::new();
        for (generation, workers) in &self.cohorts {
            let is_served = if *generation == self.now.generation { ", which is served" } else { "" };
            page += &format!("generation {generation}{is_served}\n");
            for worker in workers {
                page += &format!("{}\n", worker.line(&self.now));
                if !worker.connections.is_empty() {
                    page += &columns(&worker.rows(self.now.taken_ns));
                }
            }
        }
        page
    }

    fn json(&self) -> Value {
        let cohorts: Vec<Value> = self
            .cohorts
            .iter()
            .map(|(generation, workers)| {
                let workers: Vec<Value> = workers.iter().map(|worker| worker.json(&self.now)).collect();
                json!({"generation": generation.0, "workers": workers})
            })
            .collect();
        json!({"generation": self.now.generation.0, "cohorts": cohorts})
    }
}

/// Rows in columns, indented; the last column is as wide as it likes.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("  {}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// How much memory of the machine a process has.
fn resident_bytes(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib: u64 =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok())?;
    Some(kib * 1024)
}

/// How long ago a process was started, by its start time in clock ticks since boot.
fn age_ns(start_time: u64) -> Option<u64> {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok()??.cast_unsigned();
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let seconds: u64 = uptime.split('.').next()?.parse().ok()?;
    Some(seconds.saturating_sub(start_time.checked_div(per_second)?) * SECOND_NS)
}

#[cfg(test)]
mod tests {
    use shared::ident::{ProcessId, Seat, Slot};
    use shared::stats::ProcessTotals;
    use shared::zone::Role;

    use super::*;

    const NOW: u64 = 1_000 * SECOND_NS;

    fn worker(generation: u64, state: State, drain_due_ns: Option<u64>) -> Process {
        Process {
            slot: Slot(0),
            id: ProcessId::default(),
            is_alive: true,
            role: Some(Role::Worker),
            seat: Some(Seat(0)),
            generation: Generation(generation),
            state: Some(state),
            heartbeat_ns: NOW,
            drain_due_ns,
            totals: ProcessTotals::default(),
        }
    }

    #[test]
    fn what_ends_a_connection() {
        let at = |seconds: u64| Some(NOW + seconds * SECOND_NS);
        let (serving, draining) = (None, at(252));
        for (drain_due, phase, requests, due, expected) in [
            (serving, Phase::Idle, 3, at(75), "keep_alive in 1m 15s"),
            (serving, Phase::Idle, 0, at(15), "client_head in 15s"),
            (serving, Phase::Waiting, 1, None, "its answer"),
            (serving, Phase::Tunnel, 1, at(3600), "tunnel_idle in 1h 00m"),
            (draining, Phase::Idle, 3, at(1), "idle in 1s"),
            (draining, Phase::Waiting, 1, at(9), "its answer, then close; shutdown_timeout in 4m 12s"),
            (draining, Phase::Sending, 1, None, "its answer, then close; shutdown_timeout in 4m 12s"),
            (draining, Phase::Tunnel, 1, at(3600), "shutdown_timeout in 4m 12s"),
            (draining, Phase::Tunnel, 1, at(60), "tunnel_idle in 1m 0s"),
            (draining, Phase::Lingering, 1, at(10), "linger in 10s"),
            // Both are over: the worker is about to see to it.
            (draining, Phase::Idle, 1, Some(1), "idle in 0s"),
        ] {
            let end = end_of(phase, requests, due, drain_due, NOW);
            assert_eq!(end.text(), expected, "{phase:?}");
        }
    }

    #[test]
    fn old_workers_drain_or_are_of_an_earlier_generation() {
        let now = Snapshot { generation: Generation(2), ..Snapshot::default() };
        for (worker, expected) in [
            (worker(2, State::Serving, None), false),
            (worker(3, State::Starting, None), false),
            (worker(1, State::Serving, None), true),
            (worker(2, State::Draining, Some(1)), true),
        ] {
            assert_eq!(is_old(&worker, &now), expected, "{worker:?}");
        }
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [["A", "B"], ["long", "x"], ["é", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(columns(&rows), "  A     B\n  long  x\n  é\n");
    }

    #[test]
    fn this_process_has_memory_and_an_age() {
        let me = ProcessId::current(0).unwrap();
        assert!(resident_bytes(me.pid).unwrap() > 4096);
        assert!(age_ns(me.start_time).unwrap() < 24 * 3600 * SECOND_NS);
        assert_eq!(resident_bytes(0), None);
    }
}
