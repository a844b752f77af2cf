//! The configuration as it is in effect: every default filled in, in one order, in a text that reads back as the same
//! configuration.

use std::path::PathBuf;
use std::time::Duration;

use crate::model::{
    AccessLog, AccessLogFormat, Action, Config, CpuAffinity, ErrorLog, KeepAlive, Limits, Listener, LogTarget, Match,
    PathPattern, Redirect, Respond, Route, RouteTimeouts, Server, Timeouts, Upstream, User, WorkerProcesses,
};
use crate::node::Node;
use crate::quantity::{Bytes, Period};

/// The tree of a configuration.
pub(crate) fn tree(config: &Config) -> Node {
    let optional = [
        ("user", config.user.as_ref().map(user)),
        path("pid_file", &config.pid_file),
        path("runtime_dir", &config.runtime_dir),
    ];
    let mut entries = vec![
        ("worker_processes", workers(config.worker_processes)),
        ("worker_cpu_affinity", affinity(&config.worker_cpu_affinity)),
        ("worker_connections", number(config.worker_connections)),
    ];
    entries.extend(optional.into_iter().filter_map(|(key, value)| Some((key, value?))));
    entries.extend([
        ("daemon", Node::Bool(config.daemon)),
        ("shutdown_timeout", period(config.shutdown_timeout)),
        ("watchdog", config.watchdog.map_or_else(off, period)),
        ("error_log", error_log(&config.error_log)),
        ("access_log", config.access_log.as_ref().map_or_else(off, access_log)),
        ("listeners", Node::list(config.listeners.iter().map(listener))),
        ("upstreams", Node::map(config.upstreams.iter().map(|it| (it.name.as_str(), upstream(it))))),
        ("routes", Node::list(config.routes.iter().map(|it| route(it, &config.upstreams)))),
        ("timeouts", timeouts(&config.timeouts)),
        ("limits", limits(&config.limits)),
        ("trusted_proxies", Node::list(config.trusted_proxies.iter().map(Node::text))),
    ]);
    Node::map(entries)
}

fn off() -> Node {
    Node::text("off")
}

fn number(value: impl Into<i128>) -> Node {
    Node::Integer(value.into())
}

fn period(value: Duration) -> Node {
    Node::text(Period(value))
}

fn path(key: &'static str, value: &Option<PathBuf>) -> (&'static str, Option<Node>) {
    (key, value.as_ref().map(|path| Node::text(path.display())))
}

fn user(user: &User) -> Node {
    match &user.group {
        Some(group) => Node::Text(format!("{}:{group}", user.name)),
        None => Node::text(&user.name),
    }
}

fn workers(workers: WorkerProcesses) -> Node {
    match workers {
        WorkerProcesses::Auto => Node::text("auto"),
        WorkerProcesses::Exactly(count) => number(count),
    }
}

fn affinity(affinity: &CpuAffinity) -> Node {
    match affinity {
        CpuAffinity::Off => off(),
        CpuAffinity::Auto => Node::text("auto"),
        CpuAffinity::Cores(seats) => {
            Node::list(seats.iter().map(|cores| Node::list(cores.iter().map(|core| number(*core)))))
        }
    }
}

fn target(target: &LogTarget) -> Node {
    match target {
        LogTarget::Stderr => Node::text("stderr"),
        LogTarget::Stdout => Node::text("stdout"),
        LogTarget::File(path) => Node::text(path.display()),
    }
}

fn error_log(log: &ErrorLog) -> Node {
    Node::map([
        ("path", target(&log.target)),
        ("level", Node::text(log.level.name())),
        ("format", Node::text(log.format.name())),
    ])
}

fn access_log(log: &AccessLog) -> Node {
    let format = match &log.format {
        AccessLogFormat::Combined => Node::text("combined"),
        AccessLogFormat::Json => Node::text("json"),
        AccessLogFormat::Template(template) => Node::text(template),
    };
    Node::map([("path", target(&log.target)), ("format", format)])
}

fn listener(listener: &Listener) -> Node {
    Node::map([
        ("address", Node::text(&listener.address)),
        ("backlog", number(listener.backlog)),
        ("reuseport", Node::Bool(listener.reuseport)),
        ("proxy_protocol", Node::Bool(listener.proxy_protocol)),
    ])
}

fn upstream(upstream: &Upstream) -> Node {
    let server =
        |server: &Server| Node::map([("address", Node::text(&server.address)), ("weight", number(server.weight))]);
    let KeepAlive { idle_max, idle_timeout, requests_max, age_max } = upstream.keep_alive;
    let keep_alive = Node::map([
        ("idle_max", number(idle_max)),
        ("idle_timeout", period(idle_timeout)),
        ("requests_max", number(requests_max)),
        ("age_max", period(age_max)),
    ]);
    let mut entries = vec![("servers", Node::list(upstream.servers.iter().map(server))), ("keep_alive", keep_alive)];
    entries.extend(upstream.proxy_protocol.map(|version| ("proxy_protocol", Node::text(version.name()))));
    Node::map(entries)
}

