//! Requests that ask the worker to fail, and a worker that fails all of them. No ordinary build has this.

use std::sync::OnceLock;

use nix::sys::signal::{Signal, raise};

use crate::message::head::Request;

/// The field that names how to fail.
const FIELD: &str = "x-misbehave";
/// The environment variable that names how to fail every request.
const VARIABLE: &str = "SLUICE_MISBEHAVE";

/// Dies of what the request or the environment names, or says what is to be answered in place of anything else.
pub(crate) fn obey(request: Request<'_>) -> Option<u16> {
    static EVERY: OnceLock<String> = OnceLock::new();
    let every = EVERY.get_or_init(|| std::env::var(VARIABLE).unwrap_or_default());
    let signal = match request.head.fields.find(FIELD, request.bytes).unwrap_or(every.as_bytes()) {
        b"segv" => Signal::SIGSEGV,
        b"abrt" => Signal::SIGABRT,
        b"kill" => Signal::SIGKILL,
        b"500" => return Some(500),
        _ => return None,
    };
    // A handler that the runtime has for it lets the first one pass.
    while raise(signal).is_ok() {}
    None
}
