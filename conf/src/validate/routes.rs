//! Routes.

use std::collections::{BTreeMap, HashSet};

use super::upstreams::Names;
use super::{Once, Section, check_name, number};
use crate::field::Field;
use crate::leaf::{Named, Written};
use crate::model::{Action, HostPattern, Match, PathPattern, Redirect, Respond, Route, RouteLimits, RouteTimeouts};
use crate::pattern::check_path;
use crate::place::At;
use crate::problem::Report;
use crate::raw::route;
use crate::shadow::Taken;
use crate::suggest;
use crate::template::Template;
use crate::value::Invalid;

/// What a route has that does not say otherwise.
type Defaults<'a> = (&'a RouteTimeouts, &'a RouteLimits);

/// The routes of all files.
pub(super) fn all(sections: &[Section], upstreams: &Names, defaults: Defaults<'_>, report: &Report) -> Vec<Route> {
    let mut routes = Vec::new();
    let mut names = Once::new();
    let mut taken = Taken::default();
    let mut used = HashSet::new();
    for (file, part) in sections {
        let root = At::root(*file);
        let section = root.key("routes");
        for (index, field) in part.routes.given().into_iter().flatten().enumerate() {
            let Some(raw) = field.given() else { continue };
            let at = section.index(index);
            let action = action(raw, &at, upstreams, report);
            if let Some(Action::Upstream(index)) = action {
                used.insert(index);
            }
            let Some(matcher) = matcher(raw, &at, report) else { continue };
            let name = name(raw, &matcher, &at, &mut names, report);
            if let Some(shadow) = taken.admit(&matcher, &name) {
                let invalid = Invalid::new(shadow.to_string()).hint("remove one, or match something else");
                report.warning(&at.key("match"), invalid);
            }
            let Some(action) = action else { continue };
            let (timeouts, limits) = overrides(raw, defaults);
            routes.push(Route { name, matcher, action, timeouts, limits });
        }
    }
    // A route that is wrong may have meant any of them.
    if !report.has_errors() {
        upstreams.warn_of_unused(&used, report);
    }
    if sections.iter().all(|(_, part)| part.routes.is_absent() || part.routes.given().is_some_and(Vec::is_empty)) {
        let invalid = Invalid::new("there is no route: every request is answered 404");
        report.warning(&At::root(0).key("routes"), invalid.hint("a route for everything has `match: {path: /}`"));
    }
    routes
}

/// The name given, or one made from the match.
fn name(raw: &route::Route, matcher: &Match, at: &At<'_>, names: &mut Once<String>, report: &Report) -> String {
    let name_at = at.key("name");
    let (name, at) = match raw.name.given() {
        Some(name) => (name.clone(), &name_at),
        None => (matcher.to_string(), at),
    };
    if let Err(invalid) = check_name(&name) {
        report.error(at, if raw.name.is_absent() { invalid.hint("give the route a `name`") } else { invalid });
    }
    names.admit(name.clone(), at, report, || match raw.name.given() {
        Some(_) => format!("there is a route `{name}` already"),
        None => format!("this route needs a `name`: the one made from its match, `{name}`, is taken"),
    });
    name
}

fn matcher(raw: &route::Route, at: &At<'_>, report: &Report) -> Option<Match> {
    let at = at.key("match");
    let hint = "say which requests it takes: `match: {path: /}` takes all that no other route does";
    let raw = raw.r#match.needed(&at, report, hint)?;
    let hosts = hosts(raw, &at, report);
    let path_at = at.key("path");
    if raw.path.is_absent() && !raw.hosts.is_absent() {
        return Some(Match { hosts, path: PathPattern::Prefix("/".into()) });
    }
    let (at, text, is_prefix) = match raw.path.needed(&path_at, report, "every path is `path: /`")? {
        route::Path::Text(text) => (path_at, text, true),
        route::Path::Map(keys) => match (&keys.prefix, &keys.exact) {
            (Field::Given(text), Field::Absent) => (path_at.key("prefix"), text, true),
            (Field::Absent, Field::Given(text)) => (path_at.key("exact"), text, false),
            (Field::Bad, _) | (_, Field::Bad) => return None,
            _ => {
                report.error(&path_at, Invalid::new("a path is one of `prefix` and `exact`").hint("write one of them"));
                return None;
            }
        },
    };
    check_path(text, is_prefix).map_err(|invalid| report.error(&at, invalid)).ok()?;
    let path = if is_prefix { PathPattern::Prefix(text.clone()) } else { PathPattern::Exact(text.clone()) };
    Some(Match { hosts, path })
}

fn hosts(raw: &route::Match, at: &At<'_>, report: &Report) -> Vec<HostPattern> {
    let at = at.key("hosts");
    let mut once = Once::new();
    let mut hosts = Vec::new();
    if raw.hosts.given().is_some_and(Vec::is_empty) {
        report.error(&at, Invalid::new("no host at all").hint("name hosts, or leave `hosts` out for any host"));
    }
    for (index, field) in raw.hosts.given().into_iter().flatten().enumerate() {
        let Some(Written(host)) = field.given() else { continue };
        if once.admit(host.clone(), &at.index(index), report, || format!("the host {host} is listed already")) {
            hosts.push(host.clone());
        }
    }
    hosts
}

