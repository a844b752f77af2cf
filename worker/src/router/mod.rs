//! Which route takes a request: hosts first, then paths.
//!
//! A host's most specific level that has a matching path decides. When none of its paths match, the next less specific
//! level is asked, so that a route for one host need not repeat what holds for all.

#![forbid(unsafe_code)]

mod host;
mod path;

use std::collections::BTreeMap;

use conf::model::{HostPattern, PathPattern, Route};

use host::Hosts;
use path::Paths;

/// All routes of a configuration, compiled.
pub(crate) struct Router {
    hosts: Hosts<Paths>,
}

impl Router {
    /// Compiles routes; file order breaks ties.
    pub(crate) fn new(routes: &[Route]) -> Router {
        let mut levels: BTreeMap<Option<&HostPattern>, Vec<(&PathPattern, usize)>> = BTreeMap::new();
        for (index, route) in routes.iter().enumerate() {
            let any = route.matcher.hosts.is_empty().then_some(None);
            for host in route.matcher.hosts.iter().map(Some).chain(any) {
                levels.entry(host).or_default().push((&route.matcher.path, index));
            }
        }
        Router { hosts: levels.into_iter().map(|(host, paths)| (host, Paths::new(paths))).collect() }
    }

    /// The index of the route that takes a request for `path` (normalised) at `host` (lower case, without port; empty
    /// when the request names none).
    pub(crate) fn find(&self, host: &[u8], path: &[u8]) -> Option<usize> {
        self.hosts.levels(host).find_map(|paths| paths.find(path))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use conf::model::{Action, Match, RouteLimits, RouteTimeouts};

    use super::*;

    fn route(hosts: &[&str], path: &str) -> Route {
        let hosts = hosts.iter().map(|host| match host.strip_prefix("*.") {
            Some(below) => HostPattern::Wildcard(below.into()),
            None => HostPattern::Exact((*host).into()),
        });
        let path = match path.strip_prefix('=') {
            Some(exact) => PathPattern::Exact(exact.into()),
            None => PathPattern::Prefix(path.into()),
        };
        let some = Duration::from_secs(1);
        Route {
            name: String::new(),
            matcher: Match { hosts: hosts.collect(), path },
            action: Action::Upstream(0),
            timeouts: RouteTimeouts {
                client_body: some,
                client_send: some,
                connect: some,
                upstream_send: some,
                upstream_read: some,
                tunnel_idle: some,
                exchange: None,
            },
            limits: RouteLimits { body_bytes: None },
        }
    }

    /// The rules as they are documented, tried on every route in turn.
    fn naive(routes: &[Route], host: &str, path: &str) -> Option<usize> {
        let score = |route: &Route| {
            let host = match &route.matcher.hosts[..] {
                [] => Some((0, 0)),
                hosts => hosts
                    .iter()
                    .filter_map(|pattern| match pattern {
                        HostPattern::Exact(name) => (name == host).then_some((2, 0)),
                        HostPattern::Wildcard(name) => {
                            host.strip_suffix(name.as_str())?.ends_with('.').then_some((1, name.len()))
                        }
                    })
                    .max(),
            };
            let path = match &route.matcher.path {
                PathPattern::Exact(exact) => (exact == path).then_some((1, 0)),
                PathPattern::Prefix(prefix) => path.starts_with(prefix.as_str()).then_some((0, prefix.len())),
            };
            host.zip(path)
        };
        let scored = routes.iter().enumerate().filter_map(|(index, route)| Some((score(route)?, index)));
        scored.max_by_key(|(score, index)| (*score, std::cmp::Reverse(*index))).map(|(_, index)| index)
    }

    #[test]
    fn precedence() {
        let routes = [
            route(&[], "/"),
            route(&["*.example.com"], "/"),
            route(&["*.a.example.com", "x.test"], "/"),
            route(&["b.a.example.com"], "/only"),
            route(&["x.test"], "/api/"),
            route(&["x.test"], "=/api/"),
            route(&["x.test"], "/api/"),
            route(&["x.test"], "/api/v1"),
        ];
        let router = Router::new(&routes);
        for (host, path, expected) in [
            ("", "/", Some(0)),
            ("example.com", "/", Some(0)),
            (".example.com", "/", Some(1)),
            ("w.example.com", "/", Some(1)),
            ("v.w.example.com", "/", Some(1)),
            ("a.example.com", "/", Some(1)),
            ("z.a.example.com", "/", Some(2)),
            ("b.a.example.com", "/only/this", Some(3)),
            ("b.a.example.com", "/on", Some(2)),
            ("x.test", "/api", Some(2)),
            ("x.test", "/api/", Some(5)),
            ("x.test", "/api/v", Some(4)),
            ("x.test", "/api/v11", Some(7)),
            ("x.test", "*", None),
            ("xx.test", "", None),
        ] {
            assert_eq!(router.find(host.as_bytes(), path.as_bytes()), expected, "{host} {path}");
            assert_eq!(naive(&routes, host, path), expected, "{host} {path}");
        }
        assert_eq!(Router::new(&[]).find(b"h", b"/"), None);
    }

    #[test]
    fn agrees_with_trying_every_route() {
        let mut random = fastrand::Rng::with_seed(9110);
        let word = |random: &mut fastrand::Rng, letters: &[&str], most: usize| {
            (0..random.usize(..=most)).map(|_| letters[random.usize(..letters.len())]).collect::<String>()
        };
        for _ in 0..400 {
            let routes: Vec<Route> = (0..random.usize(..40))
                .map(|_| {
                    let hosts: Vec<String> = (0..random.usize(..3))
                        .map(|_| word(&mut random, &["*."], 1) + &word(&mut random, &["a", "b."], 3) + "t")
                        .collect();
                    let path = word(&mut random, &["="], 1) + "/" + &word(&mut random, &["a", "b", "/"], 5);
                    route(&hosts.iter().map(String::as_str).collect::<Vec<_>>(), &path)
                })
                .collect();
            let router = Router::new(&routes);
            for _ in 0..100 {
                let host = word(&mut random, &["a", "b.", "a."], 4) + "t";
                let path = format!("/{}", word(&mut random, &["a", "b", "/"], 8));
                let found = router.find(host.as_bytes(), path.as_bytes());
                assert_eq!(found, naive(&routes, &host, &path), "{host} {path}");
            }
        }
    }

    /// A request that no other pattern of hosts and paths takes, if any does not.
    fn witness(host: Option<&HostPattern>, path: &PathPattern) -> (String, String) {
        let host = match host {
            None => "of.nobody".to_owned(),
            Some(HostPattern::Exact(name)) => name.clone(),
            Some(HostPattern::Wildcard(name)) => format!("nobody.{name}"),
        };
        let path = match path {
            PathPattern::Exact(path) => path.clone(),
            PathPattern::Prefix(path) => format!("{path}~"),
        };
        (host, path)
    }

    #[test]
    fn a_route_gets_requests_unless_it_is_said_to_be_shadowed() {
        let mut random = fastrand::Rng::with_seed(9112);
        let any = |random: &mut fastrand::Rng, pool: &[&str]| pool[random.usize(..pool.len())].to_owned();
        let (mut whole, mut partly) = (0, 0);
        for _ in 0..1000 {
            let mut routes: Vec<Route> = (0..random.usize(..6))
                .map(|_| {
                    let hosts: Vec<String> =
                        (0..random.usize(..3)).map(|_| any(&mut random, &["a.t", "*.t", "*.a.t"])).collect();
                    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
                    route(&hosts, &any(&mut random, &["/", "/a", "=/", "=/a"]))
                })
                .collect();
            routes.iter_mut().enumerate().for_each(|(index, route)| route.name = index.to_string());
            let router = Router::new(&routes);
            let shadows = conf::shadow::shadows(&routes);
            for (index, route) in routes.iter().enumerate() {
                let shadow = shadows.iter().find(|shadow| shadow.route == route.name);
                let any = route.matcher.hosts.is_empty().then_some(None);
                let mut reached = 0;
                for host in route.matcher.hosts.iter().map(Some).chain(any) {
                    let (name, path) = witness(host, &route.matcher.path);
                    let found = router.find(name.as_bytes(), path.as_bytes()).unwrap();
                    let taken = shadow.and_then(|it| it.taken.iter().find(|(other, _)| other.as_ref() == host));
                    assert_eq!(
                        found.to_string(),
                        taken.map_or(index.to_string(), |(_, by)| by.clone()),
                        "{name} {path}"
                    );
                    reached += usize::from(found == index);
                }
                assert_eq!(shadow.is_some_and(|shadow| shadow.is_whole), reached == 0);
                whole += usize::from(reached == 0);
                partly += usize::from(shadow.is_some() && reached > 0);
            }
        }
        assert!(whole > 100 && partly > 100, "{whole} {partly}");
    }
}
