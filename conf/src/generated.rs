//! Configurations made at random, for properties: valid ones, with few names, so that two of them have much in common.

use std::path::PathBuf;
use std::time::Duration;

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::model::{
    AccessLog, AccessLogFormat, Action, Config, CpuAffinity, ErrorLog, ErrorLogFormat, HostPattern, KeepAlive, Limits,
    Listener, LogLevel, LogTarget, Match, PathPattern, ProxyProtocol, Redirect, Respond, Route, RouteLimits,
    RouteTimeouts, Server, Timeouts, Upstream, User, WorkerProcesses,
};
use crate::template::Template;
use crate::value::Address;

/// Any configuration.
pub(crate) fn config() -> impl Strategy<Value = Config> {
    (process(), logs(), listeners(), upstreams(), timeouts(), route_limits())
        .prop_flat_map(|parts| {
            let routes = routes(parts.3.len());
            (Just(parts), routes, 8_usize..20, trusted())
        })
        .prop_map(|((process, logs, listeners, upstreams, timeouts, limits), routes, number, trusted)| {
            let (workers, affinity, user, files, daemon, (shutdown_timeout, watchdog)) = process;
            Config {
                worker_processes: workers,
                worker_cpu_affinity: affinity,
                worker_connections: 1000,
                user,
                daemon,
                pid_file: files.0,
                runtime_dir: files.1,
                shutdown_timeout,
                watchdog,
                error_log: logs.0,
                access_log: logs.1,
                listeners,
                upstreams,
                routes,
                timeouts,
                limits: Limits {
                    head_bytes: 1024 * number,
                    header_count: number,
                    connections: 500,
                    keep_alive_requests: 7,
                    route: limits,
                },
                trusted_proxies: trusted.iter().map(|text| text.parse().unwrap()).collect(),
            }
        })
}

/// Some of these, in any order.
fn some<T: Clone + std::fmt::Debug + 'static>(pool: Vec<T>, least: usize) -> impl Strategy<Value = Vec<T>> {
    let most = pool.len();
    subsequence(pool, least..=most).prop_shuffle()
}

fn texts(pool: &[&str]) -> Vec<String> {
    pool.iter().map(ToString::to_string).collect()
}

fn period() -> impl Strategy<Value = Duration> {
    (2_u64..5).prop_map(Duration::from_secs)
}

type Process = (WorkerProcesses, CpuAffinity, Option<User>, (Option<PathBuf>, Option<PathBuf>), bool, Waits);
type Waits = (Duration, Option<Duration>);

fn process() -> impl Strategy<Value = Process> {
    let workers = prop_oneof![Just(WorkerProcesses::Auto), (1_u32..4).prop_map(WorkerProcesses::Exactly)];
    let affinity = prop_oneof![
        Just(CpuAffinity::Off),
        Just(CpuAffinity::Auto),
        vec(vec(0_u32..3, 1..3), 1..3).prop_map(CpuAffinity::Cores)
    ];
    let user = (select(vec!["www", "web"]), of(Just("staff".to_owned())))
        .prop_map(|(name, group)| User { name: name.into(), group });
    let path = || of(select(vec!["/run/a", "b: c"]).prop_map(PathBuf::from));
    (workers, affinity, of(user), (path(), path()), any::<bool>(), (period(), of(period())))
}

fn logs() -> impl Strategy<Value = (ErrorLog, Option<AccessLog>)> {
    let target = || select(vec![LogTarget::Stderr, LogTarget::Stdout, LogTarget::File("/var/log/x".into())]);
    let level = select(vec![LogLevel::Debug, LogLevel::Warning]);
    let format = select(vec![ErrorLogFormat::Text, ErrorLogFormat::Json]);
    let error = (target(), level, format).prop_map(|(target, level, format)| ErrorLog { target, level, format });
    let line = Template::parse("$host \"$$\" ${arg_x}").unwrap();
    let format = select(vec![AccessLogFormat::Combined, AccessLogFormat::Json, AccessLogFormat::Template(line)]);
    let access = (target(), format).prop_map(|(target, format)| AccessLog { target, format });
    (error, of(access))
}

fn listeners() -> impl Strategy<Value = Vec<Listener>> {
    some(texts(&["127.0.0.1:80", "[::1]:80", "127.0.0.2:8080", "unix:/a", "unix:/b.c[d]"]), 1)
        .prop_flat_map(|addresses| {
            let each = (1_u32..4, any::<bool>(), any::<bool>());
            let count = addresses.len();
            (Just(addresses), vec(each, count))
        })
        .prop_map(|(addresses, rest)| {
            let listener = |(text, (backlog, reuseport, proxy_protocol)): (String, _)| {
                let address: Address = text.parse().unwrap();
                let reuseport = reuseport && matches!(address, Address::Inet(_));
                Listener { address, backlog, reuseport, proxy_protocol }
            };
            addresses.into_iter().zip(rest).map(listener).collect()
        })
}

