//! Another configuration in a running worker: from the papers that the master sends to the site that serves.
//!
//! ```text
//! Sockets*, Prepare -> draw (helper) -> open -> prepared -> Commit -> swapped -> settled
//!                        |               |        |
//!                        +---------------+--------+--> Refused, or Abandon: nothing has changed
//! ```
//! Swapping replaces one pointer: exchanges that are under way, tunnels among them, keep the site that they began with.
//! When the last of them has ended, nothing of the earlier configuration is held any more, and the master is told.

#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use conf::model::Config;
use shared::channel::Report;
use shared::fd::unseal;
use shared::ident::Generation;
use slog::info;

use super::{Worker, access_log_of, gates_of};
use crate::downstream::{Door, Gate};
use crate::helper::Helper;
use crate::runtime::executor;
use crate::runtime::reactor::Registration;
use crate::runtime::sync::Signal;
use crate::site::{Blueprint, Site};

/// The most bytes of a configuration's text, and of its bearings.
const PAPER_BYTES_MAX: usize = 256 << 20;

/// What the master sends of another configuration.
pub(super) struct Papers {
    pub(super) generation: Generation,
    pub(super) text: OwnedFd,
    pub(super) bearings: OwnedFd,
    pub(super) access_log: Option<File>,
}

/// A change on its way in.
#[derive(Default)]
pub(super) struct Incoming {
    /// Of addresses that the worker has no sockets of, by the number of their listener.
    sockets: RefCell<BTreeMap<u32, Vec<OwnedFd>>>,
    /// Of the change that was asked for last, unless it was given up.
    wanted: Cell<Option<Generation>>,
    prepared: RefCell<Option<Prepared>>,
    drawing: RefCell<Option<Rc<Drawing>>>,
    /// What exchanges may still hold of earlier configurations, oldest first.
    leaving: RefCell<Vec<Leaving>>,
}

struct Prepared {
    generation: Generation,
    config: Arc<Config>,
    site: Rc<Site>,
    gates: Vec<Gate>,
    access_log: Option<File>,
}

/// An earlier configuration, by what came after it.
struct Leaving {
    successor: Generation,
    site: Weak<Site>,
    doors: Vec<Weak<Door>>,
}

/// The way back from the helper thread, which draws blueprints.
struct Drawing {
    ready: Registration,
    waker: Arc<mio::Waker>,
    sender: Sender<Drawn>,
    receiver: Receiver<Drawn>,
    /// What has come back and was not fetched.
    drawn: RefCell<Vec<Drawn>>,
    /// Something has come back, or is not wanted any more.
    news: Signal,
}

impl Drawing {
    /// Tells those who wait that something has come back.
    async fn deliver(self: Rc<Drawing>) {
        loop {
            self.ready.readable().await;
            self.ready.drained();
            self.drawn.borrow_mut().extend(self.receiver.try_iter());
            self.news.raise();
        }
    }
}

type Drawn = (Generation, Result<(Arc<Config>, Blueprint), String>);

impl Incoming {
    /// Keeps sockets for the change that is about to be asked for.
    pub(super) fn add_sockets(&self, listener: u32, sockets: Vec<OwnedFd>) {
        self.sockets.borrow_mut().entry(listener).or_default().extend(sockets);
    }

    /// Forgets what was sent and what was made of it.
    pub(super) fn abandon(&self) {
        self.want(None);
        self.sockets.take();
        self.prepared.take();
    }

    /// From now on this change is wanted and no other.
    fn want(&self, generation: Option<Generation>) {
        self.wanted.set(generation);
        self.drawing.borrow().iter().for_each(|drawing| drawing.news.raise());
    }
}

impl Worker {
    /// Makes another configuration ready, and tells the master whether it is.
    pub(super) async fn prepare(self: Rc<Worker>, papers: Papers) {
        let generation = papers.generation;
        self.change.prepared.take();
        self.change.want(Some(generation));
        let opened = self.open(papers).await;
        // It may have been given up meanwhile.
        if self.change.wanted.get() != Some(generation) {
            return;
        }
        let report = match opened {
            Ok(prepared) => {
                self.change.prepared.replace(Some(prepared));
                Report::Prepared(generation)
            }
            Err(reason) => Report::Refused(generation, reason),
        };
        self.report(&report);
    }

    async fn open(self: &Rc<Worker>, papers: Papers) -> Result<Prepared, String> {
        let Papers { generation, text, bearings, access_log } = papers;
        let unread = |error: io::Error| format!("cannot read what the master sent: {error}");
        let bearings = unseal(bearings, PAPER_BYTES_MAX).map_err(unread)?;
        let text = String::from_utf8(unseal(text, PAPER_BYTES_MAX).map_err(unread)?);
        let text = text.map_err(|_| "the configuration's text is no text".to_owned())?;
        let (config, blueprint) = self.draw(generation, text).await?;
        self.zone.learn(self.slot, &bearings)?;
        let site = Rc::new(Site::open(blueprint, self.zone, self.slot, &self.servers)?);
        let gates = self.new_gates(&config)?;
        Ok(Prepared { generation, config, site, gates, access_log })
    }

