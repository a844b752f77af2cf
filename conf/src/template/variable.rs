//! Variables by name.

use std::fmt;

use schemars::JsonSchema;

use crate::suggest;
use crate::value::Invalid;

/// What a variable stands for. Where nginx has one of the same name, it means the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash, JsonSchema)]
pub enum Variable {
    /// `$arg_NAME`: a query argument as sent.
    Arg(String),
    /// `$args`, `$query_string`: the query as sent.
    Args,
    /// `$body_bytes_sent`: bytes of the response body sent to the client.
    BodyBytesSent,
    /// `$bytes_sent`: bytes sent to the client.
    BytesSent,
    /// `$connection`: the client connection's number within its worker.
    Connection,
    /// `$connection_requests`: how many requests it has carried, this one included.
    ConnectionRequests,
    /// `$cookie_NAME`: a cookie of the request.
    Cookie(String),
    /// `$fault`: why the exchange went wrong, as a token; empty when it did not.
    Fault,
    /// `$host`: the request's host in lower case, without port.
    Host,
    /// `$hostname`: the machine's name.
    Hostname,
    /// `$http_NAME`: a field of the request; its name in lower case, with underscores for hyphens.
    Http(String),
    /// `$is_args`: `?` if there is a query.
    IsArgs,
    /// `$msec`: seconds since the epoch, to the millisecond.
    Msec,
    /// `$pid`: the worker's.
    Pid,
    /// `$proxy_host`: the upstream's name.
    ProxyHost,
    /// `$proxy_protocol_addr`: the client address from a PROXY protocol header.
    ProxyProtocolAddr,
    /// `$realip_remote_addr`: the address of the connection's peer, whoever it speaks for.
    RealipRemoteAddr,
    /// `$remote_addr`: the client's address, after trusted proxies.
    RemoteAddr,
    /// `$remote_port`: the client's port.
    RemotePort,
    /// `$remote_user`: the user name of Basic credentials.
    RemoteUser,
    /// `$request`: the request line as sent.
    Request,
    /// `$request_id`: the exchange's identifier, 32 hexadecimal digits unless a trusted proxy set it.
    RequestId,
    /// `$request_length`: bytes of the request, head and body.
    RequestLength,
    /// `$request_method`.
    RequestMethod,
    /// `$request_time`: seconds from the request's first byte to the end of the response, to the millisecond.
    RequestTime,
    /// `$request_uri`: the request target as sent.
    RequestUri,
    /// `$route`: the route's name.
    Route,
    /// `$scheme`: `http` or `https`.
    Scheme,
    /// `$sent_http_NAME`: a field of the response sent to the client, named likewise.
    SentHttp(String),
    /// `$server_addr`: the listener's address.
    ServerAddr,
    /// `$server_port`: the listener's port.
    ServerPort,
    /// `$server_protocol`: `HTTP/1.0` or `HTTP/1.1`.
    ServerProtocol,
    /// `$status`: of the response.
    Status,
    /// `$time_iso8601`.
    TimeIso8601,
    /// `$time_local`: in the common log format.
    TimeLocal,
    /// `$upstream_addr`: the server, or the servers tried, comma-separated.
    UpstreamAddr,
    /// `$upstream_bytes_received`.
    UpstreamBytesReceived,
    /// `$upstream_bytes_sent`.
    UpstreamBytesSent,
    /// `$upstream_connect_time`: seconds, to the millisecond.
    UpstreamConnectTime,
    /// `$upstream_header_time`: seconds to the response head, to the millisecond.
    UpstreamHeaderTime,
    /// `$upstream_response_time`: seconds to the response's end, to the millisecond.
    UpstreamResponseTime,
    /// `$upstream_status`: status that the server answered.
    UpstreamStatus,
    /// `$uri`: the normalised path.
    Uri,
}

