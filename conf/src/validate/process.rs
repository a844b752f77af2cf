//! What concerns the whole proxy: workers, logs, timeouts, limits, trust.

use std::time::Duration;

use super::{number, size};
use crate::field::Field;
use crate::form::{AffinityWord, OrOff};
use crate::leaf::Written;
use crate::model::{
    AccessLog, AccessLogFormat, CpuAffinity, ErrorLog, ErrorLogFormat, Limits, LogLevel, LogTarget, RouteLimits,
    RouteTimeouts, Timeouts,
};
use crate::place::At;
use crate::problem::Report;
use crate::quantity::Period;
use crate::raw::{self, Affinity};
use crate::template::Template;
use crate::value::{Invalid, IpNet};

/// The default of [`Config::watchdog`](crate::model::Config::watchdog), and the least that may be written.
const WATCHDOG: Duration = Duration::from_secs(30);
const WATCHDOG_MIN: Duration = Duration::from_secs(2);
/// The default of [`RouteLimits::body_bytes`].
const BODY_BYTES: u64 = 1 << 30;

/// A duration, or a default in milliseconds.
pub(super) fn period(field: &Field<Written<Period>>, default_millis: u64) -> Duration {
    field.or(Period(Duration::from_millis(default_millis))).0
}

/// How long a loop may stand still. A worker shows four times a second that it turns, and is never due sooner.
pub(super) fn watchdog(field: &Field<Written<OrOff<Period>>>, at: &At<'_>, report: &Report) -> Option<Duration> {
    let limit = field.given().map_or(Some(WATCHDOG), |given| given.0.0.map(|period| period.0));
    if limit.is_some_and(|limit| limit < WATCHDOG_MIN) {
        let invalid = Invalid::new("a time that is shorter than a busy worker may need");
        report.error(at, invalid.hint("write 2s or more, or off"));
    }
    limit
}

/// The cores that workers run on.
pub(super) fn affinity(field: &Field<Affinity>, at: &At<'_>, report: &Report) -> CpuAffinity {
    let entries = match field.given() {
        None => return CpuAffinity::Off,
        Some(Affinity::Text(word) | Affinity::Bool(word)) => {
            return match word.0 {
                AffinityWord::Off => CpuAffinity::Off,
                AffinityWord::Auto => CpuAffinity::Auto,
            };
        }
        Some(Affinity::List(entries)) => entries,
    };
    if entries.is_empty() {
        report.error(at, Invalid::new("an empty list").hint("write off, auto, or lists of cores such as [[0], [1]]"));
    }
    let cores = entries.iter().enumerate().filter_map(|(index, entry)| {
        let cores = entry.given()?;
        if cores.is_empty() {
            report.error(&at.index(index), Invalid::new("no core to run on").hint("name at least one, such as [0]"));
        }
        Some(cores.iter().filter_map(|core| u32::try_from(core.given()?.0.0).ok()).collect())
    });
    CpuAffinity::Cores(cores.collect())
}

/// Where errors go.
pub(super) fn error_log(raw: Option<&raw::log::ErrorLog>) -> ErrorLog {
    let (target, level, format) = match raw {
        None => (LogTarget::Stderr, None, None),
        Some(raw::log::ErrorLog::Text(target)) => (target.0.clone(), None, None),
        Some(raw::log::ErrorLog::Map(keys)) => {
            (keys.path.or(LogTarget::Stderr), keys.level.given().copied(), keys.format.given().copied())
        }
    };
    ErrorLog { target, level: level.unwrap_or(LogLevel::Info), format: format.unwrap_or(ErrorLogFormat::Text) }
}

