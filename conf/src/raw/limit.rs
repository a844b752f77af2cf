//! Timeouts and limits, as written.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::field::Field;
use crate::form::{Int, OrOff, Size};
use crate::leaf::Written;
use crate::quantity::Period;

/// The largest body that can be named: the most a signed 64-bit count holds.
pub(crate) const BODY_BYTES_MAX: u64 = i64::MAX as u64;

/// How long things may take. From `client_body` on, a route may have its own.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Timeouts {
    /// From the first byte of a request, or from the start of the connection, to the end of the request's head.
    #[schemars(extend("default" = "15s"))]
    pub(crate) client_head: Field<Written<Period>>,
    /// How long a client's connection may idle between requests. One request a connection is `keep_alive_requests: 1`
    /// in `limits`.
    #[schemars(extend("default" = "1m15s"))]
    pub(crate) keep_alive: Field<Written<Period>>,
    /// Between two reads of a request's body.
    #[schemars(extend("default" = "30s"))]
    pub(crate) client_body: Field<Written<Period>>,
    /// Between two writes of a response.
    #[schemars(extend("default" = "30s"))]
    pub(crate) client_send: Field<Written<Period>>,
    /// To connect to a server.
    #[schemars(extend("default" = "5s"))]
    pub(crate) connect: Field<Written<Period>>,
    /// Between two writes of a request to a server.
    #[schemars(extend("default" = "30s"))]
    pub(crate) upstream_send: Field<Written<Period>>,
    /// Between two reads of a server's response; bounds the wait for its head too.
    #[schemars(extend("default" = "1m"))]
    pub(crate) upstream_read: Field<Written<Period>>,
    /// Between two bytes, in either direction, of a tunnel, which is what a connection becomes after an upgrade to
    /// WebSocket.
    #[schemars(extend("default" = "10m"))]
    pub(crate) tunnel_idle: Field<Written<Period>>,
    /// From the end of the request's head to the end of the response, or `off`. Does not bound tunnels.
    #[schemars(extend("default" = "off"))]
    pub(crate) exchange: Field<Written<OrOff<Period>>>,
}

/// How long an exchange on a route may take. What is not given is as at the top level.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RouteTimeouts {
    /// Between two reads of a request's body.
    pub(crate) client_body: Field<Written<Period>>,
    /// Between two writes of a response.
    pub(crate) client_send: Field<Written<Period>>,
    /// To connect to a server.
    pub(crate) connect: Field<Written<Period>>,
    /// Between two writes of a request to a server.
    pub(crate) upstream_send: Field<Written<Period>>,
    /// Between two reads of a server's response; bounds the wait for its head too.
    pub(crate) upstream_read: Field<Written<Period>>,
    /// Between two bytes, in either direction, of a tunnel.
    pub(crate) tunnel_idle: Field<Written<Period>>,
    /// From the end of the request's head to the end of the response, or `off`. Does not bound tunnels.
    pub(crate) exchange: Field<Written<OrOff<Period>>>,
}

/// How large things may be, and how many.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// The largest head, of a request or of a response: the first line and all fields. Each connection that is reading
    /// a head may hold this much.
    #[schemars(extend("default" = "16KiB"))]
    pub(crate) head_bytes: Field<Written<Size<1024, 65536>>>,
    /// The most header fields in a head, and in a trailer section.
    #[schemars(extend("default" = 100))]
    pub(crate) header_count: Field<Written<Int<8, 512>>>,
    /// The most client connections of one worker; beyond it the longest idle one is closed for the new one. Default:
    /// half of `worker_connections`, so that each may have a connection to a server.
    pub(crate) connections: Field<Written<Int<1, 1_048_576>>>,
    /// How many requests one client connection may carry; 0 for no limit.
    #[schemars(extend("default" = 0))]
    pub(crate) keep_alive_requests: Field<Written<Int<0, { u32::MAX as u64 }>>>,
    /// The largest request body, or `off`; larger ones are answered 413. Bodies are passed on as they come and never
    /// held whole, so this protects the servers rather than the proxy: the default lets ordinary uploads through and
    /// stops what would fill a disk. A route may have its own.
    #[schemars(extend("default" = "1GiB"))]
    pub(crate) body_bytes: Field<Written<OrOff<Size<0, BODY_BYTES_MAX>>>>,
}

/// How large an exchange on a route may be. What is not given is as at the top level.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RouteLimits {
    /// The largest request body, or `off`; larger ones are answered 413.
    pub(crate) body_bytes: Field<Written<OrOff<Size<0, BODY_BYTES_MAX>>>>,
}
