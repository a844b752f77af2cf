//! Readiness: one mio poll, edge-triggered, and for each source what waits for it.
//!
//! A source's readiness is remembered: an edge sets it, and the call that found the socket dry clears it. What a
//! source wakes is either a task (it waits inside a future) or nothing but a key: a connection that is parked has no
//! task, and its key is handed to the loop instead.
//!
//! The kernel is asked to watch a connection when somebody first has to wait for it, and only for what is waited for: one
//! that brings its request along and is answered at once is never watched. Who only wants to know whether the peer is
//! still there has time: see [`Source::wake_if_gone`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use mio::event::{Event, Source as MioSource};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::epoll::Epoll;
use nix::unistd::dup;

use super::clock::{self, MILLISECOND};

/// Who a parked source belongs to; see [`Source::park`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parked {
    /// A client's connection, by its place in the table of parked ones and the number of that place's use.
    Client(u32, u32),
    /// An idle connection to the server with this number; the second number is the connection's own.
    Server(u32, u64),
}

/// How long a connection goes unwatched of which only the end is waited for, in nanoseconds.
const WATCH_DELAY: u64 = 2 * MILLISECOND;

/// What the kernel watches a source for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Watch {
    /// Nothing yet.
    #[default]
    None,
    Reads,
    Both,
}

/// What the reactor knows of one descriptor.
#[derive(Default)]
pub(crate) struct Source {
    /// Nobody's once the descriptor is closed, and from the start if others see to it that it is watched.
    descriptor: Cell<Option<(RawFd, Token)>>,
    watch: Cell<Watch>,
    /// It waits to be watched, in [`Reactor::late`].
    is_late: Cell<bool>,
    /// The kernel refused to watch it: whoever waits for it is told, and its calls fail.
    broken: Cell<bool>,
    /// It may be another process's by now: see [`Source::leave`].
    is_away: Cell<bool>,
    readable: Cell<bool>,
    writable: Cell<bool>,
    /// The peer will send no more, or the socket failed: a short read then does not mean that it is dry.
    hung_up: Cell<bool>,
    reader: Cell<Option<Waker>>,
    writer: Cell<Option<Waker>>,
    parked: Cell<Option<Parked>>,
}

impl Source {
    /// Whether a read is worth trying.
    pub(crate) fn is_readable(&self) -> bool {
        self.readable.get()
    }

    /// Whether a write is worth trying.
    pub(crate) fn is_writable(&self) -> bool {
        self.writable.get()
    }

    /// Whether the peer was seen to close or to fail.
    pub(crate) fn is_hung_up(&self) -> bool {
        self.hung_up.get()
    }

    /// Whether it would be known if the peer had sent something or closed.
    pub(crate) fn is_watched(&self) -> bool {
        self.watch.get() != Watch::None
    }

    /// Whether the kernel refused to watch it, so that waiting for it is of no use.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// A read found the socket dry.
    pub(crate) fn drained(&self) {
        self.readable.set(false);
    }

    /// A read returned less than it asked for: the socket is dry, unless its end is near.
    pub(crate) fn read_short(&self) {
        self.readable.set(self.hung_up.get());
    }

    /// A write found the socket full.
    pub(crate) fn filled(&self) {
        self.writable.set(false);
    }

    /// Wakes this task at the next edge that makes the source readable.
    pub(crate) fn wake_reader(&self, cx: &Context<'_>) {
        register(&self.reader, cx);
        self.watch(Watch::Reads);
    }

    /// As [`Source::wake_reader`], for a task that reads nothing now: one that is not watched yet will be in a few
    /// milliseconds, by when most exchanges are over.
    pub(crate) fn wake_if_gone(self: &Rc<Self>, cx: &Context<'_>) {
        register(&self.reader, cx);
        if self.watch.get() == Watch::None && !self.is_late.replace(true) {
            // Without a reactor there is nothing to be late for.
            let _ = with(|reactor| {
                reactor.late.borrow_mut().push_back((clock::now() + WATCH_DELAY, Rc::clone(self)));
                Ok(())
            });
        }
    }

    /// Wakes this task at the next edge that makes the source writable.
    pub(crate) fn wake_writer(&self, cx: &Context<'_>) {
        register(&self.writer, cx);
        self.watch(Watch::Both);
    }

