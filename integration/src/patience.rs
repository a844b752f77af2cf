//! Waiting for facts, never for a time.

use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

/// How long any one fact may take before the test gives up. Far longer than anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at a fact that nothing announces.
const GLANCE: Duration = Duration::from_millis(5);

/// Waits until `look` finds something, and returns it. `what` names the fact in the failure.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        thread::sleep(GLANCE);
    }
}

/// Waits until `holds` does.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    until(what, || holds().then_some(()));
}

/// Waits for what another thread of the test has to say.
#[track_caller]
pub fn receive<T>(from: &Receiver<T>) -> T {
    from.recv_timeout(PATIENCE).expect("the other thread of this test said nothing")
}