/// Where requests are logged.
pub(super) fn access_log(raw: Option<&raw::log::AccessLog>, at: &At<'_>, report: &Report) -> Option<AccessLog> {
    let keys = match raw? {
        raw::log::AccessLog::Text(target) | raw::log::AccessLog::Bool(target) => {
            return target.0.0.clone().map(|target| AccessLog { target, format: AccessLogFormat::Combined });
        }
        raw::log::AccessLog::Map(keys) => keys,
    };
    let format = match keys.format.given().map(String::as_str) {
        None | Some("combined") => AccessLogFormat::Combined,
        Some("json") => AccessLogFormat::Json,
        Some(text) => match log_line(text) {
            Ok(template) => AccessLogFormat::Template(template),
            Err(invalid) => {
                report.error(&at.key("format"), invalid);
                AccessLogFormat::Combined
            }
        },
    };
    let target = &keys.path.needed(&at.key("path"), report, "a path, stderr or stdout; or write `access_log: off`")?.0;
    Some(AccessLog { target: target.clone(), format })
}

/// A format of the operator's own. One without any variable is a misspelt word rather than a log.
fn log_line(text: &str) -> Result<Template, Invalid> {
    let template = Template::parse(text).map_err(|error| error.invalid)?;
    if !text.contains('$') {
        return Err(Invalid::new(format!("unknown format `{text}`"))
            .hint("combined, json, or text with variables such as `$remote_addr $status`"));
    }
    if template.literals().any(|text| text.contains(['\n', '\r', '\0'])) {
        return Err(Invalid::new("a format is one line").hint("remove the line breaks; `>-` folds lines into one"));
    }
    Ok(template)
}

/// How long things may take.
pub(super) fn timeouts(raw: Option<&raw::limit::Timeouts>) -> Timeouts {
    let absent = raw::limit::Timeouts::default();
    let raw = raw.unwrap_or(&absent);
    Timeouts {
        client_head: period(&raw.client_head, 15_000),
        keep_alive: period(&raw.keep_alive, 75_000),
        route: RouteTimeouts {
            client_body: period(&raw.client_body, 30_000),
            client_send: period(&raw.client_send, 30_000),
            connect: period(&raw.connect, 5_000),
            upstream_send: period(&raw.upstream_send, 30_000),
            upstream_read: period(&raw.upstream_read, 60_000),
            tunnel_idle: period(&raw.tunnel_idle, 600_000),
            exchange: raw.exchange.given().and_then(|exchange| exchange.0.0).map(|period| period.0),
        },
    }
}

/// How large things may be.
pub(super) fn limits(
    raw: Option<&raw::limit::Limits>,
    worker_connections: u32,
    at: &At<'_>,
    report: &Report,
) -> Limits {
    let absent = raw::limit::Limits::default();
    let raw = raw.unwrap_or(&absent);
    let connections = number(&raw.connections, worker_connections / 2);
    if connections > worker_connections {
        let message = format!("{connections} is more than the {worker_connections} of worker_connections");
        let hint = "each proxied client takes two: raise worker_connections to twice the number";
        report.error(&at.key("connections"), Invalid::new(message).hint(hint));
    } else if connections > worker_connections - worker_connections / 4 {
        let message = format!("of {worker_connections} worker_connections this leaves few for connections to servers");
        let hint = format!("raise worker_connections, or allow {} clients", worker_connections / 2);
        report.warning(&at.key("connections"), Invalid::new(message).hint(hint));
    }
    Limits {
        head_bytes: size(&raw.head_bytes, 16 << 10),
        header_count: number(&raw.header_count, 100),
        connections,
        keep_alive_requests: number(&raw.keep_alive_requests, 0),
        route: RouteLimits {
            body_bytes: raw.body_bytes.given().map_or(Some(BODY_BYTES), |off| off.0.0.map(|bytes| bytes.0)),
        },
    }
}

/// Who is believed.
pub(super) fn trusted_proxies(field: &Field<Vec<Field<Written<IpNet>>>>, at: &At<'_>, report: &Report) -> Vec<IpNet> {
    let mut networks = Vec::new();
    for (index, item) in field.given().into_iter().flatten().enumerate() {
        let Some(Written(network)) = item.given() else { continue };
        if matches!(network, IpNet::Cidr { prefix: 0, .. }) {
            let message = format!("{network} is everyone: any client can claim any address");
            report.warning(&at.index(index), Invalid::new(message).hint("name the networks of your own proxies"));
        }
        networks.push(*network);
    }
    networks
}
