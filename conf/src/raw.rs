//! The serde image of a configuration: what may be written, before anything is checked across values.
//!
//! The doc comments of the fields are the texts of the reference page and of the JSON Schema, so they speak to the
//! operator. This is the only file that knows which YAML library there is.

pub(crate) mod limit;
pub(crate) mod listener;
pub(crate) mod log;
pub(crate) mod route;
pub(crate) mod upstream;

use std::cell::Cell;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeSeed;

use crate::field::Field;
use crate::form::{AffinityWord, FilePath, Int, OrOff, Switch};
use crate::leaf::{Named, Written};
use crate::model::{User, WorkerProcesses};
use crate::node::{Build, EXPANDED_BYTES_MAX, Node};
use crate::position::Position;
use crate::quantity::Period;
use crate::value::{Invalid, IpNet};

/// The largest text that is read, in bytes.
const TEXT_BYTES_MAX: usize = 8 << 20;

/// Reads the values of a YAML document; nothing at all counts as an empty mapping.
pub(crate) fn tree(text: &str) -> Result<Node, (Position, Invalid)> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(((1, 1), Invalid::new(format!("the file has more than {} MiB", TEXT_BYTES_MAX >> 20))));
    }
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Node::Map(Vec::new()));
    }
    let budget = Cell::new(EXPANDED_BYTES_MAX);
    match Build::within(&budget).deserialize(serde_yaml::Deserializer::from_str(text)) {
        Ok(Node::Null) => Ok(Node::Map(Vec::new())),
        Ok(node) => Ok(node),
        Err(error) => Err(refusal(&error, text)),
    }
}

/// A YAML error as a problem; its text repeats the position, which is told elsewhere.
fn refusal(error: &serde_yaml::Error, text: &str) -> (Position, Invalid) {
    let (line, column) = error.location().map_or((1, 1), |location| (location.line(), location.column()));
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or(&message);
    let invalid = Invalid::new(format!("this is not the YAML of a configuration: {message}"));
    let is_tabbed =
        text.lines().nth(line.saturating_sub(1)).is_some_and(|line| line.trim_start_matches(' ').starts_with('\t'));
    ((line, column), if is_tabbed { invalid.hint("YAML is indented by spaces, never by tabs") } else { invalid })
}

/// Writes a document.
pub(crate) fn print(node: &Node) -> String {
    // Writing into memory cannot fail, and the tree holds nothing that YAML has no form for.
    serde_yaml::to_string(node).unwrap_or_default()
}

/// The configuration of a Sluice: one YAML document.
///
/// Every problem of a file is reported at once by `sluice check`. A top-level key that begins with `x-` is ignored, so
/// that it can hold YAML anchors for use elsewhere in the file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Configuration", extend("required" = ["listeners"], "patternProperties" = {"^x-": {}}))]
pub(crate) struct File {
    /// How many workers serve: `auto` for one a core that the master may run on, or a number.
    #[schemars(extend("default" = "auto"))]
    pub(crate) worker_processes: Field<Written<WorkerProcesses>>,
    /// Which cores workers run on. `off` leaves it to the scheduler; `auto` pins the first worker to the first allowed
    /// core, and so on; a list pins the first worker to the cores of the first entry, and so on. Both wrap around.
    #[schemars(extend("default" = "off"))]
    pub(crate) worker_cpu_affinity: Field<Affinity>,
    /// The most connections, of clients and to servers together, that one worker holds open. Each takes a file
    /// descriptor; the limit of open files is raised as needed, as far as the system permits.
    #[schemars(extend("default" = 16384))]
    pub(crate) worker_connections: Field<Written<Int<16, 1_048_576>>>,
    /// Whom the workers run as, `name` or `name:group`; without a group it is the account's own. Only a master that
    /// starts as root can change it, and then should.
    pub(crate) user: Field<Written<User>>,
    /// Whether to leave the terminal once the workers are ready.
    #[schemars(extend("default" = false))]
    pub(crate) daemon: Field<Written<Switch>>,
    /// The file that the master's process id is written to. Default: `sluice.pid` in `runtime_dir`.
    pub(crate) pid_file: Field<Written<FilePath>>,
    /// The directory of shared statistics, lock and control sockets; best on tmpfs. Default: `/run/sluice` for root,
    /// otherwise `$XDG_RUNTIME_DIR/sluice`, otherwise `/tmp/sluice-UID`.
    pub(crate) runtime_dir: Field<Written<FilePath>>,
    /// How long workers may take to finish what they began, after a reload or a graceful quit, before their connections
    /// are closed.
    #[schemars(extend("default" = "30s"))]
    pub(crate) shutdown_timeout: Field<Written<Period>>,
    /// How long a worker's loop may stand still before the worker is killed and replaced, at least 2s, or `off`.
    #[schemars(extend("default" = "30s"))]
    pub(crate) watchdog: Field<Written<OrOff<Period>>>,
    /// Where errors and operational messages go: a path, `stderr`, `stdout`, or a mapping.
    #[schemars(extend("default" = "stderr"))]
    pub(crate) error_log: Field<log::ErrorLog>,
    /// Where requests are logged: `off`, a path, `stderr`, `stdout`, or a mapping.
    #[schemars(extend("default" = "off"))]
    pub(crate) access_log: Field<log::AccessLog>,
    /// Files to read in as well: a path or a list of paths, relative to this file. The last part of a path may hold `*`
    /// and `?`; what matches is read in the order of names. Such a file holds `listeners`, `upstreams` and `routes`
    /// only, which are added to those of this file in the order read.
    pub(crate) include: Field<Include>,
    /// The sockets that clients connect to. There must be at least one.
    pub(crate) listeners: Field<Vec<Field<listener::Listener>>>,
    /// Sets of servers, by the names that routes use.
    pub(crate) upstreams: Field<Named<upstream::Upstream>>,
    /// Which request goes where. Among the routes that match, the most specific host decides (exact, then the longest
    /// wildcard, then any), then an exact path, then the longest prefix. A request that no route matches is answered
    /// 404.
    pub(crate) routes: Field<Vec<Field<route::Route>>>,
    /// How long things may take.
    pub(crate) timeouts: Field<limit::Timeouts>,
    /// How large things may be, and how many.
    pub(crate) limits: Field<limit::Limits>,
    /// Proxies in front of this one, whose `Forwarded` and `X-Forwarded-*` fields are believed: networks, addresses, or
    /// `unix:` for the peers of unix sockets. From everyone else such fields are replaced.
    pub(crate) trusted_proxies: Field<Vec<Field<Written<IpNet>>>>,
}

