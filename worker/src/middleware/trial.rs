//! A trial's requests: those that ask the worker to fail. No ordinary build has this.

use nix::sys::signal::{Signal, raise};

use crate::message::head::Request;

/// The field that names the signal to die of.
const FIELD: &str = "x-trial-crash";

/// Dies of what the request names, if it names something.
pub(crate) fn obey(request: Request<'_>) {
    let signal = match request.head.fields.find(FIELD, request.bytes) {
        Some(b"segv") => Signal::SIGSEGV,
        Some(b"abrt") => Signal::SIGABRT,
        Some(b"kill") => Signal::SIGKILL,
        _ => return,
    };
    // A handler that the runtime has for it lets the first one pass.
    while raise(signal).is_ok() {}
}