    /// From now on an edge reports `owner` to the loop, once, and wakes no task.
    pub(crate) fn park(&self, owner: Parked) {
        self.reader.set(None);
        self.writer.set(None);
        self.parked.set(Some(owner));
        if self.watch.get() == Watch::None {
            // Whatever was assumed of it will be known for certain.
            self.readable.set(false);
        }
        self.watch(Watch::Reads);
    }

    /// Undoes [`Source::park`].
    pub(crate) fn unpark(&self) {
        self.parked.set(None);
    }

    /// Has the kernel forget the descriptor, which is about to be another process's as well: closed here, it would still be
    /// open there, and watched here. Nobody waits for it from now on, unless it comes back.
    pub(crate) fn leave(&self) {
        self.is_away.set(true);
        self.broken.set(false);
        if let (Watch::Reads | Watch::Both, Some((descriptor, _))) = (self.watch.take(), self.descriptor.get()) {
            // It fails only for what the kernel refused to watch.
            let _ = with(|reactor| reactor.poll.borrow().registry().deregister(&mut SourceFd(&descriptor)));
        }
    }

    /// Undoes [`Source::leave`]: who waits has it watched anew.
    pub(crate) fn come_back(&self) {
        self.is_away.set(false);
        self.assume_ready();
    }

    /// Starts as if an edge had come: for a connection that was accepted, which can be written to, and perhaps read.
    pub(crate) fn assume_ready(&self) {
        self.readable.set(true);
        self.writable.set(true);
    }

    /// Has the kernel watch for this too. What is the case already comes as an edge.
    fn watch(&self, watch: Watch) {
        if self.watch.get() >= watch || self.is_away.get() {
            return;
        }
        let Some((descriptor, token)) = self.descriptor.get() else { return };
        let (interest, is_known) = match watch {
            Watch::Both => (Interest::READABLE.add(Interest::WRITABLE), self.watch.get() == Watch::Reads),
            _ => (Interest::READABLE, false),
        };
        self.watch.set(watch);
        let watched = with(|reactor| {
            let (poll, mut source) = (reactor.poll.borrow(), SourceFd(&descriptor));
            match is_known {
                true => poll.registry().reregister(&mut source, token, interest),
                false => poll.registry().register(&mut source, token, interest),
            }
        });
        if watched.is_err() {
            self.give_up();
        }
    }

    /// Tells all who wait.
    #[cold]
    fn give_up(&self) {
        self.broken.set(true);
        self.hung_up.set(true);
        self.readable.set(true);
        self.writable.set(true);
        if let Some(owner) = self.parked.take() {
            let _ = with(|reactor| {
                reactor.given_up.borrow_mut().push(owner);
                Ok(())
            });
        }
        wake(&self.reader);
        wake(&self.writer);
    }

    fn edge(&self, event: &Event, ready: &mut VecDeque<Parked>) {
        if event.is_read_closed() || event.is_error() || event.is_write_closed() {
            self.hung_up.set(true);
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.readable.set(true);
            if let Some(owner) = self.parked.take() {
                ready.push_back(owner);
            }
            wake(&self.reader);
        }
        if event.is_writable() || event.is_error() {
            self.writable.set(true);
            wake(&self.writer);
        }
    }
}

fn register(slot: &Cell<Option<Waker>>, cx: &Context<'_>) {
    let waker = match slot.take() {
        Some(waker) if waker.will_wake(cx.waker()) => waker,
        _ => cx.waker().clone(),
    };
    slot.set(Some(waker));
}

/// The waker stays: who waits most often waits here again. [`Source::park`] removes it.
fn wake(slot: &Cell<Option<Waker>>) {
    if let Some(waker) = slot.take() {
        waker.wake_by_ref();
        slot.set(Some(waker));
    }
}

/// A descriptor's place in the reactor; dropping it forgets the source.
pub(crate) struct Registration {
    token: Token,
    source: Rc<Source>,
}

impl std::ops::Deref for Registration {
    type Target = Source;

    fn deref(&self) -> &Source {
        &self.source
    }
}