fn action(raw: &route::Route, at: &At<'_>, upstreams: &Names, report: &Report) -> Option<Action> {
    let given: Vec<&str> = [
        ("upstream", raw.upstream.is_absent()),
        ("respond", raw.respond.is_absent()),
        ("redirect", raw.redirect.is_absent()),
    ]
    .into_iter()
    .filter_map(|(key, is_absent)| (!is_absent).then_some(key))
    .collect();
    match given.as_slice() {
        ["upstream"] => upstream(raw.upstream.given()?, &at.key("upstream"), upstreams, report).map(Action::Upstream),
        ["respond"] => Some(Action::Respond(respond(raw.respond.given()?, &at.key("respond"), report))),
        ["redirect"] => redirect(raw.redirect.given()?, &at.key("redirect"), report).map(Action::Redirect),
        several => {
            let message = match several {
                [] => "the route does nothing".to_string(),
                keys => format!("the route does several things: {}", keys.join(", ")),
            };
            report.error(at, Invalid::new(message).hint("give it one of `upstream`, `respond` and `redirect`"));
            None
        }
    }
}

fn upstream(name: &str, at: &At<'_>, upstreams: &Names, report: &Report) -> Option<usize> {
    let index = upstreams.index(name);
    if index.is_none() {
        let hint = match suggest::nearest(name, upstreams.iter()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("define it: `upstreams: {{{name}: {{servers: [10.0.0.1:3000]}}}}`"),
        };
        report.error(at, Invalid::new(format!("there is no upstream `{name}`")).hint(hint));
    }
    index
}

fn respond(raw: &route::Respond, at: &At<'_>, report: &Report) -> Respond {
    let status = number(&raw.status, 200);
    let body = raw.body.or(Template::default());
    // RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5.
    if matches!(status, 204 | 205 | 304) && !body.parts.is_empty() {
        report.error(
            &at.key("body"),
            Invalid::new(format!("an answer with status {status} has no body")).hint("remove it"),
        );
    }
    Respond { status, headers: headers(&raw.headers, &at.key("headers"), report), body }
}

/// Fields that frame a message or belong to a connection (RFC 9110 section 7.6.1, RFC 9112 section 6): the proxy writes
/// them.
const RESERVED_FIELDS: [&str; 10] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "date",
];

fn headers(raw: &Field<Named<Written<Template>>>, at: &At<'_>, report: &Report) -> BTreeMap<String, Template> {
    let mut headers = BTreeMap::new();
    let mut once = Once::new();
    for (name, field) in raw.given().into_iter().flat_map(|named| &named.0) {
        let at = at.key(name);
        let lower = name.to_ascii_lowercase();
        if name.is_empty() || !name.bytes().all(is_token_byte) {
            let invalid = Invalid::new(format!("`{}` is no field name", name.escape_debug()));
            report.key_error(&at, 0, invalid.hint("letters, digits and hyphens (a token of RFC 9110 section 5.6.2)"));
        } else if RESERVED_FIELDS.contains(&lower.as_str()) {
            let invalid = Invalid::new(format!("the field {name} is written by the proxy itself"));
            report.key_error(&at, 0, invalid.hint("remove it"));
        }
        once.admit(lower, &at, report, || format!("the field {name} is given more than once"));
        if field.is_absent() {
            report.error(&at, Invalid::new("a field without a value").hint("write \"\" for an empty one"));
        }
        let Some(Written(value)) = field.given() else { continue };
        check_field_value(value, &at, report);
        headers.insert(name.clone(), value.clone());
    }
    headers
}

/// RFC 9110 section 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// RFC 9110 section 5.5: no control characters, no space at either end.
fn check_field_value(value: &Template, at: &At<'_>, report: &Report) {
    if value.literals().any(|text| text.contains(|c: char| c.is_ascii_control() && c != '\t')) {
        let hint = "a field is one line; in YAML, `>-` folds lines into one";
        report.error(at, Invalid::new("a line break or another control character in a header field").hint(hint));
    } else if value.to_string().trim() != value.to_string() {
        report.error(at, Invalid::new("a space at an end of a header field").hint("remove it"));
    }
}

fn redirect(raw: &route::Redirect, at: &At<'_>, report: &Report) -> Option<Redirect> {
    let status = number(&raw.status, 302);
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        report.error(
            &at.key("status"),
            Invalid::new(format!("{status} is no redirect")).hint("301, 302, 303, 307 or 308"),
        );
    }
    let location_at = at.key("location");
    let location = &raw.location.needed(&location_at, report, "say where to, as in https://$host$request_uri")?.0;
    if location.parts.is_empty() {
        report.error(
            &location_at,
            Invalid::new("an empty location").hint("say where to, as in https://$host$request_uri"),
        );
    }
    if location.literals().any(|text| text.contains(|c: char| c == ' ' || !c.is_ascii() || c.is_ascii_control())) {
        let hint = "percent-encode it: a space is %20";
        report.error(&location_at, Invalid::new("a location is a URI: printable ASCII without spaces").hint(hint));
    }
    Some(Redirect { status, location: location.clone() })
}

fn overrides(raw: &route::Route, (timeouts, limits): Defaults<'_>) -> (RouteTimeouts, RouteLimits) {
    let (mut timeouts, mut limits) = (timeouts.clone(), limits.clone());
    if let Some(raw) = raw.timeouts.given() {
        let fields = [
            (&mut timeouts.client_body, &raw.client_body),
            (&mut timeouts.client_send, &raw.client_send),
            (&mut timeouts.connect, &raw.connect),
            (&mut timeouts.upstream_send, &raw.upstream_send),
            (&mut timeouts.upstream_read, &raw.upstream_read),
            (&mut timeouts.tunnel_idle, &raw.tunnel_idle),
        ];
        for (timeout, field) in fields {
            *timeout = field.given().map_or(*timeout, |period| period.0.0);
        }
        timeouts.exchange = raw.exchange.given().map_or(timeouts.exchange, |off| off.0.0.map(|period| period.0));
    }
    if let Some(raw) = raw.limits.given() {
        limits.body_bytes = raw.body_bytes.given().map_or(limits.body_bytes, |off| off.0.0.map(|bytes| bytes.0));
    }
    (timeouts, limits)
}
