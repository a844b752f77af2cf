//! Logs, as written.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::field::Field;
use crate::form::OrOff;
use crate::leaf::Written;
use crate::model::{ErrorLogFormat, LogLevel, LogTarget};

/// Where errors and operational messages go.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(untagged, inline)]
pub(crate) enum ErrorLog {
    /// A path, `stderr` or `stdout`.
    Text(Written<LogTarget>),
    /// In full.
    Map(ErrorLogKeys),
}

/// Where errors and operational messages go, in full.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "ErrorLog")]
pub(crate) struct ErrorLogKeys {
    /// A path, `stderr` or `stdout`. Files and named pipes are opened by the master, for appending, and opened again on
    /// USR1.
    #[schemars(extend("default" = "stderr"))]
    pub(crate) path: Field<Written<LogTarget>>,
    /// The least severe level that is written.
    #[schemars(extend("default" = "info"))]
    pub(crate) level: Field<LogLevel>,
    /// How a message is rendered.
    #[schemars(extend("default" = "text"))]
    pub(crate) format: Field<ErrorLogFormat>,
}

/// Where requests are logged.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(untagged, inline)]
pub(crate) enum AccessLog {
    /// A path, `stderr` or `stdout`; or `off`.
    Text(Written<OrOff<LogTarget>>),
    /// The same as `off`.
    #[schemars(skip)]
    Bool(Written<OrOff<LogTarget>>),
    /// In full.
    Map(AccessLogKeys),
}

/// Where and how requests are logged.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "AccessLog", extend("required" = ["path"]))]
pub(crate) struct AccessLogKeys {
    /// A path, `stderr` or `stdout`. Files and named pipes are opened by the master, for appending, and opened again on
    /// USR1.
    pub(crate) path: Field<Written<LogTarget>>,
    /// What a line looks like: `combined` (as nginx's), `json` (an object a line), or text with variables, such as
    /// `"$remote_addr $status $request_time"`.
    #[schemars(extend("default" = "combined"), example = &"json", example = &"$remote_addr $status $request_time")]
    pub(crate) format: Field<String>,
}