impl Registration {
    /// A connection, to be watched once it is waited for. No other process may hold it: when it is closed, the kernel forgets
    /// it by itself.
    ///
    /// # Errors
    /// When the reactor was not started.
    pub(crate) fn of(io: &impl AsRawFd) -> io::Result<Registration> {
        with(|reactor| {
            let registration = reactor.sources.borrow_mut().insert();
            registration.source.descriptor.set(Some((io.as_raw_fd(), registration.token)));
            Ok(registration)
        })
    }

    /// Watches `io` from now on. What is held by other processes too needs [`forget`] in the end.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn new(io: &mut impl MioSource, interest: Interest) -> io::Result<Registration> {
        with(|reactor| {
            let registration = reactor.sources.borrow_mut().insert();
            reactor.poll.borrow().registry().register(io, registration.token, interest)?;
            Ok(registration)
        })
    }

    /// Watches what the caller adds to the poll by itself, under the token that it is given.
    pub(crate) fn with_token(add: impl FnOnce(&Epoll, Token) -> io::Result<()>) -> io::Result<Registration> {
        with(|reactor| {
            let registration = reactor.sources.borrow_mut().insert();
            add(&reactor.epoll, registration.token)?;
            Ok(registration)
        })
    }

    /// A source that other threads make readable. A thread's poll can have one such.
    ///
    /// # Errors
    /// Those of eventfd(2) and epoll_ctl(2).
    pub(crate) fn waker() -> io::Result<(Registration, mio::Waker)> {
        with(|reactor| {
            let registration = reactor.sources.borrow_mut().insert();
            let waker = mio::Waker::new(reactor.poll.borrow().registry(), registration.token)?;
            Ok((registration, waker))
        })
    }

    /// Waits until a read is worth trying.
    pub(crate) async fn readable(&self) {
        std::future::poll_fn(|cx| {
            if self.is_readable() {
                return std::task::Poll::Ready(());
            }
            self.wake_reader(cx);
            std::task::Poll::Pending
        })
        .await;
    }

    /// The source itself, to be watched from beside.
    pub(crate) fn share(&self) -> Rc<Source> {
        Rc::clone(&self.source)
    }

    /// A source that no kernel object stands behind; a simulation makes it ready.
    #[cfg(test)]
    pub(crate) fn detached() -> Registration {
        Registration { token: Token(usize::MAX), source: Rc::new(Source::default()) }
    }

    /// Another handle on a detached source.
    #[cfg(test)]
    pub(crate) fn twin(&self) -> Registration {
        Registration { token: self.token, source: Rc::clone(&self.source) }
    }

    /// Makes the source ready as an edge would.
    #[cfg(test)]
    pub(crate) fn simulate(&self, readable: bool, writable: bool, hung_up: bool) {
        self.hung_up.set(self.hung_up.get() || hung_up);
        if readable {
            self.readable.set(true);
            if let Some(owner) = self.parked.take() {
                SIMULATED.with_borrow_mut(|ready| ready.push(owner));
            }
            wake(&self.reader);
        }
        if writable {
            self.writable.set(true);
            wake(&self.writer);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let token = self.token;
        self.source.descriptor.set(None);
        // At the end of the thread the table may be gone already.
        let _ = REACTOR.try_with(|reactor| {
            if let Some(reactor) = reactor.borrow().as_ref() {
                reactor.sources.borrow_mut().remove(token);
            }
        });
    }
}

/// The sources by token. A token is an index and the number of times that the index was given out, so that an event
/// for a descriptor closed in this very turn finds nobody.
#[derive(Default)]
struct Sources {
    entries: Vec<Entry>,
    free: Vec<u32>,
}

struct Entry {
    uses: u32,
    source: Option<Rc<Source>>,
}

impl Sources {
    fn insert(&mut self) -> Registration {
        let source = Rc::new(Source::default());
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry { uses: 0, source: None });
            u32::try_from(self.entries.len() - 1).expect("descriptors are fewer than 2^32")
        });
        let entry = &mut self.entries[index as usize];
        entry.source = Some(Rc::clone(&source));
        Registration { token: Token((entry.uses as usize) << 32 | index as usize), source }
    }

    fn find(&self, token: Token) -> Option<&Source> {
        let entry = self.entries.get(token.0 & 0xffff_ffff)?;
        if entry.uses as usize == token.0 >> 32 { entry.source.as_deref() } else { None }
    }

    fn remove(&mut self, token: Token) {
        let index = token.0 & 0xffff_ffff;
        if let Some(entry) = self.entries.get_mut(index) {
            entry.uses = entry.uses.wrapping_add(1);
            entry.source = None;
            self.free.push(u32::try_from(index).expect("masked to 32 bits"));
        }
    }
}