/// An included file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Part {
    pub(crate) listeners: Field<Vec<Field<listener::Listener>>>,
    pub(crate) upstreams: Field<Named<upstream::Upstream>>,
    pub(crate) routes: Field<Vec<Field<route::Route>>>,
}

/// Which cores workers run on.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(untagged, inline)]
pub(crate) enum Affinity {
    /// In one word.
    Text(Written<AffinityWord>),
    /// The same as `off`.
    #[schemars(skip)]
    Bool(Written<AffinityWord>),
    /// Entries of core numbers, one a worker.
    List(Vec<Field<Vec<Field<Written<Int<0, 1023>>>>>>),
}

/// Which files to read in as well.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(untagged, inline)]
pub(crate) enum Include {
    /// One path.
    Text(String),
    /// Several.
    List(Vec<Field<String>>),
}

impl File {
    /// Takes out what an included file may hold as well.
    pub(crate) fn take_part(&mut self) -> Part {
        Part {
            listeners: std::mem::take(&mut self.listeners),
            upstreams: std::mem::take(&mut self.upstreams),
            routes: std::mem::take(&mut self.routes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_refused_in_bounded_time_and_space() {
        let bomb: String = (1..40).map(|i| format!("x-{i}: &a{i} [*a{p},*a{p},*a{p},*a{p}]\n", p = i - 1)).collect();
        let table = [
            "[".repeat(10_000),
            "{a: ".repeat(1_000),
            "- ".repeat(1_000),
            format!("x-0: &a0 {}\n{bomb}", "y".repeat(1000)),
            "a: &a [*a]".to_string(),
            "%YAML 9.9\n---\na: 1".to_string(),
            "a: 1\n---\nb: 2".to_string(),
            "a: \"\\ud800\"".to_string(),
            "? [a, b]\n: c".to_string(),
            "a: !secret b".to_string(),
            "<<: 5".to_string(),
            "\t\0".to_string(),
        ];
        for text in table {
            assert!(tree(&text).is_err(), "{:.60}", text);
        }
    }

    #[test]
    fn merge_keys_fill_in_what_is_not_given() {
        let node = tree("x-a: &a {k: 1, l: 2}\nb: {<<: *a, l: 3}\nc:\n  <<: [*a, {m: 4}]\n").unwrap();
        let int = |node: &Node, key: &str| node.field(key).cloned();
        let (b, c) = (node.field("b").unwrap(), node.field("c").unwrap());
        assert_eq!((int(b, "k"), int(b, "l")), (Some(Node::Integer(1)), Some(Node::Integer(3))));
        assert_eq!((int(c, "l"), int(c, "m")), (Some(Node::Integer(2)), Some(Node::Integer(4))));
    }

    #[test]
    fn nothing_is_an_empty_configuration() {
        for text in ["", "\n", "# only a comment\n", "---\n", "~"] {
            assert_eq!(tree(text), Ok(Node::Map(Vec::new())), "{text:?}");
        }
    }
}