fn upstreams() -> impl Strategy<Value = Vec<Upstream>> {
    some(texts(&["app", "1", "x.y[z]", "off"]), 1)
        .prop_flat_map(|names| names.into_iter().map(upstream).collect::<Vec<_>>())
}

fn upstream(name: String) -> impl Strategy<Value = Upstream> {
    let server = |(text, weight): (String, u32)| Server { address: text.parse().unwrap(), weight };
    let servers = some(texts(&["10.0.0.1:80", "10.0.0.2:80", "[2001:db8::1]:80", "unix:/s"]), 1)
        .prop_flat_map(|addresses| {
            let count = addresses.len();
            (Just(addresses), vec(1_u32..3, count))
        })
        .prop_map(move |(addresses, weights)| addresses.into_iter().zip(weights).map(server).collect());
    let keep_alive =
        (0_u32..2, period(), 0_u64..2, period()).prop_map(|(idle_max, idle_timeout, requests_max, age_max)| {
            KeepAlive { idle_max, idle_timeout, requests_max, age_max }
        });
    let protocol = of(select(vec![ProxyProtocol::V1, ProxyProtocol::V2]));
    (servers, keep_alive, protocol).prop_map(move |(servers, keep_alive, proxy_protocol)| Upstream {
        name: name.clone(),
        servers,
        keep_alive,
        proxy_protocol,
    })
}

fn routes(upstreams: usize) -> impl Strategy<Value = Vec<Route>> {
    some(texts(&["a", "b", "c.d", "e[f]", "g"]), 0)
        .prop_flat_map(move |names| names.into_iter().map(|name| route(name, upstreams)).collect::<Vec<_>>())
}

fn route(name: String, upstreams: usize) -> impl Strategy<Value = Route> {
    (matcher(), action(upstreams), route_timeouts(), route_limits()).prop_map(
        move |(matcher, action, timeouts, limits)| Route { name: name.clone(), matcher, action, timeouts, limits },
    )
}

fn matcher() -> impl Strategy<Value = Match> {
    let pattern = |text: &str| text.parse::<HostPattern>().unwrap();
    let hosts = some(["t", "a.t", "*.t", "*.a.t"].map(pattern).to_vec(), 0);
    let path = (select(vec!["/", "/a", "/a/b"]), any::<bool>()).prop_map(|(path, is_prefix)| {
        if is_prefix { PathPattern::Prefix(path.into()) } else { PathPattern::Exact(path.into()) }
    });
    (hosts, path).prop_map(|(hosts, path)| Match { hosts, path })
}

fn action(upstreams: usize) -> impl Strategy<Value = Action> {
    let template = |text: &str| Template::parse(text).unwrap();
    let values = ["", "(none)", "x: ${arg_y}", "[a, b]"].map(template).to_vec();
    let headers = proptest::collection::btree_map(select(texts(&["X-A", "X-B"])), select(values.clone()), 0..3);
    let respond = (select(vec![200_u16, 404]), headers, select(values))
        .prop_map(|(status, headers, body)| Action::Respond(Respond { status, headers, body }));
    let location = template("https://$host$request_uri");
    let redirect = select(vec![301_u16, 308])
        .prop_map(move |status| Action::Redirect(Redirect { status, location: location.clone() }));
    prop_oneof![(0..upstreams).prop_map(Action::Upstream), respond, redirect]
}

fn route_timeouts() -> impl Strategy<Value = RouteTimeouts> {
    (period(), period(), period(), period(), period(), period(), of(period())).prop_map(
        |(client_body, client_send, connect, upstream_send, upstream_read, tunnel_idle, exchange)| RouteTimeouts {
            client_body,
            client_send,
            connect,
            upstream_send,
            upstream_read,
            tunnel_idle,
            exchange,
        },
    )
}

fn timeouts() -> impl Strategy<Value = Timeouts> {
    (period(), period(), route_timeouts()).prop_map(|(client_head, keep_alive, route)| Timeouts {
        client_head,
        keep_alive,
        route,
    })
}

fn route_limits() -> impl Strategy<Value = RouteLimits> {
    of(0_u64..2).prop_map(|body_bytes| RouteLimits { body_bytes })
}

fn trusted() -> impl Strategy<Value = Vec<&'static str>> {
    some(vec!["10.0.0.0/8", "::1/128", "unix:"], 0)
}