struct Reactor {
    poll: RefCell<Poll>,
    /// The same, for what mio has no word for; made at the start, when there are descriptors.
    epoll: Epoll,
    sources: RefCell<Sources>,
    /// Sources that are to be watched, and when, if they are still open then: first come, first due.
    late: RefCell<VecDeque<(u64, Rc<Source>)>>,
    /// The owners of parked sources that can't be watched.
    given_up: RefCell<Vec<Parked>>,
}

#[cfg(test)]
thread_local! {
    static SIMULATED: RefCell<Vec<Parked>> = const { RefCell::new(Vec::new()) };
}

/// The owners of parked sources that a simulation has made ready.
#[cfg(test)]
pub(crate) fn simulated() -> Vec<Parked> {
    SIMULATED.take()
}

thread_local! {
    static REACTOR: RefCell<Option<Reactor>> = const { RefCell::new(None) };
    static EVENTS: RefCell<Events> = RefCell::new(Events::with_capacity(1024));
}

/// Makes this thread's poll. Call it after a fork: a poll made before is shared with the parent.
///
/// # Errors
/// Those of epoll_create1(2).
pub(crate) fn start() -> io::Result<()> {
    let poll = Poll::new()?;
    let epoll = Epoll(dup(poll.registry())?);
    let poll = RefCell::new(poll);
    let (sources, late, given_up) = (RefCell::default(), RefCell::default(), RefCell::default());
    REACTOR.set(Some(Reactor { poll, epoll, sources, late, given_up }));
    Ok(())
}

/// When [`watch_late`] has to be called next.
pub(crate) fn next_due() -> Option<u64> {
    REACTOR.with_borrow(|reactor| {
        let mut late = reactor.as_ref()?.late.borrow_mut();
        // Those that are closed already are nobody's concern.
        while late.pop_front_if(|(_, source)| source.descriptor.get().is_none()).is_some() {}
        late.front().map(|(due, _)| *due)
    })
}

/// Watches the sources that have waited for it until `now`.
pub(crate) fn watch_late(now: u64) {
    let next = || with(|reactor| Ok(reactor.late.borrow_mut().pop_front_if(|(due, _)| *due <= now))).ok().flatten();
    while let Some((_, source)) = next() {
        source.is_late.set(false);
        source.watch(Watch::Reads);
    }
}

/// Ends the watch on something that stays open elsewhere.
pub(crate) fn forget(io: BorrowedFd<'_>) {
    // It fails only for what is not watched.
    let _ = with(|reactor| reactor.poll.borrow().registry().deregister(&mut SourceFd(&io.as_raw_fd())));
}

/// Waits for readiness for at most `wait` and delivers it: tasks are queued, parked owners are appended to `ready`.
pub(crate) fn turn(wait: Option<Duration>, ready: &mut VecDeque<Parked>) -> io::Result<()> {
    EVENTS.with_borrow_mut(|events| {
        with(|reactor| {
            let wait = if reactor.given_up.borrow().is_empty() { wait } else { Some(Duration::ZERO) };
            let polled = reactor.poll.borrow_mut().poll(events, wait);
            ready.extend(reactor.given_up.borrow_mut().drain(..));
            match polled {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
                other => other?,
            }
            let sources = reactor.sources.borrow();
            for event in events.iter() {
                if let Some(source) = sources.find(event.token()) {
                    source.edge(event, ready);
                }
            }
            Ok(())
        })
    })
}

fn with<T>(call: impl FnOnce(&Reactor) -> io::Result<T>) -> io::Result<T> {
    REACTOR.with_borrow(|reactor| match reactor {
        Some(reactor) => call(reactor),
        None => Err(io::Error::other("the reactor was not started on this thread")),
    })
}
