//! A snapshot of a zone, taken without the help of any process: its file is read, never mapped.
//!
//! The file is input. Offsets, counts, lengths and indexes in it are checked before they are used, memory is taken in
//! proportion to what is there, and a name comes out free of control characters.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

use super::reader;
use crate::ident::{Generation, ProcessId, Seat, Slot, boot_id};
use crate::zone::{
    Damage, ListenerTotals, ProcessTotals, Role, RouteTotals, STALE_AFTER_NS, ServerTotals, State, Totals,
    UpstreamTotals, ZoneError,
};

/// All that a zone said at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Minor version of the layout; what a version lacks reads as zero.
    pub minor: u32,
    /// The master that made the zone, or took it over; its incarnation is 0.
    pub master: ProcessId,
    /// Whether that master still runs.
    pub is_supervised: bool,
    /// When the zone was made, monotonic nanoseconds.
    pub created_ns: u64,
    /// When the snapshot was taken, monotonic nanoseconds.
    pub taken_ns: u64,
    /// The generation that counts.
    pub generation: Generation,
    /// Whether another master has taken over.
    pub is_retired: bool,
    /// How the last attempt to load a configuration ended.
    pub verdict: Option<Verdict>,
    /// The requests that are refused because others like them have killed workers.
    pub quarantined: Vec<Quarantined>,
    /// How many processes may be in it at once.
    pub slots: u64,
    /// Who is in a slot.
    pub processes: Vec<Process>,
    /// The sum over all slots, those of processes long gone included.
    pub totals: ProcessTotals,
    /// Listeners by address.
    pub listeners: Vec<Object<ListenerTotals>>,
    /// Routes by name.
    pub routes: Vec<Object<RouteTotals>>,
    /// Upstreams by name.
    pub upstreams: Vec<Upstream>,
}

/// The state of a proxy as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// A master, and workers that serve.
    Running,
    /// A master, but no worker that serves.
    Unready,
    /// Workers without a master.
    Orphaned,
    /// Another master has taken over.
    Retired,
    /// Nobody is left.
    Stopped,
}

impl Condition {
    /// As it is shown.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Condition::Running => "running",
            Condition::Unready => "unready",
            Condition::Orphaned => "orphaned",
            Condition::Retired => "retired",
            Condition::Stopped => "stopped",
        }
    }
}

/// How an attempt to load a configuration ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The generation it would have been, or became.
    pub generation: Generation,
    /// Whether it was taken.
    pub is_accepted: bool,
    /// When, monotonic nanoseconds.
    pub at_ns: u64,
    /// Why, or what changed.
    pub text: String,
}

/// A request in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// What tells it from others.
    pub fingerprint: u64,
    /// The name of its route.
    pub route: String,
    /// Its method.
    pub method: String,
    /// Its path, without query, cut at 64 bytes.
    pub path: String,
    /// Whether the path is longer than that.
    pub is_cut: bool,
    /// When it is taken again, monotonic nanoseconds.
    pub until_ns: u64,
}

/// A process with a slot.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its slot.
    pub slot: Slot,
    /// Who it is; pid 0 while it is being forked.
    pub id: ProcessId,
    /// Whether it still runs. A dead one stays in its slot until a master has reaped it.
    pub is_alive: bool,
    /// What it is for; `None` for a role of a later version.
    pub role: Option<Role>,
    /// A worker's seat.
    pub seat: Option<Seat>,
    /// The generation it began with.
    pub generation: Generation,
    /// What it is doing; `None` for a state of a later version.
    pub state: Option<State>,
    /// When its loop last turned, monotonic nanoseconds.
    pub heartbeat_ns: u64,
    /// When it is stopped if it has not finished draining, monotonic nanoseconds; `None` while it does not drain.
    pub drain_due_ns: Option<u64>,
    /// Its own numbers, and those of its predecessors in the slot.
    pub totals: ProcessTotals,
}

