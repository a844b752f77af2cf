//! From what is written to what is meant: defaults filled in, names resolved, and everything checked that takes more
//! than one value to check.
//!
//! Each part returns what it could make of its section. What it could not is in the report, and then nobody uses the
//! result.

mod listeners;
mod process;
mod routes;
mod upstreams;

use std::collections::HashMap;
use std::hash::Hash;

use crate::field::Field;
use crate::form::{Int, Size};
use crate::leaf::Written;
use crate::model::Config;
use crate::place::At;
use crate::problem::{Origin, Report};
use crate::raw::{File, Part};
use crate::value::Invalid;

/// A file's number, and what of it an included file could hold as well.
pub(crate) type Section = (usize, Part);

/// Checks a configuration; `sections` are those of the main file, then those of the included files in order.
pub(crate) fn config(file: &File, sections: &[Section], report: &Report) -> Config {
    let root = At::root(0);
    let worker_connections = number(&file.worker_connections, 16_384);
    let limits = process::limits(file.limits.given(), worker_connections, &root.key("limits"), report);
    let timeouts = process::timeouts(file.timeouts.given());
    let (upstreams, names) = upstreams::all(sections, report);
    let routes = routes::all(sections, &names, (&timeouts.route, &limits.route), report);
    Config {
        worker_processes: file.worker_processes.or(crate::model::WorkerProcesses::Auto),
        worker_cpu_affinity: process::affinity(&file.worker_cpu_affinity, &root.key("worker_cpu_affinity"), report),
        worker_connections,
        user: file.user.given().map(|user| user.0.clone()),
        daemon: file.daemon.given().is_some_and(|daemon| daemon.0.0),
        pid_file: file.pid_file.given().map(|path| path.0.0.clone()),
        runtime_dir: file.runtime_dir.given().map(|path| path.0.0.clone()),
        shutdown_timeout: process::period(&file.shutdown_timeout, 30_000),
        watchdog: process::watchdog(&file.watchdog, &root.key("watchdog"), report),
        error_log: process::error_log(file.error_log.given()),
        access_log: process::access_log(file.access_log.given(), &root.key("access_log"), report),
        listeners: listeners::all(sections, report),
        upstreams,
        routes,
        timeouts,
        limits,
        trusted_proxies: process::trusted_proxies(&file.trusted_proxies, &root.key("trusted_proxies"), report),
    }
}

/// Finds what may be there only once.
struct Once<K> {
    seen: HashMap<K, Origin>,
}

impl<K: Eq + Hash> Once<K> {
    fn new() -> Once<K> {
        Once { seen: HashMap::new() }
    }

    /// Notes a thing; when it was there before, reports that and is false.
    fn admit(&mut self, key: K, at: &At<'_>, report: &Report, message: impl FnOnce() -> String) -> bool {
        match self.seen.get(&key) {
            Some(first) => report.repeated(at, first, message()),
            None => {
                self.seen.insert(key, Origin::of(at));
                return true;
            }
        }
        false
    }
}

/// A bounded number as the type that the model has for it: the bounds are part of the type that it was read as.
fn number<T: TryFrom<u64>, const MIN: u64, const MAX: u64>(field: &Field<Written<Int<MIN, MAX>>>, default: T) -> T {
    field.given().and_then(|written| T::try_from(written.0.0).ok()).unwrap_or(default)
}

/// A bounded size as the type that the model has for it.
fn size<T: TryFrom<u64>, const MIN: u64, const MAX: u64>(field: &Field<Written<Size<MIN, MAX>>>, default: T) -> T {
    field.given().and_then(|written| T::try_from(written.0.0).ok()).unwrap_or(default)
}

