//! Runs futures on this thread: a queue of what is ready, drained a turn at a time.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;

use async_task::{Runnable, Task};

/// Is told a panic's message.
type OnPanic = Box<dyn Fn(&str)>;

thread_local! {
    static QUEUE: RefCell<VecDeque<Runnable>> = RefCell::new(VecDeque::with_capacity(1024));
    static PANICS: Cell<u64> = const { Cell::new(0) };
    static ON_PANIC: RefCell<Option<OnPanic>> = const { RefCell::new(None) };
}

/// Starts a task. A panic inside it ends that task alone: it is counted and reported, and the worker lives.
pub(crate) fn spawn(future: impl Future<Output = ()> + 'static) {
    start(future).detach();
}

/// Starts a task as [`spawn`] does. When what is returned is dropped, the task's next turn is its end.
pub(crate) fn start(future: impl Future<Output = ()> + 'static) -> Task<()> {
    // A waker may be dropped while the thread's locals are being torn down; it then finds no queue.
    let schedule = |runnable| {
        let _ = QUEUE.try_with(|queue| queue.borrow_mut().push_back(runnable));
    };
    let (runnable, task) = async_task::spawn_local(future, schedule);
    runnable.schedule();
    task
}

/// Runs what is queued now; what that queues waits for the next turn.
pub(crate) fn run_queued() {
    for _ in 0..QUEUE.with_borrow(VecDeque::len) {
        if let Some(runnable) = QUEUE.with_borrow_mut(VecDeque::pop_front) {
            // The task drops its future while it unwinds, so what it owned is closed here.
            if let Err(cause) = catch_unwind(AssertUnwindSafe(|| runnable.run())) {
                PANICS.set(PANICS.get() + 1);
                ON_PANIC.with_borrow(|report| report.iter().for_each(|report| report(message(&*cause))));
            }
        }
    }
}

/// Whether a task waits to be run.
pub(crate) fn has_queued() -> bool {
    QUEUE.with_borrow(|queue| !queue.is_empty())
}

/// How many tasks have panicked.
pub(crate) fn panics() -> u64 {
    PANICS.get()
}

/// Whom to tell of a panic.
pub(crate) fn on_panic(report: impl Fn(&str) + 'static) {
    ON_PANIC.set(Some(Box::new(report)));
}

/// Lets the other tasks of this turn run first.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn message(cause: &(dyn Any + Send)) -> &str {
    let text = cause.downcast_ref::<&str>().copied();
    text.or_else(|| cause.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn a_panic_ends_its_task_alone() {
        let done = Rc::new(Cell::new(false));
        let seen = Rc::new(RefCell::new(String::new()));
        let sink = Rc::clone(&seen);
        on_panic(move |text| sink.borrow_mut().push_str(text));
        spawn(async { panic!("bad luck") });
        let flag = Rc::clone(&done);
        spawn(async move {
            yield_now().await;
            flag.set(true);
        });
        run_queued();
        assert!(!done.get() && has_queued());
        run_queued();
        assert!(done.get() && !has_queued());
        assert_eq!((panics(), seen.borrow().as_str()), (1, "bad luck"));
    }
}
