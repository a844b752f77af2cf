//! The worker as a whole: it starts, obeys its master, keeps house, and ends.

#![forbid(unsafe_code)]

mod change;
mod orphaned;

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use conf::model::{Config, Listener};
use mio::Interest;
use mio::unix::SourceFd;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use shared::channel::{Channel, Command, Report};
use shared::ident::{Seat, Slot};
use shared::log::Target;
use shared::stats::{ProcessCells, State};
use shared::zone::Zone;
use slog::{Logger, error, info, warn};

use crate::downstream::{Downstream, Gate};
use crate::helper::Helper;
use crate::observe::access::AccessLog;
use crate::observe::flight::Records;
use crate::runtime::clock::{self, MILLISECOND};
use crate::runtime::reactor::{self, Parked, Registration};
use crate::runtime::timer::Timer;
use crate::runtime::{buffer, executor, net};
use crate::site::{Blueprint, Site};
use crate::upstream::Servers;
use crate::{Start, exit, stack};
use change::{Incoming, Papers};

/// How often the worker shows that it lives and keeps house, in nanoseconds. Another one takes over the sockets of a
/// worker that has not for four times as long.
const BEAT: u64 = 250 * MILLISECOND;
/// How many beats lie between two chores that cost more than a few loads.
const BEATS_PER_CHORE: u64 = 4;
/// How long the last lines of the access log are waited for at the end.
const LOG_FINISH: Duration = Duration::from_secs(5);

/// One worker.
pub(crate) struct Worker {
    seat: Seat,
    slot: Slot,
    zone: &'static Zone,
    process: ProcessCells,
    /// To the master, as long as there is one.
    line: RefCell<Rc<Line>>,
    /// Where another master comes to when this one is gone.
    call: UnixListener,
    call_ready: Registration,
    /// Who may be a master, beside root.
    owner: u32,
    /// Its master is not the proxy's yet: without it, it ends.
    is_on_trial: Cell<bool>,
    /// SIGTERM, when someone sends it to this process: it is obeyed as the master's word is, and nothing is lost that
    /// was already gathered.
    signals: SignalFd,
    signals_ready: Registration,
    downstream: Rc<Downstream>,
    gates: RefCell<Vec<Gate>>,
    servers: Rc<Servers>,
    helper: RefCell<Option<Rc<Helper>>>,
    change: Incoming,
    log: Logger,
    error_log: Target,
    is_stopped: Cell<bool>,
    /// How many panics were counted so far: the zone's counters go on from worker to worker.
    panics: Cell<u64>,
}

/// The channel to a master.
struct Line {
    channel: Channel,
    ready: Registration,
}

impl Worker {
    /// Makes everything ready to serve.
    ///
    /// # Errors
    /// The channel, to say it through, and a sentence for the operator.
    pub(crate) fn start(start: Start) -> Result<Rc<Worker>, (Channel, String)> {
        let Start {
            config,
            seat,
            slot,
            zone,
            channel,
            call,
            owner,
            is_on_trial,
            listeners,
            access_log,
            log,
            error_log,
            ..
        } = start;
        let process = zone.process(slot);
        process.state.set(State::Starting);
        clock::sample();
        let made = (|| {
            reactor::start().map_err(|error| format!("cannot make a poll: {error}"))?;
            let call =
                orphaned::answer_at(call).map_err(|error| format!("cannot listen for another master: {error}"))?;
            let (signals, signals_ready) =
                listen_for_term().map_err(|error| format!("cannot watch signals: {error}"))?;
            let servers = Rc::new(Servers::default());
            // A second thread makes each system call of the first a little dearer: there is none without need.
            let helper = config.access_log.is_some().then(|| Helper::start(access_log, log.clone())).transpose();
            let helper = helper.map_err(|error| format!("cannot start a thread: {error}"))?.map(Rc::new);
            let site = Site::open(Blueprint::draw(Arc::clone(&config)), zone, slot, &servers)?;
            let access = access_log_of(&config, helper.as_ref(), process);
            let records = Records::new(zone.flights(slot), process.polled);
            let downstream = Downstream::new(Rc::new(site), records, access, log.clone());
            let mut gates = Vec::new();
            for (listener, sockets) in config.listeners.iter().zip(listeners) {
                gates.extend(gates_of(zone, slot, &downstream, listener, sockets)?);
            }
            Ok((call, signals, signals_ready, servers, helper, downstream, gates))
        })();
        let ((call, call_ready), signals, signals_ready, servers, helper, downstream, gates) = match made {
            Ok(made) => made,
            Err(reason) => return Err((channel, reason)),
        };
        let line = Line::new(channel)
            .map_err(|(channel, error)| (channel, format!("cannot watch the channel to the master: {error}")))?;
        let room = (Rc::clone(&downstream), Rc::clone(&servers));
        // A connection to a server is opened again at no one's cost but ours.
        net::set_room(config.worker_connections as usize, move || room.1.evict() || room.0.evict());
        let report = log.clone();
        executor::on_panic(move |message| error!(report, "an exchange panicked and was closed: {}", message));
        Ok(Rc::new(Worker {
            seat,
            slot,
            zone,
            process,
            line: RefCell::new(Rc::new(line)),
            call,
            call_ready,
            owner,
            is_on_trial: Cell::new(is_on_trial),
            signals,
            signals_ready,
            downstream,
            gates: RefCell::new(gates),
            servers,
            helper: RefCell::new(helper),
            change: Incoming::default(),
            log,
            error_log,
            is_stopped: Cell::new(false),
            panics: Cell::default(),
        }))
    }

