//! What two processes of one proxy agree on: the zone they share, the descriptors they pass, the channel they
//! talk through, and the form of a log line.
//!
//! Deliberately absent: configuration, sockets that carry traffic, threads.

#![deny(unsafe_code)]

pub mod channel;
pub mod clock;
pub mod estate;
pub mod fd;
pub mod handover;
pub mod health;
pub mod ident;
pub mod log;
pub mod stats;
pub mod zone;
