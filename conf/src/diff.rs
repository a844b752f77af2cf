//! What a reload would change.

use std::collections::{HashMap, HashSet};

use crate::effective;
use crate::model::Config;
use crate::node::Node;

/// A difference between two configurations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The place in the document. Items of a list go by their name or address: `routes[api].timeouts.connect`.
    pub path: String,
    /// What it takes to make it.
    pub effect: Effect,
    /// What was there, in one line; `(none)` when nothing was.
    pub from: String,
    /// What is there now, likewise.
    pub to: String,
}

/// What it takes to make a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// A worker can make it while it runs.
    Live,
    /// It takes other workers.
    NewWorkers,
    /// It takes another master.
    Restart,
}

/// All differences, in the order of the effective configuration.
pub fn changes(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    compare("", Some(&effective::tree(old)), Some(&effective::tree(new)), &mut changes);
    changes
}

/// A value by what identifies it among its siblings.
type Keyed<'a> = (&'a str, &'a Node);

fn compare(path: &str, old: Option<&Node>, new: Option<&Node>, changes: &mut Vec<Change>) {
    match (old, new) {
        _ if old == new => {}
        (Some(Node::Map(old)), Some(Node::Map(new))) => {
            let below = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
            compare_keyed(&entries(old), &entries(new), below, changes);
        }
        (Some(Node::List(old_items)), Some(Node::List(new_items))) => match (keyed(old_items), keyed(new_items)) {
            (Some(old), Some(new)) => {
                compare_keyed(&old, &new, |key| format!("{path}[{key}]"), changes);
                compare_order(path, &old, &new, changes);
            }
            _ => changes.push(change(path, old, new)),
        },
        (old, new) => changes.push(change(path, old, new)),
    }
}

/// Compares values by key: those of `old` in their order, then what is only in `new`.
fn compare_keyed(old: &[Keyed<'_>], new: &[Keyed<'_>], path: impl Fn(&str) -> String, changes: &mut Vec<Change>) {
    let in_old: HashMap<&str, &Node> = old.iter().copied().collect();
    let in_new: HashMap<&str, &Node> = new.iter().copied().collect();
    for (key, value) in old {
        compare(&path(key), Some(value), in_new.get(key).copied(), changes);
    }
    for (key, value) in new.iter().filter(|(key, _)| !in_old.contains_key(key)) {
        compare(&path(key), None, Some(value), changes);
    }
}

/// Items that stayed may have changed places, which decides among routes for the same requests.
fn compare_order(path: &str, old: &[Keyed<'_>], new: &[Keyed<'_>], changes: &mut Vec<Change>) {
    let kept = |these: &[Keyed<'_>], those: &[Keyed<'_>]| {
        let others: HashSet<&str> = those.iter().map(|(key, _)| *key).collect();
        Node::list(these.iter().map(|(key, _)| key).filter(|key| others.contains(*key)).map(Node::text))
    };
    let (old, new) = (kept(old, new), kept(new, old));
    if old != new {
        changes.push(change(path, Some(&old), Some(&new)));
    }
}

/// The values of a mapping by key.
fn entries(entries: &[(String, Node)]) -> Vec<Keyed<'_>> {
    entries.iter().map(|(key, value)| (key.as_str(), value)).collect()
}

/// The items of a list by name or address; `None` when something has neither.
fn keyed(items: &[Node]) -> Option<Vec<Keyed<'_>>> {
    items.iter().map(|item| Some((identity(item)?, item))).collect()
}

fn identity(item: &Node) -> Option<&str> {
    match item.field("name").or_else(|| item.field("address"))? {
        Node::Text(text) => Some(text),
        _ => None,
    }
}

fn change(path: &str, old: Option<&Node>, new: Option<&Node>) -> Change {
    let line = |node: Option<&Node>| node.map_or("(none)".to_string(), flow);
    Change { path: path.to_string(), effect: effect(path), from: line(old), to: line(new) }
}

fn effect(path: &str) -> Effect {
    match path {
        "runtime_dir" | "daemon" | "pid_file" => Effect::Restart,
        "user" | "worker_processes" | "worker_cpu_affinity" | "worker_connections" => Effect::NewWorkers,
        _ if path == "error_log" || path.starts_with("error_log.") => Effect::NewWorkers,
        // How many sockets an address has is known to the workers that have them.
        _ if path.starts_with("listeners[") && path.ends_with("].reuseport") => Effect::NewWorkers,
        _ => Effect::Live,
    }
}

/// A value in one line.
fn flow(node: &Node) -> String {
    match node {
        Node::Null => "null".to_string(),
        Node::Bool(value) => value.to_string(),
        Node::Integer(value) => value.to_string(),
        Node::Float(value) => value.to_string(),
        Node::Text(text) => text.escape_debug().to_string(),
        Node::List(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Node::Map(entries) => {
            let entries: Vec<_> = entries.iter().map(|(key, value)| format!("{key}: {}", flow(value))).collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "
listeners: [{address: 127.0.0.1:80}]
upstreams: {app: {servers: [10.0.0.1:80, 10.0.0.2:80]}}
routes:
  - {name: a, match: {path: /a}, upstream: app}
  - {name: b, match: {path: /b}, upstream: app}
";

    fn config(text: &str) -> Config {
        crate::parse(text, "test").unwrap().config
    }

    #[test]
    fn nothing_changed() {
        assert_eq!(changes(&config(BASE), &config(BASE)), []);
    }

    #[test]
    fn changes_are_named_by_identity() {
        let table = [
            ("/b}", "/c}", "routes[b].match.path.prefix", Effect::Live, "/b", "/c"),
            (
                "10.0.0.2:80",
                "{address: 10.0.0.2:80, weight: 2}",
                "upstreams.app.servers[10.0.0.2:80].weight",
                Effect::Live,
                "1",
                "2",
            ),
            (
                ", 10.0.0.2:80",
                "",
                "upstreams.app.servers[10.0.0.2:80]",
                Effect::Live,
                "{address: 10.0.0.2:80, weight: 1}",
                "(none)",
            ),
            ("\nlisteners", "\nuser: www\nlisteners", "user", Effect::NewWorkers, "(none)", "www"),
            (
                ":80}]",
                ":80, reuseport: off}]",
                "listeners[127.0.0.1:80].reuseport",
                Effect::NewWorkers,
                "true",
                "false",
            ),
            (
                "\nlisteners",
                "\nerror_log: {level: error}\nlisteners",
                "error_log.level",
                Effect::NewWorkers,
                "info",
                "error",
            ),
            ("\nlisteners", "\nruntime_dir: /x\nlisteners", "runtime_dir", Effect::Restart, "(none)", "/x"),
            ("\nlisteners", "\ndaemon: on\nlisteners", "daemon", Effect::Restart, "false", "true"),
        ];
        for (old, new, path, effect, from, to) in table {
            let expected = Change { path: path.into(), effect, from: from.into(), to: to.into() };
            assert_eq!(changes(&config(BASE), &config(&BASE.replacen(old, new, 1))), [expected], "{new}");
        }
    }

    #[test]
    fn order_is_a_change() {
        let swapped = BASE.replace("{name: a, match: {path: /a}", "{name: t, match: {path: /t}");
        let swapped = swapped.replace("{name: b, match: {path: /b}", "{name: a, match: {path: /a}");
        let swapped = swapped.replace("{name: t, match: {path: /t}", "{name: b, match: {path: /b}");
        let found = changes(&config(BASE), &config(&swapped));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].from.as_str(), found[0].to.as_str()), ("[a, b]", "[b, a]"));
    }
}
