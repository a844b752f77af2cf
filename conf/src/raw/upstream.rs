//! Upstreams, as written.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::field::Field;
use crate::form::Int;
use crate::leaf::Written;
use crate::model::ProxyProtocol;
use crate::quantity::Period;
use crate::value::Address;

/// A set of servers, among which requests are shared out.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["servers"]))]
pub(crate) struct Upstream {
    /// The servers; at least one, no address twice.
    pub(crate) servers: Field<Vec<Field<Server>>>,
    /// How idle connections to the servers are kept.
    pub(crate) keep_alive: Field<KeepAlive>,
    /// The version of the PROXY protocol header, naming the client, that each connection begins with. Such a connection
    /// serves one client connection only. Default: none is sent.
    pub(crate) proxy_protocol: Field<ProxyProtocol>,
}

/// A server.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(untagged, inline)]
pub(crate) enum Server {
    /// Its address.
    Text(Written<Address>),
    /// In full.
    Map(ServerKeys),
}

/// A server, in full.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Server", extend("required" = ["address"]))]
pub(crate) struct ServerKeys {
    /// Where it listens: `HOST:PORT` with an IPv4 address, `[HOST]:PORT` with an IPv6 address, or `unix:/PATH`.
    pub(crate) address: Field<Written<Address>>,
    /// Its share of the requests, in proportion to the weights of the others.
    #[schemars(extend("default" = 1))]
    pub(crate) weight: Field<Written<Int<1, 65535>>>,
}

/// How idle connections to servers are kept, so that the next request need not connect.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct KeepAlive {
    /// The most idle connections that one worker keeps to a server; 0 keeps none.
    #[schemars(extend("default" = 512))]
    pub(crate) idle_max: Field<Written<Int<0, 1_048_576>>>,
    /// How long one may be idle. Best below the server's own limit.
    #[schemars(extend("default" = "1m"))]
    pub(crate) idle_timeout: Field<Written<Period>>,
    /// How many requests one serves before it is closed; 0 for no limit.
    #[schemars(extend("default" = 0))]
    pub(crate) requests_max: Field<Written<Int<0, { u32::MAX as u64 }>>>,
    /// How old one may become before it is closed, once idle: what lets a change behind an address, as of a load
    /// balancer's, be noticed.
    #[schemars(extend("default" = "1h"))]
    pub(crate) age_max: Field<Written<Period>>,
}