    /// Serves until it is told to stop; returns a code to exit with.
    pub(crate) fn run(self: Rc<Worker>) -> i32 {
        self.beat();
        executor::spawn(Rc::clone(&self).obey());
        executor::spawn(Rc::clone(&self).obey_signals());
        executor::spawn(Rc::clone(&self).keep_house());
        self.process.state.set(State::Serving);
        self.set_gates();
        self.report_figures();
        self.report(&Report::Ready);
        let (downstream, servers) = (Rc::clone(&self.downstream), Rc::clone(&self.servers));
        let wake = |parked| match parked {
            Parked::Client(key, uses) => downstream.wake(key, uses),
            Parked::Server(server, connection) => servers.drop_idle(server, connection),
        };
        let stop = || {
            self.process.turns.inc();
            self.is_stopped.get() || self.downstream.is_drained()
        };
        let ran = crate::runtime::run(wake, stop);
        self.process.state.set(State::Exiting);
        let cut = self.downstream.cut();
        if cut > 0 {
            warn!(self.log, "stopped before all was finished: exchanges were cut"; "exchanges" => cut);
        }
        self.downstream.flush_log();
        if self.helper.borrow().as_ref().is_some_and(|helper| !helper.finish(LOG_FINISH)) {
            warn!(self.log, "the access log takes no lines: the last ones are lost");
        }
        match ran {
            Ok(()) => exit::OK,
            Err(error) => {
                error!(self.log, "the loop failed"; "reason" => %error);
                exit::FAILED
            }
        }
    }

    /// Does what the master says, and after it the next one.
    async fn obey(self: Rc<Worker>) {
        loop {
            let line = Rc::clone(&self.line.borrow());
            self.obey_at(&line).await;
            if self.is_on_trial.get() {
                info!(self.log, "it never came to be the proxy's: finishing");
                self.drain();
            }
            let next = self.await_master().await;
            if let Err(error) = stack::tell_by(&next.channel) {
                warn!(self.log, "cannot tell the new master where this worker stands, should it ask"; "reason" => %error);
            }
            self.line.replace(Rc::new(next));
        }
    }

    /// Does what a master says, until it is gone.
    async fn obey_at(self: &Rc<Worker>, line: &Line) {
        loop {
            line.ready.readable().await;
            match line.channel.recv_command() {
                Ok(Some(Command::Drain)) => self.drain(),
                Ok(Some(Command::Stop)) => self.is_stopped.set(true),
                Ok(Some(Command::Reopen { access_log, error_log })) => {
                    if let (Some(file), Some(helper)) = (access_log, &*self.helper.borrow()) {
                        self.downstream.flush_log();
                        helper.reopen(Some(File::from(file)));
                    }
                    if let Some(file) = error_log {
                        self.error_log.replace(file);
                    }
                    self.report(&Report::Reopened);
                }
                Ok(Some(Command::Sockets { listener, sockets })) => self.change.add_sockets(listener, sockets),
                Ok(Some(Command::Prepare { generation, text, bearings, access_log })) => {
                    let papers = Papers { generation, text, bearings, access_log: access_log.map(File::from) };
                    executor::spawn(Rc::clone(self).prepare(papers));
                }
                Ok(Some(Command::Commit(generation))) => self.commit(generation),
                Ok(Some(Command::Abandon)) => self.change.abandon(),
                Ok(Some(Command::CloseIdle)) => self.downstream.close_idle(),
                Ok(Some(Command::Establish)) => self.is_on_trial.set(false),
                Ok(Some(Command::HandOver { to })) => self.hand_over(to),
                Ok(Some(Command::TakeOver { from })) => self.take_over(from),
                Ok(None) => {
                    info!(self.log, "the master is gone: serving on without it");
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => line.ready.drained(),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    warn!(self.log, "the master says what can't be understood"; "reason" => %error);
                }
                Err(error) => {
                    error!(self.log, "cannot hear the master: serving on without it"; "reason" => %error);
                    return;
                }
            }
        }
    }

