//! What is told of an exchange: variables, the access log, counters.

pub(crate) mod access;
pub(crate) mod flight;
pub(crate) mod record;
pub(crate) mod time;
