//! The kit that judges the proxy from outside, as clients, servers and operators meet it.
//!
//! A test is a conversation between a scripted [`Origin`], a running [`Proxy`] and a [`Wire`] that plays the client:
//!
//! ```no_run
//! use integration::{Origin, Proxy, ok};
//!
//! let origin = Origin::answering(ok("hi"));
//! let proxy = Proxy::before(&origin);
//! let mut client = proxy.client();
//! client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
//! assert_eq!(client.response().body, b"hi");
//! ```
//!
//! What goes wrong in a test panics, with what was seen: that is how a judge speaks. Nothing waits for a fixed time;
//! every wait is for a fact, and gives up after [`PATIENCE`]. When a [`Proxy`] is dropped, nothing of it may be left
//! running.

#![forbid(unsafe_code)]

mod binary;
mod judge;
mod message;
mod nginx;
mod origin;
mod patience;
mod process;
mod proxy;
mod stats;
mod wire;

pub use binary::{Binary, Finished};
pub use judge::{Judge, cache};
pub use message::{Head, Message, ok};
pub use nginx::Nginx;
pub use origin::Origin;
pub use patience::{PATIENCE, eventually, receive, until};
pub use process::{Process, raise_descriptor_limit};
pub use proxy::{Proxy, free_port};
pub use stats::Stats;
pub use wire::{Ending, Wire};
