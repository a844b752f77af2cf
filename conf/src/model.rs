//! The checked configuration: what every other part of the proxy reads.
//!
//! Nothing here is optional in the sense of "means the default": defaults were filled in by `validate`. An `Option`
//! is a thing that can be off. Names are resolved to indexes, so that a reader never meets a dangling one.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::template::Template;
use crate::value::{Address, IpNet};

/// One whole configuration, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// How many workers to run.
    pub worker_processes: WorkerProcesses,
    /// Which cores workers are pinned to.
    pub worker_cpu_affinity: CpuAffinity,
    /// The most connections, of clients and to servers together, that one worker holds open.
    pub worker_connections: u32,
    /// Whom the workers run as; only obeyed when the master starts as root.
    pub user: Option<User>,
    /// Whether to leave the terminal once the workers are ready.
    pub daemon: bool,
    /// Where the master's pid is written; `None` means `sluice.pid` in the runtime directory.
    pub pid_file: Option<PathBuf>,
    /// Where zone, lock and sockets live; `None` means the default of who runs it.
    pub runtime_dir: Option<PathBuf>,
    /// How long old workers may take to finish their connections after a reload or a graceful quit.
    pub shutdown_timeout: Duration,
    /// How long a worker's loop may stand still, if that is bounded.
    pub watchdog: Option<Duration>,
    /// Where errors and operational messages go.
    pub error_log: ErrorLog,
    /// Where requests are logged, if anywhere.
    pub access_log: Option<AccessLog>,
    /// The sockets clients connect to, in file order.
    pub listeners: Vec<Listener>,
    /// Named sets of servers, in file order.
    pub upstreams: Vec<Upstream>,
    /// Which request goes where, in file order.
    pub routes: Vec<Route>,
    /// Time limits of what is not a route's business; a route's own are in [`Route::timeouts`].
    pub timeouts: Timeouts,
    /// Size limits; a route's own are in [`Route::limits`].
    pub limits: Limits,
    /// Addresses of proxies whose forwarding header fields are believed.
    pub trusted_proxies: Vec<IpNet>,
}

/// How many workers to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerProcesses {
    /// One a core that the master may run on.
    Auto,
    /// This many, 1 to 512.
    Exactly(u32),
}

/// Which cores workers are pinned to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuAffinity {
    /// The scheduler decides.
    Off,
    /// Seat `n` runs on the `n`th allowed core, wrapping around.
    Auto,
    /// Seat `n` runs on the cores of the `n`th entry, wrapping around.
    Cores(Vec<Vec<u32>>),
}

/// An account by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The account.
    pub name: String,
    /// Its group; `None` means the account's own.
    pub group: Option<String>,
}

/// Where errors and operational messages go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorLog {
    /// The file or stream.
    pub target: LogTarget,
    /// The least severe level that is written.
    pub level: LogLevel,
    /// How a message is rendered.
    pub format: ErrorLogFormat,
}

/// A place that lines go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// The master's standard error.
    Stderr,
    /// The master's standard output.
    Stdout,
    /// A file or a named pipe, opened for appending by the master.
    File(PathBuf),
}

/// Severity of an operational message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Everything, for developers.
    Debug,
    /// What happened.
    Info,
    /// What someone should look at.
    Warning,
    /// What went wrong.
    Error,
    /// What stops the proxy.
    Critical,
}

/// How an operational message is rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ErrorLogFormat {
    /// One human-readable line.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where and how requests are logged.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessLog {
    /// The file or stream.
    pub target: LogTarget,
    /// What a line looks like.
    pub format: AccessLogFormat,
}

/// What a line of the access log looks like.
#[derive(Debug, Clone, PartialEq)]
pub enum AccessLogFormat {
    /// nginx's `combined`.
    Combined,
    /// One JSON object a line.
    Json,
    /// The operator's own.
    Template(Template),
}

/// A socket that clients connect to. Its identity is its address's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens.
    pub address: Address,
    /// The most connections the kernel queues on one socket.
    pub backlog: u32,
    /// One SO_REUSEPORT socket a seat, rather than one for all; never for unix sockets.
    pub reuseport: bool,
    /// Every connection opens with a PROXY protocol header (v1 or v2), and one without is refused.
    pub proxy_protocol: bool,
}

/// A named set of servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Its identity.
    pub name: String,
    /// The servers; at least one; no address twice.
    pub servers: Vec<Server>,
    /// How idle connections to them are kept.
    pub keep_alive: KeepAlive,
    /// The PROXY protocol header sent first on each connection.
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// One address in an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Where it listens. The address's text is its identity within the upstream.
    pub address: Address,
    /// Its share of the requests in proportion to its siblings', 1 to 65535.
    pub weight: u32,
}

