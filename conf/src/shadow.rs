//! Routes that others leave nothing to.
//!
//! A request goes to the route with the most specific host, then path (see [`Match`]). Whatever is less specific therefore
//! still gets what the more specific leaves over: a wildcard has more names below it than anybody lists, and a prefix
//! more paths. So a route is shadowed by nothing but the same host with the same path in a route that stands before it.
//! (A prefix is also shadowed by its exact path with a longer prefix for each byte that may follow. Nobody writes that,
//! and it is not looked for.)

use std::collections::HashMap;
use std::fmt;

use crate::model::{HostPattern, Match, PathPattern, Route};

/// What a route does not get because others that stand before it take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shadow {
    /// The name of the route.
    pub route: String,
    /// Whether nothing is left to it.
    pub is_whole: bool,
    /// The hosts whose requests it does not get, each with the name of the route that does; `None` is any host.
    pub taken: Vec<(Option<HostPattern>, String)>,
}

/// The routes that get no request, or none for some of their hosts, in file order.
pub fn shadows(routes: &[Route]) -> Vec<Shadow> {
    let mut taken = Taken::default();
    routes.iter().filter_map(|route| taken.admit(&route.matcher, &route.name)).collect()
}

/// Which host and path is taken by which route so far.
#[derive(Default)]
pub(crate) struct Taken {
    by: HashMap<(Option<HostPattern>, PathPattern), String>,
}

impl Taken {
    /// The next route, in file order; says what of it is taken already.
    pub(crate) fn admit(&mut self, matcher: &Match, route: &str) -> Option<Shadow> {
        let any = matcher.hosts.is_empty().then_some(None);
        let hosts: Vec<Option<HostPattern>> = matcher.hosts.iter().cloned().map(Some).chain(any).collect();
        let count = hosts.len();
        let mut taken = Vec::new();
        for host in hosts {
            let key = (host, matcher.path.clone());
            match self.by.get(&key) {
                Some(by) => taken.push((key.0, by.clone())),
                None => drop(self.by.insert(key, route.to_owned())),
            }
        }
        (!taken.is_empty()).then(|| Shadow { route: route.to_owned(), is_whole: taken.len() == count, taken })
    }
}

impl Shadow {
    /// The routes that take what it does not get, each once.
    pub fn by(&self) -> Vec<&str> {
        let mut by: Vec<&str> = self.taken.iter().map(|(_, by)| by.as_str()).collect();
        by.sort_unstable();
        by.dedup();
        by
    }
}

impl fmt::Display for Shadow {
    /// A sentence about the route, which it does not name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = self.by().iter().map(|by| format!("`{by}`")).collect::<Vec<_>>().join(", ");
        let (verb, stand) = if self.by().len() == 1 { ("takes", "stands") } else { ("take", "stand") };
        if self.is_whole {
            return write!(f, "no request reaches this route: {by}, before it, {verb} the same hosts and path");
        }
        let hosts: Vec<String> = self.taken.iter().flat_map(|(host, _)| host).map(ToString::to_string).collect();
        let noun = if self.by().len() == 1 { "the route" } else { "the routes" };
        write!(f, "requests for {} go to {noun} {by}, which {verb} the same path and {stand} before", hosts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shadows_of(routes: &[&str]) -> Vec<String> {
        let routes: Vec<String> = (0..)
            .zip(routes)
            .map(|(number, text)| format!("{{name: r{number}, match: {{{text}}}, respond: {{}}}}"))
            .collect();
        let text = format!("listeners: [{{address: '127.0.0.1:80'}}]\nroutes: [{}]", routes.join(", "));
        let config = crate::parse(&text, "test").unwrap().config;
        shadows(&config.routes).iter().map(|shadow| format!("{}: {shadow}", shadow.route)).collect()
    }

    #[test]
    fn only_the_same_host_with_the_same_path_shadows() {
        let nothing: &[&[&str]] = &[
            &["path: /", "path: /a", "path: {exact: /}", "path: {exact: /a}"],
            &["path: /", "hosts: [a.t], path: /", "hosts: ['*.t'], path: /", "hosts: ['*.a.t'], path: /"],
            &["hosts: [a.t], path: /", "hosts: [a.t], path: /a", "hosts: [b.t], path: /"],
            &["hosts: ['*.t'], path: /", "hosts: [t], path: /"],
        ];
        for routes in nothing {
            assert_eq!(shadows_of(routes), Vec::<String>::new());
        }
    }

    #[test]
    fn a_shadow_is_told_with_what_casts_it() {
        let whole = "no request reaches this route";
        let table: &[(&[&str], &str)] = &[
            (&["path: /", "path: /"], &format!("r1: {whole}: `r0`, before it, takes the same hosts and path")),
            (
                &["hosts: [a.t, b.t], path: /", "hosts: [b.t, c.t], path: /"],
                "r1: requests for b.t go to the route `r0`, which takes the same path and stands before",
            ),
            (
                &["hosts: [a.t], path: /", "hosts: [b.t], path: /", "hosts: [a.t, b.t], path: /"],
                &format!("r2: {whole}: `r0`, `r1`, before it, take the same hosts and path"),
            ),
            (
                &["hosts: [a.t], path: /", "hosts: ['*.t'], path: /", "hosts: [a.t, '*.t', c.t], path: /"],
                "r2: requests for a.t, *.t go to the routes `r0`, `r1`, which take the same path and stand before",
            ),
            (
                &["hosts: [A.t], path: {exact: /x}", "hosts: [a.T], path: {exact: /x}"],
                &format!("r1: {whole}: `r0`, before it, takes the same hosts and path"),
            ),
        ];
        for (routes, expected) in table {
            assert_eq!(shadows_of(routes), [expected.to_string()], "{routes:?}");
        }
    }
}