/// Something named, with its numbers.
#[derive(Debug, Clone)]
pub struct Object<T> {
    /// Its name.
    pub name: String,
    /// The sum over all slots.
    pub totals: T,
    /// The slots that have something to say about it.
    pub by_slot: Vec<(Slot, T)>,
}

/// An upstream and its servers.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Itself.
    pub object: Object<UpstreamTotals>,
    /// Its servers, in the order of their first publication.
    pub servers: Vec<Server>,
}

/// A server.
#[derive(Debug, Clone)]
pub struct Server {
    /// Itself; its name is its address.
    pub object: Object<ServerTotals>,
    /// Its [health](crate::health) word.
    pub health: u64,
}

impl Snapshot {
    /// Takes a snapshot of the zone file `path`.
    ///
    /// # Errors
    /// When there is no such file, it may not be read, or is not a zone that this version can read.
    pub fn read(path: &Path) -> Result<Snapshot, ZoneError> {
        let file = File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ZoneError::Absent(path.to_owned()),
            _ => ZoneError::Io { doing: "open", path: path.to_owned(), source },
        })?;
        let (mut snapshot, boot) = reader::take(&file).map_err(|damage| damage.of(path))?;
        // A pid of another boot is somebody else's now.
        if boot_id().is_ok_and(|now| now == boot) {
            snapshot.is_supervised = snapshot.master.is_alive();
            for process in &mut snapshot.processes {
                process.is_alive = process.id.is_alive();
            }
        }
        Ok(snapshot)
    }

    /// What has happened since `earlier`: counters and latencies are differences, the rest is as it is now. When the
    /// zone was made anew in between, all of it happened since.
    #[must_use]
    pub fn since(&self, earlier: &Snapshot) -> Snapshot {
        let nothing = Snapshot::default();
        let earlier = if earlier.created_ns == self.created_ns { earlier } else { &nothing };
        let mut change = self.clone();
        change.totals = self.totals.since(&earlier.totals);
        for process in &mut change.processes {
            if let Some(before) = earlier.processes.iter().find(|before| before.slot == process.slot) {
                process.totals = process.totals.since(&before.totals);
            }
        }
        subtract(&mut change.listeners, &earlier.listeners);
        subtract(&mut change.routes, &earlier.routes);
        for upstream in &mut change.upstreams {
            let before = earlier.upstreams.iter().find(|before| before.object.name == upstream.object.name);
            if let Some(before) = before {
                upstream.object.subtract(&before.object);
                for server in &mut upstream.servers {
                    if let Some(before) = before.servers.iter().find(|before| before.object.name == server.object.name)
                    {
                        server.object.subtract(&before.object);
                    }
                }
            }
        }
        change
    }

    /// The highest generation that anything here names: the next one has a higher number.
    #[must_use]
    pub fn last_generation(&self) -> u64 {
        let tried = self.verdict.iter().map(|verdict| verdict.generation);
        let started = self.processes.iter().map(|process| process.generation);
        tried.chain(started).chain([self.generation]).map(|generation| generation.0).max().unwrap_or(0)
    }

    /// The state of the proxy as a whole.
    #[must_use]
    pub fn condition(&self) -> Condition {
        let has_worker = self.workers().any(|worker| worker.is_alive);
        let serves = self.serving() > 0;
        match (self.is_supervised, has_worker) {
            _ if self.is_retired => Condition::Retired,
            (false, false) => Condition::Stopped,
            (false, true) => Condition::Orphaned,
            (true, _) if serves => Condition::Running,
            (true, _) => Condition::Unready,
        }
    }

    /// How many workers serve: they say so, and their loops turn.
    #[must_use]
    pub fn serving(&self) -> usize {
        let serves = |worker: &&Process| worker.state == Some(State::Serving) && !self.is_stalled(worker);
        self.workers().filter(|worker| worker.is_alive).filter(serves).count()
    }

    /// What a process does, as it is shown: its state, or that it is `dead`, or that its loop is `stalled`.
    #[must_use]
    pub fn status(&self, process: &Process) -> &'static str {
        match process.state {
            _ if !process.is_alive => "dead",
            None => "unknown",
            Some(State::Serving | State::Draining) if self.is_stalled(process) => "stalled",
            Some(state) => state.name(),
        }
    }

    fn is_stalled(&self, process: &Process) -> bool {
        self.taken_ns.saturating_sub(process.heartbeat_ns) >= STALE_AFTER_NS
    }

    /// The processes that are workers.
    pub fn workers(&self) -> impl Iterator<Item = &Process> + Clone {
        self.processes.iter().filter(|process| process.role == Some(Role::Worker))
    }

    /// Reads a zone from memory; nobody in it counts as alive.
    ///
    /// # Errors
    /// When the bytes are not a zone that this version can read.
    pub fn parse(bytes: &[u8]) -> Result<Snapshot, Damage> {
        reader::take(&bytes).map(|(snapshot, _)| snapshot)
    }
}