/// How idle upstream connections are kept. Counts are a worker's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepAlive {
    /// The most idle connections kept to a server by one worker; 0 keeps none.
    pub idle_max: u32,
    /// How long one may be idle.
    pub idle_timeout: Duration,
    /// How many requests one serves before it is closed; 0 means no limit.
    pub requests_max: u64,
    /// How old one may become.
    pub age_max: Duration,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// The line of text.
    V1,
    /// The binary header.
    V2,
}

/// Which requests, and what is done with them.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Its identity.
    pub name: String,
    /// Which requests.
    pub matcher: Match,
    /// What is done with them.
    pub action: Action,
    /// Time limits of an exchange on this route.
    pub timeouts: RouteTimeouts,
    /// Size limits of an exchange on this route.
    pub limits: RouteLimits,
}

/// Which requests a route takes.
///
/// Among routes the most specific host decides (exact, then the longest wildcard, then any), then an exact path, then
/// the longest prefix, then file order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// Hosts, any of which will do; empty means any host. Lower case, without port.
    pub hosts: Vec<HostPattern>,
    /// The path.
    pub path: PathPattern,
}

/// A host, or all hosts below one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// This host.
    Exact(String),
    /// `*.example.com`, held as `example.com`: any name below it, at any depth, but not itself.
    Wildcard(String),
}

/// A path, compared byte for byte after normalisation (percent-decoding of unreserved characters, dot segments).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PathPattern {
    /// This path.
    Exact(String),
    /// Paths that begin with these bytes.
    Prefix(String),
}

/// What is done with a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// It is sent to a server of [`Config::upstreams`] at this index.
    Upstream(usize),
    /// It is answered at once.
    Respond(Respond),
    /// The client is sent elsewhere.
    Redirect(Redirect),
}

/// A fixed answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Respond {
    /// 200 to 599.
    pub status: u16,
    /// Header fields; names are valid tokens, none is hop-by-hop or a framing field.
    pub headers: BTreeMap<String, Template>,
    /// The body.
    pub body: Template,
}

/// An answer that sends the client elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// The `Location` field.
    pub location: Template,
}

/// Time limits that hold before a route is known, and the defaults of those that a route may override.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// From the first byte of a request (or the connection's start) to the end of its head.
    pub client_head: Duration,
    /// How long a client's connection may idle between requests.
    pub keep_alive: Duration,
    /// See [`RouteTimeouts`].
    pub route: RouteTimeouts,
}

/// Time limits of an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteTimeouts {
    /// Between two reads of a request's body.
    pub client_body: Duration,
    /// Between two writes of a response.
    pub client_send: Duration,
    /// To connect to a server.
    pub connect: Duration,
    /// Between two writes of a request to a server.
    pub upstream_send: Duration,
    /// Between two reads of a server's response; bounds the wait for its head too.
    pub upstream_read: Duration,
    /// Between two bytes, in either direction, of a tunnel (after an upgrade).
    pub tunnel_idle: Duration,
    /// From the end of the request's head to the end of the response; does not bound tunnels.
    pub exchange: Option<Duration>,
}

/// Size limits that hold before a route is known, and the defaults of those that a route may override.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The largest head, of a request or of a response, in bytes; 1 KiB to 64 KiB.
    pub head_bytes: usize,
    /// The most header fields in a head, and in a trailer section; 8 to 512.
    pub header_count: usize,
    /// The most client connections of one worker; at most [`Config::worker_connections`].
    pub connections: u32,
    /// How many requests one client connection may carry; 0 means no limit.
    pub keep_alive_requests: u64,
    /// See [`RouteLimits`].
    pub route: RouteLimits,
}

/// Size limits of an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteLimits {
    /// The largest request body in bytes; `None` means no limit.
    pub body_bytes: Option<u64>,
}

impl LogLevel {
    /// The word that a configuration has for it.
    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Debug => "debug",
            LogLevel::Info => "info",
            LogLevel::Warning => "warning",
            LogLevel::Error => "error",
            LogLevel::Critical => "critical",
        }
    }
}

impl ErrorLogFormat {
    /// The word that a configuration has for it.
    pub fn name(self) -> &'static str {
        match self {
            ErrorLogFormat::Text => "text",
            ErrorLogFormat::Json => "json",
        }
    }
}

impl ProxyProtocol {
    /// The word that a configuration has for it.
    pub fn name(self) -> &'static str {
        match self {
            ProxyProtocol::V1 => "v1",
            ProxyProtocol::V2 => "v2",
        }
    }
}

impl Listener {
    /// The TCP address, unless it is a unix socket.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match &self.address {
            Address::Inet(address) => Some(*address),
            Address::Unix(_) => None,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Exact(name) => f.write_str(name),
            HostPattern::Wildcard(name) => write!(f, "*.{name}"),
        }
    }
}

impl fmt::Display for Match {
    /// The name of a route that was given none: the hosts, the path, and `*` after a prefix.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if index == 0 { "" } else { "," })?;
        }
        match &self.path {
            PathPattern::Exact(path) => f.write_str(path),
            PathPattern::Prefix(path) => write!(f, "{path}*"),
        }
    }
}
