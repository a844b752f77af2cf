//! Routes, as written.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::field::Field;
use crate::form::Int;
use crate::leaf::{Named, Written};
use crate::model::HostPattern;
use crate::raw::limit::{RouteLimits, RouteTimeouts};
use crate::template::Template;

/// Which requests, and what is done with them: exactly one of `upstream`, `respond` and `redirect`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["match"], "oneOf" = [
    {"required": ["upstream"]}, {"required": ["respond"]}, {"required": ["redirect"]},
]))]
pub(crate) struct Route {
    /// What logs and statistics call it, and what carries its counters over a reload. No name twice. Default: made from
    /// the match, as in `example.com/v1/*`.
    pub(crate) name: Field<String>,
    /// Which requests it takes.
    pub(crate) r#match: Field<Match>,
    /// Send the request to a server of this upstream.
    pub(crate) upstream: Field<String>,
    /// Answer at once.
    pub(crate) respond: Field<Respond>,
    /// Send the client elsewhere.
    pub(crate) redirect: Field<Redirect>,
    /// How long an exchange may take, where that differs from the top level's `timeouts`.
    pub(crate) timeouts: Field<RouteTimeouts>,
    /// How large an exchange may be, where that differs from the top level's `limits`.
    pub(crate) limits: Field<RouteLimits>,
}

/// Which requests a route takes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Match {
    /// Hosts, any of which will do, without port: `example.com`, or `*.example.com` for every name below it at any
    /// depth but not itself. A host beyond ASCII is given in its `xn--` form. Default: any host.
    pub(crate) hosts: Field<Vec<Field<Written<HostPattern>>>>,
    /// The path: text is a prefix. Default, where `hosts` are given: any path.
    pub(crate) path: Field<Path>,
}

/// A path, compared with a request's after dot segments and needless percent-encodings were resolved in that.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(untagged, inline)]
pub(crate) enum Path {
    /// A prefix.
    Text(String),
    /// A prefix, or the whole path.
    Map(PathKeys),
}

/// A path: one of `prefix` and `exact`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Path", extend("oneOf" = [{"required": ["prefix"]}, {"required": ["exact"]}]))]
pub(crate) struct PathKeys {
    /// What the path begins with, byte for byte: `/v1` takes `/v1`, `/v1/x` and `/v12`; `/v1/` takes only the second.
    #[schemars(extend("pattern" = "^/"))]
    pub(crate) prefix: Field<String>,
    /// The whole path.
    #[schemars(extend("pattern" = "^/"))]
    pub(crate) exact: Field<String>,
}

/// A fixed answer.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Respond {
    /// The status code.
    #[schemars(extend("default" = 200))]
    pub(crate) status: Field<Written<Int<200, 599>>>,
    /// Header fields by name. The values may hold variables.
    pub(crate) headers: Field<Named<Written<Template>>>,
    /// The body, which may hold variables, such as `$request_id`; a dollar sign is written `$$`. Default: empty.
    pub(crate) body: Field<Written<Template>>,
}

/// An answer that sends the client elsewhere.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["location"]))]
pub(crate) struct Redirect {
    /// The status code: 301 or 308 for good, 302 or 307 for now, 303 to fetch something else instead. After 307 and 308
    /// the client repeats the request's method and body.
    #[schemars(extend("default" = 302, "enum" = [301, 302, 303, 307, 308]))]
    pub(crate) status: Field<Written<Int<301, 308>>>,
    /// Where to, which may hold variables, as in `https://$host$request_uri`.
    #[schemars(example = &"https://$host$request_uri")]
    pub(crate) location: Field<Written<Template>>,
}