    /// Stops when the process is asked to.
    async fn obey_signals(self: Rc<Worker>) {
        self.signals_ready.readable().await;
        if self.signals.read_signal().is_ok_and(|signal| signal.is_some()) {
            info!(self.log, "stopping at once, as a signal says");
        }
        self.is_stopped.set(true);
    }

    /// Shows that the worker lives, and does what has to be done from time to time.
    async fn keep_house(self: Rc<Worker>) {
        let timer = Timer::new();
        let mut retired_since = None;
        for beat in 0.. {
            timer.sleep(clock::now() + BEAT).await;
            self.beat();
            self.downstream.sweep();
            self.settle();
            if !self.downstream.is_draining() {
                self.set_gates();
                // A worker whose master is gone ends when a new one makes a new zone.
                if self.zone.is_retired() {
                    self.drain();
                }
            }
            // Nor is there a master to end the wait.
            if self.zone.is_retired() {
                let since = *retired_since.get_or_insert(clock::now());
                if clock::now() - since >= self.downstream.site().shutdown_timeout {
                    self.is_stopped.set(true);
                }
            }
            if beat % BEATS_PER_CHORE == 0 {
                self.servers.sweep();
                self.report_figures();
            }
        }
    }

    fn beat(&self) {
        self.process.heartbeat.set(clock::now());
    }

    fn set_gates(&self) {
        let is_served = |seat| self.zone.seat_is_served(seat, clock::now());
        for gate in self.gates.borrow().iter() {
            if let Err(error) = gate.set(&self.downstream, self.seat, is_served) {
                error!(self.log, "cannot accept from a listening socket"; "reason" => %error);
            }
        }
    }

    fn drain(&self) {
        if !self.downstream.is_draining() {
            self.process.state.set(State::Draining);
            let patience = self.downstream.site().shutdown_timeout;
            self.process.drain_due.set(clock::now().saturating_add(patience));
            self.downstream.drain();
            // Each acceptor has its own descriptor and closes it once its queue is empty: a socket that stays open and is
            // accepted from by nobody would go on getting its share.
            self.gates.take();
            self.servers.clear();
        }
    }

    fn hand_over(&self, to: OwnedFd) {
        if let Err(error) = self.downstream.hand_over(to) {
            warn!(self.log, "cannot hand over connections"; "reason" => %error);
        }
    }

    fn take_over(self: &Rc<Worker>, from: OwnedFd) {
        let worker = Rc::clone(self);
        let door = move |name: &str| {
            let gates = worker.gates.borrow();
            gates.iter().map(Gate::door).find(|door| door.name() == name).map(Rc::clone)
        };
        if let Err(error) = self.downstream.take_over(from, door) {
            warn!(self.log, "cannot take over connections"; "reason" => %error);
        }
    }

    fn report_figures(&self) {
        let process = &self.process;
        self.downstream.flush_log();
        let panics = executor::panics();
        process.panics.add(panics - self.panics.replace(panics));
        process.buffers_bytes.set(buffer::in_use_bytes());
        process.upstream_idle.set(self.servers.idle());
        process.upstream_active.set(self.servers.active());
        process.descriptors.set(open_descriptors().unwrap_or(0));
    }

    fn report(&self, report: &Report) {
        if let Err(error) = self.line.borrow().channel.send_report(report) {
            warn!(self.log, "cannot tell the master: {:?}", report; "reason" => %error);
        }
    }
}

fn access_log_of(config: &Config, helper: Option<&Rc<Helper>>, process: ProcessCells) -> Option<AccessLog> {
    let (log, helper) = config.access_log.as_ref().zip(helper)?;
    Some(AccessLog::new(&log.format, Rc::clone(helper), process.log_lines_dropped))
}

/// The gates of a listener.
fn gates_of(
    zone: &'static Zone,
    slot: Slot,
    downstream: &Rc<Downstream>,
    listener: &Listener,
    sockets: Vec<OwnedFd>,
) -> Result<Vec<Gate>, String> {
    let name = listener.address.to_string();
    let cells = zone.listener(slot, &name).ok_or_else(|| format!("the zone has no listener {name:?}"))?;
    Ok(Gate::of(downstream, listener, cells, sockets))
}

/// From now on SIGTERM does not end this thread's process but is read. Threads that it starts later inherit that.
fn listen_for_term() -> io::Result<(SignalFd, Registration)> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let ready = Registration::new(&mut SourceFd(&signals.as_raw_fd()), Interest::READABLE)?;
    Ok((signals, ready))
}

/// How many descriptors this process has open.
fn open_descriptors() -> io::Result<u64> {
    const LIST: &str = "/proc/self/fd";
    // Since Linux 6.2 the directory's size is their number. Before, they are counted, without the one that looks.
    match fs::metadata(LIST)?.len() {
        0 => Ok(fs::read_dir(LIST)?.count().saturating_sub(1) as u64),
        count => Ok(count),
    }
}