/// Variables of a fixed name. Of two names for one variable the first is the one it is written with.
const NAMES: &[(&str, Variable)] = &[
    ("args", Variable::Args),
    ("query_string", Variable::Args),
    ("body_bytes_sent", Variable::BodyBytesSent),
    ("bytes_sent", Variable::BytesSent),
    ("connection", Variable::Connection),
    ("connection_requests", Variable::ConnectionRequests),
    ("fault", Variable::Fault),
    ("host", Variable::Host),
    ("hostname", Variable::Hostname),
    ("is_args", Variable::IsArgs),
    ("msec", Variable::Msec),
    ("pid", Variable::Pid),
    ("proxy_host", Variable::ProxyHost),
    ("proxy_protocol_addr", Variable::ProxyProtocolAddr),
    ("realip_remote_addr", Variable::RealipRemoteAddr),
    ("remote_addr", Variable::RemoteAddr),
    ("remote_port", Variable::RemotePort),
    ("remote_user", Variable::RemoteUser),
    ("request", Variable::Request),
    ("request_id", Variable::RequestId),
    ("request_length", Variable::RequestLength),
    ("request_method", Variable::RequestMethod),
    ("request_time", Variable::RequestTime),
    ("request_uri", Variable::RequestUri),
    ("route", Variable::Route),
    ("scheme", Variable::Scheme),
    ("server_addr", Variable::ServerAddr),
    ("server_port", Variable::ServerPort),
    ("server_protocol", Variable::ServerProtocol),
    ("status", Variable::Status),
    ("time_iso8601", Variable::TimeIso8601),
    ("time_local", Variable::TimeLocal),
    ("upstream_addr", Variable::UpstreamAddr),
    ("upstream_bytes_received", Variable::UpstreamBytesReceived),
    ("upstream_bytes_sent", Variable::UpstreamBytesSent),
    ("upstream_connect_time", Variable::UpstreamConnectTime),
    ("upstream_header_time", Variable::UpstreamHeaderTime),
    ("upstream_response_time", Variable::UpstreamResponseTime),
    ("upstream_status", Variable::UpstreamStatus),
    ("uri", Variable::Uri),
];

/// Makes a variable from the rest of its name.
type Family = fn(&str) -> Variable;

/// Beginnings of the names of variables that look something up.
const FAMILIES: [(&str, Family); 4] = [
    ("arg_", |name| Variable::Arg(name.to_string())),
    ("cookie_", |name| Variable::Cookie(name.to_string())),
    ("http_", |name| Variable::Http(field_name(name))),
    ("sent_http_", |name| Variable::SentHttp(field_name(name))),
];

impl Variable {
    /// The variable of a name, which comes without its dollar sign.
    pub(super) fn named(name: &str) -> Result<Variable, Invalid> {
        if name.is_empty() {
            return Err(Invalid::new("`$` without a variable's name").hint("a dollar sign by itself is written `$$`"));
        }
        if let Some((_, variable)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Ok(variable.clone());
        }
        let family = FAMILIES.iter().find_map(|(beginning, make)| Some((name.strip_prefix(beginning)?, make)));
        match family {
            Some((part, make)) if !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') => {
                Ok(make(part))
            }
            Some(_) => Err(Invalid::new(format!("`${name}` names nothing to look up"))
                .hint("letters, digits and underscores follow, as in `$http_user_agent`")),
            None => Err(Variable::unknown(name)),
        }
    }

    fn unknown(name: &str) -> Invalid {
        let known = NAMES.iter().map(|(known, _)| *known);
        Invalid::new(format!("unknown variable `${name}`")).hint(match suggest::nearest(name, known) {
            Some(near) => format!("did you mean `${near}`? A dollar sign by itself is written `$$`"),
            None => "a dollar sign by itself is written `$$`".to_string(),
        })
    }
}

/// A field's name, from the form that it has in a variable's.
fn field_name(part: &str) -> String {
    part.replace('_', "-").to_ascii_lowercase()
}

impl fmt::Display for Variable {
    /// The name, without the dollar sign.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Variable::Arg(name) => write!(f, "arg_{name}"),
            Variable::Cookie(name) => write!(f, "cookie_{name}"),
            Variable::Http(field) => write!(f, "http_{}", field.replace('-', "_")),
            Variable::SentHttp(field) => write!(f, "sent_http_{}", field.replace('-', "_")),
            fixed => f.write_str(NAMES.iter().find(|(_, variable)| variable == fixed).map_or("", |(name, _)| *name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_and_written() {
        for (name, variable) in NAMES {
            assert_eq!(Variable::named(name).as_ref(), Ok(variable));
            assert_eq!(Variable::named(&variable.to_string()).as_ref(), Ok(variable));
        }
    }
}
