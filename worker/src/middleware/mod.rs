//! What is decided or written on behalf of a request before it goes on.

pub(crate) mod forwarded;
#[cfg(feature = "misbehave")]
pub(crate) mod misbehave;