fn route(route: &Route, upstreams: &[Upstream]) -> Node {
    let action = match &route.action {
        // The index was made from a name in the same configuration.
        Action::Upstream(index) => {
            ("upstream", Node::text(upstreams.get(*index).map_or("", |upstream| &upstream.name)))
        }
        Action::Respond(it) => ("respond", respond(it)),
        Action::Redirect(it) => ("redirect", redirect(it)),
    };
    Node::map([
        ("name", Node::text(&route.name)),
        ("match", matcher(&route.matcher)),
        action,
        ("timeouts", Node::map(route_timeouts(&route.timeouts))),
        ("limits", Node::map([("body_bytes", body_bytes(route.limits.body_bytes))])),
    ])
}

fn matcher(matcher: &Match) -> Node {
    let path = match &matcher.path {
        PathPattern::Exact(path) => ("exact", Node::text(path)),
        PathPattern::Prefix(path) => ("prefix", Node::text(path)),
    };
    let hosts = Node::list(matcher.hosts.iter().map(Node::text));
    let path = ("path", Node::map([path]));
    if matcher.hosts.is_empty() { Node::map([path]) } else { Node::map([("hosts", hosts), path]) }
}

fn respond(respond: &Respond) -> Node {
    Node::map([
        ("status", number(respond.status)),
        ("headers", Node::map(respond.headers.iter().map(|(name, value)| (name.as_str(), Node::text(value))))),
        ("body", Node::text(&respond.body)),
    ])
}

fn redirect(redirect: &Redirect) -> Node {
    Node::map([("status", number(redirect.status)), ("location", Node::text(&redirect.location))])
}

fn timeouts(timeouts: &Timeouts) -> Node {
    let own = [("client_head", period(timeouts.client_head)), ("keep_alive", period(timeouts.keep_alive))];
    Node::map(own.into_iter().chain(route_timeouts(&timeouts.route)))
}

fn route_timeouts(timeouts: &RouteTimeouts) -> [(&'static str, Node); 7] {
    [
        ("client_body", period(timeouts.client_body)),
        ("client_send", period(timeouts.client_send)),
        ("connect", period(timeouts.connect)),
        ("upstream_send", period(timeouts.upstream_send)),
        ("upstream_read", period(timeouts.upstream_read)),
        ("tunnel_idle", period(timeouts.tunnel_idle)),
        ("exchange", timeouts.exchange.map_or_else(off, period)),
    ]
}

fn limits(limits: &Limits) -> Node {
    Node::map([
        ("head_bytes", Node::text(Bytes(limits.head_bytes as u64))),
        ("header_count", number(limits.header_count as u64)),
        ("connections", number(limits.connections)),
        ("keep_alive_requests", number(limits.keep_alive_requests)),
        ("body_bytes", body_bytes(limits.route.body_bytes)),
    ])
}

fn body_bytes(limit: Option<u64>) -> Node {
    limit.map_or_else(off, |bytes| Node::text(Bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::model::Config;
    use crate::raw;
    use crate::template::Template;

    use super::*;

    const RICH: &str = "
worker_processes: 3
worker_cpu_affinity: [[0, 1], [2]]
user: www:web
daemon: on
pid_file: a.pid
runtime_dir: 'no'
error_log: {path: stdout, level: debug, format: json}
access_log: {path: 'off', format: '$remote_addr \"$request\" $$'}
listeners: [{address: '[::1]:80'}, {address: 'unix:/a: b', proxy_protocol: on, backlog: 1}]
upstreams:
  \"1\": {servers: [{address: 10.0.0.1:80, weight: 7}], proxy_protocol: v2}
  b: {servers: ['unix:/b'], keep_alive: {idle_max: 0, requests_max: 3, age_max: 1d}}
routes:
  - {match: {path: /, hosts: ['*.a.b', C]}, upstream: 1x, timeouts: {exchange: 5s}, limits: {body_bytes: off}}
  - {name: 'null', match: {path: {exact: /}}, upstream: b}
  - {match: {path: /r}, redirect: {status: 308, location: 'https://${host}'}}
  - {match: {path: /s}, respond: {status: 404, headers: {X-A: '#', x-b: '${arg_x}y'}, body: x}}
timeouts: {exchange: 1h, client_head: 1ms}
limits: {body_bytes: 10, head_bytes: 1KiB}
trusted_proxies: [10.0.0.0/8, '::1', 'unix:']
";

    fn rich() -> Config {
        crate::parse(&RICH.replace("1x", "'1'").replace("'off'", "./off"), "rich").unwrap().config
    }

    #[test]
    fn everything_that_can_be_said_reads_back() {
        let config = rich();
        let text = raw::print(&tree(&config));
        assert_eq!(crate::parse(&text, "effective").unwrap().config, config, "{text}");
    }

    proptest! {
        #[test]
        fn any_value_reads_back(
            body in any::<String>(),
            field in "[!-~]( ?[!-~])*",
            millis in 1_u64..=365 * 24 * 3_600_000,
            bytes in proptest::option::of(0..=i64::MAX as u64),
            file in "[^\0]+",
        ) {
            let mut config = rich();
            let literal = |text: &str| Template::parse(&text.replace('$', "$$")).unwrap();
            config.timeouts.client_head = Duration::from_millis(millis);
            config.routes[0].limits.body_bytes = bytes;
            config.pid_file = Some(PathBuf::from(file));
            if let Action::Respond(respond) = &mut config.routes[3].action {
                respond.body = literal(&body);
                respond.headers.insert("X-Any".into(), literal(&field));
            }
            let text = raw::print(&tree(&config));
            let read = crate::parse(&text, "effective");
            prop_assert_eq!(read.map(|loaded| loaded.config), Ok(config), "{}", text);
        }
    }
}
