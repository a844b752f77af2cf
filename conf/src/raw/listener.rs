//! Listeners, as written.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::field::Field;
use crate::form::{Int, Switch};
use crate::leaf::Written;
use crate::value::Address;

/// A socket that clients connect to.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["address"]))]
pub(crate) struct Listener {
    /// Where it listens: `HOST:PORT` with an IPv4 address, `[HOST]:PORT` with an IPv6 address, or `unix:/PATH`. No
    /// address twice.
    pub(crate) address: Field<Written<Address>>,
    /// The most connections that the kernel queues on one socket; the system's `net.core.somaxconn` caps it.
    #[schemars(extend("default" = 4096))]
    pub(crate) backlog: Field<Written<Int<1, 65535>>>,
    /// One socket a worker (SO_REUSEPORT), among which the kernel spreads connections, rather than one socket for all.
    /// A unix socket is always one for all. Default: true, false for a unix socket.
    pub(crate) reuseport: Field<Written<Switch>>,
    /// Every connection begins with a PROXY protocol header, version 1 or 2, which names the client; one without is
    /// closed.
    #[schemars(extend("default" = false))]
    pub(crate) proxy_protocol: Field<Written<Switch>>,
}