    /// Has the helper thread do what takes long.
    async fn draw(&self, generation: Generation, text: String) -> Result<(Arc<Config>, Blueprint), String> {
        let cannot = |error: io::Error| format!("cannot build the configuration: {error}");
        let drawing = self.drawing().map_err(cannot)?;
        let helper = self.helper().map_err(cannot)?;
        let (send, waker) = (drawing.sender.clone(), Arc::clone(&drawing.waker));
        helper.run(move || {
            let parsed = conf::parse(&text, "the master's configuration").map_err(|problems| problems.to_string());
            let drawn = parsed.map(|loaded| {
                let config = Arc::new(loaded.config);
                (Arc::clone(&config), Blueprint::draw(config))
            });
            // The loop may have ended.
            let _ = send.send((generation, drawn));
            let _ = waker.wake();
        });
        let is_wanted = || self.change.wanted.get() == Some(generation);
        let is_there = || drawing.drawn.borrow().iter().any(|(of, _)| *of == generation);
        drawing.news.until(|| is_there() || !is_wanted()).await;
        // Of an earlier change, which was given up, nobody fetches the blueprint.
        let mut drawn = drawing.drawn.take();
        let its = drawn.iter().position(|(of, _)| *of == generation).map(|at| drawn.swap_remove(at).1);
        its.unwrap_or_else(|| Err("another change has come".into()))
    }

    fn drawing(&self) -> io::Result<Rc<Drawing>> {
        if let Some(drawing) = &*self.change.drawing.borrow() {
            return Ok(Rc::clone(drawing));
        }
        let (ready, waker) = Registration::waker()?;
        let (sender, receiver) = channel();
        let (drawn, news) = (RefCell::default(), Signal::default());
        let drawing = Rc::new(Drawing { ready, waker: Arc::new(waker), sender, receiver, drawn, news });
        executor::spawn(Rc::clone(&drawing).deliver());
        self.change.drawing.replace(Some(Rc::clone(&drawing)));
        Ok(drawing)
    }

    /// The helper thread, started now unless it was needed before.
    fn helper(&self) -> io::Result<Rc<Helper>> {
        if let Some(helper) = &*self.helper.borrow() {
            return Ok(Rc::clone(helper));
        }
        let helper = Rc::new(Helper::start(None, self.log.clone())?);
        self.helper.replace(Some(Rc::clone(&helper)));
        Ok(helper)
    }

    /// The gates of listeners that the worker has none of yet.
    fn new_gates(&self, config: &Config) -> Result<Vec<Gate>, String> {
        let mut sent = self.change.sockets.take();
        let mut gates = Vec::new();
        for (number, listener) in (0..).zip(&config.listeners) {
            if self.gates.borrow().iter().any(|gate| gate.is_at(&listener.address)) {
                continue;
            }
            let missing = || format!("there are no sockets of listener {}", listener.address);
            let sockets = sent.remove(&number).ok_or_else(missing)?;
            gates.extend(gates_of(self.zone, self.slot, &self.downstream, listener, sockets)?);
        }
        Ok(gates)
    }

    /// Serves what was prepared.
    pub(super) fn commit(self: &Rc<Worker>, generation: Generation) {
        let prepared = self.change.prepared.borrow_mut().take_if(|prepared| prepared.generation == generation);
        // A worker that does not say that it has swapped is replaced.
        let Some(Prepared { config, site, gates, access_log, .. }) = prepared else { return };
        let old = self.downstream.site();
        self.downstream.flush_log();
        if let Some(helper) = &*self.helper.borrow() {
            helper.reopen(access_log);
        }
        let format = config.access_log.as_ref().map(|log| &log.format);
        self.downstream.swap(site, format, || access_log_of(&config, self.helper.borrow().as_ref(), self.process));
        let doors = self.exchange_gates(&config, gates);
        self.set_gates();
        self.change.want(None);
        self.change.leaving.borrow_mut().push(Leaving { successor: generation, site: Rc::downgrade(&old), doors });
        drop(old);
        info!(self.log, "serving another configuration"; "generation" => generation.0);
        self.report(&Report::Swapped(generation));
        self.settle();
    }

    /// Gates that stay are adapted, new ones added, the others shut once their queues are empty.
    fn exchange_gates(&self, config: &Config, new: Vec<Gate>) -> Vec<Weak<Door>> {
        let listener_of = |gate: &Gate| config.listeners.iter().find(|listener| gate.is_at(&listener.address));
        let old = self.gates.take();
        let (kept, gone): (Vec<Gate>, Vec<Gate>) = old.into_iter().partition(|gate| listener_of(gate).is_some());
        for gate in &kept {
            listener_of(gate).into_iter().for_each(|listener| gate.adapt(listener));
        }
        self.gates.replace(kept.into_iter().chain(new).collect());
        gone.into_iter().map(|gate| gate.retire(&self.downstream)).collect()
    }

    /// Tells the master when nothing of an earlier configuration is held any more.
    pub(super) fn settle(&self) {
        if self.change.leaving.borrow().is_empty() {
            return;
        }
        self.servers.forget_unused();
        let mut leaving = self.change.leaving.borrow_mut();
        let is_held = |leaving: &Leaving| {
            leaving.site.strong_count() > 0 || leaving.doors.iter().any(|door| door.strong_count() > 0)
        };
        // In order: what an earlier one holds, a later one may have had as well.
        let gone = leaving.iter().take_while(|leaving| !is_held(leaving)).count();
        for Leaving { successor, .. } in leaving.drain(..gone) {
            self.report(&Report::Settled(successor));
        }
    }
}