impl<T: Totals> Object<T> {
    fn subtract(&mut self, earlier: &Object<T>) {
        self.totals = self.totals.since(&earlier.totals);
        for (slot, totals) in &mut self.by_slot {
            if let Some((_, before)) = earlier.by_slot.iter().find(|(before, _)| before == slot) {
                *totals = totals.since(before);
            }
        }
    }
}

fn subtract<T: Totals>(objects: &mut [Object<T>], earlier: &[Object<T>]) {
    for object in objects {
        if let Some(before) = earlier.iter().find(|before| before.name == object.name) {
            object.subtract(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str, requests: u64) -> Object<RouteTotals> {
        let totals = RouteTotals { requests, ..RouteTotals::default() };
        Object { name: name.into(), by_slot: vec![(Slot(0), totals.clone())], totals }
    }

    #[test]
    fn differences_go_by_name_and_by_zone() {
        let earlier = Snapshot { created_ns: 1, routes: vec![route("a", 3), route("b", 4)], ..Snapshot::default() };
        let now = Snapshot { created_ns: 1, routes: vec![route("b", 9), route("c", 2)], ..Snapshot::default() };
        let requests = |snapshot: &Snapshot| -> Vec<(u64, u64)> {
            snapshot.routes.iter().map(|route| (route.totals.requests, route.by_slot[0].1.requests)).collect()
        };
        assert_eq!(requests(&now.since(&earlier)), [(5, 5), (2, 2)]);
        let anew = Snapshot { created_ns: 2, ..now };
        assert_eq!(requests(&anew.since(&earlier)), [(9, 9), (2, 2)]);
    }

    #[test]
    fn condition() {
        let worker = |is_alive, state| Process {
            slot: Slot(0),
            id: ProcessId::default(),
            is_alive,
            role: Some(Role::Worker),
            seat: None,
            generation: Generation(1),
            state: Some(state),
            heartbeat_ns: 0,
            drain_due_ns: None,
            totals: ProcessTotals::default(),
        };
        for (is_supervised, is_retired, processes, expected) in [
            (true, false, vec![], Condition::Unready),
            (true, false, vec![worker(true, State::Starting)], Condition::Unready),
            (true, false, vec![worker(true, State::Starting), worker(true, State::Serving)], Condition::Running),
            (true, false, vec![worker(false, State::Serving)], Condition::Unready),
            (false, false, vec![worker(true, State::Serving)], Condition::Orphaned),
            (false, false, vec![worker(false, State::Serving)], Condition::Stopped),
            (false, true, vec![worker(true, State::Draining)], Condition::Retired),
        ] {
            let mut snapshot = Snapshot { is_supervised, is_retired, processes, ..Snapshot::default() };
            assert_eq!(snapshot.condition(), expected);
            snapshot.taken_ns = STALE_AFTER_NS;
            assert_eq!(snapshot.serving(), 0, "a loop that does not turn serves nobody");
        }
    }
}
