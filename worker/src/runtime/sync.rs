//! Futures beside one another, and tasks that wait for one another.
//!
//! Futures on the path of every exchange are taken pinned: by value they would be copied once for each call they pass.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

/// Runs both until both are done, or one has failed.
///
/// # Errors
/// That of whichever failed first; the other is dropped.
pub(crate) async fn both<E>(
    one: impl Future<Output = Result<(), E>>,
    other: impl Future<Output = Result<(), E>>,
) -> Result<(), E> {
    let (mut one, mut other) = (pin!(one), pin!(other));
    let (mut one_done, mut other_done) = (false, false);
    poll_fn(|cx| {
        if !one_done && let Poll::Ready(result) = one.as_mut().poll(cx) {
            result?;
            one_done = true;
        }
        if !other_done && let Poll::Ready(result) = other.as_mut().poll(cx) {
            result?;
            other_done = true;
        }
        if one_done && other_done { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// What `future` comes to without waiting.
pub(crate) async fn now<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Whichever is done first; the other is dropped.
pub(crate) async fn first<T>(
    mut one: Pin<&mut impl Future<Output = T>>,
    mut other: Pin<&mut impl Future<Output = T>>,
) -> T {
    poll_fn(|cx| match one.as_mut().poll(cx) {
        Poll::Pending => other.as_mut().poll(cx),
        ready => ready,
    })
    .await
}

/// Work that goes on in the background of other work of the same task.
pub(crate) struct Background<'a, F: Future> {
    future: Pin<&'a mut F>,
    /// What it came to; `None` while it is at work.
    pub(crate) outcome: Option<F::Output>,
}

impl<'a, F: Future> Background<'a, F> {
    pub(crate) fn new(future: Pin<&'a mut F>) -> Background<'a, F> {
        Background { future, outcome: None }
    }
}

impl<E: Copy, F: Future<Output = Result<(), E>>> Background<'_, F> {
    /// Waits until the background work is done, unless `other` is first.
    pub(crate) async fn unless(&mut self, mut other: impl FnMut(&mut Context<'_>) -> Poll<()>) {
        poll_fn(|cx| {
            self.poll(cx);
            if self.outcome.is_some() { Poll::Ready(()) } else { other(cx) }
        })
        .await;
    }

    /// Waits for `main`, and moves the background work along while it does. A failure of the background work for which
    /// `gives_up` says so ends the wait.
    ///
    /// # Errors
    /// That failure, or that of `main`.
    pub(crate) async fn during<T>(
        &mut self,
        mut main: Pin<&mut impl Future<Output = Result<T, E>>>,
        gives_up: impl Fn(&E) -> bool,
    ) -> Result<T, E> {
        poll_fn(|cx| {
            self.poll(cx);
            match self.outcome {
                Some(Err(error)) if gives_up(&error) => Poll::Ready(Err(error)),
                _ => main.as_mut().poll(cx),
            }
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>) {
        if self.outcome.is_none()
            && let Poll::Ready(outcome) = self.future.as_mut().poll(cx)
        {
            self.outcome = Some(outcome);
        }
    }
}

/// Wakes those who wait for something to change.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    /// Something has changed: those who wait look again.
    pub(crate) fn raise(&self) {
        self.waiting.take().into_iter().for_each(Waker::wake);
    }

    /// Waits until `holds`, looking whenever the signal is raised.
    pub(crate) async fn until(&self, holds: impl Fn() -> bool) {
        poll_fn(|cx| {
            if holds() {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}