/// The longest name of anything that has counters, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// Checks a name that statistics and logs will show, and the zone will hold.
fn check_name(name: &str) -> Result<(), Invalid> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(Invalid::new(format!("a name has from 1 to {NAME_BYTES_MAX} bytes, this one {}", name.len())));
    }
    if !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(
            Invalid::new(format!("`{}` is no name", name.escape_debug())).hint("printable ASCII without spaces")
        );
    }
    if name.starts_with('(') {
        return Err(Invalid::new(format!("`{name}` is no name")).hint("names in parentheses are the proxy's own"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::problem::{Problem, Severity};

    /// A good configuration, which the cases below spoil by adding lines.
    const GOOD: &str = "
listeners: [{address: 127.0.0.1:80}]
upstreams: {app: {servers: [10.0.0.1:80]}}
routes: [{match: {path: /}, upstream: app}]
";

    fn problems(text: &str) -> Vec<Problem> {
        match crate::parse(text, "test") {
            Ok(loaded) => loaded.warnings,
            Err(problems) => problems.0,
        }
    }

    /// The one problem that is expected, by its path, a part of its message, and a part of its hint.
    fn assert_one(text: &str, (path, message, hint): (&str, &str, &str), severity: Severity) {
        let found = problems(text);
        let [problem] = found.as_slice() else { panic!("{text}: {found:#?}") };
        assert_eq!((problem.path.as_str(), problem.severity), (path, severity), "{text}: {problem}");
        assert!(problem.message.contains(message), "{text}: {problem}");
        assert!(problem.hint.as_deref().unwrap_or_default().contains(hint), "{text}: {problem}");
    }

    #[test]
    fn a_good_configuration_has_no_problem() {
        assert_eq!(problems(GOOD), []);
    }

    #[test]
    fn one_wrong_key_at_the_top_is_one_problem() {
        let table = [
            ("worker_process: 2", "worker_process", "unknown key", "`worker_processes`"),
            ("colour: red", "colour", "unknown key", "known here"),
            ("worker_processes: many", "worker_processes", "number of workers", "auto"),
            ("worker_processes: 0", "worker_processes", "number of workers", "1 to 512"),
            ("worker_cpu_affinity: aut", "worker_cpu_affinity", "unknown value", "auto"),
            ("worker_cpu_affinity: [[0], []]", "worker_cpu_affinity[1]", "no core", "[0]"),
            ("worker_cpu_affinity: [0]", "worker_cpu_affinity[0]", "expected a list, found a number", ""),
            ("worker_cpu_affinity: []", "worker_cpu_affinity", "empty list", "auto"),
            ("worker_connections: 1.5", "worker_connections", "expected a whole number", ""),
            ("worker_connections: 8", "worker_connections", "out of range", "from 16"),
            ("user: 'a b'", "user", "no account", "name:group"),
            ("daemon: maybe", "daemon", "neither", "true or false"),
            ("pid_file: ''", "pid_file", "empty path", ""),
            ("runtime_dir: [a]", "runtime_dir", "expected a path, found a list", ""),
            ("shutdown_timeout: 30", "shutdown_timeout", "no unit", "write 30s"),
            ("watchdog: 100ms", "watchdog", "shorter", "2s"),
            ("error_log: {level: warn}", "error_log.level", "unknown value `warn`", "`warning`"),
            ("error_log: {path: stderr, format: xml}", "error_log.format", "unknown value", "text, json"),
            ("error_log: 5.5", "error_log", "a number does not fit", ""),
            ("access_log: {format: json}", "access_log.path", "missing", "stderr"),
            ("access_log: {path: a, format: jsn}", "access_log.format", "unknown format", "json"),
            ("access_log: {path: a, format: $hots}", "access_log.format", "unknown variable", "`$host`"),
            ("access_log: {path: a, format: \"$host\\n\"}", "access_log.format", "one line", ">-"),
            ("access_log: on", "access_log", "no value", "off"),
            ("timeouts: {connect: 0s}", "timeouts.connect", "out of range", "1ms"),
            ("timeouts: {conect: 1s}", "timeouts.conect", "unknown key", "`connect`"),
            ("timeouts: [1s, 2s]", "timeouts", "expected a mapping, found a list", ""),
            ("timeouts: 5s", "timeouts", "expected a mapping, found text", ""),
            ("limits: {head_bytes: 1MB}", "limits.head_bytes", "not a size", "1MiB"),
            ("limits: {head_bytes: 1MiB}", "limits.head_bytes", "out of range", "64KiB"),
            ("limits: {connections: 16385}", "limits.connections", "more than", "raise"),
            ("limits: {body_bytes: on}", "limits.body_bytes", "no value", "off"),
            ("trusted_proxies: [10.0.0.1/8]", "trusted_proxies[0]", "bits set", "10.0.0.0/8"),
            ("trusted_proxies: [10.0.0.0/8, ]\ndaemon:\nx-anchor: 5\nuser: 5.5", "user", "expected an account", ""),
            ("daemon: true\ndaemon: false", "daemon", "more than once", "keep one"),
        ];
        for (lines, path, message, hint) in table {
            assert_one(&format!("{GOOD}{lines}\n"), (path, message, hint), Severity::Error);
        }
    }

    #[test]
    fn one_wrong_section_is_one_problem() {
        let table = [
            ("127.0.0.1:80}", "127.0.0.1:80, addres: x}", "listeners[0].addres", "unknown key", "`address`"),
            ("[{address: 127.0.0.1:80}]", "[]", "listeners", "no listener", "address"),
            ("[{address: 127.0.0.1:80}]", "", "listeners", "no listener", "address"),
            ("{address: 127.0.0.1:80}", "{}", "listeners[0].address", "missing", "127.0.0.1"),
            ("{address: 127.0.0.1:80}", "127.0.0.1:80", "listeners[0]", "expected a mapping, found text", ""),
            ("127.0.0.1:80}", "localhost:80}", "listeners[0].address", "not an address", "127.0.0.1:80"),
            ("127.0.0.1:80}", "'unix:/a', reuseport: true}", "listeners[0].reuseport", "unix", "leave"),
            (
                "127.0.0.1:80}]",
                "127.0.0.1:80}, {address: 127.0.0.1:80}]",
                "listeners[1].address",
                "already",
                "test:2:23",
            ),
            ("127.0.0.1:80}]", "127.0.0.1:80}, ~]", "listeners[1]", "empty item", ""),
            ("127.0.0.1:80}", "127.0.0.1:80, backlog: '1k'}", "listeners[0].backlog", "not a whole number", "65535"),
            ("[10.0.0.1:80]", "[]", "upstreams.app.servers", "no server", "servers:"),
            ("{servers: [10.0.0.1:80]}", "", "upstreams.app.servers", "no server", "servers:"),
            ("{servers: [10.0.0.1:80]}", "5", "upstreams.app", "expected a mapping, found a number", ""),
            ("10.0.0.1:80]", "10.0.0.1:80, 10.0.0.1:80]", "upstreams.app.servers[1]", "already", "servers[0]"),
            ("10.0.0.1:80]", "{weight: 2}]", "upstreams.app.servers[0].address", "missing", "10.0.0.1"),
            (
                "10.0.0.1:80]",
                "{address: 10.0.0.1:80, weight: 0}]",
                "upstreams.app.servers[0].weight",
                "range",
                "from 1",
            ),
            ("80]}", "80], proxy_protocol: v3}", "upstreams.app.proxy_protocol", "unknown value", "v"),
            ("upstream: app}", "upstream: ap}", "routes[0].upstream", "no upstream `ap`", "`app`"),
            ("upstream: app}", "upstream: app, respond: {}}", "routes[0]", "several things", "one of"),
            ("match: {path: /}, ", "", "routes[0].match", "missing", "path: /"),
            ("{path: /}", "{}", "routes[0].match.path", "missing", "path: /"),
            ("{path: /}", "{path: {}}", "routes[0].match.path", "one of", ""),
            ("{path: /}", "{path: {exact: /a/../b}}", "routes[0].match.path.exact", "not the form", "/b"),
            ("{path: /}", "{path: x}", "routes[0].match.path", "begin", "/x"),
            ("{path: /}", "{path: /, hosts: [A.b, a.B]}", "routes[0].match.hosts[1]", "already", "hosts[0]"),
            ("{path: /}", "{path: /, hosts: [a.*]}", "routes[0].match.hosts[0]", "not a host", "*.example.com"),
            ("{path: /}", "{path: /, hosts: []}", "routes[0].match.hosts", "no host", "leave"),
            ("[{match", "[{name: (x), match", "routes[0].name", "no name", "parentheses"),
            ("[{match", "[{name: 5, match", "routes[0].name", "expected text, found a number", "\"5\""),
            ("app}]", "app}, {name: /*, match: {path: /a}, upstream: app}]", "routes[1].name", "already", "routes[0]"),
            ("app}]", "app, timeouts: {client_head: 1s}}]", "routes[0].timeouts.client_head", "unknown key", ""),
        ];
        for (old, new, path, message, hint) in table {
            assert_one(&GOOD.replacen(old, new, 1), (path, message, hint), Severity::Error);
        }
    }

    #[test]
    fn one_wrong_answer_is_one_problem() {
        let table = [
            ("respond: {status: 99}", "respond.status", "range", "200"),
            ("respond: {status: 204, body: x}", "respond.body", "no body", "remove"),
            ("respond: {body: 'costs $5'}", "respond.body", "unknown variable", "$$"),
            ("respond: {headers: {Content-Length: 5}}", "respond.headers.Content-Length", "by the proxy", "remove"),
            ("respond: {headers: {connection: close}}", "respond.headers.connection", "by the proxy", "remove"),
            ("respond: {headers: {'a b': c}}", "respond.headers.a b", "no field name", "token"),
            ("respond: {headers: {a: \"b\\r\\nc\"}}", "respond.headers.a", "line break", "one line"),
            ("respond: {headers: {a: ' b'}}", "respond.headers.a", "space", "remove"),
            ("respond: {headers: {a: }}", "respond.headers.a", "without a value", "\"\""),
            ("respond: {headers: {a: b, A: c}}", "respond.headers.A", "more than once", "headers.a"),
            ("redirect: {}", "redirect.location", "missing", "https://"),
            ("redirect: {location: ''}", "redirect.location", "empty", "https://"),
            ("redirect: {location: '/a b'}", "redirect.location", "URI", "%20"),
            ("redirect: {location: /, status: 304}", "redirect.status", "no redirect", "308"),
            ("name: x", "", "does nothing", "one of"),
        ];
        for (action, path, message, hint) in table {
            let text = format!("listeners: [{{address: 127.0.0.1:80}}]\nroutes: [{{match: {{path: /}}, {action}}}]\n");
            let path = format!("routes[0].{path}");
            assert_one(&text, (path.trim_end_matches('.'), message, hint), Severity::Error);
        }
    }

    #[test]
    fn what_is_unwise_is_a_warning() {
        let table = [
            ("trusted_proxies: []", "trusted_proxies: [0.0.0.0/0]", "trusted_proxies[0]", "everyone"),
            ("10.0.0.1:80", "0.0.0.0:80", "upstreams.app.servers[0]", "where to listen"),
            ("80]}}", "80]}, idle: {servers: [10.0.0.2:80]}}", "upstreams.idle", "no route uses"),
            ("trusted_proxies: []", "limits: {connections: 16000}", "limits.connections", "leaves few"),
            ("app}]", "app}, {name: b, match: {path: /}, upstream: app}]", "routes[1].match", "`/*`, before it"),
            (
                "[{match: {path: /}, upstream: app}]",
                "[{match: {path: /, hosts: [a]}, upstream: app}, {match: {path: /, hosts: [b, a]}, upstream: app}]",
                "routes[1].match",
                "requests for a go to the route `a/*`",
            ),
        ];
        for (old, new, path, message) in table {
            let text = format!("{GOOD}trusted_proxies: []\n").replacen(old, new, 1);
            assert_one(&text, (path, message, ""), Severity::Warning);
        }
        assert_one("listeners: [{address: 127.0.0.1:80}]", ("routes", "no route", "path: /"), Severity::Warning);
    }

    #[test]
    fn every_problem_is_told_at_once_in_the_order_of_the_text() {
        let text = "daemon: perhaps
listeners:
  - adress: 127.0.0.1:80
  - {address: nowhere, backlog: [], reuseport: 7}
upstreams:
  app: {servers: [x, {address: 10.0.0.1:80, weight: -1}], keep_alive: {idle_max: no}}
routes:
  - {match: {path: nil, hosts: [5, '*']}, upstream: other, timeouts: {connect: 5}}
  - text
limits: 3
";
        let found: Vec<_> = problems(text).into_iter().map(|problem| (problem.line, problem.path)).collect();
        let expected = [
            (1, "daemon"),
            (3, "listeners[0].adress"),
            (4, "listeners[1].address"),
            (4, "listeners[1].backlog"),
            (4, "listeners[1].reuseport"),
            (6, "upstreams.app.servers[0]"),
            (6, "upstreams.app.servers[1].weight"),
            (6, "upstreams.app.keep_alive.idle_max"),
            (8, "routes[0].match.path"),
            (8, "routes[0].match.hosts[1]"),
            (8, "routes[0].upstream"),
            (8, "routes[0].timeouts.connect"),
            (9, "routes[1]"),
            (10, "limits"),
        ];
        assert_eq!(found, expected.map(|(line, path)| (line, path.to_string())));
    }
}
